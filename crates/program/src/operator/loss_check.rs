//! The checksum identities of the head's loss and its gradients.

use super::*;

/// The largest result of `loss_check` on a healthy device (docs/checks.md).
pub const LOSS_LIMIT: f64 = 128.0;

/// Attributes of `loss_check`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossCheck {}

pub(super) const RECORD: Record = Record {
    name: "loss_check",
    summary: "Judges the sums that linear_cross_entropy_gradient gives: the largest distance in units of its bound.",
    formula: "over rows t: |row_sums[t,0] - row_sums[t,1]| / (2^-24·row_sums[t,2] + 2^-70) and |loss[t] - row_sums[t,3]| / (2^-19·row_sums[t,4]); over words v: |weight_sums[v,0] - weight_sums[v,1]| / (2^-24·weight_sums[v,2] + 2^-70); worst is the largest, NaN counting as +∞",
    source: "Huang and Abraham (1984); bound: docs/checks.md",
    operands: &[
        slot("loss", "[T]", Accepts::F32),
        slot("row_sums", "[T, 5]", Accepts::F32),
        slot("weight_sums", "[V, 3]", Accepts::F32),
    ],
    outputs: &[slot("worst", "[1]", Accepts::F32)],
    numerics: "f32 or wider inside. At most 128 on a healthy device. Judged against that, not across devices.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for LossCheck {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("loss", &operands[0], 1)?;
        dims("row_sums", &operands[1], &[operands[0].shape[0], 5.into()])?;
        rank("weight_sums", &operands[2], 2)?;
        dims("weight_sums", &operands[2], &[operands[2].shape[0], 3.into()])?;
        Ok(vec![Type::new(DType::F32, [1])])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        operands.iter().map(|operand| operand.elements() as u64).sum()
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance { relative: 0.0, accumulated: 0.0, absolute: LOSS_LIMIT }]
    }
}
