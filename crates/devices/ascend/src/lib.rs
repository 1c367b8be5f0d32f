//! Ascend NPUs through CANN's own C interface (`libascendcl`, `libnnopbase`, `libopapi`), found and loaded at run time:
//! nothing of CANN is needed to build, and a binary runs where there is none.
//!
//! `lower` turns each operator of the contract into calls of the vendor's operators, once, when a program is prepared;
//! `plan` makes executors of them; `device` only launches. Every `unsafe` stands in `ffi`. docs/ascend.md tells what was
//! proven where.

pub mod code; // the vendor's error numbers
pub mod device; // the device
pub mod health; // how a chip is
pub mod name; // devices and their variants
pub mod search; // where CANN is looked for
pub mod table; // operator by operator, which calls

mod call; // a call of the vendor's operators, as data
mod emit; // calls and their temporaries, one at a time
mod fault; // codes as faults
mod ffi; // the C interface
mod lower; // operators of the contract as calls
mod plan; // calls as executors, at fixed addresses
mod queue; // tickets, events, progress
mod repro; // one instruction as a program for the vendor

pub use device::{AscendDevice, OpenError, Options, devices};
pub use repro::{Case, ReproError, source};

/// CANN's functions that the device calls beside operators and their objects, by name.
pub fn runtime_functions() -> &'static [&'static str] {
    ffi::runtime::FUNCTIONS
}
