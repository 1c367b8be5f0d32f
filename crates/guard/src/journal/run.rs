//! A whole run, read from its folder.

use super::timeline::{self, Segment};
use super::{
    BadLine, FaultRecord, JOURNAL_VERSION, JournalIdentity, Ledger, LogLine, Record, What, one_line,
    read_lines,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toprope_world::{FileError, World, parse_utc_timestamp};

const JOURNAL_FILE: &str = "journal.jsonl";
const METRICS_FILE: &str = "metrics.jsonl";
const LOCK_FILE: &str = "run.lock";

/// Why a run's folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is no journal.
    #[error("{} is no run's folder: it has no {JOURNAL_FILE}\nhint: name the folder that `train` printed as `run folder`", folder.display())]
    NotARun {
        /// The folder.
        folder: PathBuf,
    },
    /// No line of the journal can be understood.
    #[error("{}: not a run's journal: no line names the run (`run_id`); {reason}\nhint: put the run's own journal back, or name another folder", path.display())]
    NotAJournal {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// Lines of two runs.
    #[error("{}: line {line} is of run {found}, and the journal began as run {expected}\nhint: two runs' journals were mixed; put the run's own journal back", path.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The run that it names.
        found: String,
        /// The run that the first line names.
        expected: String,
    },
    /// A newer Toprope wrote it.
    #[error("{}: line {line} has journal version {found}, written by toprope {by}; this one reads versions up to {JOURNAL_VERSION}\nhint: use toprope {by} or newer", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// Its version.
        found: u64,
        /// Who wrote it.
        by: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Files(#[from] FileError),
}

/// One committed step, from the metrics.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// The step, counted from 0, as in the ledger.
    pub step: u64,
    /// The process.
    pub attempt: u64,
    /// When it was committed, since 1970.
    pub time: Option<Duration>,
    /// The loss; none where it was not finite.
    pub loss: Option<f64>,
    /// Tokens.
    pub tokens: u64,
    /// Wall time.
    pub seconds: f64,
}

/// One process that worked on the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub attempt: u64,
    /// Its process number on its machine.
    pub process: u64,
    /// When it began, since 1970.
    pub began: Option<Duration>,
    /// When it began to train.
    pub started: Option<Duration>,
    /// When it wrote its last line but `end`: what comes after training is not part of its time.
    pub last: Option<Duration>,
    /// The state that it began with, in committed steps.
    pub from: Option<u64>,
    /// Its devices, the primary first.
    pub devices: Vec<String>,
    /// The level of its checks, where it says so.
    pub checks: Option<String>,
    /// Whether it ended in order.
    pub ended: bool,
    /// Whether somebody asked it to stop.
    pub interrupted: bool,
    /// Why the guard stopped.
    pub stop_reason: Option<String>,
}

/// What the checks did, where the run measured it (fields of the metrics' lines).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CheckTotals {
    /// Steps that were measured.
    pub steps: u64,
    /// Checks that fired.
    pub checks: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Seconds of those steps in all.
    pub step_seconds: f64,
}

/// Whether somebody works on the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// A process works on it.
    Running {
        /// Its number.
        process: u64,
    },
    /// All of its steps are done.
    Done,
    /// It was stopped in order.
    Stopped {
        /// Why.
        reason: String,
    },
    /// Its process ended without a word: killed, or the machine went down.
    Died,
}

/// A run, as its folder tells it.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// The folder.
    pub folder: PathBuf,
    /// The run's name.
    pub run_id: String,
    /// The Toprope that wrote last.
    pub version: String,
    /// Whether somebody works on it.
    pub state: RunState,
    /// The processes, in order.
    pub attempts: Vec<AttemptRecord>,
    /// Which batch was committed by whom.
    pub ledger: Ledger,
    /// The steps that count, in order, from the metrics.
    pub steps: Vec<StepRecord>,
    /// The faults, in order.
    pub faults: Vec<FaultRecord>,
    /// What each device was doing when.
    pub timeline: Vec<Segment>,
    /// Durable checkpoints: committed steps, and when.
    pub checkpoints: Vec<(u64, Option<Duration>)>,
    /// Executions that were given up before they were committed.
    pub retried: u64,
    /// Seconds from faults to their ends.
    pub recovery_seconds: f64,
    /// The newest choice of a snapshot interval: steps, and seconds of a snapshot, of a step, between faults.
    pub snapshot_interval: Option<(u64, f64, f64, f64)>,
    /// What the checks cost.
    pub checks: CheckTotals,
    /// Seconds of committed steps that were taken back and so count for nothing.
    pub redone_seconds: f64,
    /// Other lines for people: line, event and words.
    pub notes: Vec<(u64, String, String)>,
    /// Lines that were passed over, and why.
    pub bad_lines: Vec<BadLine>,
}

