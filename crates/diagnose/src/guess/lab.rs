//! Runs trials on subject and oracle and keeps the record of what was tried.

use super::axes::axes;
use super::{Conclusion, Effort, Experiment, Guess, Kind};
use crate::probe::{Exact, Outcome, Probe};
use std::collections::BTreeSet;
use toprope_conformance::Oracle;
use toprope_conformance::judge::Judgement;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;
use toprope_program::{Concrete, DType, Device, Operator, Tensor, Tolerance};

/// One run of a probe with what it should have given.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub probe: Probe,
    pub exact: Exact,
    pub outcome: Outcome,
    pub judgement: Judgement,
}

/// Elements of outputs below which a larger case is looked for.
const TELLING: usize = 400;

/// Elements of all operands and outputs that it may have then.
const TELLING_MOST: usize = 6000;

/// The error of a result that is far off, in units of its magnitude.
const FAR: f64 = 1.0 / 32.0;

/// Operations of a case that is small enough to run many times.
const SMALL: u64 = 20_000;

/// Elements of outputs below which more draws are made, and how many; else two.
pub(super) const FEW: usize = 24;
pub(super) const MANY_DRAWS: u64 = 16;
const DRAWS: u64 = 2;

impl Sample {
    /// Elements of its wrong outputs.
    pub fn elements(&self) -> usize {
        self.wrong_outputs().iter().map(|output| self.exact.want[*output].data.len()).sum()
    }

    pub fn fails(&self) -> bool {
        matches!(self.judgement.verdict, Verdict::Differ(_))
    }

    /// The outputs with an element outside of its bound.
    pub fn wrong_outputs(&self) -> BTreeSet<usize> {
        self.judgement.wrong.iter().map(|(output, _)| *output).collect()
    }

    /// The wrong elements of an output.
    pub fn wrong_in(&self, output: usize) -> Vec<usize> {
        self.judgement.wrong.iter().filter(|(at, _)| *at == output).map(|(_, element)| *element).collect()
    }

    /// The largest error of a wrong element, in units of its magnitude.
    pub fn largest_error(&self) -> f64 {
        let error = |(output, element): &(usize, usize)| {
            let want = self.exact.want[*output].data[*element];
            let got = self.outcome.outputs[*output].data[*element];
            let size = self.exact.measured.whole.get(*output).and_then(|m| m.get(*element)).copied();
            let error = (got - want).abs() / size.unwrap_or(0.0).max(want.abs());
            if error.is_nan() { 1.0 } else { error }
        };
        self.judgement.wrong.iter().map(error).fold(0.0, f64::max)
    }

    pub fn tolerances(&self) -> Vec<Tolerance> {
        let concrete = |tensors: &[Tensor]| -> Vec<Concrete> {
            tensors.iter().map(|t| Concrete { dtype: t.dtype, sizes: t.sizes.clone() }).collect()
        };
        let (operands, outputs) = (concrete(&self.probe.operands()), concrete(&self.exact.want));
        self.probe.operator().definition().tolerances(&operands, &outputs)
    }

    /// Whether another exact result explains every output that is wrong, all of its elements.
    pub fn explained_by(&self, probe: &Probe, exact: &Exact) -> bool {
        let wrong = self.wrong_outputs();
        if wrong.is_empty() {
            return false;
        }
        let judgement = probe.judge(exact, &self.outcome);
        // What could not be compared is no explanation.
        let skipped = |judgement: &Judgement| judgement.incomparable.values().sum::<u64>();
        let left: Vec<_> = judgement.wrong.iter().filter(|(output, _)| wrong.contains(output)).collect();
        // What brings the few wrong ones within their bounds and takes the others further off is no explanation.
        if self.square(exact, &wrong) > self.square(&self.exact, &wrong) {
            return false;
        }
        // What is done after the store is rounded once more.
        let nearly = || {
            let few = left.len() * 2 <= self.judgement.wrong.len();
            few && left.iter().all(|(output, element)| self.nearly(exact, *output, *element))
                && self.distance(exact) * 8.0 <= self.distance(&self.exact)
        };
        (left.is_empty() || nearly())
            && judgement.wrong_count as usize <= judgement.wrong.len()
            && skipped(&judgement) <= skipped(&self.judgement)
            && (!matches!(judgement.verdict, Verdict::Differ(_)) || !judgement.wrong.is_empty())
    }

