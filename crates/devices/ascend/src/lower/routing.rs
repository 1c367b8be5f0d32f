//! Choice of experts and their balance. The vendor's own gates know no bias on any score and give no scores back.

use crate::call::{Argument, Number, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use crate::lower::place::only_where;
use toprope_program::operator::{BalanceLoss, BalanceLossGradient, Router, RouterGradient, Scoring};

/// The order of the last axis, largest first, ties to the lower index: `(values, places in i64)`.
fn descending(e: &mut Emit<'_>, x: &View) -> Lowered<(View, View)> {
    let (values, places) = (e.temporary(Element::F32, &x.sizes), e.temporary(Element::I64, &x.sizes));
    let axis = Argument::I64(x.rank() as i64 - 1);
    let (stable, descending) = (Argument::Bool(true), Argument::Bool(true));
    e.call("Sort", vec![tensor(x), stable, axis, descending, tensor(&values), tensor(&places)])?;
    Ok((values, places))
}

/// Elements of the last axis at places in i64.
pub(super) fn at(e: &mut Emit<'_>, x: &View, places: &View) -> Lowered<View> {
    let y = e.temporary(x.element, &places.sizes);
    let axis = Argument::I64(x.rank() as i64 - 1);
    e.call("Gather", vec![tensor(x), axis, tensor(places), tensor(&y)])?;
    Ok(y)
}

/// How often each of `0..count` stands among integers, over an axis that a new last axis of `count` follows: `[.., count]`
/// in f32.
pub(super) fn occurrences(e: &mut Emit<'_>, x: &View, axis: usize, count: usize) -> Lowered<View> {
    let number = e.ramp(count);
    let hit = e.compare("EqTensor", &x.unsqueeze(x.rank()), &number)?;
    let hit = e.cast(&hit, Element::F32)?;
    e.sum(&hit, &[axis])
}

/// The scores by which experts are chosen: a NaN is below every number.
fn preferred(e: &mut Emit<'_>, biased: &View) -> Lowered<View> {
    let (bad, lowest) = (e.is_nan(biased)?, e.constant_f32(f32::NEG_INFINITY));
    e.choose(&bad, &lowest, biased)
}

pub(super) fn router(e: &mut Emit<'_>, it: &Router, x: &[View], y: &[View]) -> Lowered {
    let (logits, scores) = (&x[0], &y[0]);
    let (rows, experts) = (logits.sizes[0], logits.sizes[1]);
    match it.scoring {
        Scoring::Sigmoid => e.unary_into("Sigmoid", logits, scores)?,
        Scoring::Softmax => {
            e.call("Softmax", vec![tensor(logits), Argument::I64(1), tensor(scores)])?;
        }
    }
    let biased = e.binary("Add", scores, &x[1])?;
    let mut biased = preferred(e, &biased)?;
    if it.top_groups < it.groups {
        let grouped = biased.split(1, it.groups);
        let of_group = if experts == it.groups {
            grouped.select(2, 0)
        } else {
            let (values, _) = descending(e, &grouped)?;
            e.sum(&values.narrow(2, 0, 2), &[2])?
        };
        let of_group = e.dense(&of_group)?;
        let (_, order) = descending(e, &of_group)?;
        let best = e.cast(&order.narrow(1, 0, it.top_groups), Element::I32)?;
        let chosen = occurrences(e, &best, 1, it.groups)?;
        let open = e.compare_with("GtScalar", &chosen, Number::F32(0.5))?;
        let lowest = e.constant_f32(f32::NEG_INFINITY);
        biased = e.choose(&open.unsqueeze(2), &grouped, &lowest)?.reshape(&[rows, experts]);
    }
    let (_, order) = descending(e, &biased)?;
    let places = order.narrow(1, 0, it.top_k);
    e.copy(&y[1], &places)?;
    let places = e.dense(&places)?;
    let chosen = at(e, scores, &places)?;
    weigh(e, &chosen, it.normalize, it.scale as f32, &y[2])?;
    let counts = occurrences(e, &y[1].flat(), 0, experts)?;
    e.copy(&y[3], &counts)
}

/// `scale·chosen`, over their sum where normalised.
fn weigh(e: &mut Emit<'_>, chosen: &View, normalize: bool, scale: f32, y: &View) -> Lowered {
    if !normalize {
        return e.scale_into(chosen, scale, y);
    }
    let sum = e.sum(chosen, &[1])?;
    let sum = e.plus(&sum, Number::F32(1e-20))?;
    let scaled = e.scaled(chosen, scale)?;
    e.binary_into("Div", &scaled, &sum.unsqueeze(1), y)
}

pub(super) fn router_gradient(e: &mut Emit<'_>, it: &RouterGradient, x: &[View], y: &[View]) -> Lowered {
    let (scores, weights, dweights) = (&x[0], &x[2], &x[3]);
    let (places, there) = e.within(&x[1], scores.sizes[1])?;
    let places = e.cast(&places, Element::I64)?;
    let mut terms = e.scaled(dweights, it.scale as f32)?;
    if it.normalize {
        let chosen = at(e, scores, &places)?;
        let chosen = only_where(e, &there, &chosen)?;
        let sum = e.sum(&chosen, &[1])?;
        let sum = e.plus(&sum, Number::F32(1e-20))?;
        let along = e.binary("Mul", dweights, weights)?;
        let along = e.sum(&along, &[1])?;
        terms = e.binary("Sub", &terms, &along.unsqueeze(1))?;
        terms = e.binary("Div", &terms, &sum.unsqueeze(1))?;
    }
    let terms = only_where(e, &there, &terms)?;
    let start = match x.get(4) {
        Some(dscores) => e.dense(dscores)?,
        None => e.zeros(&scores.sizes)?,
    };
    let g = e.temporary(Element::F32, &scores.sizes);
    e.call(
        "ScatterAdd",
        vec![tensor(&start), Argument::I64(1), tensor(&places), tensor(&terms), tensor(&g)],
    )?;
    match it.scoring {
        Scoring::Sigmoid => e.binary_into("SigmoidBackward", &g, scores, &y[0]),
        Scoring::Softmax => {
            e.call("SoftmaxBackward", vec![tensor(&g), tensor(scores), Argument::I64(1), tensor(&y[0])])
        }
    }
}

/// Loads `[N, E]` and shares `[N, S, E]` of sequences, and the sums of scores `[N·S]`.
pub(super) fn loads(
    e: &mut Emit<'_>,
    sequence: usize,
    scores: &View,
    indices: &View,
) -> Lowered<(View, View, View)> {
    let (experts, top_k) = (scores.sizes[1], indices.sizes[1]);
    let sequences = scores.sizes[0] / sequence;
    let indices = e.dense(indices)?.reshape(&[sequences, sequence * top_k]);
    let load = occurrences(e, &indices, 1, experts)?;
    let load = e.scaled(&load, experts as f32 / (top_k * sequence) as f32)?;
    let sum = e.sum(scores, &[1])?;
    let share = e.binary("Div", scores, &sum.unsqueeze(1))?;
    Ok((load, share.split(0, sequences), sum))
}

pub(super) fn balance_loss(e: &mut Emit<'_>, it: &BalanceLoss, x: &[View], y: &[View]) -> Lowered {
    let (load, share, _) = loads(e, it.sequence, &x[0], &x[1])?;
    let affinity = e.sum(&share, &[1])?;
    let affinity = e.scaled(&affinity, 1.0 / it.sequence as f32)?;
    let terms = e.binary("Mul", &load, &affinity)?;
    e.sum_into(&terms, &[1], &y[0])
}

pub(super) fn balance_loss_gradient(
    e: &mut Emit<'_>,
    it: &BalanceLossGradient,
    x: &[View],
    y: &[View],
) -> Lowered {
    let (load, share, sum) = loads(e, it.sequence, &x[0], &x[1])?;
    let load = load.unsqueeze(1);
    let along = e.binary("Mul", &share, &load)?;
    let along = e.sum(&along, &[2])?;
    let inner = e.binary("Sub", &load, &along.unsqueeze(2))?;
    let dloss = e.scaled(&x[2], 1.0 / it.sequence as f32)?;
    let factor = e.binary("Div", &dloss.unsqueeze(1), &sum.split(0, dloss.sizes[0]))?;
    e.binary_into("Mul", &inner, &factor.unsqueeze(2), &y[0].split(0, dloss.sizes[0]))
}
