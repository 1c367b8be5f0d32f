//! The fast embedded device: AMX, AVX-512, AVX2 and portable kernels.
//!
//! `prepare` decides once what every instruction does (layouts, fused pairs, scratch memory); `run` queues a span for the
//! queue's thread, which walks it and calls the kernels. An operator's way from operands to kernels is in `operator/`.

mod bind; // operands with their symbols bound
mod device; // the contract's interface
mod fault; // failures as faults
mod hardware; // the processor's name
pub mod kernel;
mod lanes;
pub mod level;
mod memory; // buffers
mod operator; // operands to kernels
pub mod pool;
mod prepare; // what is decided once
mod profile; // time per instruction
mod queue; // tickets
mod run; // one span
mod support; // yes or no for each operator

pub use device::{CpuDevice, OpenError, Options};
pub use level::{Level, LevelError};
pub use prepare::workspace_bytes;
pub use profile::ProfileEntry;
