//! Norms of rows and their gradient, row by row and column by column, each operand read once.

use super::{Exact, FLOOR, Mode, Quick, Ratio, Unit, Worst};
use crate::bind::View;
use crate::kernel::{Context, Floats};
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use crate::operator::floats::with_floats;
use crate::operator::parallel::Parts;
use toprope_program::operator::RmsNorm;

/// Rows that one thread takes at a time.
const ROWS: usize = 64;

/// Rows whose elements of a column are looked at together: all of them stay in the nearest cache.
const TOGETHER: usize = 16;

/// Rows with one distance between neighbours.
#[derive(Clone, Copy)]
struct Rows<'a, X> {
    values: &'a [X],
    stride: usize,
}

impl<X> Rows<'_, X> {
    /// Where a row of `columns` begins.
    #[inline(always)]
    fn row(&self, row: usize, columns: usize) -> *const X {
        self.values[row * self.stride..][..columns].as_ptr()
    }
}

kernel! {
    /// The largest distance of these rows of `x` and `y`. `unit` is of y, then of rstd.
    fn norm_rows[X: Element, W: Element, M: Mode](
        x: Rows<'a, X>,
        y: Rows<'a, X>,
        rows: std::ops::Range<usize>,
        weight: &'a [W],
        rstd: &'a [f32],
        epsilon: f64,
        unit: [f32; 2],
    ) -> f32 {
        let columns = weight.len();
        let mut worst = Ratio::<L>::new();
        let mut of_scales = 0.0f64;
        for row in rows {
            let (x, y, weight) = (x.row(row, columns), y.row(row, columns), weight.as_ptr());
            let mut sums = [L::splat(0.0); 2];
            let mut start = 0;
            while start < columns {
                let width = (columns - start).min(WIDTH);
                // SAFETY: start + width ≤ columns, the length of every row.
                let value: L = unsafe { X::load_first(x.add(start), width) };
                sums = [sums[1], value.fused(value, sums[0])];
                start += WIDTH;
            }
            let square = f64::from(sums[0].sum()) + f64::from(sums[1].sum());
            let scale = 1.0 / (square / columns as f64 + epsilon).sqrt();
            let distance = (f64::from(rstd[row]) - scale).abs() / (f64::from(unit[1]) * scale + f64::from(FLOOR));
            of_scales = if distance < f64::INFINITY { of_scales.max(distance) } else { f64::INFINITY };
            let (scale, relative, floor) = (L::splat(scale as f32), L::splat(unit[0]), L::splat(FLOOR));
            let mut start = 0;
            while start < columns {
                let width = (columns - start).min(WIDTH);
                // SAFETY: as above.
                let (x, y, weight): (L, L, L) = unsafe {
                    (
                        X::load_first(x.add(start), width),
                        X::load_first(y.add(start), width),
                        W::load_first(weight.add(start), width),
                    )
                };
                let want = weight.mul(scale).mul(x);
                worst.meet::<M>(y.sub(want).abs(), want.abs().fused(relative, floor));
                start += WIDTH;
            }
        }
        worst.largest().max(of_scales as f32)
    }
}

