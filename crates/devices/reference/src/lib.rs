//! The oracle: plain loops, f64 accumulation. Slow and obviously right; what other devices are compared with.
//!
//! An operator is one function over dense tensors in f64, in the order of the contract. The device gathers operands through
//! their views, calls the function, and rounds each output once to its dtype, or not at all in wide mode.

pub mod device; // buffers, tickets, running
pub mod magnitude; // what tolerances are relative to
mod memory; // bytes that a buffer stands for
pub mod operator; // what each operator computes
mod view; // strided windows to dense tensors and back

pub use device::{Options, ReferenceDevice};
pub use magnitude::magnitudes;
pub use operator::{evaluate, evaluate_bound};