    /// Whether an element is off by no more than another rounding to bf16.
    fn nearly(&self, other: &Exact, output: usize, element: usize) -> bool {
        let got = self.outcome.outputs[output].data[element];
        let want = other.want[output].data[element];
        let size = other.measured.whole.get(output).and_then(|m| m.get(element)).copied().unwrap_or(0.0);
        let dtype = other.want[output].dtype;
        let room = self.tolerances()[output].bound(want, size) + dtype.unit_roundoff() * size.max(want.abs());
        dtype == DType::Bf16 && (got - want).abs() <= room
    }

    /// How far all elements of some outputs lie from what should be there: the sum of squares, in units of the bounds.
    fn square(&self, other: &Exact, outputs: &BTreeSet<usize>) -> f64 {
        let tolerances = self.tolerances();
        let mut sum = 0.0;
        for output in outputs.iter().copied() {
            let (want, right) = (&other.want[output], &self.exact.want[output]);
            for i in 0..right.data.len() {
                let size =
                    self.exact.measured.whole.get(output).and_then(|m| m.get(i)).copied().unwrap_or(0.0);
                let unit = tolerances[output].bound(right.data[i], size);
                let error = (self.outcome.outputs[output].data[i] - want.data[i]) / unit;
                sum += if error.is_finite() { error * error } else { 0.0 };
            }
        }
        sum
    }

    /// How far the wrong elements lie from what should be there, in all.
    fn distance(&self, other: &Exact) -> f64 {
        let one = |(output, element): &(usize, usize)| {
            (self.outcome.outputs[*output].data[*element] - other.want[*output].data[*element]).abs()
        };
        self.judgement.wrong.iter().map(one).sum()
    }

    /// The same with outputs in place of the exact ones.
    pub fn explained_by_outputs(&self, want: Vec<Tensor>) -> bool {
        let mut measured = self.exact.measured.clone();
        // No magnitude is less than the result itself.
        for (sizes, want) in measured.whole.iter_mut().zip(&want) {
            for (size, x) in sizes.iter_mut().zip(&want.data) {
                *size = if x.is_finite() { size.max(x.abs()) } else { *size };
            }
        }
        self.explained_by(&self.probe, &Exact { want, measured })
    }
}

/// What a guess is made with.
pub(super) struct Lab<'a> {
    pub subject: &'a mut dyn Device,
    pub oracle: &'a mut Oracle,
    /// The failing case: dense where that fails as well, and as small as the effort asks for.
    pub base: Sample,
    /// The base, and the same case with other numbers.
    pub samples: Vec<Sample>,
    /// What was seen when it was found, where it does not show every time.
    pub observed: Option<Outcome>,
    pub effort: Effort,
    pub experiments: Vec<Experiment>,
    /// A case that fails and is as small as may be, once it was looked for.
    small: Option<Sample>,
    /// Whether the same run gives the same bits each time.
    pub steady: bool,
    /// Bits that are left where the error does not grow with the length of a sum.
    pub flat: Option<f64>,
    /// By what the error of a long sum is larger than that of a short one, at most.
    pub grown: f64,
}

/// What comes of opening.
pub(super) enum Opening<'a> {
    Ready(Box<Lab<'a>>),
    Concluded(Guess),
}

