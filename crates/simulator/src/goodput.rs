//! A day of faults, with measured costs: how much of it was useful.
//!
//! The real guard is driven through it, with its default policy. Faults come at random, once in so many seconds on
//! average, in the mix that the largest published run counted (Llama 3: 419 unexpected interruptions in 54 days on 16,384
//! GPUs), by what each looks like to a supervisor: an error of the vendor's software, a death, a hang, a wrong result, a
//! slow device.

use crate::random::Random;
use crate::run::run_for;
use crate::schedule::{Call, Costs, Fault, Schedule, What};
use std::time::Duration;
use toprope_guard::decide::{Guard, Setup, StateHome};
use toprope_guard::policy::Policy;

/// What a day is like.
#[derive(Clone, Debug)]
pub struct Day {
    /// Hours.
    pub hours: f64,
    /// The mean time between faults, in seconds.
    pub between_faults_seconds: f64,
    /// A clean step, in seconds.
    pub step_seconds: f64,
    /// What a standby takes to have the state, in seconds.
    pub takeover_seconds: f64,
    /// What a new worker takes to be up, in seconds.
    pub start_seconds: f64,
    /// What a durable checkpoint takes, in seconds.
    pub checkpoint_seconds: f64,
    /// What a copy of the state to the host takes, where it lies on the device, in seconds.
    pub snapshot_seconds: f64,
    /// Of that, what keeps the device from its work, in seconds.
    pub kept_seconds: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// What a device's test takes, in seconds.
    pub retest_seconds: f64,
    /// Whether a worker stands by.
    pub standby: bool,
    /// Where the state lies.
    pub home: StateHome,
    /// Devices, the primary among them.
    pub devices: u16,
    /// Draws the faults.
    pub seed: u64,
}

/// Faults of each look in 419, and the call that they come up in.
const MIX: &[(u64, Call, What)] = &[
    // 148 faulty GPUs, 72 times their memory, 19 times their SRAM.
    (239, Call::Accumulate, What::Driver),
    // Software 54, host maintenance 32, system processors 17, drives, supplies, boards, chassis, hosts 14, dependencies 2.
    (119, Call::Accumulate, What::Dies(50)),
    // Switches and cables 35, network cards 7, watchdog 7.
    (49, Call::Accumulate, What::Hangs),
    // Silent corruption.
    (6, Call::Accumulate, What::Wrong),
    // Heat.
    (6, Call::Accumulate, What::Slow(20)),
];

impl Day {
    fn schedule(&self) -> Schedule {
        let milliseconds = |seconds: f64| (seconds * 1000.0).round().clamp(1.0, 1e9) as u64;
        let step = milliseconds(self.step_seconds);
        let update = step / 8;
        let costs = Costs {
            launch: milliseconds(self.start_seconds),
            restore: milliseconds(self.takeover_seconds),
            read: milliseconds(self.checkpoint_seconds),
            accumulate: step - update,
            update,
            checkpoint: milliseconds(self.checkpoint_seconds),
            snapshot: milliseconds(self.snapshot_seconds),
            kept: milliseconds(self.kept_seconds),
            replay: step,
            confirm: step * 4,
            retest: milliseconds(self.retest_seconds),
        };
        let time = self.time();
        let mut random = Random::new(self.seed);
        let mut faults = Vec::new();
        let mut at = 0.0;
        loop {
            at -= self.between_faults_seconds * (1.0 - random.fraction()).ln();
            if at >= time.as_secs_f64() {
                break;
            }
            let mut left = random.between(0, MIX.iter().map(|(weight, ..)| weight).sum());
            for (weight, call, what) in MIX {
                if left < *weight {
                    faults.push(Fault::Soon { at_ms: (at * 1000.0) as u64, call: *call, what: *what });
                    break;
                }
                left -= weight;
            }
        }
        let setup = Setup {
            ranks: 1,
            devices: (0..self.devices.max(1)).map(|device| format!("device:{device}")).collect(),
            home: self.home,
            steps: u64::MAX / 2,
            checkpoint_every: self.checkpoint_every,
            step_estimate: Duration::from_secs_f64(self.step_seconds),
            launch_limit: Duration::from_secs_f64(5.0 + 5.0 * self.start_seconds),
        };
        let policy = Policy { standby: self.standby, ..Policy::default() };
        Schedule { seed: self.seed, setup, policy, trusted: 0, faults, faults_until: time, costs }
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.hours * 3600.0)
    }

    /// Lives it; gives the faults that were to come, and the guard at its end.
    pub fn live(&self) -> Result<(usize, Guard), String> {
        let schedule = self.schedule();
        Ok((schedule.faults.len(), run_for(&schedule, self.time())?))
    }

    /// Committed steps at the clean speed over the time, from 0 to 1.
    pub fn goodput(&self, guard: &Guard) -> f64 {
        guard.counters().steps_committed as f64 * self.step_seconds / self.time().as_secs_f64()
    }
}
