//! Products and sums.

use super::{add_scaled, inner, tensor};
use std::ops::Range;
use toprope_program::operator::{ColumnSum, Dot, GroupedMatmul, GroupedOuter, Matmul, ProductCheck};
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
    vec![tensor(attributes.output, &[experts, k, n], y)]
}

pub(crate) fn product_check(_: &ProductCheck, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b, row_sums) = (&operands[0], &operands[1], &operands[2]);
    let (k, n) = (a.sizes[1], b.sizes[1]);
    let s: Vec<f64> = b.data.chunks_exact(n).map(|row| row.iter().sum()).collect();
    let q: Vec<f64> = b.data.chunks_exact(n).map(|row| row.iter().map(|x| x.abs()).sum()).collect();
    let mut worst = 0.0f64;
    for (a, row_sum) in a.data.chunks_exact(k).zip(&row_sums.data) {
        let size: f64 = a.iter().zip(&q).map(|(a, q)| a.abs() * q).sum();
        let bound = 2f64.powi(-24) * (k + n + 4) as f64 * size + 2f64.powi(-120);
        let distance = (row_sum - inner(a, &s)).abs() / bound;
        worst = if distance.is_nan() { f64::INFINITY } else { worst.max(distance) };
    }
    vec![tensor(DType::F32, &[1], vec![worst])]
}
