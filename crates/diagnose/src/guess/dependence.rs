//! Which part of an operand each element of an output follows: one part along an axis is changed, and what answers is compared
//! with what should. An element that follows another part than its own reads through a wrong index, whatever it computes then.

use super::axes::axes;
use super::lab::{Lab, Sample, flops, flops_of};
use super::{Conclusion, Kind};
use crate::probe::{Exact, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_program::{Operator, Tensor};

/// Operations of a case above which parts are not changed in turn, and of all changes together.
const FLOPS_MAX: u64 = 400_000;
const BUDGET: u64 = 10_000_000;

/// Parts of an axis that are changed, at least and at most.
const PARTS: (usize, usize) = (4, 16);

/// Elements that must follow another part before that is said.
const LEAST: usize = 4;

/// By how many bounds an element must move to be one that answers.
const ANSWER: f64 = 8.0;

/// The share of a result that a coarse store may hide.
const HIDDEN: f64 = 1.0 / 16.0;

/// What an element does when a part is changed.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    /// It must follow, and does.
    Follows,
    /// It must follow, and keeps its bits.
    Deaf,
    /// It must not follow, and moves.
    Astray,
    /// It must not follow, and does not.
    Rests,
    /// It moves by too little to be told.
    Unclear,
}

/// What the elements of an output do when the parts of an operand along an axis are changed in turn.
struct Followed {
    operand: usize,
    axis: usize,
    /// Whether it is the last of more than one: that of columns.
    columns: bool,
    parts: Vec<usize>,
    /// By element of the wrong outputs, by part.
    answers: Vec<Vec<Answer>>,
}

impl Followed {
    /// The parts that an element answers to in one of these ways.
    fn of(&self, element: usize, which: &[Answer]) -> Vec<usize> {
        let answers = self.answers[element].iter().zip(&self.parts);
        answers.filter(|(answer, _)| which.contains(answer)).map(|(_, part)| *part).collect()
    }

    fn has(&self, element: usize, which: Answer) -> bool {
        self.answers[element].contains(&which)
    }

    /// The part that an element should follow, where it is one.
    fn own(&self, element: usize) -> Option<usize> {
        match self.of(element, &[Answer::Follows, Answer::Deaf]).as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// Whether one of these elements follows a part that it should.
    fn is_heard(&self, part: usize, mut elements: Range<usize>) -> bool {
        let at = self.parts.iter().position(|p| *p == part);
        at.is_some_and(|at| elements.any(|e| self.answers[e][at] == Answer::Follows))
    }

    /// Elements that follow another part than their own.
    fn moved(&self) -> Vec<usize> {
        self.elements(|e| self.has(e, Answer::Deaf) && self.has(e, Answer::Astray))
    }

    /// Elements that do not follow all that they should.
    fn lost(&self) -> Vec<usize> {
        self.elements(|e| self.has(e, Answer::Deaf) && !self.has(e, Answer::Astray))
    }

    /// Elements that follow what they should, and more.
    fn gained(&self) -> Vec<usize> {
        self.elements(|e| {
            self.has(e, Answer::Follows) && !self.has(e, Answer::Deaf) && self.has(e, Answer::Astray)
        })
    }

    fn elements(&self, holds: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.answers.len()).filter(|e| holds(*e)).collect()
    }

    /// Whether each part has another one in its place, all different: the parts are taken in another order.
    fn is_rearranged(&self, moved: &[usize]) -> bool {
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        let one_each = moved.iter().all(|e| {
            let (deaf, astray) = (self.of(*e, &[Answer::Deaf]), self.of(*e, &[Answer::Astray]));
            match (deaf.as_slice(), astray.as_slice()) {
                ([own], [other]) => *places.entry(*own).or_insert(*other) == *other,
                _ => true,
            }
        });
        // Elements that follow their own part.
        let right = |e: &usize| !self.has(*e, Answer::Deaf) && !self.has(*e, Answer::Astray);
        let rest = (0..self.answers.len()).filter(right).filter_map(|e| self.own(e));
        let stay =
            rest.collect::<BTreeSet<usize>>().into_iter().all(|own| *places.entry(own).or_insert(own) == own);
        let taken: BTreeSet<usize> = places.values().copied().collect();
        one_each && stay && taken.len() == places.len()
    }

