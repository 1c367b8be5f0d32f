//! Elementwise non-linear functions.

use super::*;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationKind {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³)))`.
    Gelu,
    /// `max(x, 0)`, 0 for x = -0.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

impl ActivationKind {
    /// All of them.
    pub const ALL: [ActivationKind; 5] = [
        ActivationKind::Silu,
        ActivationKind::Gelu,
        ActivationKind::Relu,
        ActivationKind::Sigmoid,
        ActivationKind::Tanh,
    ];
}

/// Attributes of `activation`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// The function.
    pub kind: ActivationKind,
}

pub(super) const RECORD: Record = Record {
    name: "activation",
    summary: "Applies a non-linear function to each element.",
    formula: "y = f(x), f one of silu, gelu (tanh form), relu, sigmoid, tanh",
    source: "Hendrycks and Gimpel, arXiv 1606.08415; Elfwing et al., arXiv 1702.03118",
    operands: &[slot("x", "[...]", Accepts::Float)],
    outputs: &[slot("y", "[...]", Accepts::Float)],
    numerics: "f32 inside, each library function within 4 ulp, one rounding on store to x's dtype; magnitude |f(x)| + |x·f'(x)|, for silu and gelu |x| at least, for sigmoid 2^-104: where e^-x overflows an f32 it is 0, and 2^-128 off.",
    gradient: "dx = activation_gradient(x, dy; kind)",
    invariant: Invariant::Recompute,
};

impl Definition for Activation {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        8 * count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 16.0)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let inputs = [gradients.operand(0), gradients.incoming(0)?];
        let gradient = gradients.emit(ActivationGradient { kind: self.kind }, inputs)?[0];
        gradients.set(0, gradient);
        Ok(())
    }
}
