//! One step: `accumulate` on all ranks, the judgement, `update` on all ranks, the judgement, the commit.

use super::judge::Stage;
use super::seat::Seat;
use super::{
    Accumulated, Action, Attempt, DeviceIndex, Digest, Entry, FaultClass, FaultKind, Guard, Mutant, Phase,
    Place, Rank, StateHome, StopReason, Updated, Worker,
};
use crate::policy::Remedy;
use std::time::Duration;

/// An execution under way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) attempt: Attempt,
    /// Start of the range under way.
    range_started: Duration,
    pub(super) deadline: Duration,
    pub(super) accumulated: Vec<Option<Accumulated>>,
    pub(super) updated: Vec<Option<Updated>>,
    /// Time that each rank computed, in seconds.
    seconds: Vec<f64>,
    /// Whether the time says something about the device: no evidence was taken, and nothing was looked into.
    pub(super) clean: bool,
}

/// What is known of a step from executions that were given up.
#[derive(Debug, Default)]
pub(super) struct Trial {
    pub(super) attempts: u32,
    /// The next execution is evidence.
    pub(super) evidence: bool,
    /// Whether a NaN or an infinity came up before.
    pub(super) non_finite: bool,
    /// Alarms of which it could not be told what they were.
    pub(super) unknown: u32,
    /// The class of the last fault.
    pub(super) class: Option<FaultClass>,
    /// The gradients' digests, with the device that they are from.
    digests: Vec<Option<(DeviceIndex, Digest)>>,
    /// For mutants: answers that should be gone.
    kept: Vec<Option<Accumulated>>,
}

impl Trial {
    pub(super) fn of(ranks: u16) -> Trial {
        Trial { digests: vec![None; usize::from(ranks)], ..Trial::default() }
    }

    pub(super) fn given_up(&mut self, run: Run, seats: &[Seat]) {
        self.attempts += 1;
        for ((digest, seat), result) in self.digests.iter_mut().zip(seats).zip(&run.accumulated) {
            let now = result.as_ref().and_then(|result| result.gradients);
            *digest = now.map(|now| (seat.device, now)).or(*digest);
        }
        self.kept = run.accumulated;
    }
}

/// Steps that must have been measured before their median is a deadline.
const MEASURED: usize = 3;
/// The shortest deadline of a step.
const SHORTEST: Duration = Duration::from_secs(1);
/// The shortest deadline before steps were measured.
const FIRST: Duration = Duration::from_secs(30);
/// A deadline in medians; in estimates before steps were measured. With every check firing, three times as much.
const MEDIANS: f64 = 3.0;
const ESTIMATES: u32 = 30;
/// How often a deadline that passed is doubled, at most: a device that is slow for a while gets through, and one that hangs each
/// time costs little more.
const DOUBLINGS: u32 = 5;
/// The longest deadline: a measurement gone wrong must not make it endless.
const LONGEST_SECONDS: f64 = 86_400.0;

impl Guard {
    /// Begins the next step.
    pub(super) fn start(&mut self) {
        if self.trial.attempts >= self.policy.attempts_max {
            let class = self.trial.class.unwrap_or(FaultClass::Lost);
            self.end(StopReason::Policy { class: class.name().into() });
            self.finish();
            return;
        }
        self.attempts += 1;
        let attempt = Attempt { step: self.committed, number: self.attempts };
        let evidence = self.trial.evidence;
        let ranks = self.seats.len();
        let careless = self.is(Mutant::RetryWithoutDiscard) || self.is(Mutant::RetryOneRank);
        let kept = if careless { std::mem::take(&mut self.trial.kept) } else { Vec::new() };
        let kept: Vec<_> = (0..ranks).map(|rank| kept.get(rank).cloned().flatten()).collect();
        let alarmed =
            |result: &Accumulated| !result.alarms.is_empty() || !result.loss.is_finite() || ranks == 1;
        for rank in self.ranks() {
            let old = kept.get(usize::from(rank.0)).and_then(Option::as_ref);
            if self.is(Mutant::RetryOneRank) && old.is_some_and(|old| !alarmed(old)) {
                continue;
            }
            if let Some(worker) = self.worker(rank) {
                self.act(Action::Accumulate { worker, attempt, evidence });
            }
        }
        self.run = Some(Run {
            attempt,
            range_started: self.now,
            deadline: self.now + self.limit(),
            accumulated: kept.into_iter().map(|old| old.filter(|old| !alarmed(old))).collect(),
            updated: vec![None; ranks],
            seconds: vec![0.0; ranks],
            clean: !evidence,
        });
        self.phase = Phase::Accumulating;
    }

    pub(super) fn worker(&self, rank: Rank) -> Option<Worker> {
        self.seat(rank)?.active.as_ref().map(|slot| slot.worker)
    }

