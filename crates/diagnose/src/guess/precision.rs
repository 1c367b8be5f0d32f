//! How the error grows with the length of a sum: operands or results that are rounded give an error that does not grow, partial
//! sums that are rounded one that does. What is rounded is a rough function of the operands, what is another formula a smooth one.

use super::axes::axes;
use super::lab::{Lab, Sample, flops, flops_of};
use super::{Conclusion, Kind};
use crate::probe::Probe;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_program::{DType, Operator, Tensor};

/// Lengths of the sum that the error is measured at.
const LENGTHS: [usize; 6] = [4, 16, 64, 256, 1024, 4096];

/// The largest error of a short sum that may be one of rounding.
const ROUNDING_MOST: f64 = 1.0 / 8.0;

/// By what the error of a long sum is larger than that of a short one, where partial sums are rounded. By where in
/// their binade the sums lie, errors differ by a factor of 2 already.
const GROWN: f64 = 2.5;

pub(super) fn growth(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() || lab.base.largest_error() > 2.0 * ROUNDING_MOST {
        return Ok(None);
    }
    // A rounded result hides what is lost before it; but what is wrong only where it is rounded shows as it is.
    let asked = lab.base.probe.clone();
    let wide = [with_f32_output(&asked), with_f32_operands(&asked)];
    for base in wide.into_iter().flatten().chain([asked]) {
        if let Some(conclusion) = precision_of(lab, &base)? {
            return Ok(Some(conclusion));
        }
    }
    Ok(None)
}

fn precision_of(lab: &mut Lab<'_>, base: &Probe) -> Result<Option<Conclusion>, Obstacle> {
    // What is summed over may be an axis of an output as well: of a norm, of another gradient.
    let mut axes = axes(base);
    axes.sort_by_key(|axis| axis.in_outputs);
    for axis in axes {
        let mut points: Vec<(usize, f64, f64)> = Vec::new();
        for length in LENGTHS {
            let growth = length as f64 / axis.size.max(1) as f64;
            if growth > 1.0 && flops(&lab.base) as f64 * growth > 8.0 * lab.effort.flops_max as f64 {
                break;
            }
            let Some(probe) = base.resized(&axis.map(length), lab.effort.seed, Regime::Normal) else {
                continue;
            };
            // Rows and keys that grow together cost as the square.
            if length > axis.size && flops_of(&probe) > 8 * lab.effort.flops_max {
                break;
            }
            let Some((subject, control, largest)) = typical_errors(lab, &probe)? else { continue };
            points.push((length, subject, control));
            // What is far off in a short sum is no rounding.
            if subject > 0.0
                && largest > ROUNDING_MOST
                && points.iter().filter(|point| point.1 > 0.0).count() == 1
            {
                break;
            }
            points.retain(|point| point.1 > 0.0);
        }
        let (Some(first), Some(last)) = (points.first().copied(), points.last().copied()) else { continue };
        if points.len() < 3 || last.1 <= 4.0 * last.2.max(2f64.powi(-23)) {
            // Short sums may be as exact as their store; what overflows early is no f32 all the same.
            if overflows(lab, base, &axis)? == Some(true) {
                let sentence = "Partial sums are kept in fp16: they overflow above 65504.";
                return Ok(Some(Conclusion::new(Kind::LowPrecisionAccumulation, sentence)));
            }
            continue;
        }
        // Sums that a matrix unit takes at once are rounded once: growth begins behind them.
        let slope_from = |from: &(usize, f64, f64)| {
            (last.1 / from.1.max(1e-30)).log2() / (last.0 as f64 / from.0 as f64).log2()
        };
        let far = points.iter().filter(|point| last.0 >= 16 * point.0);
        let slope = far.map(slope_from).fold(slope_from(&first), f64::max);
        let letter = &axis.letter;
        let told: Vec<String> =
            points.iter().map(|(n, error, _)| format!("{letter}={n}: {:.1} bits", -error.log2())).collect();
        let ran = format!("all operands positive, {letter} from {} to {}", first.0, last.0);
        let showed = format!("{}; the error grows as {letter}^{slope:.2}", told.join(", "));
        // A sum of which much is taken at once grows late, and in steps.
        let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let late = last.1 > GROWN * least;
        if !axis.in_outputs {
            lab.grown = lab.grown.max(last.1 / least);
        }
        let grows = match axis.in_outputs {
            // An axis of an output may be no sum: what grows along it grows all the way, and is rough.
            true => slope > 0.25 && steady(&points) && is_rough(lab, base)?,
            false => slope > 0.25 || late,
        };
        if grows {
            let half = overflows(lab, base, &axis)?;
            // One rounding to p bits is off by about 2^-(p+1.3) on average; a few have been added up.
            let bits = -first.1.log2() - 1.0;
            let format = match half {
                Some(true) => "fp16: they overflow above 65504",
                _ if bits < 9.5 => "bf16: they have about 8 bits and do not overflow above 65504",
                _ if bits < 14.0 => "about 11 bits, and do not overflow above 65504",
                _ => "fewer bits than f32 has",
            };
            let how = if slope > 0.75 {
                ", faster than roundings to nearest alone: sums are cut, or stop growing"
            } else {
                ""
            };
            let sentence = format!(
                "Partial sums are kept in {format}; the error grows with the length of the sum{how}."
            );
            return Ok(lab.conclude(Kind::LowPrecisionAccumulation, sentence, ran, showed));
        }
        if !axis.in_outputs {
            lab.flat.get_or_insert(-last.1.log2() - 1.0);
        }
        lab.note(ran, showed);
    }
    Ok(None)
}

