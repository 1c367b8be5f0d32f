//! Lanes on AVX-512 F: one register of sixteen.

use super::{Lanes, WIDTH};
use std::arch::x86_64::*;

/// Sixteen lanes in one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

// SAFETY of every block below: `Avx512` is only used beneath a function with avx512f (and bw, dq, vl) switched on
// (`Level::run`), and pointers are vouched for by the caller.
macro_rules! whole {
    ($name:ident, $intrinsic:ident) => {
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            // SAFETY: see the head of the file.
            unsafe { Avx512($intrinsic(self.0, other.0)) }
        }
    };
}

impl Lanes for Avx512 {
    const ROWS: usize = 12;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx512(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx512(_mm512_loadu_ps(pointer)) }
    }

    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        // SAFETY: see the head of the file.
        unsafe { _mm512_storeu_ps(pointer, self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(pointer: *const u16) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(pointer.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, pointer: *mut u16) {
        // SAFETY: see the head of the file. Not `vcvtneps2bf16`: it flushes subnormals.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let upper = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let rounded = _mm512_srli_epi32::<16>(rounded);
            let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(pointer.cast(), _mm512_cvtepi32_epi16(chosen));
        }
    }

    whole!(add, _mm512_add_ps);
    whole!(sub, _mm512_sub_ps);
    whole!(mul, _mm512_mul_ps);
    whole!(div, _mm512_div_ps);
    whole!(max, _mm512_max_ps);
    whole!(min, _mm512_min_ps);

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx512(_mm512_sqrt_ps(self.0)) }
    }

    #[inline(always)]
    fn fused(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the head of the file.
        unsafe { Avx512(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0);
            Avx512(_mm512_mask_blend_ps(less, no.0, yes.0))
        }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let bits = _mm512_and_si512(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x7fff_ffff));
            Avx512(_mm512_castsi512_ps(bits))
        }
    }

    #[inline(always)]
    fn copy_sign(self, sign: Self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let size = _mm512_and_si512(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x7fff_ffff));
            let bit = _mm512_and_si512(_mm512_castps_si512(sign.0), _mm512_set1_epi32(i32::MIN));
            Avx512(_mm512_castsi512_ps(_mm512_or_si512(size, bit)))
        }
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the head of the file.
        unsafe { Avx512(_mm512_roundscale_ps::<NEAREST>(self.0)) }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see the head of the file.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }

    #[inline(always)]
    fn transpose(rows: [Self; WIDTH]) -> [Self; WIDTH] {
        // SAFETY: see the head of the file.
        unsafe {
            // 4x4 blocks within 128-bit quarters: afterwards part[4g + c] holds, in quarter q, rows 4g..4g+4 of column 4q + c.
            let mut part = rows;
            for group in (0..WIDTH).step_by(4) {
                let [a, b, c, d] = [rows[group].0, rows[group + 1].0, rows[group + 2].0, rows[group + 3].0];
                let ab_low = _mm512_unpacklo_ps(a, b);
                let ab_high = _mm512_unpackhi_ps(a, b);
                let cd_low = _mm512_unpacklo_ps(c, d);
                let cd_high = _mm512_unpackhi_ps(c, d);
                part[group] = Avx512(_mm512_shuffle_ps::<0x44>(ab_low, cd_low));
                part[group + 1] = Avx512(_mm512_shuffle_ps::<0xee>(ab_low, cd_low));
                part[group + 2] = Avx512(_mm512_shuffle_ps::<0x44>(ab_high, cd_high));
                part[group + 3] = Avx512(_mm512_shuffle_ps::<0xee>(ab_high, cd_high));
            }
            // Then the 4x4 quarters are transposed for each column within a quarter.
            let mut out = rows;
            for column in 0..4 {
                let [a, b, c, d] =
                    [part[column].0, part[4 + column].0, part[8 + column].0, part[12 + column].0];
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                out[column] = Avx512(_mm512_shuffle_f32x4::<0x88>(ab_even, cd_even));
                out[4 + column] = Avx512(_mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd));
                out[8 + column] = Avx512(_mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even));
                out[12 + column] = Avx512(_mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd));
            }
            out
        }
    }

    type Words = [__m512i; 2];
    // SAFETY: all zeros are integers.
    const NO_WORDS: [__m512i; 2] = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn add_words(self, keys: *const u32, [even, odd]: [__m512i; 2]) -> [__m512i; 2] {
        // SAFETY: see the head of the file.
        unsafe {
            let (words, keys) = (_mm512_castps_si512(self.0), _mm512_loadu_epi32(keys.cast()));
            let upper = [words, keys].map(|both| _mm512_srli_epi64::<32>(both));
            [
                _mm512_add_epi64(even, _mm512_mul_epu32(words, keys)),
                _mm512_add_epi64(odd, _mm512_mul_epu32(upper[0], upper[1])),
            ]
        }
    }

    #[inline(always)]
    fn sum_words([even, odd]: [__m512i; 2]) -> u64 {
        // SAFETY: see the head of the file.
        unsafe { _mm512_reduce_add_epi64(_mm512_add_epi64(even, odd)) as u64 }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the head of the file. The tree of the trait: lanes 8 apart, 4, 2 and 1.
        unsafe {
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), upper);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
