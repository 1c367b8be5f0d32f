//! Gradient of [`super::Activation`].

use super::*;

/// Attributes of `activation_gradient`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationGradient {
    /// The function.
    pub kind: ActivationKind,
}

pub(super) const RECORD: Record = Record {
    name: "activation_gradient",
    summary: "Gradient of activation.",
    formula: "dx = dy · f'(x); relu'(0) = 0",
    source: "derivative of activation",
    operands: &[slot("x", "[...]", Accepts::Float), slot("dy", "[...]", Accepts::Float)],
    outputs: &[slot("dx", "[...]", Accepts::Float)],
    numerics: "f32 inside, one rounding on store to x's dtype; magnitude |dy|·(1 + |x|).",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for ActivationGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        same_shape("x and dy", &operands[0], &operands[1])?;
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        12 * count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 24.0)]
    }
}
