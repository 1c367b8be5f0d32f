//! Tests of the model's programs.

mod golden;
mod programs;
mod run;
mod support;
