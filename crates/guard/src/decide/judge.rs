//! Alarms: replayed on the same device, confirmed on another one, and only then is anybody blamed.

use super::{
    Action, Alarm, Attempt, DeviceIndex, Entry, FaultClass, FaultKind, Finding, Guard, Mutant, Phase, Place,
    Rank, StopReason, Suspect, Worker,
};
use crate::policy::{BadData, Remedy};
use std::collections::VecDeque;
use std::time::Duration;
use toprope_program::Range;

/// After which range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Accumulate,
    Update,
}

impl Stage {
    fn range(self) -> Range {
        match self {
            Stage::Accumulate => Range::Accumulate,
            Stage::Update => Range::Update,
        }
    }
}

/// What is said to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// An operator's result.
    Compute,
    /// A number that is none, for the second time.
    NonFinite,
    /// A metric that jumped.
    Spike,
}

#[derive(Clone, Debug)]
struct Case {
    rank: Rank,
    what: What,
    kind: FaultKind,
    place: Option<Place>,
}

/// Alarms of one range that are looked into, one after the other.
#[derive(Debug)]
pub(super) struct Judgement {
    stage: Stage,
    attempt: Attempt,
    cases: VecDeque<Case>,
    /// What the replay found, once it did; then another device is asked.
    replay: Option<Finding>,
    confirming: bool,
    pub(super) deadline: Duration,
}

/// The action of a fault whose operator runs elsewhere from then on.
const MOVES: &str = "move_operator";

/// How often "it could not be told" is met by computing again.
const UNKNOWN: u32 = 3;

impl Guard {
    /// All ranks answered: finds what is wrong with the answers, and what to do about the worst of it.
    pub(super) fn judge(&mut self, stage: Stage) {
        let skip = match stage {
            Stage::Accumulate => Mutant::UpdateBeforeVerdict,
            Stage::Update => Mutant::CommitBeforeVerify,
        };
        if self.is(skip) {
            self.accept(stage);
            return;
        }
        let alarms = self.alarms(stage);
        self.counters.alarms += alarms.len() as u64;
        let of = |suspect| alarms.iter().find(move |(_, alarm)| alarm.suspect == suspect).cloned();
        if let Some((rank, alarm)) = of(Suspect::State) {
            self.state_damaged(rank, alarm.kind, alarm.place);
            return;
        }
        if let Some((rank, alarm)) = of(Suspect::Carried) {
            self.blame(rank, alarm.kind, alarm.place, false);
            return;
        }
        let mut cases = VecDeque::new();
        for (rank, alarm) in alarms {
            let what = match alarm.kind.class() {
                FaultClass::NonFinite => What::NonFinite,
                _ => What::Compute,
            };
            cases.push_back(Case { rank, what, kind: alarm.kind, place: alarm.place });
        }
        if let Some(case) = cases.iter().find(|case| case.what == What::NonFinite).cloned() {
            if !self.trial.non_finite {
                self.blame(case.rank, case.kind, case.place, false);
                self.trial.non_finite = true;
                return;
            }
            cases = VecDeque::from([case]);
        }
        if cases.is_empty()
            && let Some(kind) = self.spike(stage)
        {
            self.counters.alarms += 1;
            cases.extend(self.suspect(stage).map(|rank| Case { rank, what: What::Spike, kind, place: None }));
        }
        let Some(run) = self.run.as_mut() else { return };
        if cases.is_empty() {
            self.accept(stage);
            return;
        }
        run.clean = false;
        let (attempt, deadline) = (run.attempt, self.now);
        self.disturbed = true;
        self.judgement = Some(Judgement { stage, attempt, cases, replay: None, confirming: false, deadline });
        self.phase = Phase::Judging;
        self.next_case();
    }

