//! Causal attention over packed documents.

use super::*;

/// Attributes of `attention`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// What scores are multiplied by before the softmax, rounded to f32.
    pub scale: f64,
}

pub(super) const RECORD: Record = Record {
    name: "attention",
    summary: "Causal softmax attention with grouped heads, documents, a query offset and a cache length.",
    formula: "h' = ⌊h·Hk/Hq⌋; row i sees key j when segment_start[i] ≤ j ≤ i + query_offset and j < cache_length; s = scale·q[i,h]·k[j,h']; lse[i,h] = ln Σ_j e^s; out[i,h] = Σ_j e^(s - lse) v[j,h']; a row that sees no key gives out 0 and lse -∞",
    source: "Vaswani et al., arXiv 1706.03762, section 3.2; grouped heads arXiv 2305.13245; lse FlashAttention arXiv 2205.14135",
    operands: &[
        slot("q", "[T, Hq, D]", Accepts::Float),
        slot("k", "[S, Hk, D]", Accepts::Float),
        slot("v", "[S, Hk, Dv]", Accepts::Float),
        slot("segment_start", "[T]", Accepts::I32),
        optional("query_offset", "[1]", Accepts::I32),
        optional("cache_length", "[1]", Accepts::I32),
    ],
    outputs: &[slot("out", "[T, Hq, Dv]", Accepts::Float), slot("lse", "[T, Hq]", Accepts::F32)],
    numerics: "Scores, softmax and sums in f32, any order; bf16 operands may round the probabilities to bf16 before the product with v; out stored in q's dtype, lse in f32. With s = scale·Σ|q·k| and e = s + |lse| + Σ_j p·s: magnitude of out Σ_j p·|v|·(1 + 2e); of lse 1 + |lse| + max s. query_offset defaults to 0, cache_length to S.",
    gradient: "dq, dk, dv = attention_gradient(q, k, v, out, lse, dout, segment_start; scale)",
    invariant: Invariant::Identity("rows of the probabilities sum to one; column sums of dv equal those of dout"),
};

/// Checks shared by attention and its gradient: q, k, v and what bounds them.
pub(super) fn check_qkv(q: &Type, k: &Type, v: &Type, segment_start: &Type, scale: f64) -> Result<(), String> {
    positive("scale", scale)?;
    for (name, value) in [("q", q), ("k", k), ("v", v)] {
        rank(name, value, 3)?;
        if value.dtype != q.dtype {
            return Err("q, k and v must have one dtype".into());
        }
    }
    let query_heads = constant("the heads of q", q.shape[1])?;
    let key_heads = constant("the heads of k", k.shape[1])?;
    if key_heads == 0 || query_heads % key_heads != 0 {
        return Err(format!("{query_heads} query heads are not a multiple of {key_heads} key heads"));
    }
    if k.shape[2] != q.shape[2] {
        return Err("q and k must have the same head size".into());
    }
    if v.shape[..2] != k.shape[..2] {
        return Err("k and v must have the same rows and heads".into());
    }
    dims("segment_start", segment_start, &q.shape[..1])
}

/// f32 roundings in one score, softmax and weighted sum, for head size `d` and `keys` keys.
pub(super) fn roundings(d: usize, keys: usize) -> f64 {
    (d + keys) as f64 + 16.0
}

/// The tolerance of attention-like outputs. With bf16 operands the probabilities may be rounded to bf16.
pub(super) fn tolerance(output: DType, operand: DType, d: usize, keys: usize) -> Tolerance {
    let mut tolerance = Tolerance::rounded(output, roundings(d, keys));
    if operand == DType::Bf16 {
        tolerance.accumulated += 2.0 * DType::Bf16.unit_roundoff();
    }
    tolerance
}

impl Definition for Attention {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
        check_qkv(q, k, v, &operands[3], self.scale)?;
        for extra in &operands[4..] {
            scalar("query_offset and cache_length", extra)?;
        }
        Ok(vec![
            Type { dtype: q.dtype, shape: vec![q.shape[0], q.shape[1], v.shape[2]] },
            Type { dtype: DType::F32, shape: vec![q.shape[0], q.shape[1]] },
        ])
    }

    /// Counted over the whole causal half; documents only make it less.
    fn flops(&self, operands: &[Concrete], outputs: &[Concrete]) -> u64 {
        let (q, k) = (&operands[0], &operands[1]);
        let pairs = q.sizes[0] as u64 * k.sizes[0] as u64 / 2;
        pairs * q.sizes[1] as u64 * 2 * (q.sizes[2] + outputs[0].sizes[2]) as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let (d, keys) = (operands[0].sizes[2], operands[1].sizes[0]);
        vec![
            tolerance(outputs[0].dtype, operands[0].dtype, d, keys),
            Tolerance::rounded(DType::F32, roundings(d, keys)),
        ]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        if gradients.has_operand(4) {
            return Err("attention with a query offset or a cache has no gradient".into());
        }
        let inputs = [
            gradients.operand(0),
            gradients.operand(1),
            gradients.operand(2),
            gradients.output(0),
            gradients.output(1),
            gradients.incoming(0)?,
            gradients.operand(3),
        ];
        let emitted = gradients.emit(AttentionGradient { scale: self.scale, sums: false }, inputs)?;
        for (operand, gradient) in emitted.into_iter().enumerate() {
            gradients.set(operand, gradient);
        }
        Ok(())
    }
}
