//! The ledger: which step, and with it which batch, was committed by which attempt on which device.
//!
//! A step's batch is a function of its number, so a batch is lost where a step below the end has no entry, and doubled
//! where it has two. What makes an entry void:
//!
//! - an attempt that begins from the state of S committed steps (its `start` line) voids what older attempts
//!   committed at steps S and above, also where such a line comes late;
//! - `rolled_back` to S committed steps voids all entries at S and above.

use super::{Record, What};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Commit {
    /// The step, counted from 0; its batch has the same number.
    pub step: u64,
    /// The process, from 1.
    pub attempt: u64,
    /// Which execution within the process.
    pub execution: u64,
    /// The device of each rank, by name.
    #[serde(serialize_with = "as_list")]
    pub devices: Arc<[String]>,
    /// The journal's line.
    pub line: u64,
}

fn as_list<S: Serializer>(devices: &Arc<[String]>, serializer: S) -> Result<S::Ok, S::Error> {
    devices[..].serialize(serializer)
}

/// Why a journal does not prove that each batch was counted once. The first that is found is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "violation", rename_all = "snake_case")]
pub enum Violation {
    /// Steps without an entry.
    Lost {
        /// The first.
        step: u64,
        /// How many from there on in a row.
        count: u64,
    },
    /// A step that was committed while an entry of it stood.
    Doubled {
        /// The entry.
        first: Commit,
        /// The other one.
        second: Commit,
    },
    /// A line in the middle of an attempt cannot be read; nobody knows what it said.
    Damaged {
        /// Its number.
        line: u64,
    },
    /// The run says that it ended at another step than the ledger does.
    Ended {
        /// Steps as the run says.
        said: u64,
        /// Steps as committed.
        committed: u64,
        /// The line that says so.
        line: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Lost { step, count: 1 } => {
                write!(f, "the batch of step {step} is in no committed step")
            }
            Violation::Lost { step, count } => {
                write!(f, "the batches of steps {step} to {} are in no committed step", step + (count - 1))
            }
            Violation::Doubled { first, second } => write!(
                f,
                "the batch of step {} is counted twice: by attempt {} (line {}) and by attempt {} (line {})",
                first.step, first.attempt, first.line, second.attempt, second.line
            ),
            Violation::Damaged { line } => {
                write!(f, "line {line} of the journal is damaged, and what it said is not known")
            }
            Violation::Ended { said, committed, line } => write!(
                f,
                "line {line} says that the run ended after {said} steps, and the ledger has {committed}"
            ),
        }
    }
}

/// What a ledger proves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Steps whose batch was committed once.
    pub committed: u64,
    /// Steps whose batch was left out because the policy says so.
    pub skipped: u64,
    /// Steps below the end that have neither.
    pub batches_lost: u64,
    /// Commits of a step beyond its first.
    pub batches_doubled: u64,
    /// Commits that were taken back, by a resume or a rollback, and so count for nothing.
    pub taken_back: u64,
    /// The first thing that is wrong; none where each batch was counted once.
    pub violation: Option<Violation>,
}

impl Proof {
    /// Whether each batch below the end was counted exactly once, or left out in writing.
    pub fn holds(&self) -> bool {
        self.violation.is_none()
    }
}

/// The ledger of a run, built line by line.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    commits: BTreeMap<u64, Commit>,
    skipped: BTreeMap<u64, u64>,
    doubled: Vec<(Commit, Commit)>,
    taken_back: u64,
    /// Whether a line was seen that only a guard writes.
    kept: bool,
    /// Steps that the state is of by the word of the last start or rollback.
    vouched: u64,
    /// First steps of the attempts.
    starts: BTreeMap<u64, u64>,
    /// Damaged lines, until it shows whether a process died writing them.
    torn: Option<u64>,
    damaged: Option<u64>,
    /// What the run says of its end: steps and line.
    ended: Option<(u64, u64)>,
    /// Devices of the attempt under way, and which serves each rank.
    names: Vec<String>,
    serving: BTreeMap<u64, String>,
    current: Option<Arc<[String]>>,
}

impl Ledger {
    /// Takes a line in. Lines come in the file's order.
    pub fn apply(&mut self, record: &Record) {
        if let Some(line) = self.torn.take() {
            // A process that dies writing a line writes no other: the next one is the next process's first.
            if !matches!(record.what, What::Begin { .. }) {
                self.damaged.get_or_insert(line);
            }
        }
        self.kept |= matches!(
            record.what,
            What::WorkerActive { .. }
                | What::Committed { .. }
                | What::RolledBack { .. }
                | What::BatchSkipped { .. }
                | What::Stopped { .. }
        );
        match &record.what {
            What::Begin { .. } => {
                self.ended = None;
                self.serve(Vec::new());
            }
            What::Start { step, devices, .. } => {
                self.serve(devices.clone());
                self.starts.insert(record.attempt, *step);
                self.vouched = *step;
                self.take_back(*step, |attempt| attempt < record.attempt);
            }
            What::WorkerActive { rank, device, .. } | What::Moved { rank, to: device, .. } => {
                let name = usize::try_from(*device).ok().and_then(|index| self.names.get(index));
                self.serving.insert(*rank, name.cloned().unwrap_or_else(|| format!("device {device}")));
                self.current = None;
            }
            What::Committed { step, execution } => self.commit(record, *step, *execution),
            What::RolledBack { to, .. } => {
                self.vouched = *to;
                self.take_back(*to, |_| true);
            }
            What::BatchSkipped { step } => {
                self.skipped.insert(*step, record.attempt);
            }
            What::Stopped { step, .. } => self.ended = Some((*step, record.line)),
            What::End { steps: Some(steps), .. } => self.ended = Some((*steps, record.line)),
            _ => {}
        }
    }

