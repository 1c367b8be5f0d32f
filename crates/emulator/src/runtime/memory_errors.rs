//! Aborting a device's tasks, and repairing its memory.

use crate::call::{call, write_out};
use crate::runtime::device::device;

/// `UceInfo`: 128 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UceInfo {
    address: usize,
    length: usize,
    reserved: [usize; 14],
}

pub extern "C" fn task_abort(index: i32, _timeout: u32) -> i32 {
    call("aclrtDeviceTaskAbort", || {
        device(index)?.stop();
        Ok(())
    })
}

pub unsafe extern "C" fn get_info(index: i32, places: *mut UceInfo, most: usize, given: *mut usize) -> i32 {
    call("aclrtGetMemUceInfo", || {
        let bad = device(index)?.bad_memory();
        let count = if places.is_null() { 0 } else { bad.len().min(most) };
        for (place, bad) in bad.iter().take(count).enumerate() {
            let info = UceInfo { address: bad.address, length: bad.length, reserved: [0; 14] };
            // SAFETY: the caller gives `most` places, and `place` is below that.
            unsafe { places.add(place).write(info) };
        }
        // SAFETY: the caller gives a place for the count, or null, which is refused.
        unsafe { write_out("retSize", given, count) }
    })
}

pub unsafe extern "C" fn repair(index: i32, places: *const UceInfo, count: usize) -> i32 {
    call("aclrtMemUceRepair", || {
        let read = |place| {
            // SAFETY: the caller gives `count` entries.
            unsafe { (*places.add(place)).address }
        };
        let count = if places.is_null() { 0 } else { count };
        device(index)?.repair(&(0..count).map(read).collect::<Vec<_>>());
        Ok(())
    })
}

/// `ErrorInfo`: {tryRepair, hasDetail, reserved[2], errorType, detail: union{{n, UceInfo[20]}, i32}}.
#[repr(C)]
pub struct ErrorInfo {
    try_repair: u8,
    has_detail: u8,
    reserved: [u8; 2],
    kind: i32,
    count: usize,
    bad: [UceInfo; 20],
}

const MEMORY: i32 = 1;

pub unsafe extern "C" fn verbose(index: i32, place: *mut ErrorInfo) -> i32 {
    call("aclrtGetErrorVerbose", || {
        let known = device(index)?.bad_memory();
        let mut bad = [UceInfo { address: 0, length: 0, reserved: [0; 14] }; 20];
        for (place, known) in bad.iter_mut().zip(&known) {
            (place.address, place.length) = (known.address, known.length);
        }
        let some = u8::from(!known.is_empty());
        let kind = if known.is_empty() { 0 } else { MEMORY };
        let count = known.len().min(bad.len());
        let info = ErrorInfo { try_repair: some, has_detail: some, reserved: [0; 2], kind, count, bad };
        // SAFETY: the caller gives a place for the answer, or null, which is refused.
        unsafe { write_out("errorInfo", place, info) }
    })
}

pub unsafe extern "C" fn repair_error(index: i32, place: *const ErrorInfo) -> i32 {
    call("aclrtRepairError", || {
        if place.is_null() {
            return Err(crate::fault::Fault::new(crate::code::PARAM_INVALID, "errorInfo is null"));
        }
        // SAFETY: not null, and the caller gives the struct that `aclrtGetErrorVerbose` filled.
        let info = unsafe { &*place };
        let bad: Vec<usize> = info.bad.iter().take(info.count).map(|bad| bad.address).collect();
        device(index)?.repair(&bad);
        Ok(())
    })
}
