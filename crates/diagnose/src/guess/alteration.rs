//! The same operator with another attribute, or on altered operands: where the exact result of that is what was given, on every
//! draw, that is what the subject does.

use super::axes::axes;
use super::condition::index_operand;
use super::lab::{Lab, Sample};
use super::places::orders;
use super::prediction::{FP16, cut, nearest};
use super::steps::lost_term;
use super::{Conclusion, Kind};
use crate::probe::Probe;
use serde_json::Value;
use std::collections::BTreeSet;
use toprope_conformance::lockstep::Obstacle;
use toprope_program::{DType, Operator, Tensor};

/// Whether a way to alter a probe explains every failing draw.
pub(super) fn explains(
    lab: &mut Lab<'_>,
    alter: &dyn Fn(&Sample) -> Option<Probe>,
) -> Result<bool, Obstacle> {
    let samples: Vec<Sample> = lab.failing().cloned().collect();
    for sample in &samples {
        if !holds_on(lab, sample, alter)? {
            return Ok(false);
        }
    }
    Ok(!samples.is_empty())
}

/// Whether a way to alter a probe explains a sample.
pub(super) fn holds_on(
    lab: &mut Lab<'_>,
    sample: &Sample,
    alter: &dyn Fn(&Sample) -> Option<Probe>,
) -> Result<bool, Obstacle> {
    let Some(altered) = alter(sample) else { return Ok(false) };
    let exact = altered.exact(lab.oracle)?;
    let outputs = exact.want.iter().zip(&sample.outcome.outputs);
    let same_sizes = exact.want.len() == sample.outcome.outputs.len()
        && outputs.into_iter().all(|(a, b)| a.sizes == b.sizes && a.dtype == b.dtype);
    Ok(same_sizes && sample.explained_by(&altered, &exact))
}

/// Another attribute.
pub(super) fn attribute(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let operator = lab.base.probe.operator().clone();
    let sizes: BTreeSet<usize> = lab.base.probe.operands().into_iter().flat_map(|t| t.sizes).collect();
    let sizes: Vec<usize> = sizes.into_iter().collect();
    let others = other_attributes(&operator, &sizes);
    let count = others.len();
    for (name, from, to, other) in others {
        if explains(lab, &|sample| sample.probe.altered(&other, sample.probe.operands()).ok())? {
            let kind = kind_of_attribute(&operator, &name);
            let draws = lab.failing().count();
            let sentence = format!("It computes with {name} = {to}; {from} was asked for.");
            let ran = format!("the exact result with {name} = {to}, on {draws} draws");
            return Ok(lab.conclude(kind, sentence, ran, "it is what was given"));
        }
    }
    if count > 0 {
        lab.note(format!("the exact result with another attribute, {count} ways"), "is not what was given");
    }
    Ok(None)
}

/// What it is where an attribute is another one.
pub(super) fn kind_of_attribute(operator: &Operator, name: &str) -> Kind {
    let attends = matches!(operator, Operator::Attention(_) | Operator::AttentionGradient(_));
    match name {
        "epsilon" => Kind::Epsilon,
        "weight_decay" => Kind::WeightDecay,
        "interleaved" => Kind::Layout,
        // Within a softmax the scale is no factor of the result.
        "scale" | "factor" | "rate" if !attends => Kind::WrongFactor,
        _ => Kind::WrongAttribute,
    }
}

