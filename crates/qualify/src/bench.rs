//! What a qualification works with: the device, how a fresh one is opened, and what it is judged by.

use crate::budget::Clock;
use crate::gone::Gone;
use crate::result::Outcome;
use std::time::Duration;
use toprope_conformance::Oracle;
use toprope_program::{Description, Device, Fault, FaultClass};

/// Opens the device anew, as after a reset; the error is for people.
pub type Opener<'a> = &'a dyn Fn() -> Result<Box<dyn Device>, String>;

/// The device under test and what stands around it.
pub struct Bench<'a> {
    /// Opens a fresh one.
    pub open: Opener<'a>,
    /// The one under test.
    pub device: Box<dyn Device>,
    /// A device that is trusted, for its own errors beside the subject's.
    pub trusted: Option<Box<dyn Device>>,
    /// What both are judged by.
    pub oracle: Oracle,
    /// Reads the time.
    pub clock: Clock<'a>,
    /// Rests.
    pub sleep: &'a dyn Fn(Duration),
    /// Repeats everything that is drawn.
    pub seed: u64,
    /// Time that went into opening devices afresh: it belongs to no tier.
    pub opening: Duration,
    /// How often the device was lost and opened again.
    pub losses: Vec<String>,
    /// Losses since something last ran to its end.
    pub losses_in_a_row: usize,
}

/// Losses in a row after which a device is not opened again.
const LOSSES_MAX: usize = 3;

/// Times that what a fault broke off is begun.
pub(crate) const ATTEMPTS: usize = 3;

/// Begins again what a fault that passes broke off.
pub(crate) fn retried<'b, T>(
    bench: &mut Bench<'b>,
    mut attempt: impl FnMut(&mut Bench<'b>) -> T,
    outcome: impl Fn(&T) -> Option<&Outcome>,
) -> T {
    let mut turn = 1;
    loop {
        let losses = bench.losses.len();
        let result = attempt(bench);
        let stayed = bench.losses.len() == losses;
        if stayed {
            bench.held();
        }
        let broken = outcome(&result).is_none_or(|outcome| !outcome.passed());
        if stayed || bench.is_gone() || !broken || turn == ATTEMPTS {
            return result;
        }
        turn += 1;
    }
}

/// Whether a fault leaves a device that must be opened again: reported, and no result that is wrong.
pub(crate) fn is_loss(fault: &Fault) -> bool {
    matches!(fault.kind.class(), FaultClass::Lost | FaultClass::Hang | FaultClass::Driver)
}

impl Bench<'_> {
    /// What the device says of itself.
    pub fn describe(&self) -> Description {
        self.device.describe()
    }

    /// Opens a fresh one, and counts the time.
    pub fn opened(&mut self, open: Opener<'_>) -> Result<Box<dyn Device>, String> {
        let began = (self.clock)();
        let device = open();
        self.opening += (self.clock)().saturating_sub(began);
        device
    }

    /// After a fault: opens the device again where it is gone. False where it stays gone.
    pub fn revive(&mut self, fault: &Fault) -> bool {
        if !is_loss(fault) {
            return true;
        }
        self.losses.push(fault.to_string());
        self.losses_in_a_row += 1;
        if self.is_gone() {
            return false;
        }
        self.device = Box::new(Gone(self.device.describe()));
        match self.opened(self.open) {
            Ok(device) => {
                self.device = device;
                true
            }
            Err(reason) => {
                self.losses.push(reason);
                self.losses_in_a_row = LOSSES_MAX + 1;
                false
            }
        }
    }

    /// Something ran to its end.
    pub fn held(&mut self) {
        if !self.is_gone() {
            self.losses_in_a_row = 0;
        }
    }

    /// Whether it was lost more often in a row than it is opened again, or does not open any more.
    pub fn is_gone(&self) -> bool {
        self.losses_in_a_row > LOSSES_MAX
    }
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("device", &self.describe().name).finish_non_exhaustive()
    }
}
