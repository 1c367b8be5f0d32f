//! The loop: what happens in the world is told to the guard, and what the guard says is done in the world.

use crate::parts::Happening;
use crate::schedule::{Fault, Schedule};
use crate::world::World;
use std::time::Duration;
use toprope_guard::decide::{Counters, Event, Guard, Mutant, StopReason};

/// What became of a schedule.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first thing that did not hold.
    pub violation: Option<String>,
    /// Faults that came.
    pub struck: u64,
    /// Wrong results that no check caught and that were committed.
    pub missed: u64,
    /// Processes of the supervisor.
    pub processes: u64,
    /// Events that the guard heard.
    pub events: u64,
    /// Time that passed in the simulation.
    pub elapsed: Duration,
    /// Whether the policy ended the run for a batch that no device can compute.
    pub stopped_by_policy: bool,
    /// The counts of each process.
    pub counters: Vec<Counters>,
}

/// After the last fault the run must end within this.
const ENDS_WITHIN: Duration = Duration::from_secs(900);
/// Events that no schedule needs.
const EVENTS: u64 = 200_000;

struct Ends {
    at: Duration,
    events: u64,
}

struct Drive<'a> {
    world: World,
    guard: Guard,
    now: Duration,
    events: u64,
    ends: Ends,
    say: &'a mut dyn FnMut(&str),
    traced: bool,
}

impl Drive<'_> {
    fn tell(&mut self, event: Event) {
        self.events += 1;
        if self.traced {
            (self.say)(&format!("{:>10.3} <- {event:?}", self.now.as_secs_f64()));
        }
        let actions = self.guard.handle(self.now, event);
        for action in &actions {
            if self.traced {
                (self.say)(&format!("{:>10.3}    -> {action:?}", self.now.as_secs_f64()));
            }
            self.world.perform(self.now, action);
        }
        self.world.checker.settle(&self.guard);
        if let Some(violation) = &self.world.checker.violation
            && self.traced
        {
            (self.say)(&format!("{:>10.3} !! {violation}", self.now.as_secs_f64()));
        }
    }
}

/// Runs a schedule to its end, or to the first violation. Each line of what happens goes to `trace`, where there is one.
pub fn run(schedule: &Schedule, mutant: Option<Mutant>, trace: Option<&mut dyn FnMut(&str)>) -> Outcome {
    let guard = || {
        let (setup, policy) = (schedule.setup.clone(), schedule.policy.clone());
        match mutant {
            Some(mutant) => Guard::with_mutant(setup, policy, mutant),
            None => Guard::new(setup, policy),
        }
    };
    let mut silent = |_: &str| {};
    let traced = trace.is_some();
    let say = trace.unwrap_or(&mut silent);
    let world = World::new(schedule);
    let ends = Ends { at: schedule.faults_until + ENDS_WITHIN, events: EVENTS };
    let mut drive = Drive { world, guard: guard(), now: Duration::ZERO, events: 0, ends, say, traced };
    let mut processes = 0;
    let mut counters = Vec::new();
    let mut begun_calm = false;
    let mut stopped_by_policy = false;
    loop {
        processes += 1;
        let calm = drive.now > schedule.faults_until;
        let begin = drive.world.begin();
        drive.guard = guard();
        drive.tell(begin);
        if live(&mut drive) {
            let (phase, at) = (drive.guard.phase(), drive.guard.committed());
            let (events, seconds) = (drive.events, drive.now.as_secs_f64());
            drive
                .world
                .checker
                .fail(format!("no end after {events} events, {seconds:.0} s: {phase:?} at step {at}"));
        }
        counters.push(drive.guard.counters().clone());
        if drive.world.checker.violation.is_some() {
            break;
        }
        match drive.world.stopped.clone() {
            None => drive.now += Duration::from_secs(1),
            Some(StopReason::Done) => {
                drive.world.end();
                break;
            }
            Some(StopReason::Policy { class })
                if class == "non_finite" && drive.world.has_bad_batch_from(drive.guard.committed()) =>
            {
                stopped_by_policy = true;
                break;
            }
            Some(reason) => {
                let honest = match &reason {
                    StopReason::Requested => std::mem::take(&mut drive.world.stop_requested),
                    StopReason::NoDevice => drive.guard.quarantined().len() == schedule.setup.devices.len(),
                    // No rule of a schedule says so: only a batch that is bad everywhere does.
                    StopReason::Policy { class } => class != "non_finite",
                    _ => true,
                };
                if !honest {
                    drive.world.checker.fail(format!("stopped for no reason: {reason:?}"));
                }
                // One process may end with what it learned of the first phase; the next one has no reason to.
                if calm && begun_calm {
                    drive.world.checker.fail(format!("stopped again with a sound device: {reason:?}"));
                }
                begun_calm |= calm;
                drive.now += Duration::from_secs(1);
            }
        }
        if processes > 40 {
            drive.world.checker.fail("40 processes did not end the run");
            break;
        }
    }
    if let Some(violation) = drive.world.checker.violation.clone()
        && traced
    {
        (drive.say)(&format!("{:>10.3} !! {violation}", drive.now.as_secs_f64()));
    }
    Outcome {
        violation: drive.world.checker.violation.clone(),
        struck: drive.world.struck,
        missed: drive.world.checker.missed,
        processes,
        events: drive.events,
        elapsed: drive.now,
        stopped_by_policy,
        counters,
    }
}

