//! One step of the operator's formula done otherwise: a sum without its tail, a term left out, a factor twice, a number in
//! between that is rounded. The formulas are in `model`; where a formula with one step changed gives what was given, on every
//! draw, that step is what is wrong.

use super::lab::{Lab, Sample, flops};
use super::model;
use super::precision::with_f32_operands;
use super::prediction::{cut, nearest};
use super::{Conclusion, Kind};
use crate::probe::Exact;
use std::cell::RefCell;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_program::Tensor;

/// How a step is done otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum How {
    /// Times a number; 0 leaves it out.
    Times(f64),
    /// Taken as another number.
    As(f64),
    /// Its square, or its root.
    Power(f64),
    /// Rounded to nearest, to so many bits of significand.
    Rounded(i32),
    /// Cut to so many bits.
    Cut(i32),
    /// The terms of a sum rounded.
    TermsRounded(i32),
    /// The terms of a sum cut.
    TermsCut(i32),
    /// Partial sums of so many terms added up and rounded to so many bits.
    Kept(usize, i32),
    /// What lies behind the last multiple of a tile does not count.
    Tail(usize),
    /// The same, where there is a whole tile.
    LongTail(usize),
    /// The first does not count.
    WithoutFirst,
    /// The last does not count.
    WithoutLast,
    /// Those behind the first few do not count.
    Only(usize),
    /// Those before the last few do not count.
    LastOnly(usize),
    /// The last tile alone counts, whole or not.
    LastTile(usize),
    /// The first few do not count.
    WithoutFirstOf(usize),
    /// The last few do not count.
    WithoutLastOf(usize),
    /// Of each two tiles the second does not count.
    EvenTiles(usize),
    /// The first counts twice.
    FirstTwice,
    /// The last counts twice.
    LastTwice,
    /// The first tile counts twice.
    FirstTileTwice(usize),
    /// The last tile, whole or not, counts twice.
    LastTileTwice(usize),
    /// Equals come from the highest place to the lowest.
    TiesBackwards,
    /// The argument of an exponential is kept within bounds; what is hidden, minus infinity, is as well.
    Within(f64, f64),
    /// The same, but what is hidden stays hidden.
    SeenWithin(f64, f64),
}

impl How {
    /// How often the term `i` of so many counts; none where it is not that what is done otherwise.
    fn weight(self, i: usize, length: usize) -> Option<f64> {
        let twice = |twice: bool| if twice { 2.0 } else { 1.0 };
        let counts = match self {
            How::Tail(tile) => i < length / tile * tile,
            How::LongTail(tile) => length <= tile || i < length / tile * tile,
            How::WithoutFirst => i > 0,
            How::WithoutLast => i + 1 < length,
            How::Only(count) => i < count,
            How::LastOnly(count) => i + count >= length,
            How::LastTile(tile) => i >= length.saturating_sub(1) / tile * tile,
            How::WithoutFirstOf(count) => i >= count,
            How::WithoutLastOf(count) => i + count < length,
            How::EvenTiles(tile) => (i / tile).is_multiple_of(2),
            How::FirstTwice => return Some(twice(i == 0)),
            How::LastTwice => return Some(twice(i + 1 == length)),
            How::FirstTileTwice(tile) => return Some(twice(i < tile)),
            How::LastTileTwice(tile) => return Some(twice(i >= length.saturating_sub(1) / tile * tile)),
            _ => return None,
        };
        Some(f64::from(u8::from(counts)))
    }
}

/// A step with how it is done otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    step: &'static str,
    how: How,
}

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// A number in between.
    Number,
    /// One over a divisor.
    Reciprocal,
    /// What is added to or taken from others.
    Term,
    /// An operand that is added as it is.
    Addend,
    /// The argument of an exponential.
    Exponent,
    /// What others are multiplied with.
    Factor,
    /// An operand at one of the places where others are multiplied with it.
    Operand,
    /// How many there are, where a mean is taken.
    Count(usize),
    /// A sum of so many terms.
    Sum(usize),
    /// An output of which so many rows are computed.
    Rows(usize),
    /// A choice among so many.
    Choice(usize),
}

