//! Recipes, data, tokenizers, schedules, checkpoints and the training loop.

pub mod checkpoint; // durable checkpoints
pub mod run_folder; // a run's folder: lock, recipe, journal, metrics
