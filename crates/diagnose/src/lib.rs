//! Which operator is wrong, since when, and in what way. Knows programs and devices; no recipe, no vendor.

pub mod consistent; // operands that follow from others
pub mod guess; // what kind of defect it is, by experiments
pub mod probe; // one instruction alone, with its operands' values

pub use guess::{Effort, Experiment, Guess, Kind, guess};
pub use probe::{Exact, Outcome, Probe, ProbeError};
