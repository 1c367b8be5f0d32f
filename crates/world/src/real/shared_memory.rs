//! Shared memory without a name in any file system: a memfd on Linux, an unlinked temporary file elsewhere.

use crate::{RegionHandle, SharedMemory, SharedMemoryError, SharedRegion};
use std::fs::{File, OpenOptions};
use std::io;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct RealSharedMemory;

impl SharedMemory for RealSharedMemory {
    fn create(&self, name: &str, length: usize) -> Result<Arc<SharedRegion>, SharedMemoryError> {
        let made = || {
            if length == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a region has at least one byte"));
            }
            let file = nameless_file(name, length as u64)?;
            SharedRegion::map(file, length)
        };
        made().map(Arc::new).map_err(|source| SharedMemoryError::System {
            operation: "create",
            region: format!("`{name}` of {length} bytes"),
            source,
        })
    }

    fn open(&self, handle: RegionHandle) -> Result<Arc<SharedRegion>, SharedMemoryError> {
        let fail = |operation| {
            move |source| SharedMemoryError::System { operation, region: handle.to_string(), source }
        };
        // Opened anew, so that the descriptor which was inherited stays the caller's and no ownership is guessed.
        let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("{folder}/{}", handle.descriptor))
            .map_err(fail("open"))?;
        let found = file.metadata().map_err(fail("open"))?.len();
        if found != handle.length as u64 {
            return Err(SharedMemoryError::Length { handle, found });
        }
        SharedRegion::map(file, handle.length).map(Arc::new).map_err(fail("map"))
    }
}

/// Sealed at its size: nobody can shrink it under a process that has it mapped.
#[cfg(target_os = "linux")]
fn nameless_file(name: &str, length: u64) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let descriptor = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&descriptor, length)?;
    rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(descriptor))
}

#[cfg(not(target_os = "linux"))]
fn nameless_file(_name: &str, length: u64) -> io::Result<File> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = std::env::temp_dir();
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".toprope-region-{}-{count}", std::process::id()));
        let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        std::fs::remove_file(&path)?;
        file.set_len(length)?;
        return Ok(file);
    }
}
