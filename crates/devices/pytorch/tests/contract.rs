//! torch on this machine's processor against the reference device in wide width: every operator of the contract, forward
//! and gradient, in f32 and bf16. docs/pytorch.md tells what came of each disagreement.

mod support;

use toprope_conformance::{Options, run_suite};

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
