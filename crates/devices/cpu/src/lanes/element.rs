//! Stored elements: f32 and bf16 as kernels read and write them.

use super::{Lanes, WIDTH};
use half::bf16;

/// The f32 with the same value as a bf16's bits.
#[inline(always)]
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16's bits, ties to even; a NaN stays a quiet NaN.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// An element type that kernels read as f32 and store with one rounding.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The value as f32, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Reads 16 elements.
    ///
    /// # Safety
    /// `pointer` is readable for 16 elements.
    unsafe fn load<L: Lanes>(pointer: *const Self) -> L;
    /// Writes 16 elements.
    ///
    /// # Safety
    /// `pointer` is writable for 16 elements.
    unsafe fn store<L: Lanes>(lanes: L, pointer: *mut Self);

    /// Reads `count` elements (at most 16), the rest being 0.
    ///
    /// # Safety
    /// `pointer` is readable for `count` elements.
    #[inline(always)]
    unsafe fn load_first<L: Lanes>(pointer: *const Self, count: usize) -> L {
        if count >= WIDTH {
            // SAFETY: 16 elements are readable.
            return unsafe { Self::load(pointer) };
        }
        let mut lanes = [0.0f32; WIDTH];
        for (index, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: index < count.
            *lane = unsafe { *pointer.add(index) }.to_f32();
        }
        L::from_array(&lanes)
    }

    /// Writes the first `count` lanes (at most 16).
    ///
    /// # Safety
    /// `pointer` is writable for `count` elements.
    #[inline(always)]
    unsafe fn store_first<L: Lanes>(lanes: L, pointer: *mut Self, count: usize) {
        if count >= WIDTH {
            // SAFETY: 16 elements are writable.
            return unsafe { Self::store(lanes, pointer) };
        }
        let lanes = lanes.to_array();
        for (index, lane) in lanes.iter().enumerate().take(count) {
            // SAFETY: index < count.
            unsafe { *pointer.add(index) = Self::from_f32(*lane) };
        }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(pointer: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(pointer) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, pointer: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { lanes.store(pointer) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        widen(self.to_bits())
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_bits(narrow(value))
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(pointer: *const Self) -> L {
        // SAFETY: bf16 is a transparent u16; the caller's promise.
        unsafe { L::load_bf16(pointer.cast()) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, pointer: *mut Self) {
        // SAFETY: bf16 is a transparent u16; the caller's promise.
        unsafe { lanes.store_bf16(pointer.cast()) }
    }
}
