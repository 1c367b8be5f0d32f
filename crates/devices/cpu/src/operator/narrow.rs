//! Rows of f32 rounded to bf16 where they lie, for products that have bf16 on both sides.

use crate::kernel::{Floats, Matrix};
use crate::lanes::{Element, WIDTH};
use crate::level::{Level, kernel};
use half::bf16;

kernel! {
    /// Rounds a row to bf16 into the first half of its own memory.
    fn narrow_in_place[](row: &'a mut [f32]) {
        let (count, pointer) = (row.len(), row.as_mut_ptr());
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count; what is written ends before the first value that was not yet read.
            unsafe {
                let value = f32::load_first::<L>(pointer.add(start), width);
                bf16::store_first::<L>(value, pointer.cast::<bf16>().add(start), width);
            }
            start += WIDTH;
        }
    }
}

/// Rounds one row to bf16 in place; [`narrow_matrix`] reads it.
pub(super) fn narrow_row(level: Level, row: &mut [f32]) {
    narrow_in_place(level, row);
}

/// Dense rows of which each went through [`narrow_row`].
pub(super) fn narrow_matrix(values: &[f32], rows: usize, columns: usize) -> Matrix<'_> {
    // SAFETY: every bit pattern is a bf16, whose alignment is less than that of f32.
    let (_, halves, _) = unsafe { values[..rows * columns].align_to::<bf16>() };
    Matrix { values: Floats::Bf16(halves), rows, columns, row_stride: 2 * columns, column_stride: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_values_rounded_once() {
        for columns in [1, 7, 16, 40] {
            let values: Vec<f32> = (0..3 * columns).map(|i| 1.0 + i as f32 * 0.013).collect();
            for level in Level::available() {
                let mut rows = values.clone();
                rows.chunks_exact_mut(columns).for_each(|row| narrow_row(level, row));
                let matrix = narrow_matrix(&rows, 3, columns);
                let Floats::Bf16(halves) = matrix.values else { panic!("bf16") };
                for (index, value) in values.iter().enumerate() {
                    let (row, column) = (index / columns, index % columns);
                    let got = halves[row * matrix.row_stride + column];
                    assert_eq!(got, bf16::from_f32(*value), "{level} {columns} {index}");
                }
            }
        }
    }
}
