//! Results of twelve operators by another route: plain operators and products where the operator itself has a fused one,
//! counting where it sorts, products where it reduces. In f32: the vector units have nothing wider.

use crate::call::{Argument, Number, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use crate::lower::Site;
use crate::lower::optimizer::worst;
use crate::lower::routing::{at, loads, occurrences};
use toprope_program::Operator;
use toprope_program::operator::{
    BalanceLoss, BiasUpdate, ExpertSort, GlobalNorm, RmsNorm, Router, RouterGradient, Scoring, Verify,
};

/// Factors of `|want|` and of the magnitude.
type Unit = (f64, f64);
/// 2^-70.
const LEAST: f32 = 8.470_329_5e-22;

pub(super) fn verify(e: &mut Emit<'_>, it: &Verify, site: &Site<'_>) -> Lowered {
    let inputs = it.inputs(site.x.len());
    let (x, y) = site.x.split_at(inputs);
    let (types, made) = site.types.0.split_at(inputs);
    let units: Vec<Unit> = it.of.definition().tolerances(types, made).iter().map(Verify::unit).collect();
    let found = match &*it.of {
        Operator::RmsNorm(of) => rms_norm(e, of, x, y, &units),
        Operator::RmsNormGradient(_) => rms_norm_gradient(e, x, y, &units),
        Operator::Router(of) => router(e, of, x, y, &units),
        Operator::RouterGradient(of) => router_gradient(e, of, x, y, &units),
        Operator::BalanceLoss(of) => balance_loss(e, of, x, y, &units),
        Operator::BalanceLossGradient(of) => balance_loss_gradient(e, of.sequence, x, y, &units),
        Operator::ExpertSort(of) => expert_sort(e, of, x, y),
        Operator::ColumnSum(_) => column_sum(e, x, y, &units),
        Operator::Dot(_) => dot(e, x, y, &units),
        Operator::GlobalNorm(of) => global_norm(e, of, x, y, &units),
        Operator::BiasUpdate(of) => bias_update(e, of, x, y, &units),
        Operator::Increment(of) => increment(e, of.by, x, y),
        other => Err(crate::emit::Lacking(format!("`{}` has no second route here", other.name()))),
    }?;
    worst(e, &found, &site.y[0])
}

/// `|got - want|` in units of its bound; infinite where a number is not finite.
fn bounded(e: &mut Emit<'_>, got: &View, want: &View, size: &View, unit: Unit) -> Lowered<View> {
    let got = e.wide(got)?;
    let gap = e.binary("Sub", &got, want)?;
    let gap = e.unary("Abs", &gap)?;
    let size = e.unary("Abs", size)?;
    let mut bound = e.scaled(&size, unit.1 as f32)?;
    if unit.0 > 0.0 {
        let relative = e.unary("Abs", want)?;
        let relative = e.scaled(&relative, unit.0 as f32)?;
        bound = e.binary("Add", &bound, &relative)?;
    }
    let bound = e.plus(&bound, Number::F32(LEAST))?;
    let far = e.binary("Div", &gap, &bound)?;
    let finite = e.temporary(Element::Bool, &far.sizes);
    e.unary_into("IsFinite", &far, &finite)?;
    or_infinite(e, &finite, &far)
}

/// A distance where it is sound, else infinity.
fn or_infinite(e: &mut Emit<'_>, sound: &View, far: &View) -> Lowered<View> {
    let infinite = e.constant_f32(f32::INFINITY);
    e.choose(sound, far, &infinite)
}

/// 0 where integers are the same, else infinity.
fn exactly(e: &mut Emit<'_>, got: &View, want: &View) -> Lowered<View> {
    let same = e.compare("EqTensor", got, want)?;
    let nothing = e.constant_f32(0.0);
    or_infinite(e, &same, &nothing)
}

fn not_below_zero(e: &mut Emit<'_>, x: &View) -> Lowered<View> {
    let floor = e.constant_f32(0.0);
    e.binary("Maximum", x, &floor)
}

fn rms_norm(e: &mut Emit<'_>, it: &RmsNorm, x: &[View], y: &[View], unit: &[Unit]) -> Lowered<Vec<View>> {
    let (wide, weight) = (e.wide(&x[0])?, e.wide(&x[1])?);
    let axis = wide.rank() - 1;
    let part = e.scaled(&wide, 1.0 / wide.last() as f32)?;
    let square = e.binary("Mul", &part, &wide)?;
    let mean = e.sum(&square, &[axis])?;
    let mean = e.plus(&mean, Number::F32(it.epsilon as f32))?;
    let root = e.unary("Sqrt", &mean)?;
    let one = e.constant_f32(1.0);
    let rstd = e.binary("Div", &one, &root)?;
    let scaled = e.binary("Div", &wide, &root.unsqueeze(axis))?;
    let want = e.binary("Mul", &scaled, &weight)?;
    Ok(vec![bounded(e, &y[0], &want, &want, unit[0])?, bounded(e, &y[1], &rstd, &rstd, unit[1])?])
}

fn rms_norm_gradient(e: &mut Emit<'_>, x: &[View], y: &[View], unit: &[Unit]) -> Lowered<Vec<View>> {
    let (wide, weight, dy) = (e.wide(&x[0])?, e.wide(&x[1])?, e.wide(&x[3])?);
    let axis = wide.rank() - 1;
    let rstd = x[2].unsqueeze(axis);
    let along = e.binary("Mul", &dy, &weight)?;
    let normed = e.binary("Mul", &wide, &rstd)?;
    let (size_along, size_normed) = (e.unary("Abs", &along)?, e.unary("Abs", &normed)?);
    let mut found = Vec::new();
    for (along, normed) in [(&along, &normed), (&size_along, &size_normed)] {
        let terms = e.binary("Mul", along, normed)?;
        let mean = e.sum(&terms, &[axis])?;
        let mean = e.scaled(&mean, 1.0 / wide.last() as f32)?;
        let back = e.binary("Mul", normed, &mean.unsqueeze(axis))?;
        found.push((along.clone(), back));
    }
    let inner = e.binary("Sub", &found[0].0, &found[0].1)?;
    let want = e.binary("Mul", &inner, &rstd)?;
    let size = e.binary("Add", &found[1].0, &found[1].1)?;
    let size = e.binary("Mul", &size, &rstd)?;
    let far = bounded(e, &y[0], &want, &size, unit[0])?;
    let terms = e.binary("Mul", &dy, &normed)?;
    let terms = terms.reshape(&[terms.elements() / terms.last(), terms.last()]);
    let sizes = e.unary("Abs", &terms)?;
    let ones = e.filled(&[1, terms.sizes[0]], 1.0)?;
    let (want, size) = (e.product(&ones, &terms)?.select(0, 0), e.product(&ones, &sizes)?.select(0, 0));
    Ok(vec![far, bounded(e, &y[1], &want, &size, unit[1])?])
}

/// Scores and their magnitude from logits, by exponentials.
fn scores(e: &mut Emit<'_>, scoring: Scoring, logits: &View) -> Lowered<(View, View)> {
    let one = e.constant_f32(1.0);
    match scoring {
        Scoring::Sigmoid => {
            let exponential = e.scaled(logits, -1.0)?;
            let exponential = e.unary("Exp", &exponential)?;
            let sum = e.plus(&exponential, Number::F32(1.0))?;
            let want = e.binary("Div", &one, &sum)?;
            Ok((want.clone(), want))
        }
        Scoring::Softmax => {
            let top = e.largest(logits, &[1])?;
            let below = e.binary("Sub", &top.unsqueeze(1), logits)?;
            let exponential = e.scaled(&below, -1.0)?;
            let exponential = e.unary("Exp", &exponential)?;
            let sum = e.sum(&exponential, &[1])?;
            let want = e.binary("Div", &exponential, &sum.unsqueeze(1))?;
            let factor = e.plus(&below, Number::F32(1.0))?;
            let size = e.binary("Mul", &want, &factor)?;
            Ok((want, size))
        }
    }
}

fn router(e: &mut Emit<'_>, it: &Router, x: &[View], y: &[View], unit: &[Unit]) -> Lowered<Vec<View>> {
    let (rows, experts) = (x[0].sizes[0], x[0].sizes[1]);
    let s = e.dense(&y[0])?;
    let (want, size) = scores(e, it.scoring, &x[0])?;
    let mut found = vec![bounded(e, &s, &want, &size, unit[0])?];
    // Chosen experts, in range and distinct.
    let (places, there) = e.within(&y[1], experts)?;
    let valid = e.cast(&there, Element::F32)?;
    let marks = occurrences(e, &places, 1, experts)?;
    let chosen = e.compare_with("GtScalar", &marks, Number::F32(0.5))?;
    let number = e.cast(&chosen, Element::F32)?;
    let (distinct, valid) = (e.sum(&number, &[1])?, e.sum(&valid, &[1])?);
    let both = e.binary("Add", &distinct, &valid)?;
    let sound = e.compare_with("GtScalar", &both, Number::F32(2.0 * it.top_k as f32 - 0.5))?;
    let nothing = e.constant_f32(0.0);
    found.push(or_infinite(e, &sound, &nothing)?);
    // Biased scores as they are stored, and how far their roundings reach.
    let b = e.binary("Add", &s, &x[1])?;
    let (size, of_bias) = (e.unary("Abs", &s)?, e.unary("Abs", &x[1])?);
    let size = e.binary("Add", &size, &of_bias)?;
    let size = e.largest(&size, &[1])?;
    let reach = e.scaled(&size, 4.0 / (1u32 << 24) as f32)?;
    let reach = e.plus(&reach, Number::F32(LEAST))?;
    let infinite = e.constant_f32(f32::INFINITY);
    let lowest = e.constant_f32(f32::NEG_INFINITY);
    let (of_group, sorted) = group_scores(e, &b, it.groups)?;
    let in_group = number.split(1, it.groups);
    let used = e.largest(&in_group, &[2])?;
    let count = e.sum(&used, &[1])?;
    let few = e.compare_with("LtScalar", &count, Number::F32(it.top_groups as f32 + 0.5))?;
    found.push(or_infinite(e, &few, &nothing)?);
    let used = e.compare_with("GtScalar", &used, Number::F32(0.5))?;
    let mut open = used.clone();
    if it.top_groups < it.groups {
        let twice = e.scaled(&reach, 2.0)?;
        let best = e.binary("Add", &sorted.select(1, it.top_groups), &twice)?;
        let better = e.compare("GtTensor", &of_group, &best.unsqueeze(1))?;
        // Either of two masks: not (neither).
        let (a, b) = (e.unary("LogicalNot", &used)?, e.unary("LogicalNot", &better)?);
        let neither = e.binary("LogicalAnd", &a, &b)?;
        open = e.unary("LogicalNot", &neither)?;
    } else {
        // Every group takes part: no group's score is above -∞ by accident.
        let all = e.compare("EqTensor", &used, &used)?;
        e.copy(&open, &all)?;
    }
    let least = e.choose(&chosen, &b, &infinite)?;
    let least = e.extreme("Amin", &least, &[1])?;
    let left = e.choose(&open.unsqueeze(2), &b.split(1, it.groups), &lowest)?.reshape(&[rows, experts]);
    let left = e.choose(&chosen, &lowest, &left)?;
    let left = e.largest(&left, &[1])?;
    let gap = e.binary("Sub", &left, &least)?;
    let gap = e.binary("Div", &gap, &reach)?;
    found.push(not_below_zero(e, &gap)?);
    let of_used = e.choose(&used, &of_group, &infinite)?;
    let of_used = e.extreme("Amin", &of_used, &[1])?;
    let gap = e.binary("Sub", &sorted.select(1, it.top_groups - 1), &of_used)?;
    let gap = e.binary("Div", &gap, &reach)?;
    let gap = e.scaled(&gap, 0.5)?;
    found.push(not_below_zero(e, &gap)?);
    // Weights from the stored scores and indices.
    let places = e.cast(&places, Element::I64)?;
    let of_chosen = at(e, &s, &places)?;
    let mut want = e.scaled(&of_chosen, it.scale as f32)?;
    if it.normalize {
        let sum = e.sum(&of_chosen, &[1])?;
        let sum = e.plus(&sum, Number::F32(1e-20))?;
        want = e.binary("Div", &want, &sum.unsqueeze(1))?;
    }
    found.push(bounded(e, &y[2], &want, &want, unit[2])?);
    let counts = e.sum(&number, &[0])?;
    let counts = e.cast(&counts, Element::I32)?;
    found.push(exactly(e, &y[3], &counts)?);
    Ok(found)
}

/// Scores of groups, `[T, G]`, and the same in descending order: the largest of each and the largest of what is left.
fn group_scores(e: &mut Emit<'_>, b: &View, groups: usize) -> Lowered<(View, View)> {
    let grouped = b.split(1, groups);
    let members = grouped.sizes[2];
    let mut score = e.largest(&grouped, &[2])?;
    if members > 1 {
        let values = e.temporary(Element::F32, &grouped.sizes);
        let places = e.temporary(Element::I64, &grouped.sizes);
        sort(e, &grouped, &values, &places)?;
        score = e.binary("Add", &score, &values.select(2, 1))?;
    }
    let (values, places) = (e.temporary(Element::F32, &score.sizes), e.temporary(Element::I64, &score.sizes));
    sort(e, &score, &values, &places)?;
    Ok((score, values))
}

fn sort(e: &mut Emit<'_>, x: &View, values: &View, places: &View) -> Lowered {
    let (stable, descending) = (Argument::Bool(true), Argument::Bool(true));
    let axis = Argument::I64(x.rank() as i64 - 1);
    e.call("Sort", vec![tensor(x), stable, axis, descending, tensor(values), tensor(places)])
}

fn router_gradient(
    e: &mut Emit<'_>,
    it: &RouterGradient,
    x: &[View],
    y: &[View],
    unit: &[Unit],
) -> Lowered<Vec<View>> {
    let (s, experts) = (&x[0], x[0].sizes[1]);
    let (places, there) = e.within(&x[1], experts)?;
    // [T, K, E]: which choice is which expert.
    let number = e.ramp(experts);
    let hit = e.compare("EqTensor", &places.unsqueeze(2), &number)?;
    let hit = e.binary("LogicalAnd", &hit, &there.unsqueeze(2))?;
    let hit = e.cast(&hit, Element::F32)?;
    let own = e.scaled(&x[3], it.scale as f32)?;
    let (mut terms, mut sizes) = (own.clone(), e.unary("Abs", &own)?);
    if it.normalize {
        let of_choice = e.binary("Mul", &hit, &s.unsqueeze(1))?;
        let sum = e.sum(&of_choice, &[1, 2])?;
        let sum = e.plus(&sum, Number::F32(1e-20))?.unsqueeze(1);
        let common = e.binary("Mul", &x[3], &x[2])?;
        let common_size = e.unary("Abs", &common)?;
        let (common, common_size) = (e.sum(&common, &[1])?, e.sum(&common_size, &[1])?);
        terms = e.binary("Sub", &terms, &common.unsqueeze(1))?;
        terms = e.binary("Div", &terms, &sum)?;
        sizes = e.binary("Add", &sizes, &common_size.unsqueeze(1))?;
        sizes = e.binary("Div", &sizes, &sum)?;
    }
    let spread = |e: &mut Emit<'_>, terms: &View| -> Lowered<View> {
        let terms = e.binary("Mul", &hit, &terms.unsqueeze(2))?;
        e.sum(&terms, &[1])
    };
    let (mut g, mut size) = (spread(e, &terms)?, spread(e, &sizes)?);
    if let Some(dscores) = x.get(4) {
        g = e.binary("Add", &g, dscores)?;
        let more = e.unary("Abs", dscores)?;
        size = e.binary("Add", &size, &more)?;
    }
    let (g_s, size_s) = (e.binary("Mul", &g, s)?, e.binary("Mul", &size, s)?);
    let (want, size) = match it.scoring {
        Scoring::Sigmoid => {
            let rest = e.scaled(s, -1.0)?;
            let rest = e.plus(&rest, Number::F32(1.0))?;
            (e.binary("Mul", &g_s, &rest)?, size_s)
        }
        Scoring::Softmax => {
            let mean = e.sum(&g_s, &[1])?;
            let inner = e.binary("Sub", &g, &mean.unsqueeze(1))?;
            let mean = e.sum(&size_s, &[1])?;
            let outer = e.binary("Add", &size, &mean.unsqueeze(1))?;
            (e.binary("Mul", &inner, s)?, e.binary("Mul", &outer, s)?)
        }
    };
    Ok(vec![bounded(e, &y[0], &want, &size, unit[0])?])
}

