//! Recipes, data, tokenizers, schedules, checkpoints and the training loop.
