//! Devices for the tests, where there is a torch; where there is none they say so, and fail where CI promised one.
#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Instant;
use toprope_conformance::Oracle;
use toprope_defects::{Bench, Defect};
use toprope_program::{Device, Width};
use toprope_protocol::remote::RemoteDevice;
use toprope_pytorch::{OpenOptions, PyTorchError, open};
use toprope_reference::{Options, ReferenceDevice, magnitudes};
use toprope_world::RealWorld;

/// Set by CI, which installs torch: a test that is skipped fails.
const REQUIRED: &str = "TOPROPE_TORCH_REQUIRED";

const OPEN: OpenOptions<'static> = OpenOptions { python: None, threads: Some(1), regions: &[] };

fn there<T>(opened: Result<T, PyTorchError>) -> Option<T> {
    match opened {
        Ok(device) => Some(device),
        Err(error) => {
            let absent = matches!(error, PyTorchError::Interpreter(_))
                || error.to_string().contains("cannot import torch");
            assert!(absent && std::env::var_os(REQUIRED).is_none(), "{error}");
            eprintln!("SKIPPED, NOTHING WAS TESTED: {error}");
            None
        }
    }
}

fn boxed(device: RemoteDevice) -> Box<dyn Device> {
    Box::new(device)
}

/// A right `pytorch:cpu`.
pub fn healthy() -> Option<Box<dyn Device>> {
    there(open(&RealWorld::new(), "pytorch:cpu", &OPEN)).map(boxed)
}

/// A worker that knows these.
pub fn bench(defects: Vec<Defect>) -> Option<Bench> {
    there(Bench::open(&RealWorld::new(), defects, &OPEN))
}

/// One with a defect.
pub fn defective(defect: &Defect) -> Option<Box<dyn Device>> {
    there(defect.open(&RealWorld::new(), &OPEN)).map(boxed)
}

/// The oracle in wide mode.
pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle::new(Box::new(device), magnitudes)
}

/// What work gives, and the seconds it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed().as_secs_f64())
}
