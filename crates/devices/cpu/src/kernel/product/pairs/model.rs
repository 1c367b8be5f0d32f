//! A portable model of AMX's tile registers, equal to the bit.
//!
//! `tdpbf16ps` as the pseudo code of Intel's SDM (volume 2, TDPBF16PS) has it: for each row and column, the even and the
//! odd halves of the pairs are summed up in two chains of fused multiply-adds from 0 in ascending order; then the two
//! sums are added, and their sum is added to the destination. Every operation takes subnormal operands as zero, gives
//! zero for a subnormal result (tininess after rounding), and rounds to nearest even, whatever MXCSR says.

use super::tiles::Tiles;
use crate::lanes::widen;

/// Eight registers of 16 rows of 16 words.
pub(super) struct Registers([[[u32; 16]; 16]; 8]);

/// The model.
pub(super) struct Model;

/// A subnormal as a zero of the same sign.
fn without_subnormal(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// Rounds an f64 that was rounded to odd to f32, and to zero where the rounded value (with an unbounded exponent) is
/// below the normal numbers.
fn rounded(odd: f64) -> f32 {
    const SCALE: f64 = 18_446_744_073_709_551_616.0; // 2^64
    if odd.abs() < 1.0 {
        let scaled = (odd * SCALE) as f32;
        if f64::from(scaled.abs()) < f64::from(f32::MIN_POSITIVE) * SCALE {
            return 0.0f32.copysign(scaled);
        }
    }
    odd as f32
}

/// `a + b` rounded to odd in f64.
fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let shifted = sum - a;
    let error = (a - (sum - shifted)) + (b - shifted);
    if sum.is_finite() && error != 0.0 && sum.to_bits() & 1 == 0 {
        let up = (error > 0.0) == (sum > 0.0);
        return f64::from_bits(if up { sum.to_bits() + 1 } else { sum.to_bits() - 1 });
    }
    sum
}

/// `a·b + c`, fused, with subnormals as zeros.
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    let [a, b, c] = [a, b, c].map(|value| f64::from(without_subnormal(value)));
    rounded(odd_sum(a * b, c))
}

/// `a + b` with subnormals as zeros.
pub(super) fn sum(a: f32, b: f32) -> f32 {
    let [a, b] = [a, b].map(|value| f64::from(without_subnormal(value)));
    rounded(odd_sum(a, b))
}

// SAFETY: the registers are plain memory; loads and stores touch what the caller vouches for.
unsafe impl Tiles for Model {
    type State = Registers;

    fn registers() -> Registers {
        // Anything but zero, so that a register that is used before it is written shows.
        Registers([[[0x7fc0_7fc0; 16]; 16]; 8])
    }

    unsafe fn zero<const TILE: usize>(state: &mut Registers) {
        state.0[TILE] = [[0; 16]; 16];
    }

    unsafe fn load<const TILE: usize>(state: &mut Registers, pointer: *const u8, stride: usize) {
        for (row, words) in state.0[TILE].iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *words = unsafe { pointer.add(row * stride).cast::<[u32; 16]>().read_unaligned() };
        }
    }

    unsafe fn store<const TILE: usize>(state: &mut Registers, pointer: *mut u8, stride: usize) {
        for (row, words) in state.0[TILE].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { pointer.add(row * stride).cast::<[u32; 16]>().write_unaligned(*words) };
        }
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>(state: &mut Registers) {
        let (a, b) = (state.0[A], state.0[B]);
        for (m, row) in state.0[C].iter_mut().enumerate() {
            for (n, word) in row.iter_mut().enumerate() {
                let (mut even, mut odd) = (0.0f32, 0.0f32);
                for k in 0..16 {
                    let (left, right) = (a[m][k], b[k][n]);
                    even = fused(widen(left as u16), widen(right as u16), even);
                    odd = fused(widen((left >> 16) as u16), widen((right >> 16) as u16), odd);
                }
                *word = sum(f32::from_bits(*word), sum(even, odd)).to_bits();
            }
        }
    }
}
