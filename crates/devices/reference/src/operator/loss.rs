//! The linear head with its cross-entropy, a row of logits at a time.

use super::{add_scaled, inner, tensor, within};
use toprope_program::operator::{LinearCrossEntropy, LinearCrossEntropyGradient, LossCheck};
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
    let words = weight.sizes[0];
    let sum = |row: &[f64]| row.iter().sum::<f64>();
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let root = |depth: usize| ((depth + columns) as f64).sqrt();
    let mut row_sums = [0.0, 0.0, 0.0, 0.0, 1.0].repeat(rows);
    // For each word what its sum of dweight must be, and its size.
    let mut want = vec![[0.0f64; 2]; words];
    for (t, (x, dx)) in x.data.chunks_exact(columns).zip(dx.chunks_exact_mut(columns)).enumerate() {
        let (z, log_sum) = logits(x, weight);
        let row_sums = &mut row_sums[5 * t..][..5];
        let (x_sum, x_norm) = (sum(x), norm(x));
        let Some(target) = within(targets.data[t], z.len()) else { continue };
        loss[t] = log_sum - z[target];
        for (v, z) in z.iter().enumerate() {
            let hit = if v == target { 1.0 } else { 0.0 };
            let g = dloss.data[t] * ((z - log_sum).exp() - hit);
            let weight = &weight.data[v * columns..][..columns];
            add_scaled(dx, g, weight);
            add_scaled(&mut dweight[v * columns..][..columns], g, x);
            row_sums[1] += g * sum(weight);
            row_sums[2] += root(words) * g.abs() * norm(weight);
            want[v] = [want[v][0] + g * x_sum, want[v][1] + root(rows) * g.abs() * x_norm];
        }
        row_sums[0] = sum(dx);
        let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row_sums[3] = loss[t];
        row_sums[4] = 1.0 + largest.abs() + z[target].abs() + loss[t].abs();
    }
    let weight_sums = dweight
        .chunks_exact(columns)
        .zip(&want)
        .flat_map(|(dweight, [want, size])| [sum(dweight), *want, *size]);
    let sums = attributes.sums.then(|| {
        let weight_sums = tensor(DType::F32, &[words, 3], weight_sums.collect());
        [tensor(DType::F32, &[rows, 5], row_sums), weight_sums]
    });
    let mut outputs = vec![
        tensor(DType::F32, &[rows], loss),
        tensor(x.dtype, &x.sizes, dx),
        tensor(attributes.weight_output, &weight.sizes, dweight),
    ];
    outputs.extend(sums.into_iter().flatten());
    outputs
}

pub(crate) fn loss_check(_: &LossCheck, operands: &[Tensor]) -> Vec<Tensor> {
    let (loss, row_sums, weight_sums) = (&operands[0], &operands[1], &operands[2]);
    let unit = 2f64.powi(-24);
    let distance = |got: f64, want: f64, bound: f64| {
        let distance = (got - want).abs() / bound;
        if distance.is_nan() { f64::INFINITY } else { distance }
    };
    let bound = |scale: f64| unit * scale + 2f64.powi(-70);
    let rows = loss.data.iter().zip(row_sums.data.chunks_exact(5)).flat_map(|(loss, row)| {
        [distance(row[0], row[1], bound(row[2])), distance(*loss, row[3], 32.0 * unit * row[4])]
    });
    let words = weight_sums.data.chunks_exact(3).map(|word| distance(word[0], word[1], bound(word[2])));
    vec![tensor(DType::F32, &[1], vec![rows.chain(words).fold(0.0, f64::max)])]
}
