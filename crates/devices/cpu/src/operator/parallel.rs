//! Outputs cut into parts, each written by one thread. The cuts never depend on the number of threads.

use crate::pool::Pool;
use std::marker::PhantomData;

/// A slice of which threads take parts.
pub(super) struct Parts<'a, T> {
    pointer: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the parts that threads take are disjoint, as `part` demands.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { pointer: slice.as_mut_ptr(), length: slice.len(), slice: PhantomData }
    }

    /// The part `start..start + length`, less where the slice ends before.
    ///
    /// # Safety
    /// Nobody else uses an element of the part while it is in use.
    #[allow(clippy::mut_from_ref, reason = "parts are disjoint")]
    pub(super) unsafe fn part(&self, start: usize, length: usize) -> &'a mut [T] {
        let start = start.min(self.length);
        // SAFETY: inside the slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length.min(self.length - start)) }
    }
}

/// Calls `work(index, part)` for each part of `size` elements.
pub(super) fn parts<T: Send>(
    pool: &Pool,
    slice: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let size = size.max(1);
    let count = slice.len().div_ceil(size);
    let all = Parts::new(slice);
    // SAFETY: each index is handed out once, and parts of different indices don't meet.
    pool.for_each(count, |index| work(index, unsafe { all.part(index * size, size) }));
}

/// As [`parts`] for two slices that are cut alike.
pub(super) fn parts2<A: Send, B: Send>(
    pool: &Pool,
    (first, first_size): (&mut [A], usize),
    (second, second_size): (&mut [B], usize),
    work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (first_size, second_size) = (first_size.max(1), second_size.max(1));
    let count = first.len().div_ceil(first_size);
    assert_eq!(count, second.len().div_ceil(second_size), "slices that are cut alike");
    let (first, second) = (Parts::new(first), Parts::new(second));
    pool.for_each(count, |index| {
        // SAFETY: each index is handed out once, and parts of different indices don't meet.
        let (a, b) = unsafe {
            (first.part(index * first_size, first_size), second.part(index * second_size, second_size))
        };
        work(index, a, b);
    });
}

/// As [`parts`], with the same part of a slice to read.
pub(super) fn parts_of<T: Send, X: Sync>(
    pool: &Pool,
    slice: &mut [T],
    from: &[X],
    size: usize,
    work: impl Fn(&mut [T], &[X]) + Sync,
) {
    assert_eq!(slice.len(), from.len(), "slices that are cut alike");
    parts(pool, slice, size, |index, part| {
        let start = index * size.max(1);
        let length = part.len();
        work(part, &from[start..start + length]);
    });
}