/// A formula's steps: takes note of them, and does one otherwise.
#[derive(Default)]
pub(super) struct Steps {
    change: Option<Change>,
    found: Option<RefCell<Vec<(&'static str, Sort)>>>,
}

impl Steps {
    /// All as they should be.
    pub fn right() -> Steps {
        Steps::default()
    }

    fn noting() -> Steps {
        Steps { change: None, found: Some(RefCell::default()) }
    }

    /// One step times a factor.
    pub fn times(step: &'static str, factor: f64) -> Steps {
        Steps::with(Change { step, how: How::Times(factor) })
    }

    fn with(change: Change) -> Steps {
        Steps { change: Some(change), found: None }
    }

    fn how(&self, step: &'static str, sort: Sort) -> Option<How> {
        if let Some(found) = &self.found {
            let mut found = found.borrow_mut();
            match found.iter_mut().find(|(name, _)| *name == step) {
                Some((_, Sort::Sum(longest))) => {
                    if let Sort::Sum(length) = sort {
                        *longest = length.max(*longest);
                    }
                }
                Some((_, Sort::Choice(longest))) => {
                    if let Sort::Choice(length) = sort {
                        *longest = length.max(*longest);
                    }
                }
                Some((_, Sort::Rows(longest))) => {
                    if let Sort::Rows(length) = sort {
                        *longest = length.max(*longest);
                    }
                }
                Some(_) => {}
                None => found.push((step, sort)),
            }
        }
        self.change.filter(|change| change.step == step).map(|change| change.how)
    }

    fn number(how: Option<How>, x: f64) -> f64 {
        match how {
            None => x,
            Some(How::Times(c)) => c * x,
            Some(How::As(c)) => c,
            Some(How::Power(p)) => x.signum() * x.abs().powf(p),
            Some(How::Rounded(bits)) => nearest(bits, x),
            Some(How::Cut(bits)) => cut(bits, x),
            Some(_) => x,
        }
    }

    /// A number in between.
    pub fn value(&self, step: &'static str, x: f64) -> f64 {
        Steps::number(self.how(step, Sort::Number), x)
    }

    /// What is added to or taken from others.
    pub fn term(&self, step: &'static str, x: f64) -> f64 {
        Steps::number(self.how(step, Sort::Term), x)
    }

    /// An operand that is added as it is.
    pub fn addend(&self, step: &'static str, x: f64) -> f64 {
        Steps::number(self.how(step, Sort::Addend), x)
    }

    /// `e` to a number; none is hidden, and counts as minus infinity.
    pub fn exponential(&self, step: &'static str, x: Option<f64>) -> f64 {
        let x = match self.how(step, Sort::Exponent) {
            Some(How::Within(least, most)) => Some(x.unwrap_or(f64::NEG_INFINITY).max(least).min(most)),
            Some(How::Times(c)) => x.map(|x| c * x),
            Some(How::SeenWithin(least, most)) => x.map(|x| x.max(least).min(most)),
            Some(How::Rounded(bits)) => x.map(|x| nearest(bits, x)),
            Some(How::Cut(bits)) => x.map(|x| cut(bits, x)),
            _ => x,
        };
        x.map_or(0.0, f64::exp)
    }

    /// What others are multiplied with.
    pub fn factor(&self, step: &'static str, x: f64) -> f64 {
        Steps::number(self.how(step, Sort::Factor), x)
    }

    /// An operand at one of the places where others are multiplied with it.
    pub fn operand(&self, step: &'static str, x: f64) -> f64 {
        Steps::number(self.how(step, Sort::Operand), x)
    }

    /// A quotient: what is rounded is the reciprocal of the divisor.
    pub fn over(&self, step: &'static str, x: f64, divisor: f64) -> f64 {
        match self.how(step, Sort::Reciprocal) {
            None => x / divisor,
            how => x * Steps::number(how, 1.0 / divisor),
        }
    }

