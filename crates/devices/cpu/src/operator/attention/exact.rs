//! Attention pair by pair: what a block falls back to where its operands are not finite.

use super::backward::Backward;
use super::forward::Forward;
use super::softmax::exponential as weight;
use crate::lanes::ln;
use std::ops::Range;

/// As the blocked forward pass: `out` holds the queries' rows, `lse` one value each.
pub(super) fn forward(
    it: &Forward<'_>,
    queries: Range<usize>,
    head: usize,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let key_head = it.key_head(head);
    for ((query, out), lse) in queries.zip(out.chunks_exact_mut(it.v.columns)).zip(lse) {
        let product = |key: usize| it.q.dot(query, head, &it.k, key, key_head);
        let visible = it.mask.visible(query);
        out.fill(0.0);
        *lse = f32::NEG_INFINITY;
        if visible.is_empty() {
            continue;
        }
        let largest = visible.clone().map(|key| it.scale * product(key)).fold(f32::NEG_INFINITY, f32::max);
        let exponential = |key: usize| weight(product(key), it.scale, largest);
        let sum: f32 = visible.clone().map(exponential).sum();
        *lse = largest + ln(sum);
        for key in visible {
            let p = exponential(key) / sum;
            for (column, out) in out.iter_mut().enumerate() {
                *out += p * it.v.at(key, key_head, column);
            }
        }
    }
}

/// As the blocked backward pass over one run of rows and one key head; `dq` is called with a query, a head, the sum of its
/// probabilities and its row.
pub(super) fn backward(
    it: &Backward<'_>,
    run: Range<usize>,
    key_head: usize,
    dk: &mut [f32],
    dv: &mut [f32],
    mut dq: impl FnMut(usize, usize, f32, &dyn Fn(usize) -> f32),
) {
    dk.fill(0.0);
    dv.fill(0.0);
    let (columns, value_columns) = (it.q.columns, it.v.columns);
    for head in it.query_heads(key_head) {
        for query in run.clone() {
            let visible = it.mask.visible(query);
            let along = it.dout.dot(query, head, &it.out, query, head);
            let lse = it.lse[query * it.q.heads + head];
            let slope = |key: usize| {
                let p = weight(it.q.dot(query, head, &it.k, key, key_head), it.scale, lse);
                let dp = it.dout.dot(query, head, &it.v, key, key_head);
                (p, it.scale * p * (dp - along))
            };
            let mut sum = 0.0;
            for key in visible.clone() {
                let (p, ds) = slope(key);
                sum += p;
                let row = key - run.start;
                for (column, dk) in dk[row * columns..][..columns].iter_mut().enumerate() {
                    *dk += ds * it.q.at(query, head, column);
                }
                for (column, dv) in dv[row * value_columns..][..value_columns].iter_mut().enumerate() {
                    *dv += p * it.dout.at(query, head, column);
                }
            }
            dq(query, head, sum, &|column| {
                visible.clone().map(|key| slope(key).1 * it.k.at(key, key_head, column)).sum()
            });
        }
    }
}