fn balance_loss(
    e: &mut Emit<'_>,
    it: &BalanceLoss,
    x: &[View],
    y: &[View],
    unit: &[Unit],
) -> Lowered<Vec<View>> {
    let (load, share, _) = loads(e, it.sequence, &x[0], &x[1])?;
    let each = e.product(&share, &load.unsqueeze(2))?;
    let want = e.sum(&each, &[1, 2])?;
    let want = e.scaled(&want, 1.0 / it.sequence as f32)?;
    Ok(vec![bounded(e, &y[0], &want, &want, unit[0])?])
}

fn balance_loss_gradient(
    e: &mut Emit<'_>,
    sequence: usize,
    x: &[View],
    y: &[View],
    unit: &[Unit],
) -> Lowered<Vec<View>> {
    let (load, share, sum) = loads(e, sequence, &x[0], &x[1])?;
    let along = e.product(&share, &load.unsqueeze(2))?;
    let sum = sum.split(0, load.sizes[0]).unsqueeze(2);
    let dloss = x[2].unsqueeze(1).unsqueeze(2);
    let factor = e.binary("Div", &dloss, &sum)?;
    let factor = e.scaled(&factor, 1.0 / sequence as f32)?;
    let (inner, outer) =
        (e.binary("Sub", &load.unsqueeze(1), &along)?, e.binary("Add", &load.unsqueeze(1), &along)?);
    let (want, size) = (e.binary("Mul", &factor, &inner)?, e.binary("Mul", &factor, &outer)?);
    Ok(vec![bounded(e, &y[0].split(0, load.sizes[0]), &want, &size, unit[0])?])
}