    /// How long a step may take.
    pub(super) fn limit(&self) -> Duration {
        let limits = self.seats.iter().map(|seat| {
            let pace = self.devices.get(usize::from(seat.device.0)).map(|device| &device.pace);
            let limit = match pace.filter(|pace| pace.len() >= MEASURED).and_then(|pace| pace.median()) {
                Some(median) => {
                    let seconds = (MEDIANS * median).clamp(0.0, LONGEST_SECONDS);
                    SHORTEST.max(Duration::from_secs_f64(seconds))
                }
                None => FIRST.max(self.setup.step_estimate.saturating_mul(ESTIMATES)),
            };
            limit.saturating_mul(1 << seat.hangs.min(DOUBLINGS))
        });
        let limit = limits.max().unwrap_or(FIRST);
        if self.trial.evidence { limit.saturating_mul(3) } else { limit }
    }

    /// Whether an answer belongs to the execution under way.
    fn belongs(&self, worker: Worker, attempt: Attempt, phase: Phase) -> bool {
        let right = self.run.as_ref().is_some_and(|run| run.attempt == attempt);
        self.phase == phase && self.is_active(worker) && (right || self.is(Mutant::IgnoreAttempt))
    }

    pub(super) fn accumulated(&mut self, worker: Worker, attempt: Attempt, result: Accumulated) {
        if !self.belongs(worker, attempt, Phase::Accumulating) {
            return;
        }
        let now = self.now;
        let Some(run) = self.run.as_mut() else { return };
        let rank = usize::from(worker.rank.0);
        run.seconds[rank] = now.saturating_sub(run.range_started).as_secs_f64();
        run.accumulated[rank] = Some(result);
        if run.accumulated.iter().all(Option::is_some) {
            self.compare_evidence();
            self.judge(Stage::Accumulate);
        }
    }

    /// The same step on the same device gave other bits: that is evidence, whatever else is found.
    fn compare_evidence(&mut self) {
        let Some(run) = self.run.as_ref() else { return };
        let attempt = run.attempt;
        let pairs = self.trial.digests.iter().zip(&run.accumulated).zip(&self.seats);
        let found = pairs.filter_map(|((before, now), seat)| {
            let (device, before) = (*before)?;
            let now = now.as_ref()?.gradients?;
            (device == seat.device && before != now).then_some((before, now))
        });
        let found: Vec<_> = found.collect();
        for (before, now) in found {
            self.record(Entry::Evidence { attempt, before: Some(before), now: Some(now) });
        }
    }

    /// Asks for `update`, unless something still reads what it would overwrite.
    pub(super) fn try_update(&mut self) {
        if self.update_is_held() {
            if let Some(run) = self.run.as_mut() {
                run.clean = false;
            }
            return;
        }
        let (now, limit) = (self.now, self.limit());
        let Some(run) = self.run.as_mut() else { return };
        run.range_started = now;
        run.deadline = now + limit;
        let attempt = run.attempt;
        self.torn = self.setup.home == StateHome::SharedInPlace;
        self.previous_whole = false;
        self.phase = Phase::Updating;
        for rank in self.ranks() {
            if let Some(worker) = self.worker(rank) {
                self.act(Action::Update { worker, attempt });
            }
        }
    }

    pub(super) fn updated(&mut self, worker: Worker, attempt: Attempt, result: Updated) {
        if !self.belongs(worker, attempt, Phase::Updating) {
            return;
        }
        let now = self.now;
        let Some(run) = self.run.as_mut() else { return };
        let rank = usize::from(worker.rank.0);
        run.seconds[rank] += now.saturating_sub(run.range_started).as_secs_f64();
        run.updated[rank] = Some(result);
        let missing = run.updated.iter().filter(|vote| vote.is_none()).count();
        let enough = self.is(Mutant::MissingVote) && self.setup.ranks > 1 && missing == 1;
        if missing == 0 || enough {
            self.judge(Stage::Update);
        }
    }

    /// All ranks voted and nothing is wrong.
    pub(super) fn commit(&mut self) {
        let Some(run) = self.run.take() else { return };
        let fallback = Digest(0);
        let states: Vec<Digest> =
            run.updated.iter().map(|vote| vote.as_ref().map_or(fallback, |vote| vote.state)).collect();
        if self.is(Mutant::CheckpointUnverified) && self.checkpoint_is_due(self.committed + 1) {
            self.act(Action::Checkpoint { step: self.committed + 1, states: states.clone() });
        }
        self.act(Action::Commit { attempt: run.attempt });
        self.record(Entry::Committed { attempt: run.attempt, states: states.clone() });
        self.advance(states);
        self.torn = false;
        self.previous_whole = self.setup.home == StateHome::SharedDouble;
        let losses = run.accumulated.iter().flatten().map(|result| result.loss);
        self.loss.commit(losses.sum::<f64>() / run.accumulated.len().max(1) as f64);
        let norms = run.updated.iter().flatten().map(|result| result.gradient_norm);
        if let Some(norm) = norms.max_by(f64::total_cmp) {
            self.norm.commit(norm);
        }
        self.phase = Phase::Border;
        if run.clean {
            self.measure(&run);
        }
        for rank in self.ranks() {
            self.keep_standby(rank);
        }
    }

