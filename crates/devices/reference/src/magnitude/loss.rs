//! Magnitudes of the linear head with its cross-entropy.

use super::{add_absolute, inner_absolute};
use crate::operator::loss::logits;
use crate::operator::within;
use toprope_program::Tensor;

/// `max_v Σ|x·weight|`.
fn largest(x: &[f64], weight: &Tensor) -> f64 {
    weight.data.chunks_exact(x.len()).map(|weight| inner_absolute(x, weight)).fold(0.0, f64::max)
}

/// `1 + |lse| + |z_target| + max_v Σ|x·weight|` for each row.
fn rows(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Vec<f64> {
    let row = |(x, target): (&[f64], &f64)| {
        let (z, lse) = logits(x, weight);
        let z_target = within(*target, z.len()).map_or(0.0, |target| z[target]);
        1.0 + lse.abs() + z_target.abs() + largest(x, weight)
    };
    x.data.chunks_exact(x.sizes[1]).zip(&targets.data).map(row).collect()
}

pub(super) fn linear_cross_entropy(operands: &[Tensor]) -> Vec<Vec<f64>> {
    vec![rows(&operands[0], &operands[1], &operands[2]); 2]
}

/// With `e = 1 + |lse| + max_v Σ|x·weight|`: of dx `Σ_v |dloss|·(p·(1 + 2e) + [v = target])·|weight|`, of dweight the same
/// with `|x|` over rows; of a sum what it sums.
pub(super) fn linear_cross_entropy_gradient(operands: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let (x, weight, targets, dloss) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let columns = x.sizes[1];
    let mut dx = vec![0.0; x.data.len()];
    let mut dweight = vec![0.0; weight.data.len()];
    for (t, (x, dx)) in x.data.chunks_exact(columns).zip(dx.chunks_exact_mut(columns)).enumerate() {
        let (z, lse) = logits(x, weight);
        let Some(target) = within(targets.data[t], z.len()) else { continue };
        let e = 1.0 + lse.abs() + largest(x, weight);
        for (v, z) in z.iter().enumerate() {
            let hit = if v == target { 1.0 } else { 0.0 };
            let g = dloss.data[t].abs() * ((z - lse).exp() * (1.0 + 2.0 * e) + hit);
            add_absolute(dx, g, &weight.data[v * columns..][..columns]);
            add_absolute(&mut dweight[v * columns..][..columns], g, x);
        }
    }
    let loss = rows(x, weight, targets);
    let mut magnitudes = vec![loss, dx, dweight];
    if let [_, _, _, row_sums, weight_sums] = outputs {
        let of_rows =
            magnitudes[1].chunks_exact(columns).zip(&magnitudes[0]).zip(row_sums.data.chunks_exact(5));
        let of_rows = of_rows.flat_map(|((dx, loss), sums)| {
            let terms: f64 = dx.iter().sum();
            [terms, terms, terms + sums[2] * (1.0 + 2.0 * loss), *loss, *loss]
        });
        let of_words = magnitudes[2].chunks_exact(columns).zip(weight_sums.data.chunks_exact(3));
        let most = magnitudes[0].iter().copied().fold(1.0, f64::max);
        let of_words = of_words.flat_map(|(dweight, sums)| {
            let terms: f64 = dweight.iter().sum();
            [terms, terms, terms + sums[2] * (1.0 + 2.0 * most)]
        });
        let (of_rows, of_words) = (of_rows.collect(), of_words.collect());
        magnitudes.extend([of_rows, of_words]);
    }
    magnitudes
}
