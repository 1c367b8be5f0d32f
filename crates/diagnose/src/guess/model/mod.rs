//! The operators' formulas step by step, in f64, so that one step can be done otherwise. They are those of the contract's
//! records; a formula that does not give the oracle's results is not used.

mod attention; // attention and its gradient
mod head; // the linear head with its cross-entropy
mod norm; // norms of rows and of all gradients
mod optimizer; // AdamW
mod product; // products and sums
mod routing; // experts: their choice, their weights, their balance
mod single; // single elements and pairs

pub(super) use attention::{Sight, gradient_seeing, seeing};

use super::lab::Sample;
use super::steps::Steps;
use toprope_program::{Operator, Tensor};

/// The numbers of each output; none for outputs that follow from others.
pub(super) type Outputs = Vec<Option<Vec<f64>>>;

/// What the formula of a sample's operator gives; none where there is no formula.
pub(super) fn outputs(sample: &Sample, steps: &Steps) -> Option<Outputs> {
    let operands = sample.probe.operands();
    let o: Vec<&Tensor> = operands.iter().collect();
    let count = sample.exact.want.len();
    let mut outputs = match sample.probe.operator() {
        Operator::Matmul(_) => product::matmul(&o, count, steps),
        Operator::GroupedMatmul(_) => product::grouped_matmul(&o, count, steps),
        Operator::GroupedOuter(_) => product::grouped_outer(&o, count, steps),
        Operator::ColumnSum(_) => product::column_sum(&o, steps),
        Operator::Dot(_) => product::dot(&o, steps),
        Operator::ScatterAdd(_) => product::scatter_add(&o, sample.exact.want[0].sizes[0], steps),
        Operator::Attention(a) => attention::attention(a, &o, steps),
        Operator::AttentionGradient(a) => attention::gradient(a, &o, steps),
        Operator::RmsNorm(a) => norm::rms_norm(a, &o, steps),
        Operator::RmsNormGradient(_) => norm::rms_norm_gradient(&o, steps),
        Operator::GlobalNorm(a) => norm::global_norm(a, &o, steps),
        Operator::LinearCrossEntropy(_) => head::loss(&o, steps),
        Operator::LinearCrossEntropyGradient(_) => head::gradient(&o, steps),
        Operator::Router(a) => routing::router(a, &o, steps),
        Operator::RouterGradient(a) => routing::router_gradient(a, &o, steps),
        Operator::BalanceLoss(a) => routing::balance_loss(a.sequence, &o, steps),
        Operator::BalanceLossGradient(a) => routing::balance_loss_gradient(a.sequence, &o, steps),
        Operator::Combine(_) => routing::combine(&o, steps),
        Operator::CombineGradient(_) => routing::combine_gradient(&o, steps),
        Operator::Activation(a) => single::activation(a.kind, &o, steps),
        Operator::ActivationGradient(a) => single::activation_gradient(a.kind, &o, steps)?,
        Operator::Swiglu(_) => single::swiglu(&o, steps),
        Operator::SwigluGradient(_) => single::swiglu_gradient(&o, steps),
        Operator::Rope(a) => single::rope(a, &o, steps),
        Operator::Adamw(a) => optimizer::adamw(a, &o, steps),
        _ => return None,
    };
    outputs.resize(count, None);
    Some(outputs)
}

/// A place among so many, where it is one.
fn within(x: f64, count: usize) -> Option<usize> {
    (x >= 0.0 && x < count as f64).then_some(x as usize)
}
