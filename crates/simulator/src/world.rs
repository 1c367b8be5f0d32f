//! Workers, devices, memory and disk, as far as the guard can tell: carries its actions out and makes the events.

use crate::checker::{Bits, Checker, Deviation, gradients, initial_state, next_state};
use crate::parts::{Effect, File, Half, Happening, Memory, Process};
use crate::random::{Random, blend};
use crate::schedule::{Call, Costs, Fault, Schedule, What};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use toprope_guard::decide::{
    Accumulated, Action, Alarm, Attempt, DeviceIndex, Digest, Duty, Entry, Event, FaultKind, Finding, Rank,
    Source, StateHome, StopReason, Suspect, Updated, Worker,
};
use toprope_guard::policy::{BadData, Remedy};

/// The simulated world.
#[derive(Debug)]
pub struct World {
    schedule: Schedule,
    random: Random,
    /// What is watched.
    pub checker: Checker,
    queue: BTreeMap<(Duration, u64), Happening>,
    order: u64,
    calls: BTreeMap<(u16, u8), u32>,
    memory: Vec<Memory>,
    processes: BTreeMap<Worker, Process>,
    files: Vec<File>,
    bad: BTreeMap<u16, u8>,
    gone: Vec<u16>,
    slow: Vec<(u16, Duration, u16)>,
    at_calls: Vec<(u16, Call, u32, What)>,
    soon: Vec<(Call, What)>,
    spikes: BTreeSet<u64>,
    bad_batches: BTreeSet<u64>,
    costs: Costs,
    /// Faults that came.
    pub struck: u64,
    /// Why the guard stopped.
    pub stopped: Option<StopReason>,
    /// Somebody asked for a stop.
    pub stop_requested: bool,
}

const MILLISECOND: Duration = Duration::from_millis(1);
/// Copies that the host keeps of each rank.
const COPIES: usize = 2;
/// Processes that are remembered.
const PROCESSES: usize = 64;
/// How many of a hundred wrong ranges of a bad device its checks catch.
const RECALL: u64 = 90;

impl World {
    /// One for a schedule.
    pub fn new(schedule: &Schedule) -> World {
        let ranks = schedule.setup.ranks;
        let skips = |rule: &toprope_guard::policy::Rule| rule.action == Remedy::SkipBatch;
        let may_skip =
            schedule.policy.bad_data == BadData::SkipBatch || schedule.policy.rule.iter().any(skips);
        let mut world = World {
            random: Random::new(schedule.seed ^ 0xa5a5),
            checker: Checker::new(ranks, may_skip),
            queue: BTreeMap::new(),
            order: 0,
            calls: BTreeMap::new(),
            memory: Vec::new(),
            processes: BTreeMap::new(),
            files: Vec::new(),
            bad: BTreeMap::new(),
            gone: Vec::new(),
            slow: Vec::new(),
            at_calls: Vec::new(),
            soon: Vec::new(),
            spikes: BTreeSet::new(),
            bad_batches: BTreeSet::new(),
            costs: schedule.costs,
            struck: 0,
            stopped: None,
            stop_requested: false,
            schedule: schedule.clone(),
        };
        for fault in schedule.faults.clone() {
            let at_ms = match fault {
                Fault::SupervisorDies { at_ms }
                | Fault::StopRequested { at_ms }
                | Fault::WorkerDies { at_ms, .. }
                | Fault::DeviceGone { at_ms, .. }
                | Fault::DeviceBad { at_ms, .. }
                | Fault::Soon { at_ms, .. }
                | Fault::DeviceSlow { at_ms, .. } => at_ms,
                Fault::DataSpike { step } => {
                    world.spikes.insert(step);
                    continue;
                }
                Fault::BadBatch { step } => {
                    world.bad_batches.insert(step);
                    continue;
                }
                Fault::AtCall { rank, call, nth, what } => {
                    world.at_calls.push((rank, call, nth, what));
                    continue;
                }
            };
            world.later(Duration::from_millis(at_ms), Happening::Fault(fault));
        }
        // A tick that nobody asked for must do no harm.
        for _ in 0..world.random.between(0, 12) {
            let at = Duration::from_millis(world.random.between(0, 30_000));
            world.say(at, Event::Tick { progress: Vec::new() }, None, Effect::None);
        }
        world
    }