/// The operator with one attribute changed: its name, what it was, what it is.
fn other_attributes(operator: &Operator, sizes: &[usize]) -> Vec<(String, String, String, Operator)> {
    let Ok(Value::Object(fields)) = serde_json::to_value(operator) else { return Vec::new() };
    let mut list = Vec::new();
    let mut push = |changes: &[(&str, Value)]| {
        let mut changed = fields.clone();
        changes.iter().for_each(|(name, value)| {
            changed.insert((*name).to_string(), value.clone());
        });
        if let Ok(other) = serde_json::from_value::<Operator>(Value::Object(changed))
            && other != *operator
        {
            let told = |of: &dyn Fn(&str) -> String| {
                changes.iter().map(|(name, _)| of(name)).collect::<Vec<_>>().join(", ")
            };
            let from = told(&|name| fields.get(name).map_or_else(|| "false".into(), ToString::to_string));
            let to = changes.iter().map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(", ");
            list.push((told(&|name| name.to_string()), from, to, other));
        }
    };
    for (name, value) in fields.iter().filter(|(name, _)| *name != "operator") {
        match value {
            Value::Number(number) if number.is_f64() => {
                let x = number.as_f64().unwrap_or(0.0);
                let mut others: Vec<f64> = vec![0.0, 1.0, -x, x * x, x.abs().sqrt(), 1.0 - x, 1.0 / x];
                others.extend([2.0, 0.5, 4.0, 0.25, 3.0].map(|c| c * x));
                others.extend((1..=8).flat_map(|p| [x * 10f64.powi(p), x * 10f64.powi(-p)]));
                others.extend([8, FP16, 11].map(|bits| nearest(bits, x)));
                others.extend([8, 11].map(|bits| cut(bits, x)));
                for size in sizes.iter().flat_map(|size| padded(*size)) {
                    let size = size as f64;
                    others.extend([1.0 / size.sqrt(), 1.0 / size, size.sqrt(), x / size, x * size]);
                }
                others.retain(|other| other.is_finite() && *other != x);
                others.sort_by(f64::total_cmp);
                others.dedup();
                for other in others {
                    push(&[(name, other.into())]);
                }
            }
            Value::Number(number) => {
                let n = number.as_i64().unwrap_or(0);
                for other in [0, 1, n + 1, n - 1, n * 2, n / 2] {
                    push(&[(name, other.into())]);
                }
            }
            Value::Bool(flag) => push(&[(name, (!flag).into())]),
            Value::String(_) => {
                for other in ["relu", "sigmoid", "tanh", "silu", "gelu", "softmax"] {
                    push(&[(name, other.into())]);
                }
            }
            _ => {}
        }
    }
    // Flags that are left out where they are false.
    for name in ["interleaved", "inverse", "normalize"] {
        if !fields.contains_key(name) {
            push(&[(name, true.into())]);
        }
    }
    if let (Some(beta1), Some(beta2)) = (fields.get("beta1"), fields.get("beta2")) {
        push(&[("beta1", beta2.clone()), ("beta2", beta1.clone())]);
    }
    if fields.contains_key("top_groups") {
        push(&[("groups", 1.into()), ("top_groups", 1.into())]);
    }
    list
}

/// A size, and what it is rounded up to.
fn padded(size: usize) -> Vec<usize> {
    let mut list: Vec<usize> = [1, 8, 16, 32, 64, 128].map(|tile| size.max(1).div_ceil(tile) * tile).to_vec();
    list.extend([size.max(1).next_power_of_two(), size + 1, size.saturating_sub(1).max(1), 2 * size.max(1)]);
    list.sort_unstable();
    list.dedup();
    list
}

/// What the operator reads in place of its operands.
type Read = Box<dyn Fn(&[Tensor]) -> Vec<Tensor>>;

/// One way to read the operands.
struct Reading {
    kind: Kind,
    what: String,
    read: Read,
}

/// Whole numbers of an operand that are looked at one by one.
const WORDS_MOST: usize = 4;

/// What is said of an operand that is taken as zero.
const LEFT_OUT: &str = "left out";

