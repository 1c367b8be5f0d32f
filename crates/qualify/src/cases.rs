//! Conformance by operator: the contract's cases over shapes that kernels get wrong, random programs, and magnitudes swept,
//! each result judged by the contract's tolerance and by its effective bits.

use crate::accuracy;
use crate::bench::{ATTEMPTS, Bench, is_loss};
use crate::budget::Deadline;
use crate::result::{Key, OperatorResult, Source, Tally};
use std::collections::{BTreeMap, BTreeSet};
use toprope_conformance::generate::cases::{Case, case};
use toprope_conformance::generate::exemplars::exemplars;
use toprope_conformance::generate::{GenerateError, programs};
use toprope_conformance::lockstep::{Lockstep, Obstacle, Step};
use toprope_conformance::replay::{self, PROPERTIES};
use toprope_conformance::values::{Regime, Values, draw, draw_banded};
use toprope_conformance::{Reproducer, Verdict};
use toprope_diagnose::Probe;
use toprope_program::{Concrete, Fault, FaultKind, Instruction, Operator, Range, Tolerance, Type};

/// Why a qualification cannot be made: never the subject's fault.
#[derive(Debug, thiserror::Error)]
pub enum QualifyError {
    /// A generator made something invalid.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The oracle failed.
    #[error("the oracle failed: {0}")]
    Oracle(Fault),
    /// A program of the qualification's own is not valid.
    #[error("a program of the qualification is not valid: {0}")]
    Program(String),
}

/// Rounds of cases of each operator that are wanted: as many as find every kind of shape and of values.
pub const ROUNDS: u64 = 24;

/// The powers of two that magnitudes are swept over.
pub const BANDS: std::ops::RangeInclusive<i32> = -40..=40;

/// What conformance found.
#[derive(Debug, Default)]
pub struct Findings {
    tallies: BTreeMap<Key, Tally>,
    /// Rounds that were finished.
    pub rounds: u64,
    /// Random programs that ran.
    pub programs: u64,
    /// Bands of magnitudes that were swept.
    pub bands: u64,
    /// How often bits were compared, and what did not repeat; by operator.
    pub repeated: u64,
    /// What did not repeat.
    pub unrepeated: Vec<(String, String)>,
    /// Operators that were refused, and why.
    pub refused: BTreeMap<String, String>,
    /// Faults that were no refusals.
    pub faults: Vec<String>,
}

impl Findings {
    /// Everything as it is told.
    pub fn results(&self, variant: &str) -> Vec<OperatorResult> {
        self.tallies.iter().map(|(key, tally)| tally.result(key, variant)).collect()
    }

    /// The counts of a key.
    pub fn tally(&mut self, key: Key) -> &mut Tally {
        self.tallies.entry(key).or_default()
    }

    /// Instructions judged.
    pub fn judged(&self) -> u64 {
        self.tallies.values().map(|tally| tally.agree + tally.differ + tally.incomparable).sum()
    }

    /// Operators that nothing was judged of.
    pub fn unjudged(&self) -> Vec<&'static str> {
        let seen: BTreeSet<&str> = self
            .tallies
            .iter()
            .filter(|(_, t)| t.agree + t.differ > 0)
            .map(|(k, _)| k.operator.as_str())
            .collect();
        exemplars().iter().map(Operator::name).filter(|name| !seen.contains(name)).collect()
    }
}

/// A class of shapes, from the largest dimension and whether an operand is strided.
fn class(instruction: &Instruction, operands: &[Concrete]) -> String {
    let largest = operands.iter().flat_map(|operand| operand.sizes.iter().copied()).max().unwrap_or(0);
    let size = match largest {
        0..=13 => "sizes to 13",
        14..=33 => "sizes to 33",
        34..=65 => "sizes to 65",
        _ => "long rows",
    };
    let strided = instruction.operands.iter().any(|operand| operand.view.is_some());
    format!("{size}{}", if strided { ", strided" } else { "" })
}

/// Terms that are added for one element, at most.
pub fn terms(operator: &Operator, operands: &[Concrete]) -> usize {
    let largest = || operands.iter().flat_map(|operand| operand.sizes.iter().copied()).max().unwrap_or(1);
    match operator {
        Operator::Dot(_) | Operator::GlobalNorm(_) => operands.iter().map(Concrete::elements).sum(),
        Operator::Attention(_) | Operator::AttentionGradient(_) => 2 * largest(),
        _ => largest(),
    }
}

