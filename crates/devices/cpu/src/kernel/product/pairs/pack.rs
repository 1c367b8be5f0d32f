//! Packing of bf16 operands into tiles of pairs.

use super::{GROUP, TILE};
use crate::kernel::product::pack::Block;
use crate::lanes::{Lanes, WIDTH};
use crate::level::kernel;
use half::bf16;

kernel! {
    /// Packs `at(line, depth)` for `lines` lines (rows of the left or columns of the right operand) into strips of 16
    /// lines, each `depth / 32` tiles long; zeros behind the last line (to `padded` lines) and the last depth.
    ///
    /// A tile holds 16 lines of 16 pairs or, `across`, 16 pairs of 16 lines.
    ///
    /// # Safety (checked by the caller)
    /// The block is readable; `out` is writable for `padded · depth.next_multiple_of(32) / 2` words.
    pub(super) fn pack_tiles_at[](
        block: Block<bf16>,
        padded: usize,
        lines: usize,
        depth: usize,
        across: bool,
        out: *mut u32,
    ) {
        let groups = depth.div_ceil(GROUP);
        for strip in 0..padded / WIDTH {
            let width = lines.saturating_sub(strip * WIDTH).min(WIDTH);
            for group in 0..groups {
                let deep = (depth - group * GROUP).min(GROUP);
                // SAFETY: inside the operand and `out`.
                unsafe {
                    let part = block.from(strip * WIDTH, group * GROUP);
                    let target = out.add((strip * groups + group) * TILE);
                    pack_tile::<L>(part, width, deep, across, target);
                }
            }
        }
    }
}

/// See [`pack_tiles_at`].
///
/// # Safety
/// As said there.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn pack_tiles(
    level: crate::level::Level,
    block: Block<bf16>,
    padded: usize,
    lines: usize,
    depth: usize,
    across: bool,
    out: *mut u32,
) {
    pack_tiles_at(level, block, padded, lines, depth, across, out);
}

#[cfg(target_arch = "x86_64")]
kernel! {
    /// One tile of `width` lines of `deep` elements, zeros behind them.
    ///
    /// # Safety (checked by the caller)
    /// The block is readable; `out` is writable for a tile.
    pub(super) fn pack_tile_at[](block: Block<bf16>, width: usize, deep: usize, across: bool, out: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { pack_tile::<L>(block, width, deep, across, out) };
    }
}

/// # Safety
/// The block is readable for `width` lines of `deep` elements; `out` is writable for a tile.
#[inline(always)]
unsafe fn pack_tile<L: Lanes>(block: Block<bf16>, width: usize, deep: usize, across: bool, out: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let whole = width == WIDTH && deep == GROUP;
        let mut words = [[0u32; WIDTH]; WIDTH];
        // Whether `words` is pairs by lines rather than lines by pairs.
        let mut is_across = false;
        if whole && block.column_stride == 1 {
            for (line, words) in words.iter_mut().enumerate() {
                *words = block.at(line, 0).cast::<[u32; WIDTH]>().read_unaligned();
            }
            if cfg!(target_endian = "big") {
                words = words.map(|line| line.map(|word| word.rotate_left(16)));
            }
        } else if whole && block.row_stride == 1 {
            is_across = true;
            for (pair, words) in words.iter_mut().enumerate() {
                let even = block.at(0, 2 * pair).cast::<[u16; WIDTH]>().read_unaligned();
                let odd = block.at(0, 2 * pair + 1).cast::<[u16; WIDTH]>().read_unaligned();
                for (word, (even, odd)) in words.iter_mut().zip(even.into_iter().zip(odd)) {
                    *word = u32::from(even) | u32::from(odd) << 16;
                }
            }
        } else {
            for (line, words) in words.iter_mut().enumerate().take(width) {
                for depth in 0..deep {
                    let bits = u32::from((*block.at(line, depth)).to_bits());
                    words[depth / 2] |= bits << (16 * (depth % 2));
                }
            }
        }
        if is_across == across {
            out.cast::<[[u32; WIDTH]; WIDTH]>().write_unaligned(words);
        } else {
            // Lanes only move the bits.
            let rows = std::array::from_fn(|row| L::load(words[row].as_ptr().cast()));
            for (row, lanes) in L::transpose(rows).into_iter().enumerate() {
                lanes.store(out.add(row * WIDTH).cast());
            }
        }
    }
}
