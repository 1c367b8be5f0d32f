//! Products of bf16 by the processor's own instructions: pairs of bf16 multiplied and added up in f32.
//!
//! A unit computes 32 × 32 outputs at a time over packed tiles: 16 rows of 16 pairs (the left operand: rows × depth) or
//! 16 pairs of 16 columns (the right operand: depth × columns), 1 KiB each. Depth is taken in groups of 32, whose
//! borders are those of the whole depth, so the bits depend on no block size.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(test)]
mod model;
mod pack;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod thin;
#[cfg(any(test, all(target_arch = "x86_64", target_os = "linux")))]
mod tiles;

use super::block::{Finish, Output, finish_block};
use super::pack::Block;
use crate::kernel::Floats;
use crate::lanes::{Element, WIDTH};
use crate::level::Level;
use half::bf16;
use pack::pack_tiles;

/// Whether this machine has AMX tiles with bf16, and the system lets this process use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use amx::is_available as tile_is_available;

/// Whether this machine has AMX tiles with bf16, and the system lets this process use them.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
pub(crate) fn tile_is_available() -> bool {
    false
}

/// Rows and columns that a unit computes at a time.
const SIDE: usize = 32;
/// Depth of one tile.
const GROUP: usize = 32;
/// 32-bit words of a tile.
const TILE: usize = WIDTH * WIDTH;
/// Depth of a chunk: packed columns stay in the second-level cache.
const DEPTH: usize = 512;
/// Rows packed at once.
const ROWS: usize = 256;

/// What multiplies pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// AMX tiles.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// The portable model of AMX tiles.
    #[cfg(test)]
    Model,
}

impl Unit {
    /// The unit that `level` has on this machine.
    pub(super) fn of(level: Level) -> Option<Unit> {
        match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx if level.is_available() => Some(Unit::Amx),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if level.is_available() => Some(Unit::Dot),
            _ => None,
        }
    }

    /// The unit that multiplies these operands at `level`: none unless both are bf16.
    pub(super) fn for_operands(level: Level, a: Floats<'_>, b: Floats<'_>) -> Option<Unit> {
        if a.is_bf16() && b.is_bf16() { Unit::of(level) } else { None }
    }

    /// Makes this thread ready for `multiply`.
    ///
    /// # Safety
    /// The unit is available.
    unsafe fn begin(self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Unit::Amx {
            // SAFETY: the caller's promise.
            unsafe { amx::configure() };
        }
    }

    /// Undoes `begin`.
    ///
    /// # Safety
    /// The unit is available.
    unsafe fn end(self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Unit::Amx {
            // SAFETY: the caller's promise.
            unsafe { amx::release() };
        }
    }

    /// `c = (first ? 0 : c) + a·b` for 32 × 32 outputs: two strips of `groups` tiles each from `a` and from `b`, strips
    /// `groups` tiles apart.
    ///
    /// # Safety
    /// The unit is available and begun; tiles are readable; `c` is readable and writable for 32 rows of 32
    /// values, `stride` apart.
    #[cfg_attr(not(any(test, target_arch = "x86_64")), allow(unused_variables, unused_unsafe))]
    unsafe fn multiply(
        self,
        a: *const u32,
        b: *const u32,
        groups: usize,
        c: *mut f32,
        stride: usize,
        first: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Unit::Amx => tiles::multiply::<amx::Amx>(a, b, groups, c, stride, first),
                #[cfg(target_arch = "x86_64")]
                Unit::Dot => dot::multiply(a, b, groups, c, stride, first),
                #[cfg(test)]
                Unit::Model => tiles::multiply::<model::Model>(a, b, groups, c, stride, first),
            }
        }
    }
}

/// f32 values of scratch memory for [`multiply_block`].
pub(super) fn scratch_values(rows: usize, columns: usize, depth: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    let thin = thin::scratch_values(depth);
    #[cfg(not(target_arch = "x86_64"))]
    let thin = 0;
    let depth = depth.next_multiple_of(GROUP);
    let (high, wide) = (rows.next_multiple_of(SIDE), columns.next_multiple_of(SIDE));
    let carry = if depth > DEPTH { high * wide } else { SIDE * SIDE };
    let whole = (wide + high.min(ROWS)) * depth.min(DEPTH) / 2 + high.min(ROWS) * WIDTH + carry;
    whole.max(thin)
}

/// As [`super::block::multiply_block`], for bf16 operands on `unit`.
///
/// # Safety
/// Operands are readable and the output writable for these sizes; `scratch` holds [`scratch_values`];
/// `unit` is available.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn multiply_block<O: Element>(
    unit: Unit,
    level: Level,
    a: Block<bf16>,
    b: Block<bf16>,
    output: Output<O>,
    rows: usize,
    columns: usize,
    depth: usize,
    scratch: *mut f32,
) {
    #[cfg(target_arch = "x86_64")]
    if unit == Unit::Dot && rows <= thin::ROWS {
        // SAFETY: the caller's promise; this unit is there where the level is, which has these instructions.
        return unsafe { thin::multiply_block::<O>(level, a, b, output, rows, columns, depth, scratch) };
    }
    let wide = columns.next_multiple_of(SIDE);
    let high = rows.next_multiple_of(SIDE).min(ROWS);
    let chunks = depth.div_ceil(DEPTH).max(1);
    let chunk = depth.next_multiple_of(GROUP).min(DEPTH);
    // SAFETY: parts of the scratch memory as `scratch_values` counts them.
    let (packed_b, packed_a, lane_sums, carry) = unsafe {
        let packed_a = scratch.add(wide * chunk / 2);
        let lane_sums = packed_a.add(high * chunk / 2);
        (scratch.cast::<u32>(), packed_a.cast::<u32>(), lane_sums, lane_sums.add(high * WIDTH))
    };
    // SAFETY: the unit is available.
    unsafe { unit.begin() };
    for index in 0..chunks {
        let start = index * DEPTH;
        let length = DEPTH.min(depth - start);
        let groups = length.div_ceil(GROUP);
        let (first, last) = (index == 0, index + 1 == chunks);
        // SAFETY: inside the operand; whole strips of 32 columns fit `packed_b`.
        unsafe { pack_tiles(level, b.from(start, 0).transposed(), wide, columns, length, true, packed_b) };
        let mut row = 0;
        while row < rows {
            let height = (rows - row).min(ROWS);
            let padded = height.next_multiple_of(SIDE);
            // SAFETY: inside the operand; whole strips of 32 rows fit `packed_a`.
            unsafe { pack_tiles(level, a.from(row, start), padded, height, length, false, packed_a) };
            // SAFETY: row < rows.
            let mut finish = unsafe {
                Finish { output: output.row(row), carry, carry_stride: SIDE, lane_sums, first, last }
            };
            for column in (0..wide).step_by(SIDE) {
                for side in (0..padded).step_by(SIDE) {
                    // SAFETY: the strips that were packed; a carry block of 32 × 32, its own where chunks follow.
                    unsafe {
                        if chunks > 1 {
                            finish.carry = carry.add((row + side) * wide + column);
                            finish.carry_stride = wide;
                        }
                        let strip_a = packed_a.add(side / WIDTH * groups * TILE);
                        let strip_b = packed_b.add(column / WIDTH * groups * TILE);
                        unit.multiply(strip_a, strip_b, groups, finish.carry, finish.carry_stride, first);
                        if last {
                            let count = (height - side).min(SIDE);
                            finish_block::<O>(level, side, count, column, columns, &finish);
                        }
                    }
                }
            }
            row += height;
        }
    }
    // SAFETY: the unit is available.
    unsafe { unit.end() };
}