    /// How many there are, where a mean is taken.
    pub fn count(&self, step: &'static str, n: usize) -> f64 {
        Steps::number(self.how(step, Sort::Count(n)), n as f64)
    }

    /// A sum of so many terms.
    pub fn sum(&self, step: &'static str, length: usize, term: impl Fn(usize) -> f64) -> f64 {
        let all = |from: usize, to: usize| (from..to).map(&term).sum::<f64>();
        match self.how(step, Sort::Sum(length)) {
            None => all(0, length),
            Some(how) if how.weight(0, length).is_some() => (0..length)
                .map(|i| match how.weight(i, length) {
                    // What does not count may be no number.
                    Some(0.0) => 0.0,
                    weight => weight.unwrap_or(1.0) * term(i),
                })
                .sum(),
            Some(How::Kept(width, bits)) => (0..length)
                .step_by(width)
                .fold(0.0, |sum, from| nearest(bits, sum + all(from, length.min(from + width)))),
            Some(How::TermsRounded(bits)) => (0..length).map(|i| nearest(bits, term(i))).sum(),
            Some(How::TermsCut(bits)) => (0..length).map(|i| cut(bits, term(i))).sum(),
            how => Steps::number(how, all(0, length)),
        }
    }

    /// The places of the largest values, from the largest on, equals by their place.
    pub fn best(
        &self,
        step: &'static str,
        values: &[f64],
        mut places: Vec<usize>,
        count: usize,
    ) -> Vec<usize> {
        let n = places.len();
        let how = self.how(step, Sort::Choice(n));
        let (mut sorted, mut skipped) = (n, 0);
        match how {
            // What is not sorted stays where it is.
            Some(How::Tail(tile)) => sorted = n / tile * tile,
            Some(How::LongTail(tile)) if n > tile => places.truncate(n / tile * tile),
            Some(How::WithoutLast) if n > count => places.truncate(n - 1),
            Some(How::WithoutFirst) if n > count => skipped = 1,
            _ => {}
        }
        let sorted = sorted.min(places.len());
        places[..sorted].sort_by(|a, b| {
            let (larger, earlier) = (values[*b].total_cmp(&values[*a]), a.cmp(b));
            match how {
                Some(How::Times(_)) => larger.reverse().then(earlier),
                Some(How::TiesBackwards) => larger.then(earlier.reverse()),
                _ => larger.then(earlier),
            }
        });
        places.into_iter().skip(skipped).take(count).collect()
    }

    /// Whether one of so many rows is computed; those that are not are zero.
    pub fn covers(&self, step: &'static str, index: usize, length: usize) -> bool {
        let how = self.how(step, Sort::Rows(length));
        how.and_then(|how| how.weight(index, length)).is_none_or(|weight| weight > 0.0)
    }
}

/// Widths of tiles.
pub(super) const TILES: [usize; 7] = [2, 4, 8, 16, 32, 64, 128];

/// Round numbers that the argument of an exponential may be kept within.
const BOUNDS: [f64; 17] =
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 16.0, 20.0, 30.0, 32.0, 50.0, 80.0];

/// Bits of significands that numbers in between are rounded to.
const BITS: [i32; 7] = [8, 11, 10, 12, 9, 13, 7];

