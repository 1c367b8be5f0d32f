//! Runs a user's shapes: each small, then in bands of magnitudes and with special values, then as large as it can be.

use super::cut::{Limits, cost, cut};
use super::drawn::drawn;
use super::{Need, Shape};
use crate::accuracy;
use crate::bench::{ATTEMPTS, Bench, is_loss};
use crate::budget::Deadline;
use crate::cases::{BANDS, QualifyError, terms};
use crate::result::{Extent, Key, OperatorResult, Source, Tally};
use std::collections::BTreeMap;
use std::time::Duration;
use toprope_conformance::Verdict;
use toprope_conformance::judge::Judgement;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::random::Random;
use toprope_conformance::values::{Regime, Values, draw, draw_banded};
use toprope_diagnose::Probe;
use toprope_diagnose::consistent::ConsistentError;
use toprope_diagnose::lockstep::flops;
use toprope_diagnose::probe::Outcome;
use toprope_diagnose::sampled::Sampled;
use toprope_program::shape::sizes;
use toprope_program::{
    Device, Fault, FaultKind, Operator, Program, Range, Role, Session, StateLayout, Tensor, Tolerance, Width,
    text,
};

/// What every shape is run at first.
const SMALL: Limits = Limits { elements: 1 << 17, flops: 1 << 22 };

/// What a shape is run at then, one after the other, before all of it is: how long the next takes is known from the one before.
const LARGER: [Limits; 2] =
    [Limits { elements: 1 << 20, flops: 1 << 27 }, Limits { elements: 1 << 24, flops: 1 << 33 }];

/// Up to these the oracle computes all of it.
const ORACLE: Limits = Limits { elements: 1 << 21, flops: 1 << 25 };

/// The oracle does not compute more operations than these, and no sample of more.
const ORACLE_FLOPS_MAX: u64 = 1 << 32;

/// More elements are not held at once: in f64 beside what the device holds they are two gigabytes.
const ELEMENTS_MAX: usize = 1 << 27;

/// Larger instructions are not kept for experiments: those on the contract's cases tell as much.
const PROBE_ELEMENTS_MAX: usize = 1 << 18;

/// A shape in the course of being run.
struct Course<'s> {
    shape: &'s Shape,
    tally: Tally,
    /// The largest that was run: its cost and the device's seconds.
    run: Option<Cost>,
    /// Whether it has come to its end: the device refused it or failed.
    ended: bool,
}

/// What a run cost.
#[derive(Clone, Copy)]
struct Cost {
    elements: usize,
    flops: u64,
    /// Of the device, without what draws and judges.
    device_seconds: f64,
}

/// Runs shapes until the deadline; every one has a result, also where it was not run.
pub fn run(
    bench: &mut Bench<'_>,
    shapes: &[Shape],
    deadline: &Deadline<'_>,
) -> Result<Vec<(OperatorResult, Need)>, QualifyError> {
    let mut courses: Vec<Course<'_>> = shapes
        .iter()
        .map(|shape| Course { shape, tally: Tally::default(), run: None, ended: false })
        .collect();
    for index in in_turn(shapes) {
        let course = &mut courses[index];
        if deadline.passed() {
            course.tally.refused = Some("not run: no time was left in this tier".into());
        } else if bench.is_gone() {
            course.tally.refused = Some("not run: the device is gone".into());
        } else {
            course.small(bench)?;
        }
    }
    let variety = deadline.part(0.3, Duration::from_secs(3600));
    // What a setting adds to the error follows the magnitude for ordinary numbers only.
    let varieties = if bench.oracle.allowance > 0.0 { 0 } else { VARIETIES };
    for draw in 0..varieties {
        for index in in_turn(shapes) {
            if variety.passed() || bench.is_gone() {
                break;
            }
            courses[index].varied(bench, draw)?;
        }
    }
    let mut host = HOST_SECONDS;
    for limits in LARGER.map(Some).into_iter().chain([None]) {
        for course in &mut courses {
            if !bench.is_gone() {
                course.larger(bench, deadline, &mut host, limits)?;
            }
        }
    }
    let level = bench.describe().level;
    Ok(courses.iter().map(|course| (course.result(&level), course.shape.need)).collect())
}

