//! Recipes, data, tokenizers, schedules, checkpoints and the training loop.

pub mod checkpoint; // durable checkpoints
