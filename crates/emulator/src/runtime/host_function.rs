//! Functions of the client that run in a stream's order: on a thread of the client's (`aclrtLaunchCallback`) or of the
//! runtime's (`aclrtLaunchHostFunc`).

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::call::call;
use crate::code;
use crate::fault::Fault;
use crate::registry::lock;
use crate::runtime::context::{current_stream, limit};

type Function = extern "C" fn(*mut c_void);

struct Report {
    subscriber: u64,
    function: Function,
    argument: usize,
    done: Arc<AtomicBool>,
}

#[derive(Default)]
struct Reports {
    subscribers: Vec<(u64, usize)>,
    waiting: VecDeque<Report>,
}

static REPORTS: Mutex<Reports> = Mutex::new(Reports { subscribers: Vec::new(), waiting: VecDeque::new() });
static CHANGED: Condvar = Condvar::new();

/// What `threadId` is: pthread_self of the thread that will call `aclrtProcessReport`.
fn own_thread() -> u64 {
    // SAFETY: no arguments, no failure.
    unsafe { libc::pthread_self() as u64 }
}

pub extern "C" fn subscribe(thread: u64, stream: usize) -> i32 {
    call("aclrtSubscribeReport", || {
        let stream = current_stream(stream)?;
        lock(&REPORTS).subscribers.push((thread, stream.handle));
        Ok(())
    })
}

pub extern "C" fn unsubscribe(thread: u64, stream: usize) -> i32 {
    call("aclrtUnSubscribeReport", || {
        let stream = current_stream(stream)?;
        lock(&REPORTS).subscribers.retain(|&known| known != (thread, stream.handle));
        Ok(())
    })
}

pub extern "C" fn launch_callback(
    function: Option<Function>,
    argument: usize,
    block: i32,
    stream: usize,
) -> i32 {
    call("aclrtLaunchCallback", || {
        let function = function.ok_or_else(|| Fault::new(code::PARAM_INVALID, "fn is null"))?;
        let stream = current_stream(stream)?;
        stream.device.usable()?;
        let found = lock(&REPORTS).subscribers.iter().find(|(_, of)| *of == stream.handle).copied();
        let Some((subscriber, _)) = found else {
            let text = "no thread has called aclrtSubscribeReport for this stream";
            return Err(Fault::new(code::PARAM_INVALID, text));
        };
        stream.push("aclrtLaunchCallback", move |stream| {
            let done = Arc::new(AtomicBool::new(false));
            let report = Report { subscriber, function, argument, done: done.clone() };
            lock(&REPORTS).waiting.push_back(report);
            CHANGED.notify_all();
            if block == 1 {
                stream.wait_until("aclrtLaunchCallback", || done.load(Ordering::Acquire))?;
            }
            Ok(())
        })
    })
}

pub extern "C" fn process_report(timeout: i32) -> i32 {
    call("aclrtProcessReport", || {
        let (thread, deadline) =
            (own_thread(), limit(timeout).map(|limit| std::time::Instant::now() + limit));
        let mut reports = lock(&REPORTS);
        loop {
            if let Some(mine) = reports.waiting.iter().position(|report| report.subscriber == thread) {
                let Some(report) = reports.waiting.remove(mine) else { continue };
                drop(reports);
                (report.function)(report.argument as *mut c_void);
                report.done.store(true, Ordering::Release);
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Fault::new(code::REPORT_TIMEOUT, format!("no callback came in {timeout} ms")));
            }
            let wait = left.unwrap_or(std::time::Duration::from_millis(100));
            reports = CHANGED.wait_timeout(reports, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    })
}

pub extern "C" fn launch_host_function(stream: usize, function: Option<Function>, argument: usize) -> i32 {
    call("aclrtLaunchHostFunc", || {
        let function = function.ok_or_else(|| Fault::new(code::PARAM_INVALID, "func is null"))?;
        let stream = current_stream(stream)?;
        stream.device.usable()?;
        stream.push("aclrtLaunchHostFunc", move |_| {
            function(argument as *mut c_void);
            Ok(())
        })
    })
}