    /// A new process of the supervisor: nothing is left but the disk. Gives its first event.
    pub fn begin(&mut self) -> Event {
        let ranks = self.schedule.setup.ranks;
        let newest = self.files.iter().filter(|file| file.intact).max_by_key(|file| file.step).cloned();
        let file = newest.unwrap_or_else(|| File {
            step: 0,
            states: (0..ranks).map(|rank| Bits::right(initial_state(rank))).collect(),
            intact: true,
        });
        self.processes.clear();
        self.queue.retain(|_, happening| matches!(happening, Happening::Fault(_)));
        let step = file.step;
        let memory = |bits: &Bits| {
            let half = Half { step, bits: *bits, whole: true };
            Memory { halves: [half, Half { whole: false, ..half }], current: 0, copies: vec![(step, *bits)] }
        };
        self.memory = file.states.iter().map(memory).collect();
        self.checker.resume(step, &file.states);
        self.stopped = None;
        Event::Begin { step, states: file.states.iter().map(|bits| Digest(bits.digest)).collect() }
    }

    /// Looks at the end of the run.
    pub fn end(&mut self) {
        let newest = self.files.iter().max_by_key(|file| file.step);
        let newest = newest.map(|file| (file.step, file.intact.then_some(file.states.as_slice())));
        self.checker.end(self.schedule.setup.steps, newest);
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<Duration> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Whether a batch from a step on gives NaN everywhere. The run may have gone back before it ended for that batch.
    pub fn has_bad_batch_from(&self, step: u64) -> bool {
        self.bad_batches.range(step..).next().is_some()
    }

    /// Lets the next thing happen; gives what the guard hears of it.
    pub fn step(&mut self) -> Option<(Duration, Happening)> {
        let ((at, _), happening) = self.queue.pop_first()?;
        match happening {
            Happening::Heard { event, from, effect } => {
                if let Some(worker) = from {
                    let (alive, killed) = match self.processes.get(&worker) {
                        Some(process) => (process.alive && !process.hangs, process.killed),
                        None => return None,
                    };
                    let failure = matches!(event, Event::Failed { .. });
                    if alive {
                        self.take_effect(worker, effect);
                    } else if !(failure || killed && self.random.percent(40)) {
                        return None;
                    }
                } else if let Effect::Wrote(file) = effect {
                    self.write(file);
                }
                self.overhear(&event);
                Some((at, Happening::Heard { event, from, effect: Effect::None }))
            }
            Happening::Dies { worker } => {
                self.die(at, worker, MILLISECOND);
                None
            }
            Happening::Fault(fault) => {
                if at > self.schedule.faults_until {
                    return None;
                }
                self.struck += 1;
                self.strike_at_time(at, fault)
            }
        }
    }

    fn strike_at_time(&mut self, at: Duration, fault: Fault) -> Option<(Duration, Happening)> {
        match fault {
            Fault::StopRequested { .. } => {
                self.stop_requested = true;
                let event = Event::StopRequested;
                return Some((at, Happening::Heard { event, from: None, effect: Effect::None }));
            }
            Fault::SupervisorDies { .. } => return Some((at, Happening::Fault(fault))),
            Fault::WorkerDies { rank, standby, .. } => {
                let duty = if standby { Duty::Standby } else { Duty::Active };
                let fits = |worker: &Worker, process: &Process| {
                    worker.rank == Rank(rank) && process.alive && process.duty == duty
                };
                let found = self.processes.iter().find(|(worker, process)| fits(worker, process));
                if let Some(worker) = found.map(|(worker, _)| *worker) {
                    self.die(at, worker, MILLISECOND * 20);
                }
            }
            Fault::DeviceGone { device, .. } => {
                self.gone.push(device);
                let on =
                    self.processes.iter().filter(|(_, process)| process.alive && process.device == device);
                let on: Vec<Worker> = on.map(|(worker, _)| *worker).collect();
                for worker in on {
                    self.die(at, worker, MILLISECOND * 30);
                }
            }
            Fault::DeviceBad { device, percent, .. } => {
                self.bad.insert(device, percent);
            }
            Fault::DeviceSlow { device, for_ms, factor, .. } => {
                self.slow.push((device, at + Duration::from_millis(for_ms), factor));
            }
            Fault::Soon { call, what, .. } => self.soon.push((call, what)),
            Fault::AtCall { .. } | Fault::DataSpike { .. } | Fault::BadBatch { .. } => {}
        }
        None
    }

    /// What the checker hears with the guard.
    fn overhear(&mut self, event: &Event) {
        match event {
            Event::Accumulated { worker, attempt, .. }
                if self.processes.get(worker).is_some_and(|process| process.alive) =>
            {
                self.checker.heard_accumulated(*worker, *attempt);
            }
            Event::Updated { worker, attempt, .. } => {
                let next = self.processes.get(worker).filter(|process| process.alive);
                if let Some((said, bits, _)) = next.and_then(|process| process.next)
                    && said == *attempt
                {
                    self.checker.heard_updated(*worker, *attempt, bits);
                }
            }
            Event::CheckpointWritten { step } | Event::CheckpointFailed { step, .. } => {
                self.checker.heard_checkpoint(*step);
            }
            _ => {}
        }
    }

    fn die(&mut self, at: Duration, worker: Worker, noticed_after: Duration) {
        let Some(process) = self.processes.get_mut(&worker).filter(|process| process.alive) else { return };
        process.alive = false;
        let kind = FaultKind::Lost { reason: "signal 9".into(), for_good: false };
        self.say(at + noticed_after, Event::Failed { worker, kind, place: None }, Some(worker), Effect::None);
    }

    fn take_effect(&mut self, worker: Worker, effect: Effect) {
        let rank = usize::from(worker.rank.0);
        let double = self.schedule.setup.home == StateHome::SharedDouble;
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(memory) = self.memory.get_mut(rank) else { return };
        match effect {
            Effect::None | Effect::Up => {}
            Effect::Took { step, own, shared } => {
                process.holds = Some(step);
                process.own = own;
                process.gradients = None;
                process.next = None;
                memory.copies.retain(|(copied, _)| *copied <= step);
                if let Some(bits) = shared {
                    memory.halves[memory.current] = Half { step, bits, whole: true };
                    memory.halves[1 - memory.current].whole = false;
                }
            }
            Effect::Gradients(attempt, bits, deviation) => {
                process.gradients = Some((attempt, bits, deviation));
                process.next = None;
            }
            Effect::Next(attempt, bits, deviation) => {
                process.next = Some((attempt, bits, deviation));
                let half = Half { step: attempt.step + 1, bits, whole: true };
                if double {
                    memory.halves[1 - memory.current] = half;
                }
            }
            // What was copied of a future that did not come is forgotten.
            Effect::Copied(step, _) if process.holds.is_none_or(|holds| holds < step) => {}
            Effect::Copied(step, bits) => {
                process.copying.retain(|copied| *copied != step);
                memory.copies.retain(|(copied, _)| *copied != step);
                memory.copies.push((step, bits));
                memory.copies.sort_by_key(|(copied, _)| *copied);
                let spare = memory.copies.len().saturating_sub(COPIES);
                memory.copies.drain(..spare);
            }
            Effect::Wrote(_) => {}
        }
    }

    fn later(&mut self, at: Duration, happening: Happening) {
        self.order += 1;
        self.queue.insert((at, self.order), happening);
    }

    fn say(&mut self, at: Duration, event: Event, from: Option<Worker>, effect: Effect) {
        self.later(at, Happening::Heard { event, from, effect });
    }

    /// What goes wrong at a call, if anything.
    fn strike(&mut self, now: Duration, rank: u16, call: Call) -> Option<What> {
        let anyone = matches!(call, Call::Checkpoint | Call::Retest);
        let key = (if anyone { 0 } else { rank }, call as u8);
        let count = self.calls.entry(key).or_default();
        let nth = *count;
        *count += 1;
        if now > self.schedule.faults_until {
            return None;
        }
        if let Some(index) = self.soon.iter().position(|(kind, _)| *kind == call) {
            return Some(self.soon.swap_remove(index).1);
        }
        let fits = |(at, kind, which, _): &&(u16, Call, u32, What)| {
            *kind == call && *which == nth && (anyone || *at == rank)
        };
        let found = self.at_calls.iter().find(fits).map(|(.., what)| *what);
        self.struck += u64::from(found.is_some());
        found
    }

    /// A call's time, with some noise.
    fn takes(&mut self, milliseconds: u64) -> Duration {
        Duration::from_micros(milliseconds * self.random.between(900, 1100))
    }

    fn slowness(&self, device: u16, now: Duration) -> u32 {
        let slow = self.slow.iter().filter(|(on, until, _)| *on == device && now < *until);
        slow.map(|(.., factor)| u32::from(*factor)).max().unwrap_or(10)
    }

    /// Lets a worker do something: it answers when it is done, unless something goes wrong that no answer follows from.
    fn work(
        &mut self,
        now: Duration,
        worker: Worker,
        took: Duration,
        what: Option<What>,
        event: Event,
        effect: Effect,
    ) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        if !process.alive || process.hangs {
            return;
        }
        let device = process.device;
        let begins = process.free_at.max(now);
        let tenths = match what {
            Some(What::Slow(tenths)) => u32::from(tenths),
            _ => 10,
        };
        let took = took * self.slowness(device, now) / 10 * tenths / 10;
        let ends = begins + took;
        if let Some(process) = self.processes.get_mut(&worker) {
            process.free_at = ends;
        }
        let fails = |kind| Event::Failed { worker, kind, place: None };
        match what {
            Some(What::Dies(percent)) => {
                self.later(begins + took * u32::from(percent) / 100, Happening::Dies { worker });
            }
            Some(What::Hangs) => {
                if let Some(process) = self.processes.get_mut(&worker) {
                    // What it said before is said.
                    process.hangs = true;
                }
            }
            Some(What::Driver) => {
                let kind = FaultKind::Driver { code: 507_011, message: "the model did not execute".into() };
                self.say(ends, fails(kind), Some(worker), Effect::None);
            }
            Some(What::OutOfMemory) => {
                let kind = FaultKind::OutOfMemory { needed_bytes: 1 << 34, available_bytes: None };
                self.say(ends, fails(kind), Some(worker), Effect::None);
            }
            Some(What::DiesAfter) => {
                self.say(ends, event, Some(worker), effect);
                let after = self.takes(10);
                self.later(ends + after, Happening::Dies { worker });
            }
            _ => self.say(ends, event, Some(worker), effect),
        }
    }

