//! Weighted sums along a matrix's rows, for checks: one pass over memory, whichever way the matrix lies.

use super::elementwise::add_into;
use super::view::{Target, with_floats};
use super::{Context, Matrix};
use crate::lanes::{Element, Lanes, WIDTH};
use crate::level::kernel;

/// Columns of a stored row that are added up together where the matrix lies transposed: part of what fixes the bits.
const BLOCK: usize = 256;

/// Stored rows of one chain of additions there.
const CHAIN: usize = 16;

/// Rows that one thread takes at a time.
const ROWS: usize = 32;

/// Vectors of columns that are summed at once.
const VECTORS: usize = 4;

/// Rows whose sums are taken at once where a row lies in one piece.
const GROUP: usize = 4;

/// What the rows of a matrix `x` are summed with.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// `Σ_c x` and `√(Σ_c x²)`.
    Ones,
    /// `Σ_c x·s` and `Σ_c |x|·t`, of one `s` and `t` for each column.
    Pair(&'a [f32], &'a [f32]),
}

/// The two sums of each row.
#[derive(Debug)]
pub struct Folded<'a> {
    /// `Σ_c x` or `Σ_c x·s`.
    pub sum: &'a mut [f32],
    /// `√(Σ_c x²)` or `Σ_c |x|·t`.
    pub size: &'a mut [f32],
}

impl Folded<'_> {
    /// The same, borrowed once more.
    pub fn again(&mut self) -> Folded<'_> {
        Folded { sum: self.sum, size: self.size }
    }
}

/// How an element enters its row's two sums; a type, so that kernels are compiled for each.
trait Terms: Copy + 'static {
    fn add<L: Lanes>(sums: [L; 2], x: L, s: L, t: L) -> [L; 2];
}

#[derive(Clone, Copy)]
struct Plain;

impl Terms for Plain {
    #[inline(always)]
    fn add<L: Lanes>([sum, size]: [L; 2], x: L, _: L, _: L) -> [L; 2] {
        [sum.add(x), x.fused(x, size)]
    }
}

#[derive(Clone, Copy)]
struct Weighted;

impl Terms for Weighted {
    #[inline(always)]
    fn add<L: Lanes>([sum, size]: [L; 2], x: L, s: L, t: L) -> [L; 2] {
        [x.fused(s, sum), x.abs().fused(t, size)]
    }
}

/// Values of scratch memory that [`fold`] needs for a matrix of these sizes.
pub fn fold_scratch_values(rows: usize, columns: usize) -> usize {
    columns.div_ceil(BLOCK).saturating_mul(rows).saturating_mul(2)
}

/// The sums of `R` rows that lie in one piece each, `stride` apart.
///
/// # Safety
/// `x` is readable for the rows of `s.len()` elements each, and `t` is as long as `s`; `sum` and `size` are writable for `R`.
#[inline(always)]
unsafe fn fold_group<L: Lanes, X: Element, M: Terms, const R: usize>(
    (x, stride): (*const X, usize),
    (s, t): (&[f32], &[f32]),
    (sum, size): (*mut f32, *mut f32),
) {
    let mut sums = [[L::splat(0.0); 2]; R];
    let whole = s.len() - s.len() % WIDTH;
    // SAFETY: the caller's promise; start + 16 ≤ whole, and the rest is what lies behind it.
    unsafe {
        for start in (0..whole).step_by(WIDTH) {
            let (s, t) = (L::load(s.as_ptr().add(start)), L::load(t.as_ptr().add(start)));
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = M::add(*sums, X::load::<L>(x.add(r * stride + start)), s, t);
            }
        }
        let rest = s.len() - whole;
        if rest > 0 {
            let s = f32::load_first::<L>(s.as_ptr().add(whole), rest);
            let t = f32::load_first::<L>(t.as_ptr().add(whole), rest);
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = M::add(*sums, X::load_first::<L>(x.add(r * stride + whole), rest), s, t);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            *sum.add(r) = sums[0].sum();
            *size.add(r) = sums[1].sum();
        }
    }
}

