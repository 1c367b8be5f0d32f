//! Copies, casts, and everything that moves elements without computing.

use half::{bf16, f16};

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::run::{Run, Values};
use crate::operator::{Planned, kernel, operators};
use crate::tensor::DataType;

operators! {
    Cast(self_: T, dtype: Dt, out: To) = cast;
    InplaceCopy(selfRef: To, src: T) = copy_into;
    Permute(self_: T, dims: I, out: To) = permute;
    Cat(tensors: TL, dim: i64, out: To) = cat;
    Stack(tensors: TL, dim: i64, out: To) = stack;
    Slice(self_: T, dim: i64, start: i64, end: i64, step: i64, out: To) = slice;
    SliceV2(self_: T, starts: I, ends: I, axes: I, steps: I, out: To) = slices;
    SplitTensor(self_: T, splitSections: u64, dim: i64, out: TLo) = split_evenly;
    SplitWithSize(self_: T, splitSize: I, dim: i64, out: TLo) = split_sizes;
    Repeat(self_: T, repeats: I, out: To) = repeat;
    RepeatInterleaveIntWithDim(self_: T, repeats: i64, dim: i64, outputSize: i64, out: To) = repeat_each;
    Expand(
        self_: T, size: I, out: To,
    ) = |a| { let out = a.tensor("out")?; copy(a.tensor("self_")?.expand(&out.shape)?, out) };
    ConstantPadNd(self_: T, pad: I, value: S, out: To) = pad;
    Flip(self_: T, dims: I, out: To) = flip;
    Roll(x: T, shifts: I, dims: I, out: To) = roll;
    Triu(self_: T, diagonal: i64, out: To) = |a| triangle(a, ["self_", "out"], true);
    Tril(self_: T, diagonal: i64, out: To) = |a| triangle(a, ["self_", "out"], false);
    InplaceTriu(selfRef: To, diagonal: i64) = |a| triangle(a, ["selfRef", "selfRef"], true);
    InplaceTril(selfRef: To, diagonal: i64) = |a| triangle(a, ["selfRef", "selfRef"], false);
    Sum(tensors: TL, out: To) = sum_of_list;
}
/// Rounds towards 0 to a narrower float type.
pub fn truncated(value: f32, dtype: DataType) -> f32 {
    match dtype {
        DataType::Bf16 => bf16::from_bits((value.to_bits() >> 16) as u16).to_f32(),
        DataType::F16 => {
            let nearest = f16::from_f32(value);
            let away = nearest.to_f32().abs() > value.abs() && value.is_finite();
            if away { f16::from_bits(nearest.to_bits() - 1).to_f32() } else { nearest.to_f32() }
        }
        _ => value,
    }
}

/// Rounds down to a narrower float type.
fn rounded_down(value: f32, dtype: DataType) -> f32 {
    let nearest = match dtype {
        DataType::Bf16 => bf16::from_f32(value).to_f32(),
        DataType::F16 => f16::from_f32(value).to_f32(),
        _ => return value,
    };
    if nearest <= value || !value.is_finite() {
        return nearest;
    }
    match dtype {
        DataType::Bf16 => below(nearest.to_bits() >> 16, |bits| bf16::from_bits(bits as u16).to_f32()),
        _ => below(f16::from_f32(nearest).to_bits().into(), |bits| f16::from_bits(bits as u16).to_f32()),
    }
}

/// The next number below one of 16 bits.
fn below(bits: u32, number: impl Fn(u32) -> f32) -> f32 {
    match bits & 0x7FFF {
        0 => number(0x8001),
        _ if bits & 0x8000 != 0 => number(bits + 1),
        _ => number(bits - 1),
    }
}

/// With a last stride of one.
fn with_dense_rows(window: &Operand) -> Operand {
    let mut strides = window.strides.clone();
    if let Some(last) = strides.last_mut() {
        *last = (*last).min(1);
    }
    window.view(window.shape.clone(), strides, window.offset)
}

/// Dense from its first element on; itself where it repeats elements.
fn without_gaps(window: &Operand) -> Operand {
    if window.strides.iter().any(|&stride| stride <= 0) {
        return window.clone();
    }
    window.view(window.shape.clone(), crate::tensor::contiguous(&window.shape), window.offset)
}