/// Altered operands.
pub(super) fn operand(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let operator = lab.base.probe.operator().clone();
    let readings = readings(&lab.base.probe);
    let count = readings.len();
    let given = &lab.base.outcome.outputs;
    let zeros = lab.base.wrong_outputs().iter().all(|output| given[*output].data.iter().all(|x| *x == 0.0));
    for Reading { kind, what, read } in readings {
        // Zeros are no operand that is left out: at other sizes there are other numbers.
        if zeros && what.ends_with(LEFT_OUT) {
            continue;
        }
        let alter = |sample: &Sample| sample.probe.altered(&operator, read(&sample.probe.operands())).ok();
        if explains(lab, &alter)? {
            let draws = lab.failing().count();
            // What an operand is read for may be one term of the formula alone.
            if what.ends_with(LEFT_OUT)
                && let Some(term) = lost_term(lab)
            {
                let ran = format!("its formula without {term}, on {draws} draws");
                let sentence = format!("It computes without {term}.");
                return Ok(lab.conclude(Kind::MissingTerms, sentence, ran, "it is what was given"));
            }
            let ran = format!("the exact result with {what}, on {draws} draws");
            return Ok(lab.conclude(kind, format!("It computes with {what}."), ran, "it is what was given"));
        }
    }
    lab.note(format!("the exact result on altered operands, {count} ways"), "is not what was given");
    Ok(None)
}

