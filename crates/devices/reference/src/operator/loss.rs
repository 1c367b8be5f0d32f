//! The linear head with its cross-entropy, a row of logits at a time.

use super::{add_scaled, inner, tensor, within};
use toprope_program::operator::{LinearCrossEntropy, LinearCrossEntropyGradient};
use toprope_program::{DType, Tensor};

/// The logits of one row of x and the logarithm of the sum of their exponentials.
pub(crate) fn logits(x: &[f64], weight: &Tensor) -> (Vec<f64>, f64) {
    let z: Vec<f64> = weight.data.chunks_exact(x.len()).map(|weight| inner(x, weight)).collect();
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| (z - largest).exp()).sum();
    (z, largest + sum.ln())
}

pub(crate) fn linear_cross_entropy(_: &LinearCrossEntropy, operands: &[Tensor]) -> Vec<Tensor> {
    let (x, weight, targets) = (&operands[0], &operands[1], &operands[2]);
    let rows = x.sizes[0];
    let (mut loss, mut lse) = (vec![0.0; rows], vec![0.0; rows]);
    for (t, x) in x.data.chunks_exact(x.sizes[1]).enumerate() {
        let (z, log_sum) = logits(x, weight);
        lse[t] = log_sum;
        if let Some(target) = within(targets.data[t], z.len()) {
            loss[t] = log_sum - z[target];
        }
    }
    vec![tensor(DType::F32, &[rows], loss), tensor(DType::F32, &[rows], lse)]
}

pub(crate) fn linear_cross_entropy_gradient(
    attributes: &LinearCrossEntropyGradient,
    operands: &[Tensor],
) -> Vec<Tensor> {
    let (x, weight, targets, dloss) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let (rows, columns) = (x.sizes[0], x.sizes[1]);
    let mut loss = vec![0.0; rows];
    let mut dx = vec![0.0; x.data.len()];
    let mut dweight = vec![0.0; weight.data.len()];
    for (t, (x, dx)) in x.data.chunks_exact(columns).zip(dx.chunks_exact_mut(columns)).enumerate() {
        let (z, log_sum) = logits(x, weight);
        let Some(target) = within(targets.data[t], z.len()) else { continue };
        loss[t] = log_sum - z[target];
        for (v, z) in z.iter().enumerate() {
            let hit = if v == target { 1.0 } else { 0.0 };
            let g = dloss.data[t] * ((z - log_sum).exp() - hit);
            add_scaled(dx, g, &weight.data[v * columns..][..columns]);
            add_scaled(&mut dweight[v * columns..][..columns], g, x);
        }
    }
    vec![
        tensor(DType::F32, &[rows], loss),
        tensor(x.dtype, &x.sizes, dx),
        tensor(attributes.weight_output, &weight.sizes, dweight),
    ]
}
