//! Tests of the model's programs.

mod programs;
mod support;
