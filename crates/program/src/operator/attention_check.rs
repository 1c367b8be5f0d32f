//! The identities of attention and its gradient.

use super::*;

/// Attributes of `attention_check`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionCheck {
    /// As in `attention`.
    pub scale: f64,
}

/// The largest result of `attention_check` on a healthy device, by the dtype of q (docs/checks.md).
pub fn attention_limit(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 8.0,
        _ => 64.0,
    }
}

pub(super) const RECORD: Record = Record {
    name: "attention_check",
    summary: "What attention and its gradient must satisfy together: the largest distance in units of its bound.",
    formula: "for each key head and each run of rows (a run ends where no later row sees an earlier key), with the query heads of the key head: (1) each column: Σ dv - Σ dout over rows that see a key, scale Σ dv², Σ dout²; (2) each column: Σ dk, scale Σ dk², scale²·Σ q²·(Σ_c (dout·out)²); (3) Σ q·dq - Σ k·dk; (4) Σ out·dout - Σ v·dv, scale the sum of the products' squares on either side; (6) each column: max(0, max |out| - max |v|), scale max v²; distance = |·| / ((u + 2^-24·√R)·(√first + √second) + 2^-70), u the unit roundoff of q's dtype, R the run's rows; (5) each row that sees a key: |sums - 1| / (2^-24·(1 + √R + scale·D·max|q|·max|k|)), the largest of the run's; worst is the largest of all, NaN counting as +∞",
    source: "rows of the probabilities sum to one, rows of ds to zero; bound: docs/checks.md",
    operands: &[
        slot("q", "[T, Hq, D]", Accepts::Float),
        slot("k", "[S, Hk, D]", Accepts::Float),
        slot("v", "[S, Hk, Dv]", Accepts::Float),
        slot("out", "[T, Hq, Dv]", Accepts::Float),
        slot("dout", "[T, Hq, Dv]", Accepts::Float),
        slot("dq", "[T, Hq, D]", Accepts::Float),
        slot("dk", "[S, Hk, D]", Accepts::Float),
        slot("dv", "[S, Hk, Dv]", Accepts::Float),
        slot("segment_start", "[T]", Accepts::I32),
        slot("sums", "[T, Hq]", Accepts::F32),
    ],
    outputs: &[slot("worst", "[1]", Accepts::F32)],
    numerics: "f32 or wider inside, any order. At most 8 (bf16) or 64 (f32) on a healthy device. Judged against that, not across devices.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for AttentionCheck {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
        attention::check_qkv(q, k, v, &operands[8], self.scale)?;
        let out = [q.shape[0], q.shape[1], v.shape[2]];
        dims("out", &operands[3], &out)?;
        dims("dout", &operands[4], &out)?;
        same_shape("q and dq", q, &operands[5])?;
        same_shape("k and dk", k, &operands[6])?;
        same_shape("v and dv", v, &operands[7])?;
        dims("sums", &operands[9], &q.shape[..2])?;
        if operands[..8].iter().any(|operand| operand.dtype != q.dtype) {
            return Err("all floats must have one dtype".into());
        }
        Ok(vec![Type::new(DType::F32, [1])])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        4 * operands[..8].iter().map(|operand| operand.elements() as u64).sum::<u64>()
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance { relative: 0.0, accumulated: 0.0, absolute: attention_limit(operands[0].dtype) }]
    }
}
