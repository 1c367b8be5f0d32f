//! What a qualification works with: the device, how a fresh one is opened, and what it is judged by.

use crate::budget::Clock;
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
    /// How often the device was lost and opened again.
    pub losses: Vec<String>,
}

/// Losses after which a device is not opened again.
const LOSSES_MAX: usize = 3;

impl Bench<'_> {
    /// What the device says of itself.
    pub fn describe(&self) -> Description {
        self.device.describe()
    }

    /// After a fault: opens the device again where it is gone. False where it stays gone.
    pub fn revive(&mut self, fault: &Fault) -> bool {
        let gone = matches!(fault.kind.class(), FaultClass::Lost | FaultClass::Hang | FaultClass::Driver);
        if !gone {
            return true;
        }
        self.losses.push(fault.to_string());
        if self.losses.len() > LOSSES_MAX {
            return false;
        }
        match (self.open)() {
            Ok(device) => {
                self.device = device;
                true
            }
            Err(reason) => {
                self.losses.push(reason);
                false
            }
        }
    }

    /// Whether it was lost more often than it is opened again.
    pub fn is_gone(&self) -> bool {
        self.losses.len() > LOSSES_MAX
    }
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("device", &self.describe().name).finish_non_exhaustive()
    }
}
