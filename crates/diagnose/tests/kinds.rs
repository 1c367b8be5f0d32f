//! Over all operators: each way of being wrong that makes sense of an operator is told by its own kind or not at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use support::spoiled::{Spoil, Spoiled};
use toprope_conformance::generate::exemplars::exemplars;
use toprope_diagnose::search::search;
use toprope_diagnose::{Effort, Kind, guess};
use toprope_program::tensor::round;
use toprope_program::*;
use toprope_reference::evaluate;

/// A way of being wrong with the kinds that say rightly what it is.
struct Way {
    name: String,
    kinds: &'static [Kind],
    /// Whether it makes sense of an operator.
    suits: fn(&Operator) -> bool,
    spoil: Spoil,
}

/// Operators whose outputs are words, places or verdicts.
fn has_numbers(operator: &Operator) -> bool {
    !matches!(
        operator,
        Operator::Digest(_)
            | Operator::AdamwDigest(_)
            | Operator::RandomBits(_)
            | Operator::ExpertSort(_)
            | Operator::Increment(_)
            | Operator::Compare(_)
            | Operator::Verify(_)
            | Operator::ProductCheck(_)
            | Operator::AttentionCheck(_)
            | Operator::LossCheck(_)
            | Operator::Append(_)
    )
}

/// Operators of more than copies and a rounding.
fn computes(operator: &Operator) -> bool {
    has_numbers(operator)
        && !matches!(
            operator,
            Operator::Cast(_) | Operator::Assemble(_) | Operator::Gather(_) | Operator::Scale(_)
        )
}

/// Those whose numbers stand in an order that an element of one row or another does not share.
fn has_rows(operator: &Operator) -> bool {
    has_numbers(operator)
        && !matches!(operator, Operator::Dot(_) | Operator::GlobalNorm(_) | Operator::BalanceLoss(_))
}

/// Sums that are linear in what stands along an axis of an operand: operand and axis.
fn summed(operator: &Operator) -> Option<(usize, usize)> {
    match operator {
        Operator::Matmul(_) | Operator::GroupedMatmul(_) => Some((0, 1)),
        Operator::GroupedOuter(_) | Operator::ColumnSum(_) | Operator::Dot(_) | Operator::ScatterAdd(_) => {
            Some((0, 0))
        }
        _ => None,
    }
}

fn sums(operator: &Operator) -> bool {
    summed(operator).is_some() && !matches!(operator, Operator::Matmul(a) if a.row_sums)
}

/// The first output of floats.
fn first_float(y: &[Tensor]) -> Option<usize> {
    y.iter().position(|t| t.dtype.is_float())
}