    /// Whether this operand, read rightly by these elements, says which part of the other each of them should follow.
    fn tells(&self, other: &Followed, elements: &[usize]) -> bool {
        let right = |e: &&usize| !self.has(**e, Answer::Deaf) && !self.has(**e, Answer::Astray);
        let known: Vec<(usize, usize)> =
            elements.iter().filter(right).filter_map(|e| Some((self.own(*e)?, other.own(*e)?))).collect();
        let mut of: BTreeMap<usize, usize> = BTreeMap::new();
        let various = known.iter().any(|(own, _)| *own != known[0].0);
        known.len() >= LEAST
            && various
            && known.into_iter().all(|(own, others)| *of.entry(own).or_insert(others) == others)
    }
}

pub(super) fn dependence(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let operator = lab.base.probe.operator().clone();
    let in_place = operator.writes_in_place().is_some();
    if !lab.base.fails() || lab.base.probe.has_views() || in_place || !lab.is_far_off() {
        return Ok(None);
    }
    let small = lab.small()?;
    if let Some(conclusion) = told_by(lab, &small)? {
        return Ok(Some(conclusion));
    }
    // Few parts may be read rightly by chance.
    let mut larger = small;
    let before = larger.probe.elements();
    for axis in axes(&larger.probe.clone()).into_iter().filter(|axis| axis.size < SHORT) {
        let seed = lab.effort.seed;
        let Some(probe) = larger.probe.resized(&axis.map(SHORT), seed, Regime::Normal) else { continue };
        let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
        if flops_of(&probe) > LARGER_MOST {
            continue;
        }
        if let Some(sample) = lab.sample(probe)?
            && sample.fails()
        {
            larger = sample;
        }
    }
    if larger.probe.elements() > before { told_by(lab, &larger) } else { Ok(None) }
}

/// Axes below this are made as long, up to so many operations.
const SHORT: usize = 24;
const LARGER_MOST: u64 = 100_000;

/// What one case tells.
fn told_by(lab: &mut Lab<'_>, base: &Sample) -> Result<Option<Conclusion>, Obstacle> {
    let operator = base.probe.operator().clone();
    if flops(base) > FLOPS_MAX {
        return Ok(None);
    }
    let followed = follow(lab, base)?;
    let names: Vec<&str> = operator.definition().record().operands.iter().map(|slot| slot.name).collect();
    let name = |at: usize| names.get(at.min(names.len().saturating_sub(1))).copied().unwrap_or("operand");
    let ran = |f: &Followed| {
        format!("{} parts of `{}` along axis {} changed in turn", f.parts.len(), name(f.operand), f.axis)
    };
    for f in &followed {
        let moved = f.moved();
        if moved.len() < LEAST || 4 * moved.len() < f.lost().len() + f.gained().len() {
            continue;
        }
        // Whose rows or matrices are taken is what these are for: another one is another order.
        let copies = matches!(
            operator,
            Operator::Gather(_) | Operator::Assemble(_) | Operator::Cast(_) | Operator::GroupedMatmul(_)
        );
        let told = followed.iter().any(|other| other.operand != f.operand && other.tells(f, &moved));
        // Another column is another stride; another row, head or group is another part of the operand.
        let kind = if copies || !told || f.columns || f.is_rearranged(&moved) {
            Kind::Layout
        } else {
            Kind::WrongOperand
        };
        let example = moved.iter().find_map(|e| Some((f.own(*e)?, f.of(*e, &[Answer::Astray]))));
        let example = example.map_or_else(String::new, |(own, others)| {
            format!(", such as part {} in place of {own}", others.first().copied().unwrap_or(own))
        });
        let sentence = format!(
            "It reads `{}` through a wrong index along axis {}: elements follow another part than their own{example}.",
            name(f.operand),
            f.axis
        );
        let showed = format!("{} elements do not follow their own part, and follow another", moved.len());
        return Ok(lab.conclude(kind, sentence, ran(f), showed));
    }
    // Who is chosen hangs on all, and nobody follows smoothly.
    let chooses = matches!(operator, Operator::Router(_));
    for f in followed.iter().filter(|_| !chooses) {
        let (lost, gained) = (f.lost(), f.gained());
        let masked = is_masked(&operator, f);
        if lost.len() >= LEAST && gained.is_empty() && lost.iter().all(|e| f.has(*e, Answer::Follows)) {
            let parts: BTreeSet<usize> = lost.iter().flat_map(|e| f.of(*e, &[Answer::Deaf])).collect();
            let some_hear = parts.iter().any(|part| f.is_heard(*part, 0..f.answers.len()));
            // What is deaf here and there is a steep function: a part that does not count counts for nobody, or for whole rows.
            let width = base.exact.want[0].sizes.last().copied().unwrap_or(1).max(1);
            let in_rows = lost.iter().all(|e| {
                let row = e / width * width..((e / width + 1) * width).min(f.answers.len());
                f.of(*e, &[Answer::Deaf]).into_iter().all(|part| !f.is_heard(part, row.clone()))
            });
            if some_hear && !(masked && in_rows) {
                continue;
            }
            let (kind, which) = match some_hear {
                true => (Kind::Mask, "Some do not see what they must"),
                false => (Kind::MissingTerms, "Parts of a sum do not count"),
            };
            let listed: Vec<String> = parts.iter().take(4).map(ToString::to_string).collect();
            let listed = listed.join(", ");
            let sentence = format!("{which}: from `{}` along axis {}, {listed}.", name(f.operand), f.axis);
            let showed = format!("{} elements follow only some of the parts that they should", lost.len());
            return Ok(lab.conclude(kind, sentence, ran(f), showed));
        }
        if gained.len() >= LEAST && lost.is_empty() {
            let (kind, which) = match masked {
                true => (Kind::Mask, "Some see what must be hidden from them"),
                false => (Kind::WrongOperand, "Elements follow what is not theirs"),
            };
            let sentence = format!("{which}: `{}` along axis {}.", name(f.operand), f.axis);
            let showed = format!("{} elements follow their own part, and others", gained.len());
            return Ok(lab.conclude(kind, sentence, ran(f), showed));
        }
    }
    if let Some(deaf) = unread(&followed) {
        let sentence = format!("It does not read `{}`: nothing follows it.", name(deaf));
        let ran = format!("all parts of `{}` changed in turn", name(deaf));
        return Ok(lab.conclude(Kind::WrongOperand, sentence, ran, "no element answers"));
    }
    if !followed.is_empty() {
        lab.note(
            format!("parts of the operands changed in turn, along {} axes", followed.len()),
            "what should follow them does, and nothing else",
        );
    }
    Ok(None)
}

