//! Rows of a table by index.

use super::*;

/// Attributes of `gather`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// The dtype of the result.
    pub output: DType,
}

pub(super) const RECORD: Record = Record {
    name: "gather",
    summary: "Picks rows of a table by index: embeddings, tokens of an expert.",
    formula: "y[i,:] = table[indices[i],:]; an index outside 0..V gives a row of zeros",
    source: "definition",
    operands: &[slot("table", "[V, D]", Accepts::Float), slot("indices", "[N]", Accepts::I32)],
    outputs: &[slot("y", "[N, D]", Accepts::Float)],
    numerics: "One rounding on store: exact.",
    gradient: "dtable = scatter_add(dy, indices; rows = V)",
    invariant: Invariant::Recompute,
};

impl Definition for Gather {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("table", &operands[0], 2)?;
        rank("indices", &operands[1], 1)?;
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        Ok(vec![Type { dtype: self.output, shape: vec![operands[1].shape[0], operands[0].shape[1]] }])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        if gradients.wants(0) {
            let rows = gradients.operand_type(0).shape[0];
            let operator = ScatterAdd { output: gradients.dtype(0), rows };
            let inputs = [gradients.incoming(0)?, gradients.operand(1)];
            let gradient = gradients.emit(operator, inputs)?[0];
            gradients.set(0, gradient);
        }
        Ok(())
    }
}
