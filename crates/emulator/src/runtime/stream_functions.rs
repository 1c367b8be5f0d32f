//! The C functions of streams.

use crate::call::{call, write_out};
use crate::code;
use crate::fault::Fault;
use crate::runtime::context::{current, current_stream, destroy_stream, limit};
use crate::runtime::stream::Stream;

pub unsafe extern "C" fn create(stream: *mut usize) -> i32 {
    call("aclrtCreateStream", || {
        let context = current()?;
        context.device.usable_for_resources()?;
        let handle = Stream::create(context.device, context.handle());
        // SAFETY: the caller gives a place for a handle, or null, which is refused.
        unsafe { write_out("stream", stream, handle) }
    })
}

pub unsafe extern "C" fn create_with_config(stream: *mut usize, _priority: u32, _flag: u32) -> i32 {
    // SAFETY: the caller's promise. Priorities and launch flags change no order here.
    unsafe { create(stream) }
}

pub extern "C" fn destroy(stream: usize) -> i32 {
    call("aclrtDestroyStream", || destroy_stream(stream, false))
}

pub extern "C" fn destroy_force(stream: usize) -> i32 {
    call("aclrtDestroyStreamForce", || destroy_stream(stream, true))
}

pub extern "C" fn synchronize(stream: usize) -> i32 {
    call("aclrtSynchronizeStream", || current_stream(stream)?.synchronize(None))
}

pub extern "C" fn synchronize_with_timeout(stream: usize, ms: i32) -> i32 {
    call("aclrtSynchronizeStreamWithTimeout", || current_stream(stream)?.synchronize(limit(ms)))
}

pub unsafe extern "C" fn query(stream: usize, status: *mut i32) -> i32 {
    call("aclrtStreamQuery", || {
        let done = current_stream(stream)?.done()?;
        // SAFETY: the caller gives a place for the status, or null, which is refused.
        unsafe { write_out("status", status, i32::from(!done)) }
    })
}

pub extern "C" fn set_failure_mode(stream: usize, mode: u64) -> i32 {
    call("aclrtSetStreamFailureMode", || {
        if mode > 1 {
            return Err(Fault::new(
                code::PARAM_INVALID,
                format!("{mode} is no failure mode: 0 goes on, 1 stops"),
            ));
        }
        current_stream(stream)?.set_stop_on_failure(mode == 1);
        Ok(())
    })
}

pub extern "C" fn set_overflow_switch(stream: usize, flag: u32) -> i32 {
    call("aclrtSetStreamOverflowSwitch", || {
        current_stream(stream)?.overflow_switch(Some(flag));
        Ok(())
    })
}

pub unsafe extern "C" fn get_overflow_switch(stream: usize, flag: *mut u32) -> i32 {
    call("aclrtGetStreamOverflowSwitch", || {
        let set = current_stream(stream)?.overflow_switch(None);
        // SAFETY: the caller gives a place for the flag, or null, which is refused.
        unsafe { write_out("flag", flag, set) }
    })
}

pub extern "C" fn abort(stream: usize) -> i32 {
    call("aclrtStreamAbort", || {
        current_stream(stream)?.close(true);
        Ok(())
    })
}

pub unsafe extern "C" fn id(stream: usize, id: *mut i32) -> i32 {
    call("aclrtStreamGetId", || {
        let stream = current_stream(stream)?;
        // SAFETY: the caller gives a place for the number, or null, which is refused.
        unsafe { write_out("id", id, (stream.handle as u32 >> 4) as i32) }
    })
}
