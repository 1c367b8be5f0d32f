//! Weighted sums along a matrix's rows, for checks: one pass over memory, whichever way the matrix lies.

use super::view::{Target, with_floats};
use super::{Context, Matrix};
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;

/// Columns of a stored row that are added up together where the matrix lies transposed: part of what fixes the bits.
const BLOCK: usize = 256;

/// Rows that one thread takes at a time.
const ROWS: usize = 32;

/// Vectors of columns that are summed at once.
const VECTORS: usize = 4;

/// For each row `r` of a matrix `x` and vectors `s`, `q`: `Σ_c x·s`, `Σ_c |x·s|` and `Σ_c x²·q`.
#[derive(Debug)]
pub struct Folded<'a> {
    /// `Σ_c x[r,c]·s[c]`.
    pub sum: &'a mut [f32],
    /// `Σ_c |x[r,c]·s[c]|`.
    pub absolute: &'a mut [f32],
    /// `Σ_c x[r,c]²·q[c]`.
    pub square: &'a mut [f32],
}

/// Values of scratch memory that [`fold`] needs for a matrix of these sizes.
pub fn fold_scratch_values(rows: usize, columns: usize) -> usize {
    columns.div_ceil(BLOCK).saturating_mul(rows).saturating_mul(3)
}

kernel! {
    fn fold_row[X: Element](x: &'a [X], s: &'a [f32], q: &'a [f32]) -> [f32; 3] {
        let count = s.len();
        let (x, s, q) = (x[..count].as_ptr(), s.as_ptr(), q[..count].as_ptr());
        let [mut sum, mut absolute, mut square] = [L::splat(0.0); 3];
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count, the length of every slice.
            unsafe {
                let x = X::load_first::<L>(x.add(start), width);
                let s = f32::load_first::<L>(s.add(start), width);
                let q = f32::load_first::<L>(q.add(start), width);
                sum = x.fused(s, sum);
                absolute = x.abs().fused(s.abs(), absolute);
                square = x.mul(x).fused(q, square);
            }
            start += WIDTH;
        }
        [sum.sum(), absolute.sum(), square.sum()]
    }
}

kernel! {
    /// As `fold_row` for the columns of `s.len()` stored rows, each of `out`'s length / 3.
    fn fold_columns[X: Element](x: &'a [X], stride: usize, s: &'a [f32], q: &'a [f32], out: &'a mut [f32]) {
        let (rows, columns) = (s.len(), out.len() / 3);
        assert!(rows == 0 || (rows - 1) * stride + columns <= x.len() && rows == q.len(), "fold: too short");
        let (x, out) = (x.as_ptr(), out.as_mut_ptr());
        let mut start = 0;
        while start < columns {
            let mut sums = [[L::splat(0.0); 3]; VECTORS];
            let whole = columns - start >= VECTORS * WIDTH;
            let vectors = if whole { VECTORS } else { 1 };
            for (row, (s, q)) in s.iter().zip(q).enumerate() {
                let (size, s, q) = (L::splat(s.abs()), L::splat(*s), L::splat(*q));
                for (vector, sums) in sums.iter_mut().enumerate().take(vectors) {
                    let at = start + vector * WIDTH;
                    let width = (columns - at).min(WIDTH);
                    // SAFETY: row < rows and at + width ≤ columns, which was checked to lie inside.
                    let x = unsafe { X::load_first::<L>(x.add(row * stride + at), width) };
                    sums[0] = x.fused(s, sums[0]);
                    sums[1] = x.abs().fused(size, sums[1]);
                    sums[2] = x.mul(x).fused(q, sums[2]);
                }
            }
            for (vector, sums) in sums.iter().enumerate().take(vectors) {
                let at = start + vector * WIDTH;
                let width = (columns - at).min(WIDTH);
                for (which, sum) in sums.iter().enumerate() {
                    // SAFETY: at + width ≤ columns, and out has three times as many.
                    unsafe { f32::store_first::<L>(*sum, out.add(which * columns + at), width) };
                }
            }
            start += vectors * WIDTH;
        }
    }
}

