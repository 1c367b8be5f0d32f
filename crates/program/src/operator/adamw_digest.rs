//! What the optimizer's results must digest to.

use super::*;

/// Attributes of `adamw_digest`: those of `adamw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamwDigest {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

pub(super) const RECORD: Record = Record {
    name: "adamw_digest",
    summary: "The digest of what adamw gives on the same operands, which is not stored: a second run at the price of reading.",
    formula: "y = digest(w') + digest(m') + digest(v') modulo 2^64 with w', m', v' as in adamw",
    source: "definition",
    operands: &[
        slot("weight", "[...]", Accepts::F32),
        slot("gradient", "[...]", Accepts::F32),
        slot("m", "[...]", Accepts::F32),
        slot("v", "[...]", Accepts::F32),
        slot("factor", "[1]", Accepts::F32),
        slot("rates", "[3]", Accepts::F32),
    ],
    outputs: &[slot("y", "[2]", Accepts::U32)],
    numerics: "The bits of the device's own adamw: judged against that, never across devices.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl AdamwDigest {
    /// The optimizer that this digests.
    pub fn adamw(&self) -> Adamw {
        let AdamwDigest { beta1, beta2, epsilon, weight_decay } = *self;
        Adamw { beta1, beta2, epsilon, weight_decay, digests: false }
    }
}

impl From<&Adamw> for AdamwDigest {
    fn from(adamw: &Adamw) -> AdamwDigest {
        let Adamw { beta1, beta2, epsilon, weight_decay, .. } = *adamw;
        AdamwDigest { beta1, beta2, epsilon, weight_decay }
    }
}

impl Definition for AdamwDigest {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        self.adamw().infer(operands)?;
        Ok(vec![Type::new(DType::U32, [2])])
    }

    fn flops(&self, operands: &[Concrete], outputs: &[Concrete]) -> u64 {
        self.adamw().flops(operands, outputs)
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}
