//! The supervisor: carries out the guard's decisions over real workers, shared memory and files.
//!
//! It has no vendor's code in it and no unbounded wait. What it decides by itself is only *how*: which half of the state
//! a worker takes in, what a check's result means, when a process has ended. *What* is done comes from
//! [`crate::decide`].

mod chain; // what the state of each step is, told by the update that wrote it
mod confirm; // the same work once more, here or elsewhere
mod injection; // what was injected, as the supervisor sees it
mod judge; // what checks found
mod keep; // where the state is kept and comes back from
mod shadow; // everything twice
mod state; // the state's halves
mod tell; // decisions, injections, costs
mod worker; // processes that come up behind the caller's back

pub use chain::insert as insert_digests;
pub use injection::Fired;
pub use state::{CommittedState, SharedState, Tensor};
pub use worker::{Crew, DeviceSpec};

use crate::decide::{
    Accumulated, Action, Alarm, Attempt, DeviceIndex, Digest, Entry, Event, Generation, Guard, Rank, Setup,
    StateHome, StopReason, Updated, Worker,
};
use crate::inject::{Scheduled, What};
use crate::policy::Policy;
use crate::remote::{RemoteDevice, WorkerCommand, WorkerOptions};
use injection::Injection;
use judge::Judge;
use shadow::Shadow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use toprope_program::check::{CheckLevel, CheckSite, mask};
use toprope_program::{
    CheckMask, Device, Fault, FaultKind, HostRegion, MemoryPlan, Outputs, Place, Progress, Range, Session,
    StateLayout, Ticket, Validated, Width,
};
use toprope_world::{SharedMemoryError, SharedRegion, World};
use worker::{Launched, PROGRESS_WORDS, Start, launch, process, ready_now};

/// Where the inputs of a step come from: a function of the step's number alone, so that any step can be run again.
pub trait Steps {
    /// How many micro-batches a step has.
    fn micro_batches(&mut self, step: u64) -> usize;

    /// Writes the inputs of one micro-batch and binds the program's symbols.
    ///
    /// # Errors
    /// The device's fault.
    fn write(
        &mut self,
        step: u64,
        micro_batch: usize,
        session: &mut Session,
        device: &mut dyn Device,
    ) -> Result<(), Fault>;
}

/// Takes a value of a state in, by its name and stored bytes; says in words why it does not fit.
pub type TakeValue<'a> = dyn FnMut(&str, &[u8]) -> Result<(), String> + 'a;

