//! Whether a quarantined device may come back: one step of the run's own program in lockstep with the oracle, each operator
//! fed the same values and judged at the contract's tolerance.

use crate::verb::oracle::oracle;
use std::sync::Arc;
use toprope_conformance::Verdict;
use toprope_conformance::lockstep::Lockstep;
use toprope_guard::remote::RemoteDevice;
use toprope_guard::supervisor::Retest;
use toprope_program::shape::sizes;
use toprope_program::{Program, Range, Role, Tensor, Validated};
use toprope_train::batch::{StepBatch, StepInputs};
use toprope_train::recipe::Recipe;

/// The test of a run's devices.
pub(super) fn retest(recipe: &Recipe, inputs: &Arc<StepInputs>, train: &Arc<Validated>) -> Retest {
    let (seed, inputs, train) = (recipe.seed, inputs.clone(), train.clone());
    Arc::new(move |device| match lockstep(device, &train, &inputs.step(0), seed) {
        Ok(agreed) => (true, format!("{agreed} operators agree with the oracle")),
        Err(reason) => (false, reason),
    })
}

fn lockstep(
    device: &mut RemoteDevice,
    train: &Arc<Validated>,
    batch: &StepBatch,
    seed: u64,
) -> Result<usize, String> {
    let mut oracle = oracle();
    let program = train.program();
    // One sequence: the shapes of the run but for the number of rows, in seconds instead of minutes.
    let symbols = vec![1; program.symbols.len()];
    let values = values(program, &symbols, batch, seed);
    let mut lockstep = Lockstep::open(device, &mut oracle, train, &symbols, values)
        .map_err(|obstacle| obstacle.to_string())?;
    let mut agreed = 0;
    for range in Range::ALL {
        let steps = lockstep.range(device, &mut oracle, range, true).map_err(|error| error.to_string())?;
        for step in steps {
            match &step.judgement.verdict {
                Verdict::Agree => agreed += 1,
                Verdict::Incomparable(_) => {}
                Verdict::Differ(reason) => {
                    return Err(format!("{} {} `{}`: {reason}", range.name(), step.index, step.operator));
                }
            }
        }
    }
    Ok(agreed)
}

/// State and constants before the first step, and the first sequence of its batch.
fn values(program: &Program, symbols: &[usize], batch: &StepBatch, seed: u64) -> Vec<Option<Tensor>> {
    let integers = batch.micro.first().map(|micro| micro.integers.as_slice()).unwrap_or_default();
    let value = |value: &toprope_program::Value| {
        let sizes = sizes(&value.shape, symbols);
        let count: usize = sizes.iter().product();
        let input = || {
            let integers = integers.iter().find(|(name, _)| *name == value.name);
            let scalars = batch.scalars.iter().find(|(name, _)| *name == value.name);
            let integers = integers.map(|(_, data)| data.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            let data =
                integers.or_else(|| scalars.map(|(_, data)| data.iter().map(|x| f64::from(*x)).collect()))?;
            let data = data.get(..count)?.to_vec();
            Some(Tensor { dtype: value.dtype, sizes: sizes.clone(), data })
        };
        match &value.role {
            Role::State { initial } => {
                let drawn = initial.draw(seed, &value.name, count).into_iter().map(f64::from);
                Some(Tensor::rounded(value.dtype, &sizes, drawn))
            }
            Role::Constant { content } => Some(Tensor::rounded(value.dtype, &sizes, content.values(&sizes))),
            Role::Carried => Some(Tensor::zeros(value.dtype, &sizes)),
            Role::Input => input(),
            _ => None,
        }
    };
    program.values.iter().map(value).collect()
}
