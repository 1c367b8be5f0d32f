//! Conversion between float dtypes.

use super::*;

/// Attributes of `cast`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    /// The dtype of the result.
    pub output: DType,
}

pub(super) const RECORD: Record = Record {
    name: "cast",
    summary: "Converts between f32 and bf16.",
    formula: "y = round_to_nearest_even(x); subnormals and infinities are kept, a NaN stays a NaN",
    source: "IEEE 754-2019, section 4.3.1",
    operands: &[slot("x", "[...]", Accepts::Float)],
    outputs: &[slot("y", "[...]", Accepts::Float)],
    numerics: "One rounding on store; magnitude |x|.",
    gradient: "dx = dy, converted to x's gradient dtype",
    invariant: Invariant::Recompute,
};

impl Definition for Cast {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        Ok(vec![Type { dtype: self.output, shape: operands[0].shape.clone() }])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        // A conversion is one IEEE operation: the result is unique.
        vec![Tolerance::EXACT]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        gradients.pass(0, 0)
    }
}
