//! Products and sums.

use super::{add_scaled, inner, tensor};
use std::ops::Range;
use toprope_program::operator::{
    ColumnSum, Dot, GroupedMatmul, GroupedOuter, Matmul, ProductCheck, ProductForm,
};
use toprope_program::{DType, Tensor};

pub(crate) fn column_sum(attributes: &ColumnSum, operands: &[Tensor]) -> Vec<Tensor> {
    let x = &operands[0];
    let columns = x.sizes[1];
    let mut y = vec![0.0; columns];
    for row in x.data.chunks_exact(columns) {
        add_scaled(&mut y, 1.0, row);
    }
    vec![tensor(attributes.output, &[columns], y)]
}

pub(crate) fn dot(_: &Dot, operands: &[Tensor]) -> Vec<Tensor> {
    vec![tensor(DType::F32, &[1], vec![inner(&operands[0].data, &operands[1].data)])]
}

/// `y += a·b` for `a` of `[M, K]`, `b` of `[K, N]`, all row-major.
fn add_product(y: &mut [f64], a: &[f64], b: &[f64], k: usize, n: usize) {
    for (y, a) in y.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            add_scaled(y, *a, b);
        }
    }
}

fn row_sums(y: &[f64], n: usize) -> Tensor {
    let sums: Vec<f64> = y.chunks_exact(n).map(|row| row.iter().sum()).collect();
    tensor(DType::F32, &[sums.len()], sums)
}

pub(crate) fn matmul(attributes: &Matmul, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b) = (&operands[0], &operands[1]);
    let (m, k, n) = (a.sizes[0], a.sizes[1], b.sizes[1]);
    let mut y = vec![0.0; m * n];
    add_product(&mut y, &a.data, &b.data, k, n);
    let sums = attributes.row_sums.then(|| row_sums(&y, n));
    if let Some(bias) = operands.get(2) {
        for row in y.chunks_exact_mut(n) {
            add_scaled(row, 1.0, &bias.data);
        }
    }
    let mut outputs = vec![tensor(attributes.output, &[m, n], y)];
    outputs.extend(sums);
    outputs
}

/// The rows of expert `e`, clipped to those that are there.
fn rows_of(offsets: &Tensor, e: usize, rows: usize) -> Range<usize> {
    let clip = |offset: f64| offset.clamp(0.0, rows as f64) as usize;
    let start = clip(offsets.data[e]);
    start..clip(offsets.data[e + 1]).max(start)
}

pub(crate) fn grouped_matmul(attributes: &GroupedMatmul, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b, offsets) = (&operands[0], &operands[1], &operands[2]);
    let (r, k, n) = (a.sizes[0], a.sizes[1], b.sizes[2]);
    let mut y = vec![0.0; r * n];
    for (e, b) in b.data.chunks_exact(k * n).enumerate() {
        let rows = rows_of(offsets, e, r);
        let (from, to) = (rows.start, rows.end);
        add_product(&mut y[from * n..to * n], &a.data[from * k..to * k], b, k, n);
    }
    let sums = attributes.row_sums.then(|| row_sums(&y, n));
    let mut outputs = vec![tensor(attributes.output, &[r, n], y)];
    outputs.extend(sums);
    outputs
}

pub(crate) fn grouped_outer(attributes: &GroupedOuter, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b, offsets) = (&operands[0], &operands[1], &operands[2]);
    let (rows, k, n) = (a.sizes[0], a.sizes[1], b.sizes[1]);
    let experts = offsets.sizes[0] - 1;
    let mut y = vec![0.0; experts * k * n];
    for (e, y) in y.chunks_exact_mut(k * n).enumerate() {
        for r in rows_of(offsets, e, rows) {
            let b = &b.data[r * n..][..n];
            for (y, a) in y.chunks_exact_mut(n).zip(&a.data[r * k..][..k]) {
                add_scaled(y, *a, b);
            }
        }
    }
    let sums = attributes.row_sums.then(|| Tensor { sizes: vec![experts, k], ..row_sums(&y, n) });
    let mut outputs = vec![tensor(attributes.output, &[experts, k, n], y)];
    outputs.extend(sums);
    outputs
}

/// The largest distance of one product's row sums, in units of the bound; `a` is `[M, K]`, `b` is `[K, N]`.
fn row_sum_distance(a: &[f64], b: &[f64], row_sums: &[f64], n: usize) -> f64 {
    let k = b.len() / n;
    let s: Vec<f64> = b.chunks_exact(n).map(|row| row.iter().sum()).collect();
    let t: Vec<f64> = b.chunks_exact(n).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
    let mut worst = 0.0f64;
    for (row, row_sum) in row_sums.iter().enumerate() {
        let a = &a[row * k..][..k];
        let size: f64 = a.iter().zip(&t).map(|(a, t)| a.abs() * t).sum();
        let bound = 2f64.powi(-24) * ((k + n) as f64).sqrt() * size + 2f64.powi(-70);
        let distance = (row_sum - inner(a, &s)).abs() / bound;
        worst = if distance.is_nan() { f64::INFINITY } else { worst.max(distance) };
    }
    worst
}

pub(crate) fn product_check(attributes: &ProductCheck, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b, row_sums) = (&operands[0], &operands[1], &operands[2]);
    let (rows, k) = (a.sizes[0], a.sizes[1]);
    let n = b.sizes.last().copied().unwrap_or(1);
    let experts = operands.get(3).map_or(1, |offsets| offsets.sizes[0] - 1);
    let of = |e: usize| operands.get(3).map_or(0..rows, |offsets| rows_of(offsets, e, rows));
    let distances = (0..experts).map(|e| {
        let rows = of(e);
        let a = &a.data[rows.start * k..rows.end * k];
        match attributes.form {
            ProductForm::Matmul => row_sum_distance(a, &b.data, &row_sums.data, n),
            ProductForm::GroupedMatmul => {
                row_sum_distance(a, &b.data[e * k * n..][..k * n], &row_sums.data[rows], n)
            }
            ProductForm::GroupedOuter => {
                let count = rows.len();
                let transposed: Vec<f64> = (0..count * k).map(|at| a[at % count * k + at / count]).collect();
                let b = &b.data[rows.start * n..rows.end * n];
                row_sum_distance(&transposed, b, &row_sums.data[e * k..][..k], n)
            }
        }
    });
    vec![tensor(DType::F32, &[1], vec![distances.fold(0.0, f64::max)])]
}
