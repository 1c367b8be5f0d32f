//! The guard: where it stands, and what comes next.

use super::device::Device;
use super::gather::Goal;
use super::judge::Judgement;
use super::keep::Keep;
use super::seat::Seat;
use super::statistics::Watch;
use super::step::{Run, Trial};
use super::{
    Action, Counters, DeviceIndex, Digest, Entry, Event, FaultKind, Mutant, Place, Rank, Setup, Source,
    StateHome, StopReason, Worker,
};
use crate::policy::{Policy, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the guard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `Begin` has not come.
    Waiting,
    /// Some ranks have no worker, or not the state.
    Gathering,
    /// Between two steps.
    Border,
    /// `accumulate` runs.
    Accumulating,
    /// An alarm is looked into.
    Judging,
    /// The gradients are accepted; something still reads what `update` would overwrite.
    Holding,
    /// `update` runs.
    Updating,
    /// The end.
    Stopped,
}

/// The state machine. What it says is in the actions; what it sees is in the events; nothing else goes in or out.
#[derive(Debug)]
pub struct Guard {
    pub(super) setup: Setup,
    pub(super) policy: Policy,
    pub(super) rules: Vec<Rule>,
    mutant: Option<Mutant>,
    pub(super) now: Duration,
    pub(super) begun_at: Duration,
    pub(super) actions: Vec<Action>,
    pub(super) phase: Phase,
    /// Steps that are committed.
    pub(super) committed: u64,
    /// The digests of committed states that could still be asked for.
    pub(super) chain: BTreeMap<u64, Vec<Digest>>,
    pub(super) seats: Vec<Seat>,
    pub(super) devices: Vec<Device>,
    pub(super) generations: u64,
    pub(super) attempts: u64,
    pub(super) goal: Goal,
    /// An update in place is under way: the state is neither the old nor the next one.
    pub(super) torn: bool,
    /// The other half still is the state of one step earlier.
    pub(super) previous_whole: bool,
    pub(super) run: Option<Run>,
    pub(super) trial: Trial,
    /// The same of later steps, which were reached before the run went back.
    pub(super) trials: BTreeMap<u64, Trial>,
    pub(super) judgement: Option<Judgement>,
    pub(super) keep: Keep,
    pub(super) loss: Watch,
    pub(super) norm: Watch,
    pub(super) counters: Counters,
    pub(super) last_commit: Duration,
    /// Something went wrong since the last commit.
    pub(super) disturbed: bool,
    /// The most steps that ever were committed: below it, a commit is a step redone.
    pub(super) farthest: u64,
    pub(super) ending: Option<StopReason>,
    /// Why it would end if there were a device.
    pub(super) outranked: Option<StopReason>,
    /// The farthest step when all devices were tested before giving up.
    pub(super) tested_all_at: Option<u64>,
    /// Steps whose batches are left out, whenever they come.
    pub(super) skips: BTreeSet<u64>,
    /// The step for whose bad data the run went back already.
    pub(super) went_back_for: Option<u64>,
}

impl Guard {
    /// A guard that waits for `Begin`.
    pub fn new(setup: Setup, policy: Policy) -> Guard {
        Guard::build(setup, policy, None)
    }

    /// A guard that is wrong on purpose, for the simulator to catch.
    #[doc(hidden)]
    pub fn with_mutant(setup: Setup, policy: Policy, mutant: Mutant) -> Guard {
        Guard::build(setup, policy, Some(mutant))
    }

    fn build(setup: Setup, policy: Policy, mutant: Option<Mutant>) -> Guard {
        let wait = Duration::from_secs_f64(policy.retest.after_seconds);
        Guard {
            rules: policy.rules(),
            mutant,
            now: Duration::ZERO,
            begun_at: Duration::ZERO,
            actions: Vec::new(),
            phase: Phase::Waiting,
            committed: 0,
            chain: BTreeMap::new(),
            seats: (0..setup.ranks).map(|_| Seat::new(DeviceIndex(0))).collect(),
            devices: setup.devices.iter().map(|_| Device::new(wait)).collect(),
            generations: 0,
            attempts: 0,
            goal: Goal { source: Source::Committed, step: 0 },
            torn: false,
            previous_whole: false,
            run: None,
            trial: Trial::default(),
            trials: BTreeMap::new(),
            judgement: None,
            keep: Keep::default(),
            loss: Watch::new(&policy.spike),
            norm: Watch::new(&policy.spike),
            counters: Counters::default(),
            last_commit: Duration::ZERO,
            disturbed: false,
            farthest: 0,
            ending: None,
            outranked: None,
            tested_all_at: None,
            skips: BTreeSet::new(),
            went_back_for: None,
            setup,
            policy,
        }
    }

