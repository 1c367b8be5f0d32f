//! Reserved addresses and physical memory mapped there.

use std::sync::Arc;

use crate::call::{call, write_out};
use crate::code;
use crate::fault::Fault;
use crate::memory::mapped::{GRANULARITY, Physical};
use crate::memory::space;
use crate::registry::Registry;
use crate::runtime::context::current;
use crate::runtime::device::device;

static PIECES: Registry<Arc<Physical>> = Registry::new(12, "physical memory");

/// What kind of memory is wanted: `aclrtPhysicalMemProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Wanted {
    handle_type: i32,
    allocation_type: i32,
    attribute: i32,
    id: u32,
    location: i32,
    reserve: u64,
}

const ON_DEVICE: i32 = 1;

fn refuse(text: String) -> Fault {
    Fault::new(code::PARAM_INVALID, text)
}

/// # Safety
/// `wanted` is null or points to the structure.
unsafe fn device_of(wanted: *const Wanted) -> Result<i32, Fault> {
    if wanted.is_null() {
        return Err(refuse("prop is null".into()));
    }
    // SAFETY: not null, and the caller's promise.
    let wanted = unsafe { *wanted };
    if wanted.handle_type != 0 || wanted.allocation_type != 0 || wanted.location != ON_DEVICE {
        return Err(refuse(format!(
            "prop asks for handle type {}, allocation type {}, location {}: this emulator has 0, 0 and {ON_DEVICE}",
            wanted.handle_type, wanted.allocation_type, wanted.location
        )));
    }
    let index = i32::try_from(wanted.id).map_err(|_| refuse(format!("there is no device {}", wanted.id)))?;
    device(index)?.usable_for_resources()?;
    Ok(index)
}

pub unsafe extern "C" fn granularity(wanted: *const Wanted, _option: i32, size: *mut usize) -> i32 {
    call("aclrtMemGetAllocationGranularity", || {
        // SAFETY: the caller's promise for the structure.
        unsafe { device_of(wanted)? };
        // SAFETY: the caller gives a place for the size, or null, which is refused.
        unsafe { write_out("granularity", size, GRANULARITY) }
    })
}

pub unsafe extern "C" fn malloc_physical(
    handle: *mut usize,
    size: usize,
    wanted: *const Wanted,
    flags: u64,
) -> i32 {
    call("aclrtMallocPhysical", || {
        if flags != 0 {
            return Err(refuse(format!("flags are {flags}, they must be 0")));
        }
        // SAFETY: the caller's promise for the structure.
        let index = unsafe { device_of(wanted)? };
        let piece = PIECES.insert(Arc::new(Physical::new(index, size)?));
        // SAFETY: the caller gives a place for a handle, or null, which is refused.
        unsafe { write_out("handle", handle, piece) }
    })
}

/// A piece that is mapped lives until it is unmapped.
pub extern "C" fn free_physical(handle: usize) -> i32 {
    call("aclrtFreePhysical", || PIECES.remove(handle).map(drop))
}

pub unsafe extern "C" fn reserve(
    address: *mut usize,
    size: usize,
    alignment: usize,
    expected: usize,
    _flags: u64,
) -> i32 {
    call("aclrtReserveMemAddress", || {
        current()?.device.usable_for_resources()?;
        if alignment != 0 || expected != 0 {
            return Err(refuse(format!(
                "alignment is {alignment} and expectPtr {expected:#x}: both must be 0"
            )));
        }
        let made = space().reserve(size)?;
        // SAFETY: the caller gives a place for the address, or null, which is refused.
        unsafe { write_out("virPtr", address, made) }
    })
}

pub extern "C" fn release(address: usize) -> i32 {
    call("aclrtReleaseMemAddress", || space().release(address))
}

pub extern "C" fn map(address: usize, size: usize, offset: usize, handle: usize, flags: u64) -> i32 {
    call("aclrtMapMem", || {
        if offset != 0 || flags != 0 {
            return Err(refuse(format!("offset is {offset} and flags are {flags}: both must be 0")));
        }
        let piece = PIECES.get(handle)?;
        space().map(address, size, (*piece).clone())
    })
}

pub extern "C" fn unmap(address: usize) -> i32 {
    call("aclrtUnmapMem", || space().unmap(address))
}
