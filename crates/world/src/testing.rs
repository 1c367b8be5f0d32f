//! A world in memory, for tests of what happens when the disk is full or the power fails.
//!
//! [`MemoryFiles`] keeps apart what was written and what was made durable, so that a test can stop at the n-th file
//! operation and then look at each state that a real machine could be found in ([`Survival`]). Dry-run once, count
//! the operations, then fail at every one of them in turn.

mod files;

pub use files::{Faults, MemoryFiles, Survival};

use crate::{
    ChildProcess, Clock, Files, Launch, ProcessError, Processes, RegionHandle, SharedMemory,
    SharedMemoryError, SharedRegion, World,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A world in memory: a clock that only `sleep` moves, [`MemoryFiles`], regions of this process, and no processes.
#[derive(Debug, Default)]
pub struct MemoryWorld {
    clock: MemoryClock,
    files: MemoryFiles,
    processes: NoProcesses,
    shared_memory: InProcessMemory,
}

impl MemoryWorld {
    /// A world over these files.
    pub fn new(files: MemoryFiles) -> Self {
        Self { files, ..Self::default() }
    }

    /// Its files, with the test's side of them.
    pub fn memory_files(&self) -> &MemoryFiles {
        &self.files
    }
}

impl World for MemoryWorld {
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

#[derive(Debug, Default)]
struct MemoryClock {
    nanoseconds: AtomicU64,
}

impl Clock for MemoryClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        const NEW_YEAR_2026: Duration = Duration::from_secs(1_767_225_600);
        NEW_YEAR_2026 + self.monotonic()
    }

    fn sleep(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::SeqCst);
    }
}

const OWN_ID: u32 = 1;

#[derive(Debug, Default)]
struct NoProcesses;

impl Processes for NoProcesses {
    fn own_id(&self) -> u32 {
        OWN_ID
    }

    fn is_alive(&self, id: u32) -> bool {
        id == OWN_ID
    }

    fn spawn(&self, launch: &Launch) -> Result<Box<dyn ChildProcess>, ProcessError> {
        Err(ProcessError {
            operation: "start",
            process: launch.program.display().to_string(),
            source: io::Error::new(io::ErrorKind::Unsupported, "a world in memory has no processes"),
        })
    }
}

#[derive(Debug, Default)]
struct InProcessMemory;

impl SharedMemory for InProcessMemory {
    fn create(&self, name: &str, length: usize) -> Result<Arc<SharedRegion>, SharedMemoryError> {
        SharedRegion::in_process(length).map(Arc::new).ok_or_else(|| SharedMemoryError::System {
            operation: "create",
            region: format!("`{name}` of {length} bytes"),
            source: io::ErrorKind::OutOfMemory.into(),
        })
    }

    fn open(&self, handle: RegionHandle) -> Result<Arc<SharedRegion>, SharedMemoryError> {
        Err(SharedMemoryError::System {
            operation: "open",
            region: handle.to_string(),
            source: io::ErrorKind::Unsupported.into(),
        })
    }
}
