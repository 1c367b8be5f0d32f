//! Products and sums.

use super::{Outputs, within};
use crate::guess::steps::{Steps, row};
use std::ops::Range;
use toprope_program::Tensor;

const OVER_K: &str = "the sum over K";
const OF_ROW: &str = "a row's sum";

/// The sums of rows, where they are asked for.
fn with_row_sums(y: &[f64], n: usize, count: usize, steps: &Steps) -> Option<Vec<f64>> {
    (count > 1).then(|| y.chunks_exact(n.max(1)).map(|row| steps.sum(OF_ROW, n, |i| row[i])).collect())
}

/// `a[row, :]·b[:, column]`.
fn cell(a: &[f64], b: &[f64], n: usize, column: usize, steps: &Steps) -> f64 {
    steps.sum(OVER_K, a.len(), |k| a[k] * b[k * n + column])
}

pub(super) fn matmul(o: &[&Tensor], count: usize, steps: &Steps) -> Outputs {
    let (m, n) = (o[0].sizes[0], o[1].sizes[1]);
    let mut y: Vec<f64> = (0..m * n).map(|i| cell(row(o[0], i / n), &o[1].data, n, i % n, steps)).collect();
    let sums = with_row_sums(&y, n, count, steps);
    if let Some(bias) = o.get(2) {
        y.iter_mut().enumerate().for_each(|(i, y)| *y += steps.addend("the bias", bias.data[i % n]));
    }
    vec![Some(y), sums]
}

/// The rows of a group, clipped to those that are there.
fn rows_of(offsets: &Tensor, group: usize, rows: usize) -> Range<usize> {
    let clip = |offset: f64| offset.clamp(0.0, rows as f64) as usize;
    let start = clip(offsets.data[group]);
    start..clip(offsets.data[group + 1]).max(start)
}

pub(super) fn grouped_matmul(o: &[&Tensor], count: usize, steps: &Steps) -> Outputs {
    let (rows, k, n) = (o[0].sizes[0], o[0].sizes[1], o[1].sizes[2]);
    let mut y = vec![0.0; rows * n];
    for group in 0..o[1].sizes[0] {
        let b = &o[1].data[group * k * n..(group + 1) * k * n];
        let range = rows_of(o[2], group, rows);
        for at in range.clone() {
            let expert = steps.covers("the experts", group, o[1].sizes[0]);
            if !expert || !steps.covers("an expert's rows", at - range.start, range.len()) {
                continue;
            }
            for column in 0..n {
                y[at * n + column] = cell(row(o[0], at), b, n, column, steps);
            }
        }
    }
    let sums = with_row_sums(&y, n, count, steps);
    vec![Some(y), sums]
}

pub(super) fn grouped_outer(o: &[&Tensor], count: usize, steps: &Steps) -> Outputs {
    let (rows, k, n) = (o[0].sizes[0], o[0].sizes[1], o[1].sizes[1]);
    let groups = o[2].sizes[0].saturating_sub(1);
    let mut y = vec![0.0; groups * k * n];
    for group in 0..groups {
        let range = rows_of(o[2], group, rows);
        if !steps.covers("the experts", group, groups) {
            continue;
        }
        for i in 0..k * n {
            y[group * k * n + i] = steps.sum("the sum over an expert's rows", range.len(), |r| {
                o[0].data[(range.start + r) * k + i / n] * o[1].data[(range.start + r) * n + i % n]
            });
        }
    }
    let sums = with_row_sums(&y, n, count, steps);
    vec![Some(y), sums]
}

pub(super) fn column_sum(o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rows, columns) = (o[0].sizes[0], o[0].sizes[1]);
    let column = |c: usize| steps.sum("the sum over rows", rows, |r| o[0].data[r * columns + c]);
    vec![Some((0..columns).map(column).collect())]
}

pub(super) fn dot(o: &[&Tensor], steps: &Steps) -> Outputs {
    let sum = steps.sum("the sum of products", o[0].data.len(), |i| o[0].data[i] * o[1].data[i]);
    vec![Some(vec![sum])]
}

pub(super) fn scatter_add(o: &[&Tensor], rows: usize, steps: &Steps) -> Outputs {
    let (count, width) = (o[0].sizes[0], o[0].sizes[1]);
    let mut y = vec![0.0; rows * width];
    for (at, index) in o[1].data.iter().enumerate() {
        if let Some(to) = within(*index, rows).filter(|_| steps.covers("the rows that are added", at, count))
        {
            for c in 0..width {
                y[to * width + c] += o[0].data[at * width + c];
            }
        }
    }
    vec![Some(y)]
}
