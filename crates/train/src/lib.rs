//! Recipes, data, tokenizers, schedules, checkpoints and the training loop. Knows no device: one is handed in.

pub mod batch; // what an engine is given for a step
pub mod chat_template; // messages to a text
pub mod checkpoint; // durable checkpoints
pub mod data; // from files to batches
pub mod engine; // the seam to whatever runs steps
pub mod initial; // the state before the first step
pub mod peak; // the measured peak of a device
pub mod recipe; // a run as TOML
pub mod run_folder; // recipe, journal, metrics, checkpoints of one run
pub mod sample; // text in the model's own words
pub mod schedule; // the learning rate of each step
pub mod tokenizer; // text to tokens and back
pub mod trainer; // the loop
