//! One product per expert over rows sorted by expert.

use super::*;

/// Attributes of `grouped_matmul`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupedMatmul {
    /// The dtype of the product.
    pub output: DType,
    /// Whether the row sums come as a second output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub row_sums: bool,
}

pub(super) const RECORD: Record = Record {
    name: "grouped_matmul",
    summary: "Matrix products of experts: rows are sorted by expert, each group has its own matrix.",
    formula: "for r with offsets[e] ≤ r < offsets[e+1]: y[r,n] = Σ_k a[r,k]·b[e,k,n]; row_sums[r] = Σ_n Σ_k a[r,k]·b[e,k,n]",
    source: "MegaBlocks, arXiv 2211.15841, section 4",
    operands: &[
        slot("a", "[R, K]", Accepts::Float),
        slot("b", "[E, K, N]", Accepts::Float),
        slot("offsets", "[E+1]", Accepts::I32),
    ],
    outputs: &[slot("y", "[R, N]", Accepts::Float), optional("row_sums", "[R]", Accepts::F32)],
    numerics: "As matmul. offsets[0] = 0, non-decreasing, offsets[E] = R; rows per expert are data and may be 0.",
    gradient: "da = grouped_matmul(dy, bᵀ, offsets), db = grouped_outer(a, dy, offsets)",
    invariant: Invariant::Identity("row_sums[r] = a[r]·(b[e]·1)"),
};

impl Definition for GroupedMatmul {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (a, b) = (&operands[0], &operands[1]);
        rank("a", a, 2)?;
        rank("b", b, 3)?;
        let experts = constant("the number of experts", b.shape[0])?;
        constant("the columns of b", b.shape[2])?;
        if a.shape[1] != b.shape[1] {
            return Err("the columns of a must equal the rows of each b".into());
        }
        dims("offsets", &operands[2], &[(experts + 1).into()])?;
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        let mut outputs = vec![Type { dtype: self.output, shape: vec![a.shape[0], b.shape[2]] }];
        if self.row_sums {
            outputs.push(Type { dtype: DType::F32, shape: vec![a.shape[0]] });
        }
        Ok(outputs)
    }

    fn flops(&self, operands: &[Concrete], outputs: &[Concrete]) -> u64 {
        2 * count(outputs) * operands[0].sizes[1] as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let (k, n) = (operands[0].sizes[1], operands[1].sizes[2]);
        let bf16 = operands[..2].iter().any(|operand| operand.dtype == DType::Bf16);
        let mut tolerances = vec![Tolerance::product(outputs[0].dtype, bf16, k)];
        if self.row_sums {
            tolerances.push(Tolerance::product(DType::F32, bf16, k + n));
        }
        tolerances
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let incoming = gradients.incoming(0)?;
        let offsets = gradients.operand(2);
        if gradients.wants(0) {
            let operator = GroupedMatmul { output: gradients.dtype(0), row_sums: false };
            let weights = gradients.operand(1);
            let transposed = gradients.transposed(weights, 1, 2)?;
            let gradient = gradients.emit(operator, [incoming.clone(), transposed, offsets.clone()])?[0];
            gradients.set(0, gradient);
        }
        if gradients.wants(1) {
            let operator = GroupedOuter { output: gradients.dtype(1), row_sums: false };
            let rows = gradients.operand(0);
            if gradients.is_transposed(1) {
                let gradient = gradients.emit(operator, [incoming, rows, offsets])?[0];
                let gradient = gradients.transposed(gradient.into(), 1, 2)?;
                gradients.set(1, gradient);
            } else {
                let gradient = gradients.emit(operator, [rows, incoming, offsets])?[0];
                gradients.set(1, gradient);
            }
        }
        Ok(())
    }
}
