//! `digest`: sums that wrap, so that any order gives the same bits.

use super::{Execute, Task};
use crate::kernel::Context;
use crate::level::kernel;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_program::operator::{Digest, digest_mix};
use toprope_program::{DType, Width};

/// Elements that one thread digests at a time.
const PART: usize = 1 << 14;

/// A stored element's bits, zero-extended.
pub(super) trait Word: Copy + Sync {
    fn wide(self) -> u32;
}

impl Word for u16 {
    #[inline(always)]
    fn wide(self) -> u32 {
        u32::from(self)
    }
}

impl Word for u32 {
    #[inline(always)]
    fn wide(self) -> u32 {
        self
    }
}

impl Word for f32 {
    #[inline(always)]
    fn wide(self) -> u32 {
        self.to_bits()
    }
}

kernel! {
    /// The digest of elements of which the first has index `first`.
    pub(super) fn digest_part[T: Word](values: &'a [T], first: u64) -> u64 {
        let _ = std::marker::PhantomData::<L>;
        // Eight sums, so that the compiler may take them side by side.
        let mut sums = [0u64; 8];
        let chunks = values.chunks_exact(8);
        let rest = chunks.remainder();
        let behind = first + (values.len() - rest.len()) as u64;
        for (chunk, values) in chunks.enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = sum.wrapping_add(digest_mix(values[lane].wide(), first + (8 * chunk + lane) as u64));
            }
        }
        let rest = rest.iter().enumerate().map(|(index, value)| digest_mix(value.wide(), behind + index as u64));
        sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
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
