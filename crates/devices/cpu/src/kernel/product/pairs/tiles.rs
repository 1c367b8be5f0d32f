//! The product over tile registers, whether they are the processor's or the model's.

use super::TILE;

/// Eight tile registers of 16 rows of 64 bytes, as AMX has them.
///
/// # Safety
/// Implementations do what the instructions of the same names do with registers 0..8.
pub(super) unsafe trait Tiles {
    /// The registers' state.
    type State;

    /// Registers whose content is not used before it is written.
    fn registers() -> Self::State;
    /// `tilezero`.
    ///
    /// # Safety
    /// Configured.
    unsafe fn zero<const TILE: usize>(state: &mut Self::State);
    /// `tileloadd`: 16 rows of 64 bytes, `stride` bytes apart.
    ///
    /// # Safety
    /// Configured; rows are readable.
    unsafe fn load<const TILE: usize>(state: &mut Self::State, pointer: *const u8, stride: usize);
    /// `tilestored`.
    ///
    /// # Safety
    /// Configured; rows are writable.
    unsafe fn store<const TILE: usize>(state: &mut Self::State, pointer: *mut u8, stride: usize);
    /// `tdpbf16ps C, A, B`.
    ///
    /// # Safety
    /// Configured.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(state: &mut Self::State);
}

/// `c = (first ? 0 : c) + a·b` for 32 × 32 outputs; see `Unit::multiply`.
///
/// # Safety
/// As for `Unit::multiply`; `T`'s instructions are available.
pub(super) unsafe fn multiply<T: Tiles>(
    a: *const u32,
    b: *const u32,
    groups: usize,
    c: *mut f32,
    stride: usize,
    first: bool,
) {
    const ROW_BYTES: usize = 64;
    // SAFETY: the caller's promise; registers 0..4 hold c, 4 and 5 a, 6 and 7 b.
    unsafe {
        let mut state = T::registers();
        let state = &mut state;
        let corner = |row: usize, column: usize| c.add(row * 16 * stride + column * 16).cast::<u8>();
        let bytes = stride * 4;
        if first {
            T::zero::<0>(state);
            T::zero::<1>(state);
            T::zero::<2>(state);
            T::zero::<3>(state);
        } else {
            T::load::<0>(state, corner(0, 0), bytes);
            T::load::<1>(state, corner(0, 1), bytes);
            T::load::<2>(state, corner(1, 0), bytes);
            T::load::<3>(state, corner(1, 1), bytes);
        }
        for group in 0..groups {
            let (a0, b0) = (a.add(group * TILE), b.add(group * TILE));
            let (a1, b1) = (a0.add(groups * TILE), b0.add(groups * TILE));
            T::load::<4>(state, a0.cast(), ROW_BYTES);
            T::load::<6>(state, b0.cast(), ROW_BYTES);
            T::dot::<0, 4, 6>(state);
            T::load::<7>(state, b1.cast(), ROW_BYTES);
            T::dot::<1, 4, 7>(state);
            T::load::<5>(state, a1.cast(), ROW_BYTES);
            T::dot::<2, 5, 6>(state);
            T::dot::<3, 5, 7>(state);
        }
        T::store::<0>(state, corner(0, 0), bytes);
        T::store::<1>(state, corner(0, 1), bytes);
        T::store::<2>(state, corner(1, 0), bytes);
        T::store::<3>(state, corner(1, 1), bytes);
    }
}
