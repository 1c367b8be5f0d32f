//! The queue of runs and the queue of copies, each with its own thread, and what became of their tickets.
//!
//! A fault stands until a `wait`, `read` or `write` has reported it: what was queued behind it before that is not run,
//! and reports the same fault.

use crate::profile::Profile;
use crate::run::{Engine, Run};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use toprope_program::{Fault, HostRegion, Progress, ProgressPlace, Ticket};

/// Faults that are remembered after they were reported.
const FAILURES_KEPT: usize = 16;

/// A queued copy to the host.
pub(crate) struct Copy {
    pub(crate) from: *const u8,
    pub(crate) to: HostRegion,
    pub(crate) after: Ticket,
}

// SAFETY: addresses; whoever queues a copy promises that both ends stay valid until its ticket is done.
unsafe impl Send for Copy {}

/// A fault and the tickets that it covers.
struct Failure {
    from: Ticket,
    /// One past the last ticket that was queued before the fault was reported.
    to: Option<Ticket>,
    fault: Fault,
}

#[derive(Default)]
struct State {
    /// The last ticket given; see [`is_copy`].
    last: u64,
    runs: VecDeque<Run>,
    copies: VecDeque<(Ticket, Copy)>,
    /// Tickets of runs and copies that are not done, in order.
    pending: Vec<Ticket>,
    failures: VecDeque<Failure>,
    failed_copies: VecDeque<(Ticket, Fault)>,
    stopping: bool,
}

/// Copies have odd tickets, runs even ones, so that a ticket tells its queue for ever.
fn is_copy(ticket: Ticket) -> bool {
    ticket.0 % 2 == 1
}

impl State {
    fn ticket(&mut self, copy: bool) -> Ticket {
        self.last = (self.last / 2 + 1) * 2 + u64::from(copy);
        let ticket = Ticket(self.last);
        self.pending.push(ticket);
        ticket
    }

    /// The fault that covers a run's ticket.
    fn failure(&mut self, ticket: Ticket) -> Option<&mut Failure> {
        let covers = |failure: &Failure| ticket >= failure.from && failure.to.is_none_or(|to| ticket < to);
        self.failures.iter_mut().rev().find(|failure| covers(failure))
    }

    fn done(&mut self, ticket: Ticket) {
        self.pending.retain(|other| *other != ticket);
    }

    /// The fault for a ticket that is no longer pending, which is thereby reported.
    fn report(&mut self, ticket: Ticket) -> Result<(), Fault> {
        let last = self.last;
        if is_copy(ticket) {
            let failed = self.failed_copies.iter().find(|(copy, _)| *copy == ticket);
            return failed.map_or(Ok(()), |(_, fault)| Err(fault.clone()));
        }
        let Some(failure) = self.failure(ticket) else { return Ok(()) };
        failure.to.get_or_insert(Ticket(last + 1));
        Err(failure.fault.clone())
    }
}

