//! Reading by index.

use crate::code;
use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::run::{Run, Values};
use crate::operator::softmax::along;
use crate::operator::{Planned, kernel, operators};

operators! {
    Embedding(weight: T, indices: T, out: To) = |a| take(a, "weight", "indices", 0);
    GatherV2(self_: T, dim: i64, index: T, out: To) = |a| take(a, "self_", "index", a.integer("dim")?);
    IndexSelect(self_: T, dim: i64, index: T, out: To) = |a| take(a, "self_", "index", a.integer("dim")?);
    Gather(self_: T, dim: i64, index: T, out: To) = gather;
    Index(self_: T, indices: TL, out: To) = index;
    SWhere(condition: T, self_: T, other: T, out: To) = choose;
    MaskedSelect(self_: T, mask: T, out: To) = masked_select;
    Nonzero(self_: T, out: To) = nonzero;
}

/// An index that lies outside, as a vector core tells it.
pub fn outside(name: &str, place: usize, index: i64, size: usize) -> Fault {
    let text = format!("{name}[{place}] is {index}, outside 0..{size}");
    Fault::new(code::VECTOR_CORE_EXCEPTION, text)
}

/// Indices, each within 0..size.
pub fn checked(run: &Run, index: &Operand, size: usize) -> Result<Vec<usize>, Fault> {
    let place = |(place, index_): (usize, &i64)| {
        let inside = usize::try_from(*index_).ok().filter(|&index| index < size);
        inside.ok_or_else(|| outside(&index.label(), place, *index_, size))
    };
    run.ints(index)?.iter().enumerate().map(place).collect()
}

/// The chosen elements, in the domain of the values.
pub fn pick(values: &Values, places: impl Iterator<Item = usize>) -> Values {
    match values {
        Values::Single(v) => Values::Single(places.map(|place| v[place]).collect()),
        Values::Double(v) => Values::Double(places.map(|place| v[place]).collect()),
        Values::Integer(v) => Values::Integer(places.map(|place| v[place]).collect()),
    }
}

/// The last index of a call reads the row before its own.
fn spoil(run: &Run, indices: &mut [usize]) {
    if run.has("gather.off_by_one")
        && let Some(last) = indices.last_mut()
    {
        *last = last.saturating_sub(1);
    }
}

/// Indices of a tile.
const TILE: usize = 16;

/// How many of some indices are read; those behind them give zeros.
fn whole(run: &Run, indices: usize) -> usize {
    if run.has("gather.tail") && indices > TILE { indices / TILE * TILE } else { indices }
}

/// Zeros in some places.
fn clear(values: &mut Values, cleared: impl Fn(usize) -> bool) {
    fn set<T: Default>(values: &mut [T], cleared: impl Fn(usize) -> bool) {
        values.iter_mut().enumerate().filter(|(at, _)| cleared(*at)).for_each(|(_, v)| *v = T::default());
    }
    match values {
        Values::Single(v) => set(v, cleared),
        Values::Double(v) => set(v, cleared),
        Values::Integer(v) => set(v, cleared),
    }
}

/// out[.., i.., ..] = self[.., index[i..], ..].
fn take(a: &Arguments, table: &'static str, index: &'static str, dim: i64) -> Planned {
    let (table, index, out) = (a.tensor(table)?, a.tensor(index)?, a.tensor("out")?);
    index.must_be_integer()?;
    let axis = table.axis(dim)?;
    let mut shape = table.shape[..axis].to_vec();
    shape.extend(&index.shape);
    shape.extend(&table.shape[axis + 1..]);
    out.must_have(&shape)?;
    let outer: usize = table.shape[..axis].iter().product();
    let (size, inner) = (table.shape[axis], table.shape[axis + 1..].iter().product::<usize>());
    kernel(move |run| {
        let mut indices = checked(run, &index, size)?;
        spoil(run, &mut indices);
        let read = whole(run, indices.len());
        if outer == 1 && out.is_contiguous() && axis == 0 {
            // Rows of a table: only those that are asked for are read.
            let row = |place: usize| table.narrow(0, indices[place], 1);
            for place in 0..indices.len() {
                let row = row(place);
                let target = out.view(
                    row.shape.clone(),
                    crate::tensor::contiguous(&row.shape),
                    out.offset + (place * inner) as i64,
                );
                let mut values = run.values(&row, table.dtype.domain())?;
                clear(&mut values, |_| place >= read);
                run.store_values(&target, &values)?;
            }
            return Ok(());
        }
        let values = run.values(&table, table.dtype.domain())?;
        let places =
            (0..outer).flat_map(|outer| indices.iter().map(move |&index| (outer * size + index) * inner));
        let places: Vec<usize> = places.flat_map(|start| start..start + inner).collect();
        let mut values = pick(&values, places.into_iter());
        clear(&mut values, |at| at / inner.max(1) % indices.len() >= read);
        run.store_values(&out, &values)
    })
}

