//! Which devices are used: counts of faults by class, quarantine, tests, and what the table says.

use super::statistics::Recent;
use super::{Action, DeviceIndex, Entry, FaultClass, Guard, Mutant, Phase, Rank, StopReason};
use crate::policy::{Remedy, WrongOperator};
use std::collections::VecDeque;
use std::time::Duration;

/// What is known of a device.
#[derive(Debug)]
pub(super) struct Device {
    quarantined: bool,
    /// When it is to be tested.
    test_at: Option<Duration>,
    /// When a test that runs counts as not passed.
    tested_by: Option<Duration>,
    /// The wait before the next test.
    wait: Duration,
    /// Its faults, oldest first, bounded.
    faults: VecDeque<(Duration, FaultClass)>,
    /// How many there were of each class, in the order of `FaultClass::ALL`.
    totals: [u32; FaultClass::ALL.len()],
    /// Step times, in seconds.
    pub(super) pace: Recent,
    /// Slow steps in a row.
    pub(super) slow: u32,
    /// Operators that run elsewhere.
    moved: Vec<String>,
}

/// A device that is wrong in more operators than these is no device to train on.
const MOVED_MAX: usize = 3;

/// Faults that are remembered one by one; older ones count in rules without a window only.
const REMEMBERED: usize = 4096;

/// Step times that a device's median is of.
const PACE: usize = 64;

impl Device {
    pub(super) fn new(wait: Duration) -> Device {
        Device {
            quarantined: false,
            test_at: None,
            tested_by: None,
            wait,
            faults: VecDeque::new(),
            totals: [0; FaultClass::ALL.len()],
            pace: Recent::new(PACE),
            slow: 0,
            moved: Vec::new(),
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.test_at.into_iter().chain(self.tested_by).min()
    }
}

impl Guard {
    pub(super) fn healthy(&self, device: DeviceIndex) -> bool {
        self.devices.get(usize::from(device.0)).is_some_and(|device| !device.quarantined)
    }

    /// The first healthy device beside one.
    pub(super) fn other(&self, than: DeviceIndex) -> Option<DeviceIndex> {
        let indices = (0..self.devices.len() as u16).map(DeviceIndex);
        indices.into_iter().find(|device| *device != than && self.healthy(*device))
    }

    /// Counts a fault of a device, and says what the table wants; none where it has no row for the class.
    pub(super) fn remedy(&mut self, device: DeviceIndex, class: FaultClass) -> Option<Remedy> {
        let now = self.now;
        let known = self.devices.get_mut(usize::from(device.0))?;
        let index = FaultClass::ALL.iter().position(|other| *other == class)?;
        // What several ranks on one device meet at the same time is one fault of it.
        if known.faults.back() != Some(&(now, class)) {
            if known.faults.len() == REMEMBERED {
                known.faults.pop_front();
            }
            known.faults.push_back((now, class));
            known.totals[index] = known.totals[index].saturating_add(1);
        }
        let total = known.totals[index];
        let within = |seconds: f64| {
            let window = Duration::from_secs_f64(seconds);
            let young = known.faults.iter().filter(|(at, _)| now.saturating_sub(*at) <= window);
            young.filter(|(_, other)| *other == class).count() as u32
        };
        let reached = self.rules.iter().filter(|rule| rule.class == class);
        let reached = reached.filter(|rule| rule.window_seconds.map_or(total, within) >= rule.count);
        reached.max_by_key(|rule| rule.count).map(|rule| rule.action)
    }

    /// Puts a device into quarantine and moves its ranks to another one; ends the run where there is none.
    pub(super) fn quarantine(&mut self, device: DeviceIndex, reason: &str) {
        if self.is(Mutant::ForgetQuarantine) {
            for rank in self.ranks_on(device) {
                self.lose(rank);
            }
            return;
        }
        let now = self.now;
        if let Some(known) = self.devices.get_mut(usize::from(device.0))
            && !known.quarantined
        {
            known.quarantined = true;
            known.tested_by = None;
            known.test_at = Some(now + known.wait);
            known.faults.clear();
            self.record(Entry::Quarantined { device, reason: reason.into() });
        }
        self.leave(device);
    }

    fn ranks_on(&self, device: DeviceIndex) -> Vec<Rank> {
        let ranks = (0..self.setup.ranks).map(Rank);
        ranks.filter(|rank| self.seat(*rank).is_some_and(|seat| seat.device == device)).collect()
    }

    /// Moves all ranks of a device elsewhere.
    fn leave(&mut self, device: DeviceIndex) {
        // A worker that was about to take a rank back to it is of no use either.
        for rank in (0..self.setup.ranks).map(Rank) {
            self.drop_standbys(rank, |other| other == device);
        }
        let ranks = self.ranks_on(device);
        let Some(to) = self.other(device) else {
            for rank in ranks {
                self.lose(rank);
            }
            self.end(StopReason::NoDevice);
            return;
        };
        for rank in ranks {
            self.lose(rank);
            self.drop_standbys(rank, |other| other != to);
            if let Some(seat) = self.seat_mut(rank) {
                seat.moves_to(to);
            }
            self.counters.fail_overs += 1;
            self.record(Entry::FailedOver { rank, from: device, to });
        }
    }

