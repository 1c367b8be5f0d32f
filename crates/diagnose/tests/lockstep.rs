//! A step in lockstep names the wrong operator first, and nobody where all agree.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use toprope_conformance::generate::programs;
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_conformance::values::{Regime, draw};
use toprope_diagnose::lockstep::{Named, Options, Party, Walk, walk};
use toprope_diagnose::row::Outcome;
use toprope_diagnose::spans::{Spans, spans};
use toprope_diagnose::step::{MicroValues, StepValues};
use toprope_diagnose::{Kind, free, vote};
use toprope_program::{Device, Role, Tensor, Validated};

/// A random program with two micro-batches' values.
fn random_step(seed: u64) -> (Arc<Validated>, StepValues) {
    let generated = programs::program(seed).unwrap();
    let program = generated.program.program();
    let named = |seed: u64, inputs: bool| -> Vec<(String, Tensor)> {
        let values = draw(program, &generated.symbols, seed, Regime::Normal);
        let chosen = program.values_with_ids().filter(|(_, value)| match value.role {
            Role::Input => inputs,
            Role::State { .. } | Role::Cache => !inputs,
            _ => false,
        });
        chosen.filter_map(|(id, value)| Some((value.name.clone(), values[id.0 as usize].clone()?))).collect()
    };
    let micro = |seed| MicroValues { symbols: generated.symbols.clone(), values: named(seed, true) };
    let seed = generated.seed;
    let step = StepValues { values: named(seed, false), micro: vec![micro(seed), micro(seed + 1)] };
    (generated.program.clone(), step)
}

fn walked(subject: &mut dyn Device, seed: u64, options: &Options) -> Walk {
    let (program, step) = random_step(seed);
    let (mut oracle, mut trusted) = (support::oracle(), support::reference());
    let mut party = Party {
        subject: Named { name: "subject".into(), device: subject },
        others: Vec::new(),
        trusted: Named { name: "trusted".into(), device: &mut trusted },
        oracle: &mut oracle,
    };
    let mut told = 0;
    let walk = walk(&mut party, &program, &step, options, &mut |_, _, _| told += 1).unwrap();
    assert_eq!(told, walk.rows.len());
    walk
}

#[test]
fn a_right_device_is_not_named() {
    for seed in 0..12 {
        let walk = walked(&mut support::cpu(), seed, &Options::default());
        assert!(walk.first.is_none(), "seed {seed}: {:?}", walk.first.map(|found| found.row));
        assert!(walk.rows.iter().all(|row| !row.trusted().is_wrong()));
    }
}

/// Mutants that no result of a step in lockstep can show, and why.
fn hidden(mutant: Mutant) -> Option<&'static str> {
    match mutant {
        Mutant::DiffersInRange => Some("only where several operators run in one span; `spans` shows it"),
        Mutant::DiffersFromRunToRun => Some("within the tolerance; `repeat` shows it"),
        _ => None,
    }
}

#[test]
fn the_mutated_operator_is_the_first_that_is_named() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL.iter().copied().filter(|mutant| hidden(*mutant).is_none()) {
        let mut seen = false;
        for seed in 0..160 {
            let (program, _) = random_step(seed);
            let plain = program.program();
            let there = plain.accumulate.iter().chain(&plain.update);
            if !there.into_iter().any(|i| i.operator.name() == mutant.operator()) {
                continue;
            }
            let mut subject = MutantDevice::new(Box::new(support::reference()), mutant);
            let walk = walked(&mut subject, seed, &Options { stop_at_first: true, ..Options::default() });
            if let Some(found) = walk.first {
                assert_eq!(found.row.operator, mutant.operator(), "{} in seed {seed}", mutant.name());
                seen = true;
                break;
            }
        }
        if !seen {
            unseen.push(mutant.name());
        }
    }
    println!("shown by no random program: {unseen:?}");
    // These need what random programs rarely hold: special values, ties, strays; cases of one operator show them.
    assert!(unseen.len() <= 8, "{unseen:?}");
}

#[test]
fn bits_that_differ_are_seen_by_repeating() {
    for seed in 0..60 {
        let (program, _) = random_step(seed);
        let plain = program.program();
        if !plain.accumulate.iter().any(|i| i.operator.name() == "dot") {
            continue;
        }
        let mut subject = MutantDevice::new(Box::new(support::reference()), Mutant::DiffersFromRunToRun);
        let options = Options { repeat: 6, operators: Some(vec!["dot".into()]), ..Options::default() };
        let walk = walked(&mut subject, seed, &options);
        assert!(walk.rows.iter().all(|row| row.operator == "dot"));
        let standing = walk.rows[0].subject();
        assert_eq!((standing.verdict, standing.runs), (Outcome::Agree, 6));
        assert!(standing.other_bits >= 2, "{standing:?}");
        return;
    }
    panic!("no program has a dot product");
}

