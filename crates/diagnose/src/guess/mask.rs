//! Who sees whom: every wrong row of attention is what it would be with another mask.

use super::lab::{Lab, Sample, flops};
use super::model::{Sight, gradient_seeing, seeing};
use super::steps::{Steps, TILES};
use super::{Conclusion, Kind};
use crate::probe::Exact;
use std::collections::{BTreeMap, BTreeSet};
use toprope_conformance::lockstep::Obstacle;
use toprope_program::{Operator, Tensor};

/// Which keys a query sees.
type See = Box<dyn Fn(usize, usize) -> bool>;

/// A mask with what it is called.
struct Mask {
    what: String,
    /// What it is where it explains everything.
    kind: Kind,
    see: See,
}

/// Operations of attention above which masks are not gone through.
const FLOPS_MAX: u64 = 8_000_000;

pub(super) fn mask(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !matches!(lab.base.probe.operator(), Operator::Attention(_) | Operator::AttentionGradient(_)) {
        return Ok(None);
    }
    if !lab.base.fails() || lab.base.probe.has_views() || flops(&lab.base) > FLOPS_MAX {
        return Ok(None);
    }
    let samples: Vec<_> = lab.failing().cloned().collect();
    let ran = "attention with other masks";
    // What no mask explains in a small case none explains in a larger one.
    let small = lab.small()?;
    if explain(&small, &mut BTreeMap::new(), &mut BTreeSet::new()).is_some_and(|left| left > 0) {
        lab.note(ran, "a wrong query remains in a small case");
        return Ok(None);
    }
    let mut used: BTreeMap<String, Kind> = BTreeMap::new();
    let mut rows: BTreeSet<usize> = BTreeSet::new();
    let queries = lab.base.probe.operands()[0].sizes[0];
    for sample in &samples {
        let Some(left) = explain(sample, &mut used, &mut rows) else { return Ok(None) };
        if left > 0 {
            lab.note(ran, format!("{left} wrong queries remain"));
            return Ok(None);
        }
    }
    // Many masks explain everything and so nothing.
    if used.is_empty() || used.len() > MASKS_MOST * samples.len() {
        return Ok(None);
    }
    let tails = used.values().all(|kind| *kind == Kind::DroppedTail);
    let masks = used.into_keys().collect::<Vec<_>>().join("; or ");
    let share = format!("{} of {queries} queries", rows.len());
    let which = rows.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let sentence = format!("Its mask is wrong for {share} (from {which}): they see {masks}.");
    let showed = format!("every wrong query is what it is where it sees {masks}");
    let kind = if tails { Kind::DroppedTail } else { Kind::Mask };
    Ok(lab.conclude(kind, sentence, ran, showed))
}

/// Masks that are taken together at most.
const MASKS_MOST: usize = 3;

/// Looks for the fewest masks that explain every wrong query, and gives how many remain; none where too many are wrong to be
/// told. A gradient of a key is a sum over queries: there one mask must explain it all.
fn explain(sample: &Sample, used: &mut BTreeMap<String, Kind>, rows: &mut BTreeSet<usize>) -> Option<usize> {
    if sample.judgement.wrong.is_empty()
        || sample.judgement.wrong_count as usize > sample.judgement.wrong.len()
    {
        return None;
    }
    let forward = matches!(sample.probe.operator(), Operator::Attention(_));
    let heads = sample.exact.want[0].sizes[1];
    // A query is a row of a head; the whole gradient is one.
    let query = |(output, element): &(usize, usize)| {
        let width = if *output == 0 { sample.exact.want[0].sizes[2].max(1) } else { 1 };
        if forward { element / width } else { 0 }
    };
    let mut left: BTreeSet<usize> = sample.judgement.wrong.iter().map(query).collect();
    if forward {
        rows.extend(left.iter().map(|query| query / heads.max(1)));
    } else {
        rows.extend(0..sample.exact.want[0].sizes[0]);
    }
    let mut explained: Vec<(String, Kind, BTreeSet<usize>)> = Vec::new();
    let mut list = masks(sample);
    list.sort_by_key(|mask| !used.contains_key(&mask.what));
    for Mask { what, kind, see } in list {
        let Some(wrong) = wrong_with(sample, &*see) else { continue };
        let wrong: BTreeSet<usize> = wrong.iter().map(query).collect();
        let right: BTreeSet<usize> = left.difference(&wrong).copied().collect();
        if right.len() == left.len() {
            used.insert(what, kind);
            return Some(0);
        }
        if !right.is_empty() {
            explained.push((what, kind, right));
        }
    }
    for _ in 0..MASKS_MOST {
        // The first of those that explain most.
        let gain = |(_, _, right): &(String, Kind, BTreeSet<usize>)| right.intersection(&left).count();
        let Some(best) = explained.iter().rev().max_by_key(|mask| gain(mask)).filter(|mask| gain(mask) > 0)
        else {
            break;
        };
        used.insert(best.0.clone(), best.1);
        left = left.difference(&best.2).copied().collect();
    }
    Some(left.len())
}

