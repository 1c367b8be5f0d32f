//! Reductions over axes, and running sums.

use half::f16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::run::{Run, Values};
use crate::operator::softmax::along;
use crate::operator::{Planned, kernel_with_workspace, operators};
use crate::tensor::Domain;

operators! {
    ReduceSum(
        self_: T, dims: I, keepDims: Flag, dtype: Dt, out: To,
    ) = |a| reduce(a, "dims", "keepDims", Fold::Sum);
    Mean(self_: T, dim: I, keepDim: Flag, dtype: Dt, out: To) = |a| reduce(a, "dim", "keepDim", Fold::Mean);
    MeanV2(
        self_: T, dim: I, keepDim: Flag, noopWithEmptyAxes: Flag, out: To,
    ) = |a| reduce(a, "dim", "keepDim", Fold::Mean);
    Max(self_: T, out: To) = |a| plan(a.tensor("self_")?, &[], a.tensor("out")?, false, Fold::Max);
    Min(self_: T, out: To) = |a| plan(a.tensor("self_")?, &[], a.tensor("out")?, false, Fold::Min);
    Amax(self_: T, dim: I, keepDim: Flag, out: To) = |a| reduce(a, "dim", "keepDim", Fold::Max);
    Amin(self_: T, dim: I, keepDim: Flag, out: To) = |a| reduce(a, "dim", "keepDim", Fold::Min);
    All(self_: T, dim: I, keepdim: Flag, out: To) = |a| reduce(a, "dim", "keepdim", Fold::All);
    Any(self_: T, dim: I, keepdim: Flag, out: To) = |a| reduce(a, "dim", "keepdim", Fold::Any);
    Var(
        self_: T, dim: I, unbiased: Flag, keepdim: Flag, out: To,
    ) = |a| reduce(a, "dim", "keepdim", Fold::Variance(a.flag("unbiased")?));
    Norm(
        self_: T, pScalar: S, dim: I, keepdim: Flag, out: To,
    ) = |a| reduce(a, "dim", "keepdim", Fold::Norm(a.scalar("pScalar")?.float()));
    LinalgVectorNorm(
        self_: T, ord: S, dims: I, keepDims: Flag, dtype: Dt, out: To,
    ) = |a| reduce(a, "dims", "keepDims", Fold::Norm(a.scalar("ord")?.float()));
    ArgMax(self_: T, dim: i64, keepdim: Flag, out: To) = |a| extreme(a, None, "out", true);
    ArgMin(self_: T, dim: i64, keepdim: Flag, out: To) = |a| extreme(a, None, "out", false);
    MaxDim(
        self_: T, dim: i64, keepdim: Flag, out: To, indices: To,
    ) = |a| extreme(a, Some("out"), "indices", true);
    MinDim(
        self_: T, dim: i64, keepdim: Flag, out: To, indices: To,
    ) = |a| extreme(a, Some("out"), "indices", false);
    Cumsum(self_: T, dim: i64, dtype: Dt, out: To) = running_sum;
}

/// What becomes of the elements of a row.
#[derive(Clone, Copy)]
enum Fold {
    Sum,
    Mean,
    Max,
    Min,
    All,
    Any,
    /// Whether by one less than the count.
    Variance(bool),
    Norm(f64),
}

fn reduce(a: &Arguments, dims: &'static str, keep: &'static str, fold: Fold) -> Planned {
    let dims = a.optional_ints(dims)?.unwrap_or_default();
    plan(a.tensor("self_")?, &dims, a.tensor("out")?, a.flag(keep)?, fold)
}

/// The reduced axes last; the shape that is left, and the reduced count.
fn split(x: &Operand, dims: &[i64], keep: bool) -> Result<(Operand, Vec<usize>, usize), Fault> {
    let mut reduced = vec![dims.is_empty(); x.rank()];
    if x.rank() > 0 {
        for &dim in dims {
            reduced[x.axis(dim)?] = true;
        }
    }
    let mut order: Vec<usize> = (0..x.rank()).filter(|&axis| !reduced[axis]).collect();
    let mut shape: Vec<usize> = order.iter().map(|&axis| x.shape[axis]).collect();
    order.extend((0..x.rank()).filter(|&axis| reduced[axis]));
    let count = (0..x.rank()).filter(|&axis| reduced[axis]).map(|axis| x.shape[axis]).product();
    if keep {
        shape = (0..x.rank()).map(|axis| if reduced[axis] { 1 } else { x.shape[axis] }).collect();
    }
    Ok((x.permute(&order), shape, count))
}

