//! What outlives the workers and the process: snapshots in the host's memory, and durable checkpoints.

use super::statistics::{Recent, interval};
use super::{
    Action, Digest, Entry, FaultKind, Guard, Mutant, Phase, Rank, Source, StateHome, StopReason, Worker,
};
use crate::policy::SnapshotEvery;
use std::time::Duration;

/// A checkpoint that is being written.
#[derive(Debug)]
struct Writing {
    step: u64,
    by: Duration,
    /// The step was taken back meanwhile.
    stale: bool,
}

/// A snapshot that is being taken.
#[derive(Debug)]
struct Taking {
    step: u64,
    taken: Vec<bool>,
    again: Vec<bool>,
    by: Duration,
}

/// What is kept, and what is under way.
#[derive(Debug)]
pub(super) struct Keep {
    /// The newest step with a durable checkpoint.
    pub(super) durable: Option<u64>,
    writing: Option<Writing>,
    /// The last step for which one was tried.
    tried: Option<u64>,
    /// Tries of the last checkpoint of the run.
    last_tries: u32,
    retry_at: Option<Duration>,
    /// Steps whose snapshots are whole on all ranks, oldest first.
    pub(super) snapshots: Vec<u64>,
    /// The newest snapshot of each rank; for mutants.
    own: Vec<u64>,
    taking: Option<Taking>,
    last_snapshot: u64,
    /// What snapshots cost, in seconds.
    cost: Recent,
}

/// Snapshots that are kept.
const SNAPSHOTS: usize = 2;
/// Tries of the last checkpoint before the run ends without.
const LAST_TRIES: u32 = 5;
/// Before any fault was seen, one is expected in this time, in seconds: the field's large runs see one in three hours.
const PRIOR_SECONDS: f64 = 3.0 * 3600.0;
/// Snapshot costs that the median is of.
const COSTS: usize = 16;

impl Default for Keep {
    fn default() -> Keep {
        Keep {
            durable: None,
            writing: None,
            tried: None,
            last_tries: 0,
            retry_at: None,
            snapshots: Vec::new(),
            own: Vec::new(),
            taking: None,
            last_snapshot: 0,
            cost: Recent::new(COSTS),
        }
    }
}

impl Keep {
    /// The state that the run begins with is durable, or can be made again, and lies in the host's memory.
    pub(super) fn begin(&mut self, step: u64) {
        self.durable = Some(step);
        self.snapshots = vec![step];
        self.last_snapshot = step;
    }

    pub(super) fn forget_pending(&mut self) {
        self.taking = None;
    }

    /// Steps beyond this one are taken back; what was kept of them is worth nothing.
    pub(super) fn rolled_back(&mut self, step: u64) {
        self.taking = None;
        self.snapshots.retain(|kept| *kept <= step);
        self.last_snapshot = self.last_snapshot.min(step);
        self.durable = self.durable.filter(|kept| *kept <= step);
        self.tried = self.tried.filter(|tried| *tried <= step);
        if let Some(writing) = self.writing.as_mut().filter(|writing| writing.step > step) {
            writing.stale = true;
        }
    }

    pub(super) fn own_snapshot(&self, rank: Rank) -> Option<u64> {
        self.own.get(usize::from(rank.0)).copied()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let writing = self.writing.as_ref().map(|writing| writing.by);
        let taking = self.taking.as_ref().map(|taking| taking.by);
        writing.into_iter().chain(taking).chain(self.retry_at).min()
    }
}

impl Guard {
    pub(super) fn checkpoint_is_due(&self, step: u64) -> bool {
        let every = self.setup.checkpoint_every;
        every > 0
            && step.is_multiple_of(every)
            && self.keep.tried != Some(step)
            && self.keep.durable != Some(step)
    }

