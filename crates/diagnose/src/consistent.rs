//! Operands that follow from others: what a gradient reads of its forward pass. Drawn at random they make numbers that no run
//! has, such as probabilities above 1.

use crate::probe::{Probe, ProbeError};
use toprope_conformance::Oracle;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_program::operator::{Attention, Router};
use toprope_program::tensor::round;
use toprope_program::{Operator, Tensor};

/// Why operands could not be made consistent.
#[derive(Debug, thiserror::Error)]
pub enum ConsistentError {
    /// The forward operator does not take these operands.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The oracle failed.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
}

impl Probe {
    /// Other numbers of the same kind, drawn from a seed, where those that follow from others do.
    ///
    /// # Errors
    /// The oracle fails.
    pub fn redrawn_consistently(
        &self,
        seed: u64,
        regime: Regime,
        oracle: &mut Oracle,
    ) -> Result<Probe, ConsistentError> {
        self.redrawn(seed, regime).made_consistent(oracle)
    }

    /// The same with what follows from other operands computed from them; as it is where nothing does, or where an operand is
    /// seen through a view.
    ///
    /// # Errors
    /// The oracle fails.
    pub fn made_consistent(&self, oracle: &mut Oracle) -> Result<Probe, ConsistentError> {
        if self.has_views() {
            return Ok(self.clone());
        }
        let operands = self.operands();
        let replaced: Vec<(usize, Vec<f64>)> = match self.operator() {
            Operator::AttentionGradient(gradient) => {
                let forward = Attention { scale: gradient.scale }.into();
                let operands = [0, 1, 2, 6].map(|at: usize| operands[at].clone()).to_vec();
                let mut want = forward_of(self, &forward, operands, oracle)?;
                let (lse, out) = (want.pop(), want.pop());
                out.map(|t| (3, t.data)).into_iter().chain(lse.map(|t| (4, t.data))).collect()
            }
            Operator::RmsNormGradient(_) => {
                let columns = operands[0].sizes.last().copied().unwrap_or(1).max(1);
                let rstd = |row: &[f64]| {
                    1.0 / (row.iter().map(|x| x * x).sum::<f64>() / columns as f64 + 1e-6).sqrt()
                };
                vec![(2, operands[0].data.chunks(columns).map(rstd).collect())]
            }
            Operator::RouterGradient(gradient) => {
                let (experts, k) = (operands[0].sizes[1], operands[1].sizes[1]);
                let forward = Router {
                    scoring: gradient.scoring,
                    top_k: k,
                    groups: 1,
                    top_groups: 1,
                    normalize: gradient.normalize,
                    scale: gradient.scale,
                };
                let logits = operands[0].data.iter().map(|score| 4.0 * (score - 0.5)).collect();
                let logits = Tensor { data: logits, ..operands[0].clone() };
                let bias = Tensor::zeros(logits.dtype, &[experts]);
                let want = forward_of(self, &forward.into(), vec![logits, bias], oracle)?;
                want.into_iter().take(3).map(|tensor| tensor.data).enumerate().collect()
            }
            _ => Vec::new(),
        };
        let mut probe = self.clone();
        for (at, data) in replaced {
            let dtype = operands[at].dtype;
            let data = data.into_iter().map(|x| round(dtype, x));
            probe.set_operand(at, Tensor::rounded(dtype, &operands[at].sizes, data));
        }
        Ok(probe)
    }
}

fn forward_of(
    probe: &Probe,
    operator: &Operator,
    operands: Vec<Tensor>,
    oracle: &mut Oracle,
) -> Result<Vec<Tensor>, ConsistentError> {
    Ok(probe.altered(operator, operands)?.exact(oracle)?.want)
}