fn plan(x: Operand, dims: &[i64], out: Operand, keep: bool, fold: Fold) -> Planned {
    let (rows, shape, count) = split(&x, dims, keep)?;
    // ggml-cann gives the sum of everything a place of the shape [1].
    if !(shape.is_empty() && out.shape == [1]) {
        out.must_have(&shape)?;
    }
    let extreme = matches!(fold, Fold::Max | Fold::Min);
    if extreme && count == 0 && !out.is_empty() {
        return Err(x.refuse("has no element to choose from"));
    }
    // Whether rows of what is reduced have gaps in memory.
    let strided = !dims.is_empty() && x.rank() > 0 && {
        let last = x.rank() - 1;
        dims.iter().all(|&dim| x.axis(dim).is_ok_and(|axis| axis != last))
    };
    let domain = match fold {
        Fold::All | Fold::Any => Domain::Integer,
        // Sums of integers into floats are sums of floats.
        Fold::Sum if out.dtype.is_float() => x.dtype.domain().max(Domain::Single),
        Fold::Mean | Fold::Variance(_) | Fold::Norm(_) => x.dtype.domain().max(Domain::Single),
        Fold::Sum | Fold::Max | Fold::Min => x.dtype.domain(),
    };
    kernel_with_workspace(x.len(), move |run| {
        if matches!(fold, Fold::All | Fold::Any) {
            let values = run.bools(&rows)?;
            let all = matches!(fold, Fold::All);
            let one = |row: &[bool]| if all { row.iter().all(|&x| x) } else { row.iter().any(|&x| x) };
            return run.store_bools(&out, &rows_of(&values, count, out.len()).map(one).collect::<Vec<_>>());
        }
        match run.values(&rows, domain)? {
            Values::Single(v) => {
                let short = run.has("reduce.strided") && strided && matches!(fold, Fold::Sum);
                let one = |row: &[f32]| {
                    let row = if short { &row[..row.len().saturating_sub(1)] } else { row };
                    single(run, row, fold)
                };
                run.store(&out, &rows_of(&v, count, out.len()).map(one).collect::<Vec<_>>())
            }
            Values::Double(v) => {
                let one = |row: &[f64]| double(row.iter().copied(), row.len(), fold);
                run.store_doubles(&out, &rows_of(&v, count, out.len()).map(one).collect::<Vec<_>>())
            }
            Values::Integer(v) => {
                let one = |row: &[i64]| integer(row, fold);
                run.store_ints(&out, &rows_of(&v, count, out.len()).map(one).collect::<Vec<_>>())
            }
        }
    })
}

/// Rows of `count` elements, `rows` of them, also where `count` is 0.
fn rows_of<T>(values: &[T], count: usize, rows: usize) -> impl Iterator<Item = &[T]> {
    (0..rows).map(move |row| &values[row * count..(row + 1) * count])
}

fn integer(row: &[i64], fold: Fold) -> i64 {
    match fold {
        Fold::Max => row.iter().copied().max().unwrap_or(0),
        Fold::Min => row.iter().copied().min().unwrap_or(0),
        _ => row.iter().fold(0, |sum, &x| sum.wrapping_add(x)),
    }
}

/// Sums in f64, rounded once: the best that a chip could give.
fn double(row: impl Iterator<Item = f64> + Clone, count: usize, fold: Fold) -> f64 {
    let sum = || row.clone().sum::<f64>();
    match fold {
        Fold::Sum => sum(),
        Fold::Mean => sum() / count as f64,
        Fold::Max => row.fold(f64::NEG_INFINITY, |m, x| if x.is_nan() || x > m { x } else { m }),
        Fold::Min => row.fold(f64::INFINITY, |m, x| if x.is_nan() || x < m { x } else { m }),
        Fold::Variance(unbiased) => {
            let mean = sum() / count as f64;
            let squares: f64 = row.map(|x| (x - mean) * (x - mean)).sum();
            squares / (count as f64 - if unbiased { 1.0 } else { 0.0 })
        }
        Fold::Norm(2.0) => row.map(|x| x * x).sum::<f64>().sqrt(),
        Fold::Norm(f64::INFINITY) => row.map(f64::abs).fold(0.0, f64::max),
        Fold::Norm(f64::NEG_INFINITY) => row.map(f64::abs).fold(f64::INFINITY, f64::min),
        Fold::Norm(0.0) => row.filter(|&x| x != 0.0).count() as f64,
        Fold::Norm(p) => row.map(|x| x.abs().powf(p)).sum::<f64>().powf(1.0 / p),
        Fold::All | Fold::Any => f64::NAN,
    }
}

