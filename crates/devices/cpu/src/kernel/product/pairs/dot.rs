//! AVX-512's `vdpbf16ps` over the same packed tiles.

use super::TILE;
use std::arch::x86_64::*;

/// Rows of the register block: with two columns of vectors, 16 chains hide the instruction's latency.
const ROWS: usize = 8;

/// `c = (first ? 0 : c) + a·b` for 32 × 32 outputs; see `Unit::multiply`.
///
/// # Safety
/// As for `Unit::multiply`; the machine has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(
    a: *const u32,
    b: *const u32,
    groups: usize,
    c: *mut f32,
    stride: usize,
    first: bool,
) {
    for row in (0..32).step_by(ROWS) {
        // SAFETY: the caller's promise; rows 16..32 are the second strip's.
        unsafe {
            let a = a.add((row / 16) * groups * TILE + (row % 16) * 16);
            let c = c.add(row * stride);
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            if !first {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_loadu_ps(c.add(r * stride)), _mm512_loadu_ps(c.add(r * stride + 16))];
                }
            }
            for group in 0..groups {
                for pair in 0..16 {
                    let place = group * TILE + pair * 16;
                    let left = words(b.add(place));
                    let right = words(b.add(groups * TILE + place));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let factor = *a.add(group * TILE + r * 16 + pair);
                        let factor =
                            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(factor as i32));
                        sums[0] = _mm512_dpbf16_ps(sums[0], factor, left);
                        sums[1] = _mm512_dpbf16_ps(sums[1], factor, right);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * stride), sums[0]);
                _mm512_storeu_ps(c.add(r * stride + 16), sums[1]);
            }
        }
    }
}

/// Sixteen pairs.
///
/// # Safety
/// 64 readable bytes.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn words(pointer: *const u32) -> __m512bh {
    // SAFETY: the caller's promise; both are 64 bytes without invalid values.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(pointer.cast())) }
}