#[test]
fn of_three_the_one_that_stands_alone_is_named() {
    let seed = (0..100).find(|seed| {
        let (program, _) = random_step(*seed);
        program.program().accumulate.iter().any(|i| i.operator.name() == "scale")
    });
    let (program, step) = random_step(seed.unwrap());
    let (mut oracle, mut trusted) = (support::oracle(), support::reference());
    let mut subject = MutantDevice::new(Box::new(support::reference()), Mutant::StuckLane);
    let mut other = support::cpu();
    let mut party = Party {
        subject: Named { name: "bad".into(), device: &mut subject },
        others: vec![Named { name: "cpu".into(), device: &mut other }],
        trusted: Named { name: "reference".into(), device: &mut trusted },
        oracle: &mut oracle,
    };
    let walk = walk(&mut party, &program, &step, &Options::default(), &mut |_, _, _| {}).unwrap();
    let row = walk.first.unwrap().row;
    assert_eq!(row.operator, "scale");
    let vote = row.vote.clone().unwrap();
    assert!(vote.starts_with("bad stands alone; cpu and reference agree"), "{vote}");
    assert_eq!(vote::blame(&row), Some(vote::Blame::Subject));
}

#[test]
fn free_runs_grow_apart_from_the_first_wrong_operator_on() {
    let (program, step) = random_step(3);
    let (mut a, mut b) = (support::reference(), support::reference());
    let same = free::free_run(&mut a, &mut b, &program, &step).unwrap();
    assert!(same.distances.is_empty() && same.state.is_none_or(|state| state == 0.0), "{same:?}");
    let operator = program.program().accumulate[0].operator.name();
    let mutant = Mutant::ALL.iter().copied().find(|m| m.operator() == "scale").unwrap();
    let seed = (0..100)
        .find(|seed| random_step(*seed).0.program().accumulate.iter().any(|i| i.operator.name() == "scale"));
    let (program, step) = random_step(seed.unwrap());
    let mut a = MutantDevice::new(Box::new(support::reference()), mutant);
    let apart = free::free_run(&mut a, &mut b, &program, &step).unwrap();
    assert_eq!(apart.distances[0].operator, "scale", "{operator}: {apart:?}");
}

/// What runs otherwise in one span with others is named by bits, and a right device is not.
#[test]
fn who_differs_in_a_span_is_named() {
    let mut named = 0;
    for seed in 0..40 {
        let (program, step) = random_step(seed);
        let there = program.program().accumulate.iter().chain(&program.program().update);
        let Some(_) = there.into_iter().find(|i| i.operator.name() == "activation") else { continue };
        match spans(&mut support::cpu(), "cpu", &program, &step).unwrap() {
            Spans::Same(compared) => assert!(compared > 0),
            other => panic!("seed {seed}: {other:?}"),
        }
        let mut subject = MutantDevice::new(Box::new(support::reference()), Mutant::DiffersInRange);
        match spans(&mut subject, "subject", &program, &step).unwrap() {
            Spans::Differs(found) => {
                let (row, guess) = *found;
                assert_eq!(
                    (row.operator.as_str(), guess.kind),
                    ("activation", Kind::DiffersInRange),
                    "{row:?}"
                );
                assert!(row.is_wrong() && row.worst.is_some());
                named += 1;
            }
            // Alone in its range, or nobody is left of it.
            Spans::Same(_) => {}
            Spans::NotRun(reason) => panic!("{reason}"),
        }
    }
    assert!(named > 3, "named {named} times");
}

/// Where the oracle judges parts, a right device is not named and a wrong one is.
#[test]
fn sampled_rows_columns_and_heads_are_judged_as_the_whole_is() {
    let options = Options { oracle_flops_max: 0, ..Options::default() };
    let mut sampled = 0;
    for seed in 0..24 {
        let walk = walked(&mut support::cpu(), seed, &options);
        assert!(walk.first.is_none(), "seed {seed}: {:?}", walk.first.map(|found| found.row));
        sampled += walk.rows.iter().filter(|row| row.sampled.is_some()).count();
    }
    assert!(sampled > 40, "only {sampled} rows were sampled");
    for mutant in [Mutant::BfloatAccumulation, Mutant::MaskOffByOne, Mutant::DroppedTailColumns] {
        let found = (0..60).find_map(|seed| {
            let mut subject = MutantDevice::new(Box::new(support::reference()), mutant);
            walked(&mut subject, seed, &options).first.map(|found| found.row)
        });
        let row = found.unwrap();
        assert_eq!(row.operator, mutant.operator(), "{}", mutant.name());
        assert!(row.sampled.is_some(), "{row:?}");
    }
}
