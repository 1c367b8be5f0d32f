//! Who is where, and who is missing: from what ranks say before and behind each operation, without waiting for a timeout of
//! the library.

use std::time::Duration;
use toprope_world::Exit;

/// Where a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In front of this operation, or behind the last one.
    Before(usize),
    /// In this operation.
    Inside(usize),
}

/// Why a rank counts as missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Its process ended.
    Ended(Option<Exit>),
    /// Others wait in the operation and it never came, for this long.
    NeverArrived(Duration),
    /// The others have left the operation and it has not, for this long.
    NeverLeft(Duration),
    /// It said why it cannot go on.
    Failed(String),
}

/// Ranks that are missing from an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which, ascending. All of them where all are stuck in the operation together.
    pub ranks: Vec<usize>,
    /// The operation's index.
    pub at: usize,
    /// Why they count as missing.
    pub absence: Absence,
}

/// How long is waited for whom.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between the first rank's arrival and the last one's.
    pub arrival: Duration,
    /// Inside an operation.
    pub operation: Duration,
    /// Between a rank's word that it failed and the end of the process that made it fail.
    pub cause: Duration,
}

/// The ranks, by what they said.
#[derive(Debug)]
pub struct Watch {
    places: Vec<(Place, Duration)>,
    ended: Vec<bool>,
    dead: Vec<Option<(Option<Exit>, Duration)>>,
    failed: Vec<Option<(String, Duration)>>,
    patience: Patience,
    /// The longest gap between two arrivals that was no absence.
    gap: Duration,
}

impl Watch {
    /// Ranks that have said nothing yet.
    pub fn new(ranks: usize, patience: Patience, now: Duration) -> Watch {
        Watch {
            places: vec![(Place::Before(0), now); ranks],
            ended: vec![false; ranks],
            dead: vec![None; ranks],
            failed: vec![None; ranks],
            patience,
            gap: Duration::ZERO,
        }
    }

    /// A rank goes into an operation.
    pub fn arrived(&mut self, rank: usize, at: usize, now: Duration) {
        let inside = |(place, since): &(Place, Duration)| (*place == Place::Inside(at)).then_some(*since);
        if let Some(first) = self.places.iter().filter_map(inside).min() {
            self.gap = self.gap.max(now.saturating_sub(first));
        }
        self.set(rank, Place::Inside(at), now);
    }

    /// A rank has come out of an operation.
    pub fn left(&mut self, rank: usize, at: usize, now: Duration) {
        self.set(rank, Place::Before(at + 1), now);
    }

    /// A rank is through with all.
    pub fn ended(&mut self, rank: usize) {
        if let Some(ended) = self.ended.get_mut(rank) {
            *ended = true;
        }
    }

    /// A rank's process has ended.
    pub fn died(&mut self, rank: usize, exit: Option<Exit>, now: Duration) {
        if let Some(dead) = self.dead.get_mut(rank) {
            dead.get_or_insert((exit, now));
        }
    }

    /// A rank said why it cannot go on.
    pub fn failed(&mut self, rank: usize, reason: String, now: Duration) {
        if let Some(failed) = self.failed.get_mut(rank) {
            failed.get_or_insert((reason, now));
        }
    }

    /// Whether every rank is through with all.
    pub fn is_over(&self) -> bool {
        self.ended.iter().all(|ended| *ended)
    }

    fn set(&mut self, rank: usize, place: Place, now: Duration) {
        if let Some(held) = self.places.get_mut(rank) {
            *held = (place, now);
        }
    }

    /// Who is missing by now.
    pub fn missing(&self, now: Duration) -> Option<Missing> {
        let at = |rank: usize| match self.places[rank].0 {
            Place::Before(at) | Place::Inside(at) => at,
        };
        let of = |rank: usize, absence: Absence| Missing { ranks: vec![rank], at: at(rank), absence };
        let all = 0..self.places.len();
        // A process that ended without a word is the cause of what others say of it.
        let silent = all.clone().find_map(|rank| {
            let (exit, _) = self.dead[rank].as_ref()?;
            (!self.ended[rank] && self.failed[rank].is_none()).then(|| of(rank, Absence::Ended(*exit)))
        });
        if silent.is_some() {
            return silent;
        }
        // A failure may be the echo of another rank's end, of which the word comes a moment later.
        let failures = all.clone().filter_map(|rank| Some((rank, self.failed[rank].as_ref()?)));
        if let Some((rank, (reason, since))) = failures.min_by_key(|(_, (_, since))| *since) {
            let settled = now.saturating_sub(*since) >= self.patience.cause;
            return settled.then(|| of(rank, Absence::Failed(reason.clone())));
        }
        self.absent(now).or_else(|| self.stuck(now))
    }