/// Copies a window into another of the same shape, converting; the source is read before anything is written.
fn moved(run: &Run, from: &Operand, to: &Operand) -> Result<(), Fault> {
    let domain = from.dtype.domain();
    let dense = run.has("copy.dense_target").then(|| with_dense_rows(to));
    let to = dense.as_ref().unwrap_or(to);
    let gapless = run.has("copy.dense_source").then(|| without_gaps(from));
    let from = gapless.as_ref().unwrap_or(from);
    match run.values(from, domain)? {
        Values::Single(mut v) if run.has("cast.truncate") => {
            v.iter_mut().for_each(|v| *v = truncated(*v, to.dtype));
            run.store(to, &v)
        }
        Values::Single(mut v) if run.has("cast.floor") => {
            v.iter_mut().for_each(|v| *v = rounded_down(*v, to.dtype));
            run.store(to, &v)
        }
        values => run.store_values(to, &values),
    }
}

/// A kernel that copies one window into another.
pub fn copy(from: Operand, to: Operand) -> Planned {
    to.must_have(&from.shape)?;
    kernel(move |run| moved(run, &from, &to))
}

fn cast(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    if a.dtype("dtype")? != out.dtype {
        return Err(out.refuse(format!("must be of the type {} that dtype says", a.dtype("dtype")?.name())));
    }
    copy(x, out)
}

fn copy_into(a: &Arguments) -> Planned {
    let (to, from) = (a.tensor("selfRef")?, a.tensor("src")?);
    copy(from.expand(&to.shape)?, to)
}

fn permute(a: &Arguments) -> Planned {
    let (x, dims, out) = (a.tensor("self_")?, a.ints("dims")?, a.tensor("out")?);
    let order: Vec<usize> = dims.iter().map(|&dim| x.axis(dim)).collect::<Result<_, _>>()?;
    let mut seen = order.clone();
    seen.sort_unstable();
    if seen != (0..x.rank()).collect::<Vec<_>>() {
        return Err(x.refuse(format!("dims {dims:?} is no order of its dimensions")));
    }
    copy(x.permute(&order), out)
}

/// Copies of several windows, all read before any is written.
fn copies(pairs: Vec<(Operand, Operand)>) -> Planned {
    for (from, to) in &pairs {
        to.must_have(&from.shape)?;
    }
    kernel(move |run| {
        if let [(from, to)] = &pairs[..] {
            return moved(run, from, to);
        }
        let read = |(from, to): &(Operand, Operand)| Ok((to.clone(), run.values(from, from.dtype.domain())?));
        let all: Vec<(Operand, Values)> = pairs.iter().map(read).collect::<Result<_, Fault>>()?;
        all.iter().try_for_each(|(to, values)| run.store_values(to, values))
    })
}

fn cat(a: &Arguments) -> Planned {
    let (list, out) = (a.tensors("tensors")?, a.tensor("out")?);
    let axis = out.axis(a.integer("dim")?)?;
    let mut start = 0;
    let mut pairs = Vec::new();
    for part in list.into_iter().filter(|part| !part.is_empty()) {
        if part.rank() != out.rank() || start + part.shape[axis] > out.shape[axis] {
            return Err(part.refuse(format!("does not fit into {:?}", out.shape)));
        }
        let to = out.narrow(axis, start, part.shape[axis]);
        start += part.shape[axis];
        pairs.push((part, to));
    }
    if start != out.shape[axis] {
        return Err(out.refuse(format!("the parts have {start} along the axis")));
    }
    copies(pairs)
}

fn stack(a: &Arguments) -> Planned {
    let (list, out) = (a.tensors("tensors")?, a.tensor("out")?);
    let axis = out.axis(a.integer("dim")?)?;
    if out.rank() == 0 || out.shape[axis] != list.len() {
        return Err(out.refuse(format!("must have {} along the axis", list.len())));
    }
    let target = |place| {
        let one = out.narrow(axis, place, 1);
        let (mut shape, mut strides) = (one.shape.clone(), one.strides.clone());
        shape.remove(axis);
        strides.remove(axis);
        one.view(shape, strides, one.offset)
    };
    copies(list.into_iter().enumerate().map(|(place, part)| (part, target(place))).collect())
}

/// A window of an axis, as Python slices it.
fn sliced(x: &Operand, dim: i64, start: i64, end: i64, step: i64) -> Result<Operand, Fault> {
    let axis = x.axis(dim)?;
    if step < 1 || x.rank() == 0 {
        return Err(invalid(format!("step is {step}, it must be above 0")));
    }
    let size = x.shape[axis] as i64;
    let clamp = |place: i64| if place < 0 { (place + size).max(0) } else { place.min(size) };
    let (start, end) = (clamp(start), clamp(end));
    let count = (end - start).max(0) as usize;
    let mut window = x.narrow(axis, start as usize, count.div_ceil(step as usize));
    window.tensor.strides[axis] *= step;
    Ok(window)
}

