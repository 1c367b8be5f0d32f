//! Sums, norms over everything, counters: one pass in f64.

use super::{Unit, Worst};
use crate::bind::View;
use crate::kernel::Context;
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use crate::operator::floats::with_floats;
use crate::operator::parallel::Parts;
use toprope_program::operator::{BiasUpdate, GlobalNorm, Increment};

/// Elements that one thread adds up at a time.
const PART: usize = 1 << 14;

/// Values of scratch memory for sums of operands with these many elements.
pub(super) fn values(elements: impl Iterator<Item = usize>) -> usize {
    2 * elements.max().unwrap_or(0).div_ceil(PART)
}

kernel! {
    /// `Σ a·b` and `Σ |a·b|`, in f64.
    fn inner[](a: &'a [f32], b: &'a [f32]) -> [f64; 2] {
        let _ = std::marker::PhantomData::<L>;
        let (mut sums, mut sizes) = ([0.0f64; WIDTH], [0.0f64; WIDTH]);
        let (whole_a, rest_a) = a.as_chunks::<WIDTH>();
        let (whole_b, rest_b) = b.as_chunks::<WIDTH>();
        for (a, b) in whole_a.iter().zip(whole_b) {
            for lane in 0..WIDTH {
                let product = f64::from(a[lane]) * f64::from(b[lane]);
                sums[lane] += product;
                sizes[lane] += product.abs();
            }
        }
        for (lane, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
            let product = f64::from(*a) * f64::from(*b);
            sums[lane] += product;
            sizes[lane] += product.abs();
        }
        [sums.iter().sum(), sizes.iter().sum()]
    }
}

/// Squares that are added up in f32 before they join the f64 sum.
const SQUARES: usize = 16 * WIDTH;

kernel! {
    /// `Σ x²`: in f32 over 16 vectors in four turns, in f64 beyond.
    fn squares[](x: &'a [f32]) -> f64 {
        let mut total = 0.0f64;
        for x in x.chunks(SQUARES) {
            let (pointer, count) = (x.as_ptr(), x.len());
            let mut sums = [L::splat(0.0); 4];
            let mut start = 0;
            while start < count {
                let width = (count - start).min(WIDTH);
                // SAFETY: start + width ≤ count.
                let x: L = unsafe { f32::load_first(pointer.add(start), width) };
                sums = [x.fused(x, sums[3]), sums[0], sums[1], sums[2]];
                start += WIDTH;
            }
            total += f64::from(sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum());
        }
        total
    }
}

pub(super) fn dot(
    context: &Context<'_>,
    inputs: &[View<'_>],
    units: &[Unit],
    scratch: &mut [f64],
    worst: &Worst,
) {
    let [a, b, got] = inputs else { return worst.demand(false) };
    let (a, b) = (a.f32(), b.f32());
    let parts = a.len().div_ceil(PART);
    let sums = &mut scratch[..2 * parts];
    {
        let each = Parts::new(&mut *sums);
        context.pool.for_each(parts, |part| {
            let place = part * PART..a.len().min((part + 1) * PART);
            let found = inner(context.level, &a[place.clone()], &b[place]);
            // SAFETY: each part has two values of its own.
            unsafe { each.part(2 * part, 2) }.copy_from_slice(&found);
        });
    }
    let [mut sum, mut size] = [0.0; 2];
    for part in sums.chunks_exact(2) {
        sum += part[0];
        size += part[1];
    }
    worst.element(got.f32()[0], sum, units[0].bound(sum, size));
}

pub(super) fn global_norm(
    context: &Context<'_>,
    norm: &GlobalNorm,
    inputs: &[View<'_>],
    units: &[Unit],
    scratch: &mut [f64],
    worst: &Worst,
) {
    let Some((gradients, [got, factor])) = inputs.split_last_chunk::<2>() else {
        return worst.demand(false);
    };
    let mut total = 0.0f64;
    for gradient in gradients {
        let values = gradient.f32();
        let parts = values.len().div_ceil(PART);
        let sums = &mut scratch[..parts];
        {
            let each = Parts::new(&mut *sums);
            context.pool.for_each(parts, |part| {
                let values = &values[part * PART..values.len().min((part + 1) * PART)];
                // SAFETY: each part has a value of its own.
                let sum = unsafe { each.part(part, 1) };
                sum[0] = squares(context.level, values);
            });
        }
        total += sums.iter().sum::<f64>();
    }
    let want = total.sqrt();
    worst.element(got.f32()[0], want, units[0].bound(want, want));
    let clip = f64::from(norm.clip as f32);
    let want = match want.is_finite() {
        false => 0.0,
        true if clip > 0.0 => (clip / (want + 1e-6)).min(1.0),
        true => 1.0,
    };
    worst.element(factor.f32()[0], want, units[1].bound(want, want));
}

pub(super) fn column_sum(inputs: &[View<'_>], units: &[Unit], scratch: &mut [f64], worst: &Worst) {
    let [x, got] = inputs else { return worst.demand(false) };
    let (rows, columns, stride) = x.rows();
    let (sums, sizes) = scratch[..2 * columns].split_at_mut(columns);
    sums.fill(0.0);
    sizes.fill(0.0);
    with_floats!(x.floats(), x => {
        for row in 0..rows {
            for ((x, sum), size) in x[row * stride..][..columns].iter().zip(&mut *sums).zip(&mut *sizes) {
                let x = f64::from(x.to_f32());
                *sum += x;
                *size += x.abs();
            }
        }
    });
    with_floats!(got.floats(), got => {
        for ((got, sum), size) in got.iter().zip(&*sums).zip(&*sizes) {
            worst.element(got.to_f32(), *sum, units[0].bound(*sum, *size));
        }
    });
}

pub(super) fn bias_update(update: &BiasUpdate, inputs: &[View<'_>], units: &[Unit], worst: &Worst) {
    let [bias, counts, got] = inputs else { return worst.demand(false) };
    let (bias, counts, got) = (bias.f32(), counts.i32(), got.f32());
    let rate = f64::from(update.rate as f32);
    let total: i128 = counts.iter().map(|count| i128::from(*count)).sum();
    for ((bias, count), got) in bias.iter().zip(counts).zip(got) {
        let (bias, load) = (f64::from(*bias), i128::from(*count) * counts.len() as i128);
        let want = match total.cmp(&load) {
            std::cmp::Ordering::Less => bias - rate,
            std::cmp::Ordering::Equal => bias,
            std::cmp::Ordering::Greater => bias + rate,
        };
        worst.element(*got, want, units[0].bound(want, bias.abs() + rate));
    }
}

pub(super) fn increment(increment: &Increment, inputs: &[View<'_>], worst: &Worst) {
    let [x, got] = inputs else { return worst.demand(false) };
    worst.demand(got.i32()[0].wrapping_sub(x.i32()[0]) == increment.by);
}