    /// Carries an action out.
    pub fn perform(&mut self, now: Duration, action: &Action) {
        match action {
            Action::Launch { worker, device, duty } => self.launch(now, *worker, *device, *duty),
            Action::Kill { worker } => {
                if let Some(process) = self.processes.get_mut(worker) {
                    let alive = std::mem::replace(&mut process.alive, false);
                    process.killed = true;
                    // The closed pipe of a process that was ended may be heard of late.
                    if alive && self.random.percent(30) {
                        let at = now + Duration::from_millis(self.random.between(1, 900));
                        let kind = FaultKind::Lost { reason: "closed pipe".into(), for_good: false };
                        let event = Event::Failed { worker: *worker, kind, place: None };
                        self.say(at, event, Some(*worker), Effect::None);
                    }
                }
            }
            Action::Restore { worker, source, step } => self.restore(now, *worker, *source, *step),
            Action::Accumulate { worker, attempt, evidence } => {
                self.accumulate(now, *worker, *attempt, *evidence);
            }
            Action::Update { worker, attempt } => self.update(now, *worker, *attempt),
            Action::Commit { attempt } => self.commit(*attempt),
            Action::Skip { step } => self.skip(*step),
            Action::Snapshot { worker } => self.snapshot(now, *worker),
            Action::Checkpoint { step, states } => self.checkpoint(now, *step, states),
            Action::Replay { worker, attempt, .. } => self.replay(now, *worker, *attempt),
            Action::Confirm { worker, attempt, device, .. } => self.confirm(now, *worker, *attempt, *device),
            Action::Move { operator, .. } => {
                // Simulated alarms name no operator.
                self.checker.fail(format!("`{operator}` was moved, which no alarm named"));
            }
            Action::Retest { device } => self.retest(now, *device),
            Action::Record(entry) => {
                if let Entry::RolledBack { to, .. } = entry {
                    // Files of a future that did not come are put aside.
                    self.files.retain(|file| file.step <= *to);
                }
                if let Entry::Fault { kind: FaultKind::Lost { .. }, rank, .. } = entry {
                    let dead = |worker: &Worker, process: &Process| {
                        worker.rank == *rank && !process.alive && !process.killed
                    };
                    if !self.processes.iter().any(|(worker, process)| dead(worker, process)) {
                        self.checker.fail(format!("{rank:?} is said to be lost, its worker lives"));
                    }
                }
                let suspects: Vec<DeviceIndex> = self.suspects();
                self.checker.entry(entry, &suspects);
            }
            Action::Stop(reason) => self.stopped = Some(reason.clone()),
        }
    }

