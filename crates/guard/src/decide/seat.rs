//! A rank's workers: starting, promoting and giving them up.

use super::gather::Goal;
use super::{
    Action, DeviceIndex, Digest, Duty, Entry, FaultClass, FaultKind, Generation, Guard, Mutant, Place, Rank,
    StopReason, Worker,
};
use crate::policy::Remedy;
use std::collections::BTreeMap;
use std::time::Duration;

/// One worker.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) worker: Worker,
    pub(super) device: DeviceIndex,
    pub(super) ready: bool,
    /// The state that it was asked to take in and has not answered for.
    pub(super) asked: Option<Goal>,
    /// Whether it stood by before it was active.
    pub(super) stood_by: bool,
    /// Whether the journal knows that it is active.
    pub(super) announced: bool,
    /// When it has to be up, or to have its state.
    pub(super) deadline: Option<Duration>,
}

/// A rank's place in the run.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) device: DeviceIndex,
    pub(super) active: Option<Slot>,
    /// One at most on each device.
    pub(super) standbys: Vec<Slot>,
    /// The committed steps of the state that the active worker holds, verified.
    pub(super) holds: Option<u64>,
    /// That state's digest.
    pub(super) held: Option<Digest>,
    /// The goal that was refused once: a copy may go wrong, the second time the source is to blame.
    pub(super) refused: Option<Goal>,
    /// The active worker is not started before.
    pub(super) launch_at: Option<Duration>,
    /// When the last active worker was started.
    launched: Option<Duration>,
    /// Failures of active workers since the last commit or move.
    pub(super) failures: u32,
    /// Those of them that were hangs.
    pub(super) hangs: u32,
    /// Where the last ones to stand by failed.
    refusals: BTreeMap<DeviceIndex, Refusal>,
}

/// What came of standing by on a device.
#[derive(Debug, Default)]
struct Refusal {
    failures: u32,
    /// The next one is not started before.
    until: Duration,
}

impl Seat {
    pub(super) fn new(device: DeviceIndex) -> Seat {
        Seat {
            device,
            active: None,
            standbys: Vec::new(),
            holds: None,
            held: None,
            refused: None,
            launch_at: None,
            launched: None,
            failures: 0,
            hangs: 0,
            refusals: BTreeMap::new(),
        }
    }

    /// Its worker runs elsewhere from now on, with nothing held against it.
    pub(super) fn moves_to(&mut self, device: DeviceIndex) {
        self.device = device;
        (self.failures, self.hangs) = (0, 0);
        self.launch_at = None;
        self.launched = self.launched.map(|_| Duration::ZERO);
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = Worker> {
        self.active.iter().chain(&self.standbys).map(|slot| slot.worker)
    }

    /// The next time at which something about its workers is overdue or due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let slots = self.active.iter().chain(&self.standbys).filter_map(|slot| slot.deadline);
        let launch = if self.active.is_none() { self.launch_at } else { None };
        slots.chain(launch).min()
    }
}

impl Guard {
    pub(super) fn seat(&self, rank: Rank) -> Option<&Seat> {
        self.seats.get(usize::from(rank.0))
    }

    pub(super) fn seat_mut(&mut self, rank: Rank) -> Option<&mut Seat> {
        self.seats.get_mut(usize::from(rank.0))
    }

