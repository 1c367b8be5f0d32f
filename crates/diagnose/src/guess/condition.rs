//! It fails only where something special is among the operands: the same case without it agrees.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use std::collections::BTreeSet;
use toprope_conformance::lockstep::Obstacle;
use toprope_program::operator::Router;
use toprope_program::{Operator, Tensor};

/// The other micro-batch.
pub(super) fn micro_batch(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !matches!(lab.base.probe.operator(), Operator::Accumulate(_)) || !lab.base.fails() {
        return Ok(None);
    }
    let first = lab.base.probe.is_first();
    let other = lab.base.probe.in_micro_batch(!first);
    if lab.fails(other)? != Some(false) {
        return Ok(None);
    }
    let (wrong, right) = if first { ("the first", "later") } else { ("a later", "the first") };
    let sentence = if first {
        "The first micro-batch is added to what was there; it must take its place."
    } else {
        "A later micro-batch takes the place of what was there; it must be added."
    };
    Ok(lab.conclude(
        Kind::FirstMicroBatch,
        sentence,
        "the same operands in the other micro-batch",
        format!("{wrong} micro-batch is wrong, {right} ones agree"),
    ))
}

/// An operand without its special elements.
struct Removal {
    kind: Kind,
    /// What is taken out.
    what: &'static str,
    operands: Vec<Tensor>,
}

/// The least error of a sum that has lost one of its rows, in units of its magnitude.
const LOST_LEAST: f64 = 0.05;

/// The smallest normal number of f32 and bf16.
const SMALLEST_NORMAL: f64 = 1.175_494_350_822_287_5e-38;

pub(super) fn condition(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    without(lab, removals)
}

/// A router that is right where no group of experts is closed.
pub(super) fn closed_groups(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let Operator::Router(router) = lab.base.probe.operator().clone() else { return Ok(None) };
    if !lab.base.fails() || lab.base.probe.has_views() || router.top_groups >= router.groups {
        return Ok(None);
    }
    let open = Operator::Router(Router { top_groups: router.groups, ..router });
    let Ok(probe) = lab.base.probe.altered(&open, lab.base.probe.operands()) else { return Ok(None) };
    let ran = "the same operands with every group of experts open";
    match lab.fails(probe)? {
        Some(false) => {
            let sentence = "It is wrong only where groups of experts are closed: one of them is chosen all the same, or an open one is not.";
            Ok(lab.conclude(Kind::Mask, sentence, ran, "agrees"))
        }
        _ => {
            lab.note(ran, "fails all the same");
            Ok(None)
        }
    }
}

/// Windows of parts that meet: what is there must be their sum.
pub(super) fn overlap(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !matches!(lab.base.probe.operator(), Operator::Assemble(_)) || lab.base.probe.has_views() {
        return Ok(None);
    }
    let samples: Vec<Sample> = lab.failing().cloned().collect();
    for later in [true, false] {
        let mut all = !samples.is_empty();
        for sample in &samples {
            let Some(want) = without_sums(lab, sample, later)? else { return Ok(None) };
            all = all && sample.explained_by_outputs(vec![want]);
        }
        if all {
            let which = if later { "the last" } else { "the first" };
            let sentence = format!(
                "Where windows of several parts meet {which} of them counts alone; they must be added."
            );
            let ran = "the result with one part alone in each place";
            return Ok(lab.conclude(Kind::Collision, sentence, ran, "it is what was given"));
        }
    }
    lab.note("the result with one part alone in each place", "is not what was given");
    Ok(None)
}

/// What is assembled where of all parts that reach a place the last, or the first, counts alone.
fn without_sums(lab: &mut Lab<'_>, sample: &Sample, later: bool) -> Result<Option<Tensor>, Obstacle> {
    let operands = sample.probe.operands();
    let operator = sample.probe.operator();
    let mut want = sample.exact.want[0].clone();
    want.data.fill(0.0);
    let mut taken = vec![false; want.data.len()];
    for at in 0..operands.len() {
        let alone = |ones: bool| -> Vec<Tensor> {
            let part = |(other, t): (usize, &Tensor)| {
                let number = |x: &f64| if ones { 1.0 } else { *x };
                let data = t.data.iter().map(|x| if other == at { number(x) } else { 0.0 });
                Tensor { data: data.collect(), ..t.clone() }
            };
            operands.iter().enumerate().map(part).collect()
        };
        let mut results = Vec::new();
        for ones in [true, false] {
            let Ok(probe) = sample.probe.altered(operator, alone(ones)) else { return Ok(None) };
            results.push(probe.exact(lab.oracle)?.want[0].data.clone());
        }
        for place in 0..taken.len() {
            if results[0][place] != 0.0 && (later || !taken[place]) {
                want.data[place] = results[1][place];
                taken[place] = true;
            }
        }
    }
    Ok(Some(want))
}

