//! Strided operands copied to dense memory, for kernels that can't read them as they lie.

use super::parallel::parts;
use crate::bind::{Bits, Output, Shape, View};
use crate::pool::Pool;
use toprope_program::Width;

/// Elements that one thread copies at a time.
const PART: usize = 1 << 14;

/// Side of the square in which transposed elements are copied, so that both sides stay in cache lines.
const TILE: usize = 16;

/// Copies a view's elements in row-major order.
pub(crate) fn gather(pool: &Pool, source: &View<'_>, mut target: Output<'_>) {
    if source.dtype.size_bytes(Width::Native) == 2 {
        gather_bits::<u16>(pool, source.bits(), &source.shape, target.bits());
    } else {
        gather_bits::<u32>(pool, source.bits(), &source.shape, target.bits());
    }
}

fn gather_bits<T: Bits>(pool: &Pool, source: &[T], shape: &Shape, target: &mut [T]) {
    let short = shape.collapsed();
    let (sizes, strides) = (short.sizes(), short.strides());
    // The two innermost dimensions are copied as a plane, the others counted.
    let columns = sizes[sizes.len() - 1];
    let column_stride = strides[sizes.len() - 1];
    let (outer, outer_strides) = (&sizes[..sizes.len() - 1], &strides[..sizes.len() - 1]);
    let transposed = outer_strides.last().is_some_and(|stride| *stride < column_stride);
    let rows_each = if transposed { TILE } else { (PART / columns).max(1) };
    parts(pool, target, rows_each * columns, |index, part| {
        let first = index * rows_each;
        if !transposed {
            for (row, part) in part.chunks_mut(columns).enumerate() {
                copy_row(&source[start(outer, outer_strides, first + row)..], column_stride, part);
            }
            return;
        }
        let rows = part.len() / columns;
        let mut starts = [0usize; TILE];
        for (row, start_of) in starts.iter_mut().enumerate().take(rows) {
            *start_of = start(outer, outer_strides, first + row);
        }
        for from in (0..columns).step_by(TILE) {
            let to = (from + TILE).min(columns);
            for (row, part) in part.chunks_mut(columns).enumerate() {
                for (column, value) in part.iter_mut().enumerate().take(to).skip(from) {
                    *value = source[starts[row] + column * column_stride];
                }
            }
        }
    });
}

/// Where row `index` of the outer dimensions begins.
fn start(sizes: &[usize], strides: &[usize], mut index: usize) -> usize {
    let mut offset = 0;
    for (size, stride) in sizes.iter().zip(strides).rev() {
        offset += index % size * stride;
        index /= size;
    }
    offset
}

fn copy_row<T: Bits>(source: &[T], stride: usize, target: &mut [T]) {
    match stride {
        1 => target.copy_from_slice(&source[..target.len()]),
        0 => target.fill(source[0]),
        _ => {
            for (value, from) in target.iter_mut().zip(source.iter().step_by(stride)) {
                *value = *from;
            }
        }
    }
}