/// Durable checkpoints, as far as the guard needs them.
pub trait Durable {
    /// Hands the values of the newest intact one to `take`, one at a time, and gives its committed steps; none where
    /// there is none.
    ///
    /// # Errors
    /// Why none can be read, or what `take` says, in words.
    fn newest(&mut self, take: &mut TakeValue<'_>) -> Result<Option<u64>, String>;

    /// Writes one now.
    ///
    /// # Errors
    /// Why it could not be written, in words.
    fn write(&mut self, step: u64, state: &CommittedState<'_>) -> Result<(), String>;
}

/// What goes into the journal.
#[derive(Debug)]
pub enum News<'a> {
    /// The guard decided something.
    Decision {
        /// What.
        entry: &'a Entry,
        /// Whether a fault that was injected in this step is behind it.
        injected: bool,
    },
    /// A fault was injected.
    Injected {
        /// Which.
        fired: &'a Fired,
        /// In which step.
        step: u64,
    },
    /// A commit brought the run to where it was before trouble, or a step on.
    Recovered {
        /// Committed steps.
        step: u64,
        /// From the first fault to this commit, less what a step takes.
        seconds: f64,
        /// Executions of steps that were given up or done again.
        steps_redone: u64,
    },
    /// No step comes any more.
    Ended,
}

/// Told of what goes into the journal.
pub type Recorder = Box<dyn FnMut(News<'_>)>;

/// Carries out injected faults that are not a worker's: a full disk, the death of this process, a damaged checkpoint.
pub type OnOwnFault = Box<dyn FnMut(&What)>;

/// Tests a device that was quarantined, in a worker that was started for it: whether it passed, and what was found. Runs
/// on a thread of its own.
pub type Retest = Arc<dyn Fn(&mut RemoteDevice) -> (bool, String) + Send + Sync>;

/// What a supervisor is made of.
pub struct Options {
    /// Clock, processes, shared memory.
    pub world: Arc<dyn World>,
    /// The run's name.
    pub run: String,
    /// How a worker is started.
    pub command: WorkerCommand,
    /// Devices in order of preference.
    pub devices: Vec<DeviceSpec>,
    /// The training step, with its checks.
    pub program: Arc<Validated>,
    /// Its checks.
    pub sites: Vec<CheckSite>,
    /// How many of them fire.
    pub checks: CheckLevel,
    /// Double or in place.
    pub layout: StateLayout,
    /// Whether each step is computed a second time, in a second worker, and the bits compared.
    pub shadow: bool,
    /// Whether the state lies in the device's own memory and the host keeps snapshots, rather than in memory that both
    /// share.
    pub state_on_device: bool,
    /// Tests a device that was quarantined.
    pub retest: Retest,
    /// What is done about what.
    pub policy: Policy,
    /// The step's inputs.
    pub steps: Box<dyn Steps>,
    /// Durable checkpoints.
    pub durable: Box<dyn Durable>,
    /// Told of what goes into the journal.
    pub recorder: Recorder,
    /// What is injected, in a rehearsal.
    pub faults: Vec<Scheduled>,
    /// Carries out what of it is this process's.
    pub on_own_fault: OnOwnFault,
    /// How long a step is expected to take.
    pub step_estimate: Duration,
}

/// Why the run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// No memory for the state.
    #[error("no shared memory for the state: {0}")]
    Memory(#[from] SharedMemoryError),
    /// A state that does not fit the program.
    #[error("the state's `{name}` does not fit the program")]
    State {
        /// The tensor.
        name: String,
    },
    /// The guard gave up.
    #[error("{}", stopped(reason, *step, last.as_deref()))]
    Stopped {
        /// Why.
        reason: StopReason,
        /// Committed steps.
        step: u64,
        /// The last fault.
        last: Option<Box<Fault>>,
    },
}

fn stopped(reason: &StopReason, step: u64, last: Option<&Fault>) -> String {
    let why = match reason {
        StopReason::Done => "the run is over".to_string(),
        StopReason::Requested => "somebody asked to stop".to_string(),
        StopReason::NoDevice => "no device is left that works".to_string(),
        StopReason::NoState => "no whole state is left: neither in memory nor on disk".to_string(),
        StopReason::Policy { class } => format!("the policy stops the run at a fault of class `{class}`"),
    };
    let last = last.map(|fault| format!("; last: {fault}")).unwrap_or_default();
    format!("stopped after {step} committed steps: {why}{last}")
}

/// What a committed step gave.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// The step.
    pub step: u64,
    /// Scalars by the names of the program's outputs.
    pub scalars: Vec<(String, f64)>,
    /// The norm of all gradients.
    pub gradient_norm: f64,
}

/// Work that a worker was given and that is not done.
struct Flight {
    worker: Worker,
    attempt: Attempt,
    range: Range,
    micro_batch: usize,
    ticket: Ticket,
    mask: CheckMask,
    alarms: Vec<Alarm>,
}

/// Something went wrong, and the run is not yet where it was again.
struct Trouble {
    since: Duration,
    /// Executions before the one that it began in.
    executions: u64,
    committed: u64,
}

/// A copy of the state on its way from the device to the host.
struct Copy {
    worker: Worker,
    step: u64,
    digest: Digest,
    ticket: Ticket,
    slot: usize,
    started: Duration,
}

/// The supervisor of a run.
pub struct Supervisor {
    options: Options,
    plan: Arc<MemoryPlan>,
    guard: Guard,
    state: SharedState,
    start: Start,
    crews: BTreeMap<Worker, Box<Crew>>,
    active: Option<Worker>,
    launched: (Sender<Launched>, Receiver<Launched>),
    actions: VecDeque<Action>,
    flight: Option<Flight>,
    /// The result of the step under way, until it is committed.
    result: StepResult,
    /// The outputs of the update under way and the digest of the state that it wrote.
    next: Option<(Outputs, Digest)>,
    judge: Judge,
    /// The last run of the active worker, behind which copies are queued.
    last_run: Option<Ticket>,
    copy: Option<Copy>,
    retested: (Sender<Event>, Receiver<Event>),
    /// The digest of the committed state and its number of steps.
    committed: (u64, Digest),
    begun: bool,
    /// The worker that computes everything a second time.
    shadow: Option<Box<Shadow>>,
    injection: Option<Injection>,
    /// The step in which something was injected last.
    injected_at: Option<u64>,
    /// Corruption of the next snapshot.
    snapshot_faults: Vec<Scheduled>,
    trouble: Option<Trouble>,
    executions: u64,
    /// Whether a step is between its start and its commit.
    executing: bool,
    /// Seconds of the last undisturbed steps.
    step_seconds: VecDeque<f64>,
    step_started: Duration,
    /// Workers that were started for a confirmation.
    confirmations: u64,
    stopped: Option<StopReason>,
    last_fault: Option<Fault>,
    /// Time in which nobody asked for a step; the guard's clock stands still then.
    paused: Duration,
    left_at: Option<Duration>,
}

/// How soon a test's end is noticed while nothing else happens.
const RETEST_POLL: Duration = Duration::from_millis(20);

/// No poll lasts longer.
const POLL_MAX: Duration = Duration::from_millis(500);

impl Supervisor {
    /// Takes the devices and the program; starts nothing yet. The state is zeros: it is to be written before
    /// [`Supervisor::begin`].
    ///
    /// # Errors
    /// No memory for the state.
    pub fn new(options: Options) -> Result<Supervisor, GuardError> {
        let plan = Arc::new(MemoryPlan::new(&options.program, Width::Native, options.layout));
        let world = &*options.world;
        let state = SharedState::new(world, &options.program, &plan, options.state_on_device)?;
        let control = world.shared_memory().create("toprope-control", CONTROL_BYTES)?;
        let injection = match options.faults.as_slice() {
            [] => None,
            faults => Injection::new(faults.to_vec(), &control, FIRINGS_OFFSET),
        };
        let mut regions: Vec<Arc<SharedRegion>> = vec![control];
        regions.extend(state.regions().iter().cloned());
        let work = if plan.work_bytes <= SHARED_WORK_BYTES_MAX {
            let region = world.shared_memory().create("toprope-work", plan.work_bytes.max(64))?;
            // SAFETY: `Start` holds the region as long as any worker lives; one worker at a time is active.
            let host = unsafe { HostRegion::new(region.as_ptr(), region.len()) };
            regions.push(region);
            Some(host)
        } else {
            None
        };
        let start = Start {
            command: options.command.clone(),
            run: options.run.clone(),
            regions,
            program: options.program.clone(),
            plan: plan.clone(),
            state: (!options.state_on_device).then(|| [state.home(0), state.home(state.regions().len() - 1)]),
            work,
            faults: injection.as_ref().map(|injection| injection.told(0, FIRINGS_OFFSET as u64)),
            limit: launch_limit(&options.policy),
        };
        let home = match options.layout {
            _ if options.state_on_device => StateHome::Device,
            StateLayout::Double => StateHome::SharedDouble,
            StateLayout::InPlace => StateHome::SharedInPlace,
        };
        let setup = Setup {
            ranks: 1,
            devices: options.devices.iter().map(|device| device.name.clone()).collect(),
            home,
            // The training loop says when it is over.
            steps: u64::MAX,
            checkpoint_every: 0,
            step_estimate: options.step_estimate,
            launch_limit: launch_limit(&options.policy),
        };
        let guard = Guard::new(setup, options.policy.clone());
        Ok(Supervisor {
            plan,
            guard,
            state,
            start,
            crews: BTreeMap::new(),
            active: None,
            launched: channel(),
            actions: VecDeque::new(),
            flight: None,
            result: StepResult { step: 0, scalars: Vec::new(), gradient_norm: 0.0 },
            next: None,
            judge: Judge::new(options.sites.clone()),
            last_run: None,
            copy: None,
            retested: channel(),
            committed: (0, Digest(0)),
            begun: false,
            shadow: None,
            injection,
            injected_at: None,
            snapshot_faults: Vec::new(),
            trouble: None,
            executions: 0,
            executing: false,
            step_seconds: VecDeque::new(),
            step_started: Duration::ZERO,
            confirmations: 0,
            stopped: None,
            last_fault: None,
            paused: Duration::ZERO,
            left_at: None,
            options,
        })
    }

