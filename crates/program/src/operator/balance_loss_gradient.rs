//! Gradient of [`super::BalanceLoss`].

use super::*;

/// Attributes of `balance_loss_gradient`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalanceLossGradient {
    /// As in `balance_loss`.
    pub sequence: usize,
}

pub(super) const RECORD: Record = Record {
    name: "balance_loss_gradient",
    summary: "Gradient of balance_loss with the choice held fixed.",
    formula: "n = Σ_e scores[t,e]; dscores[t,e] = dloss/(S·n)·(f[e] - Σ_e' f[e']·scores[t,e']/n)",
    source: "derivative of balance_loss",
    operands: &[
        slot("scores", "[N·S, E]", Accepts::F32),
        slot("indices", "[N·S, K]", Accepts::I32),
        slot("dloss", "[N]", Accepts::F32),
    ],
    outputs: &[slot("dscores", "[N·S, E]", Accepts::F32)],
    numerics: "f32 inside, sums in any order; magnitude |dloss|/(S·n)·(f[e] + Σ f·scores/n).",
    gradient: "none",
    invariant: Invariant::Identity("Σ_e scores[t,e]·dscores[t,e] = 0"),
};

impl Definition for BalanceLossGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let count = balance_loss::sequences(self.sequence, &operands[0], &operands[1])?;
        dims("dloss", &operands[2], &[count])?;
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        6 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(DType::F32, 2.0 * operands[0].sizes[1] as f64 + 8.0)]
    }
}
