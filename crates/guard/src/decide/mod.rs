//! The guard's decisions as a pure state machine: no clock, no process, no file; the same events give the same actions.

mod counters; // what the summary says
mod device; // which devices are used: counts by class, quarantine, tests
mod event; // what is seen, what is to be done
mod gather; // giving every rank the same state again
mod judge; // alarms: replay, confirm, verdict
mod keep; // snapshots and durable checkpoints
mod machine; // the guard: where it stands, and what comes next
mod mutant; // guards that are wrong on purpose
mod seat; // a rank's workers: start, promote, give up
mod statistics; // medians, spikes, how often to copy
mod step; // one step: accumulate, update, commit

pub use counters::Counters;
pub use event::*;
pub use machine::{Guard, Phase};
#[doc(hidden)]
pub use mutant::Mutant;
pub use toprope_program::{FaultClass, FaultKind, Place};