    /// At a border: asks for the copies that are due.
    pub(super) fn keep_due(&mut self) {
        if self.checkpoint_is_due(self.committed) && self.keep.writing.is_none() {
            self.ask_checkpoint();
        }
        let due = self.committed.saturating_sub(self.keep.last_snapshot) >= self.snapshot_every();
        if self.setup.home == StateHome::Device && due {
            self.ask_snapshot();
        }
    }

    /// Steps between two snapshots, from what steps, snapshots and faults were measured to be.
    pub fn snapshot_every(&self) -> u64 {
        match self.policy.snapshot_every {
            SnapshotEvery::Steps(steps) => steps,
            SnapshotEvery::Auto => {
                let estimate = self.setup.step_estimate.as_secs_f64();
                let step = self.typical_seconds().unwrap_or(estimate);
                let cost = self.keep.cost.median().unwrap_or(step);
                interval(cost, self.seconds_between_faults(), step)
            }
        }
    }

    /// The mean time between faults, in seconds, with one fault in three hours as what is expected before any was seen.
    pub fn seconds_between_faults(&self) -> f64 {
        let faults: u64 = self.counters.faults.values().sum();
        let watched = self.now.saturating_sub(self.begun_at).as_secs_f64();
        (PRIOR_SECONDS + watched) / (1 + faults) as f64
    }

    fn ask_checkpoint(&mut self) {
        let step = self.committed;
        let by = self.now + Duration::from_secs_f64(self.policy.checkpoint_limit_seconds);
        self.keep.writing = Some(Writing { step, by, stale: false });
        self.keep.tried = Some(step);
        let states = self.states().to_vec();
        self.act(Action::Checkpoint { step, states });
    }

    /// Asks all ranks for a copy of the committed state, unless one is under way.
    pub(super) fn ask_snapshot(&mut self) {
        if self.keep.taking.is_some() {
            return;
        }
        let ranks = self.seats.len();
        let step = self.committed;
        let by = self.now + self.limit() + self.setup.launch_limit;
        self.keep.taking = Some(Taking { step, taken: vec![false; ranks], again: vec![false; ranks], by });
        self.keep.last_snapshot = step;
        for rank in self.ranks() {
            if let Some(worker) = self.worker(rank) {
                self.act(Action::Snapshot { worker });
            }
        }
    }

    /// Whether `update` would overwrite what a copy is made from.
    pub(super) fn update_is_held(&self) -> bool {
        let step = self.committed;
        let copied = self.keep.taking.as_ref().is_some_and(|taking| taking.step < step);
        let written = self.keep.writing.is_some() && !self.is(Mutant::UpdateUnderCheckpoint);
        copied || written
    }

    pub(super) fn snapshot_taken(&mut self, worker: Worker, step: u64, state: Digest, seconds: f64) {
        let rank = worker.rank;
        let index = usize::from(rank.0);
        if !self.is_active(worker) {
            return;
        }
        let right = self.chain.get(&step).and_then(|states| states.get(index)) == Some(&state)
            || self.is(Mutant::AcceptPoisonedSnapshot);
        let Some(taking) = self.keep.taking.as_mut().filter(|taking| taking.step == step) else { return };
        if !right {
            let again = std::mem::replace(&mut taking.again[index], true);
            self.counters.states_refused += 1;
            let reason = "its digest is not that of the committed state".into();
            self.record(Entry::StateRefused { rank, source: Source::Snapshot, step, reason });
            if again {
                // Two copies differ from what was committed: so does what they are copies of.
                let kind = FaultKind::Mismatch { operator: "state".into(), error: 1.0, tolerance: 0.0 };
                self.state_damaged(rank, kind, None);
            } else {
                self.act(Action::Snapshot { worker });
            }
            return;
        }
        taking.taken[index] = true;
        let whole = taking.taken.iter().all(|taken| *taken);
        self.keep.cost.push(seconds.max(0.0));
        let ranks = self.seats.len();
        self.keep.own.resize(ranks, 0);
        self.keep.own[index] = step;
        if whole {
            self.keep.taking = None;
            self.counters.snapshots += 1;
            self.keep.snapshots.push(step);
            let spare = self.keep.snapshots.len().saturating_sub(SNAPSHOTS);
            self.keep.snapshots.drain(..spare);
        }
    }