/// The order in which shapes are tried: one of each operator and dtype, the cheapest, before a second of any.
fn in_turn(shapes: &[Shape]) -> Vec<usize> {
    let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut turns: Vec<(usize, usize)> = Vec::new();
    for (index, shape) in shapes.iter().enumerate() {
        let key = Key::new(Source::Asked, shape.operator, &shape.operands, String::new());
        let turn = seen.entry((shape.operator, key.dtype.to_string())).or_default();
        turns.push((*turn, index));
        *turn += 1;
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index)| index).collect()
}

/// Draws beside the ordinary one: three bands of magnitudes, and two kinds of special values.
const VARIETIES: usize = 5;

/// Seconds that drawing, copying and judging take for each element, until they are measured.
const HOST_SECONDS: f64 = 1e-7;

/// Seconds that the oracle may take for a sample that needs whole rows of a vocabulary or of keys.
const LONG_SAMPLE_SECONDS: f64 = 2.0;

impl Course<'_> {
    fn result(&self, level: &str) -> OperatorResult {
        let key = Key::new(Source::Asked, self.shape.operator, &self.shape.operands, self.shape.told.clone());
        self.tally.result(&key, level)
    }

    fn defect(&self, reason: &str) -> QualifyError {
        QualifyError::Program(format!("{} {}: {reason}", self.shape.operator, self.shape.told))
    }

    /// The shape within limits, filled; whether that is all of it.
    fn within(&self, limits: Limits, seed: u64) -> Result<(Probe, bool), QualifyError> {
        let Some(instruction) = self.shape.program.accumulate.first() else {
            return Err(self.defect("no instruction"));
        };
        let made = match cut(&instruction.operator, &self.shape.operands, limits) {
            None => return Ok((self.probe(self.shape.program.clone(), seed)?, true)),
            Some(cut) => Probe::of(&cut.operator, &cut.operands, seed, Regime::Normal, true),
        };
        let program = made.map_err(|error| self.defect(&error.to_string()))?.program().program().clone();
        Ok((self.probe(program, seed)?, false))
    }

    fn probe(&self, program: Program, seed: u64) -> Result<Probe, QualifyError> {
        let values = drawn(&program, &self.shape.numbers, seed);
        Probe::new(program, Vec::new(), values, true).map_err(|error| self.defect(&error.to_string()))
    }

    fn elements(&self) -> usize {
        let sizes = |value: &toprope_program::Value| sizes(&value.shape, &[]).iter().product::<usize>();
        self.shape.program.values.iter().map(sizes).sum()
    }

    /// Small enough that all shapes are tried, whatever they cost.
    fn small(&mut self, bench: &mut Bench<'_>) -> Result<(), QualifyError> {
        let untouched = self.elements() > 8 * SMALL.elements || self.shape.cost.flops > 8 * SMALL.flops;
        let instruction = self.shape.program.accumulate.first();
        let cuts = instruction.is_some_and(|i| cut(&i.operator, &self.shape.operands, SMALL).is_some());
        if untouched && !cuts {
            // There is no part of it; its turn comes with the large ones.
            self.tally.refused =
                Some("not run: no part of it stands alone, and no time was left for all of it".into());
            return Ok(());
        }
        let (probe, whole) = self.within(SMALL, bench.seed)?;
        self.judged(bench, probe, whole)
    }

    /// Other magnitudes, and special values.
    fn varied(&mut self, bench: &mut Bench<'_>, which: usize) -> Result<(), QualifyError> {
        let Some(run) = self.run else { return Ok(()) };
        if run.elements > 8 * SMALL.elements {
            return Ok(());
        }
        let seed = bench.seed.wrapping_add(which as u64 + 1);
        let (probe, _) = self.within(SMALL, seed)?;
        let program = probe.program().program();
        let (low, high) = (i64::from(*BANDS.start()), i64::from(*BANDS.end()));
        let band = |from, to| Random::new(seed, "magnitude").between(from, to) as i32;
        let (values, told): (Values, String) = match which {
            0..=2 => {
                let exponent = match which {
                    0 => band(low, -14),
                    1 => band(-13, 13),
                    _ => band(14, high),
                };
                (draw_banded(program, &[], seed, exponent), format!("times 2^{exponent}"))
            }
            3 => (draw(program, &[], seed, Regime::Special), "special values".into()),
            _ => (draw(program, &[], seed, Regime::Subnormal), "subnormal values".into()),
        };
        let probe = Probe::new(program.clone(), Vec::new(), values, true)
            .map_err(|error| self.defect(&error.to_string()))?;
        // Probabilities follow from what they are those of, whatever the magnitudes.
        let probe = match probe.operator() {
            Operator::AttentionGradient(_) => self.consistent(bench, probe)?,
            _ => probe,
        };
        let given = begun(bench, |device| probe.run(device));
        let judged = given.and_then(|outcome| Ok(probe.judge(&probe.exact(&mut bench.oracle)?, &outcome)));
        match judged {
            Ok(judgement) => {
                self.record(&probe, &judgement, None, Some(&told));
                Ok(())
            }
            Err(obstacle) => self.stopped(bench, obstacle, false),
        }
    }

    /// As much of it as limits allow, or all; nothing where that takes too long. The last try, at all of it, tells what stood
    /// in its way.
    fn larger(
        &mut self,
        bench: &mut Bench<'_>,
        deadline: &Deadline<'_>,
        host: &mut f64,
        limits: Option<Limits>,
    ) -> Result<(), QualifyError> {
        let is_whole = self.tally.extent.as_ref().is_some_and(|extent| extent.whole);
        if is_whole || self.ended || self.tally.differ > 0 {
            return Ok(());
        }
        let Some(instruction) = self.shape.program.accumulate.first() else { return Ok(()) };
        let left = deadline.left().as_secs_f64();
        let part = limits.and_then(|limits| cut(&instruction.operator, &self.shape.operands, limits));
        if let Some(part) = part {
            let Some((elements, operations)) = cost(&part) else { return Ok(()) };
            let more = self.run.is_none_or(|run| elements > 2 * run.elements || operations > 2 * run.flops);
            if !more || self.expected(elements, operations, *host) > 0.1 * left {
                return Ok(());
            }
            let made = Probe::of(&part.operator, &part.operands, bench.seed, Regime::Normal, true);
            let made = made.map_err(|error| self.defect(&error.to_string()))?;
            let probe = self.probe(made.program().program().clone(), bench.seed)?;
            return self.timed(bench, probe, false, host);
        }
        let elements = self.elements();
        let whole = self.expected(elements, self.shape.cost.flops, *host);
        let reason = if elements > ELEMENTS_MAX {
            format!("whole it has {} elements, more than are held at once", counted(elements as u64))
        } else if whole > 0.6 * left {
            format!("whole it takes about {whole:.1} s, which this tier does not have")
        } else {
            let probe = self.probe(self.shape.program.clone(), bench.seed)?;
            return self.timed(bench, probe, true, host);
        };
        match (&mut self.tally.extent, limits) {
            (Some(extent), None) => extent.told = format!("{}; {reason}", extent.told),
            (None, None) if !self.tally.lacks => self.tally.refused = Some(format!("not run: {reason}")),
            (None, None) | (_, Some(_)) => {}
        }
        Ok(())
    }

    /// Seconds that a run of so much takes, from the run before.
    fn expected(&self, elements: usize, flops: u64, host: f64) -> f64 {
        let Some(run) = self.run else { return elements as f64 * host };
        let ratio = |now: f64, before: f64| if before > 0.0 { now / before } else { 0.0 };
        let more = ratio(elements as f64, run.elements as f64).max(ratio(flops as f64, run.flops as f64));
        let samples = match self.shape.program.accumulate.first().map(|instruction| &instruction.operator) {
            Some(
                Operator::Attention(_)
                | Operator::AttentionGradient(_)
                | Operator::LinearCrossEntropy(_)
                | Operator::LinearCrossEntropyGradient(_),
            ) => LONG_SAMPLE_SECONDS,
            _ => 0.0,
        };
        run.device_seconds * more.max(1.0) + elements as f64 * host + samples
    }

    fn timed(
        &mut self,
        bench: &mut Bench<'_>,
        probe: Probe,
        whole: bool,
        host: &mut f64,
    ) -> Result<(), QualifyError> {
        let clock = bench.clock;
        let (began, elements) = (clock(), probe.elements().max(1));
        self.judged(bench, probe, whole)?;
        let seconds = clock().saturating_sub(began).as_secs_f64();
        let device = self.run.map_or(0.0, |run| run.device_seconds);
        // What was measured last counts half.
        *host = 0.5 * *host + 0.5 * ((seconds - device).max(0.0) / elements as f64);
        Ok(())
    }

    /// With operands that follow from others as a forward pass makes them: a device may run it again.
    fn consistent(&self, bench: &mut Bench<'_>, probe: Probe) -> Result<Probe, QualifyError> {
        let dense = match probe.has_views() {
            true => probe.dense().map_err(|error| self.defect(&error.to_string()))?,
            false => probe,
        };
        dense.made_consistent(&mut bench.oracle).map_err(|error| self.inconsistent(error))
    }

    fn inconsistent(&self, error: ConsistentError) -> QualifyError {
        match error {
            ConsistentError::Obstacle(Obstacle::Oracle(fault)) => QualifyError::Oracle(fault),
            other => self.defect(&other.to_string()),
        }
    }

    /// Runs it on ordinary numbers, and judges all or a sample of what comes.
    fn judged(&mut self, bench: &mut Bench<'_>, probe: Probe, whole: bool) -> Result<(), QualifyError> {
        let (elements, operations) = (probe.elements(), flops(&probe));
        let all = elements <= ORACLE.elements && operations <= ORACLE.flops;
        let probe = match probe.operator() {
            Operator::AttentionGradient(_) if !all => probe,
            Operator::AttentionGradient(_) | Operator::RmsNormGradient(_) | Operator::RouterGradient(_) => {
                self.consistent(bench, probe)?
            }
            _ => probe,
        };
        let (probe, sample) = match probe.operator() {
            _ if all => (probe, None),
            Operator::AttentionGradient(_) => {
                let made = Sampled::of_attention_gradient(probe, bench.seed, &mut bench.oracle);
                match made.map_err(|error| self.inconsistent(error))? {
                    Some((probe, sample)) => (probe, Some(sample)),
                    None => {
                        self.tally.refused =
                            Some("not run: no part of it that the oracle can afford stands alone".into());
                        return Ok(());
                    }
                }
            }
            _ => {
                let sample = Sampled::of(&probe, bench.seed);
                (probe, sample)
            }
        };
        if sample.as_ref().map_or(operations, Sampled::flops) > ORACLE_FLOPS_MAX {
            self.tally.refused =
                Some("not run: it is too large for the oracle, and no part of it stands alone".into());
            return Ok(());
        }
        let clock = bench.clock;
        let (outcome, device_seconds) = match begun(bench, |device| computed(device, &probe, clock, all)) {
            Ok(found) => found,
            Err(obstacle) => return self.stopped(bench, obstacle, whole),
        };
        let judgement = match &sample {
            None => probe.exact(&mut bench.oracle).map(|exact| probe.judge(&exact, &outcome)),
            Some(sample) => sample.exact(&mut bench.oracle).map(|exact| sample.judge(&exact, &outcome)),
        };
        let judgement = match judgement {
            Ok(judgement) => judgement,
            Err(obstacle) => return self.stopped(bench, obstacle, whole),
        };
        // The trusted device speaks for one that seems inexact, and costs as much as the oracle.
        let suspect = all && self.objection(&probe, &judgement, None).is_some();
        let beside = if suspect { trusted(bench, &probe) } else { None };
        self.record(&probe, &judgement, beside.as_ref(), None);
        self.run = Some(Cost { elements, flops: operations, device_seconds });
        (self.tally.refused, self.tally.lacks) = (None, false);
        let made: u64 = outcome.outputs.iter().map(|output| output.data.len() as u64).sum();
        let sampled = sample.map(|sample| {
            format!("judged {}: {} of {} elements", sample.what(), counted(judgement.elements), counted(made))
        });
        let size = if whole { "whole".to_string() } else { format!("as {}", super::told(&concrete(&probe))) };
        let told = [Some(size), sampled].into_iter().flatten().collect::<Vec<_>>().join(", ");
        self.tally.extent = Some(Extent { whole, told });
        Ok(())
    }

    /// What stopped a run: `whole` is whether the user's own size was run.
    fn stopped(
        &mut self,
        bench: &mut Bench<'_>,
        obstacle: Obstacle,
        whole: bool,
    ) -> Result<(), QualifyError> {
        let program = &self.shape.program;
        self.ended = true;
        match obstacle {
            Obstacle::Oracle(fault) => Err(QualifyError::Oracle(fault)),
            Obstacle::Place(name) => Err(self.defect(&format!("%{name} has no place"))),
            Obstacle::Subject(Fault { kind: FaultKind::Unsupported { reason, .. }, .. }) => {
                if whole {
                    let finding = format!("refused at its own size: {reason}");
                    self.tally.differs(finding, || text::print(program), || None);
                } else {
                    // A part's sizes are not the user's: all of it decides.
                    self.ended = false;
                    self.tally.lacks = true;
                    self.tally.refused = Some(format!("refused: {reason}"));
                }
                Ok(())
            }
            Obstacle::Subject(Fault { kind: FaultKind::OutOfMemory { needed_bytes, .. }, .. }) => {
                let reason = format!("{needed_bytes} bytes are more than the device has");
                match &mut self.tally.extent {
                    Some(extent) => extent.told = format!("{}; whole: {reason}", extent.told),
                    None => self.tally.refused = Some(format!("not run: {reason}")),
                }
                Ok(())
            }
            Obstacle::Subject(fault) => {
                self.tally.differs(fault.to_string(), || text::print(program), || None);
                // One that stays gone was counted when it did not come back.
                if !bench.is_gone() {
                    bench.revive(&fault);
                }
                Ok(())
            }
        }
    }

    /// Why it is less exact than it ought to be, where it is.
    fn objection(&self, probe: &Probe, judgement: &Judgement, trusted: Option<&Judgement>) -> Option<String> {
        let (operator, operands) = (probe.operator(), concrete(probe));
        let outputs = probe.program().program().concrete_outputs(probe.instruction(), &[]);
        let tolerances = operator.definition().tolerances(&operands, &outputs);
        let terms = terms(operator, &operands);
        judgement.accuracy.iter().enumerate().find_map(|(output, accuracy)| {
            let beside = trusted.and_then(|judgement| judgement.accuracy.get(output)?.as_ref());
            let tolerance = tolerances.get(output).copied().unwrap_or(Tolerance::EXACT);
            accuracy::objection(tolerance, terms, accuracy.as_ref()?, beside)
        })
    }

    fn record(
        &mut self,
        probe: &Probe,
        judgement: &Judgement,
        trusted: Option<&Judgement>,
        varied: Option<&str>,
    ) {
        let tally = &mut self.tally;
        tally.elements += judgement.elements;
        tally.incomparable_elements += judgement.incomparable.values().sum::<u64>();
        if let Some(worst) = &judgement.worst {
            let error = (worst.got - worst.want).abs();
            tally.worst(error, if worst.units > 0.0 { error / worst.units } else { 0.0 }, worst.units);
        }
        // How exact it is is told by ordinary numbers.
        for (output, accuracy) in judgement.accuracy.iter().enumerate().filter(|_| varied.is_none()) {
            let Some(accuracy) = accuracy else { continue };
            tally.accuracy.merge(accuracy);
            let beside = trusted.and_then(|judgement| judgement.accuracy.get(output)?.as_ref());
            beside.into_iter().for_each(|accuracy| tally.trusted.merge(accuracy));
        }
        let inexact = if varied.is_none() { self.objection(probe, judgement, trusted) } else { None };
        let tally = &mut self.tally;
        match (&judgement.verdict, &inexact) {
            (Verdict::Differ(finding), _) | (Verdict::Agree, Some(finding)) => {
                let small = probe.elements() <= PROBE_ELEMENTS_MAX;
                let finding = match varied {
                    Some(varied) => format!("{varied}: {finding}"),
                    None => finding.clone(),
                };
                let text = || text::print(probe.program().program());
                tally.differs(finding, text, || small.then(|| probe.clone()));
            }
            (Verdict::Agree, None) => tally.agree += 1,
            (Verdict::Incomparable(_), _) => tally.incomparable += 1,
        }
    }
}

