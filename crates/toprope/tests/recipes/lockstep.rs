//! `cpu` against `reference` on whole steps of the tiny recipes, each operator fed the same values.

use crate::support::{cpu, inputs, oracle, program, recipe};
use toprope_conformance::Verdict;
use toprope_conformance::lockstep::Lockstep;
use toprope_program::shape::sizes;
use toprope_program::{DType, Program, Range, Role, Tensor};
use toprope_train::batch::StepBatch;
use toprope_train::recipe::OptimizerKind;

type Values = Vec<Option<Tensor>>;

/// State and constants before the first step.
fn initial(program: &Program, seed: u64) -> Values {
    let bounds = program.bounds();
    let tensor = |value: &toprope_program::Value| {
        let sizes = sizes(&value.shape, &bounds);
        let count = sizes.iter().product();
        match &value.role {
            Role::State { initial } => {
                let drawn = initial.draw(seed, &value.name, count).into_iter().map(f64::from);
                Some(Tensor::rounded(value.dtype, &sizes, drawn))
            }
            Role::Constant { content } => Some(Tensor::rounded(value.dtype, &sizes, content.values(&sizes))),
            Role::Carried => Some(Tensor::zeros(value.dtype, &sizes)),
            _ => None,
        }
    };
    program.values.iter().map(tensor).collect()
}

/// A step's batch as inputs.
fn fed(program: &Program, batch: &StepBatch, mut values: Values) -> Values {
    let bounds = program.bounds();
    let integers = batch.micro[0].integers.iter();
    let integers =
        integers.map(|(name, data)| (name, data.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>()));
    let scalars = batch.scalars.iter();
    let scalars = scalars.map(|(name, data)| (name, data.iter().map(|x| f64::from(*x)).collect()));
    for (name, data) in integers.chain(scalars) {
        if let Some(id) = program.find(name) {
            let value = program.value(id);
            values[id.0 as usize] =
                Some(Tensor { dtype: value.dtype, sizes: sizes(&value.shape, &bounds), data });
        }
    }
    values
}

#[test]
fn every_operator_of_the_tiny_recipes_agrees() {
    for name in ["tiny-dense", "tiny-moe"] {
        for (dtype, kind) in [
            (DType::F32, OptimizerKind::Adamw),
            (DType::Bf16, OptimizerKind::Adamw),
            (DType::F32, OptimizerKind::Muon),
            (DType::Bf16, OptimizerKind::Muon),
        ] {
            let mut recipe = recipe(name, dtype);
            recipe.optimizer.kind = kind;
            let (validated, inputs) = (program(&recipe), inputs(&recipe));
            let program = validated.program();
            let (mut subject, mut oracle) = (cpu(2), oracle());
            let values = fed(program, &inputs.step(0), initial(program, recipe.seed));
            let mut lockstep =
                Lockstep::open(&mut subject, &mut oracle, &validated, &program.bounds(), values).unwrap();
            let (mut agreed, mut incomparable) = (0, 0);
            for range in Range::ALL {
                for step in lockstep.range(&mut subject, &mut oracle, range, true).unwrap() {
                    match &step.judgement.verdict {
                        Verdict::Agree => agreed += 1,
                        Verdict::Incomparable(_) => incomparable += 1,
                        Verdict::Differ(reason) => panic!(
                            "{name} {dtype} {kind:?} {} {} `{}`: {reason}",
                            range.name(),
                            step.index,
                            step.operator
                        ),
                    }
                }
            }
            println!("{name} {dtype} {kind:?}: {agreed} operators agree, {incomparable} incomparable");
            assert!(incomparable * 20 <= agreed, "{name} {dtype} {kind:?}");
            assert_eq!(agreed + incomparable, program.accumulate.len() + program.update.len());
        }
    }
}