/// Places are counted, not sorted: pairs of lower experts, and earlier pairs of the same.
fn expert_sort(e: &mut Emit<'_>, it: &ExpertSort, x: &[View], y: &[View]) -> Lowered<Vec<View>> {
    let (pairs, top_k) = (x[0].elements(), x[0].sizes[1]);
    let (expert, _) = e.within(&x[0], it.experts)?;
    let expert = expert.flat();
    let number = e.ramp(it.experts);
    let hit = e.compare("EqTensor", &expert.unsqueeze(1), &number)?;
    let hit = e.cast(&hit, Element::F32)?;
    let running = e.temporary(Element::F32, &hit.sizes);
    let whole = Argument::Type(Element::F32);
    e.call("Cumsum", vec![tensor(&hit), Argument::I64(0), whole.clone(), tensor(&running)])?;
    let counts = running.select(0, pairs - 1);
    let counts = e.dense(&counts)?;
    let ends = e.temporary(Element::F32, &counts.sizes);
    e.call("Cumsum", vec![tensor(&counts), Argument::I64(0), whole, tensor(&ends)])?;
    let starts = e.binary("Sub", &ends, &counts)?;
    let earlier = e.binary("Add", &running, &starts)?;
    let place = e.binary("Mul", &earlier, &hit)?;
    let place = e.sum(&place, &[1])?;
    let place = e.plus(&place, Number::F32(-1.0))?;
    let place = e.cast(&place, Element::I32)?;
    let token = e.constant_i32((0..pairs).map(|pair| (pair / top_k.max(1)) as i32));
    let placed = e.rows(&y[0], &place)?;
    let (ends, nothing) = (e.cast(&ends, Element::I32)?, e.constant_i32([0].into_iter()));
    Ok(vec![
        exactly(e, &y[1].reshape(&[pairs]), &place)?,
        exactly(e, &placed, &token)?,
        exactly(e, &y[2].narrow(0, 1, it.experts), &ends)?,
        exactly(e, &y[2].narrow(0, 0, 1), &nothing)?,
    ])
}

