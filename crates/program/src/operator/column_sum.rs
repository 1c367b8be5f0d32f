//! Sum over rows.

use super::*;

/// Attributes of `column_sum`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSum {
    /// The dtype of the result.
    pub output: DType,
}

pub(super) const RECORD: Record = Record {
    name: "column_sum",
    summary: "Sums each column: the gradient of a bias.",
    formula: "y[c] = Σ_r x[r,c]",
    source: "definition",
    operands: &[slot("x", "[R, C]", Accepts::Float)],
    outputs: &[slot("y", "[C]", Accepts::Float)],
    numerics: "f32 sums in any order, one rounding on store; magnitude Σ_r |x[r,c]|.",
    gradient: "dx = dy repeated over rows (a view)",
    invariant: Invariant::Identity("the sum of y equals the sum of x"),
};

impl Definition for ColumnSum {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("x", &operands[0], 2)?;
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        Ok(vec![Type { dtype: self.output, shape: vec![operands[0].shape[1]] }])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, operands[0].sizes[0] as f64)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        if gradients.wants(0) {
            let rows = gradients.operand_type(0).shape[0];
            let repeated = gradients.incoming_repeated(0, 0, rows)?;
            gradients.set_converted(0, repeated)?;
        }
        Ok(())
    }
}
