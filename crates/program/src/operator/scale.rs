//! Product with a number that the program holds.

use super::*;

/// Attributes of `scale`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The number, rounded to f32 before use.
    pub factor: f64,
}

pub(super) const RECORD: Record = Record {
    name: "scale",
    summary: "Multiplies a value by a number.",
    formula: "y = factor · x",
    source: "definition",
    operands: &[slot("x", "[...]", Accepts::Float)],
    outputs: &[slot("y", "[...]", Accepts::Float)],
    numerics: "The factor is rounded to f32; one f32 product, one rounding on store to x's dtype; magnitude |factor·x|.",
    gradient: "dx = scale(dy; factor)",
    invariant: Invariant::Recompute,
};

impl Definition for Scale {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        if !self.factor.is_finite() {
            return Err("factor must be finite".into());
        }
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 1.0)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let incoming = gradients.incoming(0)?;
        let gradient = gradients.emit(self.clone(), [incoming])?[0];
        gradients.set(0, gradient);
        Ok(())
    }
}
