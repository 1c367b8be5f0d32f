//! The tiny recipes as cases of the proofs.

use std::collections::BTreeSet;
use std::sync::Arc;
use toprope_model::deepseek_v3;
use toprope_program::{DType, Program, Validated, validate};
use toprope_qualify::inference::{InferenceCase, Weights};
use toprope_qualify::training::{MicroFeed, StepFeed, TrainingCase, curve_tolerance};
use toprope_train::batch::StepInputs;
use toprope_train::data::{Document, Tokens};
use toprope_train::recipe::{Recipe, built_in, parse};
use toprope_train::tokenizer::Tokenizer;

const TEXT: &str = include_str!("../../../../docs/operators.md");

fn recipe(name: &str, dtype: DType) -> Recipe {
    parse(name, built_in(name).expect("a built-in recipe"), &[format!("training.dtype={dtype}")])
        .expect("a recipe")
}

fn checked(program: Program) -> Arc<Validated> {
    Arc::new(validate(program).expect("a valid program"))
}

/// The first steps of a tiny recipe.
pub fn training(name: &str, dtype: DType, steps: u64) -> TrainingCase {
    let recipe = recipe(name, dtype);
    let documents = [Document::new("text".into(), TEXT.into())];
    let tokens =
        || Tokens::of_documents(&documents, &Tokenizer::byte(), 1, "tests").expect("bytes are tokens");
    let schedule = StepInputs::schedule(&recipe).expect("a schedule");
    let inputs = StepInputs::new(&recipe, schedule, tokens(), tokens()).expect("enough text");
    let program =
        deepseek_v3::build_train(&recipe.model, &recipe.training_options(), name).expect("a program");
    let step = |step| {
        let batch = inputs.step(step);
        let micro = batch.micro.into_iter();
        StepFeed {
            micro: micro.map(|m| MicroFeed { sequences: m.sequences, integers: m.integers }).collect(),
            scalars: batch.scalars,
        }
    };
    TrainingCase {
        name: name.into(),
        dtype,
        program: checked(program),
        steps: (0..steps).map(step).collect(),
        seed: recipe.seed,
        tolerance: curve_tolerance(dtype),
    }
}

/// Prefill and decode of a tiny recipe's model.
pub fn inference(name: &str, dtype: DType) -> (InferenceCase, Option<TrainingCase>) {
    let model = recipe(name, dtype).model;
    let case = InferenceCase {
        name: name.into(),
        dtype,
        prefill: checked(deepseek_v3::build_prefill(&model, dtype, 32, name).expect("a program")),
        decode: checked(deepseek_v3::build_decode(&model, dtype, 32, name).expect("a program")),
        whole: checked(deepseek_v3::build_logits(&model, dtype, 32, name).expect("a program")),
        weights: Weights::Stored(Vec::new()),
        prompt: TEXT.bytes().skip(64).take(12).map(i32::from).collect(),
        tokens: 12,
    };
    (case, Some(training(name, dtype, 4)))
}

/// Operators that inference takes.
pub fn for_inference(case: &InferenceCase) -> BTreeSet<String> {
    let programs = [&case.prefill, &case.decode];
    let instructions = programs.iter().flat_map(|program| program.program().accumulate.iter());
    instructions.map(|instruction| instruction.operator.name().to_string()).collect()
}
