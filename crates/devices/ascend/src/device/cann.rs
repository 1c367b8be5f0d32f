//! The libraries together, and device memory with an owner.

use crate::fault::{allocation, fault};
use crate::ffi::library::Libraries;
use crate::ffi::operator::Operators;
use crate::ffi::runtime::Runtime;
use std::path::PathBuf;
use std::sync::Arc;
use toprope_program::Fault;

/// One CANN.
#[derive(Debug)]
pub(crate) struct Cann {
    /// Devices, streams, memory.
    pub(crate) runtime: Runtime,
    /// Operators.
    pub(crate) operators: Operators,
    /// What the emulator calls itself, where this is one.
    pub(crate) emulator: Option<String>,
    /// The files that were loaded.
    pub(crate) files: Vec<PathBuf>,
}

impl Cann {
    /// Resolves what the device needs in any case, or names what is missing.
    pub(crate) fn new(libraries: &Libraries) -> Result<Cann, Vec<&'static str>> {
        let (runtime, operators) = (Runtime::load(libraries), Operators::load(libraries));
        match (runtime, operators) {
            (Ok(runtime), Ok(operators)) => Ok(Cann {
                runtime,
                operators,
                emulator: libraries.emulator(),
                files: libraries.files.clone(),
            }),
            (runtime, operators) => {
                let mut missing = runtime.err().unwrap_or_default();
                missing.extend(operators.err().unwrap_or_default());
                Err(missing)
            }
        }
    }

    /// Device memory; its content is undefined.
    pub(crate) fn allocate(self: &Arc<Cann>, device: &str, bytes: usize) -> Result<Memory, Fault> {
        let bytes = bytes.max(64);
        match self.runtime.malloc(bytes) {
            Ok(address) => Ok(Memory { cann: self.clone(), address, bytes }),
            Err(code) => {
                let available = self.runtime.memory().map(|(free, _)| free);
                Err(allocation(device, code, bytes, available, &self.runtime.message()))
            }
        }
    }

    /// A failed call as a fault.
    pub(crate) fn fault(&self, device: &str, code: i32, during: &str) -> Fault {
        fault(device, code, during, &self.runtime.message())
    }

    /// Copies host bytes to device memory and waits for it.
    pub(crate) fn upload(
        &self,
        device: &str,
        memory: &Memory,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        assert!(offset + bytes.len() <= memory.bytes, "{} bytes from {offset} leave the buffer", bytes.len());
        match self.runtime.upload(memory.address + offset as u64, bytes) {
            0 => Ok(()),
            code => Err(self.fault(device, code, "copying to the device")),
        }
    }
}

/// Device memory, freed with its owner.
#[derive(Debug)]
pub(crate) struct Memory {
    cann: Arc<Cann>,
    /// Its first byte.
    pub(crate) address: u64,
    /// Bytes asked for.
    pub(crate) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // On a device that is gone this fails, and there is nothing left to give back.
        self.cann.runtime.free(self.address);
    }
}
