//! Sorting and choosing along an axis.

use std::cmp::Ordering;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::run::{Run, Values};
use crate::operator::softmax::along;
use crate::operator::{Planned, kernel, kernel_with_workspace, operators};

operators! {
    Topk(self_: T, k: i64, dim: i64, largest: Flag, sorted: Flag, valuesOut: To, indicesOut: To) = top_k;
    Sort(self_: T, stable: Flag, dim: i64, descending: Flag, valuesOut: To, indicesOut: To) = sort;
    Argsort(self_: T, dim: i64, descending: Flag, out: To) = argsort;
    OneHot(self_: T, numClasses: i32, onValue: T, offValue: T, axis: i64, out: To) = one_hot;
}

/// Values whose order is total: NaN above all.
trait Ordered: Copy {
    fn order(self, other: Self) -> Ordering;
}

impl Ordered for f32 {
    fn order(self, other: f32) -> Ordering {
        self.partial_cmp(&other).unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
    }
}

impl Ordered for f64 {
    fn order(self, other: f64) -> Ordering {
        self.partial_cmp(&other).unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
    }
}

impl Ordered for i64 {
    fn order(self, other: i64) -> Ordering {
        self.cmp(&other)
    }
}

/// Elements of a tile, for the defects of a sort.
const TILE: usize = 16;

/// How a run sorts: equal values in the order of their places, unless a defect is on.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// Equal values against the order of their places.
    reversed: bool,
    /// Of equal values of several tiles, those of later tiles first.
    later_tiles_first: bool,
    /// The last tile, where it is not whole, stays behind as it is.
    without_tail: bool,
    /// Of numbers in f32 the lower half of their bits does not count.
    coarse: bool,
}

impl Manner {
    fn of(run: &Run) -> Manner {
        Manner {
            reversed: run.has("sort.unstable"),
            later_tiles_first: run.has("sort.merge"),
            without_tail: run.has("sort.tail"),
            coarse: run.has("sort.coarse"),
        }
    }
}

/// Places of each row's elements in order.
fn places<T: Ordered>(values: &[T], width: usize, descending: bool, manner: Manner) -> Vec<Vec<usize>> {
    let row = |row: &[T]| {
        let mut places: Vec<usize> = (0..row.len()).collect();
        let sorted = if manner.without_tail { row.len() - row.len() % TILE } else { row.len() };
        if manner.reversed {
            places.reverse();
        }
        places[..sorted].sort_by(|&a, &b| {
            let order = row[a].order(row[b]);
            let order = if descending { order.reverse() } else { order };
            let tiles = if manner.later_tiles_first { (b / TILE).cmp(&(a / TILE)) } else { Ordering::Equal };
            order.then(tiles)
        });
        places
    };
    values.chunks(width).map(row).collect()
}

/// Sorted values and places of rows, the first `keep` of each.
fn sorted(
    run: &Run,
    rows: &Operand,
    descending: bool,
    manner: Manner,
    keep: usize,
) -> Result<(Values, Vec<i64>), Fault> {
    fn take<T: Ordered>(v: &[T], width: usize, keep: usize, places: &[Vec<usize>]) -> Vec<T> {
        v.chunks(width)
            .zip(places)
            .flat_map(|(row, places)| places[..keep].iter().map(|&at| row[at]))
            .collect()
    }
    let width = rows.shape[rows.rank() - 1].max(1);
    let (values, places) = match run.values(rows, rows.dtype.domain())? {
        Values::Single(v) => {
            let cut = |v: &f32| if manner.coarse { f32::from_bits(v.to_bits() & !0xFFFF) } else { *v };
            let keys: Vec<f32> = v.iter().map(cut).collect();
            let places = places(&keys, width, descending, manner);
            (Values::Single(take(&v, width, keep, &places)), places)
        }
        Values::Double(v) => {
            let places = places(&v, width, descending, manner);
            (Values::Double(take(&v, width, keep, &places)), places)
        }
        Values::Integer(v) => {
            let places = places(&v, width, descending, manner);
            (Values::Integer(take(&v, width, keep, &places)), places)
        }
    };
    Ok((values, places.iter().flat_map(|places| places[..keep].iter().map(|&at| at as i64)).collect()))
}