    /// Those who never came into an operation in which others wait.
    fn absent(&self, now: Duration) -> Option<Missing> {
        let inside = |place: &Place| if let Place::Inside(at) = place { Some(*at) } else { None };
        let at = self.places.iter().filter_map(|(place, _)| inside(place)).min()?;
        let outside: Vec<usize> =
            (0..self.places.len()).filter(|rank| self.places[*rank].0 == Place::Before(at)).collect();
        let first =
            self.places.iter().filter(|(place, _)| *place == Place::Inside(at)).map(|(_, s)| *s).min()?;
        // From when on nothing stood in the absent one's way: the last of those who did come, or its own last step.
        let since = outside.iter().map(|rank| self.places[*rank].1).max()?.max(first);
        let waited = now.saturating_sub(since);
        // Where ranks have come late before and were not lost, more is waited.
        let enough = self.patience.arrival.max(self.gap * 4);
        (waited >= enough).then_some(Missing { ranks: outside, at, absence: Absence::NeverArrived(waited) })
    }

    /// Those who never come out of an operation.
    fn stuck(&self, now: Duration) -> Option<Missing> {
        let held = |rank: &usize| matches!(self.places[*rank].0, Place::Inside(_));
        let rank = (0..self.places.len()).filter(held).min_by_key(|rank| match self.places[*rank].0 {
            Place::Before(at) | Place::Inside(at) => at,
        })?;
        let (Place::Before(at) | Place::Inside(at), _) = self.places[rank];
        let ranks: Vec<usize> =
            (0..self.places.len()).filter(|rank| self.places[*rank].0 == Place::Inside(at)).collect();
        let since = self.places.iter().map(|(_, since)| *since).max()?;
        let waited = now.saturating_sub(since);
        (waited >= self.patience.operation).then_some(Missing {
            ranks,
            at,
            absence: Absence::NeverLeft(waited),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch() -> Watch {
        let patience = Patience { arrival: SECOND, operation: 10 * SECOND, cause: SECOND / 2 };
        Watch::new(3, patience, Duration::ZERO)
    }

    #[test]
    fn who_never_arrives_is_named_while_others_wait() {
        let mut watch = watch();
        assert_eq!(watch.missing(9 * SECOND), None, "nobody waits");
        for rank in 0..3 {
            watch.arrived(rank, 0, 10 * SECOND);
            watch.left(rank, 0, 10 * SECOND);
        }
        watch.arrived(0, 1, 11 * SECOND);
        watch.arrived(2, 1, 11 * SECOND);
        assert_eq!(watch.missing(11 * SECOND + SECOND / 2), None);
        let missing = watch.missing(12 * SECOND).expect("rank 1 is missing");
        assert_eq!((missing.ranks, missing.at), (vec![1], 1));
        assert_eq!(missing.absence, Absence::NeverArrived(SECOND));
    }

    #[test]
    fn who_came_late_before_is_given_more_time() {
        let mut watch = watch();
        watch.arrived(0, 0, Duration::ZERO);
        watch.arrived(1, 0, Duration::ZERO);
        watch.arrived(2, 0, SECOND - SECOND / 10);
        for rank in 0..3 {
            watch.left(rank, 0, SECOND);
        }
        watch.arrived(0, 1, SECOND);
        watch.arrived(1, 1, SECOND);
        assert_eq!(watch.missing(4 * SECOND), None);
        assert!(watch.missing(5 * SECOND).is_some());
    }

    #[test]
    fn the_end_of_a_process_is_the_cause_of_what_others_say() {
        let mut watch = watch();
        for rank in 0..3 {
            watch.arrived(rank, 0, SECOND);
        }
        watch.failed(0, "connection closed by peer".into(), SECOND);
        assert_eq!(watch.missing(SECOND), None, "whose fault is not known yet");
        watch.died(0, Some(Exit::Code(3)), SECOND);
        watch.died(2, Some(Exit::Signal(9)), SECOND);
        let missing = watch.missing(SECOND).expect("rank 2 is missing");
        assert_eq!((missing.ranks, missing.absence), (vec![2], Absence::Ended(Some(Exit::Signal(9)))));
    }

    #[test]
    fn a_failure_without_an_end_is_told_as_it_is() {
        let mut watch = watch();
        watch.arrived(1, 0, SECOND);
        watch.failed(1, "no such device".into(), SECOND);
        let missing = watch.missing(2 * SECOND).expect("rank 1 failed");
        assert_eq!(missing.absence, Absence::Failed("no such device".into()));
    }

    #[test]
    fn who_never_comes_out_is_named() {
        let mut watch = watch();
        for rank in 0..3 {
            watch.arrived(rank, 0, SECOND);
        }
        watch.left(0, 0, 2 * SECOND);
        watch.left(1, 0, 2 * SECOND);
        assert_eq!(watch.missing(11 * SECOND), None);
        let missing = watch.missing(12 * SECOND).expect("rank 2 is stuck");
        assert_eq!((missing.ranks, missing.absence), (vec![2], Absence::NeverLeft(10 * SECOND)));
    }

    #[test]
    fn all_that_end_are_over() {
        let mut watch = watch();
        for rank in 0..3 {
            watch.ended(rank);
            watch.died(rank, Some(Exit::Code(0)), SECOND);
        }
        assert!(watch.is_over() && watch.missing(99 * SECOND).is_none());
    }
}
