//! The programs and batches of the proofs: the tiny recipes and the user's own model, on text that every copy of this program
//! has.

use crate::exit::{Exit, Failure, OrExit};
use crate::verb::published::{self, WeightsError};
use crate::verb::validated::validated;
use std::collections::BTreeSet;
use std::sync::Arc;
use toprope_model::deepseek_v3::{self, Inference};
use toprope_model::hub::Hub;
use toprope_model::{Architecture, ModelConfig};
use toprope_program::{DType, Device, Fault, FaultKind, Range, Session};
use toprope_qualify::inference::{InferenceCase, Weights};
use toprope_qualify::shapes::{Need, Shape, distinct};
use toprope_qualify::training::{MicroFeed, StepFeed, TrainingCase, curve_tolerance};
use toprope_train::batch::StepInputs;
use toprope_train::data::{Document, Tokens};
use toprope_train::recipe::{Recipe, built_in, parse};
use toprope_train::tokenizer::Tokenizer;
use toprope_world::World;

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
    /// Inference, on weights of its own or behind a few steps of its training case.
    pub inference: Vec<(InferenceCase, Option<TrainingCase>)>,
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
            proofs.inference.push((case, Some(training.clone())));
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

/// Tokens of the prompt of a published model, and tokens that are made.
const OWN_PROMPT: usize = 32;
const OWN_MADE: usize = 16;

/// The inference of a published model with its own weights, in each of these dtypes: the programs that `toprope generate`
/// runs, with a window for the prompt and one for a single token.
pub fn published(world: &dyn World, hub: &Arc<Hub>, dtypes: &[DType]) -> Result<Vec<InferenceCase>, Failure> {
    let config = hub.inference_config();
    let architecture = Architecture::from(&config);
    let longest = architecture.max_position_embeddings();
    let made = OWN_MADE.min(longest / 2).max(1);
    let prompt = prompt(world, hub, &config, OWN_PROMPT.min(longest.saturating_sub(made)).max(1))?;
    let capacity = prompt.len() + made;
    let case = |dtype: DType| {
        let program = |what| published::inference(hub, &config, what, dtype, capacity);
        let (model, config) = (hub.clone(), config.clone());
        let write = move |device: &mut dyn Device, session: &Session| {
            let written = published::write_weights(&model, (&config).into(), device, session);
            written.map_err(|error| match error {
                WeightsError::Fault(fault) => fault,
                other => Fault::new("model", FaultKind::Driver { code: 0, message: other.to_string() }),
            })
        };
        Ok(InferenceCase {
            name: published::name(hub),
            dtype,
            prefill: program(Inference::Cached { window: prompt.len() })?,
            decode: program(Inference::Cached { window: 1 })?,
            whole: program(Inference::Logits)?,
            weights: Weights::Published(Arc::new(write)),
            prompt: prompt.clone(),
            tokens: made,
        })
    };
    dtypes.iter().map(|dtype| case(*dtype)).collect()
}

/// The beginning of the text in the model's own tokens; any tokens where it has no tokenizer.
fn prompt(world: &dyn World, hub: &Hub, config: &ModelConfig, count: usize) -> Result<Vec<i32>, Failure> {
    let vocabulary = Architecture::from(config).vocab_size();
    let mut text = hub.text(world.files())?;
    if text.tokenizer.is_some() {
        let tokenizer = published::tokenizer(&mut text, config)?;
        // As many bytes as that many tokens hold at most in practice; fewer tokens are as good.
        let beginning = &TEXT[..TEXT.floor_char_boundary(16 * count)];
        let tokens = tokenizer.encode(beginning, false).or_exit(Exit::Data)?;
        if !tokens.is_empty() {
            return Ok(tokens.into_iter().take(count).map(|token| token as i32).collect());
        }
    }
    Ok((0..count).map(|place| (place * 7919 % vocabulary) as i32).collect())
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
        weights: Weights::Stored(Vec::new()),
        prompt,
        tokens: MADE,
    })
}
