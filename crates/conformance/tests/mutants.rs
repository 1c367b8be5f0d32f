//! Every mutant is caught, by the name of the operator that it is in.

mod support;

use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_conformance::{Options, Reproducer, run_suite};

fn caught(mutant: Mutant) -> Result<String, String> {
    let mut subject = MutantDevice::new(Box::new(support::reference()), mutant);
    let options = Options {
        operators: Some(vec![mutant.operator()]),
        // A range of one operator is run as the operator alone: that takes a program of several.
        programs: if mutant == Mutant::DiffersInRange { 60 } else { 0 },
        stop_at_first: mutant != Mutant::DiffersInRange,
        shrink: false,
        ..Options::default()
    };
    let report =
        run_suite(&mut subject, &mut support::oracle(), &options).map_err(|error| error.to_string())?;
    // What outlives a range may be written by a reader of the operator only, which is then named; another program names it.
    let named = report.differences.iter().find(|first| first.operator == mutant.operator());
    match named.or(report.differences.first()) {
        None => Err(format!("{} in {} is not caught", mutant.name(), mutant.operator())),
        Some(first) if first.operator != mutant.operator() => {
            Err(format!("{} is taken for a fault of {}: {}", mutant.name(), first.operator, first.finding))
        }
        Some(first) => Ok(format!("{:<28} {}: {}", mutant.name(), first.case, first.finding)),
    }
}

#[test]
fn every_mutant_is_caught_by_name() {
    let results: Vec<_> = Mutant::ALL.iter().map(|mutant| caught(*mutant)).collect();
    let missed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    results.iter().flatten().for_each(|line| println!("{line}"));
    assert!(missed.is_empty(), "{missed:#?}");
    assert!(Mutant::ALL.len() >= 20);
}

/// Random programs alone find what is wrong, and what they find shrinks to the one operator.
#[test]
fn random_programs_find_mutants_and_shrink_them() {
    for mutant in [Mutant::MaskOffByOne, Mutant::DroppedTailColumns, Mutant::StuckLane, Mutant::RopeSign] {
        let mut subject = MutantDevice::new(Box::new(support::reference()), mutant);
        let options =
            Options { cases_per_operator: 0, programs: 60, stop_at_first: true, ..Options::default() };
        let report = run_suite(&mut subject, &mut support::oracle(), &options).unwrap();
        let first = report.differences.first().unwrap_or_else(|| panic!("{} is not found", mutant.name()));
        assert_eq!(first.operator, mutant.operator());
        let file = support::save(&report).remove(0);
        let text = std::fs::read_to_string(&file).unwrap();
        let saved =
            Reproducer::parse(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", file.display()));
        assert_eq!(Ok(&saved), Reproducer::parse(&first.text).as_ref());
        assert_eq!(saved.program.accumulate.len(), 1, "{}", first.text);
        let elements: usize = saved.values.values().map(Vec::len).sum();
        println!("{} to {elements} numbers:\n{}", mutant.name(), first.text);
        assert!(elements <= 60, "{} still has {elements} numbers\n{}", mutant.name(), first.text);
        // The saved text alone shows the fault again, and a right device passes it.
        assert!(saved.first_difference(&mut subject, &mut support::oracle()).is_some(), "{}", first.text);
        let right = saved.first_difference(&mut support::reference(), &mut support::oracle());
        assert!(right.is_none(), "{:?}", right.map(|(_, finding)| finding));
    }
}
