//! What must hold at every action: the promises, the order of votes and updates, honest verdicts, and a journal that
//! explains the state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use toprope_guard::decide::{Attempt, DeviceIndex, Digest, Duty, Entry, Generation, Guard, Rank, Worker};

use crate::random::blend;

/// Bits, by their digest, and what is known of how they came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The digest.
    pub digest: u64,
    /// They hold something wrong that a check could catch.
    pub guilty: bool,
    /// They hold something wrong that no check catches.
    pub missed: bool,
    /// What is wrong shows in the digest alone: no check of the program looks at it.
    pub silent: bool,
}

impl Bits {
    /// Right ones.
    pub fn right(digest: u64) -> Bits {
        Bits { digest, guilty: false, missed: false, silent: false }
    }

    /// Others, by some noise.
    #[must_use]
    pub fn changed(self, noise: u64, caught: bool) -> Bits {
        let digest = blend(&[self.digest, noise, 3]);
        Bits { digest, guilty: self.guilty || caught, missed: self.missed || !caught, ..self }
    }

    /// A copy with other bits: only its digest tells.
    #[must_use]
    pub fn copied_wrong(self, noise: u64) -> Bits {
        Bits { silent: true, ..self.changed(noise, true) }
    }
}

/// The gradients of a step.
pub fn gradients(state: u64, rank: u16, step: u64) -> u64 {
    blend(&[state, u64::from(rank), step, 1])
}

/// The state after a step.
pub fn next_state(state: u64, gradients: u64) -> u64 {
    blend(&[state, gradients, 2])
}

/// The state that a rank begins with.
pub fn initial_state(rank: u16) -> u64 {
    blend(&[u64::from(rank), 4])
}

/// How a result differs from the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// Not at all.
    None,
    /// Computed again there it is right.
    Transient,
    /// Computed again there it is wrong in the same way.
    Persistent,
    /// It is right, and the batch is bad.
    Data,
}

/// What a rank said last, and was heard to say.
#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    accumulated: Option<Attempt>,
    updated: Option<(Attempt, Bits)>,
}

/// The alarm that is looked into.
#[derive(Clone, Copy, Debug)]
struct Trial {
    deviation: Deviation,
    /// The device that was asked is itself bad: nothing follows from what it says.
    lied: bool,
}

/// Watches one schedule.
#[derive(Debug)]
pub struct Checker {
    ranks: u16,
    /// The first thing that did not hold.
    pub violation: Option<String>,
    /// The right digests, by steps, by rank; where a wrong result was missed, the run's own.
    reference: BTreeMap<u64, Vec<u64>>,
    /// What the journal says: for each committed step whether its batch was applied, or left out.
    ledger: Vec<bool>,
    votes: Vec<Votes>,
    generations: BTreeSet<Generation>,
    launches: Vec<(Duration, Rank, DeviceIndex)>,
    barred: BTreeSet<DeviceIndex>,
    trial: Option<Trial>,
    /// The checkpoint that is being written.
    writing: Option<u64>,
    /// The one whose end was heard of last.
    answered: Option<u64>,
    skipped: Option<u64>,
    committed_by: Option<Attempt>,
    may_skip: bool,
    /// Wrong results that no check caught and that were committed.
    pub missed: u64,
}

/// Starts of one rank's worker on one device within `STORM_WITHIN` that are a storm.
const STORM: usize = 3;
const STORM_WITHIN: Duration = Duration::from_millis(900);

impl Checker {
    /// One for a run of so many ranks.
    pub fn new(ranks: u16, may_skip: bool) -> Checker {
        let mut reference = BTreeMap::new();
        reference.insert(0, (0..ranks).map(initial_state).collect());
        Checker {
            ranks,
            violation: None,
            reference,
            ledger: Vec::new(),
            votes: vec![Votes::default(); usize::from(ranks)],
            generations: BTreeSet::new(),
            launches: Vec::new(),
            barred: BTreeSet::new(),
            trial: None,
            writing: None,
            answered: None,
            skipped: None,
            committed_by: None,
            may_skip,
            missed: 0,
        }
    }