    /// Takes note of a line that cannot be read.
    pub fn damaged(&mut self, line: u64) {
        if let Some(earlier) = self.torn.replace(line) {
            self.damaged.get_or_insert(earlier);
        }
    }

    /// Whether the run had a guard, which keeps it. Without one there is nothing to prove.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// The entries that count, by step.
    pub fn commits(&self) -> impl Iterator<Item = &Commit> {
        self.commits.values()
    }

    /// The entry of a step.
    pub fn commit_of(&self, step: u64) -> Option<&Commit> {
        self.commits.get(&step)
    }

    /// Steps whose batch was left out on purpose.
    pub fn skipped(&self) -> impl Iterator<Item = u64> {
        self.skipped.keys().copied()
    }

    /// Committed steps: the state is that of so many.
    pub fn steps(&self) -> u64 {
        let last = self.commits.keys().chain(self.skipped.keys()).max();
        last.map_or(0, |step| step.saturating_add(1))
    }

    /// Proves that each batch was counted once, or names the first that was not.
    pub fn prove(&self) -> Proof {
        let steps = self.steps();
        let end = steps.max(self.vouched);
        let present = |step: &u64| self.commits.contains_key(step) || self.skipped.contains_key(step);
        let skipped = self.skipped.keys().filter(|step| !self.commits.contains_key(step)).count() as u64;
        let committed = self.commits.len() as u64;
        let mut proof = Proof {
            committed,
            skipped,
            batches_lost: end - (committed + skipped).min(end),
            batches_doubled: self.doubled.len() as u64,
            taken_back: self.taken_back,
            violation: None,
        };
        proof.violation = if proof.batches_lost > 0 {
            // At most as many steps are looked at as there are entries.
            let first = (0..end).find(|step| !present(step)).unwrap_or(end);
            let commit = self.commits.range(first..).next().map(|(step, _)| *step);
            let skip = self.skipped.range(first..).next().map(|(step, _)| *step);
            let next = commit.into_iter().chain(skip).min();
            Some(Violation::Lost { step: first, count: next.unwrap_or(end) - first })
        } else if let Some((first, second)) = self.doubled.first() {
            Some(Violation::Doubled { first: first.clone(), second: second.clone() })
        } else if let Some(line) = self.damaged {
            Some(Violation::Damaged { line })
        } else {
            let ended = self.ended.filter(|(said, _)| *said != steps && self.kept);
            ended.map(|(said, line)| Violation::Ended { said, committed: steps, line })
        };
        proof
    }

    fn serve(&mut self, names: Vec<String>) {
        self.serving.clear();
        if let Some(primary) = names.first() {
            self.serving.insert(0, primary.clone());
        }
        self.names = names;
        self.current = None;
    }

    fn commit(&mut self, record: &Record, step: u64, execution: u64) {
        let devices = match &self.current {
            Some(devices) => devices.clone(),
            None => self.current.insert(self.serving.values().cloned().collect()).clone(),
        };
        let commit = Commit { step, attempt: record.attempt, execution, devices, line: record.line };
        let voided = |(attempt, start): (&u64, &u64)| *attempt > record.attempt && step >= *start;
        if self.starts.iter().any(voided) {
            self.taken_back += 1;
        } else if let Some(first) = self.commits.get(&step) {
            self.doubled.push((first.clone(), commit));
        } else {
            self.commits.insert(step, commit);
        }
    }

