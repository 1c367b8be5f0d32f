//! Giving every rank the same state again: from where, whether it is the right one, and what to try next.

use super::step::Trial;
use super::{Action, Digest, Entry, Guard, Mutant, Phase, Rank, Source, StateHome, StopReason, Worker};

/// The state that all ranks are to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Goal {
    pub(super) source: Source,
    /// Committed steps; for a checkpoint, at most.
    pub(super) step: u64,
}

/// Committed states whose digests are kept. An older checkpoint is believed by its own proof.
const CHAIN: usize = 1 << 16;

impl Guard {
    /// Takes a rank's worker away, gives up what runs, and finds out what state is left.
    pub(super) fn lose(&mut self, rank: Rank) {
        self.abandon();
        let Some(seat) = self.seat_mut(rank) else { return };
        seat.holds = None;
        if let Some(slot) = seat.active.take() {
            self.act(Action::Kill { worker: slot.worker });
        }
        if self.phase != Phase::Gathering {
            self.aim(self.left());
        } else if self.setup.home == StateHome::Device && self.goal.step == self.committed {
            // The others may hold newer bits than any copy of what this one lost.
            let left = self.left();
            if left.step != self.goal.step || left.source != self.goal.source {
                self.aim(left);
            }
        }
        self.phase = Phase::Gathering;
    }

    /// The newest state that is whole when a worker is gone.
    fn left(&self) -> Goal {
        let step = self.committed;
        match self.setup.home {
            StateHome::Device => self.newest_snapshot(u64::MAX),
            StateHome::SharedInPlace if self.torn && !self.is(Mutant::RestoreTorn) => {
                Goal { source: Source::Checkpoint, step }
            }
            StateHome::SharedDouble | StateHome::SharedInPlace => Goal { source: Source::Committed, step },
        }
    }

    /// The newest snapshot below a step, or the newest checkpoint where there is none.
    fn newest_snapshot(&self, below: u64) -> Goal {
        match self.keep.snapshots.iter().rev().find(|step| **step < below) {
            Some(step) => Goal { source: Source::Snapshot, step: *step },
            None => Goal { source: Source::Checkpoint, step: self.committed },
        }
    }

    /// Everybody takes in this; who holds the committed state keeps it where that is what is wanted.
    fn aim(&mut self, goal: Goal) {
        self.goal = goal;
        self.keep.forget_pending();
        if goal.step != self.committed || matches!(goal.source, Source::Checkpoint | Source::Previous) {
            for seat in &mut self.seats {
                seat.holds = None;
            }
        }
    }

    /// The committed state of a rank is not to be trusted: an older one is taken, or another copy.
    pub(super) fn go_back(&mut self, rank: Rank) {
        self.abandon();
        let below = Goal { source: Source::Checkpoint, step: self.committed };
        let goal = match self.setup.home {
            StateHome::Device => self.newest_snapshot(u64::MAX),
            StateHome::SharedDouble => self.previous().unwrap_or(below),
            StateHome::SharedInPlace => below,
        };
        self.aim(goal);
        if let Some(seat) = self.seat_mut(rank) {
            seat.holds = None;
        }
        self.phase = Phase::Gathering;
    }

    fn previous(&self) -> Option<Goal> {
        let whole = self.previous_whole || self.is(Mutant::PreviousAfterUpdate);
        let step = self.committed.checked_sub(1).filter(|_| whole)?;
        Some(Goal { source: Source::Previous, step })
    }

    /// Asks whoever is up for what is missing; goes on when all ranks hold the same.
    pub(super) fn gather(&mut self) {
        if self.ending.is_some() && self.may_end_here() {
            self.finish();
            return;
        }
        for rank in self.ranks() {
            self.staff(rank);
            let (now, limit, goal) = (self.now, self.setup.launch_limit, self.goal);
            let own = self.keep.own_snapshot(rank).filter(|_| self.is(Mutant::MixedSnapshots));
            let Some(seat) = self.seat_mut(rank) else { continue };
            let wants = seat.holds != Some(goal.step);
            let free = |slot: &&mut super::seat::Slot| wants && slot.ready && slot.asked.is_none();
            if let Some(slot) = seat.active.as_mut().filter(free) {
                slot.asked = Some(goal);
                slot.deadline = Some(now + limit);
                let worker = slot.worker;
                let step = own.filter(|_| goal.source == Source::Snapshot).unwrap_or(goal.step);
                self.act(Action::Restore { worker, source: goal.source, step });
            }
        }
        let step = self.goal.step;
        if self.seats.iter().all(|seat| seat.active.is_some() && seat.holds == Some(step)) {
            self.gathered();
        }
    }

    fn gathered(&mut self) {
        let Goal { source, step } = self.goal;
        let from = self.committed;
        self.chain.split_off(&(step + 1));
        if !self.chain.contains_key(&step) {
            let states = self.seats.iter().filter_map(|seat| seat.held).collect();
            self.chain.insert(step, states);
        }
        self.torn = false;
        if matches!(source, Source::Checkpoint | Source::Previous) {
            self.previous_whole = false;
        }
        if step < from {
            if !self.is(Mutant::SilentRollBack) {
                self.record(Entry::RolledBack { from, to: step, source });
            }
            self.disturbed = true;
            self.counters.roll_backs += 1;
            self.counters.steps_redone += from - step;
            self.counters.steps_committed = self.counters.steps_committed.saturating_sub(from - step);
            self.committed = step;
            self.previous_whole = false;
            self.keep.rolled_back(step);
            self.trial = Trial::of(self.setup.ranks);
            if self.is(Mutant::DoubleReplay) {
                self.miscount(step.saturating_sub(1));
            } else if self.is(Mutant::BatchOffByOne) {
                self.miscount(step + 1);
            }
        }
        if source == Source::Checkpoint {
            self.keep.durable = Some(step);
        }
        self.phase = Phase::Border;
    }

