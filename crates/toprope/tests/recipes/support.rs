//! Recipes, batches of real text, and devices.

use std::sync::Arc;
use toprope_conformance::Oracle;
use toprope_cpu::{CpuDevice, Options};
use toprope_model::deepseek_v3;
use toprope_program::{DType, Device, Validated, Width, validate};
use toprope_reference::{Options as ReferenceOptions, ReferenceDevice, magnitudes};
use toprope_train::batch::StepInputs;
use toprope_train::data::{Document, Tokens};
use toprope_train::recipe::{Recipe, built_in, parse};
use toprope_train::tokenizer::Tokenizer;

/// Text that is here whatever the machine has: this project's own.
const TEXT: [&str; 3] = [
    include_str!("../../../program/src/autodiff.rs"),
    include_str!("../../../program/src/memory.rs"),
    include_str!("../../../../ARCHITECTURE.md"),
];

/// A built-in recipe in a precision.
pub fn recipe(name: &str, dtype: DType) -> Recipe {
    let sets = [format!("training.dtype={dtype}")];
    parse(name, built_in(name).unwrap(), &sets).unwrap()
}

/// Its training program.
pub fn program(recipe: &Recipe) -> Arc<Validated> {
    let program = deepseek_v3::build_train(&recipe.model, &recipe.training_options(), &recipe.name).unwrap();
    Arc::new(validate(program).unwrap_or_else(|defects| panic!("{defects:#?}")))
}

/// Batches of our own text for a recipe with a byte tokenizer.
pub fn inputs(recipe: &Recipe) -> StepInputs {
    let documents: Vec<Document> = TEXT
        .iter()
        .enumerate()
        .map(|(index, text)| Document::new(format!("{index}"), (*text).to_string()))
        .collect();
    let tokenizer = Tokenizer::byte();
    let tokens = |documents: &[Document]| Tokens::of_documents(documents, &tokenizer, 2, "tests").unwrap();
    let schedule = StepInputs::schedule(recipe).unwrap();
    StepInputs::new(recipe, schedule, tokens(&documents[..2]), tokens(&documents[2..])).unwrap()
}

/// The cpu device at its best level.
pub fn cpu(threads: usize) -> CpuDevice {
    CpuDevice::new(Options { threads: Some(threads), ..Options::default() }).unwrap()
}

/// The reference device.
pub fn reference(width: Width) -> Box<dyn Device> {
    Box::new(ReferenceDevice::new(ReferenceOptions { width, ..ReferenceOptions::default() }))
}

/// What the cpu is judged by.
pub fn oracle() -> Oracle {
    Oracle::new(reference(Width::Wide), magnitudes)
}