fn each(map: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Spoil {
    Arc::new(move |_, _, y, _| {
        if let Some(at) = first_float(y) {
            y[at].data.iter_mut().for_each(|x| *x = map(*x));
        }
    })
}

/// What the operator gives on other operands.
fn on(map: impl Fn(&Operator, &[Tensor]) -> Option<Vec<Tensor>> + Send + Sync + 'static) -> Spoil {
    Arc::new(move |operator, o, y, _| {
        let in_place = operator.writes_in_place().is_some();
        if let Some(o) = map(operator, o).filter(|_| !in_place) {
            let other = evaluate(operator, &o, true, Width::Native);
            for (y, other) in y.iter_mut().zip(other) {
                y.data = other.data;
            }
        }
    })
}

fn mapped(t: &Tensor, map: impl Fn(usize, f64) -> f64) -> Tensor {
    let data = t.data.iter().enumerate().map(|(i, x)| map(i, *x)).collect();
    Tensor { data, ..t.clone() }
}

/// An operand with zeros along an axis where `keep` does not hold.
fn masked(o: &[Tensor], (at, axis): (usize, usize), keep: impl Fn(usize) -> bool) -> Vec<Tensor> {
    let mut o = o.to_vec();
    let stride: usize = o[at].sizes[axis + 1..].iter().product();
    let size = o[at].sizes[axis];
    o[at] = mapped(&o[at], |i, x| if keep(i / stride.max(1) % size) { x } else { 0.0 });
    o
}

/// The operands with a part of the axis that is summed over.
fn part(operator: &Operator, o: &[Tensor], from: usize, to: usize) -> Option<Vec<Tensor>> {
    let cut = |t: &Tensor, axis: usize| {
        let (outer, size): (usize, usize) = (t.sizes[..axis].iter().product(), t.sizes[axis]);
        let inner: usize = t.sizes[axis + 1..].iter().product();
        let rows = |i: usize| t.data[(i * size + from) * inner..(i * size + to) * inner].to_vec();
        let mut sizes = t.sizes.clone();
        sizes[axis] = to - from;
        Tensor { data: (0..outer).flat_map(rows).collect(), sizes, ..t.clone() }
    };
    let mut o = o.to_vec();
    match operator {
        Operator::Matmul(_) => (o[0], o[1]) = (cut(&o[0], 1), cut(&o[1], 0)),
        Operator::GroupedMatmul(_) => (o[0], o[1]) = (cut(&o[0], 1), cut(&o[1], 1)),
        Operator::ColumnSum(_) => o[0] = cut(&o[0], 0),
        Operator::Dot(_) => (o[0], o[1]) = (cut(&o[0], 0), cut(&o[1], 0)),
        _ => return None,
    }
    Some(o)
}

/// Partial sums of so many terms that are rounded.
fn partial(width: usize, keep: fn(f64) -> f64) -> Spoil {
    Arc::new(move |operator, o, y, _| {
        let Some(place) = summed(operator) else { return };
        let size = o[place.0].sizes[place.1];
        let mut sum: Vec<f64> = vec![0.0; y[0].data.len()];
        for from in (0..size).step_by(width) {
            let to = size.min(from + width);
            let o = part(operator, o, from, to).unwrap_or_else(|| masked(o, place, |i| i >= from && i < to));
            let part = evaluate(operator, &o, true, Width::Wide);
            sum.iter_mut().zip(&part[0].data).for_each(|(sum, x)| *sum = keep(*sum + x));
        }
        y[0].data = sum;
    })
}

fn half(x: f64) -> f64 {
    half::f16::from_f64(x).to_f64()
}

fn bf16(x: f64) -> f64 {
    round(DType::Bf16, x)
}

fn chopped(x: f64) -> f64 {
    f64::from(f32::from_bits((x as f32).to_bits() & 0xFFFF_0000))
}

/// Elements of the first float output whose index along its first or last axis lies behind the last multiple of a tile.
fn tail(tile: usize, last: bool, by: f64) -> Spoil {
    Arc::new(move |_, _, y, _| {
        let Some(at) = first_float(y) else { return };
        let sizes = y[at].sizes.clone();
        let (size, stride) = match last {
            true => (*sizes.last().unwrap_or(&1), 1),
            false => (*sizes.first().unwrap_or(&1), sizes.iter().skip(1).product()),
        };
        y[at]
            .data
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| i / stride % size >= size / tile * tile)
            .for_each(|(_, x)| *x *= by);
    })
}