    /// One step more is committed.
    fn advance(&mut self, states: Vec<Digest>) {
        let step = self.committed + 1;
        self.committed = step;
        self.counters.steps_committed += 1;
        let elapsed = self.now.saturating_sub(self.last_commit).as_secs_f64();
        let typical = self.typical_seconds().unwrap_or(0.0);
        if step <= self.farthest {
            self.counters.seconds_lost += elapsed;
        } else if self.disturbed {
            self.counters.seconds_lost += (elapsed - typical).max(0.0);
        }
        self.farthest = self.farthest.max(step);
        self.last_commit = self.now;
        self.disturbed = false;
        self.link(step, states);
        self.trial = self.trials.remove(&step).unwrap_or_else(|| Trial::of(self.setup.ranks));
        for seat in &mut self.seats {
            seat.holds = Some(step);
        }
        self.forgive();
    }

    /// The slowest rank's median step time, in seconds.
    pub(super) fn typical_seconds(&self) -> Option<f64> {
        let devices = self.seats.iter().filter_map(|seat| self.step_seconds(seat.device));
        devices.max_by(f64::total_cmp)
    }

    /// Takes the step's times in, and tells a device that became slow.
    fn measure(&mut self, run: &Run) {
        let rule = self.policy.slow.clone();
        let mut seen = Vec::new();
        for (rank, seconds) in self.ranks().zip(run.seconds.iter().copied()) {
            let Some(device) = self.seat(rank).map(|seat| seat.device) else { continue };
            if seen.contains(&device) {
                continue;
            }
            seen.push(device);
            let Some(known) = self.devices.get_mut(usize::from(device.0)) else { continue };
            let median = known.pace.median().filter(|median| *median > 0.0 && known.pace.len() > MEASURED);
            known.pace.push(seconds);
            let factor = median.map_or(1.0, |median| seconds / median);
            known.slow = if factor >= rule.factor { known.slow + 1 } else { 0 };
            if known.slow != rule.in_a_row {
                continue;
            }
            let table = self.remedy(device, FaultClass::Slow);
            let moves = matches!(table, Some(Remedy::FailOver | Remedy::Quarantine));
            let moves = moves && self.other(device).is_some();
            let action = if moves { Remedy::FailOver.name() } else { "recorded" };
            self.fault(rank, FaultKind::Slow { factor }, None, action);
            if moves {
                self.quarantine(device, &format!("{factor:.2} times its median"));
            } else if table == Some(Remedy::Stop) {
                self.end(StopReason::Policy { class: FaultClass::Slow.name().into() });
            }
        }
    }

    /// Leaves the batch of the step out.
    pub(super) fn skip(&mut self) {
        let step = self.committed;
        self.act(Action::Skip { step });
        self.counters.batches_skipped += 1;
        if !self.is(Mutant::SilentSkip) {
            let class = self.trial.class.map_or("the policy", FaultClass::name);
            self.record(Entry::BatchSkipped { step, reason: class.into() });
        }
        let states = self.states().to_vec();
        self.advance(states);
        self.previous_whole = false;
    }

    /// A step that takes too long: whoever did not answer hangs.
    pub(super) fn late_step(&mut self, progress: &[(Worker, Option<Place>)]) {
        let Some(run) = self.run.as_ref() else { return };
        if run.deadline > self.now || self.is(Mutant::ForgetDeadline) {
            return;
        }
        let silent: Vec<bool> = match self.phase {
            Phase::Accumulating => run.accumulated.iter().map(Option::is_none).collect(),
            Phase::Updating => run.updated.iter().map(Option::is_none).collect(),
            _ => return,
        };
        let waited_ms = self.now.saturating_sub(run.range_started).as_millis() as u64;
        let kind = FaultKind::Hang { waited_ms };
        for rank in self.ranks().zip(silent).filter_map(|(rank, silent)| silent.then_some(rank)) {
            // With the device of the first, others may have lost their workers already.
            let Some(worker) = self.worker(rank) else { continue };
            let place = progress.iter().find(|(who, _)| *who == worker);
            self.active_failed(rank, kind.clone(), place.and_then(|(_, place)| place.clone()));
        }
    }
}