/// Whether the error grows from length to length.
fn steady(points: &[(usize, f64, f64)]) -> bool {
    points.windows(2).all(|pair| pair[1].1 >= 0.8 * pair[0].1)
}

/// The same with a result in f32, where the operator may give one: a rounded result hides what is lost before.
fn with_f32_output(probe: &Probe) -> Option<Probe> {
    let mut fields = serde_json::to_value(probe.operator()).ok()?;
    let output = fields.get_mut("output")?;
    if *output == serde_json::json!("f32") {
        return None;
    }
    *output = serde_json::json!("f32");
    let operator: Operator = serde_json::from_value(fields).ok()?;
    probe.altered(&operator, probe.operands()).ok()
}

/// The same with every operand in f32, where the operator takes that.
pub(super) fn with_f32_operands(probe: &Probe) -> Option<Probe> {
    let operands = probe.operands();
    if !operands.iter().any(|t| t.dtype == DType::Bf16) {
        return None;
    }
    let wide = |t: Tensor| if t.dtype == DType::Bf16 { Tensor { dtype: DType::F32, ..t } } else { t };
    let operands: Vec<Tensor> = operands.into_iter().map(wide).collect();
    let operator = with_f32_output(probe).map_or(probe.operator().clone(), |probe| probe.operator().clone());
    probe.altered(&operator, operands).ok()
}

/// The same with every float operand positive, so that nothing cancels.
fn positive(probe: &Probe) -> Option<Probe> {
    let absolute = |t: Tensor| {
        if !t.dtype.is_float() {
            return t;
        }
        Tensor { data: t.data.iter().map(|x| x.abs()).collect(), ..t }
    };
    probe.altered(probe.operator(), probe.operands().into_iter().map(absolute).collect()).ok()
}

/// The errors of a probe on positive operands: typical, of exact arithmetic rounded once, and the largest. What has few
/// elements is drawn more than once.
fn typical_errors(lab: &mut Lab<'_>, probe: &Probe) -> Result<Option<(f64, f64, f64)>, Obstacle> {
    let (mut squares, mut controls, mut most, mut count) = (0.0, 0.0, 0.0f64, 0.0);
    for turn in 0..REDRAWS {
        let seed = lab.effort.seed.wrapping_add(100 + turn);
        let drawn = if turn == 0 { probe.clone() } else { probe.redrawn(seed, Regime::Normal) };
        let Some(drawn) = positive(&drawn) else { return Ok(None) };
        let Some(sample) = lab.sample(drawn)? else { return Ok(None) };
        let Some((subject, control)) = errors(&sample) else { continue };
        (squares, controls, count) = (squares + subject * subject, controls + control * control, count + 1.0);
        most = most.max(sample.largest_error());
        if sample.exact.want.iter().map(|t| t.data.len()).sum::<usize>() >= FEW {
            break;
        }
    }
    Ok((count > 0.0).then(|| ((squares / count).sqrt(), (controls / count).sqrt(), most)))
}

