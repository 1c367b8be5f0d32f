//! A constant of the formula that is another one: it is fitted on one draw and tried on all of them.

use super::alteration::{explains, kind_of_attribute};
use super::lab::{Lab, Sample, flops};
use super::steps::Steps;
use super::{Conclusion, Kind, steps};
use crate::probe::{Exact, Probe};
use serde_json::Value;
use toprope_conformance::lockstep::Obstacle;
use toprope_program::Operator;

/// Steps of a fit at most, and the change of the constant below which it has ended.
const STEPS: usize = 12;
const ENDED: f64 = 1e-7;

/// Elements that a fit needs: fewer are met by some constant.
const LEAST: usize = 16;

/// Operations above which constants are not fitted.
const FLOPS_MAX: u64 = 1_000_000;

/// By what a constant is changed to see what follows.
const NUDGE: f64 = 1e-4;

/// The change of a constant that brings a prediction nearest to what was given, by least squares in units of the bounds: none
/// where nothing follows it.
fn change(sample: &Sample, at: &Exact, nudged: &Exact) -> Option<f64> {
    let (mut along, mut square) = (0.0, 0.0);
    for output in sample.wrong_outputs() {
        let tolerance = sample.tolerances()[output];
        let (a, b) = (&at.want[output], &nudged.want[output]);
        let got = &sample.outcome.outputs[output];
        for i in 0..a.data.len() {
            let size = at.measured.whole.get(output).and_then(|m| m.get(i)).copied().unwrap_or(0.0);
            let unit = tolerance.bound(a.data[i], size);
            let (error, slope) = ((got.data[i] - a.data[i]) / unit, (b.data[i] - a.data[i]) / unit);
            if error.is_finite() && slope.is_finite() {
                along += error * slope;
                square += slope * slope;
            }
        }
    }
    (square > 0.0).then(|| along / square)
}

/// Fits a constant from where it should be; none where the fit does not end.
fn fit(
    sample: &Sample,
    right: f64,
    mut predict: impl FnMut(f64) -> Result<Option<Exact>, Obstacle>,
) -> Result<Option<f64>, Obstacle> {
    let mut x = right;
    for _ in 0..STEPS {
        let step = NUDGE * if x == 0.0 { 1.0 } else { x };
        let (Some(at), Some(nudged)) = (predict(x)?, predict(x + step)?) else { return Ok(None) };
        let Some(change) = change(sample, &at, &nudged) else { return Ok(None) };
        // A constant of another order of size is come to by and by.
        let moved = (change * step).clamp(-4.0 * x.abs() - 0.1, 4.0 * x.abs() + 0.1);
        x += moved;
        if !x.is_finite() {
            return Ok(None);
        }
        if moved.abs() <= ENDED * x.abs() {
            return Ok(((x - right).abs() > 1e-4 * right.abs()).then_some(x));
        }
    }
    Ok(None)
}

