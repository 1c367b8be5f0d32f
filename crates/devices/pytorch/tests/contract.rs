//! torch on this machine's processor against the reference device in wide width: every operator of the contract, forward
//! and gradient, in f32 and bf16. docs/pytorch.md tells what came of each disagreement.

mod support;

use std::collections::BTreeSet;
use toprope_conformance::{Floor, Options, run_suite};

/// Cases of each operator, each with two kinds of values.
const CASES: u64 = 12;

#[test]
fn torch_passes_on_the_processor() {
    let Some(mut subject) = support::torch("pytorch:cpu") else { return };
    let number = |name: &str, default| {
        let asked = std::env::var(name).ok();
        asked.map_or(default, |count: String| count.parse().expect("a number"))
    };
    let options = Options {
        seed: number("TOPROPE_CONFORMANCE_SEED", 1),
        cases_per_operator: number("TOPROPE_CONFORMANCE_CASES", CASES),
        programs: number("TOPROPE_CONFORMANCE_PROGRAMS", 60),
        shrink: false,
        ..Options::default()
    };
    let report = run_suite(subject.as_mut(), &mut support::oracle(), &options).unwrap();
    println!("{report}");
    for difference in &report.differences {
        println!("{} in {}: {}", difference.operator, difference.case, difference.finding);
        if std::env::var_os("TOPROPE_CONFORMANCE_TEXT").is_some() {
            println!("{}", difference.text);
        }
    }
    assert!(report.cases >= 400 || options.cases_per_operator < CASES, "{} cases", report.cases);
    assert!(report.objections().is_empty(), "{}", report.objections().join("\n"));
    assert!(report.refused().is_empty(), "refused: {:?}", report.refused());
}

/// Where torch departs from the formulas in what comes of NaN and infinities: an operator, and the case that shows it.
/// docs/pytorch.md tells why. One that agrees is an error too.
const DEPARTURES: &[(&str, &str)] = &[
    ("attention", "attention: an infinite value, in its column"),
    ("attention", "attention: infinities that meet are NaN"),
    ("attention", "attention: no weight times an infinite value is NaN"),
    ("attention", "attention_gradient: a NaN value"),
    ("attention", "attention_gradient: an infinite value"),
    ("attention_gradient", "attention_gradient: a NaN in dout"),
    ("attention_gradient", "attention_gradient: a NaN key"),
    ("attention_gradient", "attention_gradient: a NaN query"),
    ("attention_gradient", "attention_gradient: a NaN value"),
    ("attention_gradient", "attention_gradient: a score of -inf"),
    ("attention_gradient", "attention_gradient: an infinite value"),
    ("attention_gradient", "attention_gradient: an infinity in dout"),
    ("rms_norm_gradient", "rms_norm_gradient: a NaN and an infinity, each in its row"),
];

#[test]
fn what_is_no_ordinary_number_departs_where_it_is_known_to() {
    let Some(mut subject) = support::torch("pytorch:cpu") else { return };
    let floor = Floor { agree: 0, ..Floor::default() };
    let options = Options { cases_per_operator: 0, special: true, programs: 0, floor, ..Options::default() };
    let report = run_suite(subject.as_mut(), &mut support::oracle(), &options).unwrap();
    let found = report.differences.iter().map(|d| (d.operator.as_str(), d.case.as_str()));
    let found: BTreeSet<(&str, &str)> = found.collect();
    assert!(report.special >= 70, "{} cases", report.special);
    assert_eq!(found, DEPARTURES.iter().copied().collect(), "{report}");
    // What departs is NaN where the formula has a number, and never the other way round: no NaN is swallowed.
    for difference in &report.differences {
        assert!(difference.finding.contains("got NaN, want "), "{}: {}", difference.case, difference.finding);
    }
}
