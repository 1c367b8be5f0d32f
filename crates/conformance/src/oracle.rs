//! What subjects are judged by.

use toprope_program::{Device, MagnitudeFunction};

/// A trusted device that can compute in wide mode, and the magnitudes that tolerances are relative to.
pub struct Oracle {
    /// Runs plans of [`toprope_program::Width::Wide`]: f64 arithmetic, nothing rounded between operators.
    pub device: Box<dyn Device>,
    /// Magnitudes of each output's elements.
    pub magnitudes: MagnitudeFunction,
    /// An error of so many times the magnitude is let through beside the contract's bound: a setting's own. 0 as a rule.
    pub allowance: f64,
}

impl Oracle {
    /// An oracle that lets nothing through beside the contract's bound.
    pub fn new(device: Box<dyn Device>, magnitudes: MagnitudeFunction) -> Oracle {
        Oracle { device, magnitudes, allowance: 0.0 }
    }
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oracle").field("device", &self.device.describe().name).finish_non_exhaustive()
    }
}
