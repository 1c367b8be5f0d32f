//! Matrix product. Transposes are views.

use super::*;

/// Attributes of `matmul`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matmul {
    /// The dtype of the product.
    pub output: DType,
    /// Whether the row sums come as a second output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub row_sums: bool,
}

pub(super) const RECORD: Record = Record {
    name: "matmul",
    summary: "Matrix product with an optional bias and optional row sums.",
    formula: "y[m,n] = Σ_k a[m,k]·b[k,n] + bias[n]; row_sums[m] = Σ_n Σ_k a[m,k]·b[k,n]",
    source: "definition; row sums: Huang and Abraham, \"Algorithm-based fault tolerance\" (1984)",
    operands: &[
        slot("a", "[M, K]", Accepts::Float),
        slot("b", "[K, N]", Accepts::Float),
        optional("bias", "[N]", Accepts::Float),
    ],
    outputs: &[slot("y", "[M, N]", Accepts::Float), optional("row_sums", "[M]", Accepts::F32)],
    numerics: "f32 accumulation over k in any order, bias added in f32, one rounding on store; bf16 operands below 2^-126 may count as zero; row sums from the f32 accumulator before bias and rounding; magnitude Σ|a·b| + |bias|.",
    gradient: "da = matmul(dy, bᵀ), db = matmul(aᵀ, dy), dbias = column_sum(dy)",
    invariant: Invariant::Identity("row_sums = a·(b·1)"),
};

impl Definition for Matmul {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (a, b) = (&operands[0], &operands[1]);
        rank("a", a, 2)?;
        rank("b", b, 2)?;
        if a.shape[1] != b.shape[0] {
            return Err("the columns of a must equal the rows of b".into());
        }
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        if b.shape[1].symbol.is_some() {
            return Err("the columns of b must be a constant dimension".into());
        }
        if let Some(bias) = operands.get(2) {
            dims("bias", bias, &b.shape[1..])?;
        }
        let mut outputs = vec![Type { dtype: self.output, shape: vec![a.shape[0], b.shape[1]] }];
        if self.row_sums {
            outputs.push(Type { dtype: DType::F32, shape: vec![a.shape[0]] });
        }
        Ok(outputs)
    }

    fn flops(&self, operands: &[Concrete], outputs: &[Concrete]) -> u64 {
        2 * count(outputs) * operands[0].sizes[1] as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let (k, n) = (operands[0].sizes[1], operands[1].sizes[1]);
        let bf16 = operands[..2].iter().any(|operand| operand.dtype == DType::Bf16);
        let mut tolerances = vec![Tolerance::product(outputs[0].dtype, bf16, k + 1)];
        if self.row_sums {
            tolerances.push(Tolerance::product(DType::F32, bf16, k + n));
        }
        tolerances
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let incoming = gradients.incoming(0)?;
        for operand in 0..2 {
            if !gradients.wants(operand) {
                continue;
            }
            let output = gradients.dtype(operand);
            let other = gradients.operand(1 - operand);
            let other = gradients.transposed(other, 0, 1)?;
            // The gradient is made in the memory order of the operand, so that a transposed weight needs no copy.
            let flipped = gradients.is_transposed(operand);
            let (left, right) = if operand == 0 { (incoming.clone(), other) } else { (other, incoming.clone()) };
            let inputs = if flipped {
                [gradients.transposed(right, 0, 1)?, gradients.transposed(left, 0, 1)?]
            } else {
                [left, right]
            };
            let gradient = gradients.emit(Matmul { output, row_sums: false }, inputs)?[0];
            let gradient = if flipped { gradients.transposed(gradient.into(), 0, 1)? } else { gradient.into() };
            gradients.set(operand, gradient);
        }
        if gradients.has_operand(2) && gradients.wants(2) {
            let output = gradients.dtype(2);
            let gradient = gradients.emit(ColumnSum { output }, [incoming])?[0];
            gradients.set(2, gradient);
        }
        Ok(())
    }
}