    /// The step's program.
    pub fn program(&self) -> &Arc<Validated> {
        &self.options.program
    }

    /// Where its values lie.
    pub fn plan(&self) -> &Arc<MemoryPlan> {
        &self.plan
    }

    /// The decisions so far, for summaries.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Committed steps.
    pub fn committed(&self) -> u64 {
        self.committed.0
    }

    /// Writes a value of the committed state; before [`Supervisor::begin`] only.
    ///
    /// # Errors
    /// No such value, or another number of bytes.
    pub fn write_state(&mut self, name: &str, bytes: &[u8]) -> Result<(), GuardError> {
        let half = self.state.current();
        if self.state.store(half, name, bytes) {
            Ok(())
        } else {
            Err(GuardError::State { name: name.into() })
        }
    }

    /// Starts the run, or goes on with it, from the state that was written and its number of committed steps. Returns
    /// once a worker is ready for the first step.
    ///
    /// # Errors
    /// The guard gave up.
    pub fn begin(&mut self, step: u64) -> Result<(), GuardError> {
        let digest = self.state.digest(self.state.current());
        self.committed = (step, digest);
        self.state.close(self.state.current(), step);
        self.begun = true;
        self.event(Event::Begin { step, states: vec![digest] });
        self.drive(Self::serves)
    }

