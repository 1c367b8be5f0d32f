//! One thread's share of a product: a block of the output over the whole depth.
//!
//! Each output element is one chain of fused multiply-adds in ascending depth. Between depth chunks the chain's f32
//! value rests in memory, exactly, so the bits depend on no block size.

use super::pack::{Block, pack_panels, pack_rows};
use super::pairs::{self, Unit};
use crate::lanes::{Element, INDEX_LANES, Lanes, WIDTH};
use crate::level::{Level, kernel};

/// Depth of a chunk: a 16-column panel of this depth takes half of a 32 KiB first-level cache.
pub(super) const DEPTH: usize = 256;
/// Rows packed at once: with `DEPTH` columns, less than half of a 512 KiB second-level cache.
pub(super) const ROWS: usize = 192;
/// Columns whose row sums are taken together, in every split.
pub(super) const SUM_COLUMNS: usize = 64;
/// Row stride of packed rows: beyond `DEPTH` so that rows don't fall on the same cache sets.
const PACKED_STRIDE: usize = DEPTH + WIDTH;

/// The widest panel of any level.
pub(super) const PANEL_MAX: usize = 2 * WIDTH;

/// f32 values of scratch memory that [`multiply`] uses for `rows × columns` and the given depth.
pub(super) fn scratch_values(rows: usize, columns: usize, depth: usize, carries: bool) -> usize {
    let padded = columns.next_multiple_of(PANEL_MAX);
    let carry = if carries && depth > DEPTH { rows * padded } else { 0 };
    let plain = padded * depth.min(DEPTH) + rows.min(ROWS) * (PACKED_STRIDE + WIDTH) + carry;
    plain.max(pairs::scratch_values(rows, columns, depth))
}

/// What becomes of the accumulator.
#[derive(Clone, Copy)]
pub(super) struct Output<O> {
    /// Row-major with `row_stride`.
    pub(super) pointer: *mut O,
    pub(super) row_stride: usize,
    /// Added per column before the store, or null.
    pub(super) bias: *const f32,
    /// Whether the output's old value is added.
    pub(super) accumulate: bool,
    /// For each `SUM_COLUMNS` columns the sums of all rows, `sums_stride` apart; or null.
    pub(super) sums: *mut f32,
    pub(super) sums_stride: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Finish<O> {
    pub(super) output: Output<O>,
    pub(super) carry: *mut f32,
    pub(super) carry_stride: usize,
    /// Sixteen running sums for each row of the packed rows.
    pub(super) lane_sums: *mut f32,
    pub(super) first: bool,
    pub(super) last: bool,
}

kernel! {
    fn pack_panels_at[T: Element](block: Block<T>, depth: usize, columns: usize, out: *mut f32) {
        // SAFETY: `multiply_block` gives sizes inside the operand and its scratch memory.
        unsafe { pack_panels::<L, T>(block, depth, columns, L::VECTORS * WIDTH, out) };
    }
}

kernel! {
    fn pack_rows_at[T: Element](block: Block<T>, rows: usize, columns: usize, out: *mut f32) {
        // SAFETY: `multiply_block` gives sizes inside the operand and its scratch memory.
        unsafe { pack_rows::<L, T>(block, rows, columns, out, PACKED_STRIDE) };
    }
}

kernel! {
    /// All packed columns against all packed rows.
    fn sweep[O: Element](
        packed_a: *const f32,
        packed_b: *const f32,
        depth: usize,
        rows: usize,
        columns: usize,
        finish: Finish<O>,
    ) {
        let mut column = 0;
        while column < columns {
            // SAFETY: the panel that begins at this column; sizes are those of the packed data.
            unsafe {
                let panel_b = packed_b.add(column * depth);
                panel_rows::<L, O>(packed_a, panel_b, depth, rows, column, columns, &finish);
            }
            column += L::VECTORS * WIDTH;
        }
    }
}

/// `out[rows, columns] = a[rows, depth] · b[depth, columns]`, finished as `output` says, on `unit` where there is one.
///
/// # Safety
/// As for [`multiply_block`]; where there is a unit, it is available and both operands are bf16.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn multiply<A: Element, B: Element, O: Element>(
    unit: Option<Unit>,
    level: Level,
    a: Block<A>,
    b: Block<B>,
    output: Output<O>,
    rows: usize,
    columns: usize,
    depth: usize,
    scratch: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match unit {
            Some(unit) => {
                let (a, b) = (a.cast(), b.cast());
                pairs::multiply_block::<O>(unit, level, a, b, output, rows, columns, depth, scratch);
            }
            None => multiply_block::<A, B, O>(level, a, b, output, rows, columns, depth, scratch),
        }
    }
}

