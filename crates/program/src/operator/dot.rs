//! Inner product to a scalar.

use super::*;

/// Attributes of `dot`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dot {}

pub(super) const RECORD: Record = Record {
    name: "dot",
    summary: "Inner product: weighted sums of losses.",
    formula: "y[0] = Σ_i a[i]·b[i]",
    source: "definition",
    operands: &[slot("a", "[N]", Accepts::F32), slot("b", "[N]", Accepts::F32)],
    outputs: &[slot("y", "[1]", Accepts::F32)],
    numerics: "f32 products and sums in any order; magnitude Σ|a·b|.",
    gradient: "da = multiply(b, dy repeated), db = multiply(a, dy repeated)",
    invariant: Invariant::Recompute,
};

impl Definition for Dot {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("a", &operands[0], 1)?;
        same_shape("a and b", &operands[0], &operands[1])?;
        Ok(vec![Type::new(DType::F32, [1])])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        2 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::product(DType::F32, false, operands[0].sizes[0])]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        for (operand, other) in [(0, 1), (1, 0)] {
            if gradients.wants(operand) {
                let count = gradients.operand_type(operand).shape[0];
                let incoming = gradients.incoming_scalar(0, count)?;
                let inputs = [gradients.operand(other), incoming];
                let gradient = gradients.emit(Multiply { output: DType::F32 }, inputs)?[0];
                gradients.set(operand, gradient);
            }
        }
        Ok(())
    }
}
