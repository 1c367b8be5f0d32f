//! Tests of the model's programs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod cached;
mod golden;
mod hub; // published folders beside transformers
mod hub_bad_input; // what is refused of them
mod programs;
mod run;
mod steps;
mod support;
mod totals;