/// out[i][j][k] = self[i][index[i][j][k]][k], for the axis in the middle.
fn gather(a: &Arguments) -> Planned {
    let (x, index, out) = (a.tensor("self_")?, a.tensor("index")?, a.tensor("out")?);
    index.must_be_integer()?;
    out.must_have(&index.shape)?;
    let dim = a.integer("dim")?;
    let axis = x.axis(dim)?;
    let fits = |other: usize| other == axis || index.shape[other] <= x.shape[other];
    if index.rank() != x.rank() || !(0..x.rank()).all(fits) {
        return Err(index.refuse(format!("does not fit to {:?} of self", x.shape)));
    }
    let mut window = x.clone();
    for other in (0..x.rank()).filter(|&other| other != axis) {
        window = window.narrow(other, 0, index.shape[other]);
    }
    let (x, index, out) = (along(&window, dim)?, along(&index, dim)?, along(&out, dim)?);
    let (size, width) = (x.shape[x.rank() - 1], index.shape[index.rank() - 1].max(1));
    kernel(move |run| {
        let mut indices = checked(run, &index, size)?;
        spoil(run, &mut indices);
        if run.has("gather.row_above") {
            let (all, below) = (indices.len(), indices.len().saturating_sub(width));
            indices.copy_within(..below, all - below);
        }
        let values = run.values(&x, x.dtype.domain())?;
        let places = indices.iter().enumerate().map(|(place, &index)| place / width * size + index);
        run.store_values(&out, &pick(&values, places))
    })
}