    /// The alarms of a range by rank, with those that its numbers raise by themselves.
    fn alarms(&self, stage: Stage) -> Vec<(Rank, Alarm)> {
        let Some(run) = self.run.as_ref() else { return Vec::new() };
        let mut all = Vec::new();
        for rank in self.ranks() {
            let index = usize::from(rank.0);
            let (number, name, alarms) = match stage {
                Stage::Accumulate => match run.accumulated.get(index).and_then(Option::as_ref) {
                    Some(result) => (result.loss, "loss", &result.alarms),
                    None => continue,
                },
                Stage::Update => match run.updated.get(index).and_then(Option::as_ref) {
                    Some(result) => (result.gradient_norm, "gradient_norm", &result.alarms),
                    None => continue,
                },
            };
            let blind = self.is(Mutant::AcceptNonFinite);
            let alarms = alarms.iter().filter(|alarm| !blind || alarm.kind.class() != FaultClass::NonFinite);
            let before = all.len();
            all.extend(alarms.cloned().map(|alarm| (rank, alarm)));
            let told = all[before..].iter().any(|(_, alarm)| alarm.kind.class() == FaultClass::NonFinite);
            if !number.is_finite() && !told && !blind {
                let kind = FaultKind::NonFinite { value: name.into() };
                all.push((rank, Alarm { kind, place: None, suspect: Suspect::Compute }));
            }
        }
        all
    }

    fn spike(&self, stage: Stage) -> Option<FaultKind> {
        let run = self.run.as_ref()?;
        let (metric, value, limit) = match stage {
            Stage::Accumulate => {
                let losses = run.accumulated.iter().flatten().map(|result| result.loss);
                let mean = losses.sum::<f64>() / run.accumulated.len().max(1) as f64;
                ("loss", mean, self.loss.exceeded(mean)?)
            }
            Stage::Update => {
                let norms = run.updated.iter().flatten().map(|result| result.gradient_norm);
                let norm = norms.max_by(f64::total_cmp)?;
                ("gradient_norm", norm, self.norm.exceeded(norm)?)
            }
        };
        Some(FaultKind::Spike { metric: metric.into(), value, limit })
    }

    /// The rank with the largest number: the one to ask first about a spike.
    fn suspect(&self, stage: Stage) -> Option<Rank> {
        let run = self.run.as_ref()?;
        let number = |rank: &Rank| {
            let index = usize::from(rank.0);
            match stage {
                Stage::Accumulate => run.accumulated.get(index)?.as_ref().map(|result| result.loss),
                Stage::Update => run.updated.get(index)?.as_ref().map(|result| result.gradient_norm),
            }
        };
        let order =
            |a: &Rank, b: &Rank| number(a).unwrap_or(f64::MIN).total_cmp(&number(b).unwrap_or(f64::MIN));
        self.ranks().max_by(order)
    }

    /// Nothing is wrong with a range's results, as far as can be told.
    fn accept(&mut self, stage: Stage) {
        self.judgement = None;
        match stage {
            Stage::Accumulate => self.phase = Phase::Holding,
            Stage::Update => self.commit(),
        }
    }

    /// Looks into the next alarm; where none is left, the results are accepted.
    fn next_case(&mut self) {
        let limit = self.limit();
        let Some(judgement) = self.judgement.as_mut() else { return };
        judgement.replay = None;
        judgement.confirming = false;
        let stage = judgement.stage;
        let Some(case) = judgement.cases.front().cloned() else {
            self.accept(stage);
            return;
        };
        if case.what == What::NonFinite {
            // It came twice on this device: that is its replay.
            judgement.replay = Some(Finding::Agrees);
            self.ask_another();
            return;
        }
        let attempt = judgement.attempt;
        judgement.deadline = self.now + limit;
        if let Some(worker) = self.worker(case.rank) {
            self.act(Action::Replay { worker, attempt, range: stage.range(), place: case.place });
        }
    }

    fn ask_another(&mut self) {
        let limit = Duration::from_secs_f64(self.policy.confirm_limit_seconds);
        let now = self.now;
        let Some(judgement) = self.judgement.as_mut() else { return };
        let Some(case) = judgement.cases.front().cloned() else { return };
        judgement.confirming = true;
        judgement.deadline = now + limit;
        let (attempt, range) = (judgement.attempt, judgement.stage.range());
        let device = self.seat(case.rank).and_then(|seat| self.other(seat.device));
        if let Some(worker) = self.worker(case.rank) {
            self.act(Action::Confirm { worker, attempt, range, place: case.place, device });
        }
    }

