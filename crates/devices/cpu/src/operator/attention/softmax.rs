//! Rows of scores to probabilities and back.

use crate::lanes::{Element, WIDTH, exp};
use crate::level::kernel;

kernel! {
    /// One step of the running softmax (FlashAttention, arXiv 2205.14135, algorithm 1): scores to `e^(scale·s - max)`, the
    /// running maximum and sum brought up to date. Gives what earlier sums are to be multiplied by.
    pub(super) fn step[](scores: &'a mut [f32], scale: f32, largest: &'a mut f32, sum: &'a mut f32) -> f32 {
        let count = scores.len();
        let pointer = scores.as_mut_ptr();
        let factor = L::splat(scale);
        let mut top = L::splat(f32::NEG_INFINITY);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            let value = unsafe { f32::load_first::<L>(pointer.add(start), width) };
            top = value.mul(factor).first(width, f32::NEG_INFINITY).max(top);
            start += WIDTH;
        }
        let new = largest.max(top.largest());
        let shift = L::splat(-new);
        let mut lanes = L::splat(0.0);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                // Fused, so that a large score is rounded once, after the difference.
                let value = f32::load_first::<L>(pointer.add(start), width).fused(factor, shift);
                let value = exp(value).first(width, 0.0);
                lanes = lanes.add(value);
                f32::store_first::<L>(value, pointer.add(start), width);
            }
            start += WIDTH;
        }
        let correction = if *largest == f32::NEG_INFINITY { 0.0 } else { crate::lanes::exp_scalar(*largest - new) };
        *sum = *sum * correction + lanes.sum();
        *largest = new;
        correction
    }
}

kernel! {
    /// `y *= factor`.
    pub(super) fn scale_row[](y: &'a mut [f32], factor: f32) {
        let count = y.len();
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let pointer = y.as_mut_ptr().add(start);
                f32::store_first::<L>(f32::load_first::<L>(pointer, width).mul(L::splat(factor)), pointer, width);
            }
            start += WIDTH;
        }
    }
}

kernel! {
    /// Scores to probabilities `p = e^(scale·s - lse)`, and the gradients of probabilities to those of scores,
    /// `scale·p·(dp - along)`.
    pub(super) fn gradient_row[](scores: &'a mut [f32], dp: &'a mut [f32], scale: f32, lse: f32, along: f32) {
        let count = scores.len().min(dp.len());
        let (scores, dp) = (scores.as_mut_ptr(), dp.as_mut_ptr());
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let score = f32::load_first::<L>(scores.add(start), width);
                let p = exp(score.fused(L::splat(scale), L::splat(-lse)));
                let slope = f32::load_first::<L>(dp.add(start), width).sub(L::splat(along));
                f32::store_first::<L>(p, scores.add(start), width);
                f32::store_first::<L>(p.mul(slope).mul(L::splat(scale)), dp.add(start), width);
            }
            start += WIDTH;
        }
    }
}

/// Whether every value is a number.
pub(super) fn all_finite(values: &[f32]) -> bool {
    // Infinities and NaNs have all exponent bits set.
    values.iter().fold(true, |all, value| all & (value.to_bits() & 0x7f80_0000 != 0x7f80_0000))
}
