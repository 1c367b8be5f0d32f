//! Rotary position embedding.

use super::within;
use toprope_program::Tensor;
use toprope_program::operator::Rope;

/// The two columns of the `i`-th of `pairs` pairs.
pub(crate) fn pair(attributes: &Rope, i: usize, pairs: usize) -> (usize, usize) {
    let start = attributes.start;
    if attributes.interleaved { (start + 2 * i, start + 2 * i + 1) } else { (start + i, start + pairs + i) }
}

pub(crate) fn rope(attributes: &Rope, operands: &[Tensor]) -> Vec<Tensor> {
    let (x, positions, table) = (&operands[0], &operands[1], &operands[2]);
    let (heads, columns) = (x.sizes[1], x.sizes[2]);
    let (rows, pairs) = (table.sizes[0], table.sizes[2]);
    let mut y = x.clone();
    for (t, token) in y.data.chunks_exact_mut(heads * columns).enumerate() {
        let Some(p) = within(positions.data[t], rows) else {
            token.chunks_exact_mut(columns).for_each(|head| head[attributes.start..].fill(0.0));
            continue;
        };
        let (cosines, sines) = table.data[p * 2 * pairs..][..2 * pairs].split_at(pairs);
        for head in token.chunks_exact_mut(columns) {
            for i in 0..pairs {
                let (first, second) = pair(attributes, i, pairs);
                let (a, b) = (head[first], head[second]);
                let (c, s) = (cosines[i], if attributes.inverse { -sines[i] } else { sines[i] });
                head[first] = a * c - b * s;
                head[second] = a * s + b * c;
            }
        }
    }
    vec![y]
}
