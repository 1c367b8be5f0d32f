//! `product_check`: row sums against a·(b·1), in f64 so that only the product itself can be at fault.

use super::parallel::{parts, parts2};
use super::{Execute, Sizes, Task};
use crate::bind::Layout;
use crate::kernel::{Floats, Matrix};
use toprope_program::operator::ProductCheck;

/// Rows that one thread takes at a time.
const ROWS: usize = 16;

fn at(values: &Floats<'_>, index: usize) -> f64 {
    match values {
        Floats::F32(values) => f64::from(values[index]),
        Floats::Bf16(values) => f64::from(values[index].to_f32()),
    }
}

/// `Σ f(row[c])` over a row of a matrix.
fn fold_row(matrix: &Matrix<'_>, row: usize, mut work: impl FnMut(usize, f64)) {
    let start = row * matrix.row_stride;
    for column in 0..matrix.columns {
        work(column, at(&matrix.values, start + column * matrix.column_stride));
    }
}

impl Execute for ProductCheck {
    fn layout(&self, index: usize) -> Layout {
        if index < 2 { Layout::Any } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (a, b) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        (2 * b[0] + a[0]) * size_of::<f64>() + size_of::<f64>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (a, b, row_sums) = (task.inputs[0].matrix(), task.inputs[1].matrix(), task.inputs[2].f32());
        let (rows, depth, columns) = (a.rows, a.columns, b.columns);
        let pool = task.context.pool;
        // SAFETY: every bit pattern is an f64, and the middle part is aligned for it.
        let (_, workspace, _) = unsafe { task.workspace.align_to_mut::<f64>() };
        let (sums, rest) = workspace.split_at_mut(depth);
        let (sizes, rest) = rest.split_at_mut(depth);
        let worst = &mut rest[..rows];
        parts2(pool, (sums, ROWS), (sizes, ROWS), |index, sums, sizes| {
            for (row, (sum, size)) in sums.iter_mut().zip(sizes).enumerate() {
                (*sum, *size) = (0.0, 0.0);
                fold_row(&b, index * ROWS + row, |_, value| {
                    *sum += value;
                    *size += value.abs();
                });
            }
        });
        let (sums, sizes) = (&*sums, &*sizes);
        let unit = 2f64.powi(-24) * (depth + columns + 4) as f64;
        parts(pool, worst, ROWS, |index, part| {
            for (row, worst) in part.iter_mut().enumerate() {
                let row = index * ROWS + row;
                let (mut sum, mut size) = (0.0, 0.0);
                fold_row(&a, row, |column, value| {
                    sum += value * sums[column];
                    size += value.abs() * sizes[column];
                });
                let distance = (f64::from(row_sums[row]) - sum).abs() / (unit * size + 2f64.powi(-120));
                *worst = if distance.is_nan() { f64::INFINITY } else { distance };
            }
        });
        let largest = worst.iter().copied().fold(0.0, f64::max);
        let [y] = task.outputs();
        y.f32()[0] = largest as f32;
    }
}
