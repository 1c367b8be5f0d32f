//! A user's own shapes: the distinct instructions of their programs, each run once and judged whole or by samples.

use crate::accuracy;
use crate::bench::Bench;
use crate::budget::Deadline;
use crate::cases::{QualifyError, terms};
use crate::result::{Key, OperatorResult, Source, Tally};
use std::collections::BTreeMap;
use toprope_conformance::Verdict;
use toprope_conformance::isolate;
use toprope_conformance::judge::Judgement;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::{Regime, Values, draw};
use toprope_diagnose::Probe;
use toprope_diagnose::probe::Outcome;
use toprope_diagnose::sampled::Sampled;
use toprope_program::cost::{Cost, instruction_cost};
use toprope_program::shape::{elements, sizes};
use toprope_program::tensor::round;
use toprope_program::{
    Concrete, Device, Fault, FaultKind, Operator, Program, Range, Role, Session, StateLayout, Tensor,
    Tolerance, Width, text,
};

/// What an instruction is needed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// For training.
    pub training: bool,
    /// For inference.
    pub inference: bool,
}

/// One distinct instruction of a user's programs.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The instruction as a program of its own, without symbols.
    pub program: Program,
    /// The operator's name.
    pub operator: &'static str,
    /// The types of its operands.
    pub operands: Vec<Concrete>,
    /// The sizes, for people.
    pub told: String,
    /// How often it occurs.
    pub count: u64,
    /// What it costs once.
    pub cost: Cost,
    /// What it is needed for.
    pub need: Need,
}

/// Why something on a user's list is not run.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Its name.
    pub operator: String,
    /// Its sizes, for people.
    pub shape: String,
    /// Why.
    pub reason: String,
}

/// The distinct instructions of programs, the cheapest first. Checks are not among them: they are put in by a guard.
pub fn distinct(programs: &[(&Program, Need)]) -> Vec<Shape> {
    let mut found: BTreeMap<String, Shape> = BTreeMap::new();
    for (program, need) in programs {
        for range in Range::ALL {
            for index in 0..program.range(range).len() {
                let Some(shape) = shape(program, range, index, *need) else { continue };
                let known =
                    found.entry(text::print(&shape.program)).or_insert_with(|| Shape { count: 0, ..shape });
                known.count += 1;
                known.need.training |= need.training;
                known.need.inference |= need.inference;
            }
        }
    }
    let mut shapes: Vec<Shape> = found.into_values().collect();
    shapes.sort_by_key(|shape| (shape.cost.flops + shape.cost.bytes, shape.operator, shape.told.clone()));
    shapes
}

fn shape(program: &Program, range: Range, index: usize, need: Need) -> Option<Shape> {
    let mut alone = isolate::bound(&isolate::alone(program, range, index)?, &program.bounds());
    // Names and places do not tell shapes apart.
    alone.name = "shape".into();
    for (at, value) in alone.values.iter_mut().enumerate() {
        value.name = format!("v{at}");
    }
    let instruction = alone.accumulate.first_mut()?;
    instruction.part.clear();
    let instruction = alone.accumulate.first()?;
    if instruction.check.is_some() {
        return None;
    }
    let operands = alone.concrete_operands(instruction, &[]);
    let cost = instruction_cost(&alone, instruction, &[]);
    let (operator, told) = (instruction.operator.name(), told(&operands));
    Some(Shape { operator, operands, told, count: 1, cost, need, program: alone })
}

