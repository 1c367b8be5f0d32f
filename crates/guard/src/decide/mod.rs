//! The guard's decisions as a pure state machine: no clock, no process, no file; the same events give the same actions.

mod event; // what is seen, what is to be done

pub use event::*;
pub use toprope_program::{FaultClass, FaultKind, Place};