impl RunRecord {
    /// Reads a run's folder, live or ended. Writes nothing and takes no lock.
    ///
    /// # Errors
    /// It is no run's folder, its journal is another run's or of a newer version, or a file cannot be read. Torn and
    /// damaged lines are no errors: they are in `bad_lines`.
    pub fn read(world: &dyn World, folder: &Path) -> Result<RunRecord, JournalError> {
        let files = world.files();
        let path = folder.join(JOURNAL_FILE);
        if files.inspect(&path)?.is_none() {
            return Err(JournalError::NotARun { folder: folder.to_owned() });
        }
        let mut reader = Reader::new(&path);
        let bad = read_lines(files, &path, |line| reader.line(line))?;
        let mut run = reader.finish(folder, bad)?;
        run.read_metrics(world)?;
        run.state = run.state_now(world);
        run.timeline = timeline::close(std::mem::take(&mut run.timeline), &run.attempts);
        Ok(run)
    }

    /// The devices of all attempts by name, each once, in the order in which they appear.
    pub fn devices(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let told = self.attempts.iter().flat_map(|attempt| &attempt.devices);
        for name in told.chain(self.faults.iter().map(|fault| &fault.device)) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Committed steps.
    pub fn committed_steps(&self) -> u64 {
        let measured = self.steps.last().map_or(0, |step| step.step.saturating_add(1));
        if self.ledger.is_kept() { self.ledger.steps() } else { measured }
    }

    fn read_metrics(&mut self, world: &dyn World) -> Result<(), FileError> {
        let mut steps: BTreeMap<u64, StepRecord> = BTreeMap::new();
        let mut checks = CheckTotals::default();
        let mut redone_seconds = 0.0;
        let attempts = &mut self.attempts;
        let bad = read_lines(world.files(), &self.folder.join(METRICS_FILE), |line| {
            let Some(record) = step_record(line) else { return };
            let count = |name: &str| line.value.get(name).and_then(Value::as_u64);
            if let Some(seconds) = line.value.get("check_seconds").and_then(Value::as_f64) {
                checks.steps += 1;
                checks.checks += count("checks").unwrap_or(0);
                checks.seconds += seconds;
                checks.step_seconds += record.seconds;
            }
            if let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.attempt == record.attempt) {
                attempt.last = attempt.last.max(record.time);
            }
            // A step that was done again counts as it was done last.
            let older = steps.get(&record.step).is_none_or(|there| there.attempt <= record.attempt);
            let seconds = record.seconds;
            let void = if older {
                steps.insert(record.step, record).map(|void| void.seconds)
            } else {
                Some(seconds)
            };
            redone_seconds += void.unwrap_or(0.0);
        })?;
        self.bad_lines.extend(bad);
        self.checks = checks;
        // What was taken back and not yet done again does not count.
        let end = if self.ledger.is_kept() { self.ledger.steps() } else { u64::MAX };
        let (counted, void): (Vec<_>, Vec<_>) = steps.into_values().partition(|step| step.step < end);
        self.steps = counted;
        self.redone_seconds = redone_seconds + void.iter().map(|step| step.seconds).sum::<f64>();
        Ok(())
    }

    /// The lock names the process that took it last; that process is asked for by its number, because to try the lock
    /// could take it from a run that is about to begin.
    fn state_now(&self, world: &dyn World) -> RunState {
        let Some(last) = self.attempts.last() else { return RunState::Died };
        if last.interrupted {
            return RunState::Stopped { reason: "requested".to_owned() };
        }
        match last.stop_reason.as_deref() {
            Some("done") | None => {}
            Some(reason) => return RunState::Stopped { reason: reason.to_owned() },
        }
        if last.ended {
            return RunState::Done;
        }
        let text = world.files().read(&self.folder.join(LOCK_FILE), 64).unwrap_or_default();
        let holder = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<u32>().ok());
        match holder {
            Some(pid) if u64::from(pid) == last.process && world.processes().is_alive(pid) => {
                RunState::Running { process: u64::from(pid) }
            }
            _ if last.stop_reason.is_some() => RunState::Done,
            _ => RunState::Died,
        }
    }
}

fn step_record(line: &LogLine) -> Option<StepRecord> {
    let number =
        |name: &str| line.value.get(name).and_then(Value::as_f64).filter(|number| number.is_finite());
    let count = |name: &str| line.value.get(name).and_then(Value::as_u64);
    Some(StepRecord {
        // The metrics count the steps that are done, the ledger from 0.
        step: count("step")?.checked_sub(1)?,
        attempt: line.attempt(),
        time: line.value.get("time").and_then(Value::as_str).and_then(parse_utc_timestamp),
        loss: number("loss"),
        tokens: count("tokens").unwrap_or(0),
        seconds: number("seconds").filter(|seconds| *seconds >= 0.0)?,
    })
}

/// Takes the journal's lines in.
struct Reader {
    path: PathBuf,
    records: Vec<Record>,
    not_understood: Vec<BadLine>,
    identity: JournalIdentity,
}

impl Reader {
    fn new(path: &Path) -> Reader {
        Reader {
            path: path.to_owned(),
            records: Vec::new(),
            not_understood: Vec::new(),
            identity: JournalIdentity::default(),
        }
    }

    fn line(&mut self, line: &LogLine) {
        self.identity.line(line);
        match Record::of_line(line) {
            Ok(record) => self.records.push(record),
            Err(reason) => self.not_understood.push(BadLine {
                path: self.path.clone(),
                number: line.number,
                offset: line.offset,
                reason,
            }),
        }
    }

