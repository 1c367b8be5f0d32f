//! Rows moved by index: `gather`, `scatter_add`, `combine` and its gradient.

use super::floats::{with_floats, with_floats_mut};
use super::parallel::{Parts, parts};
use super::{Execute, Sizes, Task};
use crate::bind::Layout;
use crate::kernel::{Context, Floats, FloatsMut};
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use toprope_program::DType;
use toprope_program::operator::{Combine, CombineGradient, Gather, ScatterAdd};

/// Elements that one thread takes at a time, roughly.
const PART: usize = 1 << 13;

/// Columns whose sums one thread takes, over all rows in their order.
const COLUMNS: usize = 64;

/// An index into `0..count`, where it lies in there.
fn within(index: i32, count: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|index| *index < count)
}

kernel! {
    /// `y = factor·x`.
    fn scale_row[X: Element, Y: Element](factor: f32, x: &'a [X], y: &'a mut [Y]) {
        let columns = y.len();
        let (x, y) = (x[..columns].as_ptr(), y.as_mut_ptr());
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: start + width ≤ columns.
            unsafe {
                let value = L::splat(factor).mul(X::load_first::<L>(x.add(start), width));
                Y::store_first::<L>(value, y.add(start), width);
            }
            start += WIDTH;
        }
    }
}

kernel! {
    /// `y += factor·x`, product and sum rounded on their own.
    fn add_scaled_row[X: Element, Y: Element](factor: f32, x: &'a [X], y: &'a mut [Y]) {
        let columns = y.len();
        let (x, y) = (x[..columns].as_ptr(), y.as_mut_ptr());
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: start + width ≤ columns.
            unsafe {
                let value = L::splat(factor).mul(X::load_first::<L>(x.add(start), width));
                let sum = Y::load_first::<L>(y.add(start), width).add(value);
                Y::store_first::<L>(sum, y.add(start), width);
            }
            start += WIDTH;
        }
    }
}

kernel! {
    /// `Σ a·b`.
    fn dot_row[A: Element, B: Element](a: &'a [A], b: &'a [B]) -> f32 {
        let columns = a.len().min(b.len());
        let mut sum = L::splat(0.0);
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: start + width ≤ columns.
            unsafe {
                let a = A::load_first::<L>(a.as_ptr().add(start), width);
                sum = a.fused(B::load_first::<L>(b.as_ptr().add(start), width), sum);
            }
            start += WIDTH;
        }
        sum.sum()
    }
}

impl Execute for Gather {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 { Layout::Rows } else { Layout::Dense }
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (rows, columns, stride) = task.inputs[0].rows();
        let indices = task.inputs[1].i32();
        let context = task.context;
        let rows_each = (PART / columns).max(1);
        with_floats!(task.inputs[0].floats(), table => with_floats_mut!(task.outputs[0].floats(), y => {
            parts(context.pool, y, rows_each * columns, |block, y| {
                for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                    match within(indices[block * rows_each + row], rows) {
                        Some(row) => scale_row(context.level, 1.0, &table[row * stride..][..columns], y),
                        None => y.fill(Element::from_f32(0.0)),
                    }
                }
            });
        }));
    }
}

/// Adds rows of `x` into a zeroed table.
fn scatter(
    context: &Context<'_>,
    x: Floats<'_>,
    (columns, stride): (usize, usize),
    indices: &[i32],
    y: &mut [f32],
) {
    let rows = y.len() / columns;
    parts(context.pool, y, PART, |_, y| y.fill(0.0));
    let y = Parts::new(y);
    with_floats!(x, x => context.pool.for_each(columns.div_ceil(COLUMNS), |part| {
        let start = part * COLUMNS;
        let width = COLUMNS.min(columns - start);
        for (index, row) in indices.iter().enumerate() {
            let Some(row) = within(*row, rows) else { continue };
            // SAFETY: each part has columns of its own.
            let y = unsafe { y.part(row * columns + start, width) };
            add_scaled_row(context.level, 1.0, &x[index * stride + start..][..width], y);
        }
    }));
}

impl Execute for ScatterAdd {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 { Layout::Rows } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let y = &sizes.outputs[0];
        if y.dtype == DType::F32 { 0 } else { (y.shape.elements() + 1) * size_of::<f32>() }
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (_, columns, stride) = task.inputs[0].rows();
        let (x, indices) = (task.inputs[0].floats(), task.inputs[1].i32());
        let context = task.context;
        match task.outputs[0].floats() {
            FloatsMut::F32(y) => scatter(&context, x, (columns, stride), indices, y),
            y => {
                // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
                let (_, sums, _) = unsafe { task.workspace.align_to_mut::<f32>() };
                let sums = &mut sums[..y.len()];
                scatter(&context, x, (columns, stride), indices, sums);
                super::elementwise::convert(&context, Floats::F32(sums), y);
            }
        }
    }
}