fn concrete(probe: &Probe) -> Vec<toprope_program::Concrete> {
    probe.program().program().concrete_operands(probe.instruction(), &[])
}

/// A count as people read it.
fn counted(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        _ => format!("{:.1} M", count as f64 / 1e6),
    }
}

/// What a device gives, and its seconds. Small ones are watched for writes outside of their outputs.
fn computed(
    device: &mut dyn Device,
    probe: &Probe,
    clock: crate::budget::Clock<'_>,
    watched: bool,
) -> Result<(Outcome, f64), Obstacle> {
    if watched {
        let opened = probe.open(device).map_err(Obstacle::Subject)?;
        let began = clock();
        let ran = opened.run(device, probe);
        let seconds = clock().saturating_sub(began).as_secs_f64();
        // What a fault left behind would be missing to the shapes after it.
        let closed = opened.close(device).map_err(Obstacle::Subject);
        return ran.and_then(|outcome| closed.map(|()| (outcome, seconds)));
    }
    let open = Session::open(device, probe.program().clone(), Width::Native, StateLayout::InPlace);
    let session = open.map_err(Obstacle::Subject)?;
    let ran = alone(device, &session, probe, clock);
    let closed = session.close(device);
    ran.and_then(|found| closed.map(|()| found)).map_err(Obstacle::Subject)
}

