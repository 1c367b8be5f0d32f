//! Elementwise sum.

use super::*;

/// Attributes of `add`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The dtype of the result.
    pub output: DType,
}

pub(super) const RECORD: Record = Record {
    name: "add",
    summary: "Adds two values of one shape.",
    formula: "y = a + b",
    source: "definition",
    operands: &[slot("a", "[...]", Accepts::Float), slot("b", "[...]", Accepts::Float)],
    outputs: &[slot("y", "[...]", Accepts::Float)],
    numerics: "One f32 sum, one rounding on store; magnitude |a| + |b|.",
    gradient: "da = dy, db = dy",
    invariant: Invariant::Recompute,
};

impl Definition for Add {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        same_shape("a and b", &operands[0], &operands[1])?;
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        Ok(vec![Type { dtype: self.output, shape: operands[0].shape.clone() }])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 0.0)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        gradients.pass(0, 0)?;
        gradients.pass(0, 1)
    }
}
