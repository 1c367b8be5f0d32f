//! Whether a chip is fit to train or to infer on: conformance on the contract's cases and on a user's shapes, determinism,
//! memory, a soak, proofs of training and inference, speed, and a verdict with its evidence.
//!
//! Takes programs, batches and shapes. Knows no recipe, no model and no vendor: the device is a `dyn Device`, a fresh one
//! comes from a function, the oracle, the clock and the trusted device are handed in.

pub mod accuracy; // whether a result is as exact as it ought to be
pub mod bench; // what a qualification works with
pub mod budget; // time, dealt over stages
pub mod cases; // conformance by operator
pub mod datasheet; // what the vendor promises
pub mod dies; // sister dies side by side
mod gone; // what stands in a lost device's place
pub mod goodput; // training through faults
pub mod inference; // prefill and decode beside a trusted device
pub mod memory; // fill, give back, refuse
pub mod product; // one product again and again
pub mod qualification; // all stages in order
pub mod reset; // the same bits from a fresh device, and beside somebody else
pub mod result; // what was found out
pub mod setting; // settings told from defects
pub mod shapes; // a user's own shapes
pub mod sisters; // the speed of dies side by side
pub mod soak; // the rate of faults
pub mod speed; // FLOP/s and bytes/s by operator
pub mod training; // the first steps beside a trusted device
pub mod verdict; // what it all comes to

pub use bench::Bench;
pub use budget::{Deadline, Tier};
pub use cases::QualifyError;
pub use qualification::{Alternative, Qualification, Request, qualify};
pub use verdict::Verdict;