    fn finish(self, folder: &Path, bad: Vec<BadLine>) -> Result<RunRecord, JournalError> {
        let version = self.identity.version.clone().unwrap_or_else(|| "unknown".to_owned());
        let Some(run_id) = self.identity.run_id(&self.path)? else {
            let first = bad.first().or(self.not_understood.first());
            let reason = first.map_or_else(
                || "it has no such line".to_owned(),
                |line| format!("line {}: {}", line.number, line.reason),
            );
            return Err(JournalError::NotAJournal { path: self.path, reason: one_line(&reason) });
        };
        let mut run = RunRecord {
            folder: folder.to_owned(),
            run_id,
            version,
            state: RunState::Died,
            attempts: Vec::new(),
            ledger: Ledger::default(),
            steps: Vec::new(),
            faults: Vec::new(),
            timeline: Vec::new(),
            checkpoints: Vec::new(),
            retried: 0,
            recovery_seconds: 0.0,
            snapshot_interval: None,
            checks: CheckTotals::default(),
            redone_seconds: 0.0,
            notes: Vec::new(),
            bad_lines: bad,
        };
        run.bad_lines.extend(self.not_understood);
        run.bad_lines.sort_by_key(|line| line.number);
        let mut damaged = run.bad_lines.iter().map(|line| line.number).peekable();
        for record in self.records {
            while let Some(line) = damaged.next_if(|line| *line < record.line) {
                run.ledger.damaged(line);
            }
            run.ledger.apply(&record);
            apply(
                &mut Parts {
                    attempts: &mut run.attempts,
                    faults: &mut run.faults,
                    timeline: &mut run.timeline,
                    checkpoints: &mut run.checkpoints,
                    retried: &mut run.retried,
                    recovery_seconds: &mut run.recovery_seconds,
                    snapshot_interval: &mut run.snapshot_interval,
                    notes: &mut run.notes,
                },
                record,
            );
        }
        for line in damaged {
            run.ledger.damaged(line);
        }
        Ok(run)
    }
}

/// What a line adds to, beside the ledger.
struct Parts<'a> {
    attempts: &'a mut Vec<AttemptRecord>,
    faults: &'a mut Vec<FaultRecord>,
    timeline: &'a mut Vec<Segment>,
    checkpoints: &'a mut Vec<(u64, Option<Duration>)>,
    retried: &'a mut u64,
    recovery_seconds: &'a mut f64,
    snapshot_interval: &'a mut Option<(u64, f64, f64, f64)>,
    notes: &'a mut Vec<(u64, String, String)>,
}

fn apply(run: &mut Parts<'_>, record: Record) {
    if let What::Begin { process, .. } = &record.what {
        let (attempt, process) = (record.attempt, *process);
        run.attempts.push(AttemptRecord {
            attempt,
            process,
            began: record.time,
            last: record.time,
            ..AttemptRecord::default()
        });
    }
    let mut unnamed = AttemptRecord::default();
    let attempt = run.attempts.iter_mut().rev().find(|attempt| attempt.attempt == record.attempt);
    let attempt = attempt.unwrap_or(&mut unnamed);
    if !matches!(record.what, What::End { .. }) {
        attempt.last = attempt.last.max(record.time);
    }
    timeline::apply(run.timeline, attempt, &record);
    match record.what {
        What::Begin { .. } => {}
        What::Start { step, devices, checks } => {
            attempt.started = record.time;
            attempt.from = Some(step);
            attempt.devices = devices;
            attempt.checks = checks;
        }
        What::Fault(mut fault) => {
            fault.name_device(&attempt.devices);
            if let Some(seconds) = fault.cost_seconds {
                *run.recovery_seconds += seconds;
            }
            run.faults.push(*fault);
        }
        What::Recovered { seconds, steps_redone, .. } => {
            *run.recovery_seconds += seconds;
            // One recovery ends all that went wrong before it; the first of them bears the whole cost, so that costs sum
            // to what was lost.
            let open = run
                .faults
                .iter_mut()
                .filter(|fault| fault.attempt == record.attempt && fault.cost_seconds.is_none());
            for (index, fault) in open.enumerate() {
                fault.cost_seconds = Some(if index == 0 { seconds } else { 0.0 });
                fault.steps_redone = (index == 0).then_some(steps_redone);
            }
        }
        What::Retried { .. } => *run.retried += 1,
        What::Checkpoint { step } => run.checkpoints.push((step, record.time)),
        What::SnapshotInterval { steps, snapshot_seconds, step_seconds, fault_seconds } => {
            *run.snapshot_interval = Some((steps, snapshot_seconds, step_seconds, fault_seconds));
        }
        What::Stopped { reason, .. } => attempt.stop_reason = Some(reason),
        What::End { interrupted, .. } => {
            attempt.ended = true;
            attempt.interrupted = interrupted;
        }
        What::Note { event, text, .. } => run.notes.push((record.line, event, text)),
        _ => {}
    }
}