pub(super) fn rms_norm(
    context: &Context<'_>,
    norm: &RmsNorm,
    inputs: &[View<'_>],
    units: &[Unit],
    worst: &Worst,
) {
    let [x_view, weight, y_view, rstd] = inputs else { return worst.demand(false) };
    let (rows, _, stride) = x_view.rows();
    let (_, _, y_stride) = y_view.rows();
    let (weight, rstd, epsilon) = (weight.floats(), rstd.f32(), f64::from(self::epsilon(norm)));
    let unit = [(units[0].relative + units[0].accumulated) as f32, units[1].accumulated as f32];
    macro_rules! run {
        ($x:expr, $y:expr) => {{
            let (x, y) = (Rows { values: $x, stride }, Rows { values: $y, stride: y_stride });
            with_floats!(weight, weight => context.pool.for_each(rows.div_ceil(ROWS), |block| {
                let rows = block * ROWS..rows.min((block + 1) * ROWS);
                let mut found =
                    norm_rows::<_, _, Quick>(context.level, x, y, rows.clone(), weight, rstd, epsilon, unit);
                if found >= 1.0 {
                    found = norm_rows::<_, _, Exact>(context.level, x, y, rows, weight, rstd, epsilon, unit);
                }
                worst.meet(found);
            }))
        }};
    }
    match (x_view.floats(), y_view.floats()) {
        (Floats::F32(x), Floats::F32(y)) => run!(x, y),
        (Floats::Bf16(x), Floats::Bf16(y)) => run!(x, y),
        _ => worst.demand(false),
    }
}

fn epsilon(norm: &RmsNorm) -> f32 {
    norm.epsilon as f32
}

/// Values of scratch memory for the gradient: sums of columns and of their sizes, for each block of rows.
pub(super) fn values(rows: usize, columns: usize) -> usize {
    // f32 values in a workspace of f64.
    rows.div_ceil(ROWS) * columns + 1
}

/// What the gradient reads.
struct Parts3<'a, X, W, D> {
    x: Rows<'a, X>,
    dy: Rows<'a, D>,
    dx: Rows<'a, X>,
    weight: &'a [W],
    rstd: &'a [f32],
    unit: [f32; 2],
}

kernel! {
    /// The largest distance of at most [`TOGETHER`] rows of dx; a quick pass adds their parts of dweight and the sizes of
    /// these to sums.
    fn gradient_rows[X: Element, W: Element, D: Element, M: Mode](
        it: &'a Parts3<'a, X, W, D>,
        rows: std::ops::Range<usize>,
        sums: &'a mut [f32],
        sizes: &'a mut [f32],
    ) -> f32 {
        let columns = it.weight.len();
        let weight = it.weight.as_ptr();
        let (sums, sizes) = (sums[..columns].as_mut_ptr(), sizes[..columns].as_mut_ptr());
        let mut scales = [[0.0f32; 3]; TOGETHER];
        for (row, scales) in rows.clone().zip(&mut scales) {
            let (x, dy) = (it.x.row(row, columns), it.dy.row(row, columns));
            let [mut sum, mut size] = [L::splat(0.0); 2];
            let mut start = 0;
            while start < columns {
                let width = (columns - start).min(WIDTH);
                // SAFETY: start + width ≤ columns, the length of every row.
                let (x, dy, weight): (L, L, L) = unsafe {
                    (
                        X::load_first(x.add(start), width),
                        D::load_first(dy.add(start), width),
                        W::load_first(weight.add(start), width),
                    )
                };
                let product = x.mul(dy);
                sum = product.fused(weight, sum);
                size = product.abs().fused(weight.abs(), size);
                start += WIDTH;
            }
            let scale = it.rstd[row];
            let cube = f64::from(scale) * f64::from(scale) * f64::from(scale) / columns as f64;
            *scales = [scale, (cube * f64::from(sum.sum())) as f32, (cube * f64::from(size.sum())).abs() as f32];
        }
        let mut worst = Ratio::<L>::new();
        let (relative, accumulated, floor) = (L::splat(it.unit[0]), L::splat(it.unit[1]), L::splat(FLOOR));
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(WIDTH);
            // SAFETY: as above.
            let (weight, mut sum, mut size): (L, L, L) = unsafe {
                (
                    W::load_first(weight.add(start), width),
                    f32::load_first(sums.add(start), width),
                    f32::load_first(sizes.add(start), width),
                )
            };
            for (row, [scale, along, most]) in rows.clone().zip(&scales) {
                let (x, dy, dx) = (it.x.row(row, columns), it.dy.row(row, columns), it.dx.row(row, columns));
                // SAFETY: as above.
                let (x, dy, dx): (L, L, L) = unsafe {
                    (
                        X::load_first(x.add(start), width),
                        D::load_first(dy.add(start), width),
                        X::load_first(dx.add(start), width),
                    )
                };
                let slope = dy.mul(L::splat(*scale));
                let first = slope.mul(weight);
                let want = first.sub(x.mul(L::splat(*along)));
                let magnitude = x.abs().fused(L::splat(*most), first.abs());
                let bound = want.abs().fused(relative, magnitude.fused(accumulated, floor));
                worst.meet::<M>(dx.sub(want).abs(), bound);
                let part = slope.mul(x);
                sum = sum.add(part);
                size = size.add(part.abs());
            }
            if !M::EXACT {
                // SAFETY: as above.
                unsafe {
                    f32::store_first(sum, sums.add(start), width);
                    f32::store_first(size, sizes.add(start), width);
                }
            }
            start += WIDTH;
        }
        worst.largest()
    }
}