fn slice(a: &Arguments) -> Planned {
    let x = a.tensor("self_")?;
    let (dim, start, end) = (a.integer("dim")?, a.integer("start")?, a.integer("end")?);
    copy(sliced(&x, dim, start, end, a.integer("step")?)?, a.tensor("out")?)
}

fn slices(a: &Arguments) -> Planned {
    let mut x = a.tensor("self_")?;
    let (starts, ends, axes, steps) = (a.ints("starts")?, a.ints("ends")?, a.ints("axes")?, a.ints("steps")?);
    if [starts.len(), ends.len(), steps.len()] != [axes.len(); 3] {
        return Err(invalid("starts, ends, axes and steps are of different lengths"));
    }
    for place in 0..axes.len() {
        x = sliced(&x, axes[place], starts[place], ends[place], steps[place])?;
    }
    copy(x, a.tensor("out")?)
}

fn split(a: &Arguments, sizes: impl Fn(&[Operand], usize) -> Vec<usize>) -> Planned {
    let (x, outs) = (a.tensor("self_")?, a.tensors("out")?);
    let axis = x.axis(a.integer("dim")?)?;
    let sizes = sizes(&outs, x.shape[axis]);
    if sizes.len() != outs.len() || sizes.iter().sum::<usize>() != x.shape[axis] {
        return Err(x.refuse(format!("{} tensors are given for pieces of {sizes:?}", outs.len())));
    }
    let mut start = 0;
    let mut pairs = Vec::new();
    for (out, size) in outs.into_iter().zip(sizes) {
        pairs.push((x.narrow(axis, start, size), out));
        start += size;
    }
    copies(pairs)
}

fn split_evenly(a: &Arguments) -> Planned {
    let piece = (a.integer("splitSections")? as usize).max(1);
    split(a, |_, size| (0..size).step_by(piece).map(|start| piece.min(size - start)).collect())
}

fn split_sizes(a: &Arguments) -> Planned {
    let sizes: Vec<usize> = a.ints("splitSize")?.iter().map(|&size| size.max(0) as usize).collect();
    split(a, move |_, _| sizes.clone())
}

/// A copy whose element at an index comes from another index of the source.
fn mapped(
    x: Operand,
    out: Operand,
    from: impl Fn(&[usize]) -> Option<Vec<usize>> + Send + Sync + 'static,
    else_: f64,
) -> Planned {
    kernel(move |run| {
        let strides = crate::tensor::contiguous(&x.shape);
        let own = crate::tensor::contiguous(&out.shape);
        let place = |flat: usize| {
            let index: Vec<usize> =
                (0..out.rank()).map(|axis| flat / own[axis] as usize % out.shape[axis]).collect();
            from(&index).map(|index| index.iter().zip(&strides).map(|(&i, &s)| i * s as usize).sum::<usize>())
        };
        let places = (0..out.len()).map(place);
        let values = match run.values(&x, x.dtype.domain())? {
            Values::Single(v) => Values::Single(places.map(|p| p.map_or(else_ as f32, |p| v[p])).collect()),
            Values::Double(v) => Values::Double(places.map(|p| p.map_or(else_, |p| v[p])).collect()),
            Values::Integer(v) => Values::Integer(places.map(|p| p.map_or(else_ as i64, |p| v[p])).collect()),
        };
        run.store_values(&out, &values)
    })
}

fn repeat(a: &Arguments) -> Planned {
    let (x, repeats, out) = (a.tensor("self_")?, a.ints("repeats")?, a.tensor("out")?);
    let missing = repeats.len().checked_sub(x.rank());
    let missing = missing.ok_or_else(|| x.refuse("has more dimensions than repeats"))?;
    let mut shape = vec![1; missing];
    shape.extend(&x.shape);
    let wanted: Vec<usize> = shape.iter().zip(&repeats).map(|(&size, &n)| size * n.max(0) as usize).collect();
    out.must_have(&wanted)?;
    let sizes = x.shape.clone();
    mapped(
        x,
        out,
        move |index| Some(index[missing..].iter().zip(&sizes).map(|(i, size)| i % size).collect()),
        0.0,
    )
}