/// `out[rows, columns] = a[rows, depth] · b[depth, columns]`, finished as `output` says.
///
/// # Safety
/// Operands are readable and the output writable for these sizes; `scratch` holds [`scratch_values`].
#[allow(clippy::too_many_arguments)]
unsafe fn multiply_block<A: Element, B: Element, O: Element>(
    level: Level,
    a: Block<A>,
    b: Block<B>,
    output: Output<O>,
    rows: usize,
    columns: usize,
    depth: usize,
    scratch: *mut f32,
) {
    let padded = columns.next_multiple_of(PANEL_MAX);
    let chunks = depth.div_ceil(DEPTH).max(1);
    let chunk = depth.div_ceil(chunks);
    // SAFETY: parts of the scratch memory as `scratch_values` counts them.
    let (packed_b, packed_a, lane_sums, carry) = unsafe {
        let packed_a = scratch.add(padded * chunk);
        let lane_sums = packed_a.add(rows.min(ROWS) * PACKED_STRIDE);
        (scratch, packed_a, lane_sums, lane_sums.add(rows.min(ROWS) * WIDTH))
    };
    for index in 0..chunks {
        // The last chunks may be empty when the depth is a little over a multiple; then they carry on unchanged.
        let start = (index * chunk).min(depth);
        let length = chunk.min(depth - start);
        // SAFETY: inside the operand.
        pack_panels_at::<B>(level, unsafe { b.from(start, 0) }, length, columns, packed_b);
        let mut row = 0;
        while row < rows {
            let height = (rows - row).min(ROWS);
            // SAFETY: inside the operand.
            pack_rows_at::<A>(level, unsafe { a.from(row, start) }, height, length, packed_a);
            // SAFETY: row < rows.
            let output = unsafe { output.row(row) };
            let finish = Finish {
                output,
                carry: if chunks > 1 { carry.wrapping_add(row * padded) } else { carry },
                carry_stride: padded,
                lane_sums,
                first: index == 0,
                last: index + 1 == chunks,
            };
            sweep::<O>(level, packed_a, packed_b, length, height, columns, finish);
            row += height;
        }
    }
}

impl<O: Element> Output<O> {
    /// # Safety
    /// The row lies inside the output.
    #[inline(always)]
    pub(super) unsafe fn row(self, row: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = if self.sums.is_null() { self.sums } else { self.sums.add(row) };
            Output { pointer: self.pointer.add(row * self.row_stride), sums, ..self }
        }
    }
}

/// One panel of columns against all packed rows.
#[inline(always)]
unsafe fn panel_rows<L: Lanes, O: Element>(
    packed_a: *const f32,
    panel_b: *const f32,
    depth: usize,
    height: usize,
    column: usize,
    columns: usize,
    finish: &Finish<O>,
) {
    let mut row = 0;
    macro_rules! blocks {
        ($rows:literal) => {
            if L::ROWS >= $rows {
                while height - row >= $rows {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let a = packed_a.add(row * PACKED_STRIDE);
                        if L::VECTORS == 2 {
                            register_block::<L, O, $rows, 2>(a, panel_b, depth, row, column, columns, finish);
                        } else {
                            register_block::<L, O, $rows, 1>(a, panel_b, depth, row, column, columns, finish);
                        }
                    }
                    row += $rows;
                }
            }
        };
    }
    blocks!(12);
    blocks!(6);
    blocks!(4);
    blocks!(2);
    blocks!(1);
}

/// `R × 16V` outputs in registers.
#[inline(always)]
unsafe fn register_block<L: Lanes, O: Element, const R: usize, const V: usize>(
    a: *const f32,
    b: *const f32,
    depth: usize,
    row: usize,
    column: usize,
    columns: usize,
    finish: &Finish<O>,
) {
    // SAFETY: the caller's promise; carries are padded to whole panels.
    unsafe {
        let carry = finish.carry.wrapping_add(row * finish.carry_stride + column);
        let before = (!finish.first).then_some((carry.cast_const(), finish.carry_stride));
        if !finish.last {
            return chains::<L, R, V>(a, b, depth, before, carry, finish.carry_stride);
        }
        // Through memory, which the first-level cache holds: with an index that is not known when compiling, no
        // accumulator could stay in a register.
        let mut sums = [[0.0f32; PANEL_MAX]; R];
        let first = sums.as_mut_ptr().cast::<f32>();
        chains::<L, R, V>(a, b, depth, before, first, PANEL_MAX);
        for (v, start) in (column..columns).step_by(WIDTH).take(V).enumerate() {
            let width = (columns - start).min(WIDTH);
            for (r, row_sums) in sums.iter().enumerate() {
                let value = L::load(row_sums.as_ptr().add(v * WIDTH));
                store_vector::<L, O>(value, row + r, start, width, &finish.output);
            }
        }
        if !finish.output.sums.is_null() {
            for (r, row_sums) in sums.iter().enumerate() {
                take_sums::<L, V>(row_sums.as_ptr(), row + r, column, columns, finish);
            }
        }
    }
}