struct Shared {
    state: Mutex<State>,
    /// Anything changed: work came, or work was done.
    changed: Condvar,
    place: ProgressPlace,
    profile: Option<Profile>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock; were it so, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both queues with their threads.
pub(crate) struct Queue {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Queue {
    /// Starts both threads; the one that runs instructions is thread 0 of the engine's pool.
    pub(crate) fn new(engine: Engine, place: ProgressPlace, profile: bool) -> std::io::Result<Queue> {
        let profile = profile.then(Profile::default);
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), place, profile });
        let mut queue = Queue { shared, threads: Vec::new() };
        let shared = queue.shared.clone();
        let runs = std::thread::Builder::new().name("toprope-cpu-0".into());
        queue.threads.push(runs.spawn(move || run_all(&shared, &engine))?);
        let shared = queue.shared.clone();
        let copies = std::thread::Builder::new().name("toprope-cpu-copy".into());
        queue.threads.push(copies.spawn(move || copy_all(&shared))?);
        Ok(queue)
    }

    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.shared.profile.as_ref()
    }

    /// Queues a run, made from the ticket that it gets.
    pub(crate) fn run(&self, run: impl FnOnce(Ticket) -> Run) -> Ticket {
        let mut state = self.shared.lock();
        let ticket = state.ticket(false);
        state.runs.push_back(run(ticket));
        drop(state);
        self.shared.changed.notify_all();
        ticket
    }

    /// Queues a copy.
    pub(crate) fn copy(&self, copy: Copy) -> Ticket {
        let mut state = self.shared.lock();
        let ticket = state.ticket(true);
        state.copies.push_back((ticket, copy));
        drop(state);
        self.shared.changed.notify_all();
        ticket
    }

    /// Waits for a ticket, at most `deadline`.
    pub(crate) fn wait(&self, ticket: Ticket, deadline: Duration) -> Result<Progress, Fault> {
        let started = Instant::now();
        let mut state = self.shared.lock();
        assert!(ticket.0 <= state.last, "a ticket that this device did not give");
        while state.pending.contains(&ticket) {
            let left = deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(Progress::Running { instruction: self.instruction(ticket) });
            }
            let slept = self.shared.changed.wait_timeout(state, left);
            state = slept.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.report(ticket).map(|()| Progress::Done)
    }

    fn instruction(&self, ticket: Ticket) -> Option<usize> {
        use std::sync::atomic::Ordering;
        let word = self.shared.place.word();
        let started = word.instruction.load(Ordering::Acquire);
        let under_way = word.ticket.load(Ordering::Relaxed) == ticket.0;
        if under_way { started.checked_sub(1).map(|index| index as usize) } else { None }
    }

    /// Waits until nothing is pending; a fault that nobody was told of is told now.
    pub(crate) fn drain(&self) -> Result<(), Fault> {
        let mut state = self.wait_idle();
        let last = state.last;
        match state.failures.iter_mut().find(|failure| failure.to.is_none()) {
            Some(failure) => {
                failure.to = Some(Ticket(last + 1));
                Err(failure.fault.clone())
            }
            None => Ok(()),
        }
    }

    /// Waits until nothing is pending.
    pub(crate) fn idle(&self) {
        drop(self.wait_idle());
    }

    fn wait_idle(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        while !state.pending.is_empty() {
            state = self.shared.sleep(state);
        }
        state
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of kernels were caught; there is none to pass on.
            let _ = thread.join();
        }
    }
}

/// The life of the thread that runs instructions.
fn run_all(shared: &Shared, engine: &Engine) {
    loop {
        let mut state = shared.lock();
        let run = loop {
            if state.stopping {
                return;
            }
            match state.runs.pop_front() {
                Some(run) => break run,
                None => state = shared.sleep(state),
            }
        };
        let ticket = run.ticket;
        let poisoned = state.failure(ticket).is_some();
        drop(state);
        let outcome =
            if poisoned { Ok(()) } else { run.execute(engine, shared.place.word(), shared.profile.as_ref()) };
        // What the run held is let go before anybody learns that it is done.
        drop(run);
        let mut state = shared.lock();
        if let Err(fault) = outcome {
            if state.failures.len() == FAILURES_KEPT {
                state.failures.pop_front();
            }
            state.failures.push_back(Failure { from: ticket, to: None, fault });
        }
        state.done(ticket);
        drop(state);
        shared.changed.notify_all();
    }
}