/// Runs cases of these operators alone: whether another variant of a device is right in them, or the device itself where the
/// oracle lets a setting's errors through.
pub fn of_operators(
    bench: &mut Bench<'_>,
    names: &BTreeSet<&str>,
    deadline: &Deadline<'_>,
    rounds: u64,
) -> Result<Findings, QualifyError> {
    let mut run = Run { bench, findings: Findings::default() };
    for round in 0..rounds {
        for operator in exemplars().into_iter().filter(|operator| names.contains(operator.name())) {
            if round > 0 && deadline.passed() || run.bench.is_gone() {
                return Ok(run.findings);
            }
            run.case_of_round(&operator, round)?;
        }
        run.findings.rounds += 1;
    }
    Ok(run.findings)
}

/// Runs cases and random programs round by round until the deadline, or until all rounds are done.
pub fn conformance(
    bench: &mut Bench<'_>,
    deadline: &Deadline<'_>,
    rounds: u64,
) -> Result<Findings, QualifyError> {
    let mut run = Run { bench, findings: Findings::default() };
    for round in 0..rounds {
        for operator in exemplars() {
            // A first round is made in any case: without it there is nothing to say.
            if round > 0 && deadline.passed() || run.bench.is_gone() {
                return Ok(run.findings);
            }
            run.case_of_round(&operator, round)?;
        }
        for index in 0..3 {
            if deadline.passed() || run.bench.is_gone() {
                return Ok(run.findings);
            }
            let seed = run.bench.seed.wrapping_mul(1_000_003).wrapping_add(round * 3 + index);
            let generated = programs::program(seed)?;
            let (program, symbols) = (generated.program, generated.symbols);
            let name = format!("random program {seed}");
            let case = Case { name, program, symbols, seed: generated.seed };
            run.whole(&case)?;
            run.repeats(&case)?;
        }
        run.findings.rounds += 1;
    }
    Ok(run.findings)
}

/// Sweeps the magnitudes of every operator's operands over [`BANDS`], `stride` powers at a time, until the deadline.
pub fn bands(
    bench: &mut Bench<'_>,
    findings: &mut Findings,
    deadline: &Deadline<'_>,
    stride: usize,
) -> Result<u64, QualifyError> {
    let mut run = Run { bench, findings: std::mem::take(findings) };
    let mut done = 0;
    for (turn, exponent) in sweep(stride).into_iter().enumerate() {
        for operator in exemplars() {
            if deadline.passed() || run.bench.is_gone() {
                *findings = run.findings;
                return Ok(done);
            }
            // Sizes of tiles and a little more, in turn.
            let case = case(&operator, run.bench.seed.wrapping_add(7), [1, 2, 4, 5][turn % 4])?;
            run.band(&case, exponent)?;
        }
        done += 1;
    }
    run.findings.bands = done;
    *findings = run.findings;
    Ok(done)
}

/// The exponents from the outside in, so that a sweep which is cut short has seen both ends.
fn sweep(stride: usize) -> Vec<i32> {
    let all: Vec<i32> = BANDS.step_by(stride.max(1)).collect();
    let (low, high) = all.split_at(all.len() / 2);
    let mut order = Vec::with_capacity(all.len());
    let mut high = high.iter().rev();
    for exponent in low {
        order.push(*exponent);
        order.extend(high.next());
    }
    order.extend(high);
    order
}

struct Run<'a, 'b> {
    bench: &'a mut Bench<'b>,
    findings: Findings,
}

/// Where a step stands, for its result.
struct Spot<'a> {
    source: Source,
    /// A name of the class beyond the shape's, such as the band.
    case: &'a str,
    whole: &'a Reproducer,
    /// Whether the values are such that effective bits mean something.
    ordinary: bool,
    /// Whether a fault here is not followed by another attempt.
    last: bool,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The next one follows.
    On,
    /// The subject failed, and what was broken off is worth another attempt.
    Again,
    /// The subject failed at every attempt: the program cannot go on.
    Ended,
}