/// Elements below which more is drawn, and how often.
const FEW: usize = 24;
const REDRAWS: u64 = 12;

/// The worst output's typical error, and that of exact arithmetic rounded once.
fn errors(sample: &Sample) -> Option<(f64, f64)> {
    let measured = sample.judgement.accuracy.iter().flatten().filter(|accuracy| accuracy.subject.count > 0);
    measured
        .map(|accuracy| (accuracy.subject.typical(), accuracy.control.typical()))
        .max_by(|a, b| (a.0 / a.1.max(2f64.powi(-26))).total_cmp(&(b.0 / b.1.max(2f64.powi(-26)))))
}

/// Whether sums above 65504 overflow, the largest number of fp16; none where that cannot be seen.
fn overflows(lab: &mut Lab<'_>, base: &Probe, axis: &super::axes::Axis) -> Result<Option<bool>, Obstacle> {
    let Some(probe) = base.resized(&axis.map(16), lab.effort.seed, Regime::Normal) else { return Ok(None) };
    let large = |(at, t): (usize, Tensor)| match t.dtype {
        DType::F32 | DType::Bf16 if axis.in_operand(&probe, at) => {
            Tensor { data: vec![128.0; t.data.len()], ..t }
        }
        _ => t,
    };
    let operands = probe.operands().into_iter().enumerate().map(large).collect();
    let Ok(probe) = probe.altered(probe.operator(), operands) else { return Ok(None) };
    let Some(sample) = lab.sample(probe)? else { return Ok(None) };
    let Some((want, got)) = sample.exact.want.first().zip(sample.outcome.outputs.first()) else {
        return Ok(None);
    };
    let above: Vec<f64> = want
        .data
        .iter()
        .zip(&got.data)
        .filter(|(want, _)| want.abs() > 65504.0 && want.abs() < 1e30)
        .map(|(_, got)| *got)
        .collect();
    if above.is_empty() {
        return Ok(None);
    }
    let over = above.iter().all(|got| !got.is_finite() || got.abs() == 65504.0);
    lab.note(
        format!("sums of {} on their way above 65504", 16 * 128 * 128),
        if over { "overflow" } else { "do not overflow" },
    );
    Ok(Some(over))
}

/// By what all float operands are nudged: by more than a unit of the coarsest type, and by no multiple of it.
const NUDGE: f64 = 1.017_3;

/// Elements that roughness is told from, at least.
const ROUGH_LEAST: usize = 16;

/// Numbers in between that are rounded: the error is small, and changes altogether where operands change by little.
pub(super) fn roughness(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails()
        || lab.base.probe.has_views()
        || lab.base.probe.operator().writes_in_place().is_some()
    {
        return Ok(None);
    }
    let base = lab.base.probe.clone();
    let drawn = base.redrawn(lab.effort.seed, Regime::Normal);
    let mut asked: Vec<Probe> = [&drawn, &base].into_iter().filter_map(with_f32_operands).collect();
    asked.extend([drawn, base]);
    for probe in asked {
        let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
        let Some((first, second)) = nudged_twice(lab, &probe)? else { continue };
        for output in first.wrong_outputs() {
            // Numbers in between that are rounded spoil most of what follows from them.
            let many = first.wrong_in(output).len() * 8 >= first.exact.want[output].data.len();
            let Some((largest, correlation)) = compared(&first, &second, output).filter(|_| many) else {
                continue;
            };
            let ran = format!("all operands times {NUDGE}, and times {NUDGE} again");
            let showed = format!(
                "errors of at most 2^{:.1} of the result, which have a correlation of {correlation:.2}",
                largest.log2()
            );
            if correlation.abs() < 0.5 && largest < 2f64.powi(-5) && largest > 2f64.powi(-18) {
                let bits = lab.flat.unwrap_or(-largest.log2());
                let sentence = format!(
                    "Numbers in between are rounded to about {bits:.0} bits: the error is small, does not grow with the length of a sum, and changes where operands change by little."
                );
                return Ok(lab.conclude(Kind::LowPrecisionOperands, sentence, ran, showed));
            }
            lab.note(ran, showed);
        }
    }
    Ok(None)
}

