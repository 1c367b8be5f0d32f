//! Balancing without an auxiliary loss.

use super::*;

/// Attributes of `bias_update`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiasUpdate {
    /// The step of the bias, γ in the paper.
    pub rate: f64,
}

pub(super) const RECORD: Record = Record {
    name: "bias_update",
    summary: "Moves each expert's selection bias towards even load.",
    formula: "bias'[e] = bias[e] + rate·sign(Σ_e' counts[e'] - E·counts[e])",
    source: "DeepSeek-V3, arXiv 2412.19437, section 2.1.2; Wang et al., arXiv 2408.15664, algorithm 1",
    operands: &[slot("bias", "[E]", Accepts::F32), slot("counts", "[E]", Accepts::I32)],
    outputs: &[slot("bias'", "[E]", Accepts::F32)],
    numerics: "The sign is computed in integers (64 bits), so that it is exact; one f32 sum; magnitude |bias| + rate.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for BiasUpdate {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("bias", &operands[0], 1)?;
        same_shape("bias and counts", &operands[0], &operands[1])?;
        if !(self.rate.is_finite() && self.rate >= 0.0) {
            return Err("rate must not be negative".into());
        }
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        3 * count(operands)
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(DType::F32, 1.0)]
    }
}
