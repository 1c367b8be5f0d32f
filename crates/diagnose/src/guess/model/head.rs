//! The linear head with its cross-entropy.

use super::{Outputs, within};
use crate::guess::steps::{Steps, row};
use toprope_program::Tensor;

/// The logits of a row, its probabilities, and the logarithm of the sum of exponentials.
fn softmax(x: &[f64], weight: &Tensor, steps: &Steps) -> (Vec<f64>, Vec<f64>, f64) {
    let words = weight.sizes[0];
    let logit = |v: usize| {
        let w = row(weight, v);
        steps.value("the logits", steps.sum("a logit's sum", x.len(), |i| x[i] * w[i]))
    };
    let z: Vec<f64> = (0..words).map(logit).collect();
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = z
        .iter()
        .map(|z| steps.value("the exponentials", steps.exponential("the exponents", Some(z - most))))
        .collect();
    let sum = steps.sum("the sum of exponentials", words, |v| e[v]);
    let p = e
        .iter()
        .map(|e| steps.value("the probabilities", steps.over("the reciprocal of the sum", *e, sum)))
        .collect();
    (z, p, steps.value("the logarithm of the sum", most + sum.ln()))
}

pub(super) fn loss(o: &[&Tensor], steps: &Steps) -> Outputs {
    let (mut loss, mut lse) = (Vec::new(), Vec::new());
    for (at, target) in o[2].data.iter().enumerate() {
        let (z, _, log) = softmax(row(o[0], at), o[1], steps);
        let hit = within(*target, z.len());
        loss.push(hit.map_or(0.0, |v| log - steps.term("the target's logit", z[v])));
        lse.push(log);
    }
    vec![Some(loss), Some(lse)]
}

pub(super) fn gradient(o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rows, width, words) = (o[0].sizes[0], o[0].sizes[1], o[1].sizes[0]);
    let mut loss = vec![0.0; rows];
    let mut g = vec![0.0; rows * words];
    for at in 0..rows {
        let (z, p, log) = softmax(row(o[0], at), o[1], steps);
        let Some(hit) = within(o[2].data[at], words) else { continue };
        loss[at] = log - steps.term("the target's logit", z[hit]);
        for v in 0..words {
            let own = if v == hit { steps.term("the target's own one", 1.0) } else { 0.0 };
            let dloss = steps.factor("the loss's gradient", o[3].data[at]);
            g[at * words + v] = steps.value("the logits' gradients", dloss * (p[v] - own));
        }
    }
    let dx = |i: usize| {
        steps
            .sum("the sum over words", words, |v| g[i / width * words + v] * o[1].data[v * width + i % width])
    };
    let dweight = |i: usize| {
        let (v, d) = (i / width, i % width);
        steps.sum("the sum over rows", rows, |at| g[at * words + v] * o[0].data[at * width + d])
    };
    vec![
        Some(loss),
        Some((0..rows * width).map(dx).collect()),
        Some((0..words * width).map(dweight).collect()),
    ]
}
