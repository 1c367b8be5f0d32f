//! The conformance suite finds every defect and names its operator, and finds nothing in the worker without one.

mod support;

use std::collections::BTreeSet;
use toprope_conformance::{Options, run_suite};
use toprope_defects::{Bench, Defect, Shows, held_out, known};
use toprope_program::OPERATORS;

/// Cases of an operator that a defect must show in.
const CASES: u64 = 24;

/// The same where an operator is five functions: a defect may be in one or two of them, and show in one sort of values.
const CASES_OF_ACTIVATION: u64 = 72;

/// The two programs that only a range of several operators shows take random programs.
fn options(operator: &'static str, programs: u64) -> Options {
    Options {
        operators: Some(vec![operator]),
        cases_per_operator: if operator == "activation" { CASES_OF_ACTIVATION } else { CASES },
        programs,
        stop_at_first: programs == 0,
        shrink: false,
        ..Options::default()
    }
}

/// What the suite said of a device with this defect: a line, or why it is no good.
fn found(bench: &mut Bench, defect: &Defect) -> Result<String, String> {
    let programs = if defect.name == "differs_in_range" { 60 } else { 0 };
    let options = options(defect.operator, programs);
    let report = run_suite(bench.with(Some(defect)), &mut support::oracle(), &options);
    let report = report.map_err(|error| format!("{}: {error}", defect.name))?;
    let named = report.differences.iter().find(|first| first.operator == defect.operator);
    match named.or(report.differences.first()) {
        None => Err(format!("{} in {} is not found", defect.name, defect.operator)),
        Some(first) if first.operator != defect.operator => {
            Err(format!("{} is taken for a fault of {}: {}", defect.name, first.operator, first.finding))
        }
        Some(first) => Ok(format!("{:<30} {}: {}", defect.name, first.case, first.finding)),
    }
}

fn steady(defects: Vec<Defect>) -> Vec<Defect> {
    defects.into_iter().filter(|defect| defect.shows() == Shows::Always).collect()
}

fn check(all: Vec<Defect>) {
    let Some(mut bench) = support::bench(all.clone()) else { return };
    let (mut missed, steady) = (Vec::new(), steady(all));
    for defect in &steady {
        let (result, seconds) = support::timed(|| found(&mut bench, defect));
        match result {
            Ok(line) => println!("{line} ({seconds:.1} s)"),
            Err(line) => missed.push(line),
        }
    }
    println!("{} of {} found, each by its operator", steady.len() - missed.len(), steady.len());
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn every_known_defect_is_found_by_its_operator() {
    check(known());
}

#[test]
fn every_held_out_defect_is_found_by_its_operator() {
    check(held_out());
}

/// The control: the same cases on the worker as it ships, and with a defect that changes no result.
#[test]
fn without_a_defect_nothing_is_found() {
    let Some(mut device) = support::healthy() else { return };
    let mut operators: Vec<&'static str> = known().iter().chain(&held_out()).map(|d| d.operator).collect();
    operators.sort_unstable();
    operators.dedup();
    let options = Options { operators: Some(operators), stop_at_first: false, ..options("", 0) };
    let report = run_suite(device.as_mut(), &mut support::oracle(), &options).expect("the suite runs");
    println!("{} cases, {} differences", report.cases, report.differences.len());
    assert!(report.cases > 500 && report.differences.is_empty(), "{report}");
    for set in [known(), held_out()] {
        let Some(mut bench) = support::bench(set.clone()) else { return };
        for slow in set.iter().filter(|defect| defect.shows() == Shows::InTime) {
            let options = self::options(slow.operator, 0);
            let report = run_suite(bench.with(Some(slow)), &mut support::oracle(), &options);
            let report = report.expect("the suite runs");
            assert!(report.cases == CASES && report.differences.is_empty(), "{report}");
        }
    }
}

#[test]
fn defects_are_many_and_of_many_kinds() {
    let (known, held_out) = (known(), held_out());
    let kinds: BTreeSet<_> = known.iter().flat_map(|defect| defect.kinds.iter().copied()).collect();
    println!("{} known of {} kinds, {} held out", known.len(), kinds.len(), held_out.len());
    assert!(known.len() >= 24 && kinds.len() >= 20 && held_out.len() >= 20);
    let names: BTreeSet<_> = known.iter().chain(&held_out).map(|defect| defect.name).collect();
    assert_eq!(names.len(), known.len() + held_out.len(), "a name stands for one defect");
    // Every announcement was read.
    for (text, read) in [
        (include_str!("../src/defects.py"), known.len()),
        (include_str!("../src/held_out.py"), held_out.len()),
    ] {
        assert_eq!(text.lines().filter(|line| line.starts_with("@defect(")).count(), read);
    }
    for defect in known.iter().chain(&held_out) {
        assert!(OPERATORS.iter().any(|record| record.name == defect.operator), "{defect:?}");
    }
}
