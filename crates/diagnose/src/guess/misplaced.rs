//! An operand that is read through a wrong index, or an output that is written through one.

use super::alteration::{explains, holds_on, moved};
use super::axes::axes;
use super::lab::{Lab, Sample, flops};
use super::places::{Places, places};
use super::{Conclusion, Kind};
use crate::probe::Probe;
use std::collections::BTreeSet;
use toprope_conformance::lockstep::Obstacle;
use toprope_program::{Operator, Tensor};

/// Operations that all wrong ways to read may take together.
const BUDGET: u64 = 8_000_000;

/// The exact result with an operand read through a wrong index.
pub(super) fn operand(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() || !lab.is_far_off() {
        return Ok(None);
    }
    let operator = lab.base.probe.operator().clone();
    let attends = matches!(operator, Operator::Attention(_) | Operator::AttentionGradient(_));
    let operands = lab.base.probe.operands();
    let names = operator.definition().record().operands;
    let name = |at: usize| names[at.min(names.len() - 1)].name;
    let mut sets: Vec<Vec<usize>> = (0..operands.len()).map(|at| vec![at]).collect();
    if attends {
        // Keys and values are read through one index.
        sets.insert(0, vec![1, 2]);
        sets.retain(|set| operands[set[0]].dtype.is_float());
    }
    let small = lab.small()?;
    let smalls = small.probe.operands();
    let (each, each_small) = (flops(&lab.base).max(1), flops(&small).max(1));
    let mut left = BUDGET;
    let mut count = 0;
    for set in sets {
        for axis in 0..operands[set[0]].sizes.len() {
            let size = operands[set[0]].sizes[axis];
            for Places { what, from } in if size > 1 { places(size) } else { Vec::new() } {
                // What goes wrong in the small case as well is tried there first.
                let n = smalls[set[0]].sizes[axis];
                let shows = n < size && (0..n).any(|i| from(i, n) != i) && (0..n).all(|i| from(i, n) < n);
                let cost = if shows { each_small } else { each };
                if left < cost {
                    continue;
                }
                (left, count) = (left - cost, count + 1);
                let read = |operands: Vec<Tensor>| -> Vec<Tensor> {
                    let one = |(at, t): (usize, Tensor)| {
                        if set.contains(&at) { moved(&t, axis, &*from) } else { t }
                    };
                    operands.into_iter().enumerate().map(one).collect()
                };
                let alter =
                    |sample: &Sample| sample.probe.altered(&operator, read(sample.probe.operands())).ok();
                if (!shows || holds_on(lab, &small, &alter)?) && explains(lab, &alter)? {
                    // Rows of an output that are other rows: what else they are made of has none.
                    let alone = set.iter().all(|at| gives_rows(&lab.base.probe, *at, axis));
                    let kind = match (Places { what: what.clone(), from }).kind(size) {
                        Kind::WrongOperand if alone => Kind::Layout,
                        kind => kind,
                    };
                    let read: Vec<String> = set.iter().map(|at| format!("`{}`", name(*at))).collect();
                    let what = format!("axis {axis} of {} {what}", read.join(" and "));
                    let ran = format!("the exact result with {what}, on {} draws", lab.failing().count());
                    return Ok(lab.conclude(kind, format!("It reads {what}."), ran, "it is what was given"));
                }
            }
        }
    }
    lab.note(
        format!("the exact result with an operand read through a wrong index, {count} ways"),
        "is not what was given",
    );
    Ok(None)
}

/// Whether an axis of an operand is one of an output, and of no other operand.
fn gives_rows(probe: &Probe, at: usize, axis: usize) -> bool {
    let operands = &probe.instruction().operands;
    let Some(value) = operands.get(at).map(|operand| operand.value.0 as usize) else { return false };
    let own = axes(probe).into_iter().find(|own| own.stands_alone_at(value, axis));
    own.is_some_and(|own| {
        own.in_outputs && (0..operands.len()).all(|other| other == at || !own.in_operand(probe, other))
    })
}

/// The least width of a part of an output that is recognized by its numbers.
const WIDTH: usize = 4;

/// Parts of an output that hold what belongs in other parts of it.
pub(super) fn output(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.failing().count() < 2 || !lab.is_far_off() {
        return Ok(None);
    }
    let ran = "each wrong part of the output, looked for among the right result's parts";
    for output in lab.base.wrong_outputs() {
        for axis in 0..lab.base.exact.want[output].sizes.len() {
            let found: Option<Vec<_>> = lab.failing().map(|sample| exchanged(sample, output, axis)).collect();
            let Some(found) = found else { continue };
            let Some((part, other)) = found.iter().flatten().next().copied() else { continue };
            let parts: BTreeSet<usize> = found.iter().flatten().map(|(part, _)| *part).collect();
            let sentence = format!(
                "Parts of its output along axis {axis} hold what belongs in others, such as {part} that of {other}."
            );
            let showed = format!("each of {} wrong parts is another part of the right result", parts.len());
            return Ok(lab.conclude(Kind::Layout, sentence, ran, showed));
        }
    }
    lab.note(ran, "is none of them");
    Ok(None)
}

/// The wrong parts of an output along an axis, each with the part whose numbers it holds; none where one holds no other's.
fn exchanged(sample: &Sample, output: usize, axis: usize) -> Option<Vec<(usize, usize)>> {
    let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
    let (size, stride) = (want.sizes[axis], want.sizes[axis + 1..].iter().product::<usize>());
    if size < 2 || want.data.len() / size < WIDTH {
        return None;
    }
    let tolerance = sample.tolerances()[output];
    let magnitudes = sample.exact.measured.whole.get(output);
    let elements = |part: usize| (0..want.data.len()).filter(move |i| i / stride % size == part);
    let wrong: BTreeSet<usize> = sample.wrong_in(output).into_iter().map(|i| i / stride % size).collect();
    let near = |i: usize, j: usize| {
        let magnitude = magnitudes.and_then(|m| m.get(j)).copied().unwrap_or(0.0);
        tolerance.accepts(got.data[i], want.data[j], magnitude)
    };
    let holds = |part: usize, other: usize| elements(part).zip(elements(other)).all(|(i, j)| near(i, j));
    let various = |part: usize| {
        let mut numbers: Vec<u64> = elements(part).map(|i| got.data[i].to_bits()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len() >= WIDTH
    };
    let of = |part: &usize| {
        let other = (0..size).find(|other| other != part && holds(*part, *other))?;
        various(*part).then_some((*part, other))
    };
    (!wrong.is_empty()).then(|| wrong.iter().map(of).collect()).flatten()
}
