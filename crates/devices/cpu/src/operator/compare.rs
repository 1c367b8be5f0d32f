//! `compare`: bits against bits, a part at a time.

use super::{Execute, Task};
use crate::bind::View;
use crate::level::{Level, kernel};
use crate::pool::Pool;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_program::operator::Compare;
use toprope_program::{DType, Width};

/// Elements that one thread compares at a time.
const PART: usize = 1 << 14;

kernel! {
    /// Whether two slices of one length hold the same bits.
    fn same[T: Word](a: &'a [T], b: &'a [T]) -> bool {
        let _ = std::marker::PhantomData::<L>;
        a.chunks(256).zip(b.chunks(256)).all(|(a, b)| {
            a.iter().zip(b).fold(T::ZERO, |all, (a, b)| all.or(a.xor(*b))) == T::ZERO
        })
    }
}

/// A stored element's bits.
trait Word: Copy + PartialEq + Sync {
    const ZERO: Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    /// Whether these are the bits of a NaN of a float of this size.
    fn is_nan(self) -> bool;
}

impl Word for u16 {
    const ZERO: u16 = 0;
    #[inline(always)]
    fn or(self, other: u16) -> u16 {
        self | other
    }
    #[inline(always)]
    fn xor(self, other: u16) -> u16 {
        self ^ other
    }
    fn is_nan(self) -> bool {
        self & 0x7fff > 0x7f80
    }
}

impl Word for u32 {
    const ZERO: u32 = 0;
    #[inline(always)]
    fn or(self, other: u32) -> u32 {
        self | other
    }
    #[inline(always)]
    fn xor(self, other: u32) -> u32 {
        self ^ other
    }
    fn is_nan(self) -> bool {
        f32::from_bits(self).is_nan()
    }
}

/// How many elements differ; two NaNs of a float type are the same.
fn differing<T: Word>(pool: &Pool, level: Level, float: bool, a: &[T], b: &[T]) -> u64 {
    let total = AtomicU64::new(0);
    pool.for_each(a.len().div_ceil(PART), |part| {
        let place = part * PART..((part + 1) * PART).min(a.len());
        let (a, b) = (&a[place.clone()], &b[place]);
        if !same(level, a, b) {
            let differs = |(a, b): &(&T, &T)| a != b && !(float && a.is_nan() && b.is_nan());
            total.fetch_add(a.iter().zip(b).filter(differs).count() as u64, Ordering::Relaxed);
        }
    });
    total.into_inner()
}

fn pair(pool: &Pool, level: Level, a: &View<'_>, b: &View<'_>) -> u64 {
    let float = matches!(a.dtype, DType::F32 | DType::Bf16);
    match a.dtype.size_bytes(Width::Native) {
        2 => differing(pool, level, float, a.bits::<u16>(), b.bits::<u16>()),
        _ => differing(pool, level, float, a.bits::<u32>(), b.bits::<u32>()),
    }
}

impl Execute for Compare {
    fn run(&self, task: &mut Task<'_, '_>) {
        let (first, second) = task.inputs.split_at(task.inputs.len() / 2);
        let (pool, level) = (task.context.pool, task.context.level);
        let count: u64 = first.iter().zip(second).map(|(a, b)| pair(pool, level, a, b)).sum();
        task.outputs[0].f32()[0] = count as f32;
    }
}
