//! `digest`: sums that wrap, so that any order gives the same bits.

use super::{Execute, Task};
use crate::kernel::Context;
use crate::lanes::Lanes;
use crate::level::kernel;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_program::operator::{DIGEST_BLOCK, DIGEST_KEYS, Digest, digest_factor};
use toprope_program::{DType, Width};

/// Elements that one thread digests at a time: whole blocks.
const PART: usize = 1 << 14;

/// A stored element's bits, zero-extended.
pub(super) trait Word: Copy + Sync {
    /// The sum of words times keys, modulo 2^64.
    ///
    /// # Safety
    /// Both pointers are readable for `count` elements.
    unsafe fn weighted_sum<L: Lanes>(words: *const Self, keys: *const u32, count: usize) -> u64;
}

impl Word for u16 {
    #[inline(always)]
    unsafe fn weighted_sum<L: Lanes>(words: *const u16, keys: *const u32, count: usize) -> u64 {
        // SAFETY: the caller's promise.
        let (words, keys) =
            unsafe { (std::slice::from_raw_parts(words, count), std::slice::from_raw_parts(keys, count)) };
        words
            .iter()
            .zip(keys)
            .fold(0, |sum, (word, key)| sum.wrapping_add(u64::from(*word) * u64::from(*key)))
    }
}

impl Word for u32 {
    #[inline(always)]
    unsafe fn weighted_sum<L: Lanes>(words: *const u32, keys: *const u32, count: usize) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { L::weighted_sum(words, keys, count) }
    }
}

impl Word for f32 {
    #[inline(always)]
    unsafe fn weighted_sum<L: Lanes>(words: *const f32, keys: *const u32, count: usize) -> u64 {
        // SAFETY: the caller's promise; an f32 is read as its bits.
        unsafe { L::weighted_sum(words.cast(), keys, count) }
    }
}

kernel! {
    /// The digest of elements of which the first has index `first`, the beginning of a block.
    pub(super) fn digest_part[T: Word](values: &'a [T], first: u64) -> u64 {
        debug_assert!(first.is_multiple_of(DIGEST_BLOCK as u64));
        let mut digest = 0u64;
        for (block, values) in (first / DIGEST_BLOCK as u64..).zip(values.chunks(DIGEST_BLOCK)) {
            // SAFETY: both are readable for the values' number, which is at most that of the keys.
            let own = unsafe { T::weighted_sum::<L>(values.as_ptr(), DIGEST_KEYS.as_ptr(), values.len()) };
            digest = digest.wrapping_add(own.wrapping_mul(digest_factor(block)));
        }
        digest
    }
}

/// The digest of dense elements.
fn digest<T: Word>(context: &Context<'_>, values: &[T]) -> u64 {
    let total = AtomicU64::new(0);
    context.pool.for_each(values.len().div_ceil(PART), |part| {
        let place = part * PART..((part + 1) * PART).min(values.len());
        let sum = digest_part(context.level, &values[place.clone()], place.start as u64);
        total.fetch_add(sum, Ordering::Relaxed);
    });
    total.into_inner()
}

/// A digest as it is stored: low word first.
pub(super) fn words(digest: u64) -> [u32; 2] {
    [digest as u32, (digest >> 32) as u32]
}

impl Execute for Digest {
    fn run(&self, task: &mut Task<'_, '_>) {
        let digests = task.inputs.iter().map(|x| match x.dtype.size_bytes(Width::Native) {
            2 => digest(&task.context, x.bits::<u16>()),
            _ => digest(&task.context, x.bits::<u32>()),
        });
        let digest = digests.fold(0u64, u64::wrapping_add);
        let [y] = task.outputs();
        debug_assert_eq!(y.dtype, DType::U32);
        y.u32().copy_from_slice(&words(digest));
    }
}
