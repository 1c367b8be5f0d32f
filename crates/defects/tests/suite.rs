//! The conformance suite finds every defect and names its operator, and finds nothing in the worker without one.

mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use toprope_conformance::{Options, run_suite};
use toprope_defects::{Defect, Kind, Shows, held_out, known};
use toprope_program::OPERATORS;

/// Cases of an operator that a defect must show in.
const CASES: u64 = 24;

/// The two programs that only a range of several operators shows take random programs.
fn options(operator: &'static str, programs: u64) -> Options {
    Options {
        operators: Some(vec![operator]),
        cases_per_operator: CASES,
        programs,
        stop_at_first: programs == 0,
        shrink: false,
        ..Options::default()
    }
}

/// What the suite said of a device with this defect: a line, or why it is no good.
fn found(defect: &Defect) -> Option<Result<String, String>> {
    let mut device = support::defective(defect)?;
    let programs = if defect.name == "differs_in_range" { 60 } else { 0 };
    let report = run_suite(device.as_mut(), &mut support::oracle(), &options(defect.operator, programs));
    let report = match report {
        Ok(report) => report,
        Err(error) => return Some(Err(format!("{}: {error}", defect.name))),
    };
    assert!(report.device.level.ends_with(&format!("DEFECT={}", defect.name)), "{}", report.device.level);
    let named = report.differences.iter().find(|first| first.operator == defect.operator);
    Some(match named.or(report.differences.first()) {
        None => Err(format!("{} in {} is not found", defect.name, defect.operator)),
        Some(first) if first.operator != defect.operator => {
            Err(format!("{} is taken for a fault of {}: {}", defect.name, first.operator, first.finding))
        }
        Some(first) => Ok(format!("{:<30} {}: {}", defect.name, first.case, first.finding)),
    })
}

/// Two at a time: most of the time is Python's start.
fn all_found(defects: &[Defect]) -> Vec<Result<String, String>> {
    let (next, results) = (Mutex::new(defects.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(defect) = next.lock().expect("no thread panicked").next() else { return };
                    let Some(result) = found(defect) else { return };
                    results.lock().expect("no thread panicked").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no thread panicked")
}

fn steady(defects: Vec<Defect>) -> Vec<Defect> {
    defects.into_iter().filter(|defect| defect.kind.shows() == Shows::Always).collect()
}

fn check(defects: &[Defect]) {
    if support::healthy().is_none() {
        return;
    }
    let results = all_found(defects);
    let missed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    results.iter().flatten().for_each(|line| println!("{line}"));
    println!("{} of {} found, each by its operator", results.len() - missed.len(), defects.len());
    assert!(missed.is_empty(), "{missed:#?}");
    assert_eq!(results.len(), defects.len());
}

#[test]
fn every_known_defect_is_found_by_its_operator() {
    check(&steady(known()));
}

#[test]
fn every_held_out_defect_is_found_by_its_operator() {
    check(&steady(held_out()));
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
    for slow in known().iter().chain(&held_out()).filter(|defect| defect.kind == Kind::Slow) {
        let Some(mut device) = support::defective(slow) else { return };
        let report = run_suite(device.as_mut(), &mut support::oracle(), &self::options(slow.operator, 0));
        let report = report.expect("the suite runs");
        assert!(report.cases == CASES && report.differences.is_empty(), "{report}");
    }
}

#[test]
fn defects_are_many_and_of_many_kinds() {
    let (known, held_out) = (known(), held_out());
    let kinds = |defects: &[Defect]| defects.iter().map(|defect| defect.kind).collect::<BTreeSet<_>>();
    println!("{} known of {} kinds, {} held out", known.len(), kinds(&known).len(), held_out.len());
    assert!(known.len() >= 24 && held_out.len() >= 12);
    assert!(kinds(&known).len() == Kind::ALL.len(), "{:?}", kinds(&known));
    let names: BTreeSet<_> = known.iter().chain(&held_out).map(|defect| defect.name).collect();
    assert_eq!(names.len(), known.len() + held_out.len(), "a name stands for one defect");
    // Every announcement was read: a misspelt kind would be left out.
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
