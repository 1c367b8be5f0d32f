//! Attention and its gradient, with any mask.

use super::Outputs;
use crate::guess::steps::{Steps, row};
use toprope_program::Tensor;
use toprope_program::operator::{Attention, AttentionGradient};

/// Which keys a query sees.
pub(in crate::guess) type Sight<'a> = &'a dyn Fn(usize, usize) -> bool;

/// The keys that the contract lets a query see: from where its document starts up to its own place.
fn contract<'a>(keys: usize, starts: &'a Tensor, rest: &[&Tensor]) -> impl Fn(usize, usize) -> bool + 'a {
    let scalar = |at: usize| rest.get(at).and_then(|t| t.data.first()).map(|x| *x as i64);
    let (offset, length) = (scalar(0).unwrap_or(0), scalar(1).unwrap_or(keys as i64).min(keys as i64));
    move |i, j| {
        let start = (starts.data[i] as i64).max(0);
        (j as i64) >= start && (j as i64) < (i as i64 + offset + 1).min(length)
    }
}

pub(super) fn attention(attention: &Attention, o: &[&Tensor], steps: &Steps) -> Outputs {
    seeing(attention.scale, o, &contract(o[1].sizes[0], o[3], &o[4..]), steps)
}

/// `x[i, h, :]`.
fn head(x: &Tensor, i: usize, h: usize) -> &[f64] {
    row(x, i * x.sizes[1] + h)
}

/// Attention where queries see other keys. Rows that see nothing are zero.
pub(in crate::guess) fn seeing(scale: f64, o: &[&Tensor], sees: Sight<'_>, steps: &Steps) -> Outputs {
    let (q, k, v) = (o[0], o[1], o[2]);
    let (keys, groups, heads, width) = (k.sizes[0], k.sizes[1], q.sizes[1], v.sizes[2]);
    let mut out = Vec::with_capacity(q.sizes[0] * heads * width);
    let mut lse = Vec::with_capacity(q.sizes[0] * heads);
    for (i, h) in (0..q.sizes[0]).flat_map(|i| (0..heads).map(move |h| (i, h))) {
        let (query, g) = (head(q, i, h), h * groups / heads);
        let score = |j: usize| {
            let key = head(k, j, g);
            let product = steps.sum("a score's sum", query.len(), |c| query[c] * key[c]);
            steps.value("the scores", scale * product)
        };
        let seen: Vec<Option<f64>> = (0..keys).map(|j| sees(i, j).then(|| score(j))).collect();
        let most = seen.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        if most == f64::NEG_INFINITY {
            out.extend(std::iter::repeat_n(0.0, width));
            lse.push(most);
            continue;
        }
        let exponential = |s: &Option<f64>| {
            let e = steps.exponential("the exponents", s.map(|s| s - most));
            steps.value("the exponentials", e)
        };
        let e: Vec<f64> = seen.iter().map(exponential).collect();
        let sum = steps.sum("the sum of exponentials", keys, |j| e[j]);
        let p: Vec<f64> = e
            .iter()
            .map(|e| steps.value("the probabilities", steps.over("the reciprocal of the sum", *e, sum)))
            .collect();
        let value = |c: usize| {
            steps.sum("the sum over keys", keys, |j| if p[j] == 0.0 { 0.0 } else { p[j] * head(v, j, g)[c] })
        };
        out.extend((0..width).map(value));
        lse.push(most + sum.ln());
    }
    vec![Some(out), Some(lse)]
}

pub(super) fn gradient(gradient: &AttentionGradient, o: &[&Tensor], steps: &Steps) -> Outputs {
    gradient_seeing(gradient.scale, o, &contract(o[1].sizes[0], o[6], &[]), steps)
}

/// The gradient where queries see other keys.
pub(in crate::guess) fn gradient_seeing(
    scale: f64,
    o: &[&Tensor],
    sees: Sight<'_>,
    steps: &Steps,
) -> Outputs {
    let (q, k, v, out, lse, dout) = (o[0], o[1], o[2], o[3], o[4], o[5]);
    let (rows, heads, keys, groups) = (q.sizes[0], q.sizes[1], k.sizes[0], k.sizes[1]);
    let (width, deep) = (q.sizes[2], v.sizes[2]);
    let mut p = vec![0.0; rows * heads * keys];
    let mut ds = p.clone();
    let at = |i: usize, h: usize, j: usize| (i * heads + h) * keys + j;
    for (i, h) in (0..rows).flat_map(|i| (0..heads).map(move |h| (i, h))) {
        let (query, dout, out, g) = (head(q, i, h), head(dout, i, h), head(out, i, h), h * groups / heads);
        let along = steps.sum("a row's sum of out and its gradient", deep, |c| dout[c] * out[c]);
        let along = steps.term("the row's own term", along);
        for j in 0..keys {
            let (key, value) = (head(k, j, g), head(v, j, g));
            let exponent = sees(i, j).then(|| {
                let product = steps.sum("a score's sum", width, |c| query[c] * key[c]);
                steps.value("the scores", scale * product) - lse.data[i * heads + h]
            });
            let e = steps.exponential("the exponents", exponent);
            if e == 0.0 {
                continue;
            }
            let one = steps.value("the probabilities", e);
            let dp = steps.sum("a probability's gradient", deep, |c| dout[c] * value[c]);
            p[at(i, h, j)] = one;
            ds[at(i, h, j)] = steps.value("the scores' gradients", one * (dp - along));
        }
    }
    let dq = |n: usize| {
        let (i, h, c) = (n / (heads * width), n / width % heads, n % width);
        let g = h * groups / heads;
        let sum = steps.sum("the queries' sum over keys", keys, |j| match ds[at(i, h, j)] {
            0.0 => 0.0,
            ds => ds * head(k, j, g)[c],
        });
        steps.factor("the scale of the queries' gradient", scale) * sum
    };
    let own = |g: usize| (0..heads).filter(|h| h * groups / heads == g).collect::<Vec<usize>>();
    let own: Vec<Vec<usize>> = (0..groups).map(own).collect();
    let dk = |n: usize| {
        let (j, g, c) = (n / (groups * width), n / width % groups, n % width);
        let sum = steps.sum("the keys' sum over queries", rows, |i| {
            steps.sum("the keys' sum over the heads of a group", own[g].len(), |h| {
                let h = own[g][h];
                match ds[at(i, h, j)] {
                    0.0 => 0.0,
                    ds => ds * head(q, i, h)[c],
                }
            })
        });
        steps.factor("the scale of the keys' gradient", scale) * sum
    };
    let dv = |n: usize| {
        let (j, g, c) = (n / (groups * deep), n / deep % groups, n % deep);
        steps.sum("the values' sum over queries", rows, |i| {
            steps.sum("the values' sum over the heads of a group", own[g].len(), |h| {
                let h = own[g][h];
                match p[at(i, h, j)] {
                    0.0 => 0.0,
                    p => p * head(dout, i, h)[c],
                }
            })
        })
    };
    vec![
        Some((0..q.data.len()).map(dq).collect()),
        Some((0..k.data.len()).map(dk).collect()),
        Some((0..v.data.len()).map(dv).collect()),
    ]
}
