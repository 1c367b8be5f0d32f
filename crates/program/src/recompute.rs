//! What the backward pass computes again instead of keeping: memory for time, the same bits.

use crate::operator::Operator;
use serde::{Deserialize, Serialize};

/// A recompute policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Everything that the backward pass needs is kept.
    Nothing,
    /// Norms, gates, casts, rotations, gathers and views' copies are computed again.
    #[default]
    Elementwise,
    /// Products too, with the sums that a builder says are part of them: what is kept are sums of the residual stream,
    /// attention's outputs and the router's choices.
    Products,
}

impl Recompute {
    /// Whether the results of this operator are computed again in the backward pass. No wildcard: a new operator is a
    /// decision.
    pub fn again(self, operator: &Operator) -> bool {
        match operator {
            Operator::Cast(_)
            | Operator::Multiply(_)
            | Operator::Scale(_)
            | Operator::Activation(_)
            | Operator::Swiglu(_)
            | Operator::Assemble(_)
            | Operator::Gather(_)
            | Operator::RmsNorm(_)
            | Operator::Rope(_) => self != Recompute::Nothing,
            Operator::Matmul(_) | Operator::GroupedMatmul(_) => self == Recompute::Products,
            // The residual stream, choices and their order, reductions, attention, the loss: few bytes or much work.
            Operator::Add(_)
            | Operator::ScatterAdd(_)
            | Operator::ColumnSum(_)
            | Operator::Dot(_)
            | Operator::GroupedOuter(_)
            | Operator::Attention(_)
            | Operator::LinearCrossEntropy(_)
            | Operator::Router(_)
            | Operator::BalanceLoss(_)
            | Operator::ExpertSort(_)
            | Operator::Combine(_)
            | Operator::GlobalNorm(_)
            | Operator::RandomBits(_) => false,
            // What no gradient goes through.
            Operator::ActivationGradient(_)
            | Operator::SwigluGradient(_)
            | Operator::AttentionGradient(_)
            | Operator::RmsNormGradient(_)
            | Operator::LinearCrossEntropyGradient(_)
            | Operator::RouterGradient(_)
            | Operator::BalanceLossGradient(_)
            | Operator::CombineGradient(_)
            | Operator::Adamw(_)
            | Operator::BiasUpdate(_)
            | Operator::Increment(_)
            | Operator::Accumulate(_)
            | Operator::Append(_)
            | Operator::Digest(_)
            | Operator::ProductCheck(_)
            | Operator::Compare(_)
            | Operator::AttentionCheck(_)
            | Operator::LossCheck(_)
            | Operator::AdamwDigest(_)
            | Operator::Verify(_) => false,
        }
    }
}
