//! Bytes that a buffer stands for: its own, or adopted ones of the host. The only file with `unsafe`.

use toprope_program::{FaultKind, HostRegion};

/// A buffer's bytes.
#[derive(Debug)]
pub(crate) enum Memory {
    /// The device's own.
    Own(Vec<u8>),
    /// The host's, computed on in place.
    Adopted(HostRegion),
}

impl Memory {
    /// Zeroed memory, or `OutOfMemory`.
    pub(crate) fn zeroed(bytes: usize) -> Result<Memory, FaultKind> {
        let mut own = reserve(bytes)?;
        own.resize(bytes, 0);
        Ok(Memory::Own(own))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Memory::Own(bytes) => bytes,
            // SAFETY: `HostRegion::new` promises that the memory stays mapped while it is adopted and that nobody else
            // writes it while a ticket uses it; tickets here last no longer than a call.
            Memory::Adopted(region) => unsafe { std::slice::from_raw_parts(region.address, region.bytes) },
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Own(bytes) => bytes,
            // SAFETY: as in `bytes`; the exclusive borrow of `self` covers the region as well.
            Memory::Adopted(region) => unsafe {
                std::slice::from_raw_parts_mut(region.address, region.bytes)
            },
        }
    }
}

/// Asks for memory without touching it, so that a lack of it is an answer and not a death.
pub(crate) fn reserve(bytes: usize) -> Result<Vec<u8>, FaultKind> {
    let mut own = Vec::new();
    match own.try_reserve_exact(bytes) {
        Ok(()) => Ok(own),
        Err(_) => Err(FaultKind::OutOfMemory { needed_bytes: bytes as u64, available_bytes: None }),
    }
}

/// Copies bytes to host memory.
pub(crate) fn copy_to_host(bytes: &[u8], to: HostRegion) {
    assert!(bytes.len() <= to.bytes, "the host region is too small");
    // SAFETY: `HostRegion::new` promises that the memory is mapped and that nobody else writes it now; `copy` allows an
    // overlap, which an adopted buffer may have.
    unsafe { std::ptr::copy(bytes.as_ptr(), to.address, bytes.len()) }
}