/// The life of the thread that copies to the host.
fn copy_all(shared: &Shared) {
    loop {
        let mut state = shared.lock();
        let (ticket, copy) = loop {
            if state.stopping {
                return;
            }
            // Runs are done in order, so that the first pending one tells of all before it.
            let after = state.copies.front().map(|(_, copy)| copy.after);
            let free = |pending: &Ticket| after.is_some_and(|after| is_copy(*pending) || *pending > after);
            if state.pending.iter().all(free)
                && let Some(next) = state.copies.pop_front()
            {
                break next;
            }
            state = shared.sleep(state);
        };
        let failed = if is_copy(copy.after) {
            state.failed_copies.iter().find(|(other, _)| *other == copy.after).map(|(_, fault)| fault.clone())
        } else {
            state.failure(copy.after).map(|failure| failure.fault.clone())
        };
        drop(state);
        if failed.is_none() {
            // SAFETY: both ends were checked when the copy was queued, and stay valid until its ticket is done.
            unsafe { std::ptr::copy_nonoverlapping(copy.from, copy.to.address, copy.to.bytes) };
        }
        let mut state = shared.lock();
        if let Some(fault) = failed {
            if state.failed_copies.len() == FAILURES_KEPT {
                state.failed_copies.pop_front();
            }
            state.failed_copies.push_back((ticket, fault));
        }
        state.done(ticket);
        drop(state);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault;
    use crate::level::Level;
    use crate::memory::Memory;
    use crate::pool::Pool;
    use crate::prepare::Prepared;
    use crate::run::Bases;
    use toprope_program::{
        CheckMask, FaultKind, MemoryPlan, PreparedId, Range, Span, StateLayout, Width, text, validate,
    };

    const LONG: Duration = Duration::from_secs(60);

    fn queue(threads: usize) -> Queue {
        let pools = [threads, 1].map(|threads| Pool::new(threads).unwrap());
        let [pool, alone] = pools;
        Queue::new(Engine { level: Level::detect(), pool, alone }, ProgressPlace::default(), false).unwrap()
    }

    /// Queues runs of one program in one piece of memory.
    struct Runs {
        prepared: Arc<Prepared>,
        work: Memory,
        threads: usize,
    }

    impl Runs {
        fn new(threads: usize) -> Runs {
            let source = "program \"p\" evaluate\ninput %a: f32[64, 64]\noutput %z: f32[64, 64]\n\
                output %y: f32[64, 64]\naccumulate {\n %z = add(%a, %a) {\"output\":\"f32\"}\n \
                %y = matmul(%a, %a) {\"output\":\"f32\"}\n}\n";
            let program = Arc::new(validate(text::parse(source).unwrap()).unwrap());
            let plan = Arc::new(MemoryPlan::new(&program, Width::Native, StateLayout::Double));
            let work = Memory::new(plan.work_bytes).unwrap();
            Runs { prepared: Arc::new(Prepared::new(program, plan).unwrap()), work, threads }
        }

        /// With a workspace that is too small, the product's kernel panics: a bug, as it must look from outside.
        fn queue(&self, queue: &Queue, to: usize, sound: bool) -> Ticket {
            let bound = Arc::new(self.prepared.bind(&[], self.threads).unwrap());
            let bytes =
                if sound { bound.workspace_bytes } else { bound.steps(Range::Accumulate)[1].staged_bytes };
            let workspace = Arc::new(Memory::new(bytes).unwrap());
            let work = self.work.address();
            queue.run(|ticket| Run {
                ticket,
                id: PreparedId(0),
                prepared: self.prepared.clone(),
                bound,
                span: Span { range: Range::Accumulate, from: 0, to },
                bases: Bases { current: work, next: work, work },
                first: true,
                checks: CheckMask::default(),
                workspace,
            })
        }
    }

    #[test]
    fn a_kernel_that_panics_is_a_fault_with_a_place_and_not_a_hang() {
        for threads in [1, 3] {
            let (queue, runs) = (queue(threads), Runs::new(threads));
            let bad = runs.queue(&queue, 2, false);
            let behind = runs.queue(&queue, 1, true);
            let fault = queue.wait(bad, LONG).unwrap_err();
            assert_eq!(fault.device, fault::DEVICE);
            assert!(
                matches!(&fault.kind, FaultKind::Driver { message, .. } if message.contains("panicked")),
                "{fault}"
            );
            let place = fault.place.clone().unwrap();
            assert_eq!((place.range, place.index, place.operator.as_str()), (Range::Accumulate, 1, "matmul"));
            assert_eq!(queue.wait(behind, LONG).unwrap_err(), fault, "what was queued behind it did not run");
            // Told once, the device goes on.
            let good = runs.queue(&queue, 2, true);
            assert_eq!(queue.wait(good, LONG).unwrap(), Progress::Done);
            assert_eq!(queue.wait(bad, LONG).unwrap_err(), fault, "and still knows what became of the first");
            queue.drain().unwrap();
        }
    }

    #[test]
    fn a_fault_that_nobody_waited_for_is_told_once_by_what_needs_an_idle_queue() {
        let (queue, runs) = (queue(2), Runs::new(2));
        runs.queue(&queue, 2, false);
        assert!(queue.drain().is_err());
        assert!(queue.drain().is_ok());
    }

    #[test]
    fn a_copy_behind_a_fault_fails_and_one_before_it_does_not() {
        let (queue, runs) = (queue(2), Runs::new(2));
        let mut bytes = [0u8; 64];
        // SAFETY: `bytes` lives until the copies are done.
        let to = unsafe { HostRegion::new(bytes.as_mut_ptr(), 64) };
        let good = runs.queue(&queue, 2, true);
        let bad = runs.queue(&queue, 2, false);
        let copy = |after| queue.copy(Copy { from: runs.work.address(), to, after });
        let (before, behind) = (copy(good), copy(bad));
        assert_eq!(queue.wait(before, LONG).unwrap(), Progress::Done);
        assert_eq!(queue.wait(behind, LONG).unwrap_err(), queue.wait(bad, LONG).unwrap_err());
        let chained = copy(behind);
        assert!(queue.wait(chained, LONG).is_err());
    }
}