pub(super) fn gradient(
    context: &Context<'_>,
    inputs: &[View<'_>],
    units: &[Unit],
    scratch: &mut [f64],
    worst: &Worst,
) {
    let [x_view, weight, rstd, dy_view, dx_view, dweight] = inputs else { return worst.demand(false) };
    let (rows, columns, stride) = x_view.rows();
    let (_, _, dy_stride) = dy_view.rows();
    let (_, _, dx_stride) = dx_view.rows();
    let (weight, rstd, dy) = (weight.floats(), rstd.f32(), dy_view.floats());
    let blocks = rows.div_ceil(ROWS);
    // SAFETY: every bit pattern is an f32, and an f64 is aligned for it.
    let (_, sums, _) = unsafe { scratch.align_to_mut::<f32>() };
    let sums = &mut sums[..2 * blocks * columns];
    let unit = [units[0].relative as f32, units[0].accumulated as f32];
    {
        let parts = Parts::new(&mut *sums);
        macro_rules! run {
            ($x:expr, $dx:expr) => {{
                let (x, dx) = (Rows { values: $x, stride }, Rows { values: $dx, stride: dx_stride });
                with_floats!(weight, weight => with_floats!(dy, dy => {
                    let dy = Rows { values: dy, stride: dy_stride };
                    let it = Parts3 { x, dy, dx, weight, rstd, unit };
                    context.pool.for_each(blocks, |block| {
                        // SAFETY: each block has a part of its own.
                        let part = unsafe { parts.part(2 * block * columns, 2 * columns) };
                        part.fill(0.0);
                        let (sums, sizes) = part.split_at_mut(columns);
                        let end = rows.min((block + 1) * ROWS);
                        for start in (block * ROWS..end).step_by(TOGETHER) {
                            let rows = start..end.min(start + TOGETHER);
                            let (level, again) = (context.level, rows.clone());
                            let mut found =
                                gradient_rows::<_, _, _, Quick>(level, &it, rows, &mut *sums, &mut *sizes);
                            if found >= 1.0 {
                                found = gradient_rows::<_, _, _, Exact>(level, &it, again, &mut *sums, &mut *sizes);
                            }
                            worst.meet(found);
                        }
                    });
                }))
            }};
        }
        match (x_view.floats(), dx_view.floats()) {
            (Floats::F32(x), Floats::F32(dx)) => run!(x, dx),
            (Floats::Bf16(x), Floats::Bf16(dx)) => run!(x, dx),
            _ => worst.demand(false),
        }
    }
    with_floats!(dweight.floats(), dweight => {
        // In the order in which they lie: the sums, then their sizes.
        let mut totals = vec![0.0f64; 2 * columns];
        for block in sums.chunks_exact(2 * columns) {
            totals.iter_mut().zip(block).for_each(|(total, part)| *total += f64::from(*part));
        }
        let (sum, size) = totals.split_at(columns);
        for ((got, sum), size) in dweight.iter().zip(sum).zip(size) {
            worst.element(got.to_f32(), *sum, units[1].bound(*sum, *size));
        }
    });
}
