//! The cpu device in every dispatch level that this machine has, against the reference device in wide width.

mod support;

use toprope_conformance::{Options, run_suite};
use toprope_cpu::level::Level;
use toprope_cpu::{CpuDevice, Options as CpuOptions};

#[test]
fn the_cpu_device_passes_in_every_level_of_this_machine() {
    for level in Level::available() {
        println!("level {level}");
        let options = CpuOptions { level: Some(level), threads: Some(2), ..CpuOptions::default() };
        let mut subject = CpuDevice::new(options).unwrap();
        let options = Options { cases_per_operator: 40, programs: 300, ..Options::default() };
        let report = run_suite(&mut subject, &mut support::oracle(), &options).unwrap();
        support::expect_pass(&report);
    }
}
