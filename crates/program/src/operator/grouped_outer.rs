//! Sums of outer products per expert: the weight gradient of [`super::GroupedMatmul`].

use super::*;

/// Attributes of `grouped_outer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupedOuter {
    /// The dtype of the result.
    pub output: DType,
    /// Whether the row sums come as a second output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub row_sums: bool,
}

pub(super) const RECORD: Record = Record {
    name: "grouped_outer",
    summary: "Per expert, the sum of outer products of its rows: the weight gradient of grouped_matmul.",
    formula: "y[e,k,n] = Σ_{offsets[e] ≤ r < offsets[e+1]} a[r,k]·b[r,n]; 0 for an expert without rows; row_sums[e,k] = Σ_n Σ_r a[r,k]·b[r,n]",
    source: "MegaBlocks, arXiv 2211.15841, section 4",
    operands: &[
        slot("a", "[R, K]", Accepts::Float),
        slot("b", "[R, N]", Accepts::Float),
        slot("offsets", "[E+1]", Accepts::I32),
    ],
    outputs: &[slot("y", "[E, K, N]", Accepts::Float), optional("row_sums", "[E, K]", Accepts::F32)],
    numerics: "f32 accumulation over rows in any order, one rounding on store; row sums from the f32 accumulator before rounding; magnitude Σ|a·b|.",
    gradient: "none",
    invariant: Invariant::Identity("row_sums[e,k] = Σ_r a[r,k]·(Σ_n b[r,n])"),
};

impl Definition for GroupedOuter {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (a, b) = (&operands[0], &operands[1]);
        rank("a", a, 2)?;
        rank("b", b, 2)?;
        if a.shape[0] != b.shape[0] {
            return Err("a and b must have the same number of rows".into());
        }
        rank("offsets", &operands[2], 1)?;
        let experts = constant("offsets", operands[2].shape[0])?.checked_sub(1).filter(|count| *count > 0);
        let experts = experts.ok_or("offsets must have at least 2 elements")?;
        constant("the columns of a", a.shape[1])?;
        constant("the columns of b", b.shape[1])?;
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        let mut outputs =
            vec![Type { dtype: self.output, shape: vec![experts.into(), a.shape[1], b.shape[1]] }];
        if self.row_sums {
            outputs.push(Type { dtype: DType::F32, shape: vec![experts.into(), a.shape[1]] });
        }
        Ok(outputs)
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        2 * operands[0].elements() as u64 * operands[1].sizes[1] as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let bf16 = operands[..2].iter().any(|operand| operand.dtype == DType::Bf16);
        let (rows, columns) = (operands[0].sizes[0], operands[1].sizes[1]);
        let mut tolerances = vec![Tolerance::product(outputs[0].dtype, bf16, rows)];
        if self.row_sums {
            tolerances.push(Tolerance::product(DType::F32, bf16, rows + columns));
        }
        tolerances
    }
}
