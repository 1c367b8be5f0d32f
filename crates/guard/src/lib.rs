//! The guard: a run that outlives its device.
//!
//! Its decisions are a pure state machine ([`decide::Guard`]: events in, actions out); what carries them out over real
//! processes is the supervisor, and over simulated ones the simulator. A step is an id, its batch and digests here:
//! nothing of models, recipes or vendors.

pub mod decide; // the state machine: events in, actions out
pub mod policy; // the table: what is done about which fault