    /// Takes in what was seen, and says what is to be done. `now` is a monotonic clock's; events after a stop give nothing.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        match (self.phase, event) {
            (Phase::Stopped, _) => return Vec::new(),
            (Phase::Waiting, Event::Begin { step, states }) => self.begin(step, states),
            // Whoever stops a run before it began has nothing to keep.
            (Phase::Waiting, Event::StopRequested) => self.stop(StopReason::Requested),
            (Phase::Waiting, _) | (_, Event::Begin { .. }) => return Vec::new(),
            (_, event) => self.see(event),
        }
        self.proceed();
        std::mem::take(&mut self.actions)
    }

    fn see(&mut self, event: Event) {
        match event {
            Event::Begin { .. } => {}
            Event::Ready { worker } => self.ready(worker),
            Event::Restored { worker, step, state } => self.restored(worker, step, state),
            Event::RestoreFailed { worker, step, reason } => self.restore_failed(worker, step, reason),
            Event::Accumulated { worker, attempt, result } => self.accumulated(worker, attempt, result),
            Event::Updated { worker, attempt, result } => self.updated(worker, attempt, result),
            Event::Failed { worker, kind, place } => self.failed(worker, kind, place),
            Event::Replayed { worker, attempt, finding } => self.replayed(worker, attempt, finding),
            Event::Confirmed { attempt, device, other_chip, finding } => {
                self.confirmed(attempt, device, other_chip, finding);
            }
            Event::SnapshotTaken { worker, step, state, seconds } => {
                self.snapshot_taken(worker, step, state, seconds);
            }
            Event::CheckpointWritten { step } => self.checkpoint_written(step),
            Event::CheckpointFailed { step, reason, damaged } => {
                self.checkpoint_failed(step, reason, damaged)
            }
            Event::Retested { device, passed, detail } => self.retested(device, passed, detail),
            Event::Tick { progress } => self.tick(&progress),
            Event::StopRequested => self.end(StopReason::Requested),
        }
    }

    fn begin(&mut self, step: u64, states: Vec<Digest>) {
        self.begun_at = self.now;
        self.last_commit = self.now;
        self.committed = step;
        self.farthest = step;
        self.chain.insert(step, states);
        self.trial = Trial::of(self.setup.ranks);
        let source = match self.setup.home {
            StateHome::Device => Source::Snapshot,
            StateHome::SharedDouble | StateHome::SharedInPlace => Source::Committed,
        };
        self.goal = Goal { source, step };
        self.keep.begin(step);
        if step >= self.setup.steps {
            self.stop(StopReason::Done);
        } else {
            self.phase = Phase::Gathering;
        }
    }

    /// Does what can be done now.
    fn proceed(&mut self) {
        // Each turn changes the phase; there is no cycle of phases without an answer from outside between.
        loop {
            let before = self.phase;
            match self.phase {
                Phase::Gathering => self.gather(),
                Phase::Border => self.border(),
                Phase::Holding => self.try_update(),
                _ => return,
            }
            if self.phase == before {
                return;
            }
        }
    }

    /// Between two steps: end, keep, move, or begin the next one.
    fn border(&mut self) {
        while self.ending.is_none()
            && self.committed < self.setup.steps
            && self.skips.contains(&self.committed)
        {
            self.skip();
        }
        if self.committed >= self.setup.steps {
            self.end(StopReason::Done);
        }
        if self.ending.is_some() {
            self.finish();
            return;
        }
        self.keep_due();
        if !self.fail_back() && self.phase == Phase::Border {
            self.start();
        }
    }

    /// Wants the run to end; the first reason counts, but nothing outranks having no device.
    pub(super) fn end(&mut self, reason: StopReason) {
        match &self.ending {
            None => self.ending = Some(reason),
            Some(StopReason::NoDevice) if reason != StopReason::NoDevice => {
                self.outranked.get_or_insert(reason);
            }
            Some(known) if *known != reason && reason == StopReason::NoDevice => {
                self.outranked = self.ending.replace(reason);
            }
            Some(_) => {}
        }
    }

    /// Ends everything now.
    pub(super) fn stop(&mut self, reason: StopReason) {
        let workers: Vec<Worker> = self.seats.iter().flat_map(Seat::workers).collect();
        for worker in workers {
            self.act(Action::Kill { worker });
        }
        for seat in &mut self.seats {
            seat.active = None;
            seat.standbys.clear();
        }
        self.record(Entry::Stopped { reason: reason.clone(), step: self.committed });
        self.act(Action::Stop(reason));
        self.phase = Phase::Stopped;
    }

    /// Time passed: whatever is overdue is dealt with.
    fn tick(&mut self, progress: &[(Worker, Option<Place>)]) {
        self.late_step(progress);
        self.late_workers();
        self.late_judgement();
        self.late_keep();
        self.late_tests();
    }

    /// When `Event::Tick` is to be sent, on the clock of `handle`; none where nothing is awaited.
    pub fn deadline(&self) -> Option<Duration> {
        let step = match self.phase {
            Phase::Accumulating | Phase::Updating if !self.is(Mutant::ForgetDeadline) => {
                self.run.as_ref().map(|run| run.deadline)
            }
            Phase::Stopped | Phase::Waiting => return None,
            _ => None,
        };
        let judgement = self.judgement.as_ref().map(|judgement| judgement.deadline);
        let seats = self.seats.iter().filter_map(Seat::deadline);
        let devices = self.devices.iter().filter_map(|device| device.deadline());
        seats.chain(devices).chain(self.keep.deadline()).chain(step).chain(judgement).min()
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn record(&mut self, entry: Entry) {
        self.actions.push(Action::Record(entry));
    }

    /// Journals and counts a fault.
    pub(super) fn fault(&mut self, rank: Rank, kind: FaultKind, place: Option<Place>, action: &str) {
        let device = self.seat(rank).map_or(DeviceIndex(0), |seat| seat.device);
        self.fault_on(device, rank, kind, place, action);
    }

    /// The same for a device that is not the rank's own.
    pub(super) fn fault_on(
        &mut self,
        device: DeviceIndex,
        rank: Rank,
        kind: FaultKind,
        place: Option<Place>,
        action: &str,
    ) {
        *self.counters.faults.entry(kind.class()).or_default() += 1;
        self.disturbed = true;
        let step = self.committed;
        self.record(Entry::Fault { kind, device, rank, step, place, action: action.into() });
    }

    /// Steps that are committed.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// What the guard is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Counts for the summary.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The digests of the committed state, by rank.
    pub fn states(&self) -> &[Digest] {
        self.chain.get(&self.committed).map_or(&[], Vec::as_slice)
    }

    /// The newest step of which a durable checkpoint is known.
    pub fn durable(&self) -> Option<u64> {
        self.keep.durable
    }

    /// The device of each rank.
    pub fn placement(&self) -> Vec<DeviceIndex> {
        self.seats.iter().map(|seat| seat.device).collect()
    }

    /// Devices that are not to be used until they pass a test.
    pub fn quarantined(&self) -> Vec<DeviceIndex> {
        let indices = (0..self.devices.len() as u16).map(DeviceIndex);
        indices.filter(|device| !self.healthy(*device)).collect()
    }

    /// The median of undisturbed steps on a device, in seconds; none before the first.
    pub fn step_seconds(&self, device: DeviceIndex) -> Option<f64> {
        self.devices.get(usize::from(device.0)).and_then(|device| device.pace.median())
    }

    /// Committed steps at the primary's clean speed over the time since `Begin`, from 0 to 1; none before there is a speed.
    pub fn goodput(&self, now: Duration) -> Option<f64> {
        let speed =
            (0..self.devices.len() as u16).find_map(|device| self.step_seconds(DeviceIndex(device)))?;
        let wall = now.checked_sub(self.begun_at)?.as_secs_f64();
        (wall > 0.0).then(|| (self.counters.steps_committed as f64 * speed / wall).min(1.0))
    }
}
