//! Gradient of [`super::Router`].

use super::*;

/// Attributes of `router_gradient`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterGradient {
    /// As in `router`.
    pub scoring: Scoring,
    /// As in `router`.
    pub normalize: bool,
    /// As in `router`.
    pub scale: f64,
}

pub(super) const RECORD: Record = Record {
    name: "router_gradient",
    summary: "Gradient of router with the choice held fixed.",
    formula: "n = Σ_k scores[indices] + 1e-20 if normalize, else 1; g[t,e] = dscores[t,e] + Σ_k [indices[t,k] = e]·(scale·dweights[t,k] - [normalize]·Σ_j dweights[t,j]·weights[t,j])/n; sigmoid: dlogits = g·s·(1 - s); softmax: dlogits = s·(g - Σ_e g·s)",
    source: "derivative of router",
    operands: &[
        slot("scores", "[T, E]", Accepts::F32),
        slot("indices", "[T, K]", Accepts::I32),
        slot("weights", "[T, K]", Accepts::F32),
        slot("dweights", "[T, K]", Accepts::F32),
        optional("dscores", "[T, E]", Accepts::F32),
    ],
    outputs: &[slot("dlogits", "[T, E]", Accepts::F32)],
    numerics: "f32 inside; magnitude with every term of g taken absolute: sigmoid |g|·s, softmax s·(|g| + Σ|g|·s).",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for RouterGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (scores, indices) = (&operands[0], &operands[1]);
        rank("scores", scores, 2)?;
        rank("indices", indices, 2)?;
        if scores.shape[0] != indices.shape[0] {
            return Err("scores and indices must have the same rows".into());
        }
        same_shape("indices and weights", indices, &operands[2])?;
        same_shape("indices and dweights", indices, &operands[3])?;
        if let Some(dscores) = operands.get(4) {
            same_shape("scores and dscores", scores, dscores)?;
        }
        positive("scale", self.scale)?;
        Ok(vec![scores.clone()])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        8 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        let terms = (operands[0].sizes[1] + 2 * operands[1].sizes[1]) as f64;
        vec![Tolerance::rounded(DType::F32, terms + 12.0)]
    }
}
