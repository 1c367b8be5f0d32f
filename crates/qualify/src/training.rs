//! The training proof: the first steps of a program beside the trusted device, each operator of the first in lockstep, then
//! all of them freely, where small errors may grow to the loss.

use crate::bench::Bench;
use crate::budget::Deadline;
use crate::result::Outcome;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use toprope_conformance::Verdict;
use toprope_conformance::lockstep::{Lockstep, Obstacle};
use toprope_conformance::values::Values;
use toprope_program::shape::{elements, sizes};
use toprope_program::{
    DType, Device, Fault, Program, Range, Role, Session, StateLayout, Tensor, Validated, Width,
};

/// The inputs of one run of `accumulate`.
#[derive(Clone, Debug)]
pub struct MicroFeed {
    /// What the first symbol is bound to.
    pub sequences: usize,
    /// Integers by name.
    pub integers: Vec<(String, Vec<i32>)>,
}

/// The inputs of a step.
#[derive(Clone, Debug)]
pub struct StepFeed {
    /// In the order in which they are accumulated.
    pub micro: Vec<MicroFeed>,
    /// f32 inputs by name.
    pub scalars: Vec<(String, Vec<f32>)>,
}

/// A training program with its first steps.
#[derive(Clone, Debug)]
pub struct TrainingCase {
    /// What it is, for people.
    pub name: String,
    /// Dtype of its activations.
    pub dtype: DType,
    /// The step.
    pub program: Arc<Validated>,
    /// Its inputs.
    pub steps: Vec<StepFeed>,
    /// Seed of the initial state.
    pub seed: u64,
    /// How far losses may lie apart, relative to the trusted device's.
    pub tolerance: f64,
}

/// What came of one training case.
#[derive(Clone, Debug, Serialize)]
pub struct TrainingProof {
    /// What it was.
    pub name: String,
    /// Dtype of its activations.
    pub dtype: DType,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The device beside which it ran.
    pub beside: String,
    /// Instructions that agreed in lockstep with the oracle.
    pub agreed: u64,
    /// Steps that were taken freely.
    pub steps: u64,
    /// The device's losses.
    pub losses: Vec<f64>,
    /// The trusted device's.
    pub trusted_losses: Vec<f64>,
    /// The largest relative distance.
    pub distance: f64,
    /// What it may be.
    pub tolerance: f64,
}

/// The curve tolerance of the contract, over the first 20 steps.
pub fn curve_tolerance(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 2e-3 } else { 1e-5 }
}

/// The state before the first step, by name.
pub fn initial_state(program: &Program, seed: u64) -> Vec<(String, Tensor)> {
    let state = program.state().filter_map(|(_, value)| {
        let Role::State { initial } = &value.role else { return None };
        let sizes = sizes(&value.shape, &[]);
        let tensor = match value.dtype.is_float() {
            true => {
                let drawn = initial.draw(seed, &value.name, elements(&sizes));
                Tensor::rounded(value.dtype, &sizes, drawn.into_iter().map(f64::from))
            }
            // Integers start at zero.
            false => Tensor::zeros(value.dtype, &sizes),
        };
        Some((value.name.clone(), tensor))
    });
    state.collect()
}

/// Runs a case on both devices; the first step in lockstep before, where that is asked for.
pub fn prove(
    bench: &mut Bench<'_>,
    case: &TrainingCase,
    in_lockstep: bool,
    deadline: &Deadline<'_>,
) -> TrainingProof {
    let mut proof = TrainingProof {
        name: case.name.clone(),
        dtype: case.dtype,
        outcome: Outcome::NotRun("there was no time".into()),
        beside: String::new(),
        agreed: 0,
        steps: 0,
        losses: Vec::new(),
        trusted_losses: Vec::new(),
        distance: 0.0,
        tolerance: case.tolerance,
    };
    let Some(trusted) = bench.trusted.as_deref() else {
        proof.outcome = Outcome::NotRun("there is no trusted device to stand beside".into());
        return proof;
    };
    proof.beside = trusted.describe().name;
    let locked = match in_lockstep {
        true => lockstep(bench, case, &deadline.part(0.35, Duration::MAX), &mut proof),
        false => Ok(()),
    };
    let failed = locked.and_then(|()| free(bench, case, deadline, &mut proof));
    proof.outcome = match failed {
        Err(outcome) => outcome,
        Ok(()) if proof.steps == 0 => Outcome::NotRun("there was no time".into()),
        Ok(()) if proof.distance.is_nan() || proof.distance > case.tolerance => Outcome::Failed(format!(
            "losses lie {:.2e} apart in {} steps, {:.0e} is allowed",
            proof.distance, proof.steps, case.tolerance
        )),
        Ok(()) if proof.steps < case.steps.len() as u64 => Outcome::NotRun(format!(
            "{} of {} steps in the time that there was",
            proof.steps,
            case.steps.len()
        )),
        Ok(()) => Outcome::Passed,
    };
    proof
}