fn ways() -> Vec<Way> {
    use Kind::*;
    let mut list = Vec::new();
    let mut way = |name: String, kinds, suits: fn(&Operator) -> bool, spoil| {
        list.push(Way { name, kinds, suits, spoil })
    };
    way("all zero".into(), &[AllZero], has_numbers, each(|_| 0.0));
    way("all NaN".into(), &[AllNan], has_numbers, each(|_| f64::NAN));
    way("all 0.75".into(), &[ConstantOutput], has_numbers, each(|_| 0.75));
    for factor in [2.0, -1.0, 0.3] {
        way(format!("times {factor}"), &[WrongFactor], has_numbers, each(move |x| factor * x));
    }
    way("cut to bf16".into(), &[TruncatingStore], computes, each(chopped));
    way("rounded to fp16".into(), &[LowPrecisionStore], computes, each(half));
    for tile in [8, 32] {
        way(format!("last axis' tail of {tile}"), &[DroppedTail], has_rows, tail(tile, true, 0.0));
        // Half of all is half of all: few experts or queries are no tail. Queries behind the last key may see nothing.
        let many = |o: &Operator| {
            has_rows(o)
                && !matches!(
                    o,
                    Operator::GroupedOuter(_) | Operator::Attention(_) | Operator::AttentionGradient(_)
                )
        };
        way(format!("first axis' tail of {tile}"), &[DroppedTail], many, tail(tile, false, 0.5));
    }
    way(
        "f32 operands in bf16".into(),
        &[LowPrecisionOperands],
        |o| computes(o) && !matches!(o, Operator::Adamw(_) | Operator::BiasUpdate(_)),
        on(|_, o| {
            let floats = o.iter().all(|t| t.dtype != DType::Bf16);
            floats.then(|| {
                o.iter()
                    .map(|t| if t.dtype.is_float() { mapped(t, |_, x| bf16(x)) } else { t.clone() })
                    .collect()
            })
        }),
    );
    way("what the run before gave".into(), &[StaleBuffer], has_numbers, {
        let before = std::sync::Mutex::new(None::<Vec<Tensor>>);
        Arc::new(move |_, _, y, _| {
            let mut before = before.lock().unwrap();
            let fresh = y.to_vec();
            if let Some(old) = before.as_ref().filter(|old| {
                old.len() == y.len()
                    && old.iter().zip(&*y).all(|(a, b)| a.sizes == b.sizes && a.dtype == b.dtype)
            }) {
                y.clone_from_slice(old);
            }
            *before = Some(fresh);
        })
    });
    way(
        "a race".into(),
        &[Race],
        has_numbers,
        Arc::new(|_, _, y, turn| {
            if let Some(at) = first_float(y).filter(|_| turn % 5 == 3) {
                let n = y[at].data.len();
                y[at].data[n / 2..].fill(0.25);
            }
        }),
    );
    way(
        "a flipped bit".into(),
        &[BitFlips],
        |o| has_numbers(o) && !matches!(o, Operator::Adamw(_)),
        Arc::new(|_, _, y, turn| {
            if let Some(at) = first_float(y).filter(|_| turn % 4 == 2) {
                let x = y[at].data[0];
                y[at].data[0] = f64::from(f32::from_bits((x as f32).to_bits() ^ 1 << 28));
            }
        }),
    );
    way(
        "three stuck elements".into(),
        &[StuckElements],
        has_rows,
        Arc::new(|_, _, y, _| {
            if let Some(at) = first_float(y) {
                y[at].data.iter_mut().skip(1).take(3).for_each(|x| *x = 1.0);
            }
        }),
    );
    way(
        "last axis backwards".into(),
        &[Layout],
        |o| has_rows(o) && !matches!(o, Operator::BiasUpdate(_)),
        Arc::new(|_, _, y, _| {
            if let Some(at) = first_float(y) {
                let n = (*y[at].sizes.last().unwrap_or(&1)).max(1);
                let rows: Vec<f64> = y[at]
                    .data
                    .chunks(n)
                    .flat_map(|row| row.iter().rev().copied().collect::<Vec<_>>())
                    .collect();
                y[at].data = rows;
            }
        }),
    );
    way(
        "largest for infinity".into(),
        &[Saturation, SpecialValues],
        has_numbers,
        each(|x| if x.is_infinite() { f64::from(f32::MAX).copysign(x) } else { x }),
    );
    way("zero for NaN".into(), &[SpecialValues], has_numbers, each(|x| if x.is_nan() { 0.0 } else { x }));
    way(
        "results below the normal numbers as zero".into(),
        &[SubnormalsFlushed],
        has_numbers,
        each(|x| if x != 0.0 && x.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { x }),
    );
    way(
        "operands below the normal numbers as zero".into(),
        &[SubnormalsFlushed],
        has_numbers,
        on(|_, o| {
            Some(
                o.iter()
                    .map(|t| {
                        if t.dtype.is_float() {
                            mapped(t, |_, x| if x.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { x })
                        } else {
                            t.clone()
                        }
                    })
                    .collect(),
            )
        }),
    );
    for tile in [8, 16, 32, 128] {
        way(
            format!("sums without the tail of {tile}"),
            &[DroppedTail],
            sums,
            on(move |op, o| {
                let place = summed(op)?;
                let kept = o[place.0].sizes[place.1] / tile * tile;
                Some(masked(o, place, |i| i < kept))
            }),
        );
    }
    way(
        "sums without the last term".into(),
        &[MissingTerms, DroppedTail],
        sums,
        on(|op, o| {
            let place = summed(op)?;
            let kept = o[place.0].sizes[place.1] - 1;
            Some(masked(o, place, |i| i < kept))
        }),
    );
    for (width, name) in [(8, "8 terms"), (16, "16 terms"), (64, "64 terms")] {
        way(format!("sums kept in fp16, {name}"), &[LowPrecisionAccumulation], sums, partial(width, half));
        way(format!("sums kept in bf16, {name}"), &[LowPrecisionAccumulation], sums, partial(width, bf16));
    }
    way(
        "indices one further".into(),
        &[StrayIndex, Layout],
        |o| {
            matches!(
                o,
                Operator::Gather(_)
                    | Operator::ScatterAdd(_)
                    | Operator::Rope(_)
                    | Operator::LinearCrossEntropy(_)
                    | Operator::LinearCrossEntropyGradient(_)
            )
        },
        on(|op, o| {
            let at =
                if matches!(op, Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_)) {
                    2
                } else {
                    1
                };
            let mut o = o.to_vec();
            o[at] = mapped(&o[at], |_, x| x + 1.0);
            Some(o)
        }),
    );
    list
}

