//! Tests of the model's programs.

mod bad_input;
mod golden;
mod programs;
mod run;
mod steps;
mod support;
mod totals;