fn column_sum(e: &mut Emit<'_>, x: &[View], y: &[View], unit: &[Unit]) -> Lowered<Vec<View>> {
    let wide = e.wide(&x[0])?;
    let size = e.unary("Abs", &wide)?;
    let ones = e.filled(&[1, wide.sizes[0]], 1.0)?;
    let (want, size) = (e.product(&ones, &wide)?.select(0, 0), e.product(&ones, &size)?.select(0, 0));
    Ok(vec![bounded(e, &y[0], &want, &size, unit[0])?])
}

/// `aᵀ·b` of two vectors by the product of matrices, as one element.
fn inner(e: &mut Emit<'_>, a: &View, b: &View) -> Lowered<View> {
    Ok(e.product(&a.unsqueeze(0), &b.unsqueeze(1))?.select(0, 0))
}

fn dot(e: &mut Emit<'_>, x: &[View], y: &[View], unit: &[Unit]) -> Lowered<Vec<View>> {
    let want = inner(e, &x[0], &x[1])?;
    let (a, b) = (e.unary("Abs", &x[0])?, e.unary("Abs", &x[1])?);
    let size = inner(e, &a, &b)?;
    Ok(vec![bounded(e, &y[0], &want, &size, unit[0])?])
}

fn global_norm(
    e: &mut Emit<'_>,
    it: &GlobalNorm,
    x: &[View],
    y: &[View],
    unit: &[Unit],
) -> Lowered<Vec<View>> {
    let mut total = e.zeros(&[1])?;
    for gradient in x {
        let flat = e.dense(gradient)?.flat();
        let square = inner(e, &flat, &flat)?;
        total = e.binary("Add", &total, &square)?;
    }
    let want = e.unary("Sqrt", &total)?;
    let (one, nothing) = (e.constant_f32(1.0), e.constant_f32(0.0));
    let mut factor = one.clone();
    if it.clip > 0.0 {
        let shifted = e.plus(&want, Number::F32(1e-6))?;
        let clip = e.constant_f32(it.clip as f32);
        let of_norm = e.binary("Div", &clip, &shifted)?;
        factor = e.binary("Minimum", &of_norm, &one)?;
    }
    let finite = e.temporary(Element::Bool, &[1]);
    e.unary_into("IsFinite", &want, &finite)?;
    let factor = e.choose(&finite, &factor, &nothing)?;
    Ok(vec![bounded(e, &y[0], &want, &want, unit[0])?, bounded(e, &y[1], &factor, &factor, unit[1])?])
}