    /// Runs the next step until it is committed.
    ///
    /// # Errors
    /// The guard gave up.
    pub fn advance(&mut self) -> Result<StepResult, GuardError> {
        let goal = self.committed.0 + 1;
        self.drive(|this| this.committed.0 >= goal)?;
        Ok(self.result.clone())
    }

    /// Does something with the active worker between two steps: evaluation, sampling. Where the worker fails, another
    /// takes its place and the work is done again.
    ///
    /// # Errors
    /// The guard gave up, or the work failed again and again.
    pub fn with_worker<T>(
        &mut self,
        mut work: impl FnMut(&mut RemoteDevice, &Session) -> Result<T, Fault>,
    ) -> Result<T, GuardError> {
        loop {
            self.drive(Self::serves)?;
            let Some((worker, crew)) =
                self.active.and_then(|worker| Some((worker, self.crews.get_mut(&worker)?)))
            else {
                continue;
            };
            match work(&mut crew.device, &crew.session) {
                Ok(done) => return Ok(done),
                Err(fault) => self.failed(worker, fault),
            }
        }
    }

    /// No step comes any more: what is still open is told as it stands.
    pub fn finish(&mut self) {
        (self.options.recorder)(News::Ended);
    }

    /// A durable checkpoint of this many steps is on disk.
    pub fn checkpointed(&mut self, step: u64) {
        self.event(Event::CheckpointWritten { step });
    }

    /// The active worker's device.
    pub fn describe(&self) -> Option<toprope_program::Description> {
        let crew = self.crews.get(&self.active?)?;
        Some(crew.device.describe())
    }

    /// Whether a worker holds a state that the guard has accepted.
    fn serves(&self) -> bool {
        let refuses = |action: &Action| matches!(action, Action::Restore { .. } | Action::Kill { .. });
        self.active.is_some() && !self.actions.iter().any(refuses)
    }