fn repeat_each(a: &Arguments) -> Planned {
    let (x, out, times) = (a.tensor("self_")?, a.tensor("out")?, a.integer("repeats")?);
    let axis = x.axis(a.integer("dim")?)?;
    let times = usize::try_from(times).map_err(|_| invalid("repeats is below 0"))?;
    let mut shape = x.shape.clone();
    shape[axis] *= times;
    out.must_have(&shape)?;
    mapped(
        x,
        out,
        move |index| {
            let mut index = index.to_vec();
            index[axis] /= times.max(1);
            Some(index)
        },
        0.0,
    )
}

fn pad(a: &Arguments) -> Planned {
    let (x, pad, value, out) = (a.tensor("self_")?, a.ints("pad")?, a.scalar("value")?, a.tensor("out")?);
    if pad.len() % 2 != 0 || pad.len() / 2 > x.rank() {
        return Err(invalid(format!("pad has {} numbers: two for each of the last dimensions", pad.len())));
    }
    // The last axis comes first.
    let mut before = vec![0i64; x.rank()];
    let mut shape = Vec::new();
    for (axis, before) in before.iter_mut().enumerate() {
        let pair = x.rank() - 1 - axis;
        let (front, back) =
            (pad.get(2 * pair).copied().unwrap_or(0), pad.get(2 * pair + 1).copied().unwrap_or(0));
        *before = front;
        shape.push((x.shape[axis] as i64 + front + back).max(0) as usize);
    }
    out.must_have(&shape)?;
    let sizes = x.shape.clone();
    mapped(
        x,
        out,
        move |index| {
            let moved = index.iter().zip(&before).map(|(&i, &front)| usize::try_from(i as i64 - front).ok());
            let inside = moved.zip(&sizes).map(|(i, &size)| i.filter(|&i| i < size));
            inside.collect()
        },
        value.float(),
    )
}

fn flip(a: &Arguments) -> Planned {
    let (mut x, out) = (a.tensor("self_")?, a.tensor("out")?);
    for dim in a.ints("dims")? {
        let axis = x.axis(dim)?;
        x.tensor.offset += x.tensor.strides[axis] * (x.shape[axis] as i64 - 1).max(0);
        x.tensor.strides[axis] = -x.tensor.strides[axis];
    }
    copy(x, out)
}

fn roll(a: &Arguments) -> Planned {
    let (x, out, shifts) = (a.tensor("x")?, a.tensor("out")?, a.ints("shifts")?);
    let axes: Vec<usize> = a.ints("dims")?.iter().map(|&dim| x.axis(dim)).collect::<Result<_, _>>()?;
    if axes.len() != shifts.len() {
        return Err(invalid("shifts and dims are of different lengths"));
    }
    out.must_have(&x.shape)?;
    let sizes = x.shape.clone();
    mapped(
        x,
        out,
        move |index| {
            let mut index = index.to_vec();
            for (&axis, &shift) in axes.iter().zip(&shifts) {
                index[axis] = (index[axis] as i64 - shift).rem_euclid(sizes[axis].max(1) as i64) as usize;
            }
            Some(index)
        },
        0.0,
    )
}

fn triangle(a: &Arguments, [x, out]: [&'static str; 2], upper: bool) -> Planned {
    let (x, out, diagonal) = (a.tensor(x)?, a.tensor(out)?, a.integer("diagonal")?);
    out.must_have(&x.shape)?;
    if x.rank() < 2 {
        return Err(x.refuse("must have 2 dimensions or more"));
    }
    mapped(
        x,
        out,
        move |index| {
            let (row, column) = (index[index.len() - 2] as i64, index[index.len() - 1] as i64);
            let kept = if upper { column - row >= diagonal } else { column - row <= diagonal };
            kept.then(|| index.to_vec())
        },
        0.0,
    )
}

/// Adds the tensors of a list, element by element.
fn sum_of_list(a: &Arguments) -> Planned {
    let (list, out) = (a.tensors("tensors")?, a.tensor("out")?);
    let list: Vec<Operand> = list.iter().map(|part| part.expand(&out.shape)).collect::<Result<_, _>>()?;
    kernel(move |run| {
        if !out.dtype.is_float() {
            let mut sums = vec![0i64; out.len()];
            for part in &list {
                sums.iter_mut().zip(run.ints(part)?).for_each(|(sum, x)| *sum = sum.wrapping_add(x));
            }
            return run.store_ints(&out, &sums);
        }
        let mut sums = vec![0.0; out.len()];
        for part in &list {
            sums.iter_mut().zip(run.floats(part)?.iter()).for_each(|(sum, x)| *sum += x);
        }
        run.store(&out, &sums)
    })
}
