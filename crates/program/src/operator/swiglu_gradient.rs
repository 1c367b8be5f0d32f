//! Gradient of [`super::Swiglu`].

use super::*;

/// Attributes of `swiglu_gradient`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwigluGradient {}

pub(super) const RECORD: Record = Record {
    name: "swiglu_gradient",
    summary: "Gradient of swiglu.",
    formula: "with g = x[r,f], u = x[r,F+f], s = sigmoid(g): dx[r,f] = dy·u·s·(1 + g·(1 - s)); dx[r,F+f] = dy·g·s",
    source: "derivative of swiglu",
    operands: &[slot("x", "[R, 2F]", Accepts::Float), slot("dy", "[R, F]", Accepts::Float)],
    outputs: &[slot("dx", "[R, 2F]", Accepts::Float)],
    numerics: "f32 inside, one rounding on store to x's dtype; magnitude |dy·u|·(1 + |g|) and |dy·g|.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for SwigluGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let forward = Swiglu {}.infer(&operands[..1])?;
        same_shape("dy and swiglu(x)", &operands[1], &forward[0])?;
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        8 * count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 24.0)]
    }
}
