//! Attention and its gradient.

use super::{add_scaled, attribute, inner, tensor};
use std::ops::Range;
use toprope_program::operator::{Attention, AttentionCheck, AttentionGradient};
use toprope_program::{DType, Tensor, Width};

/// Operands of attention by head.
pub(crate) struct Heads<'a> {
    pub(crate) q: &'a Tensor,
    pub(crate) k: &'a Tensor,
    pub(crate) v: &'a Tensor,
    segment_start: &'a Tensor,
    query_offset: i64,
    cache_length: i64,
}

impl<'a> Heads<'a> {
    /// From q, k and v, where documents start, and what optional operands follow.
    pub(crate) fn new(qkv: &'a [Tensor], segment_start: &'a Tensor, optional: &[Tensor]) -> Heads<'a> {
        let scalar = |index: usize| optional.get(index).map(|scalar| scalar.data[0] as i64);
        let (q, k, v) = (&qkv[0], &qkv[1], &qkv[2]);
        let keys = k.sizes[0] as i64;
        Heads {
            q,
            k,
            v,
            segment_start,
            query_offset: scalar(0).unwrap_or(0),
            cache_length: scalar(1).unwrap_or(keys).min(keys),
        }
    }

    /// Every pair of a row and a query head.
    pub(crate) fn queries(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.q.sizes[1];
        (0..self.q.sizes[0]).flat_map(move |i| (0..heads).map(move |h| (i, h)))
    }

    /// The keys that row `i` sees.
    pub(crate) fn visible(&self, i: usize) -> Range<usize> {
        let start = (self.segment_start.data[i] as i64).max(0);
        let end = (i as i64 + self.query_offset + 1).min(self.cache_length);
        start as usize..end.max(start) as usize
    }

    /// The key head of a query head.
    pub(crate) fn key_head(&self, h: usize) -> usize {
        h * self.k.sizes[1] / self.q.sizes[1]
    }

    /// `q[i, h, :]`.
    pub(crate) fn query(&self, i: usize, h: usize) -> &[f64] {
        row(self.q, i, h)
    }

    /// `k[j, h', :]` for query head `h`.
    pub(crate) fn key(&self, j: usize, h: usize) -> &[f64] {
        row(self.k, j, self.key_head(h))
    }

    /// `v[j, h', :]` for query head `h`.
    pub(crate) fn value(&self, j: usize, h: usize) -> &[f64] {
        row(self.v, j, self.key_head(h))
    }
}

/// Where `x[i, h, :]` lies in a tensor of three dimensions.
pub(crate) fn place(x: &Tensor, i: usize, h: usize) -> Range<usize> {
    let start = (i * x.sizes[1] + h) * x.sizes[2];
    start..start + x.sizes[2]
}

/// `x[i, h, :]`.
pub(crate) fn row(x: &Tensor, i: usize, h: usize) -> &[f64] {
    &x.data[place(x, i, h)]
}

pub(crate) fn attention(attributes: &Attention, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let heads = Heads::new(&operands[..3], &operands[3], &operands[4..]);
    let scale = attribute(attributes.scale, width);
    let (q, v) = (heads.q, heads.v);
    let mut out = Tensor::zeros(q.dtype, &[q.sizes[0], q.sizes[1], v.sizes[2]]);
    let mut lse = vec![f64::NEG_INFINITY; q.sizes[0] * q.sizes[1]];
    for (i, h) in heads.queries() {
        let visible = heads.visible(i);
        if visible.is_empty() {
            continue;
        }
        let query = heads.query(i, h);
        let scores: Vec<f64> = visible.clone().map(|j| scale * inner(query, heads.key(j, h))).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let log_sum = largest + sum.ln();
        lse[i * q.sizes[1] + h] = log_sum;
        let place = place(&out, i, h);
        for (j, s) in visible.zip(scores) {
            add_scaled(&mut out.data[place.clone()], (s - log_sum).exp(), heads.value(j, h));
        }
    }
    let lse = tensor(DType::F32, &q.sizes[..2], lse);
    vec![out, lse]
}

pub(crate) fn attention_gradient(
    attributes: &AttentionGradient,
    operands: &[Tensor],
    width: Width,
) -> Vec<Tensor> {
    let heads = Heads::new(&operands[..3], &operands[6], &[]);
    let (out, lse, dout) = (&operands[3], &operands[4], &operands[5]);
    let scale = attribute(attributes.scale, width);
    let [mut dq, mut dk, mut dv] = [heads.q, heads.k, heads.v].map(|x| Tensor::zeros(x.dtype, &x.sizes));
    let mut sums = Tensor::zeros(DType::F32, &lse.sizes);
    for (i, h) in heads.queries() {
        let (query, dout) = (heads.query(i, h), row(dout, i, h));
        let along = inner(dout, row(out, i, h));
        let log_sum = lse.data[i * heads.q.sizes[1] + h];
        for j in heads.visible(i) {
            let p = (scale * inner(query, heads.key(j, h)) - log_sum).exp();
            let ds = p * (inner(dout, heads.value(j, h)) - along);
            let g = heads.key_head(h);
            let (q_place, k_place, v_place) = (place(&dq, i, h), place(&dk, j, g), place(&dv, j, g));
            add_scaled(&mut dq.data[q_place], scale * ds, heads.key(j, h));
            add_scaled(&mut dk.data[k_place], scale * ds, query);
            add_scaled(&mut dv.data[v_place], p, dout);
            sums.data[i * heads.q.sizes[1] + h] += p;
        }
    }
    let mut outputs = vec![dq, dk, dv];
    if attributes.sums {
        outputs.push(sums);
    }
    outputs
}

