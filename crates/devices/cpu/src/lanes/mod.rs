//! Sixteen logical f32 lanes: the one vector type in which kernels are written.
//!
//! Every level does the same IEEE operations in the same order over 16 lanes (fused where the trait says fused),
//! so all levels give the same bits; only the payload of a NaN is unspecified.

mod element;
mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use element::{Element, narrow, widen};
pub(crate) use math::{exp, exp_scalar, ln, sigmoid_pair, tanh};
pub(crate) use portable::Portable;

/// Lanes of one vector at every level.
pub(crate) const WIDTH: usize = 16;

/// Sixteen f32 values and what can be done with them.
///
/// An implementation's methods are only called beneath a function that has the level's target features switched on
/// (see [`crate::level::Level::run`]); that is what makes their intrinsics sound.
pub(crate) trait Lanes: Copy + 'static {
    /// Rows of the product's register block.
    const ROWS: usize;
    /// Vectors of 16 columns in the product's register block.
    const VECTORS: usize;

    /// All lanes hold `value`.
    fn splat(value: f32) -> Self;
    /// Reads 16 values.
    ///
    /// # Safety
    /// `pointer` is readable for 16 f32 values; any alignment of 4.
    unsafe fn load(pointer: *const f32) -> Self;
    /// Writes 16 values.
    ///
    /// # Safety
    /// `pointer` is writable for 16 f32 values; any alignment of 4.
    unsafe fn store(self, pointer: *mut f32);
    /// Reads 16 bf16 values, exactly.
    ///
    /// # Safety
    /// `pointer` is readable for 16 values; any alignment of 2.
    unsafe fn load_bf16(pointer: *const u16) -> Self;
    /// Writes 16 bf16 values, rounded to nearest even; a NaN stays a (quiet) NaN.
    ///
    /// # Safety
    /// `pointer` is writable for 16 values; any alignment of 2.
    unsafe fn store_bf16(self, pointer: *mut u16);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self · other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `√self`.
    fn sqrt(self) -> Self;
    /// `self · factor + addend`, rounded once.
    fn fused(self, factor: Self, addend: Self) -> Self;
    /// `self > other ? self : other`: `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`: `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// `self < other ? yes : no`, lane by lane; `no` where either is NaN.
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self;
    /// `self` without its sign.
    fn abs(self) -> Self;
    /// The size of `self` with the sign of `sign`.
    fn copy_sign(self, sign: Self) -> Self;
    /// The nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2^self` for integers in -126..=127; anything else gives an arbitrary number.
    fn power_of_two(self) -> Self;
    /// Transposes 16 rows of 16 lanes.
    fn transpose(rows: [Self; WIDTH]) -> [Self; WIDTH];

    /// Running sums of lanes' bits as integers, by keys.
    type Words: Copy;
    /// No sums yet.
    const NO_WORDS: Self::Words;
    /// Adds each lane's bits times its key to the sums, modulo 2^64.
    ///
    /// # Safety
    /// `keys` is readable for 16 words.
    unsafe fn add_words(self, keys: *const u32, sums: Self::Words) -> Self::Words;
    /// All sums in one, modulo 2^64.
    fn sum_words(sums: Self::Words) -> u64;

    /// The lanes in order.
    #[inline(always)]
    fn to_array(self) -> [f32; WIDTH] {
        let mut array = [0.0; WIDTH];
        // SAFETY: the array holds 16 values.
        unsafe { self.store(array.as_mut_ptr()) };
        array
    }

    /// Sixteen values in order.
    #[inline(always)]
    fn from_array(array: &[f32; WIDTH]) -> Self {
        // SAFETY: the array holds 16 values.
        unsafe { Self::load(array.as_ptr()) }
    }

    /// The sum of all lanes, in one fixed tree: lanes 8 apart, then 4, 2 and 1.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.to_array();
        let mut half = WIDTH / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The largest lane, NaN ignored unless all are NaN.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = self.to_array();
        let mut half = WIDTH / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] = lanes[lane].max(lanes[lane + half]);
            }
            half /= 2;
        }
        lanes[0]
    }

    /// `Σ words·keys` of integers, modulo 2^64.
    ///
    /// # Safety
    /// Both pointers are readable for `count` words.
    #[inline(always)]
    unsafe fn weighted_sum(words: *const u32, keys: *const u32, count: usize) -> u64 {
        let whole = count - count % WIDTH;
        // SAFETY: the caller's promise; start + 16 ≤ whole ≤ count. Loading lanes keeps all bits.
        unsafe {
            let mut sums = Self::NO_WORDS;
            for start in (0..whole).step_by(WIDTH) {
                sums = Self::load(words.add(start).cast()).add_words(keys.add(start), sums);
            }
            let rest = (whole..count).map(|at| u64::from(*words.add(at)) * u64::from(*keys.add(at)));
            rest.fold(Self::sum_words(sums), u64::wrapping_add)
        }
    }

    /// Keeps the first `count` lanes and sets the rest to `value`.
    #[inline(always)]
    fn first(self, count: usize, value: f32) -> Self {
        INDEX_LANES.with_lanes::<Self>().select_less(Self::splat(count as f32), self, Self::splat(value))
    }
}

/// The lane numbers 0, 1, …, 15 as floats.
pub(crate) struct LaneNumbers([f32; WIDTH]);

pub(crate) static INDEX_LANES: LaneNumbers =
    LaneNumbers([0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.]);

impl LaneNumbers {
    /// The numbers as a vector.
    #[inline(always)]
    pub(crate) fn with_lanes<L: Lanes>(&self) -> L {
        L::from_array(&self.0)
    }
}

#[cfg(test)]
mod tests;