/// The first sequence of the first step, operator by operator, each fed the oracle's values.
fn lockstep(
    bench: &mut Bench<'_>,
    case: &TrainingCase,
    deadline: &Deadline<'_>,
    proof: &mut TrainingProof,
) -> Result<(), Outcome> {
    let Some(step) = case.steps.first() else { return Err(Outcome::NotRun("there are no steps".into())) };
    let program = case.program.program();
    let symbols = vec![1; program.symbols.len()];
    let values = first_values(program, &symbols, step, case.seed);
    let (device, oracle) = (bench.device.as_mut(), &mut bench.oracle);
    let run = || -> Result<Option<String>, Obstacle> {
        let mut lockstep = Lockstep::open(device, oracle, &case.program, &symbols, values)?;
        let mut finding = None;
        for range in Range::ALL {
            for index in 0..program.range(range).len() {
                // A difference that was found is not to wait for the rest.
                if deadline.passed() {
                    break;
                }
                let step = lockstep.step(device, oracle, range, index, true)?;
                match step.judgement.verdict {
                    Verdict::Agree => proof.agreed += 1,
                    Verdict::Incomparable(_) => {}
                    Verdict::Differ(reason) => {
                        let instruction = &program.range(range)[step.index];
                        finding.get_or_insert(format!(
                            "step 1 in lockstep: `{}` in {}: {reason}",
                            step.operator, instruction.part
                        ));
                    }
                }
            }
        }
        lockstep.close(device, oracle)?;
        Ok(finding)
    };
    match run() {
        // What was not reached is told by its number; the free run sees all of it.
        Ok(None) => Ok(()),
        Ok(Some(finding)) => Err(Outcome::Failed(finding)),
        Err(Obstacle::Oracle(fault)) => Err(Outcome::NotRun(format!("the oracle failed: {fault}"))),
        Err(Obstacle::Place(name)) => Err(Outcome::NotRun(format!("%{name} has no place in the plan"))),
        Err(Obstacle::Subject(fault)) => {
            bench.revive(&fault);
            Err(Outcome::Failed(format!("step 1 in lockstep: {fault}")))
        }
    }
}

/// All steps on both, from the same state, each on its own values.
fn free(
    bench: &mut Bench<'_>,
    case: &TrainingCase,
    deadline: &Deadline<'_>,
    proof: &mut TrainingProof,
) -> Result<(), Outcome> {
    let Some(trusted) = bench.trusted.as_deref_mut() else {
        return Err(Outcome::NotRun("there is no trusted device to stand beside".into()));
    };
    let untrusted = |fault: Fault| Outcome::NotRun(format!("the trusted device failed: {fault}"));
    let mut theirs = Trainee::open(trusted, case).map_err(untrusted)?;
    let device = bench.device.as_mut();
    let mut ours = match Trainee::open(device, case) {
        Ok(ours) => ours,
        Err(fault) => {
            // The trusted device's memory goes with its next use.
            let _ = theirs.close(trusted);
            bench.revive(&fault);
            return Err(Outcome::Failed(fault.to_string()));
        }
    };
    for step in &case.steps {
        if deadline.passed() {
            break;
        }
        let want = theirs.step(trusted, step).map_err(untrusted)?;
        let got = match ours.step(device, step) {
            Ok(got) => got,
            Err(fault) => {
                let _ = theirs.close(trusted);
                bench.revive(&fault);
                return Err(Outcome::Failed(format!("step {}: {fault}", proof.steps + 1)));
            }
        };
        proof.steps += 1;
        let distance = (got - want).abs() / want.abs().max(f64::MIN_POSITIVE);
        // A NaN stays.
        proof.distance = if distance.is_nan() { f64::NAN } else { proof.distance.max(distance) };
        proof.losses.push(got);
        proof.trusted_losses.push(want);
        if proof.distance.is_nan() || proof.distance > case.tolerance {
            break;
        }
    }
    theirs.close(trusted).map_err(untrusted)?;
    ours.close(device).map_err(|fault| Outcome::Failed(fault.to_string()))
}

