//! The seam to clock, processes, shared memory and files.
//!
//! Everything that the outside can make go wrong, or make go differently twice, is behind [`World`]: time, other
//! processes, memory shared with them, and files. [`RealWorld`] is this machine; [`testing::MemoryWorld`] is one in
//! memory whose disk fills up and whose power fails where a test says so; the simulator brings its own.
//!
//! This crate knows nothing of models, devices, runs or checkpoints.

mod clock; // monotonic and wall time, sleep, the printed form of a time
mod files; // what a file system must offer for durable writes, and its errors
mod own_memory; // what this process freed, and the most that it held
mod processes; // start, kill and await a process
mod real; // this machine
mod shared_memory; // regions that two processes see
pub mod testing; // a world in memory with faults where a test wants them

pub use clock::{Clock, parse_utc_timestamp, utc_timestamp};
pub use files::{
    Entry, EntryKind, FileError, FileLock, FileOperation, FileReader, FileWriter, Files, LockError,
    write_durably,
};
pub use own_memory::{give_back_freed_memory, map_large_allocations, measure_peak_anew};
pub use processes::{ChildProcess, Exit, Launch, ProcessError, Processes, Stream};
pub use real::RealWorld;
pub use shared_memory::{RegionHandle, SharedMemory, SharedMemoryError, SharedRegion};

/// Clock, files, processes and shared memory: all that a run meets outside its own memory.
///
/// Object-safe, and shared between threads as `Arc<dyn World>`.
pub trait World: Send + Sync {
    /// Time.
    fn clock(&self) -> &dyn Clock;
    /// Files and folders.
    fn files(&self) -> &dyn Files;
    /// Other processes.
    fn processes(&self) -> &dyn Processes;
    /// Memory that other processes can see.
    fn shared_memory(&self) -> &dyn SharedMemory;
}