fn bias_update(
    e: &mut Emit<'_>,
    it: &BiasUpdate,
    x: &[View],
    y: &[View],
    unit: &[Unit],
) -> Lowered<Vec<View>> {
    let counts = e.cast(&x[1], Element::I64)?;
    let total = e.sum(&counts, &[0])?;
    let experts = e.constant_i64([counts.elements() as i64].into_iter());
    let share = e.binary("Mul", &counts, &experts)?;
    let under = e.binary("Sub", &total, &share)?;
    let mut sign = Vec::new();
    for name in ["GtScalar", "LtScalar"] {
        let mask = e.compare_with(name, &under, Number::I64(0))?;
        sign.push(e.cast(&mask, Element::F32)?);
    }
    let sign = e.binary("Sub", &sign[0], &sign[1])?;
    let change = e.scaled(&sign, it.rate as f32)?;
    let want = e.binary("Add", &change, &x[0])?;
    let size = e.unary("Abs", &x[0])?;
    let size = e.plus(&size, Number::F32(it.rate.abs() as f32))?;
    Ok(vec![bounded(e, &y[0], &want, &size, unit[0])?])
}

/// The other way round: the result less what was added is the operand.
fn increment(e: &mut Emit<'_>, by: i32, x: &[View], y: &[View]) -> Lowered<Vec<View>> {
    let (after, by) = (e.cast(&y[0], Element::I64)?, e.constant_i64([i64::from(by)].into_iter()));
    let before = e.binary("Sub", &after, &by)?;
    let before = e.dense(&before.words(0))?;
    Ok(vec![exactly(e, &before, &x[0])?])
}
