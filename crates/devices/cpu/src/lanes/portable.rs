//! Lanes in plain Rust, for every architecture (aarch64 compiles `mul_add` to NEON's fused multiply-add).

use super::{Lanes, WIDTH, narrow, widen};

/// Sixteen floats in an array.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Portable([f32; WIDTH]);

/// `a·b + c` rounded once, on machines where a fused multiply-add is not part of the baseline.
///
/// The product of two f32 is exact in f64; the f64 sum is rounded to odd (its last bit is set when it is inexact), and
/// with 53 ≥ 2·24 + 2 bits the final rounding to f32 is then the rounding of the exact result (Boldo and Melquiond,
/// "Emulation of a FMA and correctly rounded sums", IEEE TC 57(4), 2008).
#[inline(always)]
#[cfg_attr(any(target_feature = "fma", target_arch = "aarch64"), allow(dead_code))]
pub(super) fn fused_by_odd_rounding(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = product + addend;
    let shifted = sum - product;
    let error = (product - (sum - shifted)) + (addend - shifted);
    let bits = sum.to_bits();
    // Towards the exact value when the last bit is even and something was lost; NaN and infinity stay as they are.
    let inexact = (error != 0.0) & (error.is_finite()) & (bits & 1 == 0);
    let away = (error > 0.0) == (sum > 0.0);
    let step = if away { 1u64 } else { u64::MAX };
    let odd = f64::from_bits(if inexact { bits.wrapping_add(step) } else { bits });
    odd as f32
}

#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(any(target_feature = "fma", target_arch = "aarch64"))]
    return a.mul_add(b, c);
    #[cfg(not(any(target_feature = "fma", target_arch = "aarch64")))]
    return fused_by_odd_rounding(a, b, c);
}

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = self;
        for lane in &mut out.0 {
            *lane = f(*lane);
        }
        out
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self;
        for (lane, other) in out.0.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        out
    }
}

impl Lanes for Portable {
    const ROWS: usize = 4;
    const VECTORS: usize = 1;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Portable([value; WIDTH])
    }

    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 readable values.
        Portable(unsafe { pointer.cast::<[f32; WIDTH]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        // SAFETY: the caller vouches for 16 writable values.
        unsafe { pointer.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(pointer: *const u16) -> Self {
        // SAFETY: the caller vouches for 16 readable values.
        let bits = unsafe { pointer.cast::<[u16; WIDTH]>().read_unaligned() };
        Portable(bits.map(widen))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, pointer: *mut u16) {
        // SAFETY: the caller vouches for 16 writable values.
        unsafe { pointer.cast::<[u16; WIDTH]>().write_unaligned(self.0.map(narrow)) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }

    #[inline(always)]
    fn fused(self, factor: Self, addend: Self) -> Self {
        let mut out = addend;
        for lane in 0..WIDTH {
            out.0[lane] = fused(self.0[lane], factor.0[lane], addend.0[lane]);
        }
        out
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        let mut out = no;
        for lane in 0..WIDTH {
            if self.0[lane] < other.0[lane] {
                out.0[lane] = yes.0[lane];
            }
        }
        out
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn copy_sign(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }

    #[inline(always)]
    fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.map(|n| f32::from_bits((n as i32).wrapping_add(127).wrapping_shl(23) as u32))
    }

    type Words = u64;
    const NO_WORDS: u64 = 0;

    #[inline(always)]
    unsafe fn add_words(self, keys: *const u32, sum: u64) -> u64 {
        // SAFETY: the caller's promise.
        let keys = unsafe { std::slice::from_raw_parts(keys, WIDTH) };
        let words = self.0.iter().zip(keys);
        words.fold(sum, |sum, (x, key)| sum.wrapping_add(u64::from(x.to_bits()) * u64::from(*key)))
    }

    #[inline(always)]
    fn sum_words(sum: u64) -> u64 {
        sum
    }

    #[inline(always)]
    fn transpose(rows: [Self; WIDTH]) -> [Self; WIDTH] {
        let mut out = rows;
        for (r, row) in rows.iter().enumerate() {
            for (c, value) in row.0.iter().enumerate() {
                out[c].0[r] = *value;
            }
        }
        out
    }
}