/// What is wrong where queries see other keys; none where that cannot be judged.
fn wrong_with(sample: &Sample, see: Sight<'_>) -> Option<Vec<(usize, usize)>> {
    let operands = sample.probe.operands();
    let o: Vec<&Tensor> = operands.iter().collect();
    let steps = Steps::right();
    let outputs = match sample.probe.operator() {
        Operator::Attention(a) => seeing(a.scale, &o, see, &steps),
        Operator::AttentionGradient(a) => gradient_seeing(a.scale, &o, see, &steps),
        _ => return None,
    };
    let mut exact = Exact { want: sample.exact.want.clone(), measured: sample.exact.measured.clone() };
    // Other keys are other contributions: of those that all keys make none is left out.
    let most = |o: &Tensor| o.data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let reach = o.get(2).map_or(0.0, |v| most(v));
    for (output, data) in outputs.into_iter().enumerate() {
        let tensor = exact.want.get_mut(output)?;
        let data = data.filter(|data| data.len() == tensor.data.len())?;
        tensor.data = data;
        if let Some(magnitudes) = exact.measured.whole.get_mut(output) {
            for (magnitude, x) in magnitudes.iter_mut().zip(&exact.want[output].data) {
                if x.is_finite() {
                    *magnitude = magnitude.max(x.abs()).max(if magnitude == &0.0 { reach } else { 0.0 });
                }
            }
        }
    }
    // The rows that see nothing under this mask may give what a softmax over nothing gives.
    let keys = o[1].sizes[0];
    let blind: Vec<bool> = (0..o[0].sizes[0]).map(|i| !(0..keys).any(|j| see(i, j))).collect();
    if let Operator::Attention(_) = sample.probe.operator() {
        blind_rows(sample, &o, &blind, &mut exact);
    } else {
        exact.want.truncate(3);
        if sample.exact.want.len() > 3 {
            exact.want.extend(sample.outcome.outputs[3..].iter().cloned());
        }
    }
    let judgement = sample.probe.judge(&exact, &sample.outcome);
    (judgement.wrong_count as usize <= judgement.wrong.len()).then_some(judgement.wrong)
}

/// A softmax over nothing gives zeros, NaN, or where what is hidden is a large negative number the mean of all.
fn blind_rows(sample: &Sample, o: &[&Tensor], blind: &[bool], exact: &mut Exact) {
    let (heads, groups, keys) = (o[0].sizes[1], o[1].sizes[1], o[1].sizes[0]);
    let width = o[2].sizes[2];
    for (i, h) in (0..blind.len()).filter(|i| blind[*i]).flat_map(|i| (0..heads).map(move |h| (i, h))) {
        let at = i * heads + h;
        let place = at * width..(at + 1) * width;
        let given = &sample.outcome.outputs[0].data[place.clone()];
        let mean = |c: usize| {
            let g = h * groups / heads;
            (0..keys).map(|j| o[2].data[(j * groups + g) * width + c]).sum::<f64>() / keys.max(1) as f64
        };
        let mean: Vec<f64> = (0..width).map(mean).collect();
        let near = given.iter().zip(&mean).all(|(a, b)| (a - b).abs() <= 1e-2 * (1.0 + b.abs()));
        if given.iter().all(|x| x.is_nan()) || near {
            exact.want[0].data[place].copy_from_slice(given);
        }
        // There is no right logarithm of nothing.
        exact.want[1].data[at] = sample.outcome.outputs[1].data[at];
    }
}

