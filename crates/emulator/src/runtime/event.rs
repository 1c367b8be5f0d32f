//! Events: a point in a stream that hosts and other streams can wait for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::call::{call, write_out};
use crate::code::{self, After};
use crate::fault::Fault;
use crate::registry::{Registry, lock};
use crate::runtime::context::{current, current_stream};
use crate::runtime::device::Device;
use crate::runtime::stream::Stream;

/// All events.
pub static EVENTS: Registry<Event> = Registry::new(2, "event");

#[derive(Default)]
struct State {
    recorded: u64,
    reached: u64,
    time: Option<Instant>,
    stream: Option<Arc<Stream>>,
}

/// One event.
pub struct Event {
    device: &'static Device,
    state: Mutex<State>,
}

impl Event {
    fn reached(&self, point: u64) -> bool {
        lock(&self.state).reached >= point
    }

    fn complete(&self) -> bool {
        let state = lock(&self.state);
        state.reached >= state.recorded
    }

    /// Whether a point will never be reached: its stream ended, failed or was reset before it.
    fn dropped(&self, point: u64) -> bool {
        let stream = lock(&self.state).stream.clone();
        stream.is_some_and(|stream| stream.outdated() || stream.idle()) && !self.reached(point)
    }
}

pub unsafe extern "C" fn create(event: *mut usize) -> i32 {
    call("aclrtCreateEvent", || {
        let here = current()?;
        here.device.usable_for_resources()?;
        let handle = EVENTS.insert(Event { device: here.device, state: Mutex::default() });
        // SAFETY: the caller gives a place for a handle, or null, which is refused.
        unsafe { write_out("event", event, handle) }
    })
}

pub unsafe extern "C" fn create_with_flag(event: *mut usize, _flag: u32) -> i32 {
    // SAFETY: as in `create`. The flags ask for less than what every event can do here.
    unsafe { create(event) }
}

pub extern "C" fn destroy(event: usize) -> i32 {
    call("aclrtDestroyEvent", || EVENTS.remove(event).map(drop))
}

pub extern "C" fn record(event: usize, stream: usize) -> i32 {
    call("aclrtRecordEvent", || {
        let event = EVENTS.get(event)?;
        let stream = current_stream(stream)?;
        stream.device.usable()?;
        let point = {
            let mut state = lock(&event.state);
            state.recorded += 1;
            state.stream = Some(stream.clone());
            state.recorded
        };
        stream.push("aclrtRecordEvent", move |_| {
            let mut state = lock(&event.state);
            state.reached = state.reached.max(point);
            state.time = Some(Instant::now());
            Ok(())
        })
    })
}

pub extern "C" fn reset(event: usize, stream: usize) -> i32 {
    call("aclrtResetEvent", || {
        let event = EVENTS.get(event)?;
        let stream = current_stream(stream)?;
        stream.push("aclrtResetEvent", move |_| {
            lock(&event.state).time = None;
            Ok(())
        })
    })
}

pub extern "C" fn stream_wait(stream: usize, event: usize) -> i32 {
    call("aclrtStreamWaitEvent", || {
        let event = EVENTS.get(event)?;
        let stream = current_stream(stream)?;
        stream.device.usable()?;
        let point = lock(&event.state).recorded;
        // An event that was never recorded is not waited for.
        stream.push("aclrtStreamWaitEvent", move |stream| {
            stream.wait_until("aclrtStreamWaitEvent", || event.reached(point) || event.dropped(point))
        })
    })
}

pub extern "C" fn synchronize(event: usize) -> i32 {
    call("aclrtSynchronizeEvent", || {
        let event = EVENTS.get(event)?;
        let point = lock(&event.state).recorded;
        while !event.reached(point) {
            event.device.usable()?;
            if event.dropped(point) {
                let text = "the event's record was dropped: its stream failed, or the device was reset";
                let dropped = Fault::new(code::DEVICE_TASK_ABORT, text);
                let failure = lock(&event.state).stream.as_ref().and_then(|stream| stream.failure());
                return Err(failure.unwrap_or(Fault { after: After::Passing, ..dropped }));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        event.device.usable()?;
        let failure = lock(&event.state).stream.as_ref().and_then(|stream| stream.failure());
        failure.map_or(Ok(()), Err)
    })
}

/// Status words of the three queries.
fn query(name: &'static str, event: usize, status: *mut i32, complete: i32, pending: i32) -> i32 {
    call(name, || {
        let event = EVENTS.get(event)?;
        event.device.usable()?;
        // SAFETY: the caller gives a place for the status, or null, which is refused.
        unsafe { write_out("status", status, if event.complete() { complete } else { pending }) }
    })
}

pub unsafe extern "C" fn query_old(event: usize, status: *mut i32) -> i32 {
    query("aclrtQueryEvent", event, status, 0, 1)
}

pub unsafe extern "C" fn query_status(event: usize, status: *mut i32) -> i32 {
    query("aclrtQueryEventStatus", event, status, 1, 0)
}

pub unsafe extern "C" fn query_wait(event: usize, status: *mut i32) -> i32 {
    query("aclrtQueryEventWaitStatus", event, status, 0, 1)
}

fn time(event: usize) -> Result<Instant, Fault> {
    let event = EVENTS.get(event)?;
    let state = lock(&event.state);
    let reached = state.reached >= state.recorded;
    let none = || Fault::new(code::EVENT_TIMESTAMP_INVALID, "the event was not recorded, or not reached yet");
    state.time.filter(|_| reached).ok_or_else(none)
}

pub unsafe extern "C" fn elapsed(ms: *mut f32, start: usize, end: usize) -> i32 {
    call("aclrtEventElapsedTime", || {
        let (start, end) = (time(start)?, time(end)?);
        let Some(passed) = end.checked_duration_since(start) else {
            return Err(Fault::new(code::EVENT_TIMESTAMP_REVERSAL, "the end was reached before the start"));
        };
        // SAFETY: the caller gives a place for the time, or null, which is refused.
        unsafe { write_out("ms", ms, passed.as_secs_f32() * 1e3) }
    })
}

pub unsafe extern "C" fn timestamp(event: usize, us: *mut u64) -> i32 {
    call("aclrtEventGetTimestamp", || {
        let since = time(event)?.duration_since(crate::call::start());
        // SAFETY: the caller gives a place for the time, or null, which is refused.
        unsafe { write_out("us", us, since.as_micros() as u64) }
    })
}