/// What the operator gives where one number of each part of an output comes from another run of it.
fn spliced(
    other: impl Fn(&Operator, &[Tensor]) -> Option<Vec<Tensor>> + Send + Sync + 'static,
    takes: impl Fn(&Tensor, usize) -> bool + Send + Sync + 'static,
) -> Spoil {
    Arc::new(move |operator, o, y, _| {
        let Some(o) = other(operator, o) else { return };
        for (y, other) in y.iter_mut().zip(evaluate(operator, &o, true, Width::Native)) {
            let sizes = y.clone();
            let taken = other.data.into_iter().enumerate().filter(|(i, _)| takes(&sizes, *i));
            taken.for_each(|(i, x)| y.data[i] = x);
        }
    })
}

/// An operand whose part along an axis comes from another part.
fn taken(o: &[Tensor], (at, axis): (usize, usize), from: impl Fn(usize, usize) -> usize) -> Vec<Tensor> {
    let mut o = o.to_vec();
    let (size, stride) = (o[at].sizes[axis], o[at].sizes[axis + 1..].iter().product::<usize>().max(1));
    let old = o[at].data.clone();
    o[at] = mapped(&o[at], |i, _| {
        let index = i / stride % size;
        old[i - index * stride + from(index, size) * stride]
    });
    o
}

