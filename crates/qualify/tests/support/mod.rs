//! Devices and benches for tests.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod proofs; // the tiny recipes as cases
pub mod troubled; // devices that are right and in trouble
mod wrapped; // devices that differ from a right one in a known way

#[allow(unused_imports, reason = "each test file uses its part")]
pub use wrapped::{refusing, rounding, rounding_of, wide_column};

use std::cell::Cell;
use std::time::{Duration, Instant};
use toprope_conformance::Oracle;
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_cpu::{CpuDevice, Level, Options as CpuOptions};
use toprope_program::{Device, Width};
use toprope_qualify::Bench;
use toprope_reference::{Options, ReferenceDevice, magnitudes};

thread_local! {
    static BEGAN: Instant = Instant::now();
    static JUMPED: Cell<Option<(Duration, Duration)>> = const { Cell::new(None) };
}

/// The time of this test's thread, at a third of its speed until [`jump`]: a busy machine is not what is tested.
pub fn clock() -> Duration {
    let elapsed = BEGAN.with(Instant::elapsed);
    match JUMPED.get() {
        None => elapsed / 3,
        Some((at, to)) => to + (elapsed - at),
    }
}

/// Sets the clock back to slow, for another qualification of the same test.
pub fn start() {
    JUMPED.set(None);
}

/// From here on it is so late, and time goes as it goes.
pub fn jump(to: Duration) {
    let at = BEGAN.with(Instant::elapsed);
    JUMPED.set(Some((at, to.max(at / 3))));
}

pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle::new(Box::new(device), magnitudes)
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
        opening: Duration::ZERO,
        losses: Vec::new(),
        losses_in_a_row: 0,
    }
}
