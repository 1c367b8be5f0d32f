//! The programs and batches of the proofs: the tiny recipes, on text that every copy of this program has.

use crate::exit::{Exit, Failure, OrExit};
use crate::verb::validated::validated;
use std::collections::BTreeSet;
use toprope_model::deepseek_v3;
use toprope_program::{DType, Range};
use toprope_qualify::inference::InferenceCase;
use toprope_qualify::shapes::{Need, Shape, distinct};
use toprope_qualify::training::{MicroFeed, StepFeed, TrainingCase, curve_tolerance};
use toprope_train::batch::StepInputs;
use toprope_train::data::{Document, Tokens};
use toprope_train::recipe::{Recipe, built_in, parse};
use toprope_train::tokenizer::Tokenizer;

/// The contract's own page: English, and the same in every copy of a version.
const TEXT: &str = include_str!("../../../../../docs/operators.md");

/// Rows of the caches, tokens of the prompt and tokens that are made.
const CAPACITY: usize = 32;
const PROMPT: usize = 12;
const MADE: usize = 16;

/// What the proofs run.
pub struct Proofs {
    /// Training.
    pub training: Vec<TrainingCase>,
    /// Inference, on weights behind a few steps of its training case.
    pub inference: Vec<(InferenceCase, TrainingCase)>,
    /// Operators that inference takes.
    pub for_inference: BTreeSet<String>,
    /// Shapes that speed is measured on.
    pub timed: Vec<Shape>,
}

/// Builds the proofs: so many steps of training, at most the 20 that the curve tolerance is given for.
pub fn proofs(steps: u64) -> Result<Proofs, Failure> {
    let mut proofs = Proofs {
        training: Vec::new(),
        inference: Vec::new(),
        for_inference: BTreeSet::new(),
        timed: timed()?,
    };
    for (name, dtype) in [
        ("tiny-moe", DType::Bf16),
        ("tiny-dense", DType::F32),
        ("tiny-moe", DType::F32),
        ("tiny-dense", DType::Bf16),
    ] {
        let recipe = recipe(name, dtype)?;
        let training = training(&recipe, steps)?;
        if name == "tiny-moe" {
            let case = inference(&recipe)?;
            for program in [&case.prefill, &case.decode] {
                let instructions = program.program().range(Range::Accumulate);
                proofs.for_inference.extend(instructions.iter().map(|i| i.operator.name().to_string()));
            }
            proofs.inference.push((case, training.clone()));
        }
        proofs.training.push(training);
    }
    Ok(proofs)
}

/// The step of the middle-sized recipe with experts, in bf16 and f32.
pub fn timed() -> Result<Vec<Shape>, Failure> {
    let need = Need { training: true, inference: false };
    let mut programs = Vec::new();
    for dtype in [DType::Bf16, DType::F32] {
        let recipe = recipe("bench-moe", dtype)?;
        let mut options = recipe.training_options();
        options.micro_batch_sequences = 1;
        let program = deepseek_v3::build_train(&recipe.model, &options, &recipe.name);
        programs.push(program.or_exit(Exit::Internal)?);
    }
    Ok(distinct(&programs.iter().map(|program| (program, need)).collect::<Vec<_>>()))
}

fn recipe(name: &str, dtype: DType) -> Result<Recipe, Failure> {
    let text = built_in(name).unwrap_or_default();
    parse(name, text, &[format!("training.dtype={dtype}")]).or_exit(Exit::Internal)
}

fn training(recipe: &Recipe, steps: u64) -> Result<TrainingCase, Failure> {
    let documents = [Document::new("operators".into(), TEXT.into())];
    let tokenizer = Tokenizer::byte();
    let tokens = || Tokens::of_documents(&documents, &tokenizer, 1, "the proof").or_exit(Exit::Internal);
    let schedule = StepInputs::schedule(recipe).or_exit(Exit::Internal)?;
    let inputs = StepInputs::new(recipe, schedule, tokens()?, tokens()?).or_exit(Exit::Internal)?;
    let program = deepseek_v3::build_train(&recipe.model, &recipe.training_options(), &recipe.name);
    let steps = (0..steps.min(20)).map(|step| {
        let batch = inputs.step(step);
        let micro = batch.micro.into_iter();
        StepFeed {
            micro: micro
                .map(|micro| MicroFeed { sequences: micro.sequences, integers: micro.integers })
                .collect(),
            scalars: batch.scalars,
        }
    });
    let dtype = recipe.training.dtype;
    Ok(TrainingCase {
        name: recipe.name.clone(),
        dtype,
        program: validated(program.or_exit(Exit::Internal)?)?,
        steps: steps.collect(),
        seed: recipe.seed,
        tolerance: curve_tolerance(dtype),
    })
}

fn inference(recipe: &Recipe) -> Result<InferenceCase, Failure> {
    let (model, dtype, name) = (&recipe.model, recipe.training.dtype, &recipe.name);
    let prompt = TEXT.bytes().skip(64).take(PROMPT).map(i32::from).collect();
    Ok(InferenceCase {
        name: name.clone(),
        dtype,
        prefill: validated(
            deepseek_v3::build_prefill(model, dtype, CAPACITY, name).or_exit(Exit::Internal)?,
        )?,
        decode: validated(deepseek_v3::build_decode(model, dtype, CAPACITY, name).or_exit(Exit::Internal)?)?,
        whole: validated(deepseek_v3::build_logits(model, dtype, CAPACITY, name).or_exit(Exit::Internal)?)?,
        weights: Vec::new(),
        prompt,
        tokens: MADE,
    })
}