/// Structure that is wrong: another head, row, position, group, constant.
fn structures() -> Vec<Way> {
    use Kind::*;
    let mut list = Vec::new();
    let mut way = |name: &str, kinds, suits: fn(&Operator) -> bool, spoil| {
        list.push(Way { name: format!("structure: {name}"), kinds, suits, spoil });
    };
    way(
        "rows of the result one further",
        &[Layout],
        |o| {
            has_rows(o)
                && !matches!(o, Operator::Adamw(_) | Operator::BiasUpdate(_) | Operator::Accumulate(_))
        },
        Arc::new(|_, _, y, _| {
            if let Some(at) = first_float(y) {
                let row = y[at].sizes.iter().skip(1).product::<usize>().max(1);
                y[at].data.rotate_left(row);
            }
        }),
    );
    way(
        "the last head with the keys of the first",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::Attention(_)),
        spliced(
            |_, o| (o[1].sizes[1] > 1).then(|| taken(o, (1, 1), |g, n| if g + 1 == n { 0 } else { g })),
            |y, i| {
                let width: usize = y.sizes.iter().skip(2).product();
                i / width.max(1) % y.sizes[1] + 1 == y.sizes[1]
            },
        ),
    );
    way(
        "the positions of the token before",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::Rope(_)),
        on(|_, o| Some(taken(o, (1, 0), |i, _| i.saturating_sub(1)))),
    );
    way(
        "each group begins a row early",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::GroupedMatmul(_)),
        on(|_, o| {
            let mut o = o.to_vec();
            let last = o[2].data.len() - 1;
            o[2] = mapped(&o[2], |i, x| if i > 0 && i < last { (x - 1.0).max(0.0) } else { x });
            Some(o)
        }),
    );
    way(
        "the weights of the expert before",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::GroupedMatmul(_)),
        on(|_, o| Some(taken(o, (1, 0), |e, _| e.saturating_sub(1)))),
    );
    way(
        "weights plus one",
        &[WrongOperand],
        |o| matches!(o, Operator::RmsNorm(_) | Operator::RmsNormGradient(_)),
        on(|_, o| {
            let mut o = o.to_vec();
            o[1] = mapped(&o[1], |_, x| x + 1.0);
            Some(o)
        }),
    );
    way(
        "a scale of a padded head",
        &[WrongAttribute, WrongFactor],
        |o| matches!(o, Operator::Attention(_) | Operator::AttentionGradient(_)),
        Arc::new(|operator, o, y, _| {
            let mut operator = operator.clone();
            let width = o[0].sizes[2].next_multiple_of(16) + 16;
            let scale = 1.0 / (width as f64).sqrt();
            match &mut operator {
                Operator::Attention(a) => a.scale = scale,
                Operator::AttentionGradient(a) => a.scale = scale,
                _ => return,
            }
            for (y, other) in y.iter_mut().zip(evaluate(&operator, o, true, Width::Native)) {
                y.data = other.data;
            }
        }),
    );
    way(
        "nothing beyond 1.5",
        &[Saturation],
        // One number that is held is a constant.
        |o| {
            computes(o)
                && has_rows(o)
                && !matches!(
                    o,
                    Operator::Adamw(_)
                        | Operator::LinearCrossEntropy(_)
                        | Operator::LinearCrossEntropyGradient(_)
                        | Operator::BalanceLossGradient(_)
                )
        },
        each(|x| x.clamp(-1.5, 1.5)),
    );
    way(
        "rounded down to bf16",
        &[TruncatingStore],
        computes,
        each(|x| {
            // Cutting brings towards zero: what is negative and not whole goes one unit further.
            let cut = chopped(x);
            if x < cut {
                f64::from(f32::from_bits(((cut as f32).to_bits() & 0xFFFF_0000) + 0x1_0000))
            } else {
                cut
            }
        }),
    );
    way(
        "the first operand added once more",
        &[WrongOperand, WrongFactor],
        |o| matches!(o, Operator::RmsNorm(_) | Operator::Rope(_) | Operator::Activation(_)),
        Arc::new(|_, o, y, _| {
            let more = o[0].data.clone();
            y[0].data.iter_mut().zip(more).for_each(|(y, x)| *y += x);
        }),
    );
    way(
        "the values of the head before",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::Attention(_)),
        on(|_, o| (o[2].sizes[1] > 1).then(|| taken(o, (2, 1), |g, _| g.saturating_sub(1)))),
    );
    way(
        "the last tile of 8 terms twice",
        &[WrongOperand, WrongFactor],
        |o| sums(o) && !matches!(o, Operator::ScatterAdd(_)),
        on(|op, o| {
            let place = summed(op)?;
            let size = o[place.0].sizes[place.1];
            let stride: usize = o[place.0].sizes[place.1 + 1..].iter().product();
            let mut o = o.to_vec();
            let twice = |i: usize| i / stride.max(1) % size >= (size - 1) / 8 * 8;
            o[place.0] = mapped(&o[place.0], |i, x| if twice(i) { 2.0 * x } else { x });
            Some(o)
        }),
    );
    way(
        "the first eight terms left out",
        &[MissingTerms],
        |o| sums(o) && !matches!(o, Operator::ScatterAdd(_)),
        on(|op, o| {
            let place = summed(op)?;
            (o[place.0].sizes[place.1] > 8).then(|| masked(o, place, |i| i >= 8))
        }),
    );
    way(
        "the terms of one operand a place on",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::Matmul(_) | Operator::Dot(_)),
        on(|op, o| summed(op).map(|place| taken(o, place, |i, n| (i + 1).min(n - 1)))),
    );
    way(
        "columns in blocks of eight exchanged",
        &[Layout],
        |o| matches!(o, Operator::Matmul(_) | Operator::RmsNorm(_) | Operator::Swiglu(_)),
        Arc::new(|_, _, y, _| {
            let n = *y[0].sizes.last().unwrap_or(&1);
            let old = y[0].data.clone();
            let from = |i: usize| if (i % n) ^ 8 < n { i - i % n + ((i % n) ^ 8) } else { i };
            y[0].data.iter_mut().enumerate().for_each(|(i, x)| *x = old[from(i)]);
        }),
    );
    way(
        "the last expert's rows are zero",
        &[MissingTerms, DroppedTail, EmptyGroup, Capacity],
        |o| matches!(o, Operator::GroupedMatmul(_)),
        Arc::new(|_, o, y, _| {
            let from = o[2].data[o[2].data.len() - 2].max(0.0) as usize;
            let width = *y[0].sizes.last().unwrap_or(&1);
            y[0].data.iter_mut().skip(from * width).for_each(|x| *x = 0.0);
        }),
    );
    way(
        "the scale of another temperature",
        &[WrongFactor, WrongAttribute],
        |o| matches!(o, Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_)),
        on(|_, o| {
            let mut o = o.to_vec();
            o[0] = mapped(&o[0], |_, x| 1.3 * x);
            Some(o)
        }),
    );
    way(
        "the first row's statistics for all rows",
        &[WrongOperand, Layout],
        |o| matches!(o, Operator::RmsNorm(_)),
        Arc::new(|_, o, y, _| {
            let (width, first) = (*o[0].sizes.last().unwrap_or(&1), y[1].data[0]);
            for (i, (y, x)) in y[0].data.iter_mut().zip(&o[0].data).enumerate() {
                *y = x * first * o[1].data[i % width];
            }
        }),
    );
    list
}

