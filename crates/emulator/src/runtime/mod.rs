//! `libascendcl.so`: devices, contexts, streams, events, memory.

pub mod context;
pub mod copy;
pub mod device;
pub mod event;
pub mod host_function;
pub mod info;
pub mod management;
pub mod memory_errors;
pub mod stream;
pub mod stream_functions;
pub mod virtual_memory;