/// Only exact zeros: what a formula makes of them may be that of a constant that is lost, so that formulas are asked first.
pub(super) fn zeros(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    without(lab, |_, operands| {
        replaced(operands, Kind::EdgeValue, "exact zeros", &|x| x == 0.0, 0.5).into_iter().collect()
    })
}

/// Takes out one special thing after the other.
fn without(
    lab: &mut Lab<'_>,
    removals: fn(&Operator, &[Tensor]) -> Vec<Removal>,
) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let operands = lab.base.probe.operands();
    let operator = lab.base.probe.operator().clone();
    let crowded = beyond_room(&lab.base);
    for Removal { kind, what, operands } in removals(&operator, &operands) {
        // A row that is lost is much of a sum; a sum that is rounded loses little.
        let lost = kind != Kind::Collision || lab.base.largest_error() > LOST_LEAST;
        if kind == Kind::Capacity && !crowded || !lost {
            continue;
        }
        let Ok(without) = lab.base.probe.altered(&operator, operands) else { continue };
        let Ok(without) = without.made_consistent(lab.oracle) else { continue };
        let showed = match lab.sample(without)? {
            Some(sample) if !sample.fails() => "agrees",
            Some(_) => "fails all the same",
            None => continue,
        };
        let ran = format!("the same operands without {what}");
        if showed == "agrees" {
            let sentence = format!("It is wrong only where there are {what}.");
            return Ok(lab.conclude(kind, sentence, ran, showed));
        }
        lab.note(ran, showed);
    }
    Ok(None)
}

/// Whether every wrong element is zero and lies behind the first rows of a group that is larger than the mean.
fn beyond_room(sample: &Sample) -> bool {
    let operands = sample.probe.operands();
    let (Some(offsets), Some(got)) = (operands.get(2), sample.outcome.outputs.first()) else { return false };
    let (rows, width) = (operands[0].sizes[0], got.sizes.last().copied().unwrap_or(1).max(1));
    let mean = rows as f64 / offsets.data.len().saturating_sub(1).max(1) as f64;
    let beyond = |element: usize| {
        let row = (element / width) as f64;
        got.data[element] == 0.0
            && offsets.data.windows(2).any(|group| row >= group[0] + mean.floor() && row < group[1])
    };
    let wrong = sample.wrong_in(0);
    !wrong.is_empty() && wrong.into_iter().all(beyond)
}

/// Float operands with another number in place of special ones; none where there are none.
fn replaced(
    operands: &[Tensor],
    kind: Kind,
    what: &'static str,
    holds: &dyn Fn(f64) -> bool,
    by: f64,
) -> Option<Removal> {
    let special = |t: &Tensor| t.dtype.is_float() && t.data.iter().any(|x| holds(*x));
    operands.iter().any(special).then(|| {
        let swap = |t: &Tensor| {
            let data = t.data.iter().map(|x| if holds(*x) { by } else { *x }).collect();
            if t.dtype.is_float() { Tensor { data, ..t.clone() } } else { t.clone() }
        };
        Removal { kind, what, operands: operands.iter().map(swap).collect() }
    })
}

