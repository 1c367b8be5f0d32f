//! Elementwise kernels.

use crate::kernel::Floats;
use crate::kernel::view::with_floats;
use crate::lanes::{Element, WIDTH};
use crate::level::{Level, kernel};

kernel! {
    fn widen_range[X: Element](x: &'a [X], y: &'a mut [f32]) {
        let count = x.len().min(y.len());
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let value = X::load_first::<L>(x.as_ptr().add(start), width);
                f32::store_first::<L>(value, y.as_mut_ptr().add(start), width);
            }
            start += WIDTH;
        }
    }
}

/// Copies floats to f32, exactly.
pub(crate) fn widen_into(level: Level, x: Floats<'_>, y: &mut [f32]) {
    with_floats!(x, x: X => widen_range::<X>(level, x, y));
}

kernel! {
    /// `sums += part`.
    pub(super) fn add_into[](part: &'a [f32], sums: &'a mut [f32]) {
        let _ = std::marker::PhantomData::<L>;
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
}