/// The ways in which a step may be done otherwise that do not round: kind, and what is done.
fn otherwise(step: &'static str, sort: Sort) -> Vec<(Change, Kind, String)> {
    let mut list = Vec::new();
    let mut push = |how, kind, what: String| list.push((Change { step, how }, kind, what));
    match sort {
        Sort::Number => {}
        Sort::Exponent => {
            for bound in BOUNDS {
                for (least, most, where_) in [
                    (-bound, f64::INFINITY, "below"),
                    (f64::NEG_INFINITY, bound, "above"),
                    (-bound, bound, "beyond"),
                ] {
                    let what = format!("with {step} {where_} ±{bound} taken as that");
                    push(How::SeenWithin(least, most), Kind::Saturation, what.clone());
                    if least.is_finite() {
                        let what = format!("{what}, what is hidden too");
                        push(How::Within(least, most), Kind::Saturation, what);
                    }
                }
            }
        }
        Sort::Choice(length) => {
            for tile in TILES {
                let what = format!("with what lies behind the last multiple of {tile} unsorted in {step}");
                push(How::Tail(tile), Kind::DroppedTail, what);
                if length > tile {
                    let what = format!("without what lies behind the last multiple of {tile} in {step}");
                    push(How::LongTail(tile), Kind::DroppedTail, what);
                }
            }
            push(How::Times(-1.0), Kind::WrongAttribute, format!("with the least for the largest in {step}"));
            push(How::TiesBackwards, Kind::TieBreak, format!("with equals from the last on in {step}"));
            push(How::WithoutLast, Kind::MissingTerms, format!("without the last place in {step}"));
            push(How::WithoutFirst, Kind::WrongAttribute, format!("with the next best in {step}"));
        }
        Sort::Addend => {
            push(How::Times(0.0), Kind::WrongOperand, format!("without {step}"));
            push(How::Times(2.0), Kind::WrongOperand, format!("with {step} twice"));
            push(How::Times(-1.0), Kind::WrongOperand, format!("with the other sign of {step}"));
        }
        Sort::Reciprocal => push(How::As(1.0), Kind::WrongFactor, format!("without {step}")),
        Sort::Term => {
            push(How::Times(0.0), Kind::MissingTerms, format!("without {step}"));
            push(How::Times(2.0), Kind::WrongFactor, format!("with {step} twice"));
            push(How::Times(0.5), Kind::WrongFactor, format!("with {step} halved"));
            push(How::Times(-1.0), Kind::WrongFactor, format!("with the other sign of {step}"));
        }
        Sort::Factor => {
            push(How::As(1.0), Kind::WrongFactor, format!("without {step}"));
            push(How::Power(2.0), Kind::WrongFactor, format!("with {step} twice"));
            push(How::Power(0.5), Kind::WrongFactor, format!("with the root of {step}"));
            push(How::Power(-1.0), Kind::WrongFactor, format!("divided by {step}"));
            push(How::Times(-1.0), Kind::WrongFactor, format!("with the other sign of {step}"));
        }
        Sort::Operand => {
            push(How::As(1.0), Kind::WrongOperand, format!("without {step}"));
            push(How::Power(2.0), Kind::WrongOperand, format!("with {step} twice"));
            push(How::Power(-1.0), Kind::WrongOperand, format!("divided by {step}"));
        }
        Sort::Count(n) => {
            let mut others: Vec<usize> = vec![1, n + 1, n.saturating_sub(1), 2 * n, n.saturating_mul(n)];
            others.extend(TILES.iter().map(|tile| n.div_ceil(*tile) * tile));
            others.extend(TILES.iter().map(|tile| n / tile * tile));
            others.retain(|other| *other != n && *other > 0);
            others.dedup();
            for other in others {
                let what = format!("with {other} in place of {step}, {n}");
                push(How::As(other as f64), Kind::WrongFactor, what);
            }
        }
        Sort::Sum(length) | Sort::Rows(length) => {
            let rest = |tile: &&usize| length / *tile * *tile < length;
            for tile in TILES.iter().filter(rest) {
                let what = format!("without what lies behind the last multiple of {tile} in {step}");
                push(How::Tail(*tile), Kind::DroppedTail, what.clone());
                push(How::LongTail(*tile), Kind::DroppedTail, what);
            }
            push(How::WithoutLast, Kind::MissingTerms, format!("without the last of {step}"));
            push(How::WithoutFirst, Kind::MissingTerms, format!("without the first of {step}"));
            if length > 1 && length <= 4 {
                push(How::Only(1), Kind::MissingTerms, format!("with the first of {step} alone"));
                push(How::LastOnly(1), Kind::MissingTerms, format!("with the last of {step} alone"));
            }
            for count in TILES.iter().copied().filter(|count| *count < length && length > 4) {
                for (how, what) in [
                    (How::Only(count), format!("with the first {count} of {step} alone")),
                    (How::LastTile(count), format!("with the last tile of {count} of {step} alone")),
                    (How::LastOnly(count), format!("with the last {count} of {step} alone")),
                    (How::WithoutFirstOf(count), format!("without the first {count} of {step}")),
                    (How::WithoutLastOf(count), format!("without the last {count} of {step}")),
                    (How::EvenTiles(count), format!("without every second tile of {count} of {step}")),
                ] {
                    push(how, Kind::MissingTerms, what);
                }
            }
            if let Sort::Sum(_) = sort {
                if length > 1 {
                    push(How::FirstTwice, Kind::WrongOperand, format!("with the first of {step} twice"));
                    push(How::LastTwice, Kind::WrongOperand, format!("with the last of {step} twice"));
                }
                for tile in TILES.into_iter().filter(|tile| *tile < length) {
                    let what = format!("with the first tile of {tile} of {step} twice");
                    push(How::FirstTileTwice(tile), Kind::WrongOperand, what);
                    let what = format!("with the last tile of {tile} of {step} twice");
                    push(How::LastTileTwice(tile), Kind::WrongOperand, what);
                }
                push(How::Times(0.0), Kind::MissingTerms, format!("without {step}"));
                push(How::Times(2.0), Kind::WrongFactor, format!("with {step} twice"));
                push(How::Times(-1.0), Kind::WrongFactor, format!("with the other sign of {step}"));
            }
        }
    }
    list
}