fn removals(operator: &Operator, operands: &[Tensor]) -> Vec<Removal> {
    let special = |x: f64| !x.is_finite();
    let mut list: Vec<Removal> =
        replaced(operands, Kind::SpecialValues, "NaN and infinities", &special, 1.0).into_iter().collect();
    let small = |x: f64| x != 0.0 && x.abs() < SMALLEST_NORMAL;
    list.extend(replaced(operands, Kind::SubnormalsFlushed, "numbers below the normal ones", &small, 1.0));
    let mut push = |kind, what, operands: Vec<Tensor>| list.push(Removal { kind, what, operands });
    if let Some((at, bound)) = index_operand(operator, operands) {
        let inside = |x: &f64| *x >= 0.0 && *x < bound as f64;
        if !operands[at].data.iter().all(inside) {
            push(
                Kind::StrayIndex,
                "indices outside of their range",
                with(operands, at, |x, _| x.rem_euclid(bound as f64)),
            );
        }
        if bound > 1 && operands[at].data.contains(&0.0) {
            push(
                Kind::EdgeValue,
                "indices that are 0",
                with(operands, at, |x, _| if x == 0.0 { 1.0 } else { x }),
            );
        }
        let words: BTreeSet<u64> = operands[at].data.iter().map(|x| x.to_bits()).collect();
        if let Operator::LinearCrossEntropyGradient(_) = operator
            && (words.len() + 1..=bound).contains(&operands[at].data.len())
        {
            push(Kind::Collision, "rows of the same word", with(operands, at, |_, i| i as f64));
        }
        if let Operator::ScatterAdd(_) = operator {
            let rows = operands[at].data.len().min(bound);
            let fewer = vec![leading(&operands[0], rows), leading(&operands[1], rows)];
            push(Kind::Collision, "rows that go to the same place", with(&fewer, 1, |_, i| i as f64));
        }
    }
    if let Operator::Append(_) = operator {
        let (rows, more) = (operands[0].sizes[0], operands[1].sizes[0]);
        if operands[2].data[0] as usize + more > rows {
            let fewer = vec![operands[0].clone(), leading(&operands[1], more.min(rows)), operands[2].clone()];
            push(Kind::StrayIndex, "rows behind the end of the cache", with(&fewer, 2, |_, _| 0.0));
        }
    }
    if let Operator::ExpertSort(sort) = operator
        && operands[0].data.len() <= sort.experts
    {
        push(Kind::TieBreak, "slots of the same expert", with(operands, 0, |_, i| i as f64));
    }
    if let Operator::Router(_) = operator {
        // Logits of their own for each expert; no bias that makes two of them equal.
        let experts = operands[1].data.len() as f64;
        let spread = with(operands, 0, |x, i| x + (i as f64 * 7.0 % experts) * 1e-2 + i as f64 * 1e-4);
        push(Kind::TieBreak, "equal scores", with(&spread, 1, |x, i| x + i as f64 * 3.1e-3));
    }
    if let Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) = operator {
        let groups = operands[2].data.len().saturating_sub(1).max(1);
        let rows = operands[0].sizes[0];
        // One group stays empty where one was: groups without rows are another matter.
        let empty = operands[2].data.windows(2).any(|w| w[0] >= w[1]);
        let shared = if empty { groups.saturating_sub(1).max(1) } else { groups };
        let most = operands[2].data.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
        let larger = most > 1.0 + (rows as f64 / shared as f64).ceil();
        if larger && groups > 1 && matches!(operator, Operator::GroupedMatmul(_)) {
            let even = |i: usize| (i.min(shared) * rows / shared) as f64;
            push(Kind::Capacity, "groups that are larger than the others", with(operands, 2, |_, i| even(i)));
        }
        // Of a product no row belongs to a group without rows.
        if rows >= groups && empty && matches!(operator, Operator::GroupedOuter(_)) {
            push(
                Kind::EmptyGroup,
                "groups without rows",
                with(operands, 2, |_, i| (i * rows / groups) as f64),
            );
        }
    }
    let starts = match operator {
        Operator::Attention(_) if operands.len() == 4 => Some(3),
        Operator::AttentionGradient(_) => Some(6),
        _ => None,
    };
    if let Some(at) = starts
        && operands[at].data.iter().enumerate().any(|(i, start)| *start > i as f64)
    {
        push(Kind::EmptyGroup, "rows that see nothing", with(operands, at, |start, i| start.min(i as f64)));
    }
    list
}

fn with(operands: &[Tensor], at: usize, map: impl Fn(f64, usize) -> f64) -> Vec<Tensor> {
    let mut operands = operands.to_vec();
    let data = operands[at].data.iter().enumerate().map(|(i, x)| map(*x, i));
    operands[at] = Tensor::rounded(operands[at].dtype, &operands[at].sizes.clone(), data);
    operands
}

/// The first rows of a tensor.
fn leading(tensor: &Tensor, rows: usize) -> Tensor {
    let mut sizes = tensor.sizes.clone();
    sizes[0] = rows;
    let data = tensor.data[..sizes.iter().product()].to_vec();
    Tensor { dtype: tensor.dtype, sizes, data }
}

/// The operand that holds indices, and what they stay below.
pub(super) fn index_operand(operator: &Operator, operands: &[Tensor]) -> Option<(usize, usize)> {
    let size = |at: usize, axis: usize| operands.get(at).and_then(|t| t.sizes.get(axis)).copied();
    match operator {
        Operator::Gather(_) => Some((1, size(0, 0)?)),
        Operator::ScatterAdd(scatter) => Some((1, scatter.rows.constant()?)),
        Operator::Rope(_) => Some((1, size(2, 0)?)),
        Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_) => Some((2, size(1, 0)?)),
        Operator::ExpertSort(sort) => Some((0, sort.experts)),
        Operator::Combine(_) | Operator::CombineGradient(_) => Some((1, size(0, 0)?)),
        _ => None,
    }
}
