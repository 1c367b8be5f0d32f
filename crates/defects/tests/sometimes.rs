//! Defects that come and go are found by repeating, and slow ones by the clock. What repetition proves is printed: so many clean
//! runs bound the rate.

mod support;

use toprope_conformance::generate::{cases, exemplars::exemplars};
use toprope_conformance::replay::{Manner, compare_bits, free_run};
use toprope_conformance::session::{Session, all_checks};
use toprope_conformance::values::{Regime, draw};
use toprope_defects::{Defect, Shows, held_out, known};
use toprope_diagnose::Probe;
use toprope_program::operator::{RmsNorm, Swiglu};
use toprope_program::{DType, Device, Operator, Range, Span, Type, Width};

/// Runs of one case; a defect in 1 of 1,000 runs is missed by 5,000 with a chance of 0.7 %.
const RUNS: u64 = 5_000;

/// Elements of a case below which a bad tile may not be there.
const ELEMENTS: usize = 400;

/// The run in which a device first gave other bits than in its first one; the same operands each time.
fn first_difference(device: &mut dyn Device, operator: &str, runs: u64) -> Option<u64> {
    let exemplar = exemplars().into_iter().find(|exemplar| exemplar.name() == operator)?;
    let elements = |case: &cases::Case| -> usize {
        let program = case.program.program();
        let values = draw(program, &case.symbols, case.seed, Regime::Normal);
        values.iter().flatten().map(|tensor| tensor.data.len()).sum()
    };
    let mut all = (0..60).filter_map(|index| cases::case(&exemplar, 1, index).ok());
    let case = all.find(|case| elements(case) > ELEMENTS).expect("a case with many elements");
    let values = draw(case.program.program(), &case.symbols, case.seed, Regime::Normal);
    let session = Session::open(device, &case.program, Width::Native).expect("it takes the program");
    let checks = all_checks(case.program.program());
    let mut run =
        || free_run(device, &session, &values, &case.symbols, Manner::Whole, &checks).expect("it runs");
    let first = run();
    (1..runs).find(|_| compare_bits(&session, &case.symbols, &first, &run(), false).is_some())
}

/// The rate below which a defect lies with 95 % confidence when `clean` runs showed none: 1 - 0.05^(1/n), about 3/n.
fn bound(clean: u64) -> f64 {
    1.0 - 0.05f64.powf(1.0 / clean as f64)
}

fn sometimes(defects: Vec<Defect>) -> Vec<Defect> {
    defects.into_iter().filter(|defect| defect.shows() == Shows::Sometimes).collect()
}

#[test]
fn what_comes_and_goes_is_found_by_repeating() {
    for set in [known(), held_out()] {
        let Some(mut bench) = support::bench(set.clone()) else { return };
        for defect in sometimes(set) {
            let (found, seconds) =
                support::timed(|| first_difference(bench.with(Some(&defect)), defect.operator, RUNS));
            let found = found.unwrap_or_else(|| panic!("{} is not found in {RUNS} runs", defect.name));
            println!(
                "{} in {}: other bits in run {found} of the same operands ({seconds:.1} s); {RUNS} clean runs would have \
                 bounded its rate by {:.2e} at 95 %",
                defect.name,
                defect.operator,
                bound(RUNS)
            );
        }
    }
}

#[test]
fn a_right_worker_gives_the_same_bits_each_time() {
    let Some(mut device) = support::healthy() else { return };
    let mut operators: Vec<_> =
        sometimes(known()).iter().chain(&sometimes(held_out())).map(|d| d.operator).collect();
    operators.sort_unstable();
    for operator in operators {
        assert_eq!(first_difference(device.as_mut(), operator, 1000), None, "{operator}");
        println!(
            "{operator}: 1000 runs with the same bits: a rate above {:.2e} is ruled out at 95 %",
            bound(1000)
        );
    }
}

/// Seconds of a run of an operator on a large operand: the shortest of several, which other work on the machine changes least.
fn seconds(device: &mut dyn Device, operator: &str) -> f64 {
    let x = Type::new(DType::F32, [512, 4096]);
    let (operator, operands): (Operator, Vec<Type>) = match operator {
        "swiglu" => (Swiglu {}.into(), vec![x]),
        "rms_norm" => (RmsNorm { epsilon: 1e-6 }.into(), vec![x, Type::new(DType::F32, [4096])]),
        other => panic!("no large program of {other}"),
    };
    let probe = Probe::of(&operator, &operands, 1, Regime::Normal, true).expect("a program of one operator");
    let (program, values) = (probe.program(), probe.values());
    let session = Session::open(device, program, Width::Native).expect("it takes the program");
    let mut image = session.blank();
    for (id, _) in program.program().values_with_ids() {
        if let Some(tensor) = &values[id.0 as usize] {
            session.put(&mut image, id, tensor);
        }
    }
    session.write(device, &image).expect("it is written");
    let span = Span { range: Range::Accumulate, from: 0, to: 1 };
    let checks = all_checks(program.program());
    let mut once = || support::timed(|| session.run(device, span, &[], true, &checks).expect("it runs")).1;
    (0..40).map(|_| once()).fold(f64::INFINITY, f64::min)
}

#[test]
fn what_is_late_is_told_by_the_clock() {
    let Some(mut right) = support::healthy() else { return };
    for set in [known(), held_out()] {
        let Some(mut bench) = support::bench(set.clone()) else { return };
        for defect in set.iter().filter(|defect| defect.shows() == Shows::InTime) {
            let healthy = seconds(right.as_mut(), defect.operator);
            let without = seconds(bench.with(None), defect.operator);
            let with = seconds(bench.with(Some(defect)), defect.operator);
            println!(
                "{} in {}: {:.1} times a sister's time; without it {:.1} times",
                defect.name,
                defect.operator,
                with / healthy,
                without / healthy
            );
            assert!(with > 3.0 * healthy && without < 3.0 * healthy, "{with} {without} {healthy}");
        }
    }
}
