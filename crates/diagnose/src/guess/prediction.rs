//! The right result, changed on its way out: cut, rounded to fewer bits, clamped, flushed, or times a factor.

use super::axes::axes;
use super::lab::{FEW, Lab, MANY_DRAWS, Sample, flops_of};
use super::precision::with_f32_operands;
use super::{Conclusion, Kind};
use crate::probe::Probe;
use half::f16;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;
use toprope_program::tensor::round;
use toprope_program::{DType, Tensor};

const SMALLEST_NORMAL: f64 = 1.175_494_350_822_287_5e-38;

/// What whole numbers end at where they do not wrap.
pub(super) const WHOLE_ENDS: [f64; 3] = [i32::MAX as f64, i32::MIN as f64, u32::MAX as f64];

/// Wrong elements of outputs, as (got, right, exact, dtype).
fn wrong_numbers(sample: &Sample) -> Vec<(f64, f64, f64, DType)> {
    let mut list = Vec::new();
    for (output, element) in &sample.judgement.wrong {
        let want = &sample.exact.want[*output];
        let exact = want.data[*element];
        let got = sample.outcome.outputs[*output].data[*element];
        list.push((got, round(want.dtype, exact), exact, want.dtype));
    }
    list
}

/// Numbers that leave the range of their type at either end.
pub(super) fn range(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let (wrong, whole): (Vec<_>, Vec<_>) =
        lab.failing().flat_map(wrong_numbers).partition(|(_, _, _, dtype)| dtype.is_float());
    if wrong.is_empty() && !whole.is_empty() && whole.iter().all(|(got, ..)| WHOLE_ENDS.contains(got)) {
        let count = whole.len();
        let sentence = "Whole numbers end at the largest of their type, where they must wrap.";
        let showed = format!("all {count} are the largest or the smallest number of their type");
        return Ok(lab.conclude(Kind::Saturation, sentence, "a look at the wrong elements", showed));
    }
    if wrong.is_empty() {
        return Ok(None);
    }
    let count = wrong.len();
    let flushed = |(got, right, _, _): &(f64, f64, f64, DType)| {
        *got == 0.0 && *right != 0.0 && right.abs() < SMALLEST_NORMAL
    };
    // A zero that has lost its sign goes with them.
    let unsigned = |(got, right, _, _): &(f64, f64, f64, DType)| *got == 0.0 && *right == 0.0;
    if wrong.iter().all(|x| flushed(x) || unsigned(x)) && wrong.iter().any(flushed) {
        let sentence = "Results below the normal numbers (2^-126) are zero.";
        let showed = format!("all {count} have a right result below 2^-126, and are zero");
        return Ok(lab.conclude(Kind::SubnormalsFlushed, sentence, "a look at the wrong elements", showed));
    }
    let limits = [f64::from(f32::MAX), round_down_to_bf16(f32::MAX), 65504.0, 448.0, 57344.0];
    let most = wrong.iter().map(|(got, ..)| got.abs()).fold(0.0, f64::max);
    let saturated = |(got, right, _, _): &(f64, f64, f64, DType)| {
        got.is_finite() && got.abs() == most && right.abs() > most && got.signum() == right.signum()
    };
    if wrong.iter().all(saturated) && limits.contains(&most) {
        let sentence = format!(
            "Where the result is too large it is {most:e}, the largest number of its type, in place of infinity."
        );
        let showed = format!("all {count} are ±{most:e} where the right result is larger");
        return Ok(lab.conclude(Kind::Saturation, sentence, "a look at the wrong elements", showed));
    }
    if let Some(bound) = clamped(lab) {
        let sentence = format!("No result goes beyond {bound:e}: what would is taken as that.");
        let showed = format!(
            "all {count} are {bound:e} where the right result is beyond it, and no other goes beyond"
        );
        return Ok(lab.conclude(Kind::Saturation, sentence, "a look at the wrong elements", showed));
    }
    let early = |(got, right, _, _): &(f64, f64, f64, DType)| {
        !got.is_finite() && right.abs() > 65504.0 && right.is_finite()
    };
    if wrong.iter().all(early) {
        let sentence = "Results above 65504 are infinite: they pass through fp16.";
        let showed = format!("all {count} have a right result above 65504, and are not finite");
        return Ok(lab.conclude(Kind::LowPrecisionStore, sentence, "a look at the wrong elements", showed));
    }
    lab.note("a look at the range of the wrong elements", "they lie within it");
    Ok(None)
}