impl<'a> Lab<'a> {
    pub fn open(
        subject: &'a mut dyn Device,
        oracle: &'a mut Oracle,
        probe: &Probe,
        observed: Option<&Outcome>,
        effort: Effort,
    ) -> Result<Opening<'a>, Obstacle> {
        let base = run(subject, oracle, probe.clone())?;
        let mut lab = Lab {
            subject,
            oracle,
            samples: vec![base.clone()],
            base,
            observed: observed.cloned(),
            effort,
            experiments: Vec::new(),
            small: None,
            steady: false,
            flat: None,
            grown: 1.0,
        };
        let stray = lab.base.outcome.stray.clone();
        if let Some(place) = stray.or_else(|| observed.and_then(|outcome| outcome.stray.clone())) {
            lab.note(
                "it alone, in memory of its own",
                format!("bytes outside of its outputs changed: {place}"),
            );
            return Ok(
                lab.concluded(Kind::WritesOutside, format!("It writes outside of its outputs, at {place}."))
            );
        }
        if lab.base.fails() {
            if let Some(opening) = lab.make_dense()? {
                return Ok(opening);
            }
            lab.make_small()?;
            lab.make_telling()?;
            lab.samples = vec![lab.base.clone()];
            // What has few elements is drawn more often.
            let draws = if lab.base.elements() < FEW { MANY_DRAWS } else { DRAWS };
            for turn in 1..=draws {
                let seed = lab.effort.seed.wrapping_add(turn);
                let redrawn = lab.base.probe.redrawn_consistently(seed, Regime::Normal, lab.oracle);
                if let Ok(redrawn) = redrawn
                    && let Some(sample) = lab.sample(redrawn)?
                {
                    lab.samples.push(sample);
                }
            }
        }
        Ok(Opening::Ready(Box::new(lab)))
    }

    fn concluded<'b>(self, kind: Kind, sentence: impl Into<String>) -> Opening<'b> {
        Opening::Concluded(Guess { kind, sentence: sentence.into(), experiments: self.experiments })
    }

    /// Views become dense operands, where it fails with them as well; where it does not, that is what is wrong.
    fn make_dense<'b>(&mut self) -> Result<Option<Opening<'b>>, Obstacle> {
        let viewed = self.base.probe.has_views();
        if !viewed && self.base.probe.symbols().is_empty() {
            return Ok(None);
        }
        let Ok(dense) = self.base.probe.dense() else { return Ok(None) };
        let Some(sample) = self.sample(dense)? else { return Ok(None) };
        if sample.fails() {
            self.base = sample;
            return Ok(None);
        }
        if !viewed {
            return Ok(None);
        }
        self.note("the same numbers as dense operands", "agrees");
        let experiments = std::mem::take(&mut self.experiments);
        let sentence = "It is wrong only where an operand is read through a strided view.".to_string();
        Ok(Some(Opening::Concluded(Guess { kind: Kind::StridedView, sentence, experiments })))
    }

    /// What was seen before is of other operands.
    fn replace_base(&mut self, sample: Sample) {
        self.base = sample;
        self.observed = None;
    }

    /// Looks for a smaller case that fails. Sizes keep what they leave when divided by 32.
    fn make_small(&mut self) -> Result<(), Obstacle> {
        let before = self.base.probe.elements();
        for cap in [1024usize, 512, 256, 128, 64, 32] {
            if flops(&self.base) <= self.effort.flops_max {
                break;
            }
            let map = move |_: usize, _: usize, n: usize| if n > cap + 31 { cap + n % 32 } else { n };
            let Some(smaller) = self.base.probe.resized(&map, self.effort.seed, Regime::Normal) else {
                continue;
            };
            let Ok(smaller) = smaller.made_consistent(self.oracle) else { continue };
            if let Some(sample) = self.sample(smaller)?
                && sample.fails()
            {
                self.replace_base(sample);
            }
        }
        let after = self.base.probe.elements();
        if after < before {
            self.note(
                "the same operator at smaller sizes",
                format!("fails with {after} elements of {before}"),
            );
        }
        Ok(())
    }

    /// Looks for a larger case that fails, where there are few elements: many kinds come to the same in a sum of one term. Sizes
    /// keep what they leave when divided by 32, where that is possible.
    fn make_telling(&mut self) -> Result<(), Obstacle> {
        if self.base.elements() >= TELLING || self.base.probe.has_views() {
            return Ok(());
        }
        let before = self.base.probe.elements();
        let mut shortest = axes(&self.base.probe);
        // Experts that nobody comes to are another matter.
        let grouped =
            matches!(self.base.probe.operator(), Operator::GroupedMatmul(_) | Operator::GroupedOuter(_));
        shortest.retain(|axis| axis.size < 16 && !(grouped && axis.letter == "E"));
        shortest.sort_by_key(|axis| axis.size);
        for axis in shortest {
            for size in [axis.size + 32, axis.size + 16, axis.size * 8] {
                let seed = self.effort.seed;
                let Some(larger) = self.base.probe.resized(&axis.map(size), seed, Regime::Normal) else {
                    continue;
                };
                let Ok(larger) = larger.made_consistent(self.oracle) else { continue };
                let Some(sample) = self.sample(larger)? else { continue };
                let large =
                    sample.probe.elements() > TELLING_MOST || flops(&sample) > self.effort.flops_max / 4;
                if sample.fails() && !large {
                    self.replace_base(sample);
                    break;
                }
            }
        }
        let after = self.base.probe.elements();
        if after > before {
            self.note(
                "the same operator at larger sizes",
                format!("fails with {after} elements in place of {before}"),
            );
        }
        Ok(())
    }

    /// Whether some result is far off: what is read through a wrong index is another number altogether, and no rounding.
    pub fn is_far_off(&self) -> bool {
        self.failing().any(|sample| sample.largest_error() > FAR)
    }

    /// A case that fails and is as small as may be, for what runs many times; the base where no smaller one fails.
    pub fn small(&mut self) -> Result<Sample, Obstacle> {
        if let Some(small) = &self.small {
            return Ok(small.clone());
        }
        let mut small = self.base.clone();
        if flops(&self.base) > SMALL && !self.base.probe.has_views() {
            for cap in [6usize, 12, 20, 36] {
                let map = move |_: usize, _: usize, n: usize| if n > cap { cap } else { n };
                let smaller = self.base.probe.resized(&map, self.effort.seed, Regime::Normal);
                let Some(smaller) = smaller.filter(|probe| flops_of(probe) < flops(&self.base)) else {
                    continue;
                };
                let Ok(smaller) = smaller.made_consistent(self.oracle) else { continue };
                if let Some(sample) = self.sample(smaller)?
                    && sample.fails()
                {
                    small = sample;
                    break;
                }
            }
        }
        self.small = Some(small.clone());
        Ok(small)
    }

    pub fn note(&mut self, ran: impl Into<String>, showed: impl Into<String>) {
        self.experiments.push(Experiment { ran: ran.into(), showed: showed.into() });
    }

    /// Notes what told, and concludes.
    pub fn conclude(
        &mut self,
        kind: Kind,
        sentence: impl Into<String>,
        ran: impl Into<String>,
        showed: impl Into<String>,
    ) -> Option<Conclusion> {
        self.note(ran, showed);
        Some(Conclusion::new(kind, sentence))
    }

    /// Runs a probe on both; none where the subject refuses it.
    pub fn sample(&mut self, probe: Probe) -> Result<Option<Sample>, Obstacle> {
        match run(self.subject, self.oracle, probe) {
            Ok(sample) => Ok(Some(sample)),
            Err(obstacle) if obstacle.refused().is_some() => Ok(None),
            Err(obstacle) => Err(obstacle),
        }
    }

    /// Whether a probe fails on the subject; none where it is refused.
    pub fn fails(&mut self, probe: Probe) -> Result<Option<bool>, Obstacle> {
        Ok(self.sample(probe)?.map(|sample| sample.fails()))
    }

    /// The samples that fail.
    pub fn failing(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.fails())
    }

    /// What is known of a defect that no experiment explains.
    pub fn seen(&self) -> String {
        let (failing, all) = (self.failing().count(), self.samples.len());
        let judgement = &self.base.judgement;
        match &judgement.verdict {
            Verdict::Differ(finding) => {
                let share = format!("{} of {} elements", judgement.wrong_count, judgement.elements);
                format!(
                    "No experiment explains it: {share} are wrong, {failing} of {all} draws fail; {finding}."
                )
            }
            _ => "It was wrong when it was found and is right alone, as often as it was tried.".into(),
        }
    }
}

/// Those of a sample's probe.
pub(super) fn flops(sample: &Sample) -> u64 {
    flops_of(&sample.probe)
}

/// Floating-point operations of a probe, and at least one for each element.
pub(super) fn flops_of(probe: &Probe) -> u64 {
    let program = probe.program().program();
    let (instruction, symbols) = (probe.instruction(), probe.symbols());
    let operands = program.concrete_operands(instruction, symbols);
    let outputs = program.concrete_outputs(instruction, symbols);
    instruction.operator.definition().flops(&operands, &outputs).max(probe.elements() as u64)
}

pub(super) fn run(subject: &mut dyn Device, oracle: &mut Oracle, probe: Probe) -> Result<Sample, Obstacle> {
    let outcome = probe.run(subject)?;
    let exact = probe.exact(oracle)?;
    let judgement = probe.judge(&exact, &outcome);
    Ok(Sample { probe, exact, outcome, judgement })
}
