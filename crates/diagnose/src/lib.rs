//! Which operator is wrong, since when, and in what way. Knows programs and devices; no recipe, no vendor.

pub mod consistent; // operands that follow from others
pub mod probe; // one instruction alone, with its operands' values

pub use probe::{Exact, Outcome, Probe, ProbeError};