    /// Devices with workers that computed something persistently wrong.
    fn suspects(&self) -> Vec<DeviceIndex> {
        let persistent = |result: &Option<(Attempt, Bits, Deviation)>| {
            result.is_some_and(|(.., deviation)| deviation == Deviation::Persistent)
        };
        let alive = self.processes.values().filter(|process| process.alive);
        let found = alive.filter(|process| persistent(&process.gradients) || persistent(&process.next));
        found.map(|process| DeviceIndex(process.device)).collect()
    }

    fn launch(&mut self, now: Duration, worker: Worker, device: DeviceIndex, duty: Duty) {
        self.checker.launch(now, worker, device, duty);
        let process = Process {
            device: device.0,
            duty,
            alive: true,
            killed: false,
            hangs: false,
            holds: None,
            own: None,
            gradients: None,
            next: None,
            copying: Vec::new(),
            free_at: now,
        };
        // Of those that were ended, only the last may still be heard.
        while self.processes.len() > PROCESSES {
            let ended = self.processes.iter().filter(|(_, process)| process.killed);
            let Some(oldest) = ended.map(|(worker, _)| *worker).min_by_key(|worker| worker.generation) else {
                break;
            };
            self.processes.remove(&oldest);
        }
        self.processes.insert(worker, process);
        let what = self.strike(now, worker.rank.0, Call::Launch);
        if self.gone.contains(&device.0) {
            self.later(now + MILLISECOND * 10, Happening::Dies { worker });
            return;
        }
        let took = self.takes(self.costs.launch);
        self.work(now, worker, took, what, Event::Ready { worker }, Effect::Up);
    }

