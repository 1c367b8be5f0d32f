//! The sequence-wise balance term of DeepSeek-V3.

use super::*;

/// Attributes of `balance_loss`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalanceLoss {
    /// Tokens of a sequence, `S`.
    pub sequence: usize,
}

pub(super) const RECORD: Record = Record {
    name: "balance_loss",
    summary: "Penalty on uneven expert load within each sequence.",
    formula: "over the S tokens of sequence n: f[e] = E/(K·S)·Σ_t Σ_k [indices[t,k] = e]; P[e] = 1/S·Σ_t scores[t,e]/Σ_e' scores[t,e']; loss[n] = Σ_e f[e]·P[e]",
    source: "DeepSeek-V3, arXiv 2412.19437, equations 17-20 (without alpha)",
    operands: &[slot("scores", "[N·S, E]", Accepts::F32), slot("indices", "[N·S, K]", Accepts::I32)],
    outputs: &[slot("loss", "[N]", Accepts::F32)],
    numerics: "f32 inside, sums in any order; all terms are positive: magnitude the loss.",
    gradient: "dscores = balance_loss_gradient(scores, indices, dloss); f is constant",
    invariant: Invariant::Recompute,
};

pub(super) fn sequences(sequence: usize, scores: &Type, indices: &Type) -> Result<Dim, String> {
    rank("scores", scores, 2)?;
    rank("indices", indices, 2)?;
    if scores.shape[0] != indices.shape[0] {
        return Err("scores and indices must have the same rows".into());
    }
    constant("the number of experts", scores.shape[1])?;
    scores.shape[0].divided(sequence).ok_or_else(|| format!("rows do not divide into sequences of {sequence}"))
}

impl Definition for BalanceLoss {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let count = sequences(self.sequence, &operands[0], &operands[1])?;
        Ok(vec![Type { dtype: DType::F32, shape: vec![count] }])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        4 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(DType::F32, (self.sequence + 2 * operands[0].sizes[1]) as f64 + 8.0)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let operator = BalanceLossGradient { sequence: self.sequence };
        let inputs = [gradients.operand(0), gradients.operand(1), gradients.incoming(0)?];
        let gradient = gradients.emit(operator, inputs)?[0];
        gradients.set(0, gradient);
        Ok(())
    }
}