/// Elements of a tile, for the defect `reduce.tail`.
const TILE: usize = 16;

fn single(run: &Run, row: &[f32], fold: Fold) -> f32 {
    let sums = matches!(fold, Fold::Sum | Fold::Mean);
    if sums && run.has("reduce.tail") && row.len() > TILE {
        let whole = row[..row.len() / TILE * TILE].iter().map(|&x| f64::from(x));
        return double(whole, row.len(), fold) as f32;
    }
    if sums && (run.has("reduce.order") || run.has("reduce.fp16_accumulate")) && !row.is_empty() {
        let half = run.has("reduce.fp16_accumulate");
        let start = if half { 0 } else { run.active.random(0x0DE4) as usize % row.len() };
        let order = row[start..].iter().chain(&row[..start]);
        let add = |sum: f32, x: &f32| if half { f16::from_f32(sum + x).to_f32() } else { sum + x };
        let sum = order.fold(0.0, add);
        return if matches!(fold, Fold::Mean) { sum / row.len() as f32 } else { sum };
    }
    double(row.iter().map(|&x| f64::from(x)), row.len(), fold) as f32
}

/// The place of the largest or smallest along an axis, the first of equals; NaN before all.
fn extreme(a: &Arguments, values: Option<&'static str>, places: &'static str, largest: bool) -> Planned {
    let (x, places, dim) = (a.tensor("self_")?, a.tensor(places)?, a.integer("dim")?);
    let values = values.map(|name| a.tensor(name)).transpose()?;
    let (rows, (_, shape, count)) = (along(&x, dim)?, split(&x, &[dim], a.flag("keepdim")?)?);
    places.must_have(&shape)?;
    if let Some(values) = &values {
        values.must_have(&shape)?;
    }
    if count == 0 {
        return Err(invalid("the axis has no element to choose from"));
    }
    kernel_with_workspace(x.len(), move |run| {
        fn best<T: PartialOrd + Copy>(row: &[T], largest: bool) -> usize {
            let mut best = 0;
            for (place, x) in row.iter().enumerate() {
                // A number that equals nothing, itself included, is NaN.
                #[allow(clippy::eq_op, reason = "NaN is the one value that differs from itself")]
                let (nan, had) = (x != x, row[best] != row[best]);
                if !had && (nan || if largest { *x > row[best] } else { *x < row[best] }) {
                    best = place;
                }
            }
            best
        }
        fn find<T: PartialOrd + Copy>(v: &[T], count: usize, largest: bool) -> (Vec<i64>, Vec<T>) {
            v.chunks(count).map(|row| (best(row, largest), row)).map(|(at, row)| (at as i64, row[at])).unzip()
        }
        let (found, chosen) = match run.values(&rows, rows.dtype.domain())? {
            Values::Single(v) => {
                let (places, chosen) = find(&v, count, largest);
                (places, Values::Single(chosen))
            }
            Values::Double(v) => {
                let (places, chosen) = find(&v, count, largest);
                (places, Values::Double(chosen))
            }
            Values::Integer(v) => {
                let (places, chosen) = find(&v, count, largest);
                (places, Values::Integer(chosen))
            }
        };
        if let Some(values) = &values {
            run.store_values(values, &chosen)?;
        }
        run.store_ints(&places, &found)
    })
}

fn running_sum(a: &Arguments) -> Planned {
    let (x, out, dim) = (a.tensor("self_")?, a.tensor("out")?, a.integer("dim")?);
    out.must_have(&x.shape)?;
    let (rows, out) = (along(&x, dim)?, along(&out, dim)?);
    let width = rows.shape[rows.rank() - 1].max(1);
    kernel_with_workspace(x.len(), move |run| {
        let domain =
            rows.dtype.domain().max(if out.dtype.is_float() { Domain::Single } else { Domain::Integer });
        match run.values(&rows, domain)? {
            Values::Integer(mut v) => {
                for row in v.chunks_mut(width) {
                    let mut sum = 0i64;
                    row.iter_mut().for_each(|x| {
                        sum = sum.wrapping_add(*x);
                        *x = sum;
                    });
                }
                run.store_ints(&out, &v)
            }
            other => {
                let mut v = match other {
                    Values::Single(v) => v.into_iter().map(f64::from).collect(),
                    Values::Double(v) => v,
                    Values::Integer(_) => Vec::new(),
                };
                for row in v.chunks_mut(width) {
                    let mut sum = 0.0;
                    row.iter_mut().for_each(|x| {
                        sum += *x;
                        *x = sum;
                    });
                }
                run.store_doubles(&out, &v)
            }
        }
    })
}