    /// Voids the entries at `from` and above of the attempts in question.
    fn take_back(&mut self, from: u64, of: impl Fn(u64) -> bool) {
        let mut above = self.commits.split_off(&from);
        let before = above.len();
        above.retain(|_, commit| !of(commit.attempt));
        self.taken_back += (before - above.len()) as u64;
        self.commits.append(&mut above);
        self.skipped.retain(|step, attempt| *step < from || !of(*attempt));
        // A step that was counted twice and is taken back is counted no more.
        self.doubled
            .retain(|(first, second)| first.step < from || !(of(first.attempt) && of(second.attempt)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: u64, attempt: u64, what: What) -> Record {
        Record { line, attempt, time: None, what }
    }

    fn begin(resumed: bool) -> What {
        let (run_id, version) = ("r".to_owned(), "0".to_owned());
        What::Begin { resumed, run_id, version, journal_version: 1, process: 1 }
    }

    fn start(step: u64) -> What {
        What::Start { step, devices: vec!["a".to_owned(), "b".to_owned()], checks: None }
    }

    fn ledger(lines: Vec<(u64, What)>) -> Ledger {
        let mut ledger = Ledger::default();
        for (number, (attempt, what)) in lines.into_iter().enumerate() {
            ledger.apply(&record(number as u64 + 1, attempt, what));
        }
        ledger
    }

    fn committed(step: u64) -> What {
        What::Committed { step, execution: step + 1 }
    }

    fn stopped(step: u64) -> What {
        What::Stopped { reason: "done".to_owned(), step }
    }

    #[test]
    fn a_resume_voids_what_older_attempts_did_beyond_it() {
        let mut lines = vec![(1, begin(false)), (1, start(0))];
        lines.extend((0..7).map(|step| (1, committed(step))));
        lines.extend([(2, begin(true)), (2, start(4))]);
        // A late line of the first attempt.
        lines.push((1, committed(7)));
        lines.extend((4..10).map(|step| (2, committed(step))));
        lines.push((2, stopped(10)));
        let ledger = ledger(lines);
        let proof = ledger.prove();
        assert!(proof.holds(), "{proof:?}");
        assert_eq!((proof.committed, proof.taken_back), (10, 4));
        let attempts: Vec<u64> = ledger.commits().map(|commit| commit.attempt).collect();
        assert_eq!(attempts, [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn a_commit_bears_the_device_that_served_it() {
        let ledger = ledger(vec![
            (1, begin(false)),
            (1, start(0)),
            (1, What::WorkerActive { rank: 0, device: 0, standby: false }),
            (1, committed(0)),
            (1, What::Moved { rank: 0, from: 0, to: 1, back: false }),
            (1, committed(1)),
            (1, What::WorkerActive { rank: 1, device: 7, standby: false }),
            (1, committed(2)),
        ]);
        let devices: Vec<String> = ledger.commits().map(|commit| commit.devices.join("+")).collect();
        assert_eq!(devices, ["a", "b", "b+device 7"]);
    }

    #[test]
    fn what_is_lost_doubled_damaged_or_ended_elsewhere_is_named() {
        let base = |steps: &[u64]| {
            let mut lines = vec![(1, begin(false)), (1, start(0))];
            lines.extend(steps.iter().map(|&step| (1, committed(step))));
            lines
        };
        let proof = ledger(base(&[0, 1, 5, 6])).prove();
        assert_eq!(proof.batches_lost, 3);
        assert_eq!(proof.violation, Some(Violation::Lost { step: 2, count: 3 }));
        assert_eq!(
            proof.violation.map(|violation| violation.to_string()).as_deref(),
            Some("the batches of steps 2 to 4 are in no committed step")
        );
        let proof = ledger(base(&[0, 1, 1, 2])).prove();
        assert_eq!((proof.batches_lost, proof.batches_doubled), (0, 1));
        assert!(matches!(proof.violation, Some(Violation::Doubled { .. })), "{proof:?}");
        let mut lines = base(&[0, 1, 2]);
        lines.push((1, stopped(4)));
        assert_eq!(
            ledger(lines).prove().violation,
            Some(Violation::Ended { said: 4, committed: 3, line: 6 })
        );
        // Going on from a step that nobody committed.
        let mut lines = base(&[0, 1]);
        lines.extend([(2, begin(true)), (2, start(3)), (2, committed(3))]);
        assert_eq!(ledger(lines).prove().violation, Some(Violation::Lost { step: 2, count: 1 }));

        let mut torn = ledger(base(&[0, 1]));
        torn.damaged(5);
        torn.apply(&record(6, 2, begin(true)));
        torn.apply(&record(7, 2, start(2)));
        assert!(torn.prove().holds(), "a line that a death tore says nothing");
        let mut damaged = ledger(base(&[0, 1]));
        damaged.damaged(5);
        damaged.apply(&record(6, 1, committed(2)));
        assert_eq!(damaged.prove().violation, Some(Violation::Damaged { line: 5 }));
    }

    #[test]
    fn absurd_step_numbers_cost_neither_time_nor_memory() {
        let lines = vec![(1, begin(false)), (1, start(u64::MAX)), (1, committed(u64::MAX))];
        let proof = ledger(lines).prove();
        assert_eq!(proof.violation, Some(Violation::Lost { step: 0, count: u64::MAX }));
        let lines = vec![(1, begin(false)), (1, start(0)), (1, What::BatchSkipped { step: u64::MAX })];
        assert!(!ledger(lines).prove().holds());
    }

    #[test]
    fn a_batch_that_is_left_out_is_neither_lost_nor_counted() {
        let ledger = ledger(vec![
            (1, begin(false)),
            (1, start(0)),
            (1, committed(0)),
            (1, What::BatchSkipped { step: 1 }),
            (1, committed(2)),
        ]);
        let proof = ledger.prove();
        assert!(proof.holds());
        assert_eq!((proof.committed, proof.skipped), (2, 1));
    }
}