/// Elements that must be held at a bound before it is called one.
const CLAMPED_LEAST: usize = 4;

/// The bound that all wrong elements are held at, those of at least two draws, where every element that should lie beyond it
/// is.
fn clamped(lab: &Lab<'_>) -> Option<f64> {
    let wrong: Vec<_> = lab.failing().flat_map(wrong_numbers).collect();
    let bound =
        wrong.iter().map(|(got, ..)| got.abs()).next().filter(|bound| *bound > 0.0 && bound.is_finite())?;
    let held = |(got, right, _, _): &(f64, f64, f64, DType)| {
        got.abs() == bound && right.abs() > bound && got.signum() == right.signum()
    };
    let various = wrong.iter().any(|(_, right, ..)| *right != wrong[0].1);
    if lab.failing().count() < 2 || wrong.len() < CLAMPED_LEAST || !various || !wrong.iter().all(held) {
        return None;
    }
    let signs: Vec<f64> =
        [1.0, -1.0].into_iter().filter(|s| wrong.iter().any(|x| x.0 == s * bound)).collect();
    let within = |sample: &Sample| {
        sample.wrong_outputs().into_iter().all(|output| {
            let beyond = |x: &f64| signs.iter().any(|sign| sign * x > bound);
            sample.exact.want[output].data.len() > sample.wrong_in(output).len()
                && !sample.outcome.outputs[output].data.iter().any(beyond)
        })
    };
    lab.samples.iter().filter(|sample| sample.fails()).all(within).then_some(bound)
}

fn round_down_to_bf16(x: f32) -> f64 {
    f64::from(f32::from_bits(x.to_bits() & 0xFFFF_0000))
}

/// A number with its significand cut to `bits` bits.
pub(super) fn cut(bits: i32, x: f64) -> f64 {
    brought(bits, x, f64::trunc)
}

/// A number brought to a significand of `bits` bits, given how it becomes a whole number of units.
fn brought(bits: i32, x: f64, whole: fn(f64) -> f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = 2f64.powi(x.abs().log2().floor() as i32 - bits + 1);
    whole(x / unit) * unit
}

