//! The guard: a run that outlives its device.
//!
//! Its decisions are a pure state machine ([`decide`]: events in, actions out); what carries them out over real
//! processes is the supervisor, and over simulated ones the simulator. A step is an id, its batch and digests here:
//! nothing of models, recipes or vendors.

pub mod decide; // the state machine: events in, actions out
pub mod hook; // a command of the user's, run on a fault
pub mod inject; // failures on purpose: a schedule's language and a device that carries it out
pub mod journal; // what was written down: lines, ledger, accounts
pub mod policy; // what is done about what
pub mod supervisor; // carries the decisions out
pub mod worker; // the worker's end

pub use toprope_protocol::{self as protocol, remote};