/// An attribute, or an operand of one number, that is another number.
pub(super) fn attribute(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let few = lab.base.elements() < LEAST || lab.failing().count() < 2;
    if !lab.base.fails() || lab.base.probe.has_views() || few || flops(&lab.base) > FLOPS_MAX {
        return Ok(None);
    }
    let base = lab.base.clone();
    let operator = base.probe.operator().clone();
    let Ok(Value::Object(fields)) = serde_json::to_value(&operator) else { return Ok(None) };
    let mut count = 0;
    for (name, value) in fields.iter().filter(|(_, value)| value.is_f64()) {
        let Some(right) = value.as_f64() else { continue };
        let with = |x: f64| {
            let mut changed = fields.clone();
            changed.insert(name.clone(), x.into());
            serde_json::from_value::<Operator>(Value::Object(changed)).ok()
        };
        let alter = |sample: &Sample, x: f64| -> Option<Probe> {
            sample.probe.altered(&with(x)?, sample.probe.operands()).ok()
        };
        count += 1;
        let fitted = fit(&base, right, |x| match alter(&base, x) {
            Some(probe) => probe.exact(lab.oracle).map(Some),
            None => Ok(None),
        })?;
        if let Some(x) = fitted
            && explains(lab, &|sample| alter(sample, x))?
        {
            let draws = lab.failing().count();
            let ran = format!("the exact result with another {name}, fitted on one draw, tried on {draws}");
            let sentence = format!("It computes with {name} = {x:.6}; {right} was asked for.");
            return Ok(lab.conclude(
                kind_of_attribute(&operator, name),
                sentence,
                ran,
                "it is what was given",
            ));
        }
    }
    for (at, operand) in base.probe.operands().into_iter().enumerate() {
        if operand.data.len() > SCALARS || !operand.dtype.is_float() {
            continue;
        }
        for place in 0..operand.data.len() {
            let right = operand.data[place];
            let alter = |sample: &Sample, x: &dyn Fn(f64) -> f64| -> Option<Probe> {
                let mut operands = sample.probe.operands();
                let number = operands.get_mut(at)?.data.get_mut(place)?;
                *number = x(*number);
                sample.probe.altered(&operator, operands).ok()
            };
            count += 1;
            let fitted = fit(&base, right, |x| match alter(&base, &|_| x) {
                Some(probe) => probe.exact(lab.oracle).map(Some),
                None => Ok(None),
            })?;
            let Some(x) = fitted else { continue };
            let name = operator.definition().record().operands.get(at).map_or("operand", |slot| slot.name);
            // Other draws have other numbers there: it is a constant, or the right one times a constant.
            let ways: [(&str, &dyn Fn(f64) -> f64); 2] = [
                ("taken as another number", &|_| x),
                ("taken times a factor", &|right_x| right_x * x / right),
            ];
            for (how, way) in ways {
                if explains(lab, &|sample| alter(sample, way))? {
                    let ran = format!("the exact result with `{name}` {how}, fitted on one draw");
                    let sentence =
                        format!("It computes with `{name}`[{place}] = {x:.6} in place of {right:.6}.");
                    return Ok(lab.conclude(Kind::WrongOperand, sentence, ran, "it is what was given"));
                }
            }
        }
    }
    if count > 0 {
        lab.note(format!("{count} constants, each fitted on one draw"), "explain no other");
    }
    Ok(None)
}

/// Numbers of an operand that are fitted one by one.
const SCALARS: usize = 4;

/// Operations of a case that the factors of steps are fitted on.
const STEP_FLOPS_MAX: u64 = 300_000;

/// A step of the formula times a factor.
pub(super) fn step(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.failing().count() < 2 {
        return Ok(None);
    }
    let small = lab.small()?;
    let base = if small.elements() < LEAST { lab.base.clone() } else { small };
    if base.elements() < LEAST || flops(&base) > STEP_FLOPS_MAX {
        return Ok(None);
    }
    let Some(found) = steps::times(&base) else { return Ok(None) };
    let count = found.len();
    for name in found {
        let predict = |sample: &Sample, c: f64| steps::altered(sample, &Steps::times(name, c));
        let fitted = fit(&base, 1.0, |c| Ok(predict(&base, c)))?;
        let Some(c) = fitted.filter(|c| *c != 0.0) else { continue };
        let holds = |sample: &Sample| {
            predict(sample, c).is_some_and(|exact| sample.explained_by(&sample.probe, &exact))
        };
        if holds(&base) && lab.failing().all(holds) {
            let draws = lab.failing().count();
            let ran = format!("its formula with {name} times a factor, fitted on one draw, tried on {draws}");
            let sentence = format!("It computes with {name} times {c:.5}.");
            // A constant within a function is no factor of the result.
            let kind = if name.contains("exponent") { Kind::WrongAttribute } else { Kind::WrongFactor };
            return Ok(lab.conclude(kind, sentence, ran, "it is what was given"));
        }
    }
    lab.note(
        format!("its formula with one step times a factor, fitted on one draw, {count} steps"),
        "is not what was given",
    );
    Ok(None)
}