/// The same case with operands nudged once and twice, where both are taken.
fn nudged_twice(lab: &mut Lab<'_>, probe: &Probe) -> Result<Option<(Sample, Sample)>, Obstacle> {
    let nudged = |t: Tensor| match t.dtype {
        DType::F32 | DType::Bf16 => {
            Tensor::rounded(t.dtype, &t.sizes.clone(), t.data.iter().map(|x| x * NUDGE))
        }
        _ => t,
    };
    let mut samples = Vec::new();
    let mut probe = probe.clone();
    for _ in 0..2 {
        // Bits of a mantissa that are all zero round to themselves, so that the first one is nudged as well.
        let operands = probe.operands().into_iter().map(nudged).collect();
        let Ok(other) = probe.altered(&probe.operator().clone(), operands) else { return Ok(None) };
        let Ok(other) = other.made_consistent(lab.oracle) else { return Ok(None) };
        let Some(sample) = lab.sample(other.clone())? else { return Ok(None) };
        samples.push(sample);
        probe = other;
    }
    Ok(samples.pop().zip(samples.pop()).map(|(second, first)| (first, second)))
}

/// Whether the error of an output changes altogether where operands change by little.
fn is_rough(lab: &mut Lab<'_>, probe: &Probe) -> Result<bool, Obstacle> {
    let Some((first, second)) = nudged_twice(lab, probe)? else { return Ok(false) };
    let rough =
        |output| compared(&first, &second, output).is_some_and(|(_, correlation)| correlation.abs() < 0.7);
    Ok(first.wrong_outputs().into_iter().any(rough))
}

/// The largest error of an output in units of its magnitude, and the correlation of the errors of two samples; none where
/// they are too few, or only some are wrong.
fn compared(first: &Sample, second: &Sample, output: usize) -> Option<(f64, f64)> {
    let errors = |sample: &Sample| -> Vec<Option<f64>> {
        let (want, got) = (&sample.exact.want[output].data, &sample.outcome.outputs[output].data);
        let sizes = sample.exact.measured.whole.get(output);
        let size = |i: usize| sizes.and_then(|m| m.get(i)).copied().unwrap_or(0.0).max(want[i].abs());
        let error = |i: usize| {
            let error = (got[i] - want[i]) / size(i);
            (error.is_finite() && size(i) > 1e-30).then_some(error)
        };
        (0..want.len()).map(error).collect()
    };
    let pairs: Vec<(f64, f64)> =
        errors(first).into_iter().zip(errors(second)).filter_map(|(a, b)| a.zip(b)).collect();
    if pairs.len() < ROUGH_LEAST || !first.exact.want[output].dtype.is_float() {
        return None;
    }
    let n = pairs.len() as f64;
    let mean = pairs.iter().fold((0.0, 0.0), |sum, (a, b)| (sum.0 + a / n, sum.1 + b / n));
    let (mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0);
    for (a, b) in &pairs {
        let (a, b) = (a - mean.0, b - mean.1);
        (aa, bb, ab) = (aa + a * a, bb + b * b, ab + a * b);
    }
    let largest = pairs.iter().fold(0.0f64, |most, (a, b)| most.max(a.abs()).max(b.abs()));
    // A few large errors among none are no rounding.
    let spread = (aa / n).sqrt().max(mean.0.abs());
    (spread > largest / 12.0).then(|| (largest, ab / (aa * bb).sqrt().max(1e-300)))
}