fn alone(
    device: &mut dyn Device,
    session: &Session,
    probe: &Probe,
    clock: crate::budget::Clock<'_>,
) -> Result<(Outcome, f64), Fault> {
    let program = probe.program().program();
    for (id, value) in program.values_with_ids() {
        if let Some(tensor) = &probe.values()[id.0 as usize]
            && !matches!(value.role, Role::Constant { .. })
        {
            session.write(device, &value.name, &tensor.to_bytes(Width::Native))?;
        }
    }
    let began = clock();
    session.run(device, Range::Accumulate)?;
    let seconds = clock().saturating_sub(began).as_secs_f64();
    let mut outputs = Vec::new();
    for id in &probe.instruction().outputs {
        let value = program.value(*id);
        let sizes = sizes(&value.shape, &[]);
        let bytes = session.read(device, &value.name)?;
        outputs.extend(Tensor::from_bytes(value.dtype, &sizes, Width::Native, &bytes));
    }
    Ok((Outcome { outputs, stray: None }, seconds))
}

/// Runs something on the device, and again on a fresh one where it was lost in it.
fn begun<T>(
    bench: &mut Bench<'_>,
    mut run: impl FnMut(&mut dyn Device) -> Result<T, Obstacle>,
) -> Result<T, Obstacle> {
    let mut attempt = 1;
    loop {
        match run(bench.device.as_mut()) {
            Err(Obstacle::Subject(fault)) if is_loss(&fault) && attempt < ATTEMPTS => {
                if !bench.revive(&fault) {
                    return Err(Obstacle::Subject(fault));
                }
                attempt += 1;
            }
            other => {
                if other.is_ok() {
                    bench.held();
                }
                return other;
            }
        }
    }
}

fn trusted(bench: &mut Bench<'_>, probe: &Probe) -> Option<Judgement> {
    let trusted = bench.trusted.as_deref_mut()?;
    // What the trusted device cannot do is not the subject's fault.
    probe.check(trusted, &mut bench.oracle).ok()
}