    fn restore(&mut self, now: Duration, worker: Worker, source: Source, step: u64) {
        let what = self.strike(now, worker.rank.0, Call::Restore);
        let took =
            self.takes(if source == Source::Checkpoint { self.costs.read } else { self.costs.restore });
        let device_home = self.schedule.setup.home == StateHome::Device;
        let double = self.schedule.setup.home == StateHome::SharedDouble;
        let noise = self.random.word();
        if let Some(process) = self.processes.get_mut(&worker) {
            process.duty = Duty::Active;
            process.holds = None;
            process.copying.clear();
        }
        let Some(memory) = self.memory.get_mut(usize::from(worker.rank.0)) else { return };
        let found = match source {
            Source::Committed | Source::Previous => {
                let halves: &[usize] = if double { &[0, 1] } else { &[0] };
                let found = halves.iter().copied().find(|half| {
                    let half = memory.halves[*half];
                    half.step == step && half.whole
                });
                match found.filter(|_| !device_home) {
                    Some(half) => {
                        memory.current = half;
                        Some((step, memory.halves[half].bits))
                    }
                    None => {
                        self.checker.fail(format!("{source:?} of step {step} is asked for, it is not whole"));
                        None
                    }
                }
            }
            Source::Snapshot => memory.copies.iter().find(|(copied, _)| *copied == step).copied(),
            Source::Checkpoint => {
                let intact = self.files.iter().filter(|file| file.intact && file.step <= step);
                let newest = intact.max_by_key(|file| file.step);
                let rank = worker.rank.0;
                let newest = newest.map(|file| (file.step, file.states[usize::from(rank)]));
                Some(newest.unwrap_or((0, Bits::right(initial_state(rank)))))
            }
        };
        let refused = what == Some(What::Refused);
        let Some((of, bits)) = found.filter(|_| !refused) else {
            let reason = "it cannot be read".into();
            self.work(now, worker, took, what, Event::RestoreFailed { worker, step, reason }, Effect::None);
            return;
        };
        let seen = if what == Some(What::CopyWrong) { bits.copied_wrong(noise) } else { bits };
        let own = (device_home || seen != bits).then_some(seen);
        let shared = (!device_home && source == Source::Checkpoint).then_some(bits);
        let event = Event::Restored { worker, step: of, state: Digest(seen.digest) };
        self.work(now, worker, took, what, event, Effect::Took { step: of, own, shared });
    }

    /// The committed state as a worker reads it.
    fn state(&self, worker: Worker) -> Bits {
        let own = self.processes.get(&worker).and_then(|process| process.own);
        let memory = self.memory.get(usize::from(worker.rank.0));
        let shared = memory.map(|memory| memory.halves[memory.current].bits);
        own.or(shared).unwrap_or(Bits::right(0))
    }

    fn change_state(&mut self, rank: usize, noise: u64) {
        let serving = |worker: &Worker, process: &Process| {
            usize::from(worker.rank.0) == rank && process.alive && process.duty == Duty::Active
        };
        let found = self.processes.iter_mut().find(|(worker, process)| serving(worker, process));
        if let Some(own) = found.and_then(|(_, process)| process.own.as_mut()) {
            *own = own.changed(noise, true);
        } else if self.schedule.setup.home != StateHome::Device
            && let Some(memory) = self.memory.get_mut(rank)
        {
            let half = &mut memory.halves[memory.current];
            half.bits = half.bits.changed(noise, true);
        }
    }

    /// What a bad device does to a range: whether it is wrong, by which noise, and whether a check says so.
    fn malice(&self, device: u16, step: u64, call: Call, evidence: bool) -> Option<(u64, bool)> {
        let percent = u64::from(*self.bad.get(&device)?);
        let word = blend(&[self.schedule.seed, u64::from(device), step, call as u64]);
        let caught = evidence || blend(&[word, 1]) % 100 < RECALL;
        (word % 100 < percent).then_some((blend(&[word, 2]), caught))
    }

