//! The cpu device in every dispatch level that this machine has, against the reference device in wide width.

mod support;

use toprope_conformance::generate::programs;
use toprope_conformance::replay::{Manner, compare_bits, free_run};
use toprope_conformance::session::{Session, all_checks};
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::{Options, run_suite};
use toprope_cpu::level::Level;
use toprope_cpu::{CpuDevice, Options as CpuOptions};
use toprope_program::Width;

#[test]
fn the_cpu_device_passes_in_every_level_of_this_machine() {
    for level in Level::available() {
        println!("level {level}");
        let options = CpuOptions { level: Some(level), threads: Some(2), ..CpuOptions::default() };
        let mut subject = CpuDevice::new(options).unwrap();
        let options =
            Options { cases_per_operator: 40, programs: support::programs(300), ..Options::default() };
        let report = run_suite(&mut subject, &mut support::oracle(), &options).unwrap();
        support::expect_pass(&report);
    }
}

/// Every random program leaves the same bytes whatever the number of threads.
#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for level in Level::available() {
        let mut devices: Vec<CpuDevice> = [1, 2, 3]
            .map(|threads| {
                let options =
                    CpuOptions { level: Some(level), threads: Some(threads), ..CpuOptions::default() };
                CpuDevice::new(options).unwrap()
            })
            .into();
        for seed in 0..100 {
            let generated = programs::program(seed).unwrap();
            let program = generated.program.program();
            let values = draw(program, &generated.symbols, generated.seed, Regime::Normal);
            let mut images = Vec::new();
            for device in &mut devices {
                let session = Session::open(device, &generated.program, Width::Native).unwrap();
                let checks = all_checks(program);
                let symbols = &generated.symbols;
                let image = free_run(device, &session, &values, symbols, Manner::Whole, &checks).unwrap();
                images.push(image);
                if let [first, .., last] = images.as_slice() {
                    let difference = compare_bits(&session, symbols, first, last, false);
                    assert_eq!(difference, None, "{level}, {} threads, seed {seed}", images.len());
                }
                session.close(device).unwrap();
            }
        }
    }
}
