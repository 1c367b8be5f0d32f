//! Magnitudes of attention and its gradient.

use super::{add_absolute, inner_absolute};
use crate::operator::attention::{Heads, place, row};
use crate::operator::inner;
use toprope_program::Tensor;
use toprope_program::operator::{Attention, AttentionGradient};

/// With `s = scale·Σ|q·k|` and `e = s + |lse| + Σ_j p·s`, since the sum that p is divided by has the errors of all scores: of
/// out `Σ_j p·|v|·(1 + 2e)`, of lse `1 + |lse| + max s`.
pub(super) fn attention(attributes: &Attention, operands: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let heads = Heads::new(&operands[..3], &operands[3], &operands[4..]);
    let scale = attributes.scale;
    let mut out = vec![0.0; outputs[0].data.len()];
    let mut lse = vec![1.0; outputs[1].data.len()];
    for (i, h) in heads.queries() {
        let at = i * heads.q.sizes[1] + h;
        let (query, log_sum) = (heads.query(i, h), outputs[1].data[at]);
        let score = |j: usize| {
            let p = (scale * inner(query, heads.key(j, h)) - log_sum).exp();
            (j, scale * inner_absolute(query, heads.key(j, h)), p)
        };
        let scores: Vec<(usize, f64, f64)> = heads.visible(i).map(score).collect();
        let largest = scores.iter().fold(0.0f64, |largest, (_, size, _)| largest.max(*size));
        let mean: f64 = scores.iter().map(|(_, size, p)| p * size).sum();
        for (j, size, p) in scores {
            let e = size + log_sum.abs() + mean;
            add_absolute(&mut out[place(&outputs[0], i, h)], p * (1.0 + 2.0 * e), heads.value(j, h));
        }
        lse[at] += log_sum.abs() + largest;
    }
    vec![out, lse]
}

/// With `e = scale·Σ|q·k| + |lse|` and `m = p·(Σ|dout·v|·(1 + 2e) + Σ|dout·out|·2e + d)`: of dq `scale·Σ m·|k|`, of dk
/// `scale·Σ m·|q|`, of dv `Σ p·(1 + 2e)·|dout|`, of sums `Σ p·(1 + 2e)`. D's own error is that of `d`, the larger of `Σ|dout·out|`
/// and `Σ_j p·(1 + 2e)·Σ|dout·v|`: D is also `Σ_j p·dp`, and the terms of that are large where those of out cancel.
pub(super) fn attention_gradient(attributes: &AttentionGradient, operands: &[Tensor]) -> Vec<Vec<f64>> {
    let heads = Heads::new(&operands[..3], &operands[6], &[]);
    let (out, lse, dout) = (&operands[3], &operands[4], &operands[5]);
    let scale = attributes.scale;
    let [mut dq, mut dk, mut dv] = [heads.q, heads.k, heads.v].map(|x| vec![0.0; x.data.len()]);
    let mut sums = vec![0.0; lse.data.len()];
    for (i, h) in heads.queries() {
        let (query, dout) = (heads.query(i, h), row(dout, i, h));
        let along = inner_absolute(dout, row(out, i, h));
        let log_sum = lse.data[i * heads.q.sizes[1] + h];
        let pair = |j: usize| {
            let p = (scale * inner(query, heads.key(j, h)) - log_sum).exp();
            let e = scale * inner_absolute(query, heads.key(j, h)) + log_sum.abs();
            (j, p, 1.0 + 2.0 * e, inner_absolute(dout, heads.value(j, h)))
        };
        let pairs: Vec<(usize, f64, f64, f64)> = heads.visible(i).map(pair).collect();
        let terms: f64 = pairs.iter().map(|(_, p, wide, size)| p * wide * size).sum();
        for (j, p, wide, size) in pairs {
            let g = heads.key_head(h);
            let m = p * (size * wide + along * (wide - 1.0) + along.max(terms));
            add_absolute(&mut dq[place(heads.q, i, h)], scale * m, heads.key(j, h));
            add_absolute(&mut dk[place(heads.k, j, g)], scale * m, query);
            add_absolute(&mut dv[place(heads.v, j, g)], p * wide, dout);
            sums[i * heads.q.sizes[1] + h] += p * wide;
        }
    }
    let mut magnitudes = vec![dq, dk, dv];
    if attributes.sums {
        magnitudes.push(sums);
    }
    magnitudes
}
