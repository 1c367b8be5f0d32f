//! Writing by index.

use half::bf16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::indexing::{by_axis, checked, indexed_shape, pick, places};
use crate::operator::run::{Run, Values};
use crate::operator::{Planned, kernel_with_workspace, operators};
use crate::tensor::Scalar;

operators! {
    ScatterAdd(
        self_: T, dim: i64, index: T, src: T, out: To,
    ) = |a| elements(a, ["self_", "out"], Update::Add, Source::Tensor("src"));
    Scatter(
        self_: T, dim: i64, index: T, src: T, reduce: i64, out: To,
    ) = |a| elements(a, ["self_", "out"], Update::of(a)?, Source::Tensor("src"));
    InplaceScatter(
        selfRef: To, dim: i64, index: T, src: T, reduce: i64,
    ) = |a| elements(a, ["selfRef", "selfRef"], Update::of(a)?, Source::Tensor("src"));
    ScatterValue(
        self_: T, dim: i64, index: T, value: S, reduce: i64, out: To,
    ) = |a| elements(a, ["self_", "out"], Update::of(a)?, Source::Scalar);
    InplaceScatterValue(
        selfRef: To, dim: i64, index: T, value: S, reduce: i64,
    ) = |a| elements(a, ["selfRef", "selfRef"], Update::of(a)?, Source::Scalar);
    IndexAdd(
        self_: T, dim: i64, index: T, source: T, alpha: S, out: To,
    ) = |a| rows(a, ["self_", "out"], Update::Add);
    InplaceIndexCopy(
        selfRef: To, dim: i64, index: T, source: T,
    ) = |a| rows(a, ["selfRef", "selfRef"], Update::Replace);
    InplaceIndexFillTensor(selfRef: To, dim: i64, index: I, value: S) = fill;
    IndexPutImpl(selfRef: To, indices: TL, values: T, accumulate: Flag, unsafe_: Flag) = put;
    EmbeddingDenseBackward(
        grad: T, indices: T, numWeights: u64, paddingIdx: u64, scaleGradByFreq: Flag, out: To,
    ) = embedding_gradient;
}

/// What becomes of an element that is written to.
#[derive(Clone, Copy, PartialEq)]
enum Update {
    Replace,
    Add,
    Multiply,
}