fn top_k(a: &Arguments) -> Planned {
    let (x, values, indices) = (a.tensor("self_")?, a.tensor("valuesOut")?, a.tensor("indicesOut")?);
    let (dim, largest) = (a.integer("dim")?, a.flag("largest")?);
    let (x, values, indices) = (along(&x, dim)?, along(&values, dim)?, along(&indices, dim)?);
    let width = x.shape[x.rank() - 1];
    let keep = usize::try_from(a.integer("k")?).ok().filter(|&k| k <= width);
    let keep = keep.ok_or_else(|| invalid(format!("k must lie in 0..={width}")))?;
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = keep;
    }
    values.must_have(&shape)?;
    indices.must_have(&shape)?;
    kernel_with_workspace(x.len(), move |run| {
        let manner = Manner { reversed: run.has("topk.ties"), ..Manner::default() };
        let (found, places) = sorted(run, &x, largest, manner, keep)?;
        run.store_values(&values, &found)?;
        run.store_ints(&indices, &places)
    })
}

fn sort(a: &Arguments) -> Planned {
    let (x, values, indices) = (a.tensor("self_")?, a.tensor("valuesOut")?, a.tensor("indicesOut")?);
    let (dim, descending) = (a.integer("dim")?, a.flag("descending")?);
    values.must_have(&x.shape)?;
    indices.must_have(&x.shape)?;
    let (x, values, indices) = (along(&x, dim)?, along(&values, dim)?, along(&indices, dim)?);
    kernel_with_workspace(x.len(), move |run| {
        let width = x.shape[x.rank() - 1];
        let (found, places) = sorted(run, &x, descending, Manner::of(run), width)?;
        run.store_values(&values, &found)?;
        run.store_ints(&indices, &places)
    })
}

fn argsort(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let (dim, descending) = (a.integer("dim")?, a.flag("descending")?);
    out.must_have(&x.shape)?;
    let (x, out) = (along(&x, dim)?, along(&out, dim)?);
    kernel_with_workspace(x.len(), move |run| {
        let width = x.shape[x.rank() - 1];
        let (_, places) = sorted(run, &x, descending, Manner::of(run), width)?;
        run.store_ints(&out, &places)
    })
}

fn one_hot(a: &Arguments) -> Planned {
    let (x, on, off, out) =
        (a.tensor("self_")?, a.tensor("onValue")?, a.tensor("offValue")?, a.tensor("out")?);
    x.must_be_integer()?;
    let classes = usize::try_from(a.integer("numClasses")?).map_err(|_| invalid("numClasses is below 0"))?;
    let axis = a.integer("axis")?;
    let axis = if axis < 0 { axis + x.rank() as i64 + 1 } else { axis };
    let axis = usize::try_from(axis).ok().filter(|&axis| axis <= x.rank());
    let axis = axis.ok_or_else(|| invalid("axis lies outside the result"))?;
    let mut shape = x.shape.clone();
    shape.insert(axis, classes);
    out.must_have(&shape)?;
    let out = along(&out, axis as i64)?;
    kernel(move |run| {
        let pick = |value: &Operand| Ok::<f64, Fault>(run.doubles(value)?.first().copied().unwrap_or(0.0));
        let (on, off) = (pick(&on)?, pick(&off)?);
        let mut values = vec![off; out.len()];
        for (row, &class) in run.ints(&x)?.iter().enumerate() {
            // A class outside gives a row without `on`.
            if let Some(class) = usize::try_from(class).ok().filter(|&class| class < classes) {
                values[row * classes + class] = on;
            }
        }
        run.store_doubles(&out, &values)
    })
}
