//! What every verb judges devices by.

use toprope_conformance::Oracle;

/// The reference device in wide mode, with its magnitudes.
pub fn oracle() -> Oracle {
    let (device, magnitudes) = toprope_devices::oracle();
    Oracle::new(device, magnitudes)
}