    /// For mutants: the state in hand is taken for that of another step.
    fn miscount(&mut self, step: u64) {
        if let Some(states) = self.chain.get(&self.committed).cloned() {
            self.chain.insert(step, states);
        }
        self.committed = step;
        for seat in &mut self.seats {
            seat.holds = Some(step);
        }
    }

    /// Puts a committed state's digests on the chain.
    pub(super) fn link(&mut self, step: u64, states: Vec<Digest>) {
        self.chain.insert(step, states);
        if self.chain.len() > CHAIN {
            self.chain.pop_first();
        }
    }

    pub(super) fn restored(&mut self, worker: Worker, step: u64, state: Digest) {
        let rank = worker.rank;
        let goal = self.goal;
        if !self.is_active(worker) {
            return;
        }
        let Some(slot) = self.seat_mut(rank).and_then(|seat| seat.active.as_mut()) else { return };
        let Some(asked) = slot.asked.take() else { return };
        slot.deadline = None;
        if asked != goal || self.phase != Phase::Gathering {
            // The goal changed meanwhile; it is asked again.
            return;
        }
        let mixed = self.is(Mutant::MixedSnapshots) && goal.source == Source::Snapshot;
        let right_step = match goal.source {
            Source::Checkpoint => step <= goal.step,
            Source::Committed | Source::Previous | Source::Snapshot => step == goal.step || mixed,
        };
        if !right_step {
            self.refuse(rank, step, format!("it is of {step} steps, {} were asked for", goal.step));
            return;
        }
        let known = self.chain.get(&step).and_then(|states| states.get(usize::from(rank.0)));
        let poison = match known {
            Some(known) => *known != state,
            // Older than this process: its file proves itself, halves and snapshots do not.
            None => goal.source != Source::Checkpoint,
        };
        let blind = self.is(Mutant::SkipDigestCheck)
            || (self.is(Mutant::AcceptPoisonedSnapshot) && goal.source == Source::Snapshot);
        if poison && !blind && !mixed {
            self.refuse(rank, step, "its digest is not that of the committed state".into());
            return;
        }
        if goal.source == Source::Checkpoint {
            self.goal.step = step;
        }
        let step = if mixed { goal.step } else { step };
        if let Some(seat) = self.seat_mut(rank) {
            seat.holds = Some(step);
            seat.held = Some(state);
        }
        self.announce(rank);
    }

    pub(super) fn restore_failed(&mut self, worker: Worker, step: u64, reason: String) {
        if !self.is_active(worker) {
            return;
        }
        let Some(slot) = self.seat_mut(worker.rank).and_then(|seat| seat.active.as_mut()) else { return };
        let Some(asked) = slot.asked.take() else { return };
        slot.deadline = None;
        if asked != self.goal || self.phase != Phase::Gathering {
            return;
        }
        // With no intact checkpoint at all there is nothing older to ask for.
        let older = if asked.source == Source::Checkpoint { 0 } else { step };
        self.refuse(worker.rank, older, reason);
    }

    /// Does not take a state in. The first time it is asked for again, for a copy may go wrong; then the next older one is.
    fn refuse(&mut self, rank: Rank, step: u64, reason: String) {
        let goal = self.goal;
        self.counters.states_refused += 1;
        self.disturbed = true;
        self.record(Entry::StateRefused { rank, source: goal.source, step, reason });
        let Some(seat) = self.seat_mut(rank) else { return };
        seat.holds = None;
        if seat.refused != Some(goal) {
            seat.refused = Some(goal);
            return;
        }
        let newest = Goal { source: Source::Checkpoint, step: self.committed };
        let next = match goal.source {
            Source::Committed => Some(self.previous().unwrap_or(newest)),
            Source::Previous => Some(newest),
            Source::Snapshot => Some(self.newest_snapshot(goal.step)),
            Source::Checkpoint => step.checked_sub(1).map(|step| Goal { source: Source::Checkpoint, step }),
        };
        match next {
            Some(next) => self.aim(next),
            None => self.stop(StopReason::NoState),
        }
        for seat in &mut self.seats {
            seat.holds = None;
        }
    }

    /// Gives up the execution under way, if there is one.
    pub(super) fn abandon(&mut self) {
        self.judgement = None;
        let Some(run) = self.run.take() else { return };
        self.record(Entry::Retried { attempt: run.attempt });
        self.counters.retries += 1;
        self.disturbed = true;
        self.trial.given_up(run, &self.seats);
    }

    /// Runs the step again from the committed state, or from what is left of it.
    pub(super) fn retry(&mut self) {
        self.abandon();
        if self.torn {
            self.aim(Goal { source: Source::Checkpoint, step: self.committed });
            self.phase = Phase::Gathering;
        } else {
            self.phase = Phase::Border;
        }
    }

    /// Whether what would be lost with the workers is in memory that outlives them; where a copy has to be made first, it is
    /// asked for.
    pub(super) fn state_outlives_workers(&mut self) -> bool {
        if self.setup.home != StateHome::Device || self.keep.snapshots.contains(&self.committed) {
            return true;
        }
        self.ask_snapshot();
        false
    }

    /// Whether the run can end although not all ranks hold the state.
    fn may_end_here(&self) -> bool {
        let shared = self.setup.home != StateHome::Device;
        let whole = self.goal.source == Source::Committed && !self.torn;
        self.ending == Some(StopReason::NoDevice) || (shared && whole)
    }
}
