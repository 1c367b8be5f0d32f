//! Work of known size, for measuring what a machine can do at most.

use super::Context;
use super::view::Target;
use crate::lanes::{Lanes, WIDTH};
use crate::level::kernel;

kernel! {
    fn chains[](rounds: usize) -> f32 {
        // Opaque to the optimizer, and below 1 so that nothing grows or becomes subnormal.
        let factor = L::splat(std::hint::black_box(0.5));
        let addend = L::splat(std::hint::black_box(0.25));
        // As many chains as the product keeps in registers: enough to hide the latency of a multiply-add.
        if L::VECTORS == 2 {
            run_chains::<L, 24>(factor, addend, rounds / 24)
        } else {
            run_chains::<L, 6>(factor, addend, rounds / 6)
        }
    }
}

#[inline(always)]
fn run_chains<L: Lanes, const CHAINS: usize>(factor: L, addend: L, rounds: usize) -> f32 {
    let mut sums = [addend; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.fused(factor, addend);
        }
    }
    sums.into_iter().fold(L::splat(0.0), L::add).sum()
}

/// Does `24·rounds` vectors of 16 independent fused multiply-adds on every thread, and gives the number of floating-point
/// operations done (two for each multiply-add). The caller times it.
pub fn fused_multiply_adds(context: &Context<'_>, rounds: usize) -> u64 {
    context.pool.run(|_, _| {
        std::hint::black_box(chains(context.level, 24 * rounds));
    });
    2 * (rounds * 24 * WIDTH * context.pool.threads()) as u64
}

kernel! {
    fn triad_range[](a: &'a [f32], b: &'a [f32], out: &'a mut [f32]) {
        let factor = L::splat(3.0);
        let count = a.len().min(b.len()).min(out.len()) / WIDTH * WIDTH;
        for start in (0..count).step_by(WIDTH) {
            // SAFETY: start + 16 ≤ count.
            unsafe {
                let b = L::load(b.as_ptr().add(start));
                factor.fused(b, L::load(a.as_ptr().add(start))).store(out.as_mut_ptr().add(start));
            }
        }
    }
}

/// `out = a + 3·b`, split over threads in whole blocks; gives the bytes moved (two reads, one write an element).
/// McCalpin's STREAM triad.
pub fn triad(context: &Context<'_>, a: &[f32], b: &[f32], out: &mut [f32]) -> u64 {
    const BLOCK: usize = 1 << 14;
    let count = a.len().min(b.len()).min(out.len());
    let target = Target::new(out);
    context.pool.for_each(count.div_ceil(BLOCK), |index| {
        let start = index * BLOCK;
        let length = BLOCK.min(count - start);
        // SAFETY: blocks are disjoint.
        let part = unsafe { target.slice(start, length) };
        triad_range(context.level, &a[start..start + length], &b[start..start + length], part);
    });
    12 * count as u64
}
