//! This machine.

mod clock;
mod files;
mod processes;
mod shared_memory;

use crate::{Clock, Files, Processes, SharedMemory, World};

/// The world of this machine: its clock, file systems, processes and memory.
#[derive(Debug)]
pub struct RealWorld {
    clock: clock::RealClock,
    files: files::RealFiles,
    processes: processes::RealProcesses,
    shared_memory: shared_memory::RealSharedMemory,
}

impl RealWorld {
    /// This machine; its monotonic time counts from here.
    pub fn new() -> Self {
        Self {
            clock: clock::RealClock::starting_now(),
            files: files::RealFiles,
            processes: processes::RealProcesses,
            shared_memory: shared_memory::RealSharedMemory,
        }
    }
}

impl Default for RealWorld {
    fn default() -> Self {
        Self::new()
    }
}

impl World for RealWorld {
    fn clock(&self) -> &dyn Clock {
        &self.clock
    }

    fn files(&self) -> &dyn Files {
        &self.files
    }

    fn processes(&self) -> &dyn Processes {
        &self.processes
    }

    fn shared_memory(&self) -> &dyn SharedMemory {
        &self.shared_memory
    }
}
