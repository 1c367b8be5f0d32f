//! Norms of rows and their gradient, row by row and column by column, each operand read once.

use super::{Exact, FLOOR, Mode, Quick, Ratio, Unit, Worst};
use crate::bind::View;
use crate::kernel::{Context, Floats};
use crate::lanes::{Element, Lanes, WIDTH};
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

/// `Σ x²` of a row.
///
/// # Safety
/// `x` is readable for `columns` elements.
#[inline(always)]
unsafe fn square<L: Lanes, X: Element>(x: *const X, columns: usize) -> f64 {
    let mut sums = [L::splat(0.0); 2];
    let whole = columns - columns % WIDTH;
    // SAFETY: the caller's promise; start + 16 ≤ whole ≤ columns.
    unsafe {
        for start in (0..whole).step_by(WIDTH) {
            let value: L = X::load(x.add(start));
            sums = [sums[1], value.fused(value, sums[0])];
        }
        if whole < columns {
            let value: L = X::load_first(x.add(whole), columns - whole);
            sums[0] = value.fused(value, sums[0]);
        }
    }
    f64::from(sums[0].sum()) + f64::from(sums[1].sum())
}

/// Meets sixteen elements of y with what x and weight make of them. No closure: those are compiled without the level's
/// features where they are not inlined.
#[inline(always)]
fn meet<L: Lanes, M: Mode>([x, y, weight]: [L; 3], [scale, relative, floor]: [L; 3], worst: &mut Ratio<L>) {
    let want = weight.mul(scale).mul(x);
    worst.meet::<M>(y.sub(want).abs(), want.abs().fused(relative, floor));
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
        let whole = columns - columns % WIDTH;
        let mut worst = Ratio::<L>::new();
        let mut of_scales = 0.0f64;
        for row in rows {
            let (x, y, weight) = (x.row(row, columns), y.row(row, columns), weight.as_ptr());
            // SAFETY: the row has that many elements.
            let square = unsafe { square::<L, X>(x, columns) };
            let scale = 1.0 / (square / columns as f64 + epsilon).sqrt();
            let distance = (f64::from(rstd[row]) - scale).abs() / (f64::from(unit[1]) * scale + f64::from(FLOOR));
            of_scales = if distance < f64::INFINITY { of_scales.max(distance) } else { f64::INFINITY };
            let (scale, relative, floor) = (L::splat(scale as f32), L::splat(unit[0]), L::splat(FLOOR));
            let scales = [scale, relative, floor];
            // SAFETY: start + 16 ≤ whole ≤ columns, the length of every row; then the rest of them.
            unsafe {
                for start in (0..whole).step_by(WIDTH) {
                    let (x, y) = (X::load(x.add(start)), X::load(y.add(start)));
                    meet::<L, M>([x, y, W::load(weight.add(start))], scales, &mut worst);
                }
                if whole < columns {
                    let rest = columns - whole;
                    let (x, y) = (X::load_first(x.add(whole), rest), X::load_first(y.add(whole), rest));
                    meet::<L, M>([x, y, W::load_first(weight.add(whole), rest)], scales, &mut worst);
                }
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

/// Sixteen elements, or where that is known to be too many the first `width` and zeros: a loop over whole vectors holds no code
/// for parts of one.
///
/// # Safety
/// `pointer` is readable for 16 elements, or for `width`.
#[inline(always)]
unsafe fn take<L: Lanes, X: Element, const WHOLE: bool>(pointer: *const X, width: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe { if WHOLE { X::load::<L>(pointer) } else { X::load_first::<L>(pointer, width) } }
}

/// `Σ x·dy·weight` and `Σ |x·dy·weight|` over the columns of a row.
///
/// # Safety
/// All are readable for `columns` elements.
#[inline(always)]
unsafe fn along<L: Lanes, X: Element, W: Element, D: Element>(
    (x, dy, weight): (*const X, *const D, *const W),
    columns: usize,
) -> [f32; 2] {
    let [mut sum, mut size] = [L::splat(0.0); 2];
    let whole = columns - columns % WIDTH;
    // SAFETY: the caller's promise; start + 16 ≤ whole ≤ columns.
    unsafe {
        for start in (0..whole).step_by(WIDTH) {
            let (x, dy, weight): (L, L, L) =
                (X::load(x.add(start)), D::load(dy.add(start)), W::load(weight.add(start)));
            let product = x.mul(dy);
            (sum, size) = (product.fused(weight, sum), product.abs().fused(weight.abs(), size));
        }
        if whole < columns {
            let rest = columns - whole;
            let (x, dy): (L, L) = (X::load_first(x.add(whole), rest), D::load_first(dy.add(whole), rest));
            let (product, weight): (L, L) = (x.mul(dy), W::load_first(weight.add(whole), rest));
            (sum, size) = (product.fused(weight, sum), product.abs().fused(weight.abs(), size));
        }
    }
    [sum.sum(), size.sum()]
}

/// One vector of columns of all `rows`: their distances, and what they add to dweight and its size.
///
/// # Safety
/// `width` columns from `start` are inside every row and `sums`, which holds the sizes `apart` behind; 16 where `WHOLE`.
#[inline(always)]
unsafe fn gradient_columns<L: Lanes, X: Element, W: Element, D: Element, M: Mode, const WHOLE: bool>(
    it: &Parts3<'_, X, W, D>,
    (rows, scales): (std::ops::Range<usize>, &[[f32; 3]; TOGETHER]),
    (start, width): (usize, usize),
    (sums, sizes): (*mut f32, *mut f32),
    worst: &mut Ratio<L>,
) {
    let columns = it.weight.len();
    let (relative, accumulated, floor) = (L::splat(it.unit[0]), L::splat(it.unit[1]), L::splat(FLOOR));
    // SAFETY: the caller's promise.
    unsafe {
        let weight: L = take::<L, W, WHOLE>(it.weight.as_ptr().add(start), width);
        let mut sum: L = take::<L, f32, WHOLE>(sums.add(start), width);
        let mut size: L = take::<L, f32, WHOLE>(sizes.add(start), width);
        for (row, [scale, along, most]) in rows.zip(scales) {
            let (x, dy, dx) = (it.x.row(row, columns), it.dy.row(row, columns), it.dx.row(row, columns));
            let x: L = take::<L, X, WHOLE>(x.add(start), width);
            let dy: L = take::<L, D, WHOLE>(dy.add(start), width);
            let dx: L = take::<L, X, WHOLE>(dx.add(start), width);
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
            f32::store_first(sum, sums.add(start), width);
            f32::store_first(size, sizes.add(start), width);
        }
    }
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
        let out = (sums[..columns].as_mut_ptr(), sizes[..columns].as_mut_ptr());
        let mut scales = [[0.0f32; 3]; TOGETHER];
        for (row, scales) in rows.clone().zip(&mut scales) {
            let (x, dy) = (it.x.row(row, columns), it.dy.row(row, columns));
            // SAFETY: each is as long as there are columns.
            let [sum, size] = unsafe { along::<L, X, W, D>((x, dy, it.weight.as_ptr()), columns) };
            let scale = it.rstd[row];
            let cube = f64::from(scale) * f64::from(scale) * f64::from(scale) / columns as f64;
            *scales = [scale, (cube * f64::from(sum)) as f32, (cube * f64::from(size)).abs() as f32];
        }
        let mut worst = Ratio::<L>::new();
        let whole = columns - columns % WIDTH;
        // SAFETY: start + 16 ≤ whole ≤ columns, the length of every row; then the rest of them.
        unsafe {
            for start in (0..whole).step_by(WIDTH) {
                let rows = (rows.clone(), &scales);
                gradient_columns::<L, X, W, D, M, true>(it, rows, (start, WIDTH), out, &mut worst);
            }
            if whole < columns {
                let rows = (rows.clone(), &scales);
                gradient_columns::<L, X, W, D, M, false>(it, rows, (whole, columns - whole), out, &mut worst);
            }
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