impl Run<'_, '_> {
    /// Ordinary values and, in turn, each of the other kinds; now and then bits that must repeat.
    fn case_of_round(&mut self, operator: &Operator, round: u64) -> Result<(), QualifyError> {
        let case = case(operator, self.bench.seed, round)?;
        let other = Regime::ALL[1 + (round as usize) % (Regime::ALL.len() - 1)];
        // What a setting adds to the error follows the magnitude for ordinary numbers only, not for subnormal ones.
        let regimes = [Regime::Normal, other];
        self.case(&case, if self.bench.oracle.allowance > 0.0 { &regimes[..1] } else { &regimes })?;
        if round.is_multiple_of(4) {
            self.repeats(&case)?;
        }
        Ok(())
    }

    fn case(&mut self, case: &Case, regimes: &[Regime]) -> Result<(), QualifyError> {
        let program = case.program.program();
        let feeds: Vec<(Values, Reproducer, bool)> = regimes
            .iter()
            .enumerate()
            .map(|(turn, regime)| {
                let seed = case.seed.wrapping_add(turn as u64);
                let mut whole = Reproducer::new(program.clone(), case.symbols.clone(), seed, *regime);
                whole.first = turn % 2 == 0;
                (draw(program, &case.symbols, seed, *regime), whole, *regime == Regime::Normal)
            })
            .collect();
        self.feeds(case, Source::Generated, feeds)
    }

    fn band(&mut self, case: &Case, exponent: i32) -> Result<(), QualifyError> {
        let program = case.program.program();
        let values = draw_banded(program, &case.symbols, case.seed, exponent);
        let mut whole = Reproducer::new(program.clone(), case.symbols.clone(), case.seed, Regime::Normal);
        whole.found = format!("operands of about 2^{exponent}");
        for (id, value) in program.values_with_ids() {
            if let Some(tensor) = &values[id.0 as usize]
                && tensor.data.len() <= VALUES_TOLD
                && !matches!(value.role, toprope_program::Role::Constant { .. })
            {
                whole.values.insert(value.name.clone(), tensor.data.clone());
            }
        }
        self.feeds(case, Source::Swept, vec![(values, whole, false)])
    }

    /// One operator (and what leads up to it) on several kinds of values, beside the trusted device on the ordinary ones.
    fn feeds(
        &mut self,
        case: &Case,
        source: Source,
        feeds: Vec<(Values, Reproducer, bool)>,
    ) -> Result<(), QualifyError> {
        for attempt in 1..=ATTEMPTS {
            if self.attempted(case, source, &feeds, attempt == ATTEMPTS)? != Flow::Again {
                break;
            }
        }
        Ok(())
    }

    fn attempted(
        &mut self,
        case: &Case,
        source: Source,
        feeds: &[(Values, Reproducer, bool)],
        last: bool,
    ) -> Result<Flow, QualifyError> {
        let program = case.program.program();
        let Some((first, ..)) = feeds.first() else { return Ok(Flow::Ended) };
        let Some(mut lockstep) = self.open(case, first.clone())? else { return Ok(Flow::Ended) };
        for (values, whole, ordinary) in feeds {
            let trusted = if *ordinary { self.trusted(case, values, whole.first) } else { Vec::new() };
            lockstep.feed(values.clone());
            for index in 0..program.accumulate.len() {
                let spot = Spot { source, case: &case.name, whole, ordinary: *ordinary, last };
                let beside = trusted.get(index);
                let flow =
                    self.step(&mut lockstep, (Range::Accumulate, index), whole.first, &spot, beside)?;
                if flow != Flow::On {
                    return Ok(flow);
                }
            }
        }
        self.close(lockstep)?;
        Ok(Flow::On)
    }

    /// The trusted device on the same values; nothing where it fails, which is not the subject's fault.
    fn trusted(&mut self, case: &Case, values: &Values, first: bool) -> Vec<Step> {
        let Some(trusted) = self.bench.trusted.as_deref_mut() else { return Vec::new() };
        let oracle = &mut self.bench.oracle;
        let Ok(mut lockstep) = Lockstep::open(trusted, oracle, &case.program, &case.symbols, values.clone())
        else {
            return Vec::new();
        };
        let steps = lockstep.range(trusted, oracle, Range::Accumulate, first).unwrap_or_default();
        // Its buffers go with it where they cannot be given back.
        let _ = lockstep.close(trusted, oracle);
        steps
    }

    /// A whole random program: two micro-batches and the update.
    fn whole(&mut self, case: &Case) -> Result<(), QualifyError> {
        for attempt in 1..=ATTEMPTS {
            if self.whole_attempted(case, attempt == ATTEMPTS)? != Flow::Again {
                break;
            }
        }
        Ok(())
    }