kernel! {
    /// The sums of `sum.len()` rows that lie in one piece each, `stride` apart.
    fn fold_rows[X: Element, M: Terms](
        x: &'a [X],
        stride: usize,
        s: &'a [f32],
        t: &'a [f32],
        sum: &'a mut [f32],
        size: &'a mut [f32],
        terms: M,
    ) {
        let _ = terms;
        let rows = sum.len();
        assert!(rows == 0 || (rows - 1) * stride + s.len() <= x.len(), "fold: too short");
        assert!(t.len() == s.len() && size.len() == rows, "fold: lengths");
        let (x, sum, size) = (x.as_ptr(), sum.as_mut_ptr(), size.as_mut_ptr());
        let mut row = 0;
        while row + GROUP <= rows {
            // SAFETY: the rows from this one on were checked to lie inside.
            unsafe {
                let out = (sum.add(row), size.add(row));
                fold_group::<L, X, M, GROUP>((x.add(row * stride), stride), (s, t), out);
            }
            row += GROUP;
        }
        while row < rows {
            // SAFETY: as above.
            unsafe {
                let out = (sum.add(row), size.add(row));
                fold_group::<L, X, M, 1>((x.add(row * stride), stride), (s, t), out);
            }
            row += 1;
        }
    }
}

/// The sums of `V` vectors of columns of `s.len()` stored rows, of which `width` columns are there.
///
/// # Safety
/// `x` is readable for those columns of rows `stride` apart, `out` writable for them and again `apart` behind; `t` is as long
/// as `s`; `width` is beyond `V - 1` vectors and at most `V`.
#[inline(always)]
unsafe fn fold_vectors<L: Lanes, X: Element, M: Terms, const V: usize>(
    (x, stride): (*const X, usize),
    (s, t): (&[f32], &[f32]),
    (out, apart): (*mut f32, usize),
    width: usize,
) {
    let mut totals = [[L::splat(0.0); 2]; V];
    // SAFETY: the caller's promise.
    unsafe {
        // Short chains: where all terms have one sign, a chain's error grows with the power 3/2 of its length.
        for (chain, (s, t)) in s.chunks(CHAIN).zip(t.chunks(CHAIN)).enumerate() {
            let mut sums = [[L::splat(0.0); 2]; V];
            for (row, (s, t)) in (chain * CHAIN..).zip(s.iter().zip(t)) {
                let (s, t) = (L::splat(*s), L::splat(*t));
                let x = x.add(row * stride);
                for (vector, sums) in sums.iter_mut().enumerate() {
                    let here = x.add(vector * WIDTH);
                    let x = if width == V * WIDTH {
                        X::load::<L>(here)
                    } else {
                        X::load_first::<L>(here, width - vector * WIDTH)
                    };
                    *sums = M::add(*sums, x, s, t);
                }
            }
            for (totals, sums) in totals.iter_mut().zip(sums) {
                *totals = [totals[0].add(sums[0]), totals[1].add(sums[1])];
            }
        }
        for (vector, sums) in totals.iter().enumerate() {
            for (which, sum) in sums.iter().enumerate() {
                let out = out.add(which * apart + vector * WIDTH);
                f32::store_first::<L>(*sum, out, (width - vector * WIDTH).min(WIDTH));
            }
        }
    }
}

kernel! {
    /// As `fold_rows` for the columns of `s.len()` stored rows, each of `out`'s length / 2.
    fn fold_columns[X: Element, M: Terms](
        x: &'a [X],
        stride: usize,
        s: &'a [f32],
        t: &'a [f32],
        out: &'a mut [f32],
        terms: M,
    ) {
        let _ = terms;
        let (rows, columns) = (s.len(), out.len() / 2);
        assert!(rows == 0 || (rows - 1) * stride + columns <= x.len() && rows == t.len(), "fold: too short");
        let (x, out) = (x.as_ptr(), out.as_mut_ptr());
        let mut start = 0;
        while start < columns {
            let width = (columns - start).min(VECTORS * WIDTH);
            // SAFETY: start + width ≤ columns, which was checked to lie inside, and out has twice as many.
            unsafe {
                let (x, out) = ((x.add(start), stride), (out.add(start), columns));
                if width == VECTORS * WIDTH {
                    fold_vectors::<L, X, M, VECTORS>(x, (s, t), out, width);
                    start += width;
                } else {
                    fold_vectors::<L, X, M, 1>(x, (s, t), out, width.min(WIDTH));
                    start += width.min(WIDTH);
                }
            }
        }
    }
}

kernel! {
    /// The square roots of `values`.
    fn roots[](values: &'a mut [f32]) {
        let count = values.len();
        let values = values.as_mut_ptr();
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let root = f32::load_first::<L>(values.add(start), width).sqrt();
                f32::store_first::<L>(root, values.add(start), width);
            }
            start += WIDTH;
        }
    }
}