    pub(super) fn replayed(&mut self, worker: Worker, attempt: Attempt, finding: Finding) {
        let Some(judgement) = self.judgement.as_mut() else { return };
        let asked = judgement.cases.front().is_some_and(|case| case.rank == worker.rank);
        if !asked || judgement.confirming || judgement.attempt != attempt {
            return;
        }
        judgement.replay = Some(finding);
        let case = judgement.cases.front().cloned();
        if !self.is_active(worker) {
            return;
        }
        if finding == Finding::StateDamaged && !self.is(Mutant::BlindToDamage) {
            self.damage_found(worker.rank);
            return;
        }
        let transient =
            finding == Finding::Differs || (finding == Finding::Agrees && self.is(Mutant::AgreesIsTransient));
        match case {
            Some(case) if transient => {
                self.verdict(attempt, "transient", "run again on the same device it gives other bits".into());
                self.blame(case.rank, case.kind, case.place, false);
            }
            _ => self.ask_another(),
        }
    }

    pub(super) fn confirmed(
        &mut self,
        attempt: Attempt,
        device: Option<DeviceIndex>,
        other_chip: bool,
        finding: Finding,
    ) {
        let Some(judgement) = self.judgement.as_mut() else { return };
        if !judgement.confirming || judgement.attempt != attempt {
            return;
        }
        let replay = judgement.replay;
        let Some(case) = judgement.cases.pop_front() else { return };
        if finding == Finding::StateDamaged && !self.is(Mutant::BlindToDamage) {
            self.damage_found(case.rank);
            return;
        }
        let name = device.and_then(|device| self.setup.devices.get(usize::from(device.0)));
        let name = name.cloned().unwrap_or_else(|| "no other device".into());
        let chip = if other_chip {
            String::new()
        } else {
            ", which shares the chip: the hardware is neither blamed nor cleared".into()
        };
        let agrees = finding == Finding::Agrees
            || (finding == Finding::Differs && self.is(Mutant::DiffersIsAgreement));
        match (finding, case.what) {
            (Finding::Unknown | Finding::StateDamaged, _) => self.untold(case, attempt, &name),
            (_, What::Compute) if agrees => {
                self.counters.false_alarms += 1;
                self.verdict(attempt, "false_alarm", format!("{} agrees with {name}{chip}", case.kind));
                self.next_case();
            }
            (_, What::Spike) if agrees => {
                self.counters.data_alarms += 1;
                self.verdict(attempt, "data", format!("{}; {name} finds the same{chip}", case.kind));
                self.next_case();
            }
            (_, What::NonFinite) if agrees => {
                self.counters.data_alarms += 1;
                self.verdict(attempt, "data", format!("{} on {name} too{chip}", case.kind));
                self.bad_data();
            }
            _ if replay == Some(Finding::Agrees) => {
                let detail = format!("it repeats, and {name} gives other values{chip}");
                self.verdict(attempt, "persistent", detail);
                self.blame(case.rank, case.kind, case.place, true);
            }
            _ => {
                let detail = format!("{name} gives other values{chip}; it could not be run again");
                self.verdict(attempt, "unknown", detail);
                self.blame(case.rank, case.kind, case.place, false);
            }
        }
    }

    fn verdict(&mut self, attempt: Attempt, verdict: &str, detail: String) {
        self.record(Entry::Judged { attempt, verdict: verdict.into(), detail });
    }

    /// It could not be told what an alarm is: neither blames nor clears. The step is run again; where that does not help, a
    /// spike is committed, for it may be the data's, and a failed check leads elsewhere or to the end.
    fn untold(&mut self, case: Case, attempt: Attempt, name: &str) {
        self.trial.unknown += 1;
        let device = self.seat(case.rank).map(|seat| seat.device);
        let class = case.kind.class();
        let detail = format!("{}; {name} could not tell", case.kind);
        self.verdict(attempt, "unknown", detail);
        self.trial.class = Some(class);
        if case.what == What::Spike && self.trial.unknown > 1 {
            self.next_case();
            return;
        }
        if self.trial.unknown < UNKNOWN {
            self.fault(case.rank, case.kind, case.place, Remedy::Retry.name());
            self.trial.evidence = true;
            self.retry();
            return;
        }
        let elsewhere = device.filter(|_| self.devices.len() > 1);
        match elsewhere {
            _ if case.what == What::NonFinite => self.bad_data(),
            Some(device) => {
                self.fault(case.rank, case.kind, case.place, Remedy::FailOver.name());
                self.quarantine(device, &format!("{class} came {UNKNOWN} times and could not be told"));
            }
            None => {
                self.fault(case.rank, case.kind, case.place, Remedy::Stop.name());
                self.retry();
                self.end(StopReason::Policy { class: class.name().into() });
            }
        }
    }

