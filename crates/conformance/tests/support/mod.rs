//! The oracle that the tests hand in.
#![allow(dead_code, reason = "each test file uses its part")]

use toprope_conformance::{Oracle, Report};
use toprope_program::Width;
use toprope_reference::{Options, ReferenceDevice, magnitudes};

pub fn reference() -> ReferenceDevice {
    ReferenceDevice::new(Options::default())
}

pub fn oracle() -> Oracle {
    let device = ReferenceDevice::new(Options { width: Width::Wide, ..Options::default() });
    Oracle { device: Box::new(device), magnitudes }
}

/// Fails with the table and a line for each difference; the programs go to standard output, which a failing test shows.
pub fn expect_pass(report: &Report) {
    let objections = report.objections();
    for difference in &report.differences {
        println!(
            "{} in {}: {}\n{}",
            difference.operator, difference.case, difference.finding, difference.text
        );
    }
    let findings: Vec<String> =
        report.differences.iter().map(|d| format!("{} in {}: {}", d.operator, d.case, d.finding)).collect();
    assert!(objections.is_empty(), "{}\n{}", objections.join("\n"), findings.join("\n"));
    assert!(report.refused().is_empty(), "refused: {:?}", report.refused());
}
