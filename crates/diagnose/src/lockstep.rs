//! One step on two or more devices, operator by operator, each given the trusted device's values, so that errors do not add up;
//! the oracle judges each.

use crate::probe::{Outcome, Probe, ProbeError};
use crate::row::{self, Place, Row, Standing, coordinates};
use crate::sampled::{Exacts, Sampled};
use crate::step::{StepError, StepValues};
use crate::vote;
use std::sync::Arc;
use toprope_conformance::Oracle;
use toprope_conformance::judge::Judgement;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::verdict::Verdict;
use toprope_program::shape::sizes;
use toprope_program::tensor::round;
use toprope_program::{
    Device, Fault, FaultKind, Instruction, Operator, Program, Range, Role, Tensor, Validated,
};

/// A device with the name that it is told by.
pub struct Named<'a> {
    /// The name.
    pub name: String,
    /// The device.
    pub device: &'a mut dyn Device,
}

/// Who takes part.
pub struct Party<'a> {
    /// The device that is looked at.
    pub subject: Named<'a>,
    /// Devices between subject and trusted one, for a vote.
    pub others: Vec<Named<'a>>,
    /// The device whose values everybody is given.
    pub trusted: Named<'a>,
    /// The judge.
    pub oracle: &'a mut Oracle,
}

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Runs of each instruction on the subject.
    pub repeat: u64,
    /// Operators that are looked at; all where not given. The others run on the trusted device only.
    pub operators: Option<Vec<String>>,
    /// Whether to leave off at the first that is wrong.
    pub stop_at_first: bool,
    /// Floating-point operations above which the oracle judges sampled rows, columns or heads.
    pub oracle_flops_max: u64,
    /// Which rows, columns and heads are sampled.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { repeat: 1, operators: None, stop_at_first: false, oracle_flops_max: 200_000_000, seed: 1 }
    }
}

/// The first wrong instruction with all that is needed to run it again.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its row.
    pub row: Row,
    /// The instruction with its operands.
    pub probe: Probe,
    /// What the subject gave; none where it failed.
    pub observed: Option<Outcome>,
}

/// What came of a step.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// A row for each instruction of each micro-batch that was looked at, in order.
    pub rows: Vec<Row>,
    /// The first wrong instruction.
    pub first: Option<Found>,
    /// The first instruction whose bits differ from run to run, though all runs are within the tolerance.
    pub first_unsteady: Option<Found>,
}

/// Why a step could not be walked through.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The step's values do not fit the program.
    #[error(transparent)]
    Step(#[from] StepError),
    /// An instruction is no probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The trusted device failed.
    #[error("the trusted device failed at `{operator}`: {fault}")]
    Trusted {
        /// The operator.
        operator: String,
        /// Its fault.
        fault: Box<Fault>,
    },
    /// The oracle failed.
    #[error("{0}")]
    Oracle(Obstacle),
}

/// Walks through a step. `watch` is told of each row, and how far it is: instructions done and in all.
///
/// # Errors
/// The trusted device or the oracle fails, or the values do not fit. What the subject does wrong stands in the rows.
pub fn walk(
    party: &mut Party<'_>,
    program: &Arc<Validated>,
    step: &StepValues,
    options: &Options,
    watch: &mut dyn FnMut(&Row, usize, usize),
) -> Result<Walk, WalkError> {
    let program = program.program();
    let mut held = step.before(program)?;
    let last_reads = last_reads(program);
    let mut walk = Walk::default();
    let all = step.micro.len() * program.accumulate.len() + program.update.len();
    let mut done = 0;
    let mut parts: Vec<(Range, usize)> =
        (0..step.micro.len()).map(|micro| (Range::Accumulate, micro)).collect();
    parts.push((Range::Update, step.micro.len().saturating_sub(1)));
    for (range, micro) in parts {
        if range == Range::Accumulate {
            step.feed(program, &mut held, micro)?;
        }
        let symbols = step.micro[micro].symbols.clone();
        for index in 0..program.range(range).len() {
            let probe = Probe::at(program, range, index, &symbols, &held, micro == 0)?;
            let name = probe.operator().name();
            let given = run_trusted(party, &probe)?;
            let wanted = options.operators.as_ref().is_none_or(|list| list.iter().any(|one| one == name));
            done += 1;
            if wanted {
                let at = (micro, range, index);
                let (mut row, mut observed) = look(party, program, &probe, &given, options, at)?;
                let mut shown = probe.clone();
                for twin in twins(&probe) {
                    if row.is_wrong() {
                        break;
                    }
                    let given = run_trusted(party, &twin)?;
                    let (other, seen) = look(party, program, &twin, &given, options, at)?;
                    if other.is_wrong() {
                        (row, observed) = (told_of_twin(other, &twin), seen);
                        shown = twin;
                    }
                }
                watch(&row, done, all);
                let found = |probe| Found { row: row.clone(), probe, observed };
                if row.is_wrong() && walk.first.is_none() {
                    walk.first = Some(found(shown));
                } else if row.is_unsteady() && walk.first_unsteady.is_none() {
                    walk.first_unsteady = Some(found(shown));
                }
                walk.rows.push(row);
                if options.stop_at_first && walk.first.is_some() {
                    return Ok(walk);
                }
            }
            let instruction = &program.range(range)[index];
            for (id, output) in instruction.outputs.iter().zip(given.outputs) {
                held[id.0 as usize] = Some(output);
            }
            // Values that nobody reads any more make room.
            for operand in &instruction.operands {
                let at = operand.value.0 as usize;
                if last_reads[at] == Some((range, index)) && program.values[at].role == Role::Scratch {
                    held[at] = None;
                }
            }
        }
    }
    Ok(walk)
}