/// The tensors of an index list, by the axis that each is for; a skipped axis has an empty one.
pub fn by_axis(list: Vec<Operand>, x: &Operand) -> Result<(Vec<Option<Operand>>, Vec<usize>), Fault> {
    if list.len() > x.rank() {
        return Err(x.refuse(format!("has fewer dimensions than there are indices ({})", list.len())));
    }
    let mut axes: Vec<Option<Operand>> =
        list.into_iter().map(|index| Some(index).filter(|i| !i.is_empty())).collect();
    axes.resize_with(x.rank(), || None);
    let given: Vec<&Operand> = axes.iter().flatten().collect();
    let mut shape = Vec::new();
    for index in &given {
        index.must_be_integer()?;
        let rank = index.rank().max(shape.len());
        let at = |shape: &[usize], axis: usize| {
            (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
        };
        shape = (0..rank).map(|axis| at(&shape, axis).max(at(&index.shape, axis))).collect();
    }
    let axes = axes.iter().map(|axis| axis.as_ref().map(|index| index.expand(&shape)).transpose());
    Ok((axes.collect::<Result<_, _>>()?, shape))
}

/// Where an indexed window's elements lie in a dense `x`, in the order of the result; and the result's shape.
pub fn places(
    run: &Run,
    x: &Operand,
    axes: &[Option<Operand>],
    shape: &[usize],
) -> Result<Vec<usize>, Fault> {
    let strides = crate::tensor::contiguous(&x.shape);
    let count: usize = shape.iter().product();
    let mut starts = vec![0; count];
    for (axis, index) in axes.iter().enumerate().filter_map(|(axis, index)| Some((axis, index.as_ref()?))) {
        let size = x.shape[axis];
        for (place, (start, index_)) in starts.iter_mut().zip(run.ints(index)?).enumerate() {
            // Below 0 it counts from the end.
            let positive = if index_ < 0 { index_ + size as i64 } else { index_ };
            let inside = usize::try_from(positive).ok().filter(|&index| index < size);
            let inside = inside.ok_or_else(|| outside(&index.label(), place, index_, size))?;
            *start += inside * strides[axis] as usize;
        }
    }
    let free: Vec<usize> = (0..x.rank()).filter(|&axis| axes[axis].is_none()).collect();
    let before = leading(axes);
    let offsets = |axes: &[usize]| -> Vec<usize> {
        axes.iter().fold(vec![0], |offsets, &axis| {
            let step = strides[axis] as usize;
            offsets.iter().flat_map(|&offset| (0..x.shape[axis]).map(move |i| offset + i * step)).collect()
        })
    };
    let (outer, inner): (Vec<usize>, Vec<usize>) = free.into_iter().partition(|&axis| axis < before);
    let (outer, inner) = (offsets(&outer), offsets(&inner));
    let mut places = Vec::with_capacity(outer.len() * count * inner.len());
    for outer in &outer {
        for start in &starts {
            places.extend(inner.iter().map(|inner| outer + start + inner));
        }
    }
    Ok(places)
}

/// How many free axes stand before the indexed ones in the result: all before the first one where the indexed axes
/// stand side by side, else none (NumPy's rule).
fn leading(axes: &[Option<Operand>]) -> usize {
    let given: Vec<usize> = (0..axes.len()).filter(|&axis| axes[axis].is_some()).collect();
    match (given.first(), given.last()) {
        (Some(&first), Some(&last)) if last - first + 1 == given.len() => first,
        _ => 0,
    }
}

/// The shape of an indexed window.
pub fn indexed_shape(x: &Operand, axes: &[Option<Operand>], shape: &[usize]) -> Vec<usize> {
    let before = leading(axes);
    let free = |range: std::ops::Range<usize>| range.filter(|&a| axes[a].is_none()).map(|a| x.shape[a]);
    free(0..before).chain(shape.iter().copied()).chain(free(before..x.rank())).collect()
}

fn index(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let (axes, shape) = by_axis(a.tensors("indices")?, &x)?;
    if axes.iter().all(Option::is_none) {
        return Err(invalid("indices holds no index"));
    }
    out.must_have(&indexed_shape(&x, &axes, &shape))?;
    kernel(move |run| {
        let places = places(run, &x, &axes, &shape)?;
        run.store_values(&out, &pick(&run.values(&x, x.dtype.domain())?, places.into_iter()))
    })
}

fn choose(a: &Arguments) -> Planned {
    let (condition, x, y) = (a.tensor("condition")?, a.tensor("self_")?, a.tensor("other")?);
    let out = a.tensor("out")?;
    let (condition, x, y) = (condition.expand(&out.shape)?, x.expand(&out.shape)?, y.expand(&out.shape)?);
    let domain = x.dtype.domain().max(y.dtype.domain());
    kernel(move |run| {
        let condition = run.bools(&condition)?;
        fn mix<T: Copy>(condition: &[bool], x: &[T], y: &[T]) -> Vec<T> {
            condition.iter().zip(x.iter().zip(y)).map(|(&yes, (&x, &y))| if yes { x } else { y }).collect()
        }
        match (run.values(&x, domain)?, run.values(&y, domain)?) {
            (Values::Single(x), Values::Single(y)) => run.store(&out, &mix(&condition, &x, &y)),
            (Values::Double(x), Values::Double(y)) => run.store_doubles(&out, &mix(&condition, &x, &y)),
            (Values::Integer(x), Values::Integer(y)) => run.store_ints(&out, &mix(&condition, &x, &y)),
            // Both were read in one domain.
            _ => Err(invalid("self and other are of different domains")),
        }
    })
}

fn masked_select(a: &Arguments) -> Planned {
    let (x, mask, out) = (a.tensor("self_")?, a.tensor("mask")?, a.tensor("out")?);
    let shape = crate::operator::binary::broadcast(&x, &mask)?;
    let (x, mask) = (x.expand(&shape)?, mask.expand(&shape)?);
    kernel(move |run| {
        let mask = run.bools(&mask)?;
        let chosen: Vec<usize> = (0..mask.len()).filter(|&place| mask[place]).collect();
        if chosen.len() > out.len() {
            let text = format!("{} elements were chosen, out holds {}", chosen.len(), out.len());
            return Err(Fault::new(code::VECTOR_CORE_EXCEPTION, text));
        }
        let found = pick(&run.values(&x, x.dtype.domain())?, chosen.iter().copied());
        let target = out.view(vec![chosen.len()], vec![1], out.offset);
        run.store_values(&target, &found)
    })
}

fn nonzero(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    let rank = x.rank();
    kernel(move |run| {
        let strides = crate::tensor::contiguous(&x.shape);
        let set = run.bools(&x)?;
        let mut found = Vec::new();
        for place in (0..set.len()).filter(|&place| set[place]) {
            found.extend((0..rank).map(|axis| place as i64 / strides[axis] % x.shape[axis] as i64));
        }
        if found.len() > out.len() {
            let text = format!("{} places were found, out holds {}", found.len() / rank.max(1), out.len());
            return Err(Fault::new(code::VECTOR_CORE_EXCEPTION, text));
        }
        run.store_ints(&out.view(vec![found.len()], vec![1], out.offset), &found)
    })
}
