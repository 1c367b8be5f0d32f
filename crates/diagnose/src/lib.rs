//! Which operator is wrong, since when, and in what way. Knows programs and devices; no recipe, no vendor.

pub mod bound; // what clean runs say of rare faults
pub mod bundle; // a report that can be sent
pub mod consistent; // operands that follow from others
pub mod free; // how an error grows to the loss
pub mod guess; // what kind of defect it is, by experiments
pub mod lockstep; // a step, operator by operator, on the same values
pub mod probe; // one instruction alone, with its operands' values
pub mod row; // one instruction on each device
pub mod sampled; // what the oracle can afford
pub mod search; // a case that fails
pub mod spans; // the same bits in one span as alone
pub mod step; // what a step is fed with
pub mod vote; // two of three

pub use guess::{Effort, Experiment, Guess, Kind, guess};
pub use probe::{Exact, Outcome, Probe, ProbeError};