    fn now(&self) -> Duration {
        let now = self.left_at.unwrap_or_else(|| self.options.world.clock().monotonic());
        now.saturating_sub(self.paused)
    }

    fn event(&mut self, event: Event) {
        self.look_at_firings();
        let actions = self.guard.handle(self.now(), event);
        self.actions.extend(actions);
    }

    fn failed(&mut self, worker: Worker, fault: Fault) {
        let at = fault.place.clone().or_else(|| self.progress(worker));
        let kind = fault.kind.clone();
        self.last_fault = Some(fault);
        self.event(Event::Failed { worker, kind, place: at });
    }

    /// The operator that the worker's progress word names.
    fn progress(&self, worker: Worker) -> Option<Place> {
        let crew = self.crews.get(&worker)?;
        let flight = self.flight.as_ref().filter(|flight| flight.worker == worker)?;
        crew.session.place_of(flight.range, crew.device.instruction()?)
    }

    /// Carries out decisions until `done`.
    fn drive(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), GuardError> {
        if let Some(left) = self.left_at.take() {
            self.paused += self.options.world.clock().monotonic().saturating_sub(left);
        }
        let outcome = loop {
            if done(self) {
                // What is to be written down about it is written down before anybody acts on it.
                while let Some(Action::Record(_)) = self.actions.front() {
                    if let Some(action) = self.actions.pop_front() {
                        self.carry_out(action);
                    }
                }
                break Ok(());
            }
            if let Some(reason) = self.stopped.clone() {
                let (step, last) = (self.committed.0, self.last_fault.clone().map(Box::new));
                break Err(GuardError::Stopped { reason, step, last });
            }
            if let Some(action) = self.actions.pop_front() {
                self.carry_out(action);
            } else if self.flight.is_some() {
                self.await_flight();
            } else if self.copy.is_some() {
                // Nothing is computed: the guard may be waiting for just this copy, as before it goes back to a device.
                self.finish_copy();
            } else {
                self.await_launches();
            }
        };
        self.left_at = Some(self.options.world.clock().monotonic());
        outcome
    }

    /// Time until the guard wants to be asked.
    fn until_deadline(&self) -> Duration {
        let left = self.guard.deadline().map_or(POLL_MAX, |deadline| deadline.saturating_sub(self.now()));
        left.min(POLL_MAX)
    }

    fn tick_if_due(&mut self) {
        if self.guard.deadline().is_some_and(|deadline| deadline <= self.now()) {
            let progress = self.active.map(|worker| (worker, self.progress(worker)));
            self.event(Event::Tick { progress: progress.into_iter().collect() });
        }
    }

    fn await_launches(&mut self) {
        while let Ok(event) = self.retested.1.try_recv() {
            self.event(event);
        }
        if !self.actions.is_empty() {
            return;
        }
        match self.launched.1.recv_timeout(self.until_deadline().min(RETEST_POLL)) {
            Ok(launched) => self.came_up(launched),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.tick_if_due(),
        }
    }

    fn came_up(&mut self, (worker, result): Launched) {
        match result {
            Ok(crew) => {
                self.crews.insert(worker, crew);
                self.event(Event::Ready { worker });
            }
            Err(fault) => self.failed(worker, fault),
        }
    }

