//! What the error is proportional to: an operand that is added once more, or in each part of an output the right result itself.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_program::Tensor;

/// Elements that a proportion is fitted to, at least.
const LEAST: usize = 8;

/// How an operand lies along an output: as it is, one number for each column, or one for each row.
#[derive(Clone, Copy)]
enum Along {
    Whole,
    Columns,
    Rows,
}

impl Along {
    fn of(operand: &Tensor, output: &Tensor) -> Option<Along> {
        let width = output.sizes.last().copied().unwrap_or(1);
        let count = operand.data.len();
        match () {
            () if operand.sizes == output.sizes => Some(Along::Whole),
            () if operand.sizes.len() == 1 && count == width && count > 1 => Some(Along::Columns),
            () if count > 1 && count * width == output.data.len() => Some(Along::Rows),
            () => None,
        }
    }

    fn at(self, operand: &Tensor, i: usize, width: usize) -> f64 {
        let place = match self {
            Along::Whole => i,
            Along::Columns => i % width.max(1),
            Along::Rows => i / width.max(1),
        };
        operand.data.get(place).copied().unwrap_or(0.0)
    }
}

/// The right result with an operand added to it some number of times.
pub(super) fn operand(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.failing().count() < 2 {
        return Ok(None);
    }
    let record = lab.base.probe.operator().definition().record();
    for output in lab.base.wrong_outputs() {
        for (at, operand) in lab.base.probe.operands().iter().enumerate() {
            let Some(along) = Along::of(operand, &lab.base.exact.want[output]) else { continue };
            if !operand.dtype.is_float() {
                continue;
            }
            let Some(c) = times(&lab.base, output, operand, along) else { continue };
            if lab.failing().all(|sample| is_added(sample, output, at, along, c)) {
                let name = record.operands.get(at).map_or("operand", |slot| slot.name);
                let sentence = format!("It adds {c:.4} times `{name}` to what its result should be.");
                let ran = format!("the error as a multiple of `{name}`, fitted on one draw");
                return Ok(lab.conclude(Kind::WrongOperand, sentence, ran, "it is that on all draws"));
            }
        }
    }
    lab.note("the error as a multiple of an operand", "is none");
    Ok(None)
}

/// How often an operand is added, by least squares.
fn times(sample: &Sample, output: usize, operand: &Tensor, along: Along) -> Option<f64> {
    let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
    let width = want.sizes.last().copied().unwrap_or(1);
    let (mut both, mut square, mut count) = (0.0, 0.0, 0);
    for i in 0..want.data.len() {
        let (error, x) = (got.data[i] - want.data[i], along.at(operand, i, width));
        if error.is_finite() && x.is_finite() && x != 0.0 {
            (both, square, count) = (both + error * x, square + x * x, count + 1);
        }
    }
    (count >= LEAST && square > 0.0).then(|| both / square).filter(|c| c.abs() > 1e-3)
}

fn is_added(sample: &Sample, output: usize, at: usize, along: Along, c: f64) -> bool {
    let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
    let operands = sample.probe.operands();
    let Some(operand) = operands.get(at) else { return false };
    let width = want.sizes.last().copied().unwrap_or(1);
    let tolerance = sample.tolerances()[output];
    (0..want.data.len()).all(|i| {
        let more = c * along.at(operand, i, width);
        let size = sample.exact.measured.whole.get(output).and_then(|m| m.get(i)).copied().unwrap_or(0.0);
        // It may be rounded before and after.
        let room = tolerance.bound(want.data[i] + more, size + more.abs())
            + 2.0 * want.dtype.unit_roundoff() * (more.abs() + want.data[i].abs());
        (got.data[i] - want.data[i] - more).abs() <= room
    })
}

/// By how much a factor must differ from one: less may be a rounding.
const OFF: f64 = 1.0 / 16.0;

/// Each part of an output along an axis is the right one times a factor of its own.
pub(super) fn parts(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.failing().count() < 2 {
        return Ok(None);
    }
    let ran = "each part of the output as a multiple of the right one";
    for output in lab.base.wrong_outputs() {
        for axis in 0..lab.base.exact.want[output].sizes.len() {
            let found: Option<Vec<_>> = lab.failing().map(|sample| factors(sample, output, axis)).collect();
            let Some(found) = found else { continue };
            let factors: Vec<f64> = found.into_iter().flatten().collect();
            // One factor for some parts and none for others is no factor of their own.
            let off: Vec<f64> = factors.iter().copied().filter(|c| (c - 1.0).abs() > OFF).collect();
            if !off.iter().any(|c| (c - off[0]).abs() > OFF * off[0].abs()) {
                continue;
            }
            let (least, most) = factors.iter().fold((f64::MAX, f64::MIN), |(a, b), c| (a.min(*c), b.max(*c)));
            let sentence = format!(
                "Each part of its output along axis {axis} is the right one times a factor of its own, {least:.3} to {most:.3}."
            );
            return Ok(lab.conclude(Kind::WrongFactor, sentence, ran, "it is one on all draws"));
        }
    }
    lab.note(ran, "is none");
    Ok(None)
}

/// The factor of each part along an axis; none where a part is no multiple.
fn factors(sample: &Sample, output: usize, axis: usize) -> Option<Vec<f64>> {
    let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
    let (size, stride) = (want.sizes[axis], want.sizes[axis + 1..].iter().product::<usize>());
    if size < 2 || want.data.len() / size < LEAST || !want.dtype.is_float() {
        return None;
    }
    let tolerance = sample.tolerances()[output];
    let (mut both, mut square) = (vec![0.0; size], vec![0.0; size]);
    let part = |i: usize| i / stride.max(1) % size;
    for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        both[part(i)] += got * want;
        square[part(i)] += want * want;
    }
    let c: Vec<f64> = both.iter().zip(&square).map(|(b, s)| if *s > 0.0 { b / s } else { 1.0 }).collect();
    let near = |i: usize| {
        let c = c[part(i)];
        let size = sample.exact.measured.whole.get(output).and_then(|m| m.get(i)).copied().unwrap_or(0.0);
        let room = tolerance.bound(c * want.data[i], size * c.abs().max(1.0))
            + 2.0 * want.dtype.unit_roundoff() * (c * want.data[i]).abs();
        (got.data[i] - c * want.data[i]).abs() <= room
    };
    // A part that is nothing but zero is a multiple of everything.
    (c.iter().all(|c| c.is_finite() && *c != 0.0) && (0..want.data.len()).all(near)).then_some(c)
}
