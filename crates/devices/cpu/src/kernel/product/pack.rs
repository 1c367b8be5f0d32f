//! Packing: blocks of strided operands become f32 panels that the register block reads in order.

use crate::lanes::{Element, Lanes, WIDTH};

/// A strided block in memory: `at(row, column) = pointer + row·row_stride + column·column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Block<T> {
    pub(super) pointer: *const T,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<T> Block<T> {
    /// # Safety
    /// The element lies inside the memory that the block was made from.
    #[inline(always)]
    pub(super) unsafe fn at(&self, row: usize, column: usize) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.pointer.add(row * self.row_stride + column * self.column_stride) }
    }

    /// The block that begins at (row, column).
    ///
    /// # Safety
    /// As for `at`, or one past the end.
    #[inline(always)]
    pub(super) unsafe fn from(&self, row: usize, column: usize) -> Block<T> {
        // `wrapping_add` because an empty block may begin behind the memory's end.
        let pointer = self.pointer.wrapping_add(row * self.row_stride + column * self.column_stride);
        Block { pointer, ..*self }
    }

    /// The same elements as another type of the same size.
    pub(super) fn cast<U>(self) -> Block<U> {
        Block { pointer: self.pointer.cast(), row_stride: self.row_stride, column_stride: self.column_stride }
    }

    #[inline(always)]
    pub(super) fn transposed(self) -> Block<T> {
        Block { pointer: self.pointer, row_stride: self.column_stride, column_stride: self.row_stride }
    }
}

/// Copies `rows × columns` to row-major f32 rows `stride` apart, widths rounded up to 16 with zeros.
///
/// # Safety
/// The block is readable; `out` is writable for `rows · stride` values, `stride` at least `columns` rounded up to 16.
#[inline(always)]
pub(super) unsafe fn pack_rows<L: Lanes, T: Element>(
    block: Block<T>,
    rows: usize,
    columns: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: all reads are inside rows × columns and all writes inside rows × stride.
    unsafe {
        if block.column_stride == 1 {
            for row in 0..rows {
                let source = block.at(row, 0);
                let target = out.add(row * stride);
                let mut column = 0;
                while column + WIDTH <= columns {
                    T::load::<L>(source.add(column)).store(target.add(column));
                    column += WIDTH;
                }
                if column < columns {
                    T::load_first::<L>(source.add(column), columns - column).store(target.add(column));
                }
            }
        } else if block.row_stride == 1 {
            let mut row = 0;
            while row < rows {
                let height = (rows - row).min(WIDTH);
                let mut column = 0;
                while column < columns {
                    let width = (columns - column).min(WIDTH);
                    transpose_into::<L, T>(
                        block.from(row, column).transposed(),
                        width,
                        height,
                        out.add(row * stride + column),
                        stride,
                    );
                    column += WIDTH;
                }
                row += WIDTH;
            }
        } else {
            for row in 0..rows {
                for column in 0..columns {
                    *out.add(row * stride + column) = (*block.at(row, column)).to_f32();
                }
                for column in columns..columns.next_multiple_of(WIDTH) {
                    *out.add(row * stride + column) = 0.0;
                }
            }
        }
    }
}

/// Writes the transpose of up to 16 × 16 elements whose rows are contiguous: `width` rows of `height` elements become
/// `height` rows of 16 lanes, zeros behind `width`.
///
/// # Safety
/// The block is readable for `width × height`; `out` is writable for `height` rows of 16, `stride` apart.
#[inline(always)]
unsafe fn transpose_into<L: Lanes, T: Element>(
    block: Block<T>,
    width: usize,
    height: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut lanes = [L::splat(0.0); WIDTH];
        if width == WIDTH && height == WIDTH {
            for (index, lane) in lanes.iter_mut().enumerate() {
                *lane = T::load::<L>(block.at(index, 0));
            }
        } else {
            for (index, lane) in lanes.iter_mut().enumerate().take(width) {
                *lane = T::load_first::<L>(block.at(index, 0), height);
            }
        }
        for (index, lane) in L::transpose(lanes).into_iter().enumerate().take(height) {
            lane.store(out.add(index * stride));
        }
    }
}

/// Packs `depth × columns` into panels of `panel` columns (a multiple of 16): panel `p`, depth `k`, column `c` goes to
/// `p·depth·panel + k·panel + c`; columns beyond the last are zero.
///
/// # Safety
/// The block is readable; `out` is writable for `depth · columns.next_multiple_of(panel)` values.
#[inline(always)]
pub(super) unsafe fn pack_panels<L: Lanes, T: Element>(
    block: Block<T>,
    depth: usize,
    columns: usize,
    panel: usize,
    out: *mut f32,
) {
    let mut first = 0;
    while first < columns {
        // SAFETY: the panel lies inside `out`.
        let target = unsafe { out.add(first * depth) };
        for part in (0..panel).step_by(WIDTH) {
            let column = first + part;
            let width = columns.saturating_sub(column).min(WIDTH);
            // SAFETY: reads stay inside depth × columns; writes inside the panel.
            unsafe { pack_sixteen::<L, T>(block.from(0, column), depth, width, target.add(part), panel) };
        }
        first += panel;
    }
}

/// One 16-column strip of a panel; `width` of its columns exist.
///
/// # Safety
/// The block is readable for `depth × width`; `out` is writable for `depth` rows of 16, `stride` apart.
#[inline(always)]
unsafe fn pack_sixteen<L: Lanes, T: Element>(
    block: Block<T>,
    depth: usize,
    width: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if width == 0 {
            for k in 0..depth {
                L::splat(0.0).store(out.add(k * stride));
            }
        } else if block.column_stride == 1 && width == WIDTH {
            for k in 0..depth {
                T::load::<L>(block.at(k, 0)).store(out.add(k * stride));
            }
        } else if block.column_stride == 1 {
            for k in 0..depth {
                T::load_first::<L>(block.at(k, 0), width).store(out.add(k * stride));
            }
        } else if block.row_stride == 1 {
            let mut k = 0;
            while k < depth {
                let height = (depth - k).min(WIDTH);
                transpose_into::<L, T>(
                    block.from(k, 0).transposed(),
                    width,
                    height,
                    out.add(k * stride),
                    stride,
                );
                k += WIDTH;
            }
        } else {
            for k in 0..depth {
                let mut lanes = [0.0f32; WIDTH];
                for (column, lane) in lanes.iter_mut().enumerate().take(width) {
                    *lane = (*block.at(k, column)).to_f32();
                }
                L::from_array(&lanes).store(out.add(k * stride));
            }
        }
    }
}
