//! Lanes on AVX2 and FMA: two registers of eight.

use super::{Lanes, WIDTH};
use std::arch::x86_64::*;

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

// SAFETY of every block below: `Avx2` is only used beneath a function with avx2 and fma switched on (`Level::run`),
// and pointers are vouched for by the caller.
macro_rules! halves {
    ($name:ident, $intrinsic:ident) => {
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            // SAFETY: see the head of the file.
            unsafe { Avx2($intrinsic(self.0, other.0), $intrinsic(self.1, other.1)) }
        }
    };
}

/// Transposes 8 rows of 8.
#[inline(always)]
unsafe fn transpose_8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: see the head of the file.
    unsafe {
        let a = [
            _mm256_unpacklo_ps(r[0], r[1]),
            _mm256_unpackhi_ps(r[0], r[1]),
            _mm256_unpacklo_ps(r[2], r[3]),
            _mm256_unpackhi_ps(r[2], r[3]),
            _mm256_unpacklo_ps(r[4], r[5]),
            _mm256_unpackhi_ps(r[4], r[5]),
            _mm256_unpacklo_ps(r[6], r[7]),
            _mm256_unpackhi_ps(r[6], r[7]),
        ];
        let b = [
            _mm256_shuffle_ps::<0x44>(a[0], a[2]),
            _mm256_shuffle_ps::<0xee>(a[0], a[2]),
            _mm256_shuffle_ps::<0x44>(a[1], a[3]),
            _mm256_shuffle_ps::<0xee>(a[1], a[3]),
            _mm256_shuffle_ps::<0x44>(a[4], a[6]),
            _mm256_shuffle_ps::<0xee>(a[4], a[6]),
            _mm256_shuffle_ps::<0x44>(a[5], a[7]),
            _mm256_shuffle_ps::<0xee>(a[5], a[7]),
        ];
        [
            _mm256_permute2f128_ps::<0x20>(b[0], b[4]),
            _mm256_permute2f128_ps::<0x20>(b[1], b[5]),
            _mm256_permute2f128_ps::<0x20>(b[2], b[6]),
            _mm256_permute2f128_ps::<0x20>(b[3], b[7]),
            _mm256_permute2f128_ps::<0x31>(b[0], b[4]),
            _mm256_permute2f128_ps::<0x31>(b[1], b[5]),
            _mm256_permute2f128_ps::<0x31>(b[2], b[6]),
            _mm256_permute2f128_ps::<0x31>(b[3], b[7]),
        ]
    }
}

/// The bits of eight bf16 values in the low halves of 32-bit lanes.
#[inline(always)]
unsafe fn narrow_8(value: __m256) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        let bits = _mm256_castps_si256(value);
        let upper = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let rounded = _mm256_srli_epi32::<16>(rounded);
        let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

impl Lanes for Avx2 {
    const ROWS: usize = 6;
    const VECTORS: usize = 1;

    type Words = [__m256i; 2];
    // SAFETY: all zeros are integers.
    const NO_WORDS: [__m256i; 2] = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn add_words(self, keys: *const u32, mut sums: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            for (half, words) in [self.0, self.1].into_iter().enumerate() {
                let words = _mm256_castps_si256(words);
                let keys = _mm256_loadu_si256(keys.add(half * WIDTH / 2).cast());
                let upper = [words, keys].map(|both| _mm256_srli_epi64::<32>(both));
                sums[0] = _mm256_add_epi64(sums[0], _mm256_mul_epu32(words, keys));
                sums[1] = _mm256_add_epi64(sums[1], _mm256_mul_epu32(upper[0], upper[1]));
            }
        }
        sums
    }

    #[inline(always)]
    fn sum_words([even, odd]: [__m256i; 2]) -> u64 {
        let mut sums = [0u64; 4];
        // SAFETY: see the head of the file; the array holds four.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi64(even, odd)) };
        sums.into_iter().fold(0, u64::wrapping_add)
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx2(_mm256_loadu_ps(pointer), _mm256_loadu_ps(pointer.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        // SAFETY: see the head of the file.
        unsafe {
            _mm256_storeu_ps(pointer, self.0);
            _mm256_storeu_ps(pointer.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(pointer: *const u16) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(pointer.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(pointer.add(8).cast()));
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, pointer: *mut u16) {
        // SAFETY: see the head of the file.
        unsafe {
            let packed = _mm256_packus_epi32(narrow_8(self.0), narrow_8(self.1));
            _mm256_storeu_si256(pointer.cast(), _mm256_permute4x64_epi64::<0xd8>(packed));
        }
    }

    halves!(add, _mm256_add_ps);
    halves!(sub, _mm256_sub_ps);
    halves!(mul, _mm256_mul_ps);
    halves!(div, _mm256_div_ps);
    halves!(max, _mm256_max_ps);
    halves!(min, _mm256_min_ps);

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx2(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)) }
    }

    #[inline(always)]
    fn fused(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            Avx2(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
        }
    }

    #[inline(always)]
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            Avx2(
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, other.1)),
            )
        }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Avx2(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    fn copy_sign(self, sign: Self) -> Self {
        let size = self.abs();
        // SAFETY: see the head of the file.
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            Avx2(
                _mm256_or_ps(size.0, _mm256_and_ps(bit, sign.0)),
                _mm256_or_ps(size.1, _mm256_and_ps(bit, sign.1)),
            )
        }
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the head of the file.
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias);
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            )
        }
    }

    #[inline(always)]
    fn transpose(rows: [Self; WIDTH]) -> [Self; WIDTH] {
        // SAFETY: see the head of the file.
        unsafe {
            let quarter = |start: usize, high: bool| {
                std::array::from_fn(|i| if high { rows[start + i].1 } else { rows[start + i].0 })
            };
            let top_left = transpose_8(quarter(0, false));
            let top_right = transpose_8(quarter(0, true));
            let bottom_left = transpose_8(quarter(8, false));
            let bottom_right = transpose_8(quarter(8, true));
            std::array::from_fn(|i| {
                if i < 8 {
                    Avx2(top_left[i], bottom_left[i])
                } else {
                    Avx2(top_right[i - 8], bottom_right[i - 8])
                }
            })
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the head of the file. The tree of the trait: lanes 8 apart, 4, 2 and 1.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