    pub(super) fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.setup.ranks).map(Rank)
    }

    /// Whether this is the worker that serves its rank now.
    pub(super) fn is_active(&self, worker: Worker) -> bool {
        let active = self.seat(worker.rank).and_then(|seat| seat.active.as_ref());
        active.is_some_and(|slot| slot.worker == worker || self.is(Mutant::IgnoreGeneration))
    }

    fn is_standby(&self, worker: Worker) -> bool {
        self.seat(worker.rank).is_some_and(|seat| seat.standbys.iter().any(|slot| slot.worker == worker))
    }

    fn launch(&mut self, rank: Rank, device: DeviceIndex, duty: Duty) -> Slot {
        self.generations += 1;
        let worker = Worker { rank, generation: Generation(self.generations) };
        self.act(Action::Launch { worker, device, duty });
        Slot {
            worker,
            device,
            ready: false,
            asked: None,
            stood_by: duty == Duty::Standby,
            announced: false,
            deadline: Some(self.now + self.setup.launch_limit),
        }
    }

    /// Gives a rank without an active worker one: the standby, or a new one when its time has come.
    pub(super) fn staff(&mut self, rank: Rank) {
        let Some(seat) = self.seat(rank) else { return };
        if seat.active.is_some() {
            return;
        }
        if seat.standbys.iter().any(|slot| slot.device == seat.device) {
            self.promote(rank);
            return;
        }
        let apart = Duration::from_secs_f64(self.policy.restart.apart_seconds);
        let again = seat.launched.map(|at| at + apart).max(seat.launch_at);
        if let Some(at) = again.filter(|at| *at > self.now)
            && !self.is(Mutant::RestartStorm)
        {
            if let Some(seat) = self.seat_mut(rank) {
                seat.launch_at = Some(at);
            }
            return;
        }
        let (device, first) = (seat.device, seat.launched.is_none());
        let slot = self.launch(rank, device, Duty::Active);
        let now = self.now;
        if !first {
            self.counters.restarts += 1;
        }
        if let Some(seat) = self.seat_mut(rank) {
            seat.active = Some(slot);
            seat.launched = Some(now);
            seat.launch_at = None;
        }
    }

    /// Makes the one that stands by on the rank's device the active one; it takes the state in when it is up.
    pub(super) fn promote(&mut self, rank: Rank) {
        let now = self.now;
        let Some(seat) = self.seat_mut(rank) else { return };
        let Some(at) = seat.standbys.iter().position(|slot| slot.device == seat.device) else { return };
        seat.active = Some(seat.standbys.swap_remove(at));
        seat.launched.get_or_insert(now);
        seat.launch_at = None;
        self.counters.promotions += 1;
    }

    /// After a commit: lets workers stand by, on a better device where one passed its test or else on the same, and on the
    /// device that would take over. Not before, so that they do not take time from the one that has to take over; and one after
    /// the other, since starts share the host.
    pub(super) fn keep_standby(&mut self, rank: Rank) {
        let Some(seat) = self.seat(rank) else { return };
        let here = seat.device;
        let better = (0..here.0).map(DeviceIndex).find(|device| self.healthy(*device));
        let policy = self.policy.standby;
        let first = better.or(policy.then_some(here));
        let second = self.other(here).filter(|device| policy && first != Some(*device));
        let wanted = [first, second];
        self.drop_standbys(rank, |device| !wanted.contains(&Some(device)));
        let Some(seat) = self.seat(rank) else { return };
        if seat.standbys.iter().any(|slot| !slot.ready) {
            return;
        }
        let rests =
            |device: &DeviceIndex| seat.refusals.get(device).is_some_and(|refusal| self.now < refusal.until);
        let there = |device: &DeviceIndex| seat.standbys.iter().any(|slot| slot.device == *device);
        let next = wanted.into_iter().flatten().find(|device| !rests(device) && !there(device));
        let Some(device) = next else { return };
        let slot = self.launch(rank, device, Duty::Standby);
        if let Some(seat) = self.seat_mut(rank) {
            seat.standbys.push(slot);
        }
    }

    /// Gives up those that stand by on such devices.
    pub(super) fn drop_standbys(&mut self, rank: Rank, on: impl Fn(DeviceIndex) -> bool) {
        let Some(seat) = self.seat_mut(rank) else { return };
        let gone: Vec<Slot> = seat.standbys.extract_if(.., |slot| on(slot.device)).collect();
        for slot in gone {
            self.act(Action::Kill { worker: slot.worker });
        }
    }

    pub(super) fn ready(&mut self, worker: Worker) {
        let Some(seat) = self.seat_mut(worker.rank) else { return };
        let slots = seat.active.iter_mut().chain(&mut seat.standbys);
        for slot in slots.filter(|slot| slot.worker == worker && !slot.ready) {
            slot.ready = true;
            slot.deadline = None;
        }
    }

    pub(super) fn failed(&mut self, worker: Worker, kind: FaultKind, place: Option<Place>) {
        if self.is_active(worker) {
            self.active_failed(worker.rank, kind, place);
        } else if self.is_standby(worker) {
            self.standby_failed(worker, kind, place);
        }
    }

    /// A rank lost its worker, or its device said that it failed.
    pub(super) fn active_failed(&mut self, rank: Rank, kind: FaultKind, place: Option<Place>) {
        let Some(seat) = self.seat_mut(rank) else { return };
        let class = kind.class();
        seat.failures += 1;
        seat.hangs += u32::from(class == FaultClass::Hang);
        let (device, failures) = (seat.device, seat.failures);
        let table = self.remedy(device, class).unwrap_or(Remedy::Restart);
        let gone = failures >= self.policy.restart.give_up_after;
        let lacks =
            class == FaultClass::Unsupported || matches!(kind, FaultKind::Lost { for_good: true, .. });
        let remedy = match table {
            Remedy::Stop => Remedy::Stop,
            _ if gone || lacks => Remedy::Quarantine,
            Remedy::FailOver if self.other(device).is_none() => Remedy::Restart,
            Remedy::Retry => Remedy::Restart,
            other => other,
        };
        let reason = if gone {
            format!("{failures} failures without a step between, the last: {kind}")
        } else {
            format!("{kind}")
        };
        self.trial.class = Some(class);
        self.fault(rank, kind, place, remedy.name());
        self.lose(rank);
        let wait = self.backoff(failures);
        let at = self.now + wait;
        if let Some(seat) = self.seat_mut(rank) {
            seat.launch_at = (!wait.is_zero()).then_some(at);
        }
        match remedy {
            Remedy::Retry | Remedy::Restart => {}
            Remedy::RollBack => self.go_back(rank),
            Remedy::Quarantine | Remedy::FailOver => self.quarantine(device, &reason),
            Remedy::SkipBatch => {
                self.skips.insert(self.committed);
            }
            Remedy::Stop => self.end(StopReason::Policy { class: class.name().into() }),
        }
    }

    /// How long to wait after so many failures in a row: not at all after the first, then twice as long each time.
    fn backoff(&self, failures: u32) -> Duration {
        let restart = &self.policy.restart;
        match failures.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => {
                let seconds = restart.backoff_seconds * f64::from(doublings.min(60)).exp2();
                Duration::from_secs_f64(seconds.min(restart.backoff_max_seconds))
            }
        }
    }

    fn standby_failed(&mut self, worker: Worker, kind: FaultKind, place: Option<Place>) {
        let rank = worker.rank;
        let Some(seat) = self.seat_mut(rank) else { return };
        let here = seat.device;
        let slot = seat.standbys.iter().find(|slot| slot.worker == worker);
        let Some(device) = slot.map(|slot| slot.device) else { return };
        let refusal = seat.refusals.entry(device).or_default();
        refusal.failures += 1;
        let failures = refusal.failures;
        let until = self.now + self.backoff(failures + 1);
        if let Some(refusal) = self.seat_mut(rank).and_then(|seat| seat.refusals.get_mut(&device)) {
            refusal.until = until;
        }
        let lacks =
            kind.class() == FaultClass::Unsupported || matches!(kind, FaultKind::Lost { for_good: true, .. });
        let reason = match device < here {
            true => Some(format!("the worker that was to go back to it failed: {kind}")),
            false if device > here && lacks => {
                Some(format!("the worker that was to take over on it failed: {kind}"))
            }
            false => None,
        };
        // Nothing of the step depends on it.
        let disturbed = self.disturbed;
        let action = if reason.is_some() { Remedy::Quarantine } else { Remedy::Restart };
        self.fault_on(device, rank, kind, place, action.name());
        self.disturbed = disturbed;
        self.drop_standbys(rank, |other| other == device);
        if let Some(reason) = reason {
            self.quarantine(device, &reason);
        }
    }

    /// Workers that do not come up, or do not take their state in.
    pub(super) fn late_workers(&mut self) {
        for rank in self.ranks() {
            let now = self.now;
            let late = |slot: &&Slot| slot.deadline.is_some_and(|at| at <= now);
            let waited_ms = self.setup.launch_limit.as_millis() as u64;
            if self.seat(rank).is_some_and(|seat| seat.active.iter().any(|slot| late(&slot))) {
                self.active_failed(rank, FaultKind::Hang { waited_ms }, None);
            }
            let standbys = self.seat(rank).into_iter().flat_map(|seat| &seat.standbys);
            let overdue: Vec<Worker> = standbys.filter(late).map(|slot| slot.worker).collect();
            for worker in overdue {
                self.standby_failed(worker, FaultKind::Hang { waited_ms }, None);
            }
        }
    }

    /// After a commit the past is forgiven.
    pub(super) fn forgive(&mut self) {
        for seat in &mut self.seats {
            (seat.failures, seat.hangs) = (0, 0);
            seat.refused = None;
            for slot in seat.standbys.iter().filter(|slot| slot.ready) {
                seat.refusals.remove(&slot.device);
            }
        }
    }

    /// Says that a worker serves, once.
    pub(super) fn announce(&mut self, rank: Rank) {
        let Some(slot) = self.seat_mut(rank).and_then(|seat| seat.active.as_mut()) else { return };
        if !std::mem::replace(&mut slot.announced, true) {
            let (worker, device, standby) = (slot.worker, slot.device, slot.stood_by);
            self.record(Entry::WorkerActive { worker, device, standby });
        }
    }
}
