//! The first generated case of an operator that a device gets wrong, where a step of a run does not show it.

use crate::probe::{Outcome, Probe, ProbeError};
use toprope_conformance::Oracle;
use toprope_conformance::generate::{GenerateError, cases, exemplars::exemplars};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::verdict::Verdict;
use toprope_program::{Device, Range, Tensor};

/// A case that fails.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Its name.
    pub case: String,
    /// The instruction with its operands.
    pub probe: Probe,
    /// What the device gave; none where it failed.
    pub observed: Option<Outcome>,
}

/// Why no case could be tried.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A generator made something invalid.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A case is no probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The oracle failed, or the subject refuses the operator.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
}

/// Tries cases of an operator, with several kinds of numbers, each behind a run on others. Gives the first that fails, and how
/// many were tried.
///
/// # Errors
/// The oracle fails, or the subject refuses the operator in every case.
pub fn search(
    subject: &mut dyn Device,
    oracle: &mut Oracle,
    operator: &str,
    count: u64,
    seed: u64,
) -> Result<(Option<Failing>, u64), SearchError> {
    let Some(exemplar) = exemplars().into_iter().find(|exemplar| exemplar.name() == operator) else {
        return Ok((None, 0));
    };
    let (mut tried, mut refusal) = (0, None);
    for index in 0..count {
        let case = cases::case(&exemplar, seed, index)?;
        let program = case.program.program();
        let other = Regime::ALL[1 + (index as usize) % (Regime::ALL.len() - 1)];
        for (turn, regime) in [Regime::Normal, other].into_iter().enumerate() {
            let mut held = draw(program, &case.symbols, case.seed.wrapping_add(turn as u64), regime);
            for (at, instruction) in program.accumulate.iter().enumerate() {
                let probe = Probe::at(program, Range::Accumulate, at, &case.symbols, &held, turn == 0)?;
                let exact = probe.exact(oracle)?;
                if instruction.operator.name() == operator {
                    let name = format!("{} ({})", case.name, regime.name());
                    match run_behind_another(subject, &probe) {
                        Ok(outcome) => {
                            tried += 1;
                            if matches!(probe.judge(&exact, &outcome).verdict, Verdict::Differ(_)) {
                                let observed = Some(outcome);
                                return Ok((Some(Failing { case: name, probe, observed }), tried));
                            }
                        }
                        Err(obstacle) if obstacle.refused().is_some() => refusal = Some(obstacle),
                        Err(Obstacle::Subject(_)) => {
                            tried += 1;
                            return Ok((Some(Failing { case: name, probe, observed: None }), tried));
                        }
                        Err(obstacle) => return Err(obstacle.into()),
                    }
                }
                for (id, want) in instruction.outputs.iter().zip(exact.want) {
                    held[id.0 as usize] = Some(Tensor::rounded(want.dtype, &want.sizes, want.data));
                }
            }
        }
    }
    match refusal {
        Some(refusal) if tried == 0 => Err(refusal.into()),
        _ => Ok((None, tried)),
    }
}

fn run_behind_another(subject: &mut dyn Device, probe: &Probe) -> Result<Outcome, Obstacle> {
    let opened = probe.open(subject).map_err(Obstacle::Subject)?;
    let mut other = probe.clone();
    other.rotate_floats();
    opened.run(subject, &other)?;
    let outcome = opened.run(subject, probe)?;
    opened.close(subject).map_err(Obstacle::Subject)?;
    Ok(outcome)
}