    fn carry_out(&mut self, action: Action) {
        while let Ok(launched) = self.launched.1.try_recv() {
            self.came_up(launched);
        }
        while let Ok(event) = self.retested.1.try_recv() {
            self.event(event);
        }
        match action {
            Action::Launch { worker, device, .. } => {
                let Some(spec) = self.options.devices.get(usize::from(device.0)) else { return };
                let tell = self.launched.0.clone();
                if let Err(fault) = launch(&*self.options.world, &self.start, worker, (device, spec), tell) {
                    self.failed(worker, fault);
                }
            }
            Action::Kill { worker } => self.kill(worker),
            Action::Restore { worker, source, step } => {
                if let Err(fault) = self.restore(worker, source, step) {
                    self.failed(worker, fault);
                }
            }
            Action::Accumulate { worker, attempt, evidence } => {
                self.own_faults(attempt.step);
                self.executions += 1;
                self.executing = true;
                self.step_started = self.now();
                let mask = self.mask(attempt.step, evidence);
                self.take_off(worker, attempt, Range::Accumulate, mask);
            }
            Action::Update { worker, attempt } => {
                // The update of the next step but one overwrites what a copy reads: none may be under way by then.
                self.finish_copy();
                if !self.options.state_on_device {
                    self.state.open(self.state.other());
                }
                let mask = self.mask(attempt.step, false);
                self.take_off(worker, attempt, Range::Update, mask);
            }
            Action::Commit { attempt } => self.commit(attempt),
            Action::Snapshot { worker } => self.copy_out(worker),
            Action::Checkpoint { step, states } => {
                let event = self.write_checkpoint(step, &states);
                self.event(event);
            }
            Action::Skip { step } => {
                self.committed.0 = step + 1;
                let half = self.state.current();
                if self.state.steps(half) == Some(step) {
                    self.state.close(half, step + 1);
                }
            }
            Action::Replay { worker, attempt, range, place } => self.replay(worker, attempt, range, place),
            Action::Confirm { attempt, range, place, device, .. } => {
                self.confirm(attempt, range, place, device);
            }
            Action::Move { device, operator, to } => self.move_operator(device, &operator, to),
            Action::Retest { device } => self.retest(device),
            Action::Record(entry) => self.record(&entry),
            Action::Stop(reason) => self.stopped = Some(reason),
        }
    }

    fn kill(&mut self, worker: Worker) {
        if self.flight.as_ref().is_some_and(|flight| flight.worker == worker) {
            self.flight = None;
        }
        if self.active == Some(worker) {
            self.active = None;
        }
        if self.copy.as_ref().is_some_and(|copy| copy.worker == worker) {
            self.copy = None;
        }
        // Dropping a crew kills its process and awaits its end: only then may its memory go to another.
        self.crews.remove(&worker);
    }

    /// Workers of a device are started for another name from now on: the device with an operator elsewhere.
    fn move_operator(&mut self, device: DeviceIndex, operator: &str, to: DeviceIndex) {
        let to = self.options.devices.get(usize::from(to.0)).cloned();
        let (Some(spec), Some(to)) = (self.options.devices.get_mut(usize::from(device.0)), to) else {
            return;
        };
        spec.move_operator(operator, &to);
    }

    fn retest(&mut self, device: DeviceIndex) {
        let Some(spec) = self.options.devices.get(usize::from(device.0)).cloned() else { return };
        let (test, tell) = (self.options.retest.clone(), self.retested.0.clone());
        let limit = launch_limit(&self.options.policy);
        let generation = self.own_generation();
        let worker = Worker { rank: Rank(0), generation };
        let mut remote = match process(&*self.options.world, &self.start, worker, &spec) {
            Ok(remote) => remote,
            Err(fault) => {
                let detail = fault.to_string();
                return self.event(Event::Retested { device, passed: false, detail });
            }
        };
        let thread = std::thread::Builder::new().name("toprope-retest".into());
        let spawned = thread.spawn(move || {
            let (passed, detail) = match remote.ready(limit) {
                Ok(Some(_)) => test(&mut remote),
                Ok(None) => (false, "its worker did not come up".to_string()),
                Err(fault) => (false, fault.to_string()),
            };
            // Nobody hears it where the run is over.
            let _ = tell.send(Event::Retested { device, passed, detail });
        });
        if let Err(error) = spawned {
            let detail = format!("no thread for the test: {error}");
            self.event(Event::Retested { device, passed: false, detail });
        }
    }

    /// A number for a worker that the guard did not ask for; from the top, since its own count up from 1.
    fn own_generation(&mut self) -> Generation {
        self.confirmations += 1;
        Generation(u64::MAX - self.confirmations)
    }

