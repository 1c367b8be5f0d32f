//! Gradient of [`super::Attention`].

use super::*;

/// Attributes of `attention_gradient`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionGradient {
    /// As in `attention`.
    pub scale: f64,
    /// Whether the sums of the probabilities' rows come as a fourth output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sums: bool,
}

pub(super) const RECORD: Record = Record {
    name: "attention_gradient",
    summary: "Gradient of attention from its output and log-sum-exp; the score matrix is never stored.",
    formula: "p = e^(scale·q·k - lse); D[i,h] = Σ dout·out; dp = dout·v; ds = p·(dp - D); dq[i,h] = scale·Σ_j ds·k; dk[j,h'] = scale·Σ_{i,h→h'} ds·q; dv[j,h'] = Σ_{i,h→h'} p·dout; sums[i,h] = Σ_j p",
    source: "FlashAttention, arXiv 2205.14135, appendix B.2",
    operands: &[
        slot("q", "[T, Hq, D]", Accepts::Float),
        slot("k", "[S, Hk, D]", Accepts::Float),
        slot("v", "[S, Hk, Dv]", Accepts::Float),
        slot("out", "[T, Hq, Dv]", Accepts::Float),
        slot("lse", "[T, Hq]", Accepts::F32),
        slot("dout", "[T, Hq, Dv]", Accepts::Float),
        slot("segment_start", "[T]", Accepts::I32),
    ],
    outputs: &[
        slot("dq", "[T, Hq, D]", Accepts::Float),
        slot("dk", "[S, Hk, D]", Accepts::Float),
        slot("dv", "[S, Hk, Dv]", Accepts::Float),
        optional("sums", "[T, Hq]", Accepts::F32),
    ],
    numerics: "f32 inside, any order; bf16 operands may round p and ds to bf16 before products; stored in q's dtype. D may be Σ_j p·dp, which is the same. With e = scale·Σ|q·k| + |lse|, d = max(Σ|dout·out|, Σ_j p·(1 + 2e)·Σ|dout·v|) and m = p·(Σ|dout·v|·(1 + 2e) + Σ|dout·out|·2e + d): magnitude of dq scale·Σ m·|k|, of dk scale·Σ m·|q|, of dv Σ p·(1 + 2e)·|dout|, of sums Σ p·(1 + 2e), from the f32 probabilities.",
    gradient: "none",
    invariant: Invariant::Identity("Σ_j dv[j,h'] = Σ_{i,h→h'} dout[i,h] over rows that see a key"),
};

impl Definition for AttentionGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
        attention::check_qkv(q, k, v, &operands[6], self.scale)?;
        let out = [q.shape[0], q.shape[1], v.shape[2]];
        dims("out", &operands[3], &out)?;
        dims("lse", &operands[4], &q.shape[..2])?;
        dims("dout", &operands[5], &out)?;
        if operands[3].dtype != q.dtype {
            return Err("out must have q's dtype".into());
        }
        let mut outputs = vec![q.clone(), k.clone(), v.clone()];
        if self.sums {
            outputs.push(operands[4].clone());
        }
        Ok(outputs)
    }

    /// Five products over the causal half, counted as in attention.
    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
        let pairs = q.sizes[0] as u64 * k.sizes[0] as u64 / 2;
        pairs * q.sizes[1] as u64 * 2 * (3 * q.sizes[2] + 2 * v.sizes[2]) as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
        let group = q.sizes[1] / k.sizes[1].max(1);
        let terms = k.sizes[0].max(q.sizes[0] * group) + v.sizes[2];
        let mut tolerance = attention::tolerance(outputs[0].dtype, q.dtype, q.sizes[2], terms);
        // `out` carries its own rounding into D.
        tolerance.accumulated += operands[3].dtype.unit_roundoff();
        let mut tolerances = vec![tolerance; 3];
        if self.sums {
            tolerances.push(Tolerance::rounded(DType::F32, attention::roundings(q.sizes[2], k.sizes[0])));
        }
        tolerances
    }
}