/// Runs a schedule for some time, in one process of the supervisor; gives the guard as it is then.
pub fn run_for(schedule: &Schedule, time: Duration) -> Result<Guard, String> {
    let guard = Guard::new(schedule.setup.clone(), schedule.policy.clone());
    let ends = Ends { at: time, events: u64::MAX };
    let world = World::new(schedule);
    let say = &mut |_: &str| {};
    let mut drive = Drive { world, guard, now: Duration::ZERO, events: 0, ends, say, traced: false };
    let begin = drive.world.begin();
    drive.tell(begin);
    let whole = live(&mut drive);
    match drive.world.checker.violation.take() {
        Some(violation) => Err(violation),
        None if whole => Ok(drive.guard),
        None => {
            Err(format!("the run ended after {:.0} s: {:?}", drive.now.as_secs_f64(), drive.world.stopped))
        }
    }
}

/// One process of the supervisor, until it stops, is killed, or breaks a promise; says whether its time is up.
fn live(drive: &mut Drive<'_>) -> bool {
    loop {
        if drive.world.checker.violation.is_some() || drive.world.stopped.is_some() {
            return false;
        }
        if drive.now > drive.ends.at || drive.events > drive.ends.events {
            return true;
        }
        let deadline = drive.guard.deadline();
        match (drive.world.next_at(), deadline) {
            (None, None) => {
                let phase = drive.guard.phase();
                drive.world.checker.fail(format!("nothing will ever happen again: {phase:?}"));
                return false;
            }
            (next, Some(deadline)) if next.is_none_or(|next| deadline < next) => {
                drive.now = drive.now.max(deadline);
                drive.tell(Event::Tick { progress: Vec::new() });
                if drive.guard.deadline().is_some_and(|after| after <= drive.now) {
                    drive.world.checker.fail("a tick does not move the deadline that it was for");
                }
            }
            _ => match drive.world.step() {
                Some((at, Happening::Heard { event, .. })) => {
                    drive.now = drive.now.max(at);
                    drive.tell(event);
                }
                Some((at, Happening::Fault(Fault::SupervisorDies { .. }))) => {
                    drive.now = drive.now.max(at);
                    if drive.traced {
                        (drive.say)(&format!("{:>10.3} ** the supervisor is killed", at.as_secs_f64()));
                    }
                    return false;
                }
                _ => {}
            },
        }
    }
}
