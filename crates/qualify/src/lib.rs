//! Whether a chip is fit to train or to infer on: conformance on the contract's cases and on a user's shapes, determinism,
//! memory, a soak, proofs of training and inference, speed, and a verdict with its evidence.
//!
//! Takes programs, batches and shapes. Knows no recipe, no model and no vendor: the device is a `dyn Device`, a fresh one
//! comes from a function, the oracle, the clock and the trusted device are handed in.

pub mod accuracy; // whether a result is as exact as it ought to be
pub mod bench; // what a qualification works with
pub mod budget; // time, dealt over stages
pub mod cases; // conformance by operator
pub mod result; // what was found out

pub use bench::Bench;
pub use budget::{Deadline, Tier};
pub use cases::QualifyError;
