//! Operators computed again, wrongly on purpose: just enough of each for its mutants.

use toprope_program::Tensor;
use toprope_program::operator::{Attention, Router, Scoring};

/// `a·b` with the running sum passed through `keep` after each of the first `terms` additions.
pub(super) fn product(a: &Tensor, b: &Tensor, terms: usize, keep: impl Fn(f64) -> f64) -> Vec<f64> {
    let (rows, k, columns) = (a.sizes[0], a.sizes[1], b.sizes[1]);
    let mut y = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let add = |sum, i| keep(sum + a.data[row * k + i] * b.data[i * columns + column]);
            y.push((0..terms.min(k)).fold(0.0, add));
        }
    }
    y
}

/// As [`product`], with a matrix for each group of rows.
pub(super) fn grouped(a: &Tensor, b: &Tensor, offsets: &Tensor, keep: impl Fn(f64) -> f64) -> Vec<f64> {
    let (k, columns) = (b.sizes[1], b.sizes[2]);
    let mut y = vec![0.0; a.sizes[0] * columns];
    for expert in 0..b.sizes[0] {
        for row in offsets.data[expert] as usize..offsets.data[expert + 1] as usize {
            for column in 0..columns {
                let at = |i: usize| a.data[row * k + i] * b.data[(expert * k + i) * columns + column];
                y[row * columns + column] = (0..k).fold(0.0, |sum, i| keep(sum + at(i)));
            }
        }
    }
    y
}

/// How attention is wrong.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Slip {
    OneKeyMore,
    NoSegments,
    OtherScale,
    HeadsInTurn,
    NoCacheLength,
}

/// Attention with a slip: `out`, `lse`.
pub(super) fn attention(attention: &Attention, operands: &[Tensor], slip: Slip) -> (Vec<f64>, Vec<f64>) {
    let (q, k, v) = (&operands[0], &operands[1], &operands[2]);
    let (queries, heads, size) = (q.sizes[0], q.sizes[1], q.sizes[2]);
    let (keys, key_heads, width) = (k.sizes[0], k.sizes[1], v.sizes[2]);
    let offset = operands.get(4).map_or(0, |t| t.data[0] as usize);
    let length = match slip {
        Slip::NoCacheLength => keys,
        _ => operands.get(5).map_or(keys, |t| t.data[0] as usize),
    };
    let scale = if slip == Slip::OtherScale { 1.0 / (width as f64).sqrt() } else { attention.scale };
    let (mut out, mut lse) = (vec![0.0; queries * heads * width], vec![f64::NEG_INFINITY; queries * heads]);
    for i in 0..queries {
        let start = if slip == Slip::NoSegments { 0 } else { operands[3].data[i].max(0.0) as usize };
        let end = i + offset + if slip == Slip::OneKeyMore { 2 } else { 1 };
        for h in 0..heads {
            let group = if slip == Slip::HeadsInTurn { h % key_heads } else { h * key_heads / heads };
            let seen: Vec<usize> = (start..end.min(keys).min(length)).collect();
            let score = |j: usize| {
                let dot = |d: usize| {
                    q.data[(i * heads + h) * size + d] * k.data[(j * key_heads + group) * size + d]
                };
                scale * (0..size).map(dot).sum::<f64>()
            };
            let scores: Vec<f64> = seen.iter().map(|j| score(*j)).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if seen.is_empty() {
                continue;
            }
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            lse[i * heads + h] = most + sum.ln();
            for (j, s) in seen.iter().zip(&scores) {
                for d in 0..width {
                    let value = v.data[(j * key_heads + group) * width + d];
                    out[(i * heads + h) * width + d] += (s - most).exp() / sum * value;
                }
            }
        }
    }
    (out, lse)
}

/// A rotation with pairs and sign as given.
pub(super) fn rope(operands: &[Tensor], start: usize, interleaved: bool, inverse: bool) -> Vec<f64> {
    let (x, positions, table) = (&operands[0], &operands[1], &operands[2]);
    let (heads, columns) = (x.sizes[1], x.sizes[2]);
    let half = (columns - start) / 2;
    let mut y = x.data.clone();
    for t in 0..x.sizes[0] {
        let position = positions.data[t];
        let inside = position >= 0.0 && (position as usize) < table.sizes[0];
        for head in 0..heads {
            let row = (t * heads + head) * columns + start;
            for i in 0..half {
                let (first, second) =
                    if interleaved { (row + 2 * i, row + 2 * i + 1) } else { (row + i, row + half + i) };
                if !inside {
                    (y[first], y[second]) = (0.0, 0.0);
                    continue;
                }
                let at = position as usize * 2 * half;
                let (c, s) = (table.data[at + i], table.data[at + half + i]);
                let s = if inverse { -s } else { s };
                let (a, b) = (x.data[first], x.data[second]);
                (y[first], y[second]) = (a * c - b * s, a * s + b * c);
            }
        }
    }
    y
}

/// A router's choices, weights and counts from its own scores; `higher` sends ties to the higher index, `grouped` keeps
/// the group limit.
pub(super) fn router(
    router: &Router,
    bias: &Tensor,
    scores: &Tensor,
    higher: bool,
    grouped: bool,
    biased_weights: bool,
) -> [Vec<f64>; 3] {
    let (rows, experts, k) = (scores.sizes[0], scores.sizes[1], router.top_k);
    let (mut indices, mut weights, mut counts) = (Vec::new(), Vec::new(), vec![0.0; experts]);
    let best = |mut list: Vec<(f64, usize)>| {
        list.sort_by(|a, b| {
            let index = if higher { b.1.cmp(&a.1) } else { a.1.cmp(&b.1) };
            b.0.total_cmp(&a.0).then(index)
        });
        list
    };
    for row in 0..rows {
        let scores = &scores.data[row * experts..(row + 1) * experts];
        let keys: Vec<(f64, usize)> = (0..experts).map(|e| (scores[e] + bias.data[e], e)).collect();
        let size = experts / router.groups;
        let groups = (0..router.groups).map(|g| {
            let members = best(keys[g * size..(g + 1) * size].to_vec());
            (members.iter().take(2).map(|(key, _)| key).sum::<f64>(), g)
        });
        let allowed: Vec<usize> =
            best(groups.collect()).into_iter().take(router.top_groups).map(|(_, g)| g).collect();
        let within = |e: usize| !grouped || allowed.contains(&(e / size));
        let chosen: Vec<(f64, usize)> =
            best(keys.iter().copied().filter(|(_, e)| within(*e)).collect()).into_iter().take(k).collect();
        let value = |(key, e): &(f64, usize)| if biased_weights { *key } else { scores[*e] };
        let sum: f64 = if router.normalize { chosen.iter().map(value).sum::<f64>() + 1e-20 } else { 1.0 };
        for choice in &chosen {
            indices.push(choice.1 as f64);
            weights.push(router.scale * value(choice) / sum);
            counts[choice.1] += 1.0;
        }
    }
    debug_assert!(matches!(router.scoring, Scoring::Sigmoid | Scoring::Softmax));
    [indices, weights, counts]
}