/// A way to come to a whole number that is not the nearest one.
type Whole = (&'static str, fn(f64) -> f64);

/// Ways to bring a number to the bits of its type that are not to nearest, ties to even.
const DIRECTIONS: [Whole; 5] = [
    ("cut, towards zero", f64::trunc),
    ("rounded down, towards minus infinity", f64::floor),
    ("rounded up, towards infinity", f64::ceil),
    ("rounded away from zero", |x| x.abs().ceil().copysign(x)),
    ("rounded to nearest with ties away from zero", f64::round),
];

/// A number rounded to a significand of `bits` bits, ties to even.
pub(super) fn nearest(bits: i32, x: f64) -> f64 {
    match bits {
        8 => round(DType::Bf16, x),
        FP16 => f16::from_f64(x).to_f64(),
        24 => round(DType::F32, x),
        _ if x == 0.0 || !x.is_finite() => x,
        _ => {
            let unit = 2f64.powi(x.abs().log2().floor() as i32 - bits + 1);
            (x / unit).round_ties_even() * unit
        }
    }
}

/// In place of a number of bits: fp16, whose small numbers have fewer, and whose large ones are infinite.
pub(super) const FP16: i32 = 16;

/// Formats with fewer bits than f32: significand bits and name.
pub(super) const FORMATS: [(i32, &str); 6] =
    [(8, "bf16"), (11, "fp16 or TF32"), (FP16, "fp16"), (4, "fp8 e4m3"), (3, "fp8 e5m2"), (12, "12 bits")];

/// The share of elements that a way to store must meet: exact results may be off in the last bit.
const STORED_SHARE: f64 = 0.97;

/// How far an f32 result may be off from the exact one.
const BORDER: f64 = 1.0 / (1 << 20) as f64;

/// Terms of a sum that are more than a matrix unit takes at once.
const LONG: usize = 320;

/// The failing draws, or sums of 320 terms where they are shorter, within the tolerance or not: the rounding of one term
/// alone is that of the result.
fn with_long_sums(lab: &mut Lab<'_>, mut base: Probe, samples: Vec<Sample>) -> Result<Vec<Sample>, Obstacle> {
    let short = if base.has_views() { Vec::new() } else { axes(&base) };
    let mut longest: Option<Sample> = None;
    for axis in short.into_iter().filter(|axis| !axis.in_outputs && axis.size < LONG) {
        if let Some(longer) = base.resized(&axis.map(LONG), lab.effort.seed, Regime::Normal)
            && flops_of(&longer) <= 4 * lab.effort.flops_max
            && let Some(sample) = lab.sample(longer)?
        {
            base = sample.probe.clone();
            longest = Some(sample);
        }
    }
    let Some(longest) = longest else { return Ok(samples) };
    let few = lab.base.elements() < FEW;
    let mut list = vec![longest];
    for turn in 1..=if few { MANY_DRAWS } else { 0 } {
        let drawn = base.redrawn_consistently(lab.effort.seed.wrapping_add(turn), Regime::Normal, lab.oracle);
        if let Ok(drawn) = drawn
            && let Some(sample) = lab.sample(drawn)?
        {
            list.push(sample);
        }
    }
    Ok(list)
}

/// How results are brought to the bits that they are stored in: first as they are, then in f32, which shows more of it.
pub(super) fn store(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let samples: Vec<Sample> = lab.failing().cloned().collect();
    if samples.is_empty() {
        return Ok(None);
    }
    let samples = with_long_sums(lab, lab.base.probe.clone(), samples)?;
    if let Some(conclusion) = stored(lab, &samples) {
        return Ok(Some(conclusion));
    }
    if let Some(wide) = with_f32_operands(&lab.base.probe) {
        let drawn = wide.redrawn_consistently(lab.effort.seed, Regime::Normal, lab.oracle);
        if let Ok(drawn) = drawn
            && let Some(sample) = lab.sample(drawn)?
            && sample.fails()
        {
            let samples = with_long_sums(lab, sample.probe.clone(), vec![sample])?;
            if let Some(conclusion) = stored(lab, &samples) {
                return Ok(Some(conclusion));
            }
        }
    }
    lab.note("the right result cut, and rounded to fewer bits", "is not what was given");
    Ok(None)
}

/// Whether the results of these samples are cut or rounded.
fn stored(lab: &mut Lab<'_>, samples: &[Sample]) -> Option<Conclusion> {
    let wrong = lab.base.wrong_outputs();
    // Elements where the two ways part: `other` must be what was given at nearly all of them. Exact results may be off in
    // the last bit, so a few may miss.
    let agrees = |other: &dyn Fn(DType, f64) -> f64| {
        let (mut part, mut hit) = (0u64, 0u64);
        for sample in samples {
            for output in wrong.iter().copied() {
                let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
                if !want.dtype.is_float() {
                    return false;
                }
                for (exact, got) in want.data.iter().zip(&got.data).filter(|(x, _)| x.is_finite()) {
                    let predicted = other(want.dtype, *exact);
                    // Too near to a border to be told.
                    let border = |by: f64| other(want.dtype, exact * (1.0 + by)) != predicted;
                    if want.dtype == DType::F32 && (border(BORDER) || border(-BORDER)) {
                        continue;
                    }
                    if predicted != round(want.dtype, *exact) {
                        part += 1;
                        hit += u64::from(*got == predicted);
                    } else {
                        part += u64::from(*got != predicted);
                    }
                }
            }
        }
        part >= 4 && hit as f64 >= STORED_SHARE * part as f64
    };
    let bits = |dtype: DType| if dtype == DType::Bf16 { 8 } else { 24 };
    for (how, whole) in DIRECTIONS {
        if agrees(&|dtype, x| brought(bits(dtype), x, whole)) {
            let sentence =
                format!("Results are {how}; they must be rounded to the nearest number, ties to even.");
            let ran = format!("the right result {how}");
            return lab.conclude(Kind::TruncatingStore, sentence, ran, "it is what was given");
        }
    }
    for (bits, name) in FORMATS {
        let narrow = |dtype: DType| bits == FP16 || !(dtype == DType::Bf16 && bits >= 8);
        if agrees(&|dtype, x| if narrow(dtype) && bits != FP16 { cut(bits, x) } else { round(dtype, x) }) {
            let sentence = format!("Results are cut to {bits} bits ({name}).");
            let ran = format!("the right result cut to {bits} bits");
            return lab.conclude(Kind::TruncatingStore, sentence, ran, "it is what was given");
        }
        if agrees(&|dtype, x| if narrow(dtype) { round(dtype, nearest(bits, x)) } else { round(dtype, x) }) {
            let sentence = format!("Results are rounded to {bits} bits ({name}) on their way out.");
            let ran = format!("the right result rounded to {bits} bits");
            return lab.conclude(Kind::LowPrecisionStore, sentence, ran, "it is what was given");
        }
    }
    // Ties are too few in a shorter format to be told from other numbers.
    for (how, whole) in &DIRECTIONS[1..4] {
        for (bits, name) in [(8, "bf16"), (11, "11 bits")] {
            if agrees(&|dtype, x| {
                if dtype == DType::F32 { brought(bits, x, *whole) } else { round(dtype, x) }
            }) {
                let sentence = format!("Results are {how}, to {bits} bits ({name}).");
                let ran = format!("the right result {how}, to {bits} bits");
                return lab.conclude(Kind::TruncatingStore, sentence, ran, "it is what was given");
            }
        }
    }
    None
}

/// The right result times a factor, or the change of an operand times a factor.
pub(super) fn factor(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    for output in lab.base.wrong_outputs() {
        let slot = lab.base.probe.operator().definition().record().outputs.get(output).map_or("", |s| s.name);
        let want = lab.base.exact.want[output].clone();
        if !want.dtype.is_float() {
            continue;
        }
        let zero = Tensor::zeros(want.dtype, &want.sizes);
        let mut origins = vec![(None, zero)];
        for (at, operand) in lab.base.probe.operands().into_iter().enumerate() {
            if operand.sizes == want.sizes && operand.dtype.is_float() {
                origins.push((Some(at), operand));
            }
        }
        for (at, origin) in origins {
            let got = &lab.base.outcome.outputs[output];
            let few = if lab.failing().count() > 1 { 1 } else { 3 };
            let Some(c) = ratio(&got.data, &want.data, &origin.data, few) else { continue };
            // Less than a few units of the type is no factor.
            if (c - 1.0).abs() <= 8.0 * want.dtype.unit_roundoff() {
                continue;
            }
            let holds_with = |c: f64, sample: &Sample| {
                let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
                let operands = sample.probe.operands();
                let from = |i: usize| at.map_or(0.0, |at| operands[at].data[i]);
                let (tolerance, sizes) =
                    (sample.tolerances()[output], sample.exact.measured.whole.get(output));
                // It may be rounded before and after.
                let unit = 2.0 * want.dtype.unit_roundoff();
                let near = |i: usize| {
                    let predicted = from(i) + c * (want.data[i] - from(i));
                    let size = sizes.and_then(|m| m.get(i)).copied().unwrap_or(0.0) * c.abs().max(1.0);
                    let room = tolerance.bound(predicted, size) + unit * predicted.abs();
                    let same = got.data[i] == predicted || got.data[i].is_nan() && predicted.is_nan();
                    same || (got.data[i] - predicted).abs() <= room
                };
                // The other outputs are judged by themselves.
                if !sample.wrong_outputs().contains(&output) {
                    // Where a factor would not show it is not missed.
                    let mut outcome = sample.outcome.clone();
                    let data = &mut outcome.outputs[output].data;
                    data.iter_mut().enumerate().for_each(|(i, x)| *x = from(i) + c * (*x - from(i)));
                    return !matches!(
                        sample.probe.judge(&sample.exact, &outcome).verdict,
                        Verdict::Differ(_)
                    );
                }
                (0..want.data.len()).all(near)
            };
            let holds = |sample: &Sample| holds_with(c, sample);
            // At another size it may be another factor, such as one over the number of rows.
            let some = |sample: &Sample| {
                let zero = Tensor::zeros(want.dtype, &sample.exact.want[output].sizes);
                let origin = at.map_or(zero, |at| sample.probe.operands()[at].clone());
                let (got, want) = (&sample.outcome.outputs[output].data, &sample.exact.want[output].data);
                let other = ratio(got, want, &origin.data, 3).unwrap_or(c);
                holds_with(c, sample) || holds_with(other, sample)
            };
            if lab.failing().count() > 0 && lab.failing().all(holds) && larger(lab)?.iter().all(some) {
                let what = match at {
                    None => format!("`{slot}` is {c} times what it is"),
                    Some(at) => {
                        let from = lab.base.probe.operator().definition().record().operands.get(at);
                        format!(
                            "the change from `{}` to `{slot}` is {c} times what it is",
                            from.map_or("", |s| s.name)
                        )
                    }
                };
                let draws = lab.failing().count();
                let ran = format!("the right result times a factor, fitted on one draw, tried on {draws}");
                let sentence = format!("{}.", capital(&what));
                return Ok(lab.conclude(Kind::WrongFactor, sentence, ran, what));
            }
        }
    }
    lab.note("the right result times a factor", "is not what was given");
    Ok(None)
}

/// Larger cases, an axis each: a half of all rows may be their tail.
fn larger(lab: &mut Lab<'_>) -> Result<Vec<Sample>, Obstacle> {
    let base = lab.base.probe.clone();
    let mut list = Vec::new();
    let small = if base.has_views() { Vec::new() } else { axes(&base) };
    for axis in small.into_iter().filter(|axis| axis.in_outputs && axis.size < 64) {
        for size in [axis.size + 32, axis.size * 8] {
            let Some(probe) = base.resized(&axis.map(size), lab.effort.seed, Regime::Normal) else {
                continue;
            };
            if flops_of(&probe) > lab.effort.flops_max {
                continue;
            }
            let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
            if let Some(sample) = lab.sample(probe)? {
                list.push(sample);
                break;
            }
        }
    }
    Ok(list)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The factor between two results counted from an origin: the median of the largest elements' ratios, brought to a plain
/// number where one is near. None where there is no such factor, or it is 1 or 0.
fn ratio(got: &[f64], want: &[f64], origin: &[f64], few: usize) -> Option<f64> {
    let mut pairs: Vec<(f64, f64)> = got
        .iter()
        .zip(want)
        .zip(origin)
        .map(|((got, want), from)| (got - from, want - from))
        .filter(|(got, want)| got.is_finite() && want.is_finite() && *want != 0.0)
        .collect();
    if pairs.len() < few {
        return None;
    }
    pairs.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    pairs.truncate((pairs.len() / 4).max(few));
    let mut ratios: Vec<f64> = pairs.iter().map(|(got, want)| got / want).collect();
    ratios.sort_by(f64::total_cmp);
    let c = ratios[ratios.len() / 2];
    // All must be near one another, or this is another defect.
    let near = |r: &f64| (r - c).abs() <= 2e-2 * c.abs();
    if ratios.iter().filter(|r| near(r)).count() * 10 < ratios.len() * 9 {
        return None;
    }
    let plain = [2.0, 0.5, -1.0, 4.0, 0.25, 3.0, 1.0 / 3.0, 8.0, 0.125, 1.5, -2.0, 10.0, 0.1];
    let c = plain.into_iter().find(|p| (p - c).abs() <= 4e-3 * p.abs()).unwrap_or(c);
    ((c - 1.0).abs() > 1e-6 && c.abs() > 1e-6).then_some(c)
}
