//! Where the time went: goodput, and what took the rest.
//!
//! Goodput is the time that the committed steps take at the primary's clean speed, over wall time. The clean speed is
//! the median of the steps that the primary committed without a fault in them. Wall time runs from the first training
//! step's start to the last line before `end`; the time between two processes counts where the first of them died, and
//! does not where somebody had asked it to stop.

use super::RunRecord;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use toprope_program::FaultClass;

/// Where a run's wall time went. The parts sum to `wall_seconds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Accounts {
    /// All of it.
    pub wall_seconds: f64,
    /// A step on the primary when nothing fails; none before the first.
    pub clean_step_seconds: Option<f64>,
    /// Committed steps at that speed.
    pub productive_seconds: f64,
    /// What committed steps took beyond it: slower devices, checks, snapshots, noise.
    pub slower_seconds: f64,
    /// From faults to their ends: as the journal says, or by what the steps took that they fell into, where that is more.
    pub recovery_seconds: f64,
    /// Steps that were committed, taken back and done again.
    pub redone_seconds: f64,
    /// Between a process that died and the next one's first step.
    pub down_seconds: f64,
    /// The rest: checkpoints, evaluation, data.
    pub other_seconds: f64,
    /// `productive_seconds / wall_seconds`; none where nothing was measured.
    pub goodput: Option<f64>,
}

/// What the guard did, for `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GuardSummary {
    /// Faults by class; all nine are there.
    pub faults: BTreeMap<&'static str, u64>,
    /// How many of them were injected on purpose.
    pub faults_injected: u64,
    /// Devices, in order of appearance.
    pub devices: Vec<DeviceSummary>,
    /// Batches in no committed step; none where the run had no guard and keeps no ledger.
    pub batches_lost: Option<u64>,
    /// Batches in two; as above.
    pub batches_doubled: Option<u64>,
    /// Executions beyond the one that counts: given up before they were committed, or taken back afterwards.
    pub steps_redone: u64,
    /// Recovery, steps taken back, and time in which no process was there.
    pub seconds_lost: f64,
    /// Committed-step time at the primary's clean speed / wall time; at most 1 but for steps that are faster than
    /// their median.
    pub goodput: Option<f64>,
}

/// One device of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceSummary {
    /// Its name.
    pub name: String,
    /// Steps that it took part in and that count.
    pub steps: u64,
    /// Its faults.
    pub faults: u64,
}

impl Accounts {
    /// Of a run so far.
    pub fn of(run: &RunRecord) -> Accounts {
        let faulty: BTreeSet<u64> = run.faults.iter().map(|fault| fault.step).collect();
        let primary = run
            .attempts
            .iter()
            .rev()
            .find_map(|attempt| attempt.devices.first())
            .cloned()
            .unwrap_or_default();
        let on_primary = |step: u64| {
            run.ledger.commit_of(step).is_none_or(|commit| commit.devices.iter().all(|name| *name == primary))
        };
        let clean = |only_primary: bool| {
            let steps = run.steps.iter().filter(|step| !faulty.contains(&step.step));
            let steps = steps.filter(|step| !only_primary || on_primary(step.step));
            median(steps.map(|step| step.seconds).collect())
        };
        let clean_step_seconds = clean(true).or_else(|| clean(false));
        let (wall_seconds, down_seconds) = wall(run);
        let speed = clean_step_seconds.unwrap_or(0.0);
        let productive_seconds = speed * run.steps.len() as f64;
        let whole = run.steps.iter().filter(|step| !faulty.contains(&step.step));
        let slower_seconds = whole.map(|step| step.seconds - speed).sum::<f64>().max(0.0);
        // A step that a fault fell into also holds the time until it was noticed, such as a hang's deadline.
        let struck = run.steps.iter().filter(|step| faulty.contains(&step.step));
        let noticed = struck.map(|step| (step.seconds - speed).max(0.0)).sum::<f64>();
        let recovery_seconds = run.recovery_seconds.max(noticed);
        let redone_seconds = run.redone_seconds;
        let told = productive_seconds + slower_seconds + recovery_seconds + redone_seconds + down_seconds;
        Accounts {
            wall_seconds: wall_seconds.max(told),
            clean_step_seconds,
            productive_seconds,
            slower_seconds,
            recovery_seconds,
            redone_seconds,
            down_seconds,
            other_seconds: (wall_seconds - told).max(0.0),
            goodput: (wall_seconds > 0.0 && clean_step_seconds.is_some())
                .then(|| productive_seconds / wall_seconds.max(told)),
        }
    }

    /// The parts by name, in the order in which they are shown.
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("committed steps at clean speed", self.productive_seconds),
            ("slower steps and checks", self.slower_seconds),
            ("recovery from faults", self.recovery_seconds),
            ("steps taken back", self.redone_seconds),
            ("no process there", self.down_seconds),
            ("checkpoints, evaluation, data", self.other_seconds),
        ]
    }
}

impl GuardSummary {
    /// Of a run so far.
    pub fn of(run: &RunRecord) -> GuardSummary {
        let mut faults: BTreeMap<&'static str, u64> =
            FaultClass::ALL.iter().map(|class| (class.name(), 0)).collect();
        for fault in &run.faults {
            *faults.entry(fault.class.name()).or_default() += 1;
        }
        let devices = run.devices().into_iter().map(|name| DeviceSummary {
            steps: run.ledger.commits().filter(|commit| commit.devices.contains(&name)).count() as u64,
            faults: run.faults.iter().filter(|fault| fault.device == name).count() as u64,
            name,
        });
        let accounts = Accounts::of(run);
        let proof = run.ledger.prove();
        let kept = run.ledger.is_kept();
        GuardSummary {
            faults,
            faults_injected: run.faults.iter().filter(|fault| fault.injected).count() as u64,
            devices: devices.collect(),
            batches_lost: kept.then_some(proof.batches_lost),
            batches_doubled: kept.then_some(proof.batches_doubled),
            steps_redone: proof.taken_back + run.retried,
            seconds_lost: accounts.recovery_seconds + accounts.redone_seconds + accounts.down_seconds,
            goodput: accounts.goodput,
        }
    }
}

/// Wall time in seconds, and how much of it no process was there.
fn wall(run: &RunRecord) -> (f64, f64) {
    let (mut wall, mut down) = (0.0, 0.0);
    // When the process before died, where it did.
    let mut died: Option<Duration> = None;
    for attempt in &run.attempts {
        let Some((started, last)) = attempt.started.zip(attempt.last) else { continue };
        wall += last.saturating_sub(started).as_secs_f64();
        let gap = died.map_or(0.0, |died| started.saturating_sub(died).as_secs_f64());
        wall += gap;
        down += gap;
        let in_order = attempt.ended || attempt.stop_reason.is_some();
        died = (!in_order).then_some(last);
    }
    (wall, down)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
