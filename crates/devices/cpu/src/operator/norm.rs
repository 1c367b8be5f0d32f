//! `rms_norm` and its gradient.

use super::floats::{with_floats, with_floats_mut};
use super::parallel::parts2;
use super::{Execute, Sizes, Task};
use crate::bind::Layout;
use crate::kernel::{Floats, FloatsMut};
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use toprope_program::operator::{RmsNorm, RmsNormGradient};

/// Rows whose contributions to the weight's gradient are added up together: part of what fixes its bits.
const ROWS: usize = 64;

/// Calls `step(start, width)` for each vector of a row.
macro_rules! vectors {
    ($columns:expr, |$start:ident, $width:ident| $body:block) => {
        let mut $start = 0;
        while $start < $columns {
            let $width = ($columns - $start).min(WIDTH);
            $body
            $start += WIDTH;
        }
    };
}

kernel! {
    fn norm_row[X: Element, W: Element](x: &'a [X], weight: &'a [W], epsilon: f32, y: &'a mut [X]) -> f32 {
        let columns = y.len();
        let (x, weight) = (x[..columns].as_ptr(), weight[..columns].as_ptr());
        let mut sum = L::splat(0.0);
        // SAFETY: start + width ≤ columns, the length of every slice.
        unsafe {
            vectors!(columns, |start, width| {
                let value = X::load_first::<L>(x.add(start), width);
                sum = value.fused(value, sum);
            });
            let scale = 1.0 / (sum.sum() / columns as f32 + epsilon).sqrt();
            let lanes = L::splat(scale);
            vectors!(columns, |start, width| {
                let value = X::load_first::<L>(x.add(start), width).mul(lanes);
                let value = value.mul(W::load_first::<L>(weight.add(start), width));
                X::store_first::<L>(value, y.as_mut_ptr().add(start), width);
            });
            scale
        }
    }
}

impl Execute for RmsNorm {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 { Layout::Rows } else { Layout::Dense }
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (_, columns, stride) = task.inputs[0].rows();
        let (x, weight) = (task.inputs[0].floats(), task.inputs[1].floats());
        let (context, epsilon) = (task.context, self.epsilon as f32);
        let [y, rstd] = task.outputs();
        macro_rules! run {
            ($x:expr, $y:expr) => {{
                let x = $x;
                with_floats!(weight, weight => {
                    parts2(context.pool, ($y, ROWS * columns), (rstd.f32(), ROWS), |index, y, rstd| {
                        for (row, (y, rstd)) in y.chunks_exact_mut(columns).zip(rstd).enumerate() {
                            let x = &x[(index * ROWS + row) * stride..][..columns];
                            *rstd = norm_row(context.level, x, weight, epsilon, y);
                        }
                    });
                })
            }};
        }
        match (x, y.floats()) {
            (Floats::F32(x), FloatsMut::F32(y)) => run!(x, y),
            (Floats::Bf16(x), FloatsMut::Bf16(y)) => run!(x, y),
            _ => panic!("rms_norm keeps its operand's dtype"),
        }
    }
}

kernel! {
    fn gradient_row[X: Element, W: Element, D: Element](
        x: &'a [X],
        weight: &'a [W],
        rstd: f32,
        dy: &'a [D],
        dx: &'a mut [X],
        dweight: &'a mut [f32],
    ) {
        let columns = dx.len();
        let (x, weight, dy) = (x[..columns].as_ptr(), weight[..columns].as_ptr(), dy[..columns].as_ptr());
        let (dx, dweight) = (dx.as_mut_ptr(), dweight[..columns].as_mut_ptr());
        let mut sum = L::splat(0.0);
        // SAFETY: start + width ≤ columns, the length of every slice.
        unsafe {
            vectors!(columns, |start, width| {
                let scaled = D::load_first::<L>(dy.add(start), width).mul(W::load_first::<L>(weight.add(start), width));
                sum = scaled.fused(X::load_first::<L>(x.add(start), width), sum);
            });
            let scale = L::splat(rstd);
            let along = L::splat(rstd * rstd * (sum.sum() / columns as f32));
            vectors!(columns, |start, width| {
                let x = X::load_first::<L>(x.add(start), width);
                let dy = D::load_first::<L>(dy.add(start), width);
                let scaled = dy.mul(W::load_first::<L>(weight.add(start), width));
                X::store_first::<L>(scale.mul(scaled.sub(x.mul(along))), dx.add(start), width);
                let old = f32::load_first::<L>(dweight.add(start), width);
                f32::store_first::<L>(dy.mul(x).fused(scale, old), dweight.add(start), width);
            });
        }
    }
}

impl Execute for RmsNormGradient {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 || index == 3 { Layout::Rows } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let columns = sizes.inputs[1].shape.elements();
        let rows = sizes.inputs[2].shape.elements();
        (rows.div_ceil(ROWS) * columns + 1) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (rows, columns, stride) = task.inputs[0].rows();
        let (_, _, dy_stride) = task.inputs[3].rows();
        let (x, weight) = (task.inputs[0].floats(), task.inputs[1].floats());
        let (rstd, dy) = (task.inputs[2].f32(), task.inputs[3].floats());
        let context = task.context;
        let blocks = rows.div_ceil(ROWS);
        // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
        let (_, partial, _) = unsafe { task.workspace.align_to_mut::<f32>() };
        let partial = &mut partial[..blocks * columns];
        let Some([dx, dweight]) = task.outputs.first_chunk_mut() else {
            panic!("rms_norm_gradient has two outputs")
        };
        macro_rules! run {
            ($x:expr, $dx:expr) => {{
                let x = $x;
                with_floats!(weight, weight => with_floats!(dy, dy => {
                    parts2(context.pool, ($dx, ROWS * columns), (partial, columns), |index, dx, dweight| {
                        dweight.fill(0.0);
                        for (row, dx) in dx.chunks_exact_mut(columns).enumerate() {
                            let row = index * ROWS + row;
                            let (x, dy) = (&x[row * stride..][..columns], &dy[row * dy_stride..][..columns]);
                            gradient_row(context.level, x, weight, rstd[row], dy, dx, dweight);
                        }
                    });
                }))
            }};
        }
        match (x, dx.floats()) {
            (Floats::F32(x), FloatsMut::F32(dx)) => run!(x, dx),
            (Floats::Bf16(x), FloatsMut::Bf16(dx)) => run!(x, dx),
            _ => panic!("the gradient has its operand's dtype"),
        }
        with_floats_mut!(dweight.floats(), dweight => sum_blocks(partial, dweight));
    }
}

/// Adds blocks of sums up, in their order.
pub(super) fn sum_blocks<Y: Element>(partial: &[f32], y: &mut [Y]) {
    let columns = y.len();
    for (column, y) in y.iter_mut().enumerate() {
        *y = Y::from_f32(partial.iter().skip(column).step_by(columns).sum());
    }
}
