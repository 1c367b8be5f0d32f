//! Products of few rows (decoding): the right operand is met where it lies, once, and no packed copy of it is made.
//!
//! Every output is the same chain of the same instructions over the same tiles as in [`super::multiply_block`], so a row has
//! the bits that it has in a taller product.

use super::GROUP;
use super::pack::pack_tile_at;
use crate::kernel::product::block::{Finish, Output, finish_block};
use crate::kernel::product::pack::Block;
use crate::lanes::{Avx512, Element, Lanes, WIDTH};
use crate::level::Level;
use half::bf16;
use std::arch::x86_64::*;

/// The most rows that are multiplied this way.
pub(super) const ROWS: usize = 4;
/// Columns that are finished together.
const COLUMNS: usize = 2 * WIDTH;

/// f32 values of scratch memory for [`multiply_block`].
pub(super) fn scratch_values(depth: usize) -> usize {
    ROWS * depth.next_multiple_of(GROUP) / 2 + ROWS * WIDTH + ROWS * COLUMNS
}

/// As [`super::multiply_block`], for at most [`ROWS`] rows.
///
/// # Safety
/// As there; the machine has AVX-512 F, BW, DQ, VL and BF16.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn multiply_block<O: Element>(
    level: Level,
    a: Block<bf16>,
    b: Block<bf16>,
    output: Output<O>,
    rows: usize,
    columns: usize,
    depth: usize,
    scratch: *mut f32,
) {
    let groups = depth.div_ceil(GROUP);
    let words = groups * GROUP / 2;
    // SAFETY: parts of the scratch memory as `scratch_values` counts them; the operands are the caller's promise.
    unsafe {
        let lines = scratch.cast::<u32>();
        let lane_sums = scratch.add(ROWS * words);
        let carry = lane_sums.add(ROWS * WIDTH);
        for row in 0..rows {
            let line = lines.add(row * words);
            for pair in 0..words {
                let bits = |at: usize| if at < depth { u32::from((*a.at(row, at)).to_bits()) } else { 0 };
                *line.add(pair) = bits(2 * pair) | bits(2 * pair + 1) << 16;
            }
        }
        let finish = Finish { output, carry, carry_stride: COLUMNS, lane_sums, first: true, last: true };
        let b = b.transposed();
        for column in (0..columns).step_by(COLUMNS) {
            let width = (columns - column).min(COLUMNS);
            let part = b.from(column, 0);
            match rows {
                1 => strips::<1>(level, lines, part, width, depth, carry),
                2 => strips::<2>(level, lines, part, width, depth, carry),
                3 => strips::<3>(level, lines, part, width, depth, carry),
                _ => strips::<ROWS>(level, lines, part, width, depth, carry),
            }
            finish_block::<O>(level, 0, rows, column, columns, &finish);
        }
    }
}

/// `R` rows against two strips of 16 columns, over the whole depth; `b` has a line for each column.
///
/// # Safety
/// As for [`multiply_block`]; `carry` is writable for `R` rows of 32.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn strips<const R: usize>(
    level: Level,
    lines: *const u32,
    b: Block<bf16>,
    width: usize,
    depth: usize,
    carry: *mut f32,
) {
    let groups = depth.div_ceil(GROUP);
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        if b.row_stride == 1 && width == COLUMNS {
            across::<R>(lines, groups * GROUP / 2, b, depth, &mut sums);
            return store(&sums, carry);
        }
        let has_lines = b.column_stride == 1 && width == COLUMNS;
        for group in 0..groups {
            let deep = (depth - group * GROUP).min(GROUP);
            let part = b.from(0, group * GROUP);
            let words = lines.add(group * GROUP / 2);
            for strip in 0..2 {
                let from = part.from(strip * WIDTH, 0);
                let tile = if has_lines && deep == GROUP {
                    whole_tile(from)
                } else {
                    let mut tile = [[0u32; WIDTH]; WIDTH];
                    let some = width.saturating_sub(strip * WIDTH).min(WIDTH);
                    pack_tile_at(level, from, some, deep, true, tile.as_mut_ptr().cast());
                    std::array::from_fn(|pair| Avx512::load(tile[pair].as_ptr().cast()))
                };
                meet::<R>(tile, words, groups * GROUP / 2, &mut sums, strip);
            }
        }
        store(&sums, carry);
    }
}

/// # Safety
/// `carry` is writable for `R` rows of 32.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn store<const R: usize>(sums: &[[__m512; 2]; R], carry: *mut f32) {
    for (row, sums) in sums.iter().enumerate() {
        for (strip, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(carry.add(row * COLUMNS + strip * WIDTH), *sum) };
        }
    }
}

/// `R` rows of words, `stride` apart, against 32 columns that lie side by side.
///
/// # Safety
/// As for [`strips`], with a distance of one between columns.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn across<const R: usize>(
    words: *const u32,
    stride: usize,
    b: Block<bf16>,
    depth: usize,
    sums: &mut [[__m512; 2]; R],
) {
    // SAFETY: the caller's promise; the vectors are 64 bytes without invalid values.
    unsafe {
        let row = |at: usize| match at < depth {
            true => _mm512_loadu_si512(b.at(0, at).cast()),
            false => _mm512_setzero_si512(),
        };
        // Pairs of columns 0..4, 8..12, 16..20 and 24..28, and of the others: interleaving stays within quarters.
        for pair in 0..stride {
            let (even, odd) = (row(2 * pair), row(2 * pair + 1));
            let halves = [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)];
            for (line, sums) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_epi32(*words.add(line * stride + pair) as i32);
                let factor = std::mem::transmute::<__m512i, __m512bh>(factor);
                for (sum, half) in sums.iter_mut().zip(halves) {
                    let half = std::mem::transmute::<__m512i, __m512bh>(half);
                    *sum = _mm512_dpbf16_ps(*sum, factor, half);
                }
            }
        }
        let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        let second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for sums in sums {
            let [low, high] = *sums;
            *sums = [_mm512_permutex2var_ps(low, first, high), _mm512_permutex2var_ps(low, second, high)];
        }
    }
}

/// Sixteen lines of 16 pairs as 16 pairs of 16 lines. What the same lines of the next columns hold is asked of the memory
/// meanwhile: weights are met once, and the processor's own guesses end at a page.
///
/// # Safety
/// The block is readable for 16 lines of 32 elements, which lie side by side.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn whole_tile(block: Block<bf16>) -> [Avx512; WIDTH] {
    // SAFETY: the caller's promise; asking for memory that is not there does nothing.
    unsafe {
        Avx512::transpose(std::array::from_fn(|line| {
            let pointer = block.at(line, 0);
            _mm_prefetch::<_MM_HINT_T1>(pointer.wrapping_add(COLUMNS * block.row_stride).cast());
            Avx512::load(pointer.cast())
        }))
    }
}

/// One tile against `R` lines of words, `stride` apart.
///
/// # Safety
/// Lines are readable for 16 words.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn meet<const R: usize>(
    tile: [Avx512; WIDTH],
    words: *const u32,
    stride: usize,
    sums: &mut [[__m512; 2]; R],
    strip: usize,
) {
    for (pair, columns) in tile.into_iter().enumerate() {
        // SAFETY: the caller's promise; all are 64 bytes without invalid values.
        unsafe {
            let columns = std::mem::transmute::<Avx512, __m512bh>(columns);
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_epi32(*words.add(row * stride + pair) as i32);
                let factor = std::mem::transmute::<__m512i, __m512bh>(factor);
                sums[strip] = _mm512_dpbf16_ps(sums[strip], factor, columns);
            }
        }
    }
}