    fn whole_attempted(&mut self, case: &Case, last: bool) -> Result<Flow, QualifyError> {
        let program = case.program.program();
        let regime = if case.seed.is_multiple_of(8) { Regime::Wide } else { Regime::Normal };
        let values = draw(program, &case.symbols, case.seed, regime);
        let Some(mut lockstep) = self.open(case, values)? else { return Ok(Flow::Ended) };
        let mut whole = Reproducer::new(program.clone(), case.symbols.clone(), case.seed, regime);
        for (range, first) in [(Range::Accumulate, true), (Range::Accumulate, false), (Range::Update, false)]
        {
            if range == Range::Accumulate && !first {
                let seed = case.seed.wrapping_add(1);
                lockstep.feed_inputs(&draw(program, &case.symbols, seed, regime));
                whole.seeds = vec![seed];
            }
            whole.first = first;
            for index in 0..program.range(range).len() {
                let spot = Spot {
                    source: Source::Generated,
                    case: &case.name,
                    whole: &whole,
                    ordinary: false,
                    last,
                };
                let flow = self.step(&mut lockstep, (range, index), first, &spot, None)?;
                if flow != Flow::On {
                    return Ok(flow);
                }
            }
        }
        self.findings.programs += 1;
        self.close(lockstep)?;
        Ok(Flow::On)
    }

    fn open(&mut self, case: &Case, values: Values) -> Result<Option<Lockstep>, QualifyError> {
        let device = self.bench.device.as_mut();
        match Lockstep::open(device, &mut self.bench.oracle, &case.program, &case.symbols, values) {
            Ok(lockstep) => Ok(Some(lockstep)),
            Err(obstacle) => {
                if let Some(operator) = obstacle.refused() {
                    let operator = operator.to_string();
                    self.findings.refused.entry(operator).or_insert_with(|| obstacle.to_string());
                } else {
                    self.obstacle(obstacle, &format!("{} at prepare", case.name))?;
                }
                Ok(None)
            }
        }
    }

    fn close(&mut self, lockstep: Lockstep) -> Result<(), QualifyError> {
        match lockstep.close(self.bench.device.as_mut(), &mut self.bench.oracle) {
            Ok(()) => {
                self.bench.held();
                Ok(())
            }
            Err(obstacle) => self.obstacle(obstacle, "release"),
        }
    }

    /// Runs and counts one instruction. A fault that passes speaks against the device and not against the operator.
    fn step(
        &mut self,
        lockstep: &mut Lockstep,
        place: (Range, usize),
        first: bool,
        spot: &Spot<'_>,
        trusted: Option<&Step>,
    ) -> Result<Flow, QualifyError> {
        let program = &spot.whole.program;
        let instruction = &program.range(place.0)[place.1];
        let operands = program.concrete_operands(instruction, &spot.whole.symbols);
        let shape = class(instruction, &operands);
        let key = Key::new(spot.source, instruction.operator.name(), &operands, shape);
        let device = self.bench.device.as_mut();
        match lockstep.step(device, &mut self.bench.oracle, place.0, place.1, first) {
            Ok(step) => {
                self.record(&step, key, instruction, &operands, spot, trusted);
                Ok(Flow::On)
            }
            Err(obstacle) => {
                let again = !spot.last && matches!(&obstacle, Obstacle::Subject(fault) if is_loss(fault));
                if let Obstacle::Subject(_) = &obstacle
                    && !again
                {
                    let finding = format!("{}: {obstacle}", spot.case);
                    self.findings.tally(key).differs(finding, || spot.whole.to_string(), || None);
                }
                self.obstacle(obstacle, spot.case)?;
                Ok(if again && !self.bench.is_gone() { Flow::Again } else { Flow::Ended })
            }
        }
    }