kernel! {
    /// `sums += part`.
    fn add_into[](part: &'a [f32], sums: &'a mut [f32]) {
        let _ = std::marker::PhantomData::<L>;
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
}

kernel! {
    /// The largest `|got - want| / (unit·(absolute + weight·√square) + floor)`; +∞ where one is not a number.
    pub fn largest_distance[](got: &'a [f32], want: Folded<'a>, weight: f32, unit: f32, floor: f32) -> f32 {
        let count = got.len();
        let [sum, absolute, square] = [&*want.sum, &*want.absolute, &*want.square].map(|part| part[..count].as_ptr());
        let mut largest = L::splat(0.0);
        let limit = L::splat(f32::INFINITY);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count, the length of every slice.
            unsafe {
                let load = |values: *const f32| f32::load_first::<L>(values.add(start), width);
                let bound = load(square).sqrt().fused(L::splat(weight), load(absolute));
                let bound = bound.fused(L::splat(unit), L::splat(floor));
                let distance = load(got.as_ptr()).sub(load(sum)).abs().div(bound);
                // Not below infinity: infinite or no number.
                largest = distance.select_less(limit, distance, limit).first(width, 0.0).max(largest);
            }
            start += WIDTH;
        }
        largest.largest()
    }
}

/// Computes a [`Folded`]; `scratch` holds at least [`fold_scratch_values`].
///
/// # Panics
/// When lengths don't fit the matrix.
pub fn fold(
    context: &Context<'_>,
    matrix: &Matrix<'_>,
    (s, q): (&[f32], &[f32]),
    out: Folded<'_>,
    scratch: &mut [f32],
) {
    let (rows, columns) = (matrix.rows, matrix.columns);
    assert!(s.len() == columns && q.len() == columns, "fold: weights");
    let outputs = [out.sum, out.absolute, out.square];
    assert!(outputs.iter().all(|output| output.len() == rows), "fold: outputs");
    matrix.check("fold");
    let level = context.level;
    if columns == 0 {
        return outputs.into_iter().for_each(|output| output.fill(0.0));
    }
    if matrix.row_stride == 1 && matrix.column_stride != 1 {
        let blocks = columns.div_ceil(BLOCK);
        let parts = Target::new(&mut scratch[..blocks * 3 * rows]);
        with_floats!(matrix.values, values: X => {
            context.pool.for_each(blocks, |block| {
                let place = block * BLOCK..columns.min((block + 1) * BLOCK);
                let start = place.start * matrix.column_stride;
                let length = (place.len() - 1) * matrix.column_stride + rows;
                let x = &values[start..start + length];
                // SAFETY: each block has a part of its own.
                let part = unsafe { parts.slice(block * 3 * rows, 3 * rows) };
                fold_columns(level, x, matrix.column_stride, &s[place.clone()], &q[place], part);
            });
        });
        for (which, output) in outputs.into_iter().enumerate() {
            output.fill(0.0);
            for block in 0..blocks {
                // SAFETY: every block is done.
                add_into(level, unsafe { parts.slice((block * 3 + which) * rows, rows) }, output);
            }
        }
        return;
    }
    let outputs = outputs.map(Target::new);
    with_floats!(matrix.values, values: X => {
        context.pool.for_each(rows.div_ceil(ROWS), |block| {
            let mut gathered: Vec<X> = Vec::new();
            for row in block * ROWS..rows.min((block + 1) * ROWS) {
                let start = row * matrix.row_stride;
                let length = (columns - 1) * matrix.column_stride + 1;
                let mut x = &values[start..start + length];
                if matrix.column_stride != 1 {
                    gathered.clear();
                    gathered.extend(x.iter().step_by(matrix.column_stride.max(1)).copied());
                    x = &gathered;
                }
                for (output, sum) in outputs.iter().zip(fold_row(level, x, s, q)) {
                    // SAFETY: each row has its own element.
                    unsafe { output.slice(row, 1)[0] = sum };
                }
            }
        });
    });
}