    /// Says that something does not hold.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert(what.into());
    }

    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what());
        }
    }

    /// Steps that the journal says are committed.
    pub fn committed(&self) -> u64 {
        self.ledger.len() as u64
    }

    /// A new process goes on from a durable checkpoint.
    pub fn resume(&mut self, step: u64, states: &[Bits]) {
        let known = self.committed();
        self.must(step <= known, || format!("resumed from {step} steps, {known} were committed"));
        for (rank, bits) in states.iter().enumerate() {
            self.must(!bits.guilty, || format!("rank {rank}: the checkpoint of step {step} is wrong"));
        }
        self.ledger.truncate(step as usize);
        self.reference.split_off(&(step + 1));
        self.reference.insert(step, states.iter().map(|bits| bits.digest).collect());
        self.votes = vec![Votes::default(); usize::from(self.ranks)];
        self.generations.clear();
        self.launches.clear();
        self.barred.clear();
        self.trial = None;
        self.writing = None;
    }

    /// A worker is started.
    pub fn launch(&mut self, now: Duration, worker: Worker, device: DeviceIndex, duty: Duty) {
        let fresh = self.generations.insert(worker.generation);
        self.must(fresh, || format!("{:?} was used before", worker.generation));
        let barred = self.barred.contains(&device);
        self.must(!barred, || {
            format!("a worker on {device:?}, which has not passed a test since it was found bad")
        });
        if duty == Duty::Active {
            self.launches.retain(|(at, ..)| now.saturating_sub(*at) <= STORM_WITHIN);
            self.launches.push((now, worker.rank, device));
            let same = self.launches.iter().filter(|(_, rank, on)| (*rank, *on) == (worker.rank, device));
            let same = same.count();
            self.must(same < STORM, || format!("{same} starts of {:?} within {STORM_WITHIN:?}", worker.rank));
        }
    }

    /// A worker is to run the first range.
    pub fn accumulate(&mut self, worker: Worker, attempt: Attempt, holds: Option<u64>) {
        let step = self.committed();
        self.must(attempt.step == step, || format!("step {} begins, {step} are committed", attempt.step));
        self.must(holds == Some(step), || {
            format!("{worker:?} runs step {} with the state of {holds:?} steps", attempt.step)
        });
    }

    /// What a worker said was heard.
    pub fn heard_accumulated(&mut self, worker: Worker, attempt: Attempt) {
        if let Some(votes) = self.votes.get_mut(usize::from(worker.rank.0)) {
            votes.accumulated = Some(attempt);
        }
    }

    /// The same for the second range.
    pub fn heard_updated(&mut self, worker: Worker, attempt: Attempt, bits: Bits) {
        if let Some(votes) = self.votes.get_mut(usize::from(worker.rank.0)) {
            votes.updated = Some((attempt, bits));
        }
    }

    /// A checkpoint is written, or failed to be.
    pub fn heard_checkpoint(&mut self, step: u64) {
        self.answered = Some(step);
        self.writing.take_if(|writing| *writing == step);
    }

    /// A worker is to run the second range.
    pub fn update(&mut self, worker: Worker, attempt: Attempt, blocks: bool) {
        let step = self.committed();
        self.must(attempt.step == step, || format!("update of step {}, {step} are committed", attempt.step));
        let silent: Vec<usize> =
            (0..self.votes.len()).filter(|rank| self.votes[*rank].accumulated != Some(attempt)).collect();
        self.must(silent.is_empty(), || {
            format!("update of {worker:?} for {attempt:?}: ranks {silent:?} have no gradients of it")
        });
        self.must(!blocks, || "an update began to overwrite what a copy is made from".into());
        let writing = self.writing;
        self.must(writing.is_none(), || format!("an update while the checkpoint of {writing:?} is written"));
    }

    /// A step is committed. Says which bits each rank's next state are to be.
    pub fn commit(&mut self, attempt: Attempt) -> Vec<Bits> {
        let step = self.committed();
        self.must(attempt.step == step, || format!("step {} committed after {step} steps", attempt.step));
        let before = self.reference.get(&step).cloned().unwrap_or_default();
        let mut after = Vec::new();
        for rank in 0..self.ranks {
            let index = usize::from(rank);
            let base = before.get(index).copied().unwrap_or_default();
            let right = next_state(base, gradients(base, rank, step));
            let vote = self.votes[index].updated.filter(|(said, _)| *said == attempt);
            let Some((_, bits)) = vote else {
                self.fail(format!("{attempt:?} committed without the vote of rank {rank}"));
                after.push(Bits::right(right));
                continue;
            };
            self.must(!bits.guilty, || {
                format!("{attempt:?} committed although a check found rank {rank} wrong")
            });
            if bits.digest != right && !bits.guilty {
                self.must(bits.missed, || {
                    format!("{attempt:?} committed: rank {rank}'s state is not that of the undisturbed run")
                });
                self.missed += 1;
            }
            after.push(Bits { missed: false, ..bits });
        }
        self.reference.insert(step + 1, after.iter().map(|bits| bits.digest).collect());
        self.committed_by = Some(attempt);
        after
    }

    /// A batch is left out.
    pub fn skip(&mut self, step: u64) {
        let committed = self.committed();
        self.must(step == committed, || format!("batch {step} left out after {committed} steps"));
        let may = self.may_skip;
        self.must(may, || format!("batch {step} left out, the policy does not say so"));
        if let Some(states) = self.reference.get(&step).cloned() {
            self.reference.insert(step + 1, states);
        }
        self.skipped = Some(step);
    }

    /// A durable checkpoint is to be written.
    pub fn checkpoint(&mut self, step: u64, states: &[Digest]) {
        let committed = self.committed();
        self.must(step == committed, || format!("a checkpoint of {step} steps, {committed} are committed"));
        let right = self
            .reference
            .get(&step)
            .is_some_and(|right| right.iter().copied().eq(states.iter().map(|digest| digest.0)));
        self.must(right, || format!("the checkpoint of {step} steps is asked to hold other states"));
        self.writing = Some(step);
    }

    /// An alarm is looked into.
    pub fn examine(&mut self, deviation: Deviation, lied: bool) {
        self.trial = Some(Trial { deviation, lied });
    }

    fn verdict(&mut self, verdict: &str) {
        let Some(trial) = self.trial.take() else {
            self.fail(format!("`{verdict}` was found without looking"));
            return;
        };
        let honest = match (verdict, trial.deviation) {
            _ if trial.lied => true,
            ("transient", Deviation::Transient) | ("persistent", Deviation::Persistent) => true,
            // Twice in a row by chance is not told from always.
            ("persistent", Deviation::Transient) => true,
            ("false_alarm" | "data", Deviation::None | Deviation::Data) => true,
            ("unknown", _) => true,
            _ => false,
        };
        self.must(honest, || format!("the verdict `{verdict}`, it was {:?}", trial.deviation));
    }

    /// A line of the journal.
    pub fn entry(&mut self, entry: &Entry, devices: &[DeviceIndex]) {
        match entry {
            Entry::Committed { attempt, states } => {
                let by = self.committed_by.take();
                self.must(by == Some(*attempt), || {
                    format!("{attempt:?} is journalled, {by:?} was committed")
                });
                self.ledger.push(true);
                let right = self.reference.get(&self.committed());
                let right = right.is_some_and(|right| right.iter().copied().eq(states.iter().map(|s| s.0)));
                self.must(right, || format!("the journal has other states for {attempt:?}"));
            }
            Entry::BatchSkipped { step, .. } => {
                let skipped = self.skipped.take();
                self.must(skipped == Some(*step), || format!("batch {step} is journalled as left out"));
                self.ledger.push(false);
            }
            Entry::RolledBack { from, to, .. } => {
                let committed = self.committed();
                self.must(*from == committed && to < from, || {
                    format!("the journal goes back from {from} to {to}, {committed} are committed")
                });
                self.ledger.truncate(*to as usize);
                self.reference.split_off(&(to + 1));
            }
            Entry::Quarantined { device, .. } => {
                self.barred.insert(*device);
            }
            Entry::Retested { device, passed: true, .. } => {
                self.barred.remove(device);
            }
            Entry::Judged { verdict, .. } => {
                let lied = self.trial.is_some_and(|trial| trial.lied);
                self.verdict(verdict);
                if verdict == "persistent" && !lied {
                    self.barred.extend(devices);
                }
            }
            Entry::Checkpoint { step, .. } | Entry::CheckpointFailed { step, .. } => {
                let known = self.answered == Some(*step) || self.writing == Some(*step);
                self.writing = None;
                self.must(known, || format!("a checkpoint of {step} that was not asked for"));
            }
            _ => {}
        }
    }

    /// After all actions of an event: the journal explains where the guard stands.
    pub fn settle(&mut self, guard: &Guard) {
        let (said, is) = (self.committed(), guard.committed());
        self.must(said == is, || format!("the journal explains {said} committed steps, there are {is}"));
        let skipped = self.skipped;
        self.must(skipped.is_none(), || format!("batch {skipped:?} was left out without a word"));
        let by = self.committed_by;
        self.must(by.is_none(), || format!("{by:?} was committed without a word"));
    }

    /// The end: the state must be what the ledger says, computed from the beginning.
    /// `durable` is the newest file, with its content if that is intact.
    pub fn end(&mut self, steps: u64, durable: Option<(u64, Option<&[Bits]>)>) {
        let committed = self.committed();
        self.must(committed == steps, || format!("the run ended after {committed} of {steps} steps"));
        let Some((step, states)) = durable.filter(|(step, _)| *step == steps) else {
            self.fail("the run ended without a durable checkpoint of its end");
            return;
        };
        let Some(states) = states.filter(|_| self.missed == 0) else { return };
        for (rank, bits) in states.iter().enumerate() {
            let rank = rank as u16;
            let state = self.ledger.iter().enumerate().fold(initial_state(rank), |state, (step, applied)| {
                if *applied { next_state(state, gradients(state, rank, step as u64)) } else { state }
            });
            self.must(bits.digest == state && !bits.guilty, || {
                format!("rank {rank}: the state after {step} steps is not that of the undisturbed run")
            });
        }
    }
}