/// Which pairs are tried: `all`, or those in whose names the text is; every [`EVERY`]th where nothing is said.
const ASKED: &str = "TOPROPE_KINDS";
const EVERY: usize = 7;

/// Right, unknown, and other guesses, by way.
type Score = (usize, usize, Vec<String>);

fn score(of: &dyn Fn(&Way) -> bool) -> BTreeMap<String, Score> {
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    let only = std::env::var(ASKED).unwrap_or_default();
    let mut pairs = 0;
    for way in ways().into_iter().chain(structures()).filter(|way| of(way)) {
        for exemplar in exemplars().into_iter().filter(way.suits) {
            pairs += 1;
            let wanted = match only.as_str() {
                "" => pairs % EVERY == 0,
                "all" => true,
                text => format!("{} {}", exemplar.name(), way.name).contains(text),
            };
            if !wanted {
                continue;
            }
            let began = Instant::now();
            let mut oracle = support::oracle();
            let mut device = Spoiled::new(exemplar.name(), way.spoil.clone());
            let Some(failing) = search(&mut device, &mut oracle, exemplar.name(), 40, 1).unwrap().0 else {
                continue;
            };
            let effort = Effort { repeats: 24, ..Effort::default() };
            let guess =
                guess(&mut device, &mut oracle, &failing.probe, failing.observed.as_ref(), effort).unwrap();
            let entry = scores.entry(way.name.clone()).or_default();
            let (right, unknown) = (way.kinds.contains(&guess.kind), guess.kind == Unknown);
            entry.0 += usize::from(right);
            entry.1 += usize::from(unknown);
            let mark = if right {
                "right"
            } else if unknown {
                "-"
            } else {
                "OTHER"
            };
            println!(
                "{mark:<6} {:<24} {:<40} {:<24} {} ({:.1} s)",
                exemplar.name(),
                way.name,
                guess.kind.name(),
                guess.sentence,
                began.elapsed().as_secs_f64()
            );
            if !matches!(only.as_str(), "" | "all") {
                println!("{guess:#?}");
            }
            if !right && !unknown {
                entry.2.push(format!(
                    "{} with {} is taken for {}: {}",
                    exemplar.name(),
                    way.name,
                    guess.kind,
                    guess.sentence
                ));
            }
        }
    }
    scores
}
use Kind::Unknown;

/// Four of five are told, and none by another kind.
fn holds(of: &dyn Fn(&Way) -> bool) {
    let scores = score(of);
    let (mut right, mut all, mut others) = (0, 0, Vec::new());
    for (name, (told, unknown, taken)) in scores {
        println!("{told:>3} of {:>3} {name}", told + unknown + taken.len());
        (right, all) = (right + told, all + told + unknown + taken.len());
        others.extend(taken);
    }
    println!("{right} of {all} are told, {} by another kind", others.len());
    assert!(others.is_empty(), "{}", others.join("\n"));
    assert!(right * 5 >= all * 4, "{right} of {all}");
}

fn is_sum(way: &Way) -> bool {
    way.name.starts_with("sums")
}

fn is_structure(way: &Way) -> bool {
    way.name.starts_with("structure")
}

#[test]
fn sums_over_all_operators() {
    holds(&is_sum);
}

#[test]
fn results_over_all_operators() {
    holds(&|way| !is_sum(way) && !is_structure(way));
}

#[test]
fn structure_over_all_operators() {
    holds(&is_structure);
}