/// The ways in which a step may be rounded.
fn rounded(step: &'static str, sort: Sort) -> Vec<(Change, Kind, String)> {
    use Kind::{LowPrecisionAccumulation, LowPrecisionOperands};
    let mut list = Vec::new();
    for bits in BITS {
        let mut push = |how, what: String| {
            // A sum of two or three terms that is rounded is kept with as many bits.
            let kept = match how {
                How::Kept(..) => true,
                How::Rounded(_) | How::Cut(_) => matches!(sort, Sort::Sum(2..=3)),
                _ => false,
            };
            let kind = if kept { LowPrecisionAccumulation } else { LowPrecisionOperands };
            list.push((Change { step, how }, kind, what));
        };
        match sort {
            Sort::Count(_)
            | Sort::Rows(_)
            | Sort::Choice(_)
            | Sort::Factor
            | Sort::Operand
            | Sort::Addend => {}
            Sort::Number | Sort::Reciprocal | Sort::Term | Sort::Exponent => {
                push(How::Rounded(bits), format!("{step} rounded to {bits} bits"));
                push(How::Cut(bits), format!("{step} cut to {bits} bits"));
            }
            Sort::Sum(length) => {
                push(How::Rounded(bits), format!("{step} rounded to {bits} bits"));
                push(How::Cut(bits), format!("{step} cut to {bits} bits"));
                for width in [1, 4, 8, 16, 32, 64].into_iter().filter(|width| length > *width) {
                    push(
                        How::Kept(width, bits),
                        format!("{step} kept to {bits} bits from {width} to {width} terms"),
                    );
                }
                push(How::TermsRounded(bits), format!("the terms of {step} rounded to {bits} bits"));
                push(How::TermsCut(bits), format!("the terms of {step} cut to {bits} bits"));
            }
        }
    }
    list
}

