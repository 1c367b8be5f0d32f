//! Outputs that are the same whatever is read.

use super::axes::axes;
use super::lab::{Lab, Sample};
use super::prediction::WHOLE_ENDS;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;

/// How near to each other results are the same number.
const NEARLY: f64 = 1e-6;

/// Whether the output holds other numbers at other sizes: then it is a part of it that is lost, and not all.
fn varies(lab: &mut Lab<'_>, output: usize, number: f64) -> Result<Option<(String, String)>, Obstacle> {
    let base = lab.base.probe.clone();
    if base.has_views() {
        return Ok(None);
    }
    for axis in axes(&base) {
        let size = axis.size.div_ceil(128) * 128;
        let Some(probe) = base.resized(&axis.map(size), lab.effort.seed, Regime::Normal) else { continue };
        let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
        let Some(sample) = lab.sample(probe)? else { continue };
        let data = &sample.outcome.outputs[output].data;
        if data.iter().any(|x| *x != number && !x.is_nan()) {
            let letter = &axis.letter;
            return Ok(Some((
                format!("{letter} = {size} in place of {}", axis.size),
                "other numbers".into(),
            )));
        }
    }
    Ok(None)
}

pub(super) fn constant(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let ran = format!("{} draws of the operands", lab.samples.len());
    for output in lab.base.wrong_outputs() {
        // One number may be right by chance where the draw passes.
        let few = lab.base.exact.want[output].data.len() < 4;
        if few && lab.failing().count() < 2 {
            continue;
        }
        // What is to be the same on every draw says nothing where it is.
        let right = |sample: &Sample| sample.exact.want[output].data.first().copied().unwrap_or(0.0);
        let of_one = right(&lab.base);
        let constant = lab.samples.iter().all(|sample| {
            sample.exact.want[output].data.iter().all(|x| (x - of_one).abs() <= NEARLY * of_one.abs())
        });
        let name = lab.base.probe.operator().definition().record().outputs.get(output).map_or("", |s| s.name);
        let all = |holds: &dyn Fn(f64) -> bool| {
            lab.samples.iter().all(|sample| sample.outcome.outputs[output].data.iter().all(|x| holds(*x)))
        };
        let whole = !lab.base.exact.want[output].dtype.is_float();
        let first = lab.base.outcome.outputs[output].data.first().copied().unwrap_or(0.0);
        let (zero, nan, same) = (all(&|x| x == 0.0), all(&f64::is_nan), all(&|x| x == first));
        // Whole numbers that do not wrap are told by their range.
        let saturates = whole && WHOLE_ENDS.contains(&first);
        let found = if zero {
            Some((Kind::AllZero, "zero".to_string()))
        } else if nan {
            Some((Kind::AllNan, "NaN".to_string()))
        } else if same && !constant && !saturates && lab.samples.len() > 1 {
            Some((Kind::ConstantOutput, format!("{first:e}")))
        } else {
            None
        };
        if let Some((kind, number)) = found {
            if let Some((ran, showed)) = varies(lab, output, first)? {
                lab.note(ran, showed);
                continue;
            }
            let sentence = format!("Every element of `{name}` is {number}, whatever the operands are.");
            return Ok(lab.conclude(kind, sentence, ran, format!("every element of `{name}` is {number}")));
        }
    }
    Ok(None)
}