    /// Sees to it that every fallback can run the program, before the first step.
    ///
    /// # Errors
    /// The device's refusal.
    pub fn check_fallbacks(&mut self) -> Result<(), Fault> {
        let start = Start { state: None, work: None, ..self.start.clone() };
        for (index, spec) in self.options.devices.clone().iter().enumerate().skip(1) {
            let worker = Worker { rank: Rank(0), generation: self.own_generation() };
            ready_now(&*self.options.world, &start, worker, (DeviceIndex(index as u16), spec))?;
        }
        Ok(())
    }

    /// Which checks fire in a step.
    fn mask(&self, step: u64, evidence: bool) -> CheckMask {
        let level = if evidence { CheckLevel::Full } else { self.options.checks };
        mask(self.judge.sites(), level, step, 0)
    }

    fn take_off(&mut self, worker: Worker, attempt: Attempt, range: Range, mask: CheckMask) {
        match self.queue(worker, attempt.step, range, 0, &mask) {
            // The worker is not there any more: the guard knows.
            None => {}
            Some(Ok(ticket)) => {
                let alarms = Vec::new();
                self.flight = Some(Flight { worker, attempt, range, micro_batch: 0, ticket, mask, alarms });
            }
            Some(Err(fault)) => self.failed(worker, fault),
        }
    }

    fn queue(
        &mut self,
        worker: Worker,
        step: u64,
        range: Range,
        micro_batch: usize,
        mask: &CheckMask,
    ) -> Option<Result<Ticket, Fault>> {
        let crew = self.crews.get_mut(&worker)?;
        let steps = &mut self.options.steps;
        crew.device.set_step(step);
        crew.session.set_checks(mask.clone());
        Some((|| {
            if range == Range::Accumulate {
                crew.session.set_first(micro_batch == 0);
                steps.write(step, micro_batch, &mut crew.session, &mut crew.device)?;
            }
            crew.session.queue(&mut crew.device, range)
        })())
    }

    fn await_flight(&mut self) {
        let limit = self.until_deadline();
        let Some(flight) = &self.flight else { return };
        let (worker, ticket) = (flight.worker, flight.ticket);
        let Some(crew) = self.crews.get_mut(&worker) else {
            self.flight = None;
            return;
        };
        match crew.device.wait(ticket, limit) {
            Ok(Progress::Done) => self.landed(),
            Ok(Progress::Running { .. }) => self.tick_if_due(),
            Err(fault) => self.failed(worker, fault),
        }
    }

    /// A range is done for one micro-batch: judges it, and goes on with the next or tells the guard.
    fn landed(&mut self) {
        let Some(mut flight) = self.flight.take() else { return };
        let (worker, attempt) = (flight.worker, flight.attempt);
        let Some(crew) = self.crews.get_mut(&worker) else { return };
        let outputs = match crew.session.read_outputs(&mut crew.device) {
            Ok(outputs) => outputs,
            Err(fault) => return self.failed(worker, fault),
        };
        self.last_run = Some(flight.ticket);
        let program = self.options.program.clone();
        flight.alarms.extend(self.judge.judge(program.program(), flight.range, &flight.mask, &outputs));
        let scalar = |name: &str| outputs.scalar(name).map_or(f64::NAN, f64::from);
        if flight.range == Range::Update {
            let norm = scalar("gradient_norm");
            let state = match self.next_digest(worker, &outputs) {
                Ok(digest) => digest,
                Err(fault) => return self.failed(worker, fault),
            };
            self.result.gradient_norm = norm;
            if self.options.shadow {
                flight.alarms.extend(self.shadow_step(worker, attempt.step, state));
            }
            self.next = Some((outputs, state));
            let result = Updated { gradient_norm: norm, state, alarms: flight.alarms };
            return self.event(Event::Updated { worker, attempt, result });
        }
        if flight.micro_batch + 1 < self.options.steps.micro_batches(attempt.step) {
            flight.micro_batch += 1;
            let mask = flight.mask.clone();
            match self.queue(worker, attempt.step, flight.range, flight.micro_batch, &mask) {
                Some(Ok(ticket)) => self.flight = Some(Flight { ticket, ..flight }),
                Some(Err(fault)) => self.failed(worker, fault),
                None => {}
            }
            return;
        }
        let values = program.program().values.iter();
        let scalars = values.filter(|value| value.name.starts_with("loss"));
        let scalars = scalars.map(|value| (value.name.clone(), scalar(&value.name))).collect();
        self.result = StepResult { step: attempt.step, scalars, gradient_norm: f64::NAN };
        let result = Accumulated { loss: scalar("loss"), gradients: None, alarms: flight.alarms };
        self.event(Event::Accumulated { worker, attempt, result });
    }

