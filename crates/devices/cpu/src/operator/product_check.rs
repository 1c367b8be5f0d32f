//! `product_check`: row sums against a·(b·1), each operand read once.

use super::{Execute, Sizes, Task};
use crate::bind::Layout;
use crate::kernel::{Context, Folded, Matrix, Weights, fold, fold_scratch_values, groups, largest_distance};
use toprope_program::operator::{ProductCheck, ProductForm};

/// 2^-24 and 2^-70, the factors of the bound.
const UNIT: f32 = f32::EPSILON / 2.0;
const FLOOR: f32 = f32::from_bits((127 - 70) << 23);

/// f32 values that the check of a product of `[M, K]` and `[K, N]` needs.
fn values(m: usize, k: usize, n: usize) -> usize {
    let scratch = fold_scratch_values(k, n).max(fold_scratch_values(m, k));
    2 * k + 2 * m + scratch
}

fn take<'w>(rest: &mut &'w mut [f32], count: usize) -> &'w mut [f32] {
    let (part, behind) = std::mem::take(rest).split_at_mut(count);
    *rest = behind;
    part
}

/// The largest distance of one product's row sums.
fn distance(context: &Context<'_>, a: &Matrix<'_>, b: &Matrix<'_>, got: &[f32], mut rest: &mut [f32]) -> f32 {
    let (m, k, n) = (a.rows, b.rows, b.columns);
    let (s, norm) = (take(&mut rest, k), take(&mut rest, k));
    fold(context, b, Weights::Ones, Folded { sum: s, size: norm }, rest);
    let (sum, size) = (take(&mut rest, m), take(&mut rest, m));
    fold(context, a, Weights::Pair(s, norm), Folded { sum, size }, rest);
    largest_distance(context.level, got, Folded { sum, size }, UNIT * ((k + n) as f32).sqrt(), FLOOR)
}

impl Execute for ProductCheck {
    fn layout(&self, index: usize) -> Layout {
        if index < 2 { Layout::Any } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (a, b) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        let n = b.last().copied().unwrap_or(1);
        let values = match self.form {
            ProductForm::Matmul | ProductForm::GroupedMatmul => values(a[0], a[1], n),
            ProductForm::GroupedOuter => values(a[1], a[0], n),
        };
        (values + 1) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let a = task.inputs[0].matrix();
        let (b, got) = (task.inputs[1], task.inputs[2].f32());
        let context = task.context;
        // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
        let (_, workspace, _) = unsafe { task.workspace.align_to_mut::<f32>() };
        let largest = match self.form {
            ProductForm::Matmul => distance(&context, &a, &b.matrix(), got, workspace),
            ProductForm::GroupedMatmul => {
                let each = Matrix {
                    values: b.floats(),
                    rows: b.sizes()[1],
                    columns: b.sizes()[2],
                    row_stride: b.strides()[1],
                    column_stride: b.strides()[2],
                };
                let experts = groups(task.inputs[3].i32(), a.rows);
                let distances = experts.into_iter().enumerate().filter(|(_, (_, count))| *count > 0).map(
                    |(expert, (start, count))| {
                        let weight = each.behind(expert * b.strides()[0]);
                        distance(
                            &context,
                            &a.some_rows(start, count),
                            &weight,
                            &got[start..][..count],
                            workspace,
                        )
                    },
                );
                distances.fold(0.0, f32::max)
            }
            ProductForm::GroupedOuter => {
                let b = b.matrix();
                let experts = groups(task.inputs[3].i32(), a.rows);
                let distances = experts.into_iter().enumerate().map(|(expert, (start, count))| {
                    let left = a.some_rows(start, count).transposed();
                    let got = &got[expert * a.columns..][..a.columns];
                    distance(&context, &left, &b.some_rows(start, count), got, workspace)
                });
                distances.fold(0.0, f32::max)
            }
        };
        let [y] = task.outputs();
        y.f32()[0] = largest;
    }
}