/// What the formula gives with a change, in place of the exact results; outputs that it does not have are as they were given.
pub(super) fn altered(sample: &Sample, steps: &Steps) -> Option<Exact> {
    let outputs = model::outputs(sample, steps)?;
    let mut exact = sample.exact.clone();
    for (output, data) in outputs.into_iter().enumerate() {
        let tensor = exact.want.get_mut(output)?;
        match data {
            Some(data) if data.len() == tensor.data.len() => tensor.data = data,
            Some(_) => return None,
            None => tensor.clone_from(sample.outcome.outputs.get(output)?),
        }
        // Another formula has other contributions; they are at least as large as what it gives.
        for magnitudes in [&mut exact.measured.whole, &mut exact.measured.finite] {
            if let Some(magnitudes) = magnitudes.get_mut(output) {
                for (magnitude, x) in magnitudes.iter_mut().zip(&exact.want[output].data) {
                    if x.is_finite() {
                        *magnitude = magnitude.max(x.abs());
                    }
                }
            }
        }
    }
    Some(exact)
}

/// Whether the formula as it should be gives the exact results: else it says nothing of these operands.
fn fits(sample: &Sample, steps: &Steps) -> bool {
    let Some(outputs) = model::outputs(sample, steps) else { return false };
    outputs.iter().enumerate().all(|(output, data)| {
        let Some(data) = data else { return true };
        let Some(want) = sample.exact.want.get(output) else { return false };
        let magnitudes = sample.exact.measured.whole.get(output);
        data.len() == want.data.len()
            && data.iter().zip(&want.data).enumerate().all(|(i, (a, b))| {
                let size = magnitudes.and_then(|m| m.get(i)).copied().unwrap_or(0.0).max(b.abs());
                a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 2f64.powi(-22) * size
            })
    })
}

/// Operations above which formulas are not gone through.
const FLOPS_MAX: u64 = 16_000_000;

/// The steps of a formula that fits; none where there is none.
fn steps_of(sample: &Sample) -> Option<Vec<(&'static str, Sort)>> {
    if !sample.fails() || sample.probe.has_views() || flops(sample) > FLOPS_MAX {
        return None;
    }
    let steps = Steps::noting();
    if !fits(sample, &steps) {
        return None;
    }
    steps.found.map(RefCell::into_inner)
}

/// The term without which the formula gives what was given, on every draw.
pub(super) fn lost_term(lab: &Lab<'_>) -> Option<&'static str> {
    let terms = steps_of(&lab.base)?.into_iter().filter(|(_, sort)| *sort == Sort::Term);
    let lost = |step: &&'static str| {
        let steps = Steps::times(step, 0.0);
        let holds = |sample: &Sample| {
            altered(sample, &steps).is_some_and(|exact| sample.explained_by(&sample.probe, &exact))
        };
        lab.failing().all(holds)
    };
    terms.map(|(step, _)| step).find(lost)
}

/// The steps of a formula that may be times a factor; none where there is no formula that fits.
pub(super) fn times(sample: &Sample) -> Option<Vec<&'static str>> {
    let may = |sort: &Sort| !matches!(sort, Sort::Rows(_) | Sort::Choice(_));
    Some(steps_of(sample)?.into_iter().filter(|(_, sort)| may(sort)).map(|(step, _)| step).collect())
}

/// A formula with a step left out, twice, or without its tail.
pub(super) fn changed(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let Some(found) = steps_of(&lab.base) else { return Ok(None) };
    // What holds, holds in the small case as well, where it is found out sooner.
    let small = lab.small()?;
    let sooner = steps_of(&small).is_some();
    let mut count = 0;
    for (step, sort) in found {
        for (change, kind, what) in otherwise(step, sort) {
            count += 1;
            let steps = Steps::with(change);
            let holds = |sample: &Sample| {
                altered(sample, &steps).is_some_and(|exact| sample.explained_by(&sample.probe, &exact))
            };
            if sooner && !holds(&small) {
                continue;
            }
            if holds(&lab.base) && lab.failing().all(holds) {
                let draws = lab.failing().count();
                let ran = format!("its formula {what}, on {draws} draws");
                return Ok(lab.conclude(kind, format!("It computes {what}."), ran, "it is what was given"));
            }
        }
    }
    lab.note(format!("its formula with one step changed, {count} ways"), "is not what was given");
    Ok(None)
}

