//! `attention` and its gradient, a block of queries at a time, out of small products. No score matrix is ever whole.
//!
//! A masked pair takes part in a product as a probability of 0, which is wrong only where it meets an infinity or a
//! NaN. Then the result is not finite either, and the block is computed again pair by pair.

mod backward;
mod exact;
mod forward;
mod softmax;

pub(super) use backward::runs;

use super::narrow::narrow_matrix;
use crate::bind::View;
use crate::kernel::{Context, Floats, FloatsMut, Matrix, Product, product, product_workspace_bytes};
use std::ops::Range;

/// Queries of a block.
const QUERIES: usize = 64;

/// Keys that a block of queries meets at once.
const KEYS: usize = 512;

/// One operand with rows and heads.
#[derive(Clone, Copy)]
struct Heads<'a> {
    values: Floats<'a>,
    rows: usize,
    heads: usize,
    columns: usize,
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    fn new(view: &View<'a>) -> Heads<'a> {
        let (sizes, strides) = (view.sizes(), view.strides());
        Heads {
            values: view.floats(),
            rows: sizes[0],
            heads: sizes[1],
            columns: sizes[2],
            strides: [strides[0], strides[1], strides[2]],
        }
    }

    /// Rows of one head as a matrix.
    fn matrix(&self, rows: Range<usize>, head: usize) -> Matrix<'a> {
        let start = rows.start * self.strides[0] + head * self.strides[1];
        let values = match self.values {
            Floats::F32(values) => Floats::F32(&values[start..]),
            Floats::Bf16(values) => Floats::Bf16(&values[start..]),
        };
        Matrix {
            values,
            rows: rows.len(),
            columns: self.columns,
            row_stride: self.strides[0],
            column_stride: self.strides[2],
        }
    }

    /// Heads of one row as a matrix.
    fn heads_of(&self, row: usize, heads: Range<usize>) -> Matrix<'a> {
        let whole = self.matrix(row..row + 1, heads.start);
        Matrix { rows: heads.len(), row_stride: self.strides[1], ..whole }
    }

    fn at(&self, row: usize, head: usize, column: usize) -> f32 {
        let index = row * self.strides[0] + head * self.strides[1] + column * self.strides[2];
        match self.values {
            Floats::F32(values) => values[index],
            Floats::Bf16(values) => values[index].to_f32(),
        }
    }

    /// `Σ self[row, head]·other[other_row, other_head]`.
    fn dot(&self, row: usize, head: usize, other: &Heads<'_>, other_row: usize, other_head: usize) -> f32 {
        (0..self.columns).map(|c| self.at(row, head, c) * other.at(other_row, other_head, c)).sum()
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    pub(super) segment_start: &'a [i32],
    pub(super) query_offset: i64,
    pub(super) keys: i64,
}

impl Mask<'_> {
    pub(super) fn visible(&self, query: usize) -> Range<usize> {
        let start = i64::from(self.segment_start[query]).max(0);
        let end = (query as i64 + self.query_offset + 1).min(self.keys).max(start);
        start as usize..end as usize
    }

    /// The keys that any of these queries sees.
    fn reach(&self, queries: Range<usize>) -> Range<usize> {
        let seen = queries.map(|query| self.visible(query)).filter(|keys| !keys.is_empty());
        let hull = |a: Range<usize>, b: Range<usize>| a.start.min(b.start)..a.end.max(b.end);
        seen.reduce(hull).unwrap_or(0..0)
    }
}

/// The visible keys of a query that lie in a chunk, counted from the chunk's first.
fn inside(visible: &Range<usize>, chunk: &Range<usize>) -> Range<usize> {
    let start = visible.start.clamp(chunk.start, chunk.end) - chunk.start;
    let end = visible.end.clamp(chunk.start, chunk.end) - chunk.start;
    start..end.max(start)
}

/// Chunks of at most [`KEYS`] keys.
fn chunks(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = keys.end;
    keys.step_by(KEYS).map(move |start| start..end.min(start + KEYS))
}

/// Dense rows of probabilities or of scores' gradients; `narrow`: rounded to bf16 in place, as the contract allows
/// beside bf16 operands.
fn probabilities(values: &[f32], rows: usize, columns: usize, narrow: bool) -> Matrix<'_> {
    if narrow {
        return narrow_matrix(values, rows, columns);
    }
    Matrix::dense(Floats::F32(values), rows, columns)
}

/// `out (+)= a·b` on this thread, `out` dense.
fn multiply(
    alone: &Context<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    adds: bool,
    workspace: &mut [u8],
) {
    let (out, out_row_stride) = (FloatsMut::F32(out), b.columns);
    let task = Product { a, b, bias: None, out, out_row_stride, accumulate: adds, row_sums: None };
    product(alone, task, workspace);
}

/// Bytes of workspace for any product of at most these sizes on one thread.
fn multiply_bytes(rows: usize, columns: usize, depth: usize) -> usize {
    let whole = product_workspace_bytes(rows, columns, depth, 1);
    // Smaller sizes may be cut into fewer blocks, each at most this large.
    let padded = columns.next_multiple_of(64);
    let values = padded * depth.min(512) + rows * 320 + 2 * rows * padded + columns;
    whole.max(values * size_of::<f32>() + 1024)
}

/// Scratch memory of `values` f32 for each thread, and bytes for its products behind it.
fn thread_bytes(values: usize, products: usize) -> usize {
    (values * size_of::<f32>() + products).next_multiple_of(64)
}

/// A thread's part of the workspace as f32 values and bytes for products.
fn thread_part(part: &mut [u8], values: usize) -> (&mut [f32], &mut [u8]) {
    let (values_part, products) = part.split_at_mut(values * size_of::<f32>());
    // SAFETY: every bit pattern is an f32, and the part begins at a multiple of 64 bytes.
    let (_, values_part, _) = unsafe { values_part.align_to_mut::<f32>() };
    (values_part, products)
}

/// The workspace from its first multiple of 64 bytes on.
fn aligned(workspace: &mut [u8]) -> &mut [u8] {
    let skip = workspace.as_ptr().align_offset(64).min(workspace.len());
    &mut workspace[skip..]
}

/// The next `count` values.
fn take<'a>(values: &mut &'a mut [f32], count: usize) -> &'a mut [f32] {
    let (part, rest) = std::mem::take(values).split_at_mut(count);
    *values = rest;
    part
}
