//! Magnitudes: what an operator's tolerance is relative to, for each element of each output, as its record's `numerics` says.
//! Most are the operator itself on absolute values.

mod attention; // attention and its gradient
mod loss; // linear head with cross-entropy
mod single; // operators that are not sums of products

use crate::operator::{place, product};
use toprope_program::{MagnitudeFunction, Operator, Tensor};

/// `Σ|contributions|` and the like for each element of each output; zeros where the tolerance is exact.
///
/// `outputs` are the exact ones, as [`crate::evaluate`] gives them. This is a [`MagnitudeFunction`].
pub fn magnitudes(operator: &Operator, operands: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let absolute = || -> Vec<Tensor> { operands.iter().map(absolute).collect() };
    match operator {
        Operator::Cast(_) => of_outputs(outputs),
        Operator::Add(_) => vec![single::sum(&operands[0], &operands[1])],
        Operator::Multiply(_) => of_outputs(outputs),
        Operator::Scale(_) => of_outputs(outputs),
        Operator::Activation(a) => single::activation(a, operands),
        Operator::ActivationGradient(_) => single::activation_gradient(operands),
        Operator::Swiglu(_) => single::swiglu(operands, outputs),
        Operator::SwigluGradient(_) => single::swiglu_gradient(operands),
        Operator::Assemble(a) => data(place::assemble(a, &absolute(), &outputs[0].sizes)),
        Operator::Gather(_) => of_outputs(outputs),
        Operator::ScatterAdd(a) => data(place::scatter_add(a, &absolute(), outputs[0].sizes[0])),
        Operator::ColumnSum(a) => data(product::column_sum(a, &absolute())),
        Operator::Dot(a) => data(product::dot(a, &absolute())),
        Operator::Matmul(a) => data(product::matmul(a, &absolute())),
        Operator::GroupedMatmul(a) => data(product::grouped_matmul(a, &absolute())),
        Operator::GroupedOuter(a) => data(product::grouped_outer(a, &absolute())),
        Operator::Attention(a) => attention::attention(a, operands, outputs),
        Operator::AttentionGradient(a) => attention::attention_gradient(a, operands),
        Operator::RmsNorm(_) => of_outputs(outputs),
        Operator::RmsNormGradient(_) => single::rms_norm_gradient(operands),
        Operator::Rope(a) => single::rope(a, operands),
        Operator::LinearCrossEntropy(_) => loss::linear_cross_entropy(operands),
        Operator::LinearCrossEntropyGradient(_) => loss::linear_cross_entropy_gradient(operands, outputs),
        Operator::Router(a) => single::router(a, operands, outputs),
        Operator::RouterGradient(a) => single::router_gradient(a, operands),
        Operator::BalanceLoss(_) => of_outputs(outputs),
        Operator::BalanceLossGradient(a) => single::balance_loss_gradient(a, operands),
        Operator::ExpertSort(_) => exact(outputs),
        Operator::Combine(a) => data(crate::operator::routing::combine(a, &absolute())),
        Operator::CombineGradient(_) => single::combine_gradient(operands),
        Operator::GlobalNorm(_) => of_outputs(outputs),
        Operator::Adamw(a) => single::adamw(a, operands, outputs),
        Operator::BiasUpdate(a) => single::bias_update(a, operands),
        Operator::Increment(_) => exact(outputs),
        Operator::Accumulate(_) => vec![single::sum(&operands[0], &operands[1])],
        Operator::RandomBits(_) => exact(outputs),
        Operator::Append(_) => of_outputs(outputs),
        Operator::Digest(_) => exact(outputs),
        Operator::ProductCheck(_) => exact(outputs),
        Operator::Compare(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::AdamwDigest(_)
        | Operator::Verify(_) => exact(outputs),
    }
}

const _: MagnitudeFunction = magnitudes;

fn absolute(x: &Tensor) -> Tensor {
    if !x.dtype.is_float() {
        return x.clone();
    }
    Tensor { data: x.data.iter().map(|x| x.abs()).collect(), ..x.clone() }
}

fn data(tensors: Vec<Tensor>) -> Vec<Vec<f64>> {
    tensors.into_iter().map(|tensor| tensor.data).collect()
}

/// Where every contribution is positive, or there is one: the size of the result.
fn of_outputs(outputs: &[Tensor]) -> Vec<Vec<f64>> {
    outputs.iter().map(|output| absolute(output).data).collect()
}

fn exact(outputs: &[Tensor]) -> Vec<Vec<f64>> {
    outputs.iter().map(|output| vec![0.0; output.data.len()]).collect()
}

/// `Σ|a·b|`.
fn inner_absolute(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// `y += factor · |x|`.
fn add_absolute(y: &mut [f64], factor: f64, x: &[f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x.abs();
    }
}
