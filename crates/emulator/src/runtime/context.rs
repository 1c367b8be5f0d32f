//! Contexts, and which one a thread works in.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::call::{call, write_out};
use crate::code;
use crate::fault::Fault;
use crate::memory::space;
use crate::registry::{Registry, lock};
use crate::runtime::device::{Device, device};
use crate::runtime::stream::{STREAMS, Stream};

/// All contexts.
pub static CONTEXTS: Registry<Context> = Registry::new(3, "context");

/// One context: a device and its default stream.
pub struct Context {
    handle: usize,
    pub device: &'static Device,
    default_stream: Mutex<Option<usize>>,
}

static PRIMARY: Mutex<Vec<(i32, usize)>> = Mutex::new(Vec::new());

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The context of this thread.
pub fn current() -> Result<Arc<Context>, Fault> {
    CONTEXTS.get(CURRENT.get()).map_err(|_| {
        let text = "no context on this thread: call aclrtSetDevice or aclrtSetCurrentContext first";
        Fault::new(code::CONTEXT_NULL, text)
    })
}

impl Context {
    /// The handle of the context.
    pub fn handle(&self) -> usize {
        self.handle
    }

    fn default_stream(&self) -> Result<Arc<Stream>, Fault> {
        let mut kept = lock(&self.default_stream);
        if let Some(stream) = kept.and_then(|handle| STREAMS.get(handle).ok())
            && !stream.outdated()
        {
            return Ok(stream);
        }
        let handle = Stream::create(self.device, self.handle);
        *kept = Some(handle);
        STREAMS.get(handle)
    }
}

/// The stream of a handle (null: the default one), which must be of this thread's context.
pub fn current_stream(handle: usize) -> Result<Arc<Stream>, Fault> {
    let context = current()?;
    if handle == 0 {
        return context.default_stream();
    }
    let stream = STREAMS.get(handle)?;
    if stream.context != context.handle {
        let text = format!(
            "the stream is of another context (device {}) than this thread's (device {})",
            stream.device.index, context.device.index
        );
        return Err(Fault::new(code::STREAM_CONTEXT, text));
    }
    Ok(stream)
}

/// Streams of a device.
pub fn streams_of(device: &Device) -> Vec<Arc<Stream>> {
    STREAMS.all().into_iter().filter(|stream| stream.device.index == device.index).collect()
}

pub extern "C" fn set_device(index: i32) -> i32 {
    call("aclrtSetDevice", || {
        let device = device(index)?;
        device.usable()?;
        let mut primary = lock(&PRIMARY);
        let known = primary.iter().find(|&&(of, handle)| of == index && CONTEXTS.get(handle).is_ok());
        let handle = match known {
            Some(&(_, handle)) => handle,
            None => {
                let new = |handle| Context { handle, device, default_stream: Mutex::default() };
                let handle = CONTEXTS.insert_with(new);
                primary.retain(|&(of, _)| of != index);
                primary.push((index, handle));
                handle
            }
        };
        CURRENT.set(handle);
        Ok(())
    })
}

pub unsafe extern "C" fn get_device(index: *mut i32) -> i32 {
    call("aclrtGetDevice", || {
        let here = current()?;
        // SAFETY: the caller gives a place for the number, or null, which is refused.
        unsafe { write_out("deviceId", index, here.device.index) }
    })
}

/// Streams that ended with their device's reset and that their client has not destroyed yet.
static ENDED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// Destroys a stream; one that its device's reset ended may still be destroyed, once: ggml-cann resets first.
pub fn destroy_stream(handle: usize, drop_queued: bool) -> Result<(), Fault> {
    match STREAMS.remove(handle) {
        Ok(stream) => stream.close(drop_queued),
        Err(fault) if !lock(&ENDED).remove(&handle) => return Err(fault),
        Err(_) => {}
    }
    Ok(())
}

fn end(device: &'static Device) {
    for stream in streams_of(device) {
        stream.close(true);
        if STREAMS.remove(stream.handle).is_ok() {
            lock(&ENDED).insert(stream.handle);
        }
    }
    for context in CONTEXTS.all() {
        if context.device.index == device.index {
            let _ = CONTEXTS.remove(context.handle);
        }
    }
}

pub extern "C" fn reset_device(index: i32) -> i32 {
    call("aclrtResetDevice", || {
        let device = device(index)?;
        if device.lost() {
            return device.usable();
        }
        let mut outcome = Ok(());
        for stream in streams_of(device).iter().filter(|stream| !stream.outdated()) {
            outcome = outcome.and(stream.synchronize(None));
        }
        end(device);
        device.restart();
        outcome
    })
}

pub extern "C" fn reset_device_force(index: i32) -> i32 {
    call("aclrtResetDeviceForce", || {
        let device = device(index)?;
        let outcome = device.revive();
        end(device);
        space().free_all(index);
        outcome
    })
}

pub unsafe extern "C" fn create(context: *mut usize, index: i32) -> i32 {
    call("aclrtCreateContext", || {
        let device = device(index)?;
        device.usable()?;
        let handle =
            CONTEXTS.insert_with(|handle| Context { handle, device, default_stream: Mutex::default() });
        CURRENT.set(handle);
        // SAFETY: the caller gives a place for a handle, or null, which is refused.
        unsafe { write_out("context", context, handle) }
    })
}

pub extern "C" fn destroy(context: usize) -> i32 {
    call("aclrtDestroyContext", || {
        let context = CONTEXTS.remove(context)?;
        for stream in STREAMS.all().into_iter().filter(|stream| stream.context == context.handle) {
            stream.close(false);
            let _ = STREAMS.remove(stream.handle);
        }
        Ok(())
    })
}

pub extern "C" fn set_current(context: usize) -> i32 {
    call("aclrtSetCurrentContext", || {
        CONTEXTS.get(context)?;
        CURRENT.set(context);
        Ok(())
    })
}

pub unsafe extern "C" fn get_current(context: *mut usize) -> i32 {
    call("aclrtGetCurrentContext", || {
        let here = current()?;
        // SAFETY: the caller gives a place for a handle, or null, which is refused.
        unsafe { write_out("context", context, here.handle) }
    })
}

pub extern "C" fn synchronize_device() -> i32 {
    call("aclrtSynchronizeDevice", || synchronize(None))
}

pub extern "C" fn synchronize_device_with_timeout(ms: i32) -> i32 {
    call("aclrtSynchronizeDeviceWithTimeout", || synchronize(limit(ms)))
}

/// A time limit in milliseconds; below 0 none.
pub fn limit(ms: i32) -> Option<std::time::Duration> {
    u64::try_from(ms).ok().map(std::time::Duration::from_millis)
}

fn synchronize(limit: Option<std::time::Duration>) -> Result<(), Fault> {
    let device = current()?.device;
    let mut outcome = Ok(());
    for stream in streams_of(device).iter().filter(|stream| !stream.outdated()) {
        outcome = outcome.and(stream.synchronize(limit));
    }
    outcome.and_then(|()| device.usable())
}