kernel! {
    /// The largest `|got - sum| / (unit·size + floor)`; +∞ where one is not a number.
    pub fn largest_distance[](got: &'a [f32], want: Folded<'a>, unit: f32, floor: f32) -> f32 {
        let count = got.len();
        let [sum, size] = [&*want.sum, &*want.size].map(|part| part[..count].as_ptr());
        let mut largest = L::splat(0.0);
        let limit = L::splat(f32::INFINITY);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count, the length of every slice.
            unsafe {
                let load = |values: *const f32| f32::load_first::<L>(values.add(start), width);
                let bound = load(size).fused(L::splat(unit), L::splat(floor));
                let distance = load(got.as_ptr()).sub(load(sum)).abs().div(bound);
                // Not below infinity: infinite or no number.
                largest = distance.select_less(limit, distance, limit).first(width, 0.0).max(largest);
            }
            start += WIDTH;
        }
        largest.largest()
    }
}

/// Computes a [`Folded`]; `scratch` holds at least [`fold_scratch_values`].
///
/// # Panics
/// When lengths don't fit the matrix.
pub fn fold(
    context: &Context<'_>,
    matrix: &Matrix<'_>,
    weights: Weights<'_>,
    mut out: Folded<'_>,
    scratch: &mut [f32],
) {
    match weights {
        Weights::Ones => {
            // Read, but not used.
            let ones = vec![1.0; matrix.columns];
            fold_with(context, matrix, (&ones, &ones), out.again(), scratch, Plain);
            roots(context.level, out.size);
        }
        Weights::Pair(s, t) => fold_with(context, matrix, (s, t), out, scratch, Weighted),
    }
}

fn fold_with<M: Terms + Sync>(
    context: &Context<'_>,
    matrix: &Matrix<'_>,
    (s, t): (&[f32], &[f32]),
    out: Folded<'_>,
    scratch: &mut [f32],
    terms: M,
) {
    let (rows, columns) = (matrix.rows, matrix.columns);
    assert!(s.len() == columns && t.len() == columns, "fold: weights");
    let outputs = [out.sum, out.size];
    assert!(outputs.iter().all(|output| output.len() == rows), "fold: outputs");
    matrix.check("fold");
    let level = context.level;
    if columns == 0 {
        return outputs.into_iter().for_each(|output| output.fill(0.0));
    }
    if matrix.row_stride == 1 && matrix.column_stride != 1 {
        let blocks = columns.div_ceil(BLOCK);
        let parts = Target::new(&mut scratch[..blocks * 2 * rows]);
        with_floats!(matrix.values, values: X => {
            context.pool.for_each(blocks, |block| {
                let place = block * BLOCK..columns.min((block + 1) * BLOCK);
                let start = place.start * matrix.column_stride;
                let length = (place.len() - 1) * matrix.column_stride + rows;
                let x = &values[start..start + length];
                // SAFETY: each block has a part of its own.
                let part = unsafe { parts.slice(block * 2 * rows, 2 * rows) };
                fold_columns(level, x, matrix.column_stride, &s[place.clone()], &t[place], part, terms);
            });
        });
        for (which, output) in outputs.into_iter().enumerate() {
            output.fill(0.0);
            for block in 0..blocks {
                // SAFETY: every block is done.
                add_into(level, unsafe { parts.slice((block * 2 + which) * rows, rows) }, output);
            }
        }
        return;
    }
    let [sum, size] = outputs.map(Target::new);
    with_floats!(matrix.values, values: X => {
        context.pool.for_each(rows.div_ceil(ROWS), |block| {
            let mut gathered: Vec<X> = Vec::new();
            let place = block * ROWS..rows.min((block + 1) * ROWS);
            let start = place.start * matrix.row_stride;
            let length = (place.len() - 1) * matrix.row_stride + (columns - 1) * matrix.column_stride + 1;
            let (mut x, mut stride) = (&values[start..start + length], matrix.row_stride);
            if matrix.column_stride != 1 {
                for row in 0..place.len() {
                    let row = &x[row * matrix.row_stride..];
                    gathered.extend(row.iter().step_by(matrix.column_stride.max(1)).take(columns).copied());
                }
                (x, stride) = (&gathered, columns);
            }
            // SAFETY: each row has elements of its own.
            let (sum, size) = unsafe { (sum.slice(place.start, place.len()), size.slice(place.start, place.len())) };
            fold_rows(level, x, stride, s, t, sum, size, terms);
        });
    });
}
