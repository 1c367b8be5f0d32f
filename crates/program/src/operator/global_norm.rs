//! The norm of all gradients and the factor that clips them.

use super::*;

/// Attributes of `global_norm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlobalNorm {
    /// The largest norm that is let through; 0 lets all through.
    pub clip: f64,
}

pub(super) const RECORD: Record = Record {
    name: "global_norm",
    summary: "Euclidean norm over all gradients, and the clipping factor.",
    formula: "norm = √(Σ_g Σ_i g[i]²); factor = clip/(norm + 1e-6) where clip > 0 and that is below 1, else 1; a norm that is not finite gives factor 0",
    source: "Pascanu et al., arXiv 1211.5063, algorithm 1; 1e-6 as in PyTorch's clip_grad_norm_",
    operands: &[many("gradients", "[...]", Accepts::F32)],
    outputs: &[slot("norm", "[1]", Accepts::F32), slot("factor", "[1]", Accepts::F32)],
    numerics: "Squares and sums in f32 or wider, any order; magnitude norm and factor.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for GlobalNorm {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, _: &[Type]) -> Result<Vec<Type>, String> {
        if !(self.clip.is_finite() && self.clip >= 0.0) {
            return Err("clip must not be negative".into());
        }
        Ok(vec![Type::new(DType::F32, [1]), Type::new(DType::F32, [1])])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        2 * operands.iter().map(|gradient| gradient.elements() as u64).sum::<u64>()
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        // All terms are positive, and the root halves the relative error of the sum.
        let terms: usize = operands.iter().map(Concrete::elements).sum();
        let roundings = terms as f64 / 2.0 + 4.0;
        vec![Tolerance::rounded(DType::F32, roundings), Tolerance::rounded(DType::F32, roundings + 2.0)]
    }
}