/// What a gradient that is carried from micro-batch to micro-batch must give besides: the first one overwrites whatever was
/// there, and later ones add to it. A step that starts at zeros, or has one micro-batch, shows neither.
fn twins(probe: &Probe) -> Vec<Probe> {
    if !matches!(probe.operator(), Operator::Accumulate(_)) {
        return Vec::new();
    }
    let Some(numbers) = probe.operands().get(1).map(|x| x.data.clone()) else { return Vec::new() };
    let mut filled = probe.clone();
    let dtype = probe.operands()[0].dtype;
    for (place, x) in numbers.iter().rev().enumerate() {
        // Of the size of what is added, and never zero.
        let held = if x.is_finite() && dtype.is_float() { x.abs().clamp(1e-3, 1e3) } else { 1.0 };
        filled.set_number(0, place, |dtype| round(dtype, held));
    }
    vec![filled.in_micro_batch(true), filled.in_micro_batch(false)]
}

fn told_of_twin(mut row: Row, twin: &Probe) -> Row {
    let when = match twin.is_first() {
        true => "in a first micro-batch over numbers that were there before",
        false => "in a later micro-batch",
    };
    if let Some(subject) = row.standings.first_mut() {
        subject.finding = format!("{when}: {}", subject.finding);
    }
    row
}

/// Where each value is read last.
fn last_reads(program: &Program) -> Vec<Option<(Range, usize)>> {
    let mut last = vec![None; program.values.len()];
    for range in Range::ALL {
        for (index, instruction) in program.range(range).iter().enumerate() {
            for operand in &instruction.operands {
                last[operand.value.0 as usize] = Some((range, index));
            }
        }
    }
    last
}

fn run_trusted(party: &mut Party<'_>, probe: &Probe) -> Result<Outcome, WalkError> {
    let operator = probe.operator().name().to_string();
    probe.run(party.trusted.device).map_err(|obstacle| match obstacle {
        Obstacle::Subject(fault) => WalkError::Trusted { operator, fault: Box::new(fault) },
        other => WalkError::Oracle(other),
    })
}

/// The oracle's view of an instruction: all of it, or a part.
enum Judge {
    Whole(crate::probe::Exact),
    Part(Box<Sampled>, Exacts),
}

impl Judge {
    fn of(probe: &Probe, oracle: &mut Oracle, options: &Options) -> Result<Judge, Obstacle> {
        if flops(probe) > options.oracle_flops_max
            && let Some(sampled) = Sampled::of(probe, options.seed)
        {
            let exact = sampled.exact(oracle)?;
            return Ok(Judge::Part(Box::new(sampled), exact));
        }
        Ok(Judge::Whole(probe.exact(oracle)?))
    }

    fn judge(&self, probe: &Probe, outcome: &Outcome) -> Judgement {
        match self {
            Judge::Whole(exact) => probe.judge(exact, outcome),
            Judge::Part(sampled, exact) => sampled.judge(exact, outcome),
        }
    }
}