    fn record(
        &mut self,
        step: &Step,
        key: Key,
        instruction: &Instruction,
        operands: &[Concrete],
        spot: &Spot<'_>,
        trusted: Option<&Step>,
    ) {
        let judgement = &step.judgement;
        let terms = terms(&instruction.operator, operands);
        let outputs = spot.whole.program.concrete_outputs(instruction, &spot.whole.symbols);
        let tolerances = instruction.operator.definition().tolerances(operands, &outputs);
        let tally = self.findings.tally(key);
        tally.elements += judgement.elements;
        tally.incomparable_elements += judgement.incomparable.values().sum::<u64>();
        if let Some(worst) = &judgement.worst {
            let error = (worst.got - worst.want).abs();
            let bound = if worst.units > 0.0 { error / worst.units } else { 0.0 };
            tally.worst(error, bound, worst.units);
        }
        let mut inexact = None;
        if spot.ordinary {
            for (output, accuracy) in judgement.accuracy.iter().enumerate() {
                let Some(accuracy) = accuracy else { continue };
                let beside = trusted.and_then(|step| step.judgement.accuracy.get(output)?.as_ref());
                tally.accuracy.merge(accuracy);
                beside.into_iter().for_each(|accuracy| tally.trusted.merge(accuracy));
                let tolerance = tolerances.get(output).copied().unwrap_or(Tolerance::EXACT);
                inexact = inexact.or_else(|| accuracy::objection(tolerance, terms, accuracy, beside));
            }
        }
        match (&judgement.verdict, &inexact) {
            (Verdict::Differ(finding), _) | (Verdict::Agree, Some(finding)) => {
                let finding = format!("{} ({}): {finding}", spot.case, told(spot));
                tally.differs(
                    finding,
                    || spot.whole.to_string(),
                    || probe(step, instruction, operands, spot),
                );
            }
            (Verdict::Agree, None) => tally.agree += 1,
            (Verdict::Incomparable(_), _) => tally.incomparable += 1,
        }
    }

    /// A failure of the subject is counted and the device opened again where it is gone; one of the oracle ends it all.
    fn obstacle(&mut self, obstacle: Obstacle, place: &str) -> Result<(), QualifyError> {
        match obstacle {
            Obstacle::Oracle(fault) => Err(QualifyError::Oracle(fault)),
            Obstacle::Subject(fault) => {
                self.findings.faults.push(format!("{place}: {fault}"));
                self.bench.revive(&fault);
                Ok(())
            }
            Obstacle::Place(_) => Err(QualifyError::Program(obstacle.to_string())),
        }
    }

    /// Bits that must repeat, where the device says that they do.
    fn repeats(&mut self, case: &Case) -> Result<(), QualifyError> {
        if !self.bench.describe().deterministic {
            return Ok(());
        }
        let values = draw(case.program.program(), &case.symbols, case.seed, Regime::Normal);
        match replay::repeats(self.bench.device.as_mut(), &case.program, &values, &case.symbols) {
            Ok(found) => {
                for (name, difference) in PROPERTIES.iter().zip(found) {
                    self.findings.repeated += 1;
                    if let Some(d) = difference {
                        let finding =
                            format!("{}: {name}: %{} differs at byte {}", case.name, d.value, d.byte);
                        self.findings.unrepeated.push((d.operator.to_string(), finding));
                    }
                }
                Ok(())
            }
            Err(Fault { kind: FaultKind::Unsupported { .. }, .. }) => Ok(()),
            Err(fault) => self.obstacle(Obstacle::Subject(fault), &case.name),
        }
    }
}

/// The instruction alone with the values that it was wrong on; with others of the same types where it was inexact only.
fn probe(step: &Step, instruction: &Instruction, operands: &[Concrete], spot: &Spot<'_>) -> Option<Probe> {
    if step.fed.is_empty() {
        let types: Vec<Type> =
            operands.iter().map(|operand| Type::new(operand.dtype, operand.sizes.iter().copied())).collect();
        return Probe::of(&instruction.operator, &types, 1, Regime::Normal, step.first).ok();
    }
    let program = &spot.whole.program;
    let mut held: Values = vec![None; program.values.len()];
    for (operand, fed) in instruction.operands.iter().zip(&step.fed) {
        held[operand.value.0 as usize] = Some(fed.clone());
    }
    Probe::at(program, step.range, step.index, &spot.whole.symbols, &held, step.first).ok()
}

/// More numbers than these are told by their seed only.
const VALUES_TOLD: usize = 4096;

fn told(spot: &Spot<'_>) -> String {
    if spot.whole.found.is_empty() { spot.whole.regime.name().into() } else { spot.whole.found.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_sees_every_band_once_and_both_ends_first() {
        for stride in [1, 4, 7] {
            let mut order = sweep(stride);
            assert_eq!(order[0], -40);
            assert!(order[1] > 30, "{order:?}");
            order.sort_unstable();
            assert_eq!(order, BANDS.step_by(stride).collect::<Vec<_>>());
        }
    }
}