    /// A device's fault in a step: the step is given up, and the table says what else is done.
    pub(super) fn blame(&mut self, rank: Rank, kind: FaultKind, place: Option<Place>, persistent: bool) {
        let Some(device) = self.seat(rank).map(|seat| seat.device) else { return };
        let class = kind.class();
        let table = self.remedy(device, class).unwrap_or(Remedy::Retry);
        let settled = matches!(table, Remedy::Stop | Remedy::Quarantine);
        if let Some(operator) = place.as_ref().map(|place| place.operator.clone())
            && let Some(to) = self.may_move(device, &operator).filter(|_| persistent && !settled)
        {
            self.fault(rank, kind, place, MOVES);
            self.trial.class = Some(class);
            self.trial.evidence = true;
            return self.move_operator(device, &operator, to);
        }
        let remedy = match table {
            Remedy::Stop | Remedy::Quarantine => table,
            // To compute it again there gives the same again.
            _ if persistent => Remedy::Quarantine,
            Remedy::FailOver if self.other(device).is_none() => Remedy::Retry,
            other => other,
        };
        let reason = if persistent { format!("{kind}, again and again") } else { kind.to_string() };
        self.fault(rank, kind, place, remedy.name());
        self.trial.class = Some(class);
        self.trial.evidence = true;
        match remedy {
            Remedy::Retry => self.retry(),
            Remedy::Restart => self.lose(rank),
            Remedy::RollBack => self.go_back(rank),
            Remedy::Quarantine | Remedy::FailOver => {
                self.retry();
                self.quarantine(device, &reason);
            }
            Remedy::SkipBatch => {
                self.skips.insert(self.committed);
                self.retry();
            }
            Remedy::Stop => {
                self.retry();
                self.end(StopReason::Policy { class: class.name().into() });
            }
        }
    }

    /// What was alarmed about follows from a state that is not the committed one: nothing was computed wrong.
    fn damage_found(&mut self, rank: Rank) {
        let kind = FaultKind::Mismatch { operator: "state".into(), error: 1.0, tolerance: 0.0 };
        self.state_damaged(rank, kind, None);
    }

    /// The committed state of a rank changed at rest: only older bits mend that.
    pub(super) fn state_damaged(&mut self, rank: Rank, kind: FaultKind, place: Option<Place>) {
        let Some(device) = self.seat(rank).map(|seat| seat.device) else { return };
        let class = kind.class();
        let table = self.remedy(device, class);
        let leaves = match table {
            Some(Remedy::Quarantine) => true,
            Some(Remedy::FailOver) => self.other(device).is_some(),
            _ => false,
        };
        let action = if leaves { Remedy::Quarantine } else { Remedy::RollBack };
        let reason = kind.to_string();
        self.fault(rank, kind, place, action.name());
        self.go_back(rank);
        if leaves {
            self.quarantine(device, &reason);
        } else if table == Some(Remedy::Stop) {
            self.end(StopReason::Policy { class: class.name().into() });
        }
    }

    /// The batch gives no numbers, wherever it is computed.
    fn bad_data(&mut self) {
        let class = FaultClass::NonFinite;
        let step = self.committed;
        match self.policy.bad_data {
            BadData::SkipBatch => {
                self.skips.insert(step);
                self.trial.class = Some(class);
                self.retry();
            }
            BadData::RollBack if self.went_back_for != Some(step) => {
                self.went_back_for = Some(step);
                self.go_back(Rank(0));
            }
            BadData::RollBack | BadData::Stop => {
                self.retry();
                self.end(StopReason::Policy { class: class.name().into() });
            }
        }
    }

    /// A replay that is not answered hangs; another device that does not answer cannot tell.
    pub(super) fn late_judgement(&mut self) {
        let Some(judgement) = self.judgement.as_ref() else { return };
        if judgement.deadline > self.now {
            return;
        }
        let (attempt, confirming) = (judgement.attempt, judgement.confirming);
        let Some(rank) = judgement.cases.front().map(|case| case.rank) else { return };
        if confirming {
            self.confirmed(attempt, None, false, Finding::Unknown);
        } else {
            let waited_ms = self.limit().as_millis() as u64;
            self.active_failed(rank, FaultKind::Hang { waited_ms }, None);
        }
    }
}