/// Whether an axis is that of attention's rows or keys: which of them has to do with which is the mask's matter.
fn is_masked(operator: &Operator, f: &Followed) -> bool {
    matches!(operator, Operator::Attention(_) | Operator::AttentionGradient(_)) && f.axis == 0
}

/// An operand that nothing follows along any of its axes, where others are followed.
fn unread(followed: &[Followed]) -> Option<usize> {
    let operands: BTreeSet<usize> = followed.iter().map(|f| f.operand).collect();
    let answers = |operand: usize, which: Answer| {
        let own = followed.iter().filter(move |f| f.operand == operand);
        own.flat_map(|f| &f.answers).flatten().filter(|answer| **answer == which).count()
    };
    let deaf = operands.iter().copied().find(|operand| {
        answers(*operand, Answer::Deaf) >= LEAST && answers(*operand, Answer::Follows) == 0
    })?;
    operands.iter().any(|operand| answers(*operand, Answer::Follows) > 0).then_some(deaf)
}

/// The operands that follow from others, and so are not changed by themselves.
fn derived(operator: &Operator) -> &'static [usize] {
    match operator {
        Operator::AttentionGradient(_) => &[3, 4],
        Operator::RmsNormGradient(_) => &[2],
        Operator::RouterGradient(_) => &[0, 1, 2],
        _ => &[],
    }
}

/// Runs that tell what changes by itself.
const UNSTEADY_RUNS: usize = 3;