    fn accumulate(&mut self, now: Duration, worker: Worker, attempt: Attempt, evidence: bool) {
        let process = self.processes.get(&worker);
        let holds = process.and_then(|process| process.holds);
        let device = process.map_or(0, |process| process.device);
        let step = attempt.step;
        self.checker.accumulate(worker, attempt, holds);
        let what = self.strike(now, worker.rank.0, Call::Accumulate);
        let noise = self.random.word();
        if what == Some(What::StateChanges) {
            self.change_state(usize::from(worker.rank.0), noise);
        }
        let base = self.state(worker);
        let mut bits = Bits { digest: gradients(base.digest, worker.rank.0, step), ..base };
        let mut alarms = Vec::new();
        let mut loss = 2.0 + 0.2 * self.random.fraction();
        let mut deviation = Deviation::None;
        if base.guilty && !base.silent {
            // What is computed from a changed state need not be a number, and then that is what shows first.
            if base.digest.is_multiple_of(2) {
                loss = f64::NAN;
                deviation = Deviation::Persistent;
            } else {
                alarms.push(alarm("state", Suspect::State));
            }
        }
        if self.spikes.contains(&step) {
            loss *= 30.0;
            deviation = Deviation::Data;
        }
        let bad_batch = self.bad_batches.contains(&step);
        if let Some((malice, caught)) = self.malice(device, step, Call::Accumulate, evidence) {
            bits = bits.changed(malice, caught);
            deviation = Deviation::Persistent;
            if caught {
                alarms.push(alarm("linear", Suspect::Compute));
            }
        }
        match what {
            Some(What::NotFinite) => {
                loss = f64::NAN;
                bits = bits.changed(noise, true);
                deviation = Deviation::Transient;
            }
            Some(What::Wrong) => {
                bits = bits.changed(noise, true);
                deviation = Deviation::Transient;
                alarms.push(alarm("attention", Suspect::Compute));
            }
            Some(What::WrongMissed) => bits = bits.changed(noise, false),
            Some(What::WrongLarge) => {
                bits = bits.changed(noise, false);
                loss *= 30.0;
                deviation = Deviation::Transient;
            }
            Some(What::FalseAlarm) => alarms.push(alarm("softmax", Suspect::Compute)),
            _ => {}
        }
        if bad_batch {
            loss = f64::NAN;
            bits.guilty = true;
            deviation = Deviation::Data;
        }
        let gradients = (evidence || attempt.number.is_multiple_of(2)).then_some(Digest(bits.digest));
        let event = Event::Accumulated { worker, attempt, result: Accumulated { loss, gradients, alarms } };
        let took = self.takes(self.costs.accumulate * if evidence { 7 } else { 4 } / 4);
        self.work(now, worker, took, what, event, Effect::Gradients(attempt, bits, deviation));
    }

    fn update(&mut self, now: Duration, worker: Worker, attempt: Attempt) {
        let step = attempt.step;
        let process = self.processes.get(&worker);
        let device = process.map_or(0, |process| process.device);
        let carried = process.and_then(|process| process.gradients);
        let blocks = process.is_some_and(|process| process.copying.iter().any(|copied| *copied < step));
        self.checker.update(worker, attempt, blocks);
        let home = self.schedule.setup.home;
        if let Some(memory) = self.memory.get_mut(usize::from(worker.rank.0)) {
            match home {
                StateHome::SharedDouble => memory.halves[1 - memory.current].whole = false,
                StateHome::SharedInPlace => memory.halves[0].whole = false,
                StateHome::Device => {}
            }
        }
        let what = self.strike(now, worker.rank.0, Call::Update);
        let noise = self.random.word();
        if what == Some(What::StateChanges) {
            self.change_state(usize::from(worker.rank.0), noise);
        }
        let base = self.state(worker);
        let fallback = (attempt, Bits::right(0), Deviation::None);
        let (_, gradients, _) = carried.unwrap_or(fallback);
        let mut bits = Bits {
            digest: next_state(base.digest, gradients.digest),
            guilty: base.guilty || gradients.guilty,
            missed: base.missed || gradients.missed,
            silent: base.silent || gradients.silent,
        };
        let mut alarms = Vec::new();
        if base.guilty && !base.silent {
            alarms.push(alarm("state", Suspect::State));
        }
        let mut norm = 1.0 + 0.2 * self.random.fraction();
        let mut deviation = Deviation::None;
        if let Some((malice, caught)) = self.malice(device, step, Call::Update, false) {
            bits = bits.changed(malice, caught);
            deviation = Deviation::Persistent;
            if caught {
                alarms.push(alarm("adamw", Suspect::Compute));
            }
        }
        match what {
            Some(What::NotFinite) => {
                norm = f64::INFINITY;
                bits = bits.changed(noise, true);
                deviation = Deviation::Transient;
            }
            Some(What::Wrong) => {
                bits = bits.changed(noise, true);
                deviation = Deviation::Transient;
                alarms.push(alarm("adamw", Suspect::Compute));
            }
            Some(What::WrongMissed) => bits = bits.changed(noise, false),
            Some(What::FalseAlarm) => alarms.push(alarm("adamw", Suspect::Compute)),
            Some(What::CarriedChanges) => {
                bits = bits.changed(noise, true);
                alarms.push(alarm("gradients", Suspect::Carried));
            }
            _ => {}
        }
        let result = Updated { gradient_norm: norm, state: Digest(bits.digest), alarms };
        let took = self.takes(self.costs.update);
        let event = Event::Updated { worker, attempt, result };
        self.work(now, worker, took, what, event, Effect::Next(attempt, bits, deviation));
    }