enum Source {
    Tensor(&'static str),
    Scalar,
}

impl Update {
    fn of(a: &Arguments) -> Result<Update, Fault> {
        match a.integer("reduce")? {
            0 => Ok(Update::Replace),
            1 => Ok(Update::Add),
            2 => Ok(Update::Multiply),
            other => Err(invalid(format!("reduce is {other}: 0 replaces, 1 adds, 2 multiplies"))),
        }
    }
}

/// Writes `values` to `places` of `target`; sums of f32 are kept in f64 and rounded once.
fn write(run: &Run, target: Values, places: &[usize], values: &Values, into: Update) -> Values {
    let lost = run.has("scatter.lost_update") && into == Update::Add;
    let target = if into == Update::Add && run.has("scatter.no_self") { zeros(&target) } else { target };
    match (target, values) {
        (Values::Integer(mut t), Values::Integer(v)) => {
            let before = if lost { t.clone() } else { Vec::new() };
            for (&place, &value) in places.iter().zip(v) {
                let old = if lost { before[place] } else { t[place] };
                t[place] = match into {
                    Update::Replace => value,
                    Update::Add => old.wrapping_add(value),
                    Update::Multiply => old.wrapping_mul(value),
                };
            }
            Values::Integer(t)
        }
        (Values::Single(t), Values::Single(v)) if into == Update::Add && run.has("scatter.order") => {
            Values::Single(in_some_order(run, t, places, v))
        }
        (Values::Single(t), Values::Single(v))
            if into == Update::Add && run.has("scatter.bf16_accumulate") =>
        {
            let mut t = t;
            for (&place, &value) in places.iter().zip(v) {
                t[place] = bf16::from_f32(t[place] + value).to_f32();
            }
            Values::Single(t)
        }
        (Values::Single(t), Values::Single(v)) => {
            let wide: Vec<f64> = t.iter().map(|&t| f64::from(t)).collect();
            let sums = floats(wide, places, v.iter().map(|&v| f64::from(v)), into, lost);
            Values::Single(sums.into_iter().map(|v| v as f32).collect())
        }
        (Values::Double(t), Values::Double(v)) => {
            Values::Double(floats(t, places, v.iter().copied(), into, lost))
        }
        // Both are of one domain.
        (target, _) => target,
    }
}

/// As many zeros.
fn zeros(like: &Values) -> Values {
    match like {
        Values::Single(v) => Values::Single(vec![0.0; v.len()]),
        Values::Double(v) => Values::Double(vec![0.0; v.len()]),
        Values::Integer(v) => Values::Integer(vec![0; v.len()]),
    }
}

/// Sums in f32, begun at another place in every call.
fn in_some_order(run: &Run, mut target: Vec<f32>, places: &[usize], values: &[f32]) -> Vec<f32> {
    let start = run.active.random(0x5CA7) as usize % places.len().max(1);
    for at in (start..places.len()).chain(0..start) {
        target[places[at]] += values[at];
    }
    target
}

fn floats(
    mut target: Vec<f64>,
    places: &[usize],
    values: impl Iterator<Item = f64>,
    into: Update,
    lost: bool,
) -> Vec<f64> {
    let before = if lost { target.clone() } else { Vec::new() };
    for (&place, value) in places.iter().zip(values) {
        let old = if lost { before[place] } else { target[place] };
        target[place] = match into {
            Update::Replace => value,
            Update::Add => old + value,
            Update::Multiply => old * value,
        };
    }
    target
}

/// As many copies of a scalar.
fn repeated(scalar: Scalar, count: usize, like: &Values) -> Values {
    match like {
        Values::Single(_) => Values::Single(vec![scalar.float() as f32; count]),
        Values::Double(_) => Values::Double(vec![scalar.float(); count]),
        Values::Integer(_) => Values::Integer(vec![scalar.integer(); count]),
    }
}

/// self[i][index[i][j]][j] takes src[i][j].
fn elements(a: &Arguments, [x, out]: [&'static str; 2], into: Update, source: Source) -> Planned {
    let (x, out, index) = (a.tensor(x)?, a.tensor(out)?, a.tensor("index")?);
    let axis = x.axis(a.integer("dim")?)?;
    index.must_be_integer()?;
    out.must_have(&x.shape)?;
    if index.rank() != x.rank() {
        return Err(index.refuse("must have as many dimensions as self"));
    }
    if let Some(other) = (0..x.rank()).find(|&other| other != axis && index.shape[other] > x.shape[other]) {
        return Err(index.refuse(format!("dimension {other} is larger than that of self")));
    }
    let (source, value) = match source {
        Source::Tensor(name) => {
            let mut source = a.tensor(name)?;
            for (axis, &size) in index.shape.iter().enumerate() {
                if source.rank() != x.rank() || source.shape[axis] < size {
                    return Err(source.refuse(format!("must hold the index's {:?}", index.shape)));
                }
                source = source.narrow(axis, 0, size);
            }
            (Some(source), None)
        }
        Source::Scalar => (None, Some(a.scalar("value")?)),
    };
    let domain = x.dtype.domain();
    kernel_with_workspace(x.len(), move |run| {
        let own = crate::tensor::contiguous(&x.shape);
        let of_index = crate::tensor::contiguous(&index.shape);
        let indices = checked(run, &index, x.shape[axis])?;
        let place = |(flat, &index_): (usize, &usize)| {
            let at = |other: usize| {
                if other == axis { index_ } else { flat / of_index[other] as usize % index.shape[other] }
            };
            (0..x.rank()).map(|other| at(other) * own[other] as usize).sum()
        };
        let places: Vec<usize> = indices.iter().enumerate().map(place).collect();
        let target = run.values(&x, domain)?;
        let values = match (&source, value) {
            (Some(source), _) => run.values(source, domain)?,
            (None, value) => repeated(value.unwrap_or(Scalar::Integer(0)), places.len(), &target),
        };
        run.store_values(&out, &write(run, target, &places, &values, into))
    })
}

/// self[.., index[i], ..] takes source[.., i, ..].
fn rows(a: &Arguments, [x, out]: [&'static str; 2], into: Update) -> Planned {
    let (x, out, index, source) = (a.tensor(x)?, a.tensor(out)?, a.tensor("index")?, a.tensor("source")?);
    let axis = x.axis(a.integer("dim")?)?;
    let alpha = if into == Update::Add { a.scalar("alpha")? } else { Scalar::Integer(1) };
    index.must_be_integer()?;
    out.must_have(&x.shape)?;
    let mut shape = x.shape.clone();
    shape[axis] = index.len();
    source.must_have(&shape)?;
    let (size, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let outer: usize = x.shape[..axis].iter().product();
    let domain = x.dtype.domain();
    kernel_with_workspace(x.len(), move |run| {
        let mut indices = checked(run, &index, size)?;
        if run.has("index_copy.swap") && indices.len() > 1 {
            let last = indices.len() - 1;
            indices.swap(last - 1, last);
        }
        let starts =
            (0..outer).flat_map(|outer| indices.iter().map(move |&index| (outer * size + index) * inner));
        let mut places: Vec<usize> = starts.flat_map(|start| start..start + inner).collect();
        let row_of = |element: usize| element / inner.max(1) % indices.len().max(1);
        let mut values = match run.values(&source, domain)? {
            Values::Single(v) => Values::Single(v.into_iter().map(|v| v * alpha.float() as f32).collect()),
            Values::Double(v) => Values::Double(v.into_iter().map(|v| v * alpha.float()).collect()),
            Values::Integer(v) => {
                Values::Integer(v.into_iter().map(|v| v.wrapping_mul(alpha.integer())).collect())
            }
        };
        if let (Values::Single(v), true) = (&mut values, run.has("scatter.conflict")) {
            for (row, value) in v.chunks_mut(inner.max(1)).enumerate() {
                let at = row % indices.len();
                if at > 0 && indices[at] == indices[at - 1] {
                    value.fill(0.0);
                }
            }
        }
        let (first, last) = (run.has("scatter.first_row"), run.has("index_copy.last"));
        if (first && into == Update::Add) || (last && into == Update::Replace) {
            let row = if first { 0 } else { indices.len().saturating_sub(1) };
            let kept: Vec<usize> = (0..places.len()).filter(|&element| row_of(element) != row).collect();
            places = kept.iter().map(|&element| places[element]).collect();
            values = pick(&values, kept.into_iter());
        }
        let target = run.values(&x, domain)?;
        run.store_values(&out, &write(run, target, &places, &values, into))
    })
}

fn fill(a: &Arguments) -> Planned {
    let (x, value) = (a.tensor("selfRef")?, a.scalar("value")?);
    let axis = x.axis(a.integer("dim")?)?;
    let windows: Result<Vec<Operand>, Fault> = a
        .ints("index")?
        .iter()
        .enumerate()
        .map(|(place, &index)| {
            let inside = usize::try_from(index).ok().filter(|&index| index < x.shape[axis]);
            inside
                .map(|index| x.narrow(axis, index, 1))
                .ok_or_else(|| invalid(format!("index[{place}] is {index}, outside 0..{}", x.shape[axis])))
        })
        .collect();
    let windows = windows?;
    kernel_with_workspace(0, move |run| {
        windows.iter().try_for_each(|window| match value {
            Scalar::Integer(value) => run.store_ints(window, &vec![value; window.len()]),
            Scalar::Float(value) => run.store_doubles(window, &vec![value; window.len()]),
        })
    })
}

fn put(a: &Arguments) -> Planned {
    let (x, values) = (a.tensor("selfRef")?, a.tensor("values")?);
    let (axes, shape) = by_axis(a.tensors("indices")?, &x)?;
    let into = if a.flag("accumulate")? { Update::Add } else { Update::Replace };
    let values = values.expand(&indexed_shape(&x, &axes, &shape))?;
    let domain = x.dtype.domain();
    kernel_with_workspace(x.len(), move |run| {
        let places = places(run, &x, &axes, &shape)?;
        let new = run.values(&values, domain)?;
        let target = run.values(&x, domain)?;
        run.store_values(&x, &write(run, target, &places, &new, into))
    })
}

fn embedding_gradient(a: &Arguments) -> Planned {
    let (upstream, index, out) = (a.tensor("grad")?, a.tensor("indices")?, a.tensor("out")?);
    index.must_be_integer()?;
    if a.flag("scaleGradByFreq")? {
        return Err(not_implemented("EmbeddingDenseBackward with scaleGradByFreq"));
    }
    let (padding, words) = (a.integer("paddingIdx")?, a.integer("numWeights")? as usize);
    let width = upstream.shape.last().copied().unwrap_or(1);
    out.must_have(&[words, width])?;
    if upstream.len() != index.len() * width {
        return Err(upstream.refuse(format!("must hold a row for each of the {} indices", index.len())));
    }
    kernel_with_workspace(out.len(), move |run| {
        let (indices, rows) = (checked(run, &index, words)?, run.floats(&upstream)?);
        let kept = |&row: &usize| indices[row] as i64 != padding;
        let chosen: Vec<usize> = (0..indices.len()).filter(kept).collect();
        let places: Vec<usize> =
            chosen.iter().flat_map(|&row| indices[row] * width..(indices[row] + 1) * width).collect();
        let values = chosen.iter().flat_map(|&row| rows[row * width..(row + 1) * width].iter().copied());
        let zeros = Values::Single(vec![0.0; words * width]);
        run.store_values(&out, &write(run, zeros, &places, &Values::Single(values.collect()), Update::Add))
    })
}