/// The runs of rows that see nothing of each other.
fn runs(heads: &Heads<'_>) -> Vec<Range<usize>> {
    let rows = heads.q.sizes[0];
    let border = |row: usize| {
        (row..rows).all(|later| heads.visible(later).is_empty() || heads.visible(later).start >= row)
    };
    let starts: Vec<usize> = (0..rows).filter(|row| border(*row)).collect();
    let ends = starts.iter().skip(1).copied().chain([rows]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

pub(crate) fn attention_check(attributes: &AttentionCheck, operands: &[Tensor]) -> Vec<Tensor> {
    let heads = Heads::new(&operands[..3], &operands[8], &[]);
    let [out, dout, dq, dk, dv] = [3, 4, 5, 6, 7].map(|index: usize| &operands[index]);
    let sums = &operands[9];
    let mut worst = 0.0f64;
    for run in runs(&heads) {
        let unit = out.dtype.unit_roundoff() + 2f64.powi(-24) * (run.len() as f64).sqrt();
        let keys = run.start..run.end.min(heads.k.sizes[0]).max(run.start);
        for g in 0..heads.k.sizes[1] {
            let group: Vec<usize> = (0..heads.q.sizes[1]).filter(|h| heads.key_head(*h) == g).collect();
            let queries = || run.clone().flat_map(|i| group.iter().map(move |h| (i, *h)));
            let mut meet = |total: f64, first: f64, second: f64| {
                let distance = total.abs() / (unit * (first.sqrt() + second.sqrt()) + 2f64.powi(-70));
                worst = if distance.is_nan() { f64::INFINITY } else { worst.max(distance) };
            };
            let square = |terms: &[f64]| terms.iter().map(|x| x * x).sum::<f64>();
            // Σ (x·y)² over columns.
            let products = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).collect::<Vec<f64>>();
            for c in 0..dv.sizes[2] {
                let have: Vec<f64> = keys.clone().map(|j| row(dv, j, g)[c]).collect();
                let seeing = queries().filter(|(i, _)| !heads.visible(*i).is_empty());
                let want: Vec<f64> = seeing.map(|(i, h)| row(dout, i, h)[c]).collect();
                let total = have.iter().sum::<f64>() - want.iter().sum::<f64>();
                meet(total, square(&have), square(&want));
                let top = |x: f64, y: f64| x.max(y.abs());
                let out = queries().map(|(i, h)| row(out, i, h)[c]).fold(0.0, top);
                let most = keys.clone().map(|j| row(heads.v, j, g)[c]).fold(0.0, top);
                meet((out - most).max(0.0), most * most, 0.0);
            }
            for c in 0..dk.sizes[2] {
                let have: Vec<f64> = keys.clone().map(|j| row(dk, j, g)[c]).collect();
                let errors = queries().map(|(i, h)| {
                    let along = square(&products(row(dout, i, h), row(out, i, h)));
                    (attributes.scale * heads.query(i, h)[c]).powi(2) * along
                });
                meet(have.iter().sum(), square(&have), errors.sum());
            }
            let of_queries = |x: &Tensor, y: &Tensor| -> Vec<f64> {
                queries().flat_map(|(i, h)| products(row(x, i, h), row(y, i, h))).collect()
            };
            let of_keys = |x: &Tensor, y: &Tensor| -> Vec<f64> {
                keys.clone().flat_map(|j| products(row(x, j, g), row(y, j, g))).collect()
            };
            for (first, second) in [
                (of_queries(heads.q, dq), of_keys(heads.k, dk)),
                (of_queries(out, dout), of_keys(heads.v, dv)),
            ] {
                let total = first.iter().sum::<f64>() - second.iter().sum::<f64>();
                meet(total, square(&first), square(&second));
            }
            let most = |x: &[f64]| x.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let of_queries = queries().map(|(i, h)| most(heads.query(i, h))).fold(0.0, f64::max);
            let of_keys = keys.clone().map(|j| most(row(heads.k, j, g))).fold(0.0, f64::max);
            let size = attributes.scale * heads.q.sizes[2] as f64 * of_queries * of_keys;
            let bound = 2f64.powi(-24) * (1.0 + (run.len() as f64).sqrt() + size);
            for (i, h) in queries().filter(|(i, _)| !heads.visible(*i).is_empty()) {
                let distance = (sums.data[i * heads.q.sizes[1] + h] - 1.0).abs() / bound;
                worst = if distance.is_finite() { worst.max(distance) } else { f64::INFINITY };
            }
        }
    }
    vec![tensor(DType::F32, &[1], vec![worst])]
}
