//! Which operators this device has: one line each, without a wildcard, so that a new operator is a decision.

use crate::operator::Execute;
use toprope_program::{DType, Operator};

/// What is missing.
pub(crate) struct Unsupported {
    /// The dtype in question.
    pub(crate) dtype: Option<DType>,
    /// What is missing, in words.
    pub(crate) reason: String,
}

/// How an operator is computed here, or why it is not.
pub(crate) fn support(operator: &Operator) -> Result<&dyn Execute, Unsupported> {
    Ok(match operator {
        Operator::Cast(it) => it,
        Operator::Add(it) => it,
        Operator::Multiply(it) => it,
        Operator::Scale(it) => it,
        Operator::Activation(it) => it,
        Operator::ActivationGradient(it) => it,
        Operator::Swiglu(it) => it,
        Operator::SwigluGradient(it) => it,
        Operator::Assemble(it) => it,
        Operator::Gather(it) => it,
        Operator::ScatterAdd(it) => it,
        Operator::ColumnSum(it) => it,
        Operator::Dot(it) => it,
        Operator::Matmul(it) => it,
        Operator::GroupedMatmul(it) => it,
        Operator::GroupedOuter(it) => it,
        Operator::Attention(it) => it,
        Operator::AttentionGradient(it) => it,
        Operator::RmsNorm(it) => it,
        Operator::RmsNormGradient(it) => it,
        Operator::Rope(it) => it,
        Operator::LinearCrossEntropy(it) => it,
        Operator::LinearCrossEntropyGradient(it) => it,
        Operator::Router(it) => it,
        Operator::RouterGradient(it) => it,
        Operator::BalanceLoss(it) => it,
        Operator::BalanceLossGradient(it) => it,
        Operator::ExpertSort(it) => it,
        Operator::Combine(it) => it,
        Operator::CombineGradient(it) => it,
        Operator::GlobalNorm(it) => it,
        Operator::Adamw(it) => it,
        Operator::BiasUpdate(it) => it,
        Operator::Increment(it) => it,
        Operator::Accumulate(it) => it,
        Operator::RandomBits(it) => it,
        Operator::Append(it) => it,
        Operator::Digest(it) => it,
        Operator::ProductCheck(it) => it,
        Operator::Compare(it) => it,
        Operator::AdamwDigest(it) => it,
        Operator::LossCheck(it) => it,
        Operator::AttentionCheck(it) => it,
        Operator::Verify(it) => it,
    })
}
