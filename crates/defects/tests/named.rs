//! `diagnose`'s step in lockstep names the operator of each defect first: in random training programs of two micro-batches, and
//! where no such program holds what shows it, in cases of the operator alone. Of one whose bits differ from run to run it says
//! so, and of one whose bits differ in a span the step in spans does.

mod support;

use std::sync::Arc;
use toprope_conformance::generate::cases::case;
use toprope_conformance::generate::exemplars::exemplars;
use toprope_conformance::generate::programs;
use toprope_conformance::values::{Regime, draw};
use toprope_defects::{Bench, Defect, Shows, held_out, known};
use toprope_diagnose::lockstep::{Named, Options, Party, walk};
use toprope_diagnose::spans::{Spans, spans};
use toprope_diagnose::step::{MicroValues, StepValues};
use toprope_program::{Role, Tensor, Validated};
use toprope_reference::ReferenceDevice;

/// Runs of each instruction, where bits differ from run to run.
const REPEAT: u64 = 12;

/// Random programs with the operator that are tried.
const PROGRAMS: usize = 6;

/// Cases of the operator that are tried behind them.
const CASES: u64 = 40;

/// A program with two micro-batches of values of these seeds.
fn step(
    program: &Arc<Validated>,
    symbols: &[usize],
    seed: u64,
    regimes: [Regime; 2],
) -> (Arc<Validated>, StepValues) {
    let plain = program.program();
    let named = |seed: u64, regime: Regime, inputs: bool| -> Vec<(String, Tensor)> {
        let values = draw(plain, symbols, seed, regime);
        let chosen = plain.values_with_ids().filter(|(_, value)| match value.role {
            Role::Input => inputs,
            Role::State { .. } | Role::Cache => !inputs,
            _ => false,
        });
        chosen.filter_map(|(id, value)| Some((value.name.clone(), values[id.0 as usize].clone()?))).collect()
    };
    let micro = |turn: u64| {
        let values = named(seed + turn, regimes[turn as usize], true);
        MicroValues { symbols: symbols.to_vec(), values }
    };
    let step = StepValues { values: named(seed, regimes[0], false), micro: vec![micro(0), micro(1)] };
    (program.clone(), step)
}

/// The first operator that is named wrong on a worker with this defect.
fn first_wrong(bench: &mut Bench, defect: &Defect, of: &(Arc<Validated>, StepValues)) -> Option<String> {
    let (mut oracle, mut trusted) = (support::oracle(), ReferenceDevice::new(Default::default()));
    let mut party = Party {
        subject: Named { name: "subject".into(), device: bench.with(Some(defect)) },
        others: Vec::new(),
        trusted: Named { name: "trusted".into(), device: &mut trusted },
        oracle: &mut oracle,
    };
    let repeat = if defect.kinds.contains(&"order_changes") { REPEAT } else { 1 };
    let options = Options { stop_at_first: true, repeat, ..Options::default() };
    let found = match walk(&mut party, &of.0, &of.1, &options, &mut |_, _, _| {}) {
        Ok(walk) => walk.first.or(walk.first_unsteady).map(|found| found.row.operator),
        Err(error) => Some(format!("nothing, but the step fails: {error}")),
    };
    if found.is_some() || !defect.kinds.contains(&"differs_in_range") {
        return found;
    }
    match spans(party.subject.device, "subject", &of.0, &of.1) {
        Ok(Spans::Differs(told)) => Some(told.0.operator),
        Ok(_) => None,
        Err(error) => Some(format!("nothing, but the spans fail: {error}")),
    }
}

/// Where the defect was named, or what was named in its place; none where nothing showed it.
fn named(bench: &mut Bench, defect: &Defect) -> Option<Result<String, String>> {
    let told = |place: String, operator: String| match operator == defect.operator {
        true => Ok(place),
        false => Err(format!("{operator} is named in {place}")),
    };
    let mut tried = 0;
    for seed in 0..200 {
        let Ok(generated) = programs::program(seed) else { continue };
        let plain = generated.program.program();
        let mut there = plain.accumulate.iter().chain(&plain.update);
        if tried == PROGRAMS {
            break;
        }
        if !there.any(|instruction| instruction.operator.name() == defect.operator) {
            continue;
        }
        tried += 1;
        let regimes = [Regime::Normal, Regime::Normal];
        let of = step(&generated.program, &generated.symbols, generated.seed, regimes);
        if let Some(operator) = first_wrong(bench, defect, &of) {
            return Some(told(format!("random program {seed}"), operator));
        }
    }
    let exemplar = exemplars().into_iter().find(|exemplar| exemplar.name() == defect.operator)?;
    for index in 0..CASES {
        let case = case(&exemplar, 1, index).ok()?;
        let other = Regime::ALL[1 + index as usize % (Regime::ALL.len() - 1)];
        let of = step(&case.program, &case.symbols, case.seed, [Regime::Normal, other]);
        if let Some(operator) = first_wrong(bench, defect, &of) {
            return Some(told(case.name, operator));
        }
    }
    None
}

fn check(set: Vec<Defect>) {
    let Some(mut bench) = support::bench(set.clone()) else { return };
    let (mut all, mut wrong) = (0, Vec::new());
    for defect in &set {
        if defect.shows() != Shows::Always {
            continue;
        }
        all += 1;
        let (named, seconds) = support::timed(|| named(&mut bench, defect));
        match named {
            Some(Ok(place)) => println!("{:<30} named in {place} ({seconds:.1} s)", defect.name),
            Some(Err(other)) => wrong.push(format!("{}: {other}", defect.name)),
            None => wrong.push(format!("{}: nobody is named", defect.name)),
        }
    }
    println!("{} of {all} named first", all - wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_operator_of_every_known_defect_is_named_first() {
    check(known());
}

#[test]
fn the_operator_of_every_held_out_defect_is_named_first() {
    check(held_out());
}