/// Changes the parts of each operand along each of its axes.
fn follow(lab: &mut Lab<'_>, base: &Sample) -> Result<Vec<Followed>, Obstacle> {
    let Ok(probe) = base.probe.made_consistent(lab.oracle) else { return Ok(Vec::new()) };
    let operands = probe.operands();
    let derived = derived(probe.operator());
    let mut axes = Vec::new();
    for (at, operand) in operands.iter().enumerate() {
        let free = operand.dtype.is_float() && !derived.contains(&at);
        let sizes = operand.sizes.iter().enumerate().filter(|(_, size)| free && **size > 1);
        axes.extend(sizes.map(|(axis, size)| (at, axis, *size)));
    }
    let mut outputs: Vec<usize> = base.wrong_outputs().into_iter().collect();
    outputs.retain(|output| base.exact.want[*output].dtype.is_float());
    if axes.is_empty() || outputs.is_empty() {
        return Ok(Vec::new());
    }
    let each = BUDGET / flops(base).max(1) / axes.len() as u64;
    let most = (each as usize).clamp(PARTS.0, PARTS.1);
    let opened = probe.open(lab.subject).map_err(Obstacle::Subject)?;
    let mut got = opened.run(lab.subject, &probe)?;
    if !lab.steady {
        // What changes by itself says nothing.
        for again in 0..UNSTEADY_RUNS {
            let mut fed = probe.clone();
            (0..again).for_each(|_| fed.rotate_floats());
            opened.run(lab.subject, &fed)?;
            let other = opened.run(lab.subject, &probe)?;
            for (got, other) in got.outputs.iter_mut().zip(other.outputs) {
                let changed = got.data.iter_mut().zip(other.data).filter(|(a, b)| **a != *b);
                changed.for_each(|(a, _)| *a = f64::NAN);
            }
        }
    }
    let exact = probe.exact(lab.oracle)?;
    let before = Sample { judgement: probe.judge(&exact, &got), probe: probe.clone(), exact, outcome: got };
    let mut list = Vec::new();
    for (operand, axis, size) in axes {
        let parts = parts(size, most);
        let count: usize = outputs.iter().map(|o| before.exact.want[*o].data.len()).sum();
        let mut answers = vec![Vec::with_capacity(parts.len()); count];
        let mut used = Vec::new();
        for part in parts {
            let mut fed = probe.clone();
            fed.set_operand(operand, changed(&operands[operand], axis, part));
            let Ok(fed) = fed.made_consistent(lab.oracle) else { continue };
            let after = opened.run(lab.subject, &fed)?;
            let want = fed.exact(lab.oracle)?;
            used.push(part);
            let mut answers = answers.iter_mut();
            for output in &outputs {
                for answer in compared(&before, &want, &after, *output) {
                    answers.next().into_iter().for_each(|list| list.push(answer));
                }
            }
        }
        list.push(Followed {
            operand,
            axis,
            columns: axis > 0 && axis + 1 == operands[operand].sizes.len(),
            parts: used,
            answers,
        });
    }
    opened.close(lab.subject).map_err(Obstacle::Subject)?;
    Ok(list)
}

/// Which parts of an axis are changed: all, or the first ones and the last ones, so that neighbours are among them.
fn parts(size: usize, most: usize) -> Vec<usize> {
    let edge = most.div_ceil(2).min(size);
    let parts: BTreeSet<usize> = (0..edge).chain(size - (most - edge).min(size)..size).collect();
    if size <= most { (0..size).collect() } else { parts.into_iter().collect() }
}

/// A tensor with other numbers in one part along an axis; numbers that are not negative stay so.
fn changed(tensor: &Tensor, axis: usize, part: usize) -> Tensor {
    let stride: usize = tensor.sizes[axis + 1..].iter().product();
    let finite = || tensor.data.iter().filter(|x| x.is_finite());
    let mean = finite().map(|x| x.abs()).sum::<f64>() / finite().count().max(1) as f64;
    let spread = if mean > 0.0 { mean } else { 1.0 };
    let signed = tensor.data.iter().any(|x| *x < 0.0);
    let factor = if signed { -3.7 } else { 4.3 };
    let data = tensor.data.iter().enumerate().map(|(i, x)| {
        if i / stride.max(1) % tensor.sizes[axis] == part { factor * x + 2.0 * spread } else { *x }
    });
    Tensor::rounded(tensor.dtype, &tensor.sizes, data)
}

/// What each element of an output does between two runs.
fn compared(before: &Sample, want: &Exact, after: &Outcome, output: usize) -> Vec<Answer> {
    let tolerance = before.tolerances()[output];
    let (old, new) = (&before.exact, want);
    let dtype = new.want[output].dtype;
    let size = |exact: &Exact, i: usize| {
        exact.measured.whole.get(output).and_then(|m| m.get(i)).copied().unwrap_or(0.0)
    };
    let one = |i: usize| {
        let (a, b) = (old.want[output].data[i], new.want[output].data[i]);
        let (got, then) = (after.outputs[output].data[i], before.outcome.outputs[output].data[i]);
        if ![a, b, got, then].iter().all(|x| x.is_finite()) {
            return Answer::Unclear;
        }
        let bound = tolerance.bound(a, size(old, i)) + tolerance.bound(b, size(new, i));
        let bound = bound + dtype.unit_roundoff() * a.abs().max(b.abs());
        let (must, moves) = ((b - a).abs(), (got - then).abs());
        // A result that is stored coarsely hides what is small beside it.
        let large = must > HIDDEN * a.abs().max(b.abs());
        match () {
            () if must > ANSWER * bound && large && got == then => Answer::Deaf,
            () if must > ANSWER * bound && moves > bound => Answer::Follows,
            () if a == b && moves > bound => Answer::Astray,
            () if a == b => Answer::Rests,
            () => Answer::Unclear,
        }
    };
    (0..new.want[output].data.len()).map(one).collect()
}