/// Floating-point operations of a probe.
pub fn flops(probe: &Probe) -> u64 {
    let (program, instruction) = (probe.program().program(), probe.instruction());
    let operands = program.concrete_operands(instruction, probe.symbols());
    let outputs = program.concrete_outputs(instruction, probe.symbols());
    instruction.operator.definition().flops(&operands, &outputs)
}

fn look(
    party: &mut Party<'_>,
    program: &Program,
    probe: &Probe,
    given: &Outcome,
    options: &Options,
    (micro_batch, range, index): (usize, Range, usize),
) -> Result<(Row, Option<Outcome>), WalkError> {
    let judge = Judge::of(probe, party.oracle, options).map_err(WalkError::Oracle)?;
    let (subject, seen) = run_repeated(&mut party.subject, probe, &judge, options.repeat.max(1));
    let mut standings = vec![subject];
    let mut outcomes: Vec<Option<Outcome>> = vec![seen.as_ref().map(|(outcome, _)| outcome.clone())];
    for other in &mut party.others {
        let (standing, seen) = run_repeated(other, probe, &judge, 1);
        standings.push(standing);
        outcomes.push(seen.map(|(outcome, _)| outcome));
    }
    standings.push(Standing::judged(&party.trusted.name, &judge.judge(probe, given)));
    outcomes.push(Some(given.clone()));
    let instruction = &program.range(range)[index];
    let judgement = seen.as_ref().map(|(_, judgement)| judgement);
    let worst = judgement.and_then(|judgement| place(probe, judgement));
    let mut row = Row {
        micro_batch,
        range,
        index,
        operator: instruction.operator.name().into(),
        layer: instruction.part.clone(),
        shape: shape_of(probe.program().program(), probe.instruction(), probe.symbols()),
        wrong_share: judgement.map_or(0.0, |j| j.wrong_count as f64 / j.elements.max(1) as f64),
        standings,
        worst,
        sampled: match &judge {
            Judge::Whole(_) => None,
            Judge::Part(sampled, _) => Some(sampled.what()),
        },
        vote: None,
    };
    if let Judge::Part(sampled, _) = &judge {
        // What the sample leaves out is held against the trusted device.
        beside_trusted(&mut row, sampled, &outcomes);
    }
    row.vote = vote::vote(&row, &outcomes);
    Ok((row, seen.map(|(outcome, _)| outcome)))
}

/// Runs an instruction on a device, first on other numbers, so that what a run leaves behind shows. Gives the first wrong
/// outcome, or the first.
fn run_repeated(
    named: &mut Named<'_>,
    probe: &Probe,
    judge: &Judge,
    repeat: u64,
) -> (Standing, Option<(Outcome, Judgement)>) {
    let name = named.name.clone();
    let refused = |fault: &Fault| matches!(fault.kind, FaultKind::Unsupported { .. });
    let opened = match probe.open(named.device) {
        Ok(opened) => opened,
        Err(fault) => {
            let verdict = if refused(&fault) { row::Outcome::Refused } else { row::Outcome::Failed };
            return (Standing::fault(&name, verdict, fault.to_string()), None);
        }
    };
    let mut failed = None;
    let mut kept: Option<(Outcome, Judgement)> = None;
    let (mut wrong_runs, mut other_bits, mut runs) = (0, 0, 0);
    let mut first: Option<Outcome> = None;
    if let Err(obstacle) = opened.run(named.device, &decoy(probe)) {
        failed = Some(obstacle.to_string());
    }
    while failed.is_none() && runs < repeat {
        match opened.run(named.device, probe) {
            Ok(outcome) => {
                runs += 1;
                let same = first
                    .as_ref()
                    .is_some_and(|first| first.same_bits(&outcome) && first.stray == outcome.stray);
                other_bits += u64::from(first.is_some() && !same);
                if same {
                    let wrong = kept.as_ref().is_some_and(|(_, j)| matches!(j.verdict, Verdict::Differ(_)));
                    // As wrong as the first one was.
                    wrong_runs += u64::from(wrong && first_is_kept(&first, &kept));
                    continue;
                }
                let judgement = judge.judge(probe, &outcome);
                let wrong = matches!(judgement.verdict, Verdict::Differ(_));
                wrong_runs += u64::from(wrong);
                let kept_right = kept.as_ref().is_none_or(|(_, j)| !matches!(j.verdict, Verdict::Differ(_)));
                if first.is_none() || wrong && kept_right {
                    kept = Some((outcome.clone(), judgement));
                }
                first.get_or_insert(outcome);
            }
            Err(obstacle) => failed = Some(obstacle.to_string()),
        }
    }
    if let Err(fault) = opened.close(named.device) {
        failed.get_or_insert(fault.to_string());
    }
    if let Some(finding) = failed {
        return (Standing::fault(&name, row::Outcome::Failed, finding), None);
    }
    let Some((outcome, judgement)) = kept else {
        return (Standing::fault(&name, row::Outcome::Failed, "it was not run".into()), None);
    };
    let mut standing = Standing { runs, wrong_runs, other_bits, ..Standing::judged(&name, &judgement) };
    if standing.verdict == row::Outcome::Differ && wrong_runs < runs {
        standing.finding = format!("{wrong_runs} of {runs} runs: {}", standing.finding);
    }
    (standing, Some((outcome, judgement)))
}