fn readings(probe: &Probe) -> Vec<Reading> {
    let operands = probe.operands();
    let operator = probe.operator().clone();
    let shared = shared_heads(&operator, &operands);
    let record = operator.definition().record();
    let name = |at: usize| record.operands[at.min(record.operands.len() - 1)].name;
    let mut list: Vec<Reading> = Vec::new();
    let mut push = |kind, what: String, read: Read| {
        list.push(Reading { kind, what, read });
    };
    let in_place = operator.writes_in_place();
    for (bits, format) in [(8, "bf16"), (11, "fp16 or TF32"), (12, "HF32")] {
        for (how, shortened) in
            [("rounded", nearest as fn(i32, f64) -> f64), ("cut", cut as fn(i32, f64) -> f64)]
        {
            push(
                Kind::LowPrecisionOperands,
                format!("f32 operands {how} to {bits} bits ({format})"),
                Box::new(move |operands| {
                    let narrow = |t: &Tensor| match t.dtype {
                        DType::F32 => mapped(t, |x, _| shortened(bits, x)),
                        _ => t.clone(),
                    };
                    operands.iter().map(narrow).collect()
                }),
            );
        }
    }
    if let Some((dout, group)) = shared {
        for (place, which) in [(group - 1, "last"), (0, "first")] {
            let what = format!("the {which} of the query heads that share a key head alone");
            let read = move |operands: &[Tensor]| {
                let mut operands = operands.to_vec();
                operands[dout] = masked(&operands[dout], 1, |head| head % group == place);
                operands
            };
            push(Kind::MissingTerms, what, Box::new(read));
        }
    }
    const SMALLEST_NORMAL: f64 = 1.175_494_350_822_287_5e-38;
    push(
        Kind::SubnormalsFlushed,
        "operands below the normal numbers as zero".into(),
        Box::new(|operands| {
            let flush = |x: f64| if x.abs() < SMALLEST_NORMAL { 0.0 } else { x };
            let one = |t: &Tensor| if t.dtype.is_float() { mapped(t, |x, _| flush(x)) } else { t.clone() };
            operands.iter().map(one).collect()
        }),
    );
    // The rest of a sum that no tile takes, before single rows: both explain a rest of one.
    for axis in axes(probe).into_iter().filter(|axis| !axis.in_outputs) {
        for tile in [2usize, 4, 8, 16, 32, 64, 128] {
            let kept = axis.size / tile * tile;
            if kept == axis.size || kept == 0 {
                continue;
            }
            let places: Vec<usize> = (0..operands.len()).filter(|at| axis.in_operand(probe, *at)).collect();
            let size = axis.size;
            push(
                Kind::DroppedTail,
                format!("the terms of {} behind the last multiple of {tile} left out", axis.letter),
                Box::new(move |operands| {
                    let one = |(at, t): (usize, &Tensor)| {
                        if !places.contains(&at) || !t.dtype.is_float() {
                            return t.clone();
                        }
                        match t.sizes.iter().position(|n| *n == size) {
                            Some(axis) => masked(t, axis, |i| i < kept),
                            None => t.clone(),
                        }
                    };
                    operands.iter().enumerate().map(one).collect()
                }),
            );
        }
    }
    for (at, operand) in operands.iter().enumerate() {
        let only = move |map: Box<dyn Fn(&Tensor) -> Tensor>| -> Read {
            Box::new(move |operands| {
                let one = |(i, t): (usize, &Tensor)| if i == at { map(t) } else { t.clone() };
                operands.iter().enumerate().map(one).collect()
            })
        };
        let label = name(at);
        if operand.dtype.is_float() && in_place != Some(at) {
            if operands.len() > 1 {
                for (factor, how) in
                    [(0.0, LEFT_OUT), (2.0, "counted twice"), (-1.0, "with the other sign"), (0.5, "halved")]
                {
                    let map = move |t: &Tensor| mapped(t, |x, _| factor * x);
                    push(Kind::WrongOperand, format!("`{label}` {how}"), only(Box::new(map)));
                }
                push(
                    Kind::WrongOperand,
                    format!("`{label}` taken as 1"),
                    only(Box::new(|t| mapped(t, |_, _| 1.0))),
                );
            }
            for (axis, size) in operand.sizes.iter().copied().enumerate().filter(|(_, size)| *size > 1) {
                for (index, which) in [(0, "first"), (size - 1, "last")] {
                    let map = move |t: &Tensor| masked(t, axis, |i| i != index);
                    let what = format!("the {which} part of `{label}`'s axis {axis} left out");
                    push(Kind::MissingTerms, what, only(Box::new(map)));
                }
                for places in orders(size) {
                    let what = format!("`{label}`'s axis {axis} {}", places.what);
                    let map = move |t: &Tensor| moved(t, axis, &*places.from);
                    push(Kind::Layout, what, only(Box::new(map)));
                }
            }
            for first in 0..operand.sizes.len().saturating_sub(1) {
                if operand.sizes[first] > 1 && operand.sizes[first + 1] > 1 {
                    let map = move |t: &Tensor| reread(t, first);
                    let what =
                        format!("`{label}` read with axes {first} and {} exchanged in memory", first + 1);
                    push(Kind::Layout, what, only(Box::new(map)));
                }
            }
        }
        if operand.dtype.is_float() && in_place != Some(at) {
            for (factor, more, how) in [
                (1.0, 1.0, "with one added"),
                (1.0, -1.0, "with one taken off"),
                (-1.0, 1.0, "taken from one"),
            ] {
                let map = move |t: &Tensor| mapped(t, |x, _| factor * x + more);
                push(Kind::WrongOperand, format!("`{label}` {how}"), only(Box::new(map)));
            }
            for (power, how) in [(2.0, "squared"), (0.5, "as its root"), (-1.0, "as its reciprocal")] {
                let map = move |t: &Tensor| mapped(t, |x, _| x.signum() * x.abs().powf(power));
                push(Kind::WrongOperand, format!("`{label}` {how}"), only(Box::new(map)));
            }
            push(
                Kind::WrongOperand,
                format!("the absolute values of `{label}`"),
                only(Box::new(|t| mapped(t, |x, _| x.abs()))),
            );
        }
        if !operand.dtype.is_float() && operand.data.len() <= WORDS_MOST {
            for index in 0..operand.data.len() {
                let map = move |t: &Tensor| mapped(t, |x, i| if i == index { 0.0 } else { x });
                push(Kind::WrongOperand, format!("`{label}`[{index}] taken as 0"), only(Box::new(map)));
            }
        }
        // Masks have experiments of their own.
        let masks = matches!(operator, Operator::Attention(_) | Operator::AttentionGradient(_));
        if operand.dtype == DType::I32 && !masks {
            for step in [1.0, -1.0] {
                let map = move |t: &Tensor| mapped(t, |x, _| x + step);
                push(Kind::StrayIndex, format!("`{label}` off by one ({step:+})"), only(Box::new(map)));
            }
        }
    }
    if let Some((at, bound)) = index_operand(&operator, &operands) {
        let clamp = move |operands: &[Tensor]| {
            let one = |(i, t): (usize, &Tensor)| {
                if i == at {
                    mapped(t, |x, _| x.clamp(0.0, bound.saturating_sub(1) as f64))
                } else {
                    t.clone()
                }
            };
            operands.iter().enumerate().map(one).collect()
        };
        push(
            Kind::StrayIndex,
            "indices outside of their range taken as the nearest inside".into(),
            Box::new(clamp),
        );
    }
    if let Operator::Attention(_) | Operator::AttentionGradient(_) = operator {
        let (heads, groups) = (operands[0].sizes[1], operands[1].sizes[1]);
        if groups > 1 && groups < heads && matches!(operator, Operator::Attention(_)) {
            push(
                Kind::Layout,
                "key heads dealt out in turn instead of in blocks".into(),
                Box::new(move |operands| {
                    let one = |(at, t): (usize, &Tensor)| {
                        if at == 1 || at == 2 { in_turn(t, heads) } else { t.clone() }
                    };
                    operands.iter().enumerate().map(one).collect()
                }),
            );
        }
    }
    list
}

