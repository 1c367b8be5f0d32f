//! How the error grows with the length of a sum: operands or results that are rounded give an error that does not grow, partial
//! sums that are rounded one that does.

use super::axes::axes;
use super::lab::{Lab, Sample, flops};
use super::{Conclusion, Kind};
use crate::probe::Probe;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_program::{DType, Operator, Tensor};

/// Lengths of the sum that the error is measured at.
const LENGTHS: [usize; 6] = [4, 16, 64, 256, 1024, 4096];

pub(super) fn precision(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    // A rounded result hides what is lost before it; but what is wrong only where it is rounded shows as it is.
    let asked = lab.base.probe.clone();
    for base in with_f32_output(&asked).into_iter().chain([asked]) {
        if let Some(conclusion) = precision_of(lab, &base)? {
            return Ok(Some(conclusion));
        }
    }
    Ok(None)
}

fn precision_of(lab: &mut Lab<'_>, base: &Probe) -> Result<Option<Conclusion>, Obstacle> {
    let mut flat = None;
    for axis in axes(base).into_iter().filter(|axis| !axis.in_outputs) {
        let mut points: Vec<(usize, f64, f64)> = Vec::new();
        for length in LENGTHS {
            let growth = length as f64 / axis.size.max(1) as f64;
            if growth > 1.0 && flops(&lab.base) as f64 * growth > 8.0 * lab.effort.flops_max as f64 {
                break;
            }
            let Some(probe) = base.resized(&axis.map(length), lab.effort.seed, Regime::Normal) else {
                continue;
            };
            let Some(probe) = positive(&probe) else { continue };
            let Some(sample) = lab.sample(probe)? else { continue };
            if let Some((subject, control)) = errors(&sample) {
                points.push((length, subject, control));
            }
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
        let slope = (last.1 / first.1.max(1e-30)).log2() / (last.0 as f64 / first.0 as f64).log2();
        let letter = &axis.letter;
        let told: Vec<String> =
            points.iter().map(|(n, error, _)| format!("{letter}={n}: {:.1} bits", -error.log2())).collect();
        let ran = format!("all operands positive, {letter} from {} to {}", first.0, last.0);
        let showed = format!("{}; the error grows as {letter}^{slope:.2}", told.join(", "));
        if slope > 0.25 {
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
        if slope.abs() <= 0.25 {
            let bits = -last.1.log2() - 1.0;
            let sentence = format!(
                "Operands or results are rounded to about {bits:.0} bits: the error does not grow with the length of a sum."
            );
            flat.get_or_insert(Conclusion::new(Kind::LowPrecisionOperands, sentence));
        }
        lab.note(ran, showed);
    }
    Ok(flat)
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
        .filter(|(want, _)| want.abs() > 65504.0)
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