fn first_is_kept(first: &Option<Outcome>, kept: &Option<(Outcome, Judgement)>) -> bool {
    first.as_ref().zip(kept.as_ref()).is_some_and(|(first, (kept, _))| first.same_bits(kept))
}

/// The same instruction on other numbers: each float operand moved by one element.
fn decoy(probe: &Probe) -> Probe {
    let mut decoy = probe.clone();
    decoy.rotate_floats();
    decoy
}

fn place(probe: &Probe, judgement: &Judgement) -> Option<Place> {
    let worst = judgement.worst.as_ref()?;
    let alone = probe.program().program();
    let value = alone.value(*probe.instruction().outputs.get(worst.output)?);
    let sizes = sizes(&value.shape, probe.symbols());
    let error = (worst.got - worst.want).abs();
    let finite = error.is_finite().then_some(error);
    let tolerance = (worst.units.is_finite() && worst.units > 0.0).then(|| error / worst.units);
    Some(Place {
        output: value.name.clone(),
        index: coordinates(worst.element, &sizes),
        got: format!("{:e}", worst.got),
        want: format!("{:e}", worst.want),
        error: finite,
        tolerance: tolerance.filter(|t| t.is_finite()),
    })
}

/// Tells how far each output lies from the trusted device's, beside which of them the oracle judged a part of.
fn beside_trusted(row: &mut Row, sampled: &Sampled, outcomes: &[Option<Outcome>]) {
    let (Some(Some(subject)), Some(Some(trusted))) = (outcomes.first(), outcomes.last()) else { return };
    let mut told = Vec::new();
    for (output, (got, want)) in subject.outputs.iter().zip(&trusted.outputs).enumerate() {
        let largest = want.data.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
        let off = got.data.iter().zip(&want.data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let how = if sampled.covers(output) { "sampled" } else { "not judged by the oracle" };
        told.push(format!(
            "output {output} {how}, {:.1e} of its largest element from the trusted device at most",
            off / largest.max(1e-300)
        ));
    }
    if let Some(what) = &mut row.sampled {
        *what = format!("{what}; {}", told.join("; "));
    }
}

/// Dtypes and sizes of operands and outputs.
pub(crate) fn shape_of(program: &Program, instruction: &Instruction, symbols: &[usize]) -> String {
    let told = |dtype: &dyn std::fmt::Display, sizes: &[usize]| {
        let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        format!("{dtype}[{}]", sizes.join(","))
    };
    let operands = program.concrete_operands(instruction, symbols);
    let outputs = program.concrete_outputs(instruction, symbols);
    let list = |all: &[toprope_program::Concrete]| {
        all.iter().map(|c| told(&c.dtype, &c.sizes)).collect::<Vec<_>>().join(" ")
    };
    format!("{} -> {}", list(&operands), list(&outputs))
}

/// How far a tensor lies from another, relatively: `‖a - b‖ / ‖b‖`. What both hold alike, infinities and NaN among it, is no
/// distance.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
    let apart: f64 =
        a.data.iter().zip(&b.data).filter(|(a, b)| !same(**a, **b)).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.data.iter().filter(|b| b.is_finite()).map(|b| b * b).sum();
    if apart == 0.0 { 0.0 } else { (apart / size.max(f64::MIN_POSITIVE)).sqrt() }
}
