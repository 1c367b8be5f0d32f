//! Adds rows into a table by index.

use super::*;

/// Attributes of `scatter_add`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScatterAdd {
    /// The dtype of the result.
    pub output: DType,
    /// Rows of the result.
    pub rows: Dim,
}

pub(super) const RECORD: Record = Record {
    name: "scatter_add",
    summary: "Adds rows into a table of zeros by index: the gradient of gather.",
    formula: "y = 0; for each i with 0 ≤ indices[i] < rows: y[indices[i],:] += x[i,:]",
    source: "transpose of gather",
    operands: &[slot("x", "[N, D]", Accepts::Float), slot("indices", "[N]", Accepts::I32)],
    outputs: &[slot("y", "[rows, D]", Accepts::Float)],
    numerics: "f32 sums in any order, one rounding on store; magnitude the sum of |x| of a row's contributions.",
    gradient: "dx = gather(dy, indices)",
    invariant: Invariant::Identity("column sums of y equal column sums of the rows of x with an index in range"),
};

impl Definition for ScatterAdd {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("x", &operands[0], 2)?;
        dims("indices", &operands[1], &operands[0].shape[..1])?;
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        Ok(vec![Type { dtype: self.output, shape: vec![self.rows, operands[0].shape[1]] }])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, operands[0].sizes[0] as f64)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        if gradients.wants(0) {
            let operator = Gather { output: gradients.dtype(0) };
            let inputs = [gradients.incoming(0)?, gradients.operand(1)];
            let gradient = gradients.emit(operator, inputs)?[0];
            gradients.set(0, gradient);
        }
        Ok(())
    }
}