fn mapped(tensor: &Tensor, map: impl Fn(f64, usize) -> f64) -> Tensor {
    let data = tensor.data.iter().enumerate().map(|(i, x)| map(*x, i));
    Tensor::rounded(tensor.dtype, &tensor.sizes, data)
}

fn stride(sizes: &[usize], axis: usize) -> usize {
    sizes[axis + 1..].iter().product()
}

/// Elements whose index along an axis is not kept become zero.
fn masked(tensor: &Tensor, axis: usize, keep: impl Fn(usize) -> bool) -> Tensor {
    let (stride, size) = (stride(&tensor.sizes, axis), tensor.sizes[axis]);
    mapped(tensor, |x, i| if keep(i / stride % size) { x } else { 0.0 })
}

/// Where several query heads share a key head, whose gradient is the sum of theirs: the operand that the gradient comes in by,
/// and how many share one.
fn shared_heads(operator: &Operator, operands: &[Tensor]) -> Option<(usize, usize)> {
    let Operator::AttentionGradient(_) = operator else { return None };
    let group = operands[0].sizes[1] / operands[1].sizes[1].max(1);
    (group > 1).then_some((5, group))
}

/// Elements come from another index along an axis.
pub(super) fn moved(tensor: &Tensor, axis: usize, from: impl Fn(usize, usize) -> usize) -> Tensor {
    let (stride, size) = (stride(&tensor.sizes, axis), tensor.sizes[axis]);
    mapped(tensor, |_, i| {
        let index = i / stride % size;
        tensor.data.get(i - index * stride + from(index, size) * stride).copied().unwrap_or(0.0)
    })
}

/// The same memory, taken as if axes `first` and `first + 1` were stored the other way round.
fn reread(tensor: &Tensor, first: usize) -> Tensor {
    let (rows, columns) = (tensor.sizes[first], tensor.sizes[first + 1]);
    let inner = stride(&tensor.sizes, first + 1);
    mapped(tensor, |_, i| {
        let (block, rest) = (i / (rows * columns * inner), i % (rows * columns * inner));
        let (row, column, at) = (rest / (columns * inner), rest / inner % columns, rest % inner);
        tensor.data[block * rows * columns * inner + (column * rows + row) * inner + at]
    })
}

/// Heads of `[S, H, D]` repeated in turn up to a number of heads.
fn in_turn(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, groups, width) = (tensor.sizes[0], tensor.sizes[1], tensor.sizes[2]);
    let mut data = Vec::with_capacity(rows * heads * width);
    for row in 0..rows {
        for head in 0..heads {
            let at = (row * groups + head % groups) * width;
            data.extend_from_slice(&tensor.data[at..at + width]);
        }
    }
    Tensor { dtype: tensor.dtype, sizes: vec![rows, heads, width], data }
}
