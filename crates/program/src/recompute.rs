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
    /// Products too: what is kept are sums of the residual stream, attention's outputs and the router's choices.
    Products,
}

impl Recompute {
    /// Whether the results of this operator are computed again in the backward pass.
    pub fn again(self, operator: &Operator) -> bool {
        let cheap = matches!(
            operator,
            Operator::Cast(_)
                | Operator::Multiply(_)
                | Operator::Scale(_)
                | Operator::Activation(_)
                | Operator::Swiglu(_)
                | Operator::Assemble(_)
                | Operator::Gather(_)
                | Operator::RmsNorm(_)
                | Operator::Rope(_)
        );
        let product = matches!(operator, Operator::Matmul(_) | Operator::GroupedMatmul(_));
        match self {
            Recompute::Nothing => false,
            Recompute::Elementwise => cheap,
            Recompute::Products => cheap || product,
        }
    }
}