/// Elements that must be wrong before a rounding is looked for, and the share of all that it must explain: a rounding that
/// falls the other way is off by a whole unit.
const ROUNDED_LEAST: usize = 12;
const ROUNDED_SHARE: f64 = 0.97;

/// The share of the wrong outputs' elements that a change explains.
fn share(sample: &Sample, steps: &Steps) -> f64 {
    let Some(exact) = altered(sample, steps) else { return 0.0 };
    let wrong = sample.wrong_outputs();
    let judgement = sample.probe.judge(&exact, &sample.outcome);
    let left = judgement.wrong.iter().filter(|(output, _)| wrong.contains(output)).count();
    let all: usize = wrong.iter().map(|output| sample.exact.want[*output].data.len()).sum();
    let before = sample.judgement.wrong.len();
    // What was within the tolerance before must not make up for what is not.
    if left * 8 > before || judgement.wrong_count as usize > judgement.wrong.len() {
        return 0.0;
    }
    1.0 - left as f64 / all.max(1) as f64
}

/// A formula with a number in between rounded. A result in bf16 hides most of it, so that f32 is asked first.
pub(super) fn rounding(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let mut groups = vec![lab.failing().cloned().collect::<Vec<Sample>>()];
    if let Some(wide) = with_f32_operands(&lab.base.probe) {
        let drawn = wide.redrawn_consistently(lab.effort.seed, Regime::Normal, lab.oracle);
        let sampled = match drawn {
            Ok(drawn) => lab.sample(drawn)?,
            Err(_) => None,
        };
        groups.insert(0, sampled.into_iter().filter(Sample::fails).collect());
    }
    for samples in groups {
        if let Some(conclusion) = rounding_in(lab, &samples) {
            return Ok(Some(conclusion));
        }
    }
    Ok(None)
}

fn rounding_in(lab: &mut Lab<'_>, samples: &[Sample]) -> Option<Conclusion> {
    let first = samples.first().filter(|sample| sample.judgement.wrong.len() >= ROUNDED_LEAST)?;
    let found = steps_of(first)?;
    let mut best: Option<(f64, Kind, String)> = None;
    let mut count = 0;
    for (step, sort) in found {
        for (change, kind, what) in rounded(step, sort) {
            count += 1;
            let steps = Steps::with(change);
            let least = share(first, &steps);
            if least < ROUNDED_SHARE || best.as_ref().is_some_and(|(held, ..)| *held >= least) {
                continue;
            }
            let others = samples.iter().filter(|sample| sample.judgement.wrong.len() >= ROUNDED_LEAST);
            let least = others.map(|sample| share(sample, &steps)).fold(least, f64::min);
            if least >= ROUNDED_SHARE && best.as_ref().is_none_or(|(held, ..)| *held < least) {
                // A sum whose error grows with its length is kept so, and not rounded at its end.
                let sum = matches!(sort, Sort::Sum(_)) && lab.grown > GROWN_SUM;
                best = Some((least, if sum { Kind::LowPrecisionAccumulation } else { kind }, what));
            }
        }
    }
    if let Some((share, kind, what)) = best {
        let ran = format!("its formula with {what}");
        let showed = format!("it explains {:.1} % of the elements", 100.0 * share);
        let sentence = format!("It computes with {what}.");
        return lab.conclude(kind, sentence, ran, showed);
    }
    lab.note(
        format!("its formula with one number in between rounded, {count} ways"),
        "is not what was given",
    );
    None
}

/// By what the error of a long sum is larger than that of a short one, where it is known that the sum is rounded.
const GROWN_SUM: f64 = 1.3;

/// What a tensor holds in a row of its last axis.
pub(super) fn row(tensor: &Tensor, row: usize) -> &[f64] {
    let width = tensor.sizes.last().copied().unwrap_or(1);
    tensor.data.get(row * width..(row + 1) * width).unwrap_or(&[])
}