/// The sizes of operands, as in `[4096, 7168] [7168, 2048]`.
pub fn told(operands: &[Concrete]) -> String {
    let one = |operand: &Concrete| format!("{:?}", operand.sizes);
    operands.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// Operations and elements up to which a shape is judged whole.
const WHOLE_FLOPS: u64 = 1 << 26;
const WHOLE_ELEMENTS: usize = 1 << 21;
/// More elements than these are not held at once.
const ELEMENTS_MAX: usize = 1 << 26;

/// Larger instructions are not kept for experiments: those on the contract's cases tell as much.
const PROBE_ELEMENTS_MAX: usize = 1 << 18;

/// Runs shapes until the deadline; every one has a result, also where it was not run.
pub fn run(
    bench: &mut Bench<'_>,
    shapes: &[Shape],
    deadline: &Deadline<'_>,
) -> Result<Vec<(OperatorResult, Need)>, QualifyError> {
    let mut results = Vec::new();
    let level = bench.describe().level;
    for shape in shapes {
        let key = Key::new(Source::Asked, shape.operator, &shape.operands, shape.told.clone());
        let mut tally = Tally::default();
        if deadline.passed() {
            tally.refused = Some("not run: no time was left in this tier".into());
        } else if bench.is_gone() {
            tally.refused = Some("not run: the device is gone".into());
        } else {
            one(bench, shape, &mut tally)?;
        }
        results.push((tally.result(&key, &level), shape.need));
    }
    Ok(results)
}

fn one(bench: &mut Bench<'_>, shape: &Shape, tally: &mut Tally) -> Result<(), QualifyError> {
    let all: usize = shape.program.values.iter().map(|value| elements(&sizes(&value.shape, &[]))).sum();
    if all > ELEMENTS_MAX {
        tally.refused = Some(format!(
            "not run: {all} elements are more than are judged at once; a larger --tp or --ep, or a smaller --seq or --micro-batch, makes it smaller"
        ));
        return Ok(());
    }
    let values = values(&shape.program, bench.seed);
    let defects =
        |reason: String| QualifyError::Program(format!("{} {}: {reason}", shape.operator, shape.told));
    let probe = Probe::new(shape.program.clone(), Vec::new(), values, true)
        .map_err(|error| defects(error.to_string()))?;
    let whole = shape.cost.flops <= WHOLE_FLOPS && all <= WHOLE_ELEMENTS;
    let Some(probe) = followed(bench, probe, whole)? else {
        tally.refused = Some(
            "not run: its operands follow from a forward pass that is too large for the oracle; a smaller --seq makes it smaller"
                .into(),
        );
        return Ok(());
    };
    let sample = if whole { None } else { Sampled::of(&probe, bench.seed) };
    if !whole && sample.is_none() && shape.cost.flops > WHOLE_FLOPS * 64 {
        tally.refused =
            Some("not run: it is too large for the oracle, and no part of it stands alone".into());
        return Ok(());
    }
    let judged = match &sample {
        None => probe.check(bench.device.as_mut(), &mut bench.oracle),
        Some(sample) => sampled(bench, &probe, sample),
    };
    match judged {
        Ok(judgement) => {
            let beside = if sample.is_none() { trusted(bench, &probe) } else { None };
            record(tally, &probe, shape, &judgement, beside.as_ref());
            Ok(())
        }
        Err(Obstacle::Oracle(fault)) => Err(QualifyError::Oracle(fault)),
        Err(Obstacle::Place(name)) => Err(defects(format!("%{name} has no place"))),
        Err(Obstacle::Subject(Fault { kind: FaultKind::Unsupported { reason, .. }, .. })) => {
            tally.refused = Some(format!("refused: {reason}"));
            Ok(())
        }
        Err(Obstacle::Subject(Fault { kind: FaultKind::OutOfMemory { needed_bytes, .. }, .. })) => {
            tally.refused = Some(format!("not run: {needed_bytes} bytes are more than the device has"));
            Ok(())
        }
        Err(Obstacle::Subject(fault)) => {
            tally.differs(fault.to_string(), || text::print(&shape.program), || None);
            bench.revive(&fault);
            Ok(())
        }
    }
}

/// With operands that follow from others as a forward pass makes them: a device may run it again. None where that is too
/// much for the oracle.
fn followed(bench: &mut Bench<'_>, probe: Probe, whole: bool) -> Result<Option<Probe>, QualifyError> {
    match probe.operator() {
        Operator::AttentionGradient(_) if !whole => return Ok(None),
        Operator::AttentionGradient(_) | Operator::RmsNormGradient(_) | Operator::RouterGradient(_) => {}
        _ => return Ok(Some(probe)),
    }
    let program = |error: String| QualifyError::Program(error);
    let dense = probe.dense().map_err(|error| program(error.to_string()))?;
    let made = dense.made_consistent(&mut bench.oracle).map_err(|error| program(error.to_string()))?;
    Ok(Some(made))
}

/// Standard normal numbers; a head's weights such that its logits are, too, however wide it is: a softmax that has one
/// winner everywhere tells nothing.
fn values(program: &Program, seed: u64) -> Values {
    let mut values = draw(program, &[], seed, Regime::Normal);
    if let Some(instruction) = program.accumulate.first()
        && matches!(
            instruction.operator,
            Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_)
        )
        && let Some(Some(weight)) = values.get_mut(instruction.operands[1].value.0 as usize)
    {
        let scale = (weight.sizes.last().copied().unwrap_or(1).max(1) as f64).powf(-0.5);
        weight.data.iter_mut().for_each(|x| *x = round(weight.dtype, *x * scale));
    }
    values
}

