//! The emulator through the C interface alone: the built libraries, opened by their names, called by CANN's prototypes.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod defects;
mod errors;
mod faults;
mod golden;
mod halves;
mod header;
mod library;
mod linked;
mod mapped;
mod record;
mod runtime;
