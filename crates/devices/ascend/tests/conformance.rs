//! `ascend:0` over the emulator against the reference device in wide width: every operator of the contract, forward and
//! gradient, in f32 and bf16, with fused operators and without.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use toprope_conformance::{Options, run_suite};
use toprope_program::OPERATORS;

/// Cases of each operator, each with two kinds of values.
const CASES: u64 = 12;

fn passes(variants: &str) {
    let mut subject = support::ascend(variants);
    let number = |name: &str, default| {
        let asked = std::env::var(name).ok();
        asked.map_or(default, |count: String| count.parse().expect("a number"))
    };
    let operators = std::env::var("TOPROPE_CONFORMANCE_OPERATORS").ok();
    let operators = operators.map(|list| {
        let wanted: Vec<&str> = list.split(',').collect();
        OPERATORS.iter().map(|record| record.name).filter(|name| wanted.contains(name)).collect()
    });
    let options = Options {
        seed: number("TOPROPE_CONFORMANCE_SEED", 1),
        cases_per_operator: number("TOPROPE_CONFORMANCE_CASES", CASES),
        programs: number("TOPROPE_CONFORMANCE_PROGRAMS", 60),
        shrink: false,
        operators,
        ..Options::default()
    };
    let whole = options.operators.is_none();
    let report = run_suite(&mut subject, &mut support::oracle(), &options).unwrap();
    println!("{report}");
    for difference in &report.differences {
        println!("{} in {}: {}", difference.operator, difference.case, difference.finding);
        if std::env::var_os("TOPROPE_CONFORMANCE_TEXT").is_some() {
            println!("{}", difference.text);
        }
    }
    assert!(report.device.emulated || std::env::var_os("TOPROPE_CANN_LIBRARY").is_some());
    assert!(!whole || report.cases >= 400 || options.cases_per_operator < CASES, "{} cases", report.cases);
    assert!(!whole || report.objections().is_empty(), "{}", report.objections().join("\n"));
    assert!(report.differences.is_empty(), "{} differences", report.differences.len());
    assert!(report.refused().is_empty(), "refused: {:?}", report.refused());
}

#[test]
fn the_emulated_npu_passes_with_fused_operators() {
    passes("");
}

#[test]
fn the_emulated_npu_passes_with_plain_operators() {
    passes("+fused=off");
}