/// Judges what the whole problem gave by parts of it.
fn sampled(bench: &mut Bench<'_>, probe: &Probe, sample: &Sampled) -> Result<Judgement, Obstacle> {
    let outputs = computed(bench.device.as_mut(), probe).map_err(Obstacle::Subject)?;
    let exact = sample.exact(&mut bench.oracle)?;
    Ok(sample.judge(&exact, &Outcome { outputs, stray: None }))
}

/// The outputs of a probe on a device, without the images that small probes are watched with.
fn computed(device: &mut dyn Device, probe: &Probe) -> Result<Vec<Tensor>, Fault> {
    let program = probe.program().program();
    let session = Session::open(device, probe.program().clone(), Width::Native, StateLayout::InPlace)?;
    for (id, value) in program.values_with_ids() {
        if let Some(tensor) = &probe.values()[id.0 as usize]
            && !matches!(value.role, Role::Constant { .. })
        {
            session.write(device, &value.name, &tensor.to_bytes(Width::Native))?;
        }
    }
    session.run(device, Range::Accumulate)?;
    let mut outputs = Vec::new();
    for id in &probe.instruction().outputs {
        let value = program.value(*id);
        let sizes = sizes(&value.shape, &[]);
        let bytes = session.read(device, &value.name)?;
        outputs.extend(Tensor::from_bytes(value.dtype, &sizes, Width::Native, &bytes));
    }
    session.close(device)?;
    Ok(outputs)
}

fn trusted(bench: &mut Bench<'_>, probe: &Probe) -> Option<Judgement> {
    let trusted = bench.trusted.as_deref_mut()?;
    // What the trusted device cannot do is not the subject's fault.
    probe.check(trusted, &mut bench.oracle).ok()
}

fn record(
    tally: &mut Tally,
    probe: &Probe,
    shape: &Shape,
    judgement: &Judgement,
    trusted: Option<&Judgement>,
) {
    tally.elements += judgement.elements;
    tally.incomparable_elements += judgement.incomparable.values().sum::<u64>();
    if let Some(worst) = &judgement.worst {
        let error = (worst.got - worst.want).abs();
        tally.worst(error, if worst.units > 0.0 { error / worst.units } else { 0.0 }, worst.units);
    }
    let operator = probe.operator();
    let outputs = probe.program().program().concrete_outputs(probe.instruction(), &[]);
    let tolerances = operator.definition().tolerances(&shape.operands, &outputs);
    let mut inexact = None;
    for (output, accuracy) in judgement.accuracy.iter().enumerate() {
        let Some(accuracy) = accuracy else { continue };
        let beside = trusted.and_then(|judgement| judgement.accuracy.get(output)?.as_ref());
        tally.accuracy.merge(accuracy);
        beside.into_iter().for_each(|accuracy| tally.trusted.merge(accuracy));
        let tolerance = tolerances.get(output).copied().unwrap_or(Tolerance::EXACT);
        let terms = terms(operator, &shape.operands);
        inexact = inexact.or_else(|| accuracy::objection(tolerance, terms, accuracy, beside));
    }
    match (&judgement.verdict, &inexact) {
        (Verdict::Differ(finding), _) | (Verdict::Agree, Some(finding)) => {
            let small = probe.elements() <= PROBE_ELEMENTS_MAX;
            tally.differs(finding.clone(), || text::print(&shape.program), || small.then(|| probe.clone()));
        }
        (Verdict::Agree, None) => tally.agree += 1,
        (Verdict::Incomparable(_), _) => tally.incomparable += 1,
    }
}

/// The shapes that speed is measured on: the costliest of each operator and dtype within a budget of operations and bytes.
pub fn for_speed(shapes: &[Shape]) -> Vec<&Shape> {
    const FLOPS_MAX: u64 = 1 << 31;
    const BYTES_MAX: u64 = 1 << 25;
    let mut best: BTreeMap<(&str, &str), &Shape> = BTreeMap::new();
    for shape in shapes.iter().filter(|shape| shape.cost.flops <= FLOPS_MAX && shape.cost.bytes <= BYTES_MAX)
    {
        let dtype = shape.operands.iter().map(|o| o.dtype).find(|dtype| dtype.is_float());
        // They come cheapest first.
        best.insert((shape.operator, dtype.map_or("", toprope_program::DType::name)), shape);
    }
    best.into_values().collect()
}

/// A shape as a probe.
pub fn probe_of(shape: &Shape, seed: u64) -> Option<Probe> {
    Probe::new(shape.program.clone(), Vec::new(), values(&shape.program, seed), true).ok()
}