/// A program in training on a device.
pub struct Trainee {
    session: Session,
}

impl Trainee {
    /// Prepares it and writes the initial state.
    pub fn open(device: &mut dyn Device, case: &TrainingCase) -> Result<Trainee, Fault> {
        let session = Session::open(device, case.program.clone(), Width::Native, StateLayout::Double)?;
        for (name, tensor) in initial_state(case.program.program(), case.seed) {
            session.write(device, &name, &tensor.to_bytes(Width::Native))?;
        }
        Ok(Trainee { session })
    }

    /// Puts a state back.
    pub fn restore(&self, device: &mut dyn Device, state: &[(String, Vec<u8>)]) -> Result<(), Fault> {
        state.iter().try_for_each(|(name, bytes)| self.session.write(device, name, bytes))
    }

    /// Takes a step and gives its loss.
    pub fn step(&mut self, device: &mut dyn Device, feed: &StepFeed) -> Result<f64, Fault> {
        let session = &mut self.session;
        for (name, numbers) in &feed.scalars {
            if session.has(name) {
                session.write_f32(device, name, numbers)?;
            }
        }
        for (index, micro) in feed.micro.iter().enumerate() {
            session.bind(micro.sequences);
            for (name, numbers) in &micro.integers {
                if session.has(name) {
                    session.write_i32(device, name, numbers)?;
                }
            }
            session.set_first(index == 0);
            session.run(device, Range::Accumulate)?;
        }
        let loss = f64::from(session.read_scalar(device, "loss")?);
        session.run(device, Range::Update)?;
        session.flip();
        Ok(loss)
    }

    /// The state by name, as stored.
    pub fn state(&self, device: &mut dyn Device) -> Result<Vec<(String, Vec<u8>)>, Fault> {
        let names: Vec<String> =
            self.session.program().program().state().map(|(_, value)| value.name.clone()).collect();
        names.into_iter().map(|name| self.session.read(device, &name).map(|bytes| (name, bytes))).collect()
    }

    /// Gives the buffers back.
    pub fn close(self, device: &mut dyn Device) -> Result<(), Fault> {
        self.session.close(device)
    }
}

/// The state by name behind the first `steps` steps of a case.
pub fn trained(
    device: &mut dyn Device,
    case: &TrainingCase,
    steps: usize,
) -> Result<Vec<(String, Vec<u8>)>, Fault> {
    let mut trainee = Trainee::open(device, case)?;
    for step in case.steps.iter().take(steps) {
        trainee.step(device, step)?;
    }
    let state = trainee.state(device)?;
    trainee.close(device)?;
    Ok(state)
}

/// State and constants before the first step, and the first sequence of its batch.
fn first_values(program: &Program, symbols: &[usize], step: &StepFeed, seed: u64) -> Values {
    let integers = step.micro.first().map(|micro| micro.integers.as_slice()).unwrap_or_default();
    let state = initial_state(program, seed);
    let of = |value: &toprope_program::Value| {
        let sizes = sizes(&value.shape, symbols);
        let count = elements(&sizes);
        match &value.role {
            Role::State { .. } => {
                state.iter().find(|(name, _)| *name == value.name).map(|(_, tensor)| tensor.clone())
            }
            Role::Constant { content } => Some(Tensor::rounded(value.dtype, &sizes, content.values(&sizes))),
            Role::Carried => Some(Tensor::zeros(value.dtype, &sizes)),
            Role::Input => {
                let numbers = integers.iter().find(|(name, _)| *name == value.name);
                let scalars = step.scalars.iter().find(|(name, _)| *name == value.name);
                let data: Vec<f64> = match (numbers, scalars) {
                    (Some((_, data)), _) => data.iter().take(count).map(|x| f64::from(*x)).collect(),
                    (_, Some((_, data))) => data.iter().take(count).map(|x| f64::from(*x)).collect(),
                    _ => return None,
                };
                (data.len() == count).then_some(Tensor { dtype: value.dtype, sizes, data })
            }
            _ => None,
        }
    };
    program.values.iter().map(of).collect()
}