fn masks(sample: &Sample) -> Vec<Mask> {
    let operands = sample.probe.operands();
    let keys = operands[1].sizes[0];
    let forward = matches!(sample.probe.operator(), Operator::Attention(_));
    let starts: Vec<i64> =
        operands[if forward { 3 } else { 6 }].data.iter().map(|x| (*x as i64).max(0)).collect();
    let rows = starts.len();
    let scalar =
        |at: usize| operands.get(at).filter(|_| forward).and_then(|t| t.data.first()).map(|x| *x as i64);
    let (offset, n) = (scalar(4).unwrap_or(0), keys as i64);
    let length = scalar(5).unwrap_or(n).min(n);
    let mut list: Vec<Mask> = Vec::new();
    let mut push = |kind: Kind, what: String, range: Box<dyn Fn(usize, i64, i64) -> (i64, i64)>| {
        let starts = starts.clone();
        let see = move |i: usize, j: usize| {
            let (from, to) = range(i, starts[i], i as i64 + offset + 1);
            (j as i64) >= from && (j as i64) < to
        };
        list.push(Mask { what, kind, see: Box::new(see) });
    };
    let all = move |end: i64| end.min(length);
    for tile in TILES.into_iter().filter(|tile| (*tile as i64) < n) {
        let t = tile as i64;
        if length % t != 0 {
            let what = format!("no key behind the last multiple of {tile}");
            push(Kind::DroppedTail, what, Box::new(move |_, start, end| (start, end.min(length / t * t))));
        }
    }
    if starts.iter().any(|start| *start > 0) {
        push(Kind::Mask, "earlier documents".into(), Box::new(move |_, _, end| (0, all(end))));
        for step in [1, -1] {
            let what = if step > 0 {
                "one key less at the start of a document"
            } else {
                "one key more before the start of a document"
            };
            push(Kind::Mask, what.into(), Box::new(move |_, start, end| ((start + step).max(0), all(end))));
        }
    } else {
        push(Kind::Mask, "not the first key".into(), Box::new(move |_, start, end| (start + 1, all(end))));
    }
    // Where the next document begins.
    let ends: Vec<i64> = (0..rows)
        .map(|i| starts[i + 1..].iter().copied().filter(|start| *start > i as i64).min().unwrap_or(n))
        .collect();
    for (step, what) in
        [(1, "the key behind their own, within their document"), (n, "all of their own document")]
    {
        let ends = ends.clone();
        push(
            Kind::Mask,
            what.into(),
            Box::new(move |i, start, end| (start, all((end + step).min(ends[i].max(end))))),
        );
    }
    for step in 1..=16.min(n) {
        push(
            Kind::Mask,
            format!("{step} key(s) behind their own"),
            Box::new(move |_, start, end| (start, all(end + step))),
        );
    }
    for step in 1..=16.min(n) {
        push(
            Kind::Mask,
            format!("{step} key(s) less than up to their own"),
            Box::new(move |_, start, end| (start, all(end - step))),
        );
    }
    push(
        Kind::Mask,
        "their own key alone".into(),
        Box::new(move |_, start, end| (start.max(end - 1), all(end))),
    );
    push(Kind::Mask, "every key behind them".into(), Box::new(move |_, start, _| (start, length)));
    push(Kind::Mask, "every key of every document".into(), Box::new(move |_, _, _| (0, length)));
    if length < n {
        push(
            Kind::Mask,
            "keys behind the cache's length".into(),
            Box::new(move |_, start, end| (start, end.min(n))),
        );
        push(
            Kind::Mask,
            "a cache that is longer by one".into(),
            Box::new(move |_, start, end| (start, end.min(length + 1))),
        );
    }
    push(
        Kind::Mask,
        "a cache that is shorter by one".into(),
        Box::new(move |_, start, end| (start, end.min(length - 1))),
    );
    if offset > 0 {
        push(
            Kind::Mask,
            "no offset of their own".into(),
            Box::new(move |_, start, end| (start, all(end - offset))),
        );
    }
    for tile in TILES {
        let t = tile as i64;
        if t >= n {
            continue;
        }
        let what = format!("whole tiles of {tile} up to that of their own key");
        push(Kind::Mask, what, Box::new(move |_, start, end| (start, all((end + t - 1) / t * t))));
        let what = format!("whole tiles of {tile} before their own key");
        push(Kind::Mask, what, Box::new(move |_, start, end| (start, all(end / t * t))));
        let what = format!("whole tiles of {tile} before that of their own key, and not that");
        push(Kind::Mask, what, Box::new(move |_, start, end| (start, all((end - 1) / t * t))));
        let what = format!("whole tiles of {tile} from that of their document's start on");
        push(Kind::Mask, what, Box::new(move |_, start, end| (start / t * t, all(end))));
        push(
            Kind::Mask,
            format!("the last {tile} keys alone"),
            Box::new(move |_, start, end| (start.max(end - t), all(end))),
        );
        push(
            Kind::Mask,
            format!("the first {tile} keys alone"),
            Box::new(move |_, start, end| (start, end.min(t))),
        );
    }
    if !forward {
        // A gradient of a key is a sum over queries, so that a mask must hold for all of them at once.
        for from in 1..rows.min(48) {
            push(
                Kind::Mask,
                format!("every key from query {from} on"),
                Box::new(move |i, start, end| (start, if i >= from { length } else { all(end) })),
            );
        }
        let first = move |i: usize, start: i64| i as i64 == start;
        push(
            Kind::Mask,
            "not their own key but where it is the first".into(),
            Box::new(move |i, start, end| (start, if first(i, start) { all(end) } else { all(end - 1) })),
        );
    }
    list
}
