//! Sums over many elements: `dot`, `column_sum`, `global_norm`. Blocks of a fixed size are added up in their order.

use super::floats::{with_floats, with_floats_mut};
use super::norm::sum_blocks;
use super::parallel::parts;
use super::{Execute, Sizes, Task};
use crate::bind::Layout;
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use toprope_program::operator::{ColumnSum, Dot, GlobalNorm};

/// Elements of a block.
const BLOCK: usize = 1 << 12;

/// Rows of a block of columns' sums.
const ROWS: usize = 64;

kernel! {
    /// `Σ a·b` over one block.
    fn dot_block[](a: &'a [f32], b: &'a [f32]) -> f32 {
        let count = a.len().min(b.len());
        let mut sum = L::splat(0.0);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let a = f32::load_first::<L>(a.as_ptr().add(start), width);
                sum = a.fused(f32::load_first::<L>(b.as_ptr().add(start), width), sum);
            }
            start += WIDTH;
        }
        sum.sum()
    }
}

impl Execute for Dot {
    fn run(&self, task: &mut Task<'_, '_>) {
        let (a, b) = (task.inputs[0].f32(), task.inputs[1].f32());
        let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
        let sum: f64 = blocks.map(|(a, b)| f64::from(dot_block(task.context.level, a, b))).sum();
        task.outputs[0].f32()[0] = sum as f32;
    }
}

impl Execute for GlobalNorm {
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let largest = sizes.inputs.iter().map(|gradient| gradient.shape.elements()).max().unwrap_or(0);
        (largest.div_ceil(BLOCK) + 1) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
        let (_, partial, _) = unsafe { task.workspace.align_to_mut::<f32>() };
        let (pool, level) = (task.context.pool, task.context.level);
        let mut squares = 0.0f64;
        for gradient in task.inputs {
            let values = gradient.f32();
            let partial = &mut partial[..values.len().div_ceil(BLOCK)];
            parts(pool, partial, 8, |index, part| {
                for (block, sum) in part.iter_mut().enumerate() {
                    let start = (index * 8 + block) * BLOCK;
                    let block = &values[start..values.len().min(start + BLOCK)];
                    *sum = dot_block(level, block, block);
                }
            });
            squares += partial.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        let norm = squares.sqrt() as f32;
        let clip = self.clip as f32;
        let factor = match norm.is_finite() {
            false => 0.0,
            true if clip > 0.0 => (clip / (norm + 1e-6)).min(1.0),
            true => 1.0,
        };
        let [norm_output, factor_output] = task.outputs();
        (norm_output.f32()[0], factor_output.f32()[0]) = (norm, factor);
    }
}

kernel! {
    fn add_row[X: Element](x: &'a [X], sums: &'a mut [f32]) {
        let columns = sums.len();
        let (x, sums) = (x[..columns].as_ptr(), sums.as_mut_ptr());
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: start + width ≤ columns.
            unsafe {
                let sum = f32::load_first::<L>(sums.add(start), width);
                let sum = sum.add(X::load_first::<L>(x.add(start), width));
                f32::store_first::<L>(sum, sums.add(start), width);
            }
            start += WIDTH;
        }
    }
}

impl Execute for ColumnSum {
    fn layout(&self, _: usize) -> Layout {
        Layout::Rows
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let x = sizes.inputs[0].shape.sizes();
        (x[0].div_ceil(ROWS) * x[1] + 1) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (rows, columns, stride) = task.inputs[0].rows();
        let context = task.context;
        // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
        let (_, partial, _) = unsafe { task.workspace.align_to_mut::<f32>() };
        let partial = &mut partial[..rows.div_ceil(ROWS) * columns];
        with_floats!(task.inputs[0].floats(), x => {
            parts(context.pool, partial, columns, |index, sums| {
                sums.fill(0.0);
                for row in index * ROWS..rows.min((index + 1) * ROWS) {
                    add_row(context.level, &x[row * stride..][..columns], sums);
                }
            });
        });
        with_floats_mut!(task.outputs[0].floats(), y => sum_blocks(partial, y));
    }
}
