//! Streams: a thread each, which runs tasks strictly in their order.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::code::{self, After};
use crate::fault::Fault;
use crate::registry::{Registry, lock};
use crate::runtime::device::Device;

/// All streams.
pub static STREAMS: Registry<Stream> = Registry::new(1, "stream");

/// How often a waiting thread looks whether its device was lost or reset.
const LOOK: Duration = Duration::from_millis(5);

type Work = Box<dyn FnOnce(&Stream) -> Result<(), Fault> + Send>;

struct Task {
    name: String,
    work: Work,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    submitted: u64,
    finished: u64,
    /// The first failure since it was last told.
    failure: Option<Fault>,
    /// After a failure nothing more is run until it was told (failure mode 1).
    stop_on_failure: bool,
    overflow_switch: u32,
    closed: bool,
    started: bool,
}

/// One stream.
pub struct Stream {
    pub handle: usize,
    pub device: &'static Device,
    /// The context that it belongs to.
    pub context: usize,
    generation: u64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Stream {
    /// A new stream; its thread starts with the first task.
    pub fn create(device: &'static Device, context: usize) -> usize {
        STREAMS.insert_with(|handle| Stream {
            handle,
            device,
            context,
            generation: device.generation(),
            queue: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Whether the device was stopped or reset since the stream was made: nothing of it is to be run any more.
    pub fn outdated(&self) -> bool {
        self.device.generation() != self.generation
    }

    /// Appends a task.
    pub fn push(
        self: &Arc<Self>,
        name: impl Into<String>,
        work: impl FnOnce(&Stream) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        if self.outdated() {
            let text = "the device was stopped or reset since this stream was made: make a new one";
            return Err(Fault::new(code::STREAM_ABORT, text));
        }
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(Fault::new(code::STREAM_ABORT, "the stream was aborted or destroyed"));
        }
        queue.tasks.push_back(Task { name: name.into(), work: Box::new(work) });
        queue.submitted += 1;
        if !queue.started {
            queue.started = true;
            let stream = self.clone();
            let thread = std::thread::Builder::new().name("cann-stream".into()).spawn(move || stream.serve());
            if let Err(error) = thread {
                let text = format!("the host cannot start a thread for the stream: {error}");
                return Err(Fault::new(207008, text));
            }
        }
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    fn serve(self: Arc<Self>) {
        loop {
            let task = {
                let mut queue = lock(&self.queue);
                loop {
                    let stopped = queue.stop_on_failure && queue.failure.is_some();
                    if self.outdated() || stopped || self.device.lost() {
                        queue.finished += queue.tasks.len() as u64;
                        queue.tasks.clear();
                        self.changed.notify_all();
                    }
                    if let Some(task) = queue.tasks.pop_front() {
                        break task;
                    }
                    if queue.closed || self.outdated() {
                        return;
                    }
                    queue = self.wait(queue, LOOK * 20);
                }
            };
            let Task { name, work } = task;
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| work(&self)));
            let outcome = outcome.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                Err(Fault::new(code::INTERNAL, format!("{name}: the emulator's kernel failed: {text}")))
            });
            let outcome = outcome.and_then(|()| self.device.task_ran(&name));
            if let Err(fault) = &outcome {
                self.device.suffer(fault);
            }
            let mut queue = lock(&self.queue);
            if let Err(fault) = outcome {
                queue.failure.get_or_insert(fault);
            }
            queue.finished += 1;
            drop(queue);
            self.changed.notify_all();
        }
    }

    fn wait<'a>(
        &self,
        guard: std::sync::MutexGuard<'a, Queue>,
        time: Duration,
    ) -> std::sync::MutexGuard<'a, Queue> {
        let woken = self.changed.wait_timeout(guard, time);
        woken.unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    /// Wakes whoever waits, to look again.
    pub fn nudge(&self) {
        self.changed.notify_all();
    }

    /// Waits until all that was submitted so far has run; tells the failure that lies there. `limit` none: forever.
    pub fn synchronize(&self, limit: Option<Duration>) -> Result<(), Fault> {
        let start = Instant::now();
        let mut queue = lock(&self.queue);
        let target = queue.submitted;
        while queue.finished < target {
            drop(queue);
            self.device.usable()?;
            if self.outdated() {
                let text = "the device was stopped or reset while its stream was waited for";
                return Err(Fault::new(code::DEVICE_TASK_ABORT, text));
            }
            if limit.is_some_and(|limit| start.elapsed() >= limit) {
                let text = format!("the stream did not finish in {} ms", start.elapsed().as_millis());
                return Err(Fault::new(code::STREAM_SYNC_TIMEOUT, text));
            }
            queue = lock(&self.queue);
            if queue.finished < target {
                let left = limit.map_or(LOOK, |limit| limit.saturating_sub(start.elapsed()).min(LOOK));
                queue = self.wait(queue, left.max(Duration::from_micros(50)));
            }
        }
        self.tell(queue)
    }

    fn tell(&self, mut queue: std::sync::MutexGuard<'_, Queue>) -> Result<(), Fault> {
        match queue.failure.take() {
            Some(fault) => {
                if fault.after == After::Sticky {
                    queue.failure = Some(fault.clone());
                }
                Err(fault)
            }
            None => {
                drop(queue);
                self.device.usable()
            }
        }
    }

    /// Whether all submitted tasks have run; a failure is told.
    pub fn done(&self) -> Result<bool, Fault> {
        let queue = lock(&self.queue);
        if queue.finished < queue.submitted {
            return Ok(false);
        }
        self.tell(queue).map(|()| true)
    }

    /// Whether nothing is left to run.
    pub fn idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.finished >= queue.submitted
    }

    /// The failure that lies there, without telling it.
    pub fn failure(&self) -> Option<Fault> {
        lock(&self.queue).failure.clone()
    }

    /// No task is taken any more; those queued are run (`drop_queued` false) or dropped.
    pub fn close(&self, drop_queued: bool) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        if drop_queued {
            queue.finished += queue.tasks.len() as u64;
            queue.tasks.clear();
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// Sets failure mode 0 (go on) or 1 (stop).
    pub fn set_stop_on_failure(&self, stop: bool) {
        lock(&self.queue).stop_on_failure = stop;
    }

    /// The switch of overflow detection.
    pub fn overflow_switch(&self, set: Option<u32>) -> u32 {
        let mut queue = lock(&self.queue);
        if let Some(flag) = set {
            queue.overflow_switch = flag;
        }
        queue.overflow_switch
    }

    /// Waits inside a task until `ready` says yes; gives up where the device is lost or reset, or the stream closed.
    pub fn wait_until(&self, what: &str, mut ready: impl FnMut() -> bool) -> Result<(), Fault> {
        while !ready() {
            if self.outdated() || lock(&self.queue).closed {
                return Err(Fault::new(
                    code::STREAM_ABORT,
                    format!("{what}: given up, the stream was ended"),
                ));
            }
            if self.device.lost() {
                return self.device.usable();
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}