    /// The digest of the state that an update has just written.
    fn next_digest(&mut self, worker: Worker, outputs: &Outputs) -> Result<Digest, Fault> {
        match self.crews.get_mut(&worker) {
            Some(crew) if crew.own_state => self.state.digest_read(outputs, |tensor| {
                let mut bytes = vec![0; tensor.bytes];
                let from = crew.session.bindings().next;
                crew.device.read(from, tensor.location.offset_bytes, &mut bytes)?;
                Ok(bytes)
            }),
            _ => Ok(self.state.digest_told(self.state.other(), outputs)),
        }
    }

    fn commit(&mut self, attempt: Attempt) {
        if let Some((outputs, digest)) = self.next.take() {
            self.committed = (attempt.step + 1, digest);
            self.judge.committed(self.options.program.program(), &outputs);
        }
        if !self.options.state_on_device {
            self.state.close(self.state.other(), attempt.step + 1);
        }
        if let Some(crew) = self.active.and_then(|worker| self.crews.get_mut(&worker)) {
            crew.session.flip();
            crew.half = self.state.current();
        }
        self.recovered();
    }
}

/// Starts a worker that holds nothing of a run, to learn what its device is.
///
/// # Errors
/// It did not come up, or its device could not be opened.
pub fn probe(world: &dyn World, command: &WorkerCommand, spec: &DeviceSpec) -> Result<RemoteDevice, Fault> {
    let lost = |reason: String| Fault::new(spec.name.clone(), FaultKind::Lost { reason, for_good: false });
    let control = world.shared_memory().create("toprope-control", CONTROL_BYTES);
    let control = control.map_err(|error| lost(error.to_string()))?;
    let hello = worker::hello(String::new(), Worker { rank: Rank(0), generation: Generation(0) }, spec, None);
    let regions = [control];
    let command = spec.command.as_ref().unwrap_or(command);
    let options = WorkerOptions { command, regions: &regions, hello, generation: 0, patience: LAUNCH_LIMIT };
    let mut device = RemoteDevice::launch(world, options)?;
    match device.ready(LAUNCH_LIMIT)? {
        Some(_) => Ok(device),
        None => {
            let waited_ms = LAUNCH_LIMIT.as_millis() as u64;
            Err(Fault::new(spec.name.clone(), FaultKind::Hang { waited_ms }))
        }
    }
}

/// A copy of the state to the host takes no longer.
const COPY_LIMIT: Duration = Duration::from_secs(60);

fn launch_limit(policy: &Policy) -> Duration {
    Duration::from_secs_f64(policy.launch_limit_seconds)
}

/// A worker that is only asked what its device is may take this long to come up.
const LAUNCH_LIMIT: Duration = Duration::from_secs(120);

/// Work buffers up to this size lie in shared memory, where reading a loss costs no message. Larger ones are better off on
/// the huge pages that only a process's own memory gets.
const SHARED_WORK_BYTES_MAX: usize = 4 << 20;

/// Where the words of injected faults begin in the control region, behind the progress words.
const FIRINGS_OFFSET: usize = 64 * PROGRESS_WORDS as usize;

/// Progress words, then the words of injected faults.
const CONTROL_BYTES: usize = FIRINGS_OFFSET + FAULTS_MAX * 8;

/// A schedule has no more faults.
pub const FAULTS_MAX: usize = 4096;

/// A device that became slow is told within this many steps.
const SLOW_TOLD_WITHIN: u64 = 16;

/// Steps whose median is what a step usually takes.
const STEPS_TIMED: usize = 32;
