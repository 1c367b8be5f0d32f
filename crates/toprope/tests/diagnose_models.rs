//! The steps of the built-in models in lockstep: the operator that a mutant is wrong in is named first, and nobody where the
//! device is right.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::sync::Arc;
use toprope_conformance::Oracle;
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_conformance::values::{Regime, draw};
use toprope_cpu::{CpuDevice, Options as CpuOptions};
use toprope_diagnose::lockstep::{Named, Options, Party, Walk, walk};
use toprope_diagnose::step::{MicroValues, StepValues};
use toprope_model::deepseek_v3;
use toprope_program::shape::{elements, sizes};
use toprope_program::{DType, Device, Role, Tensor, Validated, Width, validate};
use toprope_reference::{Options as ReferenceOptions, ReferenceDevice, magnitudes};
use toprope_train::recipe;

fn reference() -> ReferenceDevice {
    ReferenceDevice::new(ReferenceOptions::default())
}

fn oracle() -> Oracle {
    let device = ReferenceDevice::new(ReferenceOptions { width: Width::Wide, ..Default::default() });
    Oracle::new(Box::new(device), magnitudes)
}

/// A built-in model's training step, small, with fresh weights and two micro-batches of random tokens.
fn step(name: &str) -> (Arc<Validated>, StepValues) {
    let sets = ["training.sequence=24", "training.batch=2", "training.micro_batch=1"].map(String::from);
    let recipe = recipe::parse(name, recipe::built_in(name).unwrap(), &sets).unwrap();
    let program = deepseek_v3::build_train(&recipe.model, &recipe.training_options(), name).unwrap();
    let symbols: Vec<usize> = program.symbols.iter().map(|_| 1).collect();
    let mut values = Vec::new();
    for (_, value) in program.state() {
        let Role::State { initial } = &value.role else { continue };
        let shape = sizes(&value.shape, &[]);
        let data: Vec<f64> = match value.dtype {
            DType::F32 | DType::Bf16 => {
                initial.draw(1, &value.name, elements(&shape)).into_iter().map(f64::from).collect()
            }
            _ => vec![0.0; elements(&shape)],
        };
        values.push((value.name.clone(), Tensor::rounded(value.dtype, &shape, data)));
    }
    let inputs = |seed| -> Vec<(String, Tensor)> {
        let drawn = draw(&program, &symbols, seed, Regime::Normal);
        program
            .values_with_ids()
            .filter(|(_, value)| value.role == Role::Input)
            .filter_map(|(id, value)| Some((value.name.clone(), drawn[id.0 as usize].clone()?)))
            .collect()
    };
    let micro = [5, 6].map(|seed| MicroValues { symbols: symbols.clone(), values: inputs(seed) }).to_vec();
    (Arc::new(validate(program).unwrap()), StepValues { values, micro })
}

fn walked(subject: &mut dyn Device, model: &(Arc<Validated>, StepValues), stop_at_first: bool) -> Walk {
    let (mut oracle, mut trusted) = (oracle(), reference());
    let mut party = Party {
        subject: Named { name: "subject".into(), device: subject },
        others: Vec::new(),
        trusted: Named { name: "reference".into(), device: &mut trusted },
        oracle: &mut oracle,
    };
    let options = Options { stop_at_first, ..Options::default() };
    walk(&mut party, &model.0, &model.1, &options, &mut |_, _, _| {}).unwrap()
}

fn names_mutants(name: &str, seen_least: usize) {
    let model = step(name);
    let program = model.0.program();
    let right = walked(
        &mut CpuDevice::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap(),
        &model,
        false,
    );
    assert!(right.first.is_none(), "{:?}", right.first.map(|found| found.row));
    assert!(right.rows.len() > 150, "{}", right.rows.len());
    let (mut seen, mut unseen, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    for mutant in Mutant::ALL.iter().copied() {
        if !program.accumulate.iter().chain(&program.update).any(|i| i.operator.name() == mutant.operator()) {
            absent.push(mutant.name());
            continue;
        }
        let mut subject = MutantDevice::new(Box::new(reference()), mutant);
        match walked(&mut subject, &model, true).first {
            Some(found) => {
                assert_eq!(found.row.operator, mutant.operator(), "{}", mutant.name());
                assert!(!found.row.layer.is_empty(), "{}: no layer", mutant.name());
                seen.push(mutant.name());
            }
            None => unseen.push(mutant.name()),
        }
    }
    println!(
        "{name}: named {}: {seen:?}\nshow nothing on these numbers: {unseen:?}\nnot in the program: {absent:?}",
        seen.len()
    );
    // Within the tolerance; of an output, bias, cache or row that this program does not have; or only on numbers that this step
    // does not have: subnormals, infinities, a bias of the router that is not zero yet, experts without rows.
    let may_hide = [
        "DiffersFromRunToRun",
        "RowSumsOfRoundedProduct",
        "DigestOfOldState",
        "SumsAlwaysOne",
        "BiasTwice",
        "CacheLengthIgnored",
        "HeadsInterleaved",
        "BlindRowsNotZeroed",
        "StuckLane",
        "SubnormalsFlushedInMultiply",
        "SubnormalsFlushedInAdamw",
        "SaturatingCast",
        "NonFiniteNormPasses",
        "WeightsWithBias",
        "EmptyExpertNotZeroed",
    ];
    let missed: Vec<_> = unseen.iter().filter(|name| !may_hide.contains(name)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    assert!(seen.len() >= seen_least, "{seen:?}");
}

#[test]
fn in_the_dense_model() {
    names_mutants("tiny-dense", 20);
}

#[test]
fn in_the_mixture_of_experts() {
    names_mutants("tiny-moe", 27);
}