    pub(super) fn checkpoint_written(&mut self, step: u64) {
        let Some(writing) = self.keep.writing.take_if(|writing| writing.step == step) else { return };
        if writing.stale {
            return;
        }
        self.keep.durable = Some(step);
        self.keep.last_tries = 0;
        self.counters.checkpoints += 1;
        let states = self.chain.get(&step).cloned().unwrap_or_default();
        self.record(Entry::Checkpoint { step, states });
    }

    pub(super) fn checkpoint_failed(&mut self, step: u64, reason: String, damaged: bool) {
        let Some(writing) = self.keep.writing.take_if(|writing| writing.step == step) else { return };
        self.record(Entry::CheckpointFailed { step, reason });
        if writing.stale {
            return;
        }
        if damaged && step == self.committed {
            // Whose part of it is damaged is found when it is taken in.
            let kind = FaultKind::Mismatch { operator: "state".into(), error: 1.0, tolerance: 0.0 };
            self.state_damaged(Rank(0), kind, None);
        } else if self.ending.is_some() {
            let wait = Duration::from_secs_f64(f64::from(self.keep.last_tries.min(30)).exp2());
            self.keep.retry_at = Some(self.now + wait);
        }
    }

    /// Ends the run with a durable checkpoint of what is committed, where there is still something to write it from.
    pub(super) fn finish(&mut self) {
        let Some(reason) = self.ending.clone() else { return };
        let gone = reason == StopReason::NoDevice;
        if gone && self.phase == Phase::Gathering && !self.fall_back_to_memory() {
            self.stop(reason);
            return;
        }
        if self.keep.durable == Some(self.committed) || self.is(Mutant::EndWithoutCheckpoint) {
            self.stop(reason);
            return;
        }
        let waits = self.keep.retry_at.is_some_and(|at| at > self.now);
        if self.keep.writing.is_some() || waits {
            return;
        }
        self.keep.retry_at = None;
        if self.keep.last_tries >= LAST_TRIES {
            self.stop(reason);
            return;
        }
        self.keep.last_tries += 1;
        self.ask_checkpoint();
    }

    /// With no device left: makes what the host's memory holds the committed state. Says whether it holds a whole one.
    fn fall_back_to_memory(&mut self) -> bool {
        let from = self.committed;
        match self.goal.source {
            Source::Committed => return !self.torn,
            Source::Snapshot => {}
            Source::Previous | Source::Checkpoint => return false,
        }
        let step = self.goal.step;
        if step < from {
            self.record(Entry::RolledBack { from, to: step, source: Source::Snapshot });
            self.counters.roll_backs += 1;
            self.counters.steps_redone += from - step;
            self.counters.steps_committed = self.counters.steps_committed.saturating_sub(from - step);
            self.committed = step;
            self.chain.split_off(&(step + 1));
            self.keep.rolled_back(step);
        }
        true
    }

    /// Copies that take too long.
    pub(super) fn late_keep(&mut self) {
        if let Some(step) =
            self.keep.writing.as_ref().filter(|writing| writing.by <= self.now).map(|w| w.step)
        {
            self.checkpoint_failed(step, "it took too long".into(), false);
        }
        if self.keep.retry_at.is_some_and(|at| at <= self.now) {
            self.keep.retry_at = None;
        }
        let Some(taking) = self.keep.taking.take_if(|taking| taking.by <= self.now) else { return };
        let waited_ms = self.limit().as_millis() as u64;
        for (rank, taken) in self.ranks().zip(taking.taken) {
            if !taken {
                self.active_failed(rank, FaultKind::Hang { waited_ms }, None);
            }
        }
    }
}
