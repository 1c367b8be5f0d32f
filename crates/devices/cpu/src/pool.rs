//! The thread pool: a fixed number of threads that run one job at a time, the caller among them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Turns of waiting before a thread sleeps: some tens of microseconds, so that operators that follow one another
/// don't pay for a wake-up each.
const SPINS: usize = 4000;

type Job = &'static (dyn Fn(usize, usize) + Sync);
type Panic = Box<dyn Any + Send>;

/// What a sleeping thread looks at under the lock.
#[derive(Default)]
struct State {
    job: Option<Job>,
    panic: Option<Panic>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts jobs; a change tells workers that there is one.
    generation: AtomicUsize,
    /// Workers that have not finished the current job.
    running: AtomicUsize,
    stopping: AtomicBool,
    job_came: Condvar,
    job_done: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock; were it so, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool of `threads` threads; the thread that calls [`Pool::run`] is thread 0.
///
/// Work must be split so that its bits don't depend on which thread does it; the pool promises no order.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time: callers on different threads queue here.
    caller: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads (at least 1), of which `threads - 1` are started here.
    ///
    /// # Errors
    /// The operating system's error when a thread can't be started; those already started are joined.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            generation: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            job_came: Condvar::new(),
            job_done: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), caller: Mutex::new(()) };
        for thread in 1..threads {
            let shared = pool.shared.clone();
            let name = format!("toprope-cpu-{thread}");
            let worker =
                std::thread::Builder::new().name(name).spawn(move || work(&shared, thread, threads))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(thread, threads)` once on every thread and returns when all have returned.
    ///
    /// Must not be called from within a job of the same pool.
    ///
    /// # Panics
    /// With the panic of a thread's job, after every thread has finished.
    pub fn run(&self, job: impl Fn(usize, usize) + Sync) {
        let threads = self.threads();
        if threads == 1 {
            return job(0, 1);
        }
        let _turn = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let job: &(dyn Fn(usize, usize) + Sync) = &job;
        // SAFETY: workers use the reference only until `running` is 0, for which this function waits, also when the
        // caller's own share panics.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Job>(job) };
        {
            let mut state = self.shared.lock();
            state.job = Some(job);
            self.shared.running.store(threads - 1, Ordering::Release);
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
        self.shared.job_came.notify_all();
        let own = catch_unwind(AssertUnwindSafe(|| job(0, threads)));
        self.wait();
        let panic = {
            let mut state = self.shared.lock();
            state.job = None;
            state.panic.take()
        };
        drop(_turn);
        if let Some(panic) = own.err().or(panic) {
            resume_unwind(panic);
        }
    }

    fn wait(&self) {
        for _ in 0..SPINS {
            if self.shared.running.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut state = self.shared.lock();
        while self.shared.running.load(Ordering::Acquire) != 0 {
            state = self.shared.job_done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `job(item)` for each item in `0..items`, each on whichever thread is free.
    pub fn for_each(&self, items: usize, job: impl Fn(usize) + Sync) {
        self.for_each_thread(items, |_, item| job(item));
    }

    /// Calls `job(thread, item)` for each item in `0..items`, each on whichever thread is free; `thread` tells which
    /// scratch memory to use.
    pub fn for_each_thread(&self, items: usize, job: impl Fn(usize, usize) + Sync) {
        if items <= 1 || self.threads() == 1 {
            return (0..items).for_each(|item| job(0, item));
        }
        let next = AtomicUsize::new(0);
        self.run(|thread, _| {
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    return;
                }
                job(thread, item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _state = self.shared.lock();
            self.shared.stopping.store(true, Ordering::Release);
        }
        self.shared.job_came.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its job's panics, so there is none to pass on.
            let _ = worker.join();
        }
    }
}

/// A worker's life: wait for a generation, run its job, say so.
fn work(shared: &Shared, thread: usize, threads: usize) {
    let mut seen = 0;
    loop {
        let Some(job) = next_job(shared, &mut seen) else { return };
        let outcome = catch_unwind(AssertUnwindSafe(|| job(thread, threads)));
        if let Err(panic) = outcome {
            shared.lock().panic = Some(panic);
        }
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The lock orders this with the caller's check before it sleeps.
            drop(shared.lock());
            shared.job_done.notify_one();
        }
    }
}

fn next_job(shared: &Shared, seen: &mut usize) -> Option<Job> {
    let ready = |seen: usize| {
        shared.generation.load(Ordering::Acquire) != seen || shared.stopping.load(Ordering::Acquire)
    };
    for _ in 0..SPINS {
        if ready(*seen) {
            break;
        }
        std::hint::spin_loop();
    }
    let mut state = shared.lock();
    while !ready(*seen) {
        state = shared.job_came.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if shared.stopping.load(Ordering::Acquire) {
        return None;
    }
    *seen = shared.generation.load(Ordering::Acquire);
    state.job
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_and_every_item_is_done_once() {
        for threads in 1..5 {
            let pool = Pool::new(threads).unwrap();
            for round in 0..200 {
                let ran = AtomicUsize::new(0);
                pool.run(|thread, count| {
                    assert_eq!(count, threads);
                    ran.fetch_add(1 << (8 * thread), Ordering::Relaxed);
                });
                assert_eq!(
                    ran.into_inner(),
                    (0..threads).map(|thread| 1usize << (8 * thread)).sum::<usize>()
                );
                let items: Vec<AtomicUsize> = (0..round).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(round, |item| {
                    items[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(items.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_sleeping_pool_wakes_up() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            // Long enough for every worker to have gone to sleep; the outcome doesn't depend on it.
            std::thread::sleep(std::time::Duration::from_millis(5));
            let ran = AtomicUsize::new(0);
            pool.run(|_, _| {
                std::thread::sleep(std::time::Duration::from_millis(2));
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 3);
        }
    }

    #[test]
    fn a_panic_surfaces_after_all_threads_are_done_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for thrower in 0..3 {
            let ran = AtomicUsize::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|thread, _| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    assert!(thread != thrower, "thread {thread} throws");
                });
            }));
            let message = *outcome.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("thread {thrower} throws"));
            assert_eq!(ran.into_inner(), 3);
        }
        pool.run(|_, _| {});
    }
}