/// The chains of `R × 16V` outputs over a chunk of depth, from what was `before` (rows by a stride) or zero, to `after`.
#[inline(always)]
unsafe fn chains<L: Lanes, const R: usize, const V: usize>(
    a: *const f32,
    b: *const f32,
    depth: usize,
    before: Option<(*const f32, usize)>,
    after: *mut f32,
    after_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::splat(0.0); V]; R];
        if let Some((before, stride)) = before {
            for (r, row_sums) in sums.iter_mut().enumerate() {
                for (v, sum) in row_sums.iter_mut().enumerate() {
                    *sum = L::load(before.add(r * stride + v * WIDTH));
                }
            }
        }
        let mut b = b;
        for k in 0..depth {
            let columns: [L; V] = std::array::from_fn(|v| L::load(b.add(v * WIDTH)));
            for (r, row_sums) in sums.iter_mut().enumerate() {
                let factor = L::splat(*a.add(r * PACKED_STRIDE + k));
                for (sum, column) in row_sums.iter_mut().zip(columns) {
                    *sum = factor.fused(column, *sum);
                }
            }
            b = b.add(V * WIDTH);
        }
        for (r, row_sums) in sums.iter().enumerate() {
            for (v, sum) in row_sums.iter().enumerate() {
                sum.store(after.add(r * after_stride + v * WIDTH));
            }
        }
    }
}

kernel! {
    /// Finishes two vectors of columns of `rows` rows whose accumulators lie in `finish.carry`.
    fn finish_block_at[O: Element](row: usize, rows: usize, column: usize, columns: usize, finish: Finish<O>) {
        for r in 0..rows {
            // SAFETY: the carry holds 32 columns of each row; row and columns lie inside the output.
            unsafe {
                let carry = finish.carry.add(r * finish.carry_stride);
                if !finish.output.sums.is_null() {
                    take_sums::<L, 2>(carry, row + r, column, columns, &finish);
                }
                for first in [column, column + WIDTH].into_iter().take_while(|first| *first < columns) {
                    let width = (columns - first).min(WIDTH);
                    store_vector::<L, O>(L::load(carry.add(first - column)), row + r, first, width, &finish.output);
                }
            }
        }
    }
}

/// Finishes 32 columns from `column` of `rows` rows from `row`, whose accumulators begin at `finish.carry`.
///
/// # Safety
/// The carry is readable for `rows` rows of 32 values; the rows and columns lie inside the output.
pub(super) unsafe fn finish_block<O: Element>(
    level: Level,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    finish: &Finish<O>,
) {
    finish_block_at::<O>(level, row, rows, column, columns, *finish);
}

/// Adds `V` vectors of a row's accumulators to its running sums, and gives the sum out where `SUM_COLUMNS` columns end.
///
/// # Safety
/// `values` is readable for `V` vectors; the row and `column`, a multiple of `V` vectors, lie inside the output.
#[inline(always)]
unsafe fn take_sums<L: Lanes, const V: usize>(
    values: *const f32,
    row: usize,
    column: usize,
    columns: usize,
    finish: &Finish<impl Element>,
) {
    let (output, begins) = (&finish.output, column.is_multiple_of(SUM_COLUMNS));
    // SAFETY: the caller's promise; there are running sums of every packed row.
    unsafe {
        let lane_sums = finish.lane_sums.add(row * WIDTH);
        let mut sum = if begins { L::load(values) } else { L::load(lane_sums) };
        if begins && columns - column < WIDTH {
            sum = keep_first(sum, columns - column);
        }
        for v in usize::from(begins)..V {
            let first = column + v * WIDTH;
            if first >= columns {
                break;
            }
            let value = L::load(values.add(v * WIDTH));
            let kept = if columns - first < WIDTH { keep_first(value, columns - first) } else { value };
            sum = sum.add(kept);
        }
        let end = column + V * WIDTH;
        if end >= columns || end.is_multiple_of(SUM_COLUMNS) {
            *output.sums.add(column / SUM_COLUMNS * output.sums_stride + row) = sum.sum();
        } else {
            sum.store(lane_sums);
        }
    }
}

/// Adds bias and old value, and stores one vector of the output.
#[inline(always)]
unsafe fn store_vector<L: Lanes, O: Element>(
    mut value: L,
    row: usize,
    column: usize,
    width: usize,
    output: &Output<O>,
) {
    // SAFETY: row and column lie inside the output, and `width` columns are there.
    unsafe {
        if !output.bias.is_null() {
            value = value.add(f32::load_first::<L>(output.bias.add(column), width));
        }
        let target = output.pointer.add(row * output.row_stride + column);
        if output.accumulate {
            value = O::load_first::<L>(target, width).add(value);
        }
        O::store_first::<L>(value, target, width);
    }
}

/// The first `width` lanes; zeros behind, also where a lane is NaN.
#[inline(always)]
fn keep_first<L: Lanes>(value: L, width: usize) -> L {
    let numbers = INDEX_LANES.with_lanes::<L>();
    numbers.select_less(L::splat(width as f32), value, L::splat(0.0))
}
