//! A device for the tests, where there is a torch; where there is none they say so, and fail where CI promised one.
#![allow(dead_code, reason = "each test file uses its part")]

use toprope_conformance::Oracle;
use toprope_program::{Device, Width};
use toprope_pytorch::{OpenOptions, PyTorchError, open};
use toprope_reference::{Options, ReferenceDevice, magnitudes};
use toprope_world::RealWorld;

/// Set by CI, which installs torch: a test that is skipped fails.
const REQUIRED: &str = "TOPROPE_TORCH_REQUIRED";

/// Opens a device with one thread. `None` where this machine has no torch.
pub fn torch(name: &str) -> Option<Box<dyn Device>> {
    let options = OpenOptions { python: None, threads: Some(1), regions: &[] };
    match open(&RealWorld::new(), name, &options) {
        Ok(device) => Some(Box::new(device)),
        Err(error) => {
            let absent = matches!(error, PyTorchError::Interpreter(_))
                || error.to_string().contains("cannot import torch");
            assert!(absent && std::env::var_os(REQUIRED).is_none(), "{name}: {error}");
            eprintln!("SKIPPED, NOTHING WAS TESTED: {error}");
            None
        }
    }
}

/// The oracle in wide mode.
pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle::new(Box::new(device), magnitudes)
}
