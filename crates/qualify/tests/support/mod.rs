//! Devices and benches for tests.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod proofs; // the tiny recipes as cases
mod wrapped; // devices that differ from a right one in a known way

pub use wrapped::{refusing, rounding};

use std::sync::OnceLock;
use std::time::{Duration, Instant};
use toprope_conformance::Oracle;
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_cpu::{CpuDevice, Level, Options as CpuOptions};
use toprope_program::{Device, Width};
use toprope_qualify::Bench;
use toprope_reference::{Options, ReferenceDevice, magnitudes};

/// The time of this process.
pub fn clock() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle { device: Box::new(device), magnitudes }
}

pub fn reference() -> Box<dyn Device> {
    Box::new(ReferenceDevice::new(Options::default()))
}

/// The processor at a level, one thread.
pub fn cpu(level: Option<Level>) -> Box<dyn Device> {
    Box::new(
        CpuDevice::new(CpuOptions { threads: Some(1), level, ..CpuOptions::default() })
            .expect("a level of this machine"),
    )
}

pub fn mutant(mutant: Mutant) -> Box<dyn Device> {
    Box::new(MutantDevice::new(reference(), mutant))
}

/// A bench around a device that can be opened again and again.
pub fn bench<'a>(open: &'a dyn Fn() -> Result<Box<dyn Device>, String>, seed: u64) -> Bench<'a> {
    Bench {
        open,
        device: open().expect("the device opens"),
        trusted: Some(reference()),
        oracle: oracle(),
        clock: &clock,
        sleep: &std::thread::sleep,
        seed,
        losses: Vec::new(),
    }
}