    /// Where an operator of a device may run instead; none where it has to be left.
    pub(super) fn may_move(&self, device: DeviceIndex, operator: &str) -> Option<DeviceIndex> {
        let known = self.devices.get(usize::from(device.0))?;
        let room = known.moved.len() < MOVED_MAX && !known.moved.iter().any(|moved| moved == operator);
        // Only to what stands behind it in the list: devices are listed by preference, the trusted ones last.
        let behind = (device.0 + 1..self.devices.len() as u16).map(DeviceIndex).find(|to| self.healthy(*to));
        behind.filter(|_| room && self.policy.wrong_operator == WrongOperator::Move)
    }

    /// Lets an operator of a device run elsewhere; workers that know nothing of that are of no use any more.
    pub(super) fn move_operator(&mut self, device: DeviceIndex, operator: &str, to: DeviceIndex) {
        if let Some(known) = self.devices.get_mut(usize::from(device.0)) {
            known.moved.push(operator.into());
            // The step takes another time from here on.
            known.pace = Recent::new(PACE);
            known.slow = 0;
        }
        self.counters.operators_moved += 1;
        self.act(Action::Move { device, operator: operator.into(), to });
        self.record(Entry::OperatorMoved { device, operator: operator.into(), to });
        for rank in (0..self.setup.ranks).map(Rank) {
            self.drop_standbys(rank, |other| other == device);
        }
        for rank in self.ranks_on(device) {
            self.lose(rank);
            if let Some(seat) = self.seat_mut(rank) {
                seat.moves_to(device);
            }
        }
    }

    /// A test's result.
    pub(super) fn retested(&mut self, device: DeviceIndex, passed: bool, detail: String) {
        let Some(known) = self.devices.get_mut(usize::from(device.0)) else { return };
        if known.tested_by.take().is_none() {
            return;
        }
        if passed {
            known.quarantined = false;
            // It may be another driver, or a cooler chip: its old speed says nothing.
            known.pace = Recent::new(PACE);
            known.slow = 0;
        } else {
            let longest = Duration::from_secs_f64(self.policy.retest.after_max_seconds);
            known.wait = (known.wait * 2).min(longest);
            known.test_at = Some(self.now + known.wait);
        }
        self.record(Entry::Retested { device, passed, detail });
        if passed {
            self.go_on_with(device);
        }
    }

    /// Where the run was about to end for want of a device, it goes on with the one that passed its test.
    fn go_on_with(&mut self, to: DeviceIndex) {
        if self.ending.take_if(|reason| *reason == StopReason::NoDevice).is_none() {
            return;
        }
        self.ending = self.outranked.take();
        for rank in self.ranks() {
            let Some(from) = self.seat(rank).map(|seat| seat.device) else { continue };
            if let Some(seat) = self.seat_mut(rank) {
                seat.moves_to(to);
            }
            if from != to {
                self.counters.fail_overs += 1;
                self.record(Entry::FailedOver { rank, from, to });
            }
        }
    }

    /// Before the run ends for want of a device, each gets a test, unless the last such round led to no new step. Says
    /// whether there is something to wait for.
    pub(super) fn last_chance(&mut self) -> bool {
        let fruitful = self.tested_all_at.is_none_or(|step| step < self.farthest);
        if fruitful {
            self.tested_all_at = Some(self.farthest);
            let by = self.now + Duration::from_secs_f64(self.policy.retest.limit_seconds);
            for index in 0..self.devices.len() {
                let known = &mut self.devices[index];
                known.test_at = None;
                if known.tested_by.is_none() {
                    known.tested_by = Some(by);
                    self.act(Action::Retest { device: DeviceIndex(index as u16) });
                }
            }
        }
        self.devices.iter().any(|device| device.tested_by.is_some())
    }

    /// Begins the tests that are due, and ends those that take too long.
    pub(super) fn late_tests(&mut self) {
        let limit = Duration::from_secs_f64(self.policy.retest.limit_seconds);
        for index in 0..self.devices.len() {
            let device = DeviceIndex(index as u16);
            let skips = self.is(Mutant::FailBackWithoutTest);
            let known = &mut self.devices[index];
            if known.test_at.is_some_and(|at| at <= self.now) {
                known.test_at = None;
                if skips {
                    known.quarantined = false;
                    continue;
                }
                known.tested_by = Some(self.now + limit);
                self.act(Action::Retest { device });
            } else if known.tested_by.is_some_and(|by| by <= self.now) {
                self.retested(device, false, "the test took too long".into());
            }
        }
    }

    /// Takes ranks back to a better device whose worker is up. Says whether the next step has to wait for that.
    pub(super) fn fail_back(&mut self) -> bool {
        let ranks = (0..self.setup.ranks).map(Rank);
        let returning: Vec<Rank> = ranks.filter(|rank| self.may_return(*rank)).collect();
        if returning.is_empty() {
            return false;
        }
        if !self.state_outlives_workers() {
            return true;
        }
        for rank in returning {
            let Some(seat) = self.seat_mut(rank) else { continue };
            let from = seat.device;
            let up = seat.standbys.iter().filter(|slot| slot.ready).map(|slot| slot.device);
            let Some(to) = up.filter(|device| *device < from).min() else { continue };
            self.lose(rank);
            self.counters.fail_backs += 1;
            self.record(Entry::FailedBack { rank, from, to });
            if let Some(seat) = self.seat_mut(rank) {
                seat.moves_to(to);
            }
            self.promote(rank);
        }
        self.phase = Phase::Gathering;
        true
    }

    fn may_return(&self, rank: Rank) -> bool {
        self.seat(rank).is_some_and(|seat| {
            let better = |device: DeviceIndex| device < seat.device && self.healthy(device);
            seat.standbys.iter().any(|slot| slot.ready && better(slot.device))
        })
    }
}
