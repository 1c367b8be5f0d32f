//! Buffers: memory of the device's own, and host regions that it computes on in place.

use crate::fault::{fault, out_of_memory};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use toprope_program::memory::ALIGNMENT_BYTES;
use toprope_program::{Fault, FaultKind, HostRegion};

/// From this size on, the kernel is asked for huge pages.
const HUGE_FROM_BYTES: usize = 4 << 20;

/// Zeroed memory, aligned to a page, given back when dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: an address and a length; who uses the memory when is the queue's concern.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps at least one byte.
    pub(crate) fn new(bytes: usize) -> Result<Memory, Fault> {
        let bytes = bytes.max(1);
        let there = physical_bytes();
        if there.is_some_and(|there| bytes as u64 > there) {
            return Err(out_of_memory(bytes, there));
        }
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, kind) };
        let address = mapped.map_err(|_| out_of_memory(bytes, there))?;
        if bytes >= HUGE_FROM_BYTES {
            // SAFETY: the mapping that was just made. Refusal costs speed only.
            let _ = unsafe { madvise(address, bytes, Advice::LinuxHugepage) };
        }
        Ok(Memory { address: address.cast(), bytes })
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this mapping, which nobody uses any more: the queue's jobs hold what they use.
        let _ = unsafe { munmap(self.address.cast(), self.bytes) };
    }
}

/// What a buffer id stands for.
#[derive(Debug)]
pub(crate) enum Buffer {
    /// Memory of the device's own.
    Own(Memory),
    /// Somebody else's.
    Adopted(HostRegion),
}

impl Buffer {
    pub(crate) fn adopt(region: HostRegion) -> Result<Buffer, Fault> {
        if region.address.is_null() || !region.address.addr().is_multiple_of(ALIGNMENT_BYTES) {
            let message = format!("a host region must begin at a multiple of {ALIGNMENT_BYTES} bytes");
            return Err(fault(FaultKind::Driver { code: 2, message }));
        }
        Ok(Buffer::Adopted(region))
    }

    pub(crate) fn address(&self) -> *mut u8 {
        match self {
            Buffer::Own(memory) => memory.address(),
            Buffer::Adopted(region) => region.address,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Buffer::Own(memory) => memory.bytes(),
            Buffer::Adopted(region) => region.bytes,
        }
    }
}

/// The machine's memory, in bytes.
pub(crate) fn physical_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    let bytes = (info.totalram as u64).checked_mul(u64::from(info.mem_unit))?;
    (bytes > 0).then_some(bytes)
}
