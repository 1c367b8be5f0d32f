//! CANN's C interface: the only place with `unsafe`. Prototypes are written from facts (docs/ascend.md says from which); what
//! a pointer must satisfy is checked on this side before it crosses.

pub(crate) mod abi; // types and numbers
pub(crate) mod dcmi; // the driver's management interface
pub(crate) mod library; // shared libraries and their symbols
pub(crate) mod object; // tensors, scalars and lists for one call
pub(crate) mod operator; // two-phase calls
pub(crate) mod prototype; // what each operator takes
pub(crate) mod runtime; // devices, streams, events, memory
