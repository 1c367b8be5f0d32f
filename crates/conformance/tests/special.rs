//! What is no ordinary number: what comes of it by the formula, here written down, and on every level of the cpu device.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use toprope_conformance::generate::exemplars::exemplars;
use toprope_conformance::generate::special::special;
use toprope_conformance::session::{Session, all_checks};
use toprope_conformance::{Floor, Options, Reproducer, run_suite};
use toprope_cpu::level::Level;
use toprope_cpu::{CpuDevice, Options as CpuOptions};
use toprope_program::{Device, Range, Span, Width};

/// Every case of every operator, and nothing else.
fn only_special() -> Options {
    let floor = Floor { agree: 0, ..Floor::default() };
    Options { cases_per_operator: 0, special: true, programs: 0, floor, ..Options::default() }
}

/// What a case gives, output by output.
fn outputs(device: &mut dyn Device, case: &Reproducer) -> Vec<Vec<f64>> {
    let program = case.validated().unwrap();
    let session = Session::open(device, &program, Width::Native).unwrap();
    let mut image = session.blank();
    let values = case.values(0).unwrap();
    for (id, _) in case.program.values_with_ids() {
        if let Some(tensor) = &values[id.0 as usize] {
            session.put(&mut image, id, tensor);
        }
    }
    session.write(device, &image).unwrap();
    let span = Span { range: Range::Accumulate, from: 0, to: 1 };
    session.run(device, span, &[], true, &all_checks(&case.program)).unwrap();
    let after = session.read(device).unwrap();
    let sizes = |id: toprope_program::ValueId| {
        case.program.value(id).shape.iter().map(|dim| dim.factor).collect::<Vec<usize>>()
    };
    let made = &case.program.accumulate[0].outputs;
    let outputs = made.iter().map(|id| session.get(&after, *id, &sizes(*id)).unwrap().data).collect();
    session.close(device).unwrap();
    outputs
}

/// What one device gives for the case of this name, in f32.
fn of(device: &mut dyn Device, name: &str) -> Vec<Vec<f64>> {
    let mut cases = exemplars().into_iter().flat_map(|operator| special(&operator).unwrap());
    let case = cases.find(|case| case.whole.program.name == name);
    outputs(device, &case.unwrap_or_else(|| panic!("no case {name:?}")).whole)
}

/// The oracle itself must say what the formulas do: which elements are no numbers is written down here by hand.
#[test]
fn the_formulas_say_what_comes_of_it() {
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(support::reference())];
    for level in Level::available() {
        let options = CpuOptions { level: Some(level), threads: Some(2), ..CpuOptions::default() };
        devices.push(Box::new(CpuDevice::new(options).unwrap()));
    }
    for device in &mut devices {
        let device = device.as_mut();
        let told = format!("{} {}", device.describe().name, device.describe().level);
        let nan =
            |values: &[f64]| -> Vec<usize> { (0..values.len()).filter(|at| values[*at].is_nan()).collect() };
        let infinite = |values: &[f64]| -> Vec<usize> {
            (0..values.len()).filter(|at| values[*at].is_infinite()).collect()
        };
        // Two heads of three columns a row; the first document ends before row 40.
        let rows =
            |rows: std::ops::Range<usize>| rows.flat_map(|row| row * 6..row * 6 + 6).collect::<Vec<_>>();
        let found = of(device, "attention: a NaN key reaches the rows that see it");
        assert_eq!((nan(&found[0]), infinite(&found[0])), (rows(10..40), vec![]), "{told}");
        let found = of(device, "attention: a NaN query is its own row's");
        assert_eq!((nan(&found[0]), nan(&found[1])), (vec![75, 76, 77], vec![25]), "{told}");
        let found = of(device, "attention: an infinite value, in its column");
        let column: Vec<usize> = (20..40).flat_map(|row| [row * 6 + 1, row * 6 + 4]).collect();
        assert_eq!((nan(&found[0]), infinite(&found[0]), nan(&found[1])), (vec![], column, vec![]), "{told}");
        let found = of(device, "attention: a score of -inf has no weight, and alone no meaning");
        assert_eq!((nan(&found[0]), infinite(&found[0])), (rows(40..41), vec![]), "{told}");
        let found = of(device, "attention: a score of +inf is NaN");
        assert_eq!(nan(&found[0]), rows(30..40), "{told}");

        let found = of(device, "rms_norm: a NaN makes its own row NaN");
        let (first, last): (Vec<usize>, Vec<usize>) = ((0..37).collect(), (74..111).collect());
        assert_eq!((nan(&found[0]), nan(&found[1])), ([first, last].concat(), vec![0, 2]), "{told}");
        let found = of(device, "rms_norm: beside an infinity the others are 0");
        assert_eq!((nan(&found[0]), found[0][6], found[1][0]), (vec![5, 110], 0.0, 0.0), "{told}");
        let found = of(device, "rms_norm: zeros, and weights that are no numbers");
        assert_eq!(nan(&found[0]), [36, 40, 73, 77, 78, 110], "{told}");
        assert_eq!(infinite(&found[0]), [3, 4, 41], "{told}");
        assert!(found[0][41] > 0.0 && found[0][4] < 0.0 && found[0][74] == 0.0, "{told}");

        let found = of(device, "swiglu: NaN, infinities and the largest numbers in gates and values");
        assert_eq!((nan(&found[0]), infinite(&found[0])), (vec![0, 1, 4, 34], vec![2, 3, 104]), "{told}");
        assert!(found[0][3] < 0.0 && found[0][5] == 0.0 && found[0][6] > 1e38, "{told}");

        let found = of(device, "linear_cross_entropy: NaN rows, one of them without a target");
        assert_eq!((nan(&found[0]), nan(&found[1]), found[0][2]), (vec![0], vec![0, 2], 0.0), "{told}");
        let found = of(device, "linear_cross_entropy: a word that cannot be, and is a target");
        assert_eq!(
            (infinite(&found[0]), nan(&found[0]), infinite(&found[1])),
            (vec![4], vec![], vec![]),
            "{told}"
        );

        let found = of(device, "router: a NaN is never chosen, +inf always, -inf last");
        assert_eq!((nan(&found[0]), nan(&found[2]), found[1][2]), (vec![3], vec![], 5.0), "{told}");
        assert!(found[1][..2].iter().all(|chosen| *chosen != 3.0), "{told}");

        let found = of(device, "global_norm: an infinity gives factor 0");
        assert_eq!((found[0][0], found[1][0]), (f64::INFINITY, 0.0), "{told}");
        let found = of(device, "global_norm: a NaN gives factor 0");
        assert!(found[0][0].is_nan() && found[1][0] == 0.0, "{told}");
        let found = of(device, "adamw: what is no number stays in its own element");
        assert_eq!(nan(&found[0]), [0, 1, 2, 5, 8, 9, 10, 39], "{told}");
    }
}

#[test]
fn every_case_agrees_on_the_reference_device_and_on_every_level() {
    let report = run_suite(&mut support::reference(), &mut support::oracle(), &only_special()).unwrap();
    assert!(report.special >= 70 && report.objections().is_empty(), "{report}");
    for level in Level::available() {
        let options = CpuOptions { level: Some(level), threads: Some(2), ..CpuOptions::default() };
        let mut subject = CpuDevice::new(options).unwrap();
        let report = run_suite(&mut subject, &mut support::oracle(), &only_special()).unwrap();
        support::save(&report);
        let findings: Vec<String> =
            report.differences.iter().map(|d| format!("{}: {}", d.case, d.finding)).collect();
        assert!(report.objections().is_empty(), "{level}\n{}", findings.join("\n"));
    }
}
