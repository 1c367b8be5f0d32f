//! `digest`: sums that wrap, so that any order gives the same bits.

use super::{Execute, Task};
use crate::pool::Pool;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_program::operator::{Digest, digest_mix};
use toprope_program::{DType, Width};

/// Elements that one thread digests at a time.
const PART: usize = 1 << 14;

/// The digest of elements of 2 or 4 bytes.
fn sum(pool: &Pool, count: usize, bits: impl Fn(usize) -> u32 + Sync) -> u64 {
    let total = AtomicU64::new(0);
    pool.for_each(count.div_ceil(PART), |part| {
        let mut sum = 0u64;
        for index in part * PART..((part + 1) * PART).min(count) {
            sum = sum.wrapping_add(digest_mix(bits(index), index as u64));
        }
        total.fetch_add(sum, Ordering::Relaxed);
    });
    total.into_inner()
}

/// The digest of dense f32 values.
pub(super) fn digest_f32(pool: &Pool, values: &[f32]) -> u64 {
    sum(pool, values.len(), |index| values[index].to_bits())
}

/// A digest as it is stored: low word first.
pub(super) fn words(digest: u64) -> [u32; 2] {
    [digest as u32, (digest >> 32) as u32]
}

impl Execute for Digest {
    fn run(&self, task: &mut Task<'_, '_>) {
        let x = task.inputs[0];
        let pool = task.context.pool;
        let digest = match x.dtype.size_bytes(Width::Native) {
            2 => {
                let bits = x.bits::<u16>();
                sum(pool, bits.len(), |index| u32::from(bits[index]))
            }
            _ => {
                let bits = x.bits::<u32>();
                sum(pool, bits.len(), |index| bits[index])
            }
        };
        let [y] = task.outputs();
        debug_assert_eq!(y.dtype, DType::U32);
        y.u32().copy_from_slice(&words(digest));
    }
}