kernel! {
    /// `out = Σ_k weights[k]·y[slots[k]]`, in the order of `k`.
    fn combine_row[Y: Element](
        y: &'a [Y],
        rows: usize,
        stride: usize,
        slots: &'a [i32],
        weights: &'a [f32],
        out: &'a mut [Y],
    ) {
        let columns = out.len();
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            let mut sum = L::splat(0.0);
            for (slot, weight) in slots.iter().zip(weights) {
                if let Some(row) = within(*slot, rows) {
                    let part = &y[row * stride + start..][..width];
                    // SAFETY: the part holds `width` elements.
                    let value = unsafe { Y::load_first::<L>(part.as_ptr(), width) };
                    sum = L::splat(*weight).fused(value, sum);
                }
            }
            // SAFETY: start + width ≤ columns.
            unsafe { Y::store_first::<L>(sum, out.as_mut_ptr().add(start), width) };
            start += WIDTH;
        }
    }
}

impl Execute for Combine {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 { Layout::Rows } else { Layout::Dense }
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (rows, columns, stride) = task.inputs[0].rows();
        let choices = task.inputs[1].sizes()[1];
        let (slots, weights) = (task.inputs[1].i32(), task.inputs[2].f32());
        let context = task.context;
        let rows_each = (PART / columns).max(1);
        macro_rules! run {
            ($y:expr, $out:expr) => {{
                let y = $y;
                parts(context.pool, $out, rows_each * columns, |block, out| {
                    for (token, out) in out.chunks_exact_mut(columns).enumerate() {
                        let place = (block * rows_each + token) * choices;
                        let (slots, weights) = (&slots[place..][..choices], &weights[place..][..choices]);
                        combine_row(context.level, y, rows, stride, slots, weights, out);
                    }
                })
            }};
        }
        match (task.inputs[0].floats(), task.outputs[0].floats()) {
            (Floats::F32(y), FloatsMut::F32(out)) => run!(y, out),
            (Floats::Bf16(y), FloatsMut::Bf16(out)) => run!(y, out),
            _ => panic!("combine keeps its operand's dtype"),
        }
    }
}

impl Execute for CombineGradient {
    fn layout(&self, index: usize) -> Layout {
        if index == 0 || index == 3 { Layout::Rows } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (rows, pairs) = (sizes.inputs[0].shape.sizes()[0], sizes.inputs[1].shape.elements());
        (rows + pairs + 1) * size_of::<i32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (rows, columns, stride) = task.inputs[0].rows();
        let (_, _, dout_stride) = task.inputs[3].rows();
        let choices = task.inputs[1].sizes()[1];
        let (slots, weights) = (task.inputs[1].i32(), task.inputs[2].f32());
        let (y, dout) = (task.inputs[0].floats(), task.inputs[3].floats());
        let context = task.context;
        // Each row's pairs as a list in ascending order, so that threads can take rows.
        // SAFETY: every bit pattern is an i32, and the middle part is aligned for it.
        let (_, lists, _) = unsafe { task.workspace.align_to_mut::<i32>() };
        let (first, rest) = lists.split_at_mut(rows);
        let next = &mut rest[..slots.len()];
        first.fill(-1);
        for (pair, slot) in slots.iter().enumerate().rev() {
            if let Some(row) = within(*slot, rows) {
                next[pair] = std::mem::replace(&mut first[row], pair as i32);
            }
        }
        let (first, next) = (&*first, &*next);
        let rows_each = (PART / columns).max(1);
        let Some([dy, dweights]) = task.outputs.first_chunk_mut() else {
            panic!("combine_gradient has two outputs")
        };
        with_floats!(dout, dout => {
            let dout = |pair: usize| &dout[pair / choices * dout_stride..][..columns];
            with_floats_mut!(dy.floats(), dy => parts(context.pool, dy, rows_each * columns, |block, dy| {
                for (row, dy) in dy.chunks_exact_mut(columns).enumerate() {
                    let mut pair = first[block * rows_each + row];
                    match usize::try_from(pair) {
                        Ok(pair) => scale_row(context.level, weights[pair], dout(pair), dy),
                        Err(_) => dy.fill(Element::from_f32(0.0)),
                    }
                    while let Ok(found) = usize::try_from(pair) {
                        pair = next[found];
                        if let Ok(other) = usize::try_from(pair) {
                            add_scaled_row(context.level, weights[other], dout(other), dy);
                        }
                    }
                }
            }));
            with_floats!(y, y => parts(context.pool, dweights.f32(), rows_each, |block, part| {
                for (index, dweight) in part.iter_mut().enumerate() {
                    let pair = block * rows_each + index;
                    *dweight = match within(slots[pair], rows) {
                        Some(row) => dot_row(context.level, &y[row * stride..][..columns], dout(pair)),
                        None => 0.0,
                    };
                }
            }));
        });
    }
}
