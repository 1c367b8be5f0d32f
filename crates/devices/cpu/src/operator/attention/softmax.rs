//! Rows of scores to probabilities and back.

use crate::lanes::{Element, Lanes, Portable, WIDTH, exp};
use crate::level::kernel;

/// From this size on, a unit in the last place of the largest score, or of the log-sum-exp, is half or more: the exact
/// score may lie so far from the rounded one that `e` to the difference leaves f32.
const LARGE: f32 = 4_194_304.0;

/// `score·scale - from`, for an exponential: rounded once, so that it is exact where scores are of size and cancel. From
/// `LARGE` on the score is rounded as `from` was, so that the largest one gives 0 and none gives more.
#[inline(always)]
fn difference<L: Lanes>(score: L, scale: f32, from: f32) -> L {
    let (scale, back) = (L::splat(scale), L::splat(-from));
    if from.abs() >= LARGE {
        return L::splat(0.0).min(score.mul(scale).add(back));
    }
    score.fused(scale, back)
}

/// `e^(score·scale - from)` of one value, with the bits of the rows here.
pub(super) fn exponential(score: f32, scale: f32, from: f32) -> f32 {
    exp(difference(Portable::splat(score), scale, from)).to_array()[0]
}

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
        let mut lanes = L::splat(0.0);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let value = difference(f32::load_first::<L>(pointer.add(start), width), scale, new);
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
    /// `scale·p·(dp - along)`. Gives `Σ p`.
    pub(super) fn gradient_row[](scores: &'a mut [f32], dp: &'a mut [f32], scale: f32, lse: f32, along: f32) -> f32 {
        let count = scores.len().min(dp.len());
        let (scores, dp) = (scores.as_mut_ptr(), dp.as_mut_ptr());
        let mut sum = L::splat(0.0);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let score = f32::load_first::<L>(scores.add(start), width);
                let p = exp(difference(score, scale, lse));
                let slope = f32::load_first::<L>(dp.add(start), width).sub(L::splat(along));
                sum = sum.add(if width < WIDTH { p.first(width, 0.0) } else { p });
                f32::store_first::<L>(p, scores.add(start), width);
                f32::store_first::<L>(p.mul(slope).mul(L::splat(scale)), dp.add(start), width);
            }
            start += WIDTH;
        }
        sum.sum()
    }
}

/// Whether every value is a number.
pub(super) fn all_finite(values: &[f32]) -> bool {
    // Infinities and NaNs have all exponent bits set.
    values.iter().fold(true, |all, value| all & (value.to_bits() & 0x7f80_0000 != 0x7f80_0000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;

    #[test]
    fn scores_beyond_the_exact_integers_give_no_infinity() {
        // Products that fall a quarter of a unit in the last place beside an f32, to either side.
        for (score, scale) in
            [(237_154.2_f32 * 54_126.613, 0.353_553_4_f32), (1.3e13, 0.577_350_3), (-7.7e9, 0.7)]
        {
            for level in Level::available() {
                let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
                let mut scores = [score, score - score.abs() * 0.5, score];
                step(level, &mut scores, scale, &mut largest, &mut sum);
                assert_eq!((scores, sum), ([1.0, 0.0, 1.0], 2.0), "{level} {score}");
                let mut scores = [score, score - score.abs() * 0.5];
                gradient_row(level, &mut scores, &mut [0.0; 2], scale, largest, 0.0);
                assert_eq!(scores, [1.0, 0.0], "{level} {score}");
            }
            assert_eq!(exponential(score, scale, score * scale), 1.0);
        }
    }
}
