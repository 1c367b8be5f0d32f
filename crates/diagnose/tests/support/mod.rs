//! The devices that the tests hand in.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod spoiled;

use toprope_conformance::Oracle;
use toprope_cpu::{CpuDevice, Options as CpuOptions};
use toprope_program::Width;
use toprope_reference::{Options, ReferenceDevice, magnitudes};

pub fn reference() -> ReferenceDevice {
    ReferenceDevice::new(Options::default())
}

pub fn cpu() -> CpuDevice {
    CpuDevice::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("this machine has a cpu")
}

pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle::new(Box::new(device), magnitudes)
}