    fn commit(&mut self, attempt: Attempt) {
        let states = self.checker.commit(attempt);
        let step = attempt.step + 1;
        let home = self.schedule.setup.home;
        for (memory, bits) in self.memory.iter_mut().zip(&states) {
            let half = Half { step, bits: *bits, whole: true };
            match home {
                StateHome::SharedDouble => {
                    memory.current = 1 - memory.current;
                    memory.halves[memory.current] = half;
                }
                StateHome::SharedInPlace => memory.halves[0] = half,
                StateHome::Device => {}
            }
        }
        for (worker, process) in self.processes.iter_mut().filter(|(_, process)| process.holds.is_some()) {
            process.holds = Some(step);
            process.own = match home {
                StateHome::Device => states.get(usize::from(worker.rank.0)).copied(),
                StateHome::SharedDouble | StateHome::SharedInPlace => None,
            };
        }
    }

    fn skip(&mut self, step: u64) {
        self.checker.skip(step);
        for memory in &mut self.memory {
            memory.halves[memory.current].step = step + 1;
        }
        for process in self.processes.values_mut() {
            process.holds = process.holds.map(|_| step + 1);
        }
    }

    fn snapshot(&mut self, now: Duration, worker: Worker) {
        let what = self.strike(now, worker.rank.0, Call::Snapshot);
        let noise = self.random.word();
        let step = self.processes.get(&worker).and_then(|process| process.holds).unwrap_or(0);
        let state = self.state(worker);
        let told = if what == Some(What::CopyWrong) { state.copied_wrong(noise) } else { state };
        let kept = if what == Some(What::CopyChanges) { told.copied_wrong(noise) } else { told };
        let took = self.takes(self.costs.snapshot);
        let kept_for = self.takes(self.costs.kept);
        let seconds = kept_for.as_secs_f64();
        let event = Event::SnapshotTaken { worker, step, state: Digest(told.digest), seconds };
        // It runs behind the next steps, on a queue of its own.
        let free_at = self.processes.get(&worker).map(|process| process.free_at);
        if let Some(process) = self.processes.get_mut(&worker) {
            process.free_at = now;
            process.copying.push(step);
        }
        self.work(now, worker, took, what, event, Effect::Copied(step, kept));
        if let (Some(process), Some(free_at)) = (self.processes.get_mut(&worker), free_at) {
            process.free_at = free_at.max(now) + kept_for;
        }
    }

    fn checkpoint(&mut self, now: Duration, step: u64, states: &[Digest]) {
        self.checker.checkpoint(step, states);
        let what = self.strike(now, 0, Call::Checkpoint);
        if what == Some(What::StateChanges) {
            let noise = self.random.word();
            self.change_state(0, noise);
        }
        let found: Vec<Option<Bits>> =
            (0..self.schedule.setup.ranks).map(|rank| self.committed_bits(rank, step)).collect();
        let took = match what {
            Some(What::Slow(tenths)) => self.takes(self.costs.checkpoint) * u32::from(tenths) / 10,
            _ => self.takes(self.costs.checkpoint),
        };
        let at = now + took;
        let whole: Option<Vec<Bits>> = found.into_iter().collect();
        let failed = |reason: &str, damaged| Event::CheckpointFailed { step, reason: reason.into(), damaged };
        let right = |bits: &Vec<Bits>| bits.iter().map(|bits| Digest(bits.digest)).eq(states.iter().copied());
        let (event, effect) = match whole {
            _ if what == Some(What::Hangs) => return,
            _ if what == Some(What::Refused) => (failed("no space left", false), Effect::None),
            None => (failed("a rank's state is gone", false), Effect::None),
            Some(bits) if !right(&bits) => {
                (failed("the state is not the one to be written", true), Effect::None)
            }
            Some(states) => {
                let intact = what != Some(What::CopyChanges);
                (Event::CheckpointWritten { step }, Effect::Wrote(File { step, states, intact }))
            }
        };
        self.say(at, event, None, effect);
    }

    /// A file gets its name, unless its step was taken back meanwhile.
    fn write(&mut self, file: File) {
        if file.step <= self.checker.committed() {
            self.files.retain(|other| other.step != file.step);
            self.files.push(file);
        }
    }

    /// The committed state of a rank where the supervisor reads it for a file.
    fn committed_bits(&self, rank: u16, step: u64) -> Option<Bits> {
        let memory = self.memory.get(usize::from(rank))?;
        match self.schedule.setup.home {
            StateHome::SharedDouble | StateHome::SharedInPlace => {
                let half = memory.halves[memory.current];
                (half.step == step && half.whole).then_some(half.bits)
            }
            StateHome::Device => {
                let serving = |worker: &Worker, process: &Process| {
                    worker.rank == Rank(rank)
                        && process.alive
                        && !process.hangs
                        && process.holds == Some(step)
                };
                let found = self.processes.iter().find(|(worker, process)| serving(worker, process));
                let copied = memory.copies.iter().find(|(copied, _)| *copied == step).map(|(_, bits)| *bits);
                found.and_then(|(_, process)| process.own).or(copied)
            }
        }
    }

    /// The result that is in question.
    fn subject(&self, worker: Worker, attempt: Attempt) -> Deviation {
        let process = self.processes.get(&worker);
        let of = |result: Option<(Attempt, Bits, Deviation)>| {
            result.filter(|(said, ..)| *said == attempt).map(|(.., deviation)| deviation)
        };
        let next = process.and_then(|process| of(process.next));
        next.or_else(|| process.and_then(|process| of(process.gradients))).unwrap_or(Deviation::None)
    }

    /// Whether the supervisor finds that the state, which no update has overwritten yet, is not the committed one.
    fn state_changed(&self, worker: Worker, attempt: Attempt) -> bool {
        let updated = self.processes.get(&worker).and_then(|process| process.next);
        let overwritten = self.schedule.setup.home == StateHome::SharedInPlace
            && updated.is_some_and(|(said, ..)| said == attempt);
        let base = self.state(worker);
        !overwritten && base.guilty && !base.silent
    }

    fn replay(&mut self, now: Duration, worker: Worker, attempt: Attempt) {
        let what = self.strike(now, worker.rank.0, Call::Replay);
        let deviation = self.subject(worker, attempt);
        self.checker.examine(deviation, false);
        let finding = match deviation {
            _ if what == Some(What::Unknown) => Finding::Unknown,
            _ if self.state_changed(worker, attempt) => Finding::StateDamaged,
            Deviation::Transient => Finding::Differs,
            Deviation::None | Deviation::Persistent | Deviation::Data => Finding::Agrees,
        };
        let took = self.takes(self.costs.replay);
        self.work(now, worker, took, what, Event::Replayed { worker, attempt, finding }, Effect::None);
    }

    fn confirm(&mut self, now: Duration, worker: Worker, attempt: Attempt, device: Option<DeviceIndex>) {
        let what = self.strike(now, worker.rank.0, Call::Confirm);
        let deviation = self.subject(worker, attempt);
        let malice = device.and_then(|device| self.malice(device.0, attempt.step, Call::Accumulate, false));
        let lies = malice.is_some();
        self.checker.examine(deviation, lies);
        let there = device.filter(|device| !self.gone.contains(&device.0));
        let finding = match deviation {
            _ if self.state_changed(worker, attempt) => Finding::StateDamaged,
            _ if there.is_none() || what == Some(What::Unknown) => Finding::Unknown,
            _ if lies => Finding::Differs,
            Deviation::None | Deviation::Data => Finding::Agrees,
            Deviation::Transient | Deviation::Persistent => Finding::Differs,
        };
        if what == Some(What::Hangs) {
            return;
        }
        let at = now + self.takes(self.costs.confirm);
        let event = Event::Confirmed { attempt, device: there, other_chip: true, finding };
        self.say(at, event, None, Effect::None);
    }

    fn retest(&mut self, now: Duration, device: DeviceIndex) {
        if self.strike(now, 0, Call::Retest) == Some(What::Hangs) {
            return;
        }
        let passed = !self.bad.contains_key(&device.0) && !self.gone.contains(&device.0);
        let at = now + self.takes(self.costs.retest);
        let detail = if passed { "conformance and one step in lockstep" } else { "it differs" };
        self.say(at, Event::Retested { device, passed, detail: detail.into() }, None, Effect::None);
    }
}

fn alarm(operator: &str, suspect: Suspect) -> Alarm {
    let kind = FaultKind::Mismatch { operator: operator.into(), error: 1.0, tolerance: 1e-6 };
    Alarm { kind, place: None, suspect }
}
