//! One instruction alone with its operands' values, binding and micro-batch: what runs on any device and is judged by the
//! oracle. Its memory is that of its own operands and outputs.

use std::borrow::Cow;
use std::sync::Arc;
use toprope_conformance::isolate;
use toprope_conformance::judge::{Judgement, Measured, judge, measure};
use toprope_conformance::lockstep::{Obstacle, seen};
use toprope_conformance::session::{Session, all_checks};
use toprope_conformance::values::{Regime, Values, draw};
use toprope_conformance::verdict::Verdict;
use toprope_conformance::{Oracle, Reproducer};
use toprope_program::shape::{elements, sizes};
use toprope_program::{
    DType, Defect, Device, Dim, Fault, Instruction, Location, Operand, Operator, Phase, Program, Range, Role,
    Span, Tensor, Type, Validated, Value, ValueId, Width, validate,
};

/// One instruction with all that is needed to run it.
#[derive(Clone, Debug)]
pub struct Probe {
    program: Arc<Validated>,
    symbols: Vec<usize>,
    first: bool,
    values: Values,
}

/// Why there is no probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The program has no such instruction.
    #[error("the program has no instruction {} in its {}", .1, .0.name())]
    NoInstruction(Range, usize),
    /// An operand has no value.
    #[error("%{0} has no value")]
    NoValue(String),
    /// The operator does not take these operands.
    #[error("`{operator}` does not take these operands: {reason}")]
    Operands {
        /// The operator's name.
        operator: &'static str,
        /// Why not.
        reason: String,
    },
    /// The instruction is no program by itself.
    #[error("`{operator}` is no program by itself: {}", .defects.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// The operator's name.
        operator: &'static str,
        /// What is wrong.
        defects: Vec<Defect>,
    },
}

/// What a device gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The outputs in the order of the operator's record.
    pub outputs: Vec<Tensor>,
    /// The first byte that it wrote outside of its outputs: region and offset.
    pub stray: Option<String>,
}

impl Outcome {
    /// Whether two runs gave the same bits; NaN counts as one.
    pub fn same_bits(&self, other: &Outcome) -> bool {
        let bits = |x: f64| if x.is_nan() { u64::MAX } else { x.to_bits() };
        let same = |a: &Tensor, b: &Tensor| {
            a.data.len() == b.data.len() && a.data.iter().zip(&b.data).all(|(a, b)| bits(*a) == bits(*b))
        };
        self.outputs.len() == other.outputs.len()
            && self.outputs.iter().zip(&other.outputs).all(|(a, b)| same(a, b))
    }
}

/// What the oracle gave.
#[derive(Clone, Debug)]
pub struct Exact {
    /// The outputs, not rounded.
    pub want: Vec<Tensor>,
    /// What errors are measured by.
    pub measured: Measured,
}

/// A probe made ready on a device, to be run more than once.
#[derive(Debug)]
pub struct Opened {
    session: Session,
    probe: Probe,
}

impl Probe {
    /// An instruction of a program, fed the held values (by id, whole values and not views).
    ///
    /// # Errors
    /// No such instruction, or an operand without a value.
    pub fn at(
        program: &Program,
        range: Range,
        index: usize,
        symbols: &[usize],
        held: &Values,
        first: bool,
    ) -> Result<Probe, ProbeError> {
        let missing = || ProbeError::NoInstruction(range, index);
        let instruction = program.range(range).get(index).ok_or_else(missing)?;
        let alone = isolate::alone(program, range, index).ok_or_else(missing)?;
        let mut values: Values = vec![None; alone.values.len()];
        for operand in &instruction.operands {
            let name = &program.value(operand.value).name;
            let no_value = || ProbeError::NoValue(name.clone());
            let tensor = held.get(operand.value.0 as usize).and_then(Option::as_ref).ok_or_else(no_value)?;
            let id = alone.find(name).ok_or_else(no_value)?;
            values[id.0 as usize] = Some(tensor.clone());
        }
        Probe::new(alone, symbols.to_vec(), values, first)
    }

    /// An operator of the contract on operands of these types, with values drawn from a seed.
    ///
    /// # Errors
    /// The operator does not take these operands.
    pub fn of(
        operator: &Operator,
        operands: &[Type],
        seed: u64,
        regime: Regime,
        first: bool,
    ) -> Result<Probe, ProbeError> {
        let name = operator.name();
        let record = operator.definition().record();
        let inferred = validate::infer(operator, operands)
            .map_err(|reason| ProbeError::Operands { operator: name, reason })?;
        let in_place = operator.writes_in_place();
        let mut values: Vec<Value> = Vec::new();
        for (at, Type { dtype, shape }) in operands.iter().enumerate() {
            let last = record.operands.len().saturating_sub(1);
            let slot = record.operands.get(at.min(last)).map_or("operand", |slot| slot.name);
            let name = if at > last { format!("{slot}{}", at - last) } else { slot.to_string() };
            let role = match operator {
                Operator::Accumulate(_) if in_place == Some(at) => Role::Carried,
                _ if in_place == Some(at) => Role::Cache,
                _ => Role::Input,
            };
            values.push(Value { name: plain(&name, "operand"), dtype: *dtype, shape: shape.clone(), role });
        }
        let inputs = (0..operands.len()).map(|at| Operand::from(ValueId(at as u32))).collect();
        let mut outputs = Vec::new();
        for (at, Type { dtype, shape }) in inferred.into_iter().enumerate() {
            if let (Some(target), 0) = (in_place, at) {
                outputs.push(ValueId(target as u32));
                continue;
            }
            let slot = record.outputs.get(at).map_or("output", |slot| slot.name);
            outputs.push(ValueId(values.len() as u32));
            let name = format!("{}_out", plain(slot, "output"));
            values.push(Value { name, dtype, shape, role: Role::Output });
        }
        let instruction = Instruction {
            operator: operator.clone(),
            operands: inputs,
            outputs,
            part: String::new(),
            check: None,
        };
        let program = Program {
            name: name.into(),
            phase: Phase::Evaluate,
            symbols: Vec::new(),
            values,
            accumulate: vec![instruction],
            update: Vec::new(),
        };
        let values = draw(&program, &[], seed, regime);
        Probe::new(program, Vec::new(), values, first)
    }

    /// A program of one instruction with its values.
    ///
    /// # Errors
    /// The program is not valid, or has another number of instructions.
    pub fn new(
        program: Program,
        symbols: Vec<usize>,
        values: Values,
        first: bool,
    ) -> Result<Probe, ProbeError> {
        let [instruction] = program.accumulate.as_slice() else {
            return Err(ProbeError::NoInstruction(Range::Accumulate, 0));
        };
        let operator = instruction.operator.name();
        for operand in &instruction.operands {
            if values.get(operand.value.0 as usize).is_none_or(Option::is_none) {
                return Err(ProbeError::NoValue(program.value(operand.value).name.clone()));
            }
        }
        let program = validate(program).map_err(|defects| ProbeError::Invalid { operator, defects })?;
        Ok(Probe { program: Arc::new(program), symbols, first, values })
    }

    /// The one instruction.
    pub fn instruction(&self) -> &Instruction {
        &self.program.program().accumulate[0]
    }

    /// The operator with its attributes.
    pub fn operator(&self) -> &Operator {
        &self.instruction().operator
    }

    /// The program of one instruction.
    pub fn program(&self) -> &Arc<Validated> {
        &self.program
    }

    /// A number for each symbol.
    pub fn symbols(&self) -> &[usize] {
        &self.symbols
    }

    /// Whether it runs as part of a first micro-batch.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The values by id, whole and not viewed.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The operands as the operator sees them.
    pub fn operands(&self) -> Vec<Tensor> {
        let program = self.program.program();
        let seen = |operand: &Operand| seen(program, operand, &self.values, &self.symbols);
        self.instruction().operands.iter().filter_map(seen).collect()
    }

    /// The operands as the operator sees them, without a copy of those that it reads whole.
    pub(crate) fn seen(&self) -> Vec<Cow<'_, Tensor>> {
        let program = self.program.program();
        let one = |operand: &Operand| match &operand.view {
            None => self.values.get(operand.value.0 as usize)?.as_ref().map(Cow::Borrowed),
            Some(_) => seen(program, operand, &self.values, &self.symbols).map(Cow::Owned),
        };
        self.instruction().operands.iter().filter_map(one).collect()
    }

    /// Whether an operand is read through a view.
    pub fn has_views(&self) -> bool {
        self.instruction().operands.iter().any(|operand| operand.view.is_some())
    }

    /// The same in the other micro-batch.
    pub fn in_micro_batch(&self, first: bool) -> Probe {
        Probe { first, ..self.clone() }
    }

    /// The same with symbols bound and every operand a dense value of its own. Operators that write in place stay as they
    /// are where the target is viewed.
    ///
    /// # Errors
    /// As [`Probe::new`].
    pub fn dense(&self) -> Result<Probe, ProbeError> {
        let operands = self.operands();
        let mut program = isolate::bound(self.program.program(), &self.symbols);
        let mut values = self.values.clone();
        for (at, tensor) in operands.into_iter().enumerate() {
            if program.accumulate[0].operands[at].view.is_none() {
                continue;
            }
            let shape = tensor.sizes.iter().map(|size| Dim::from(*size)).collect();
            let name = format!("operand{at}");
            program.values.push(Value { name, dtype: tensor.dtype, shape, role: Role::Input });
            program.accumulate[0].operands[at] = ValueId(program.values.len() as u32 - 1).into();
            values.push(Some(tensor));
        }
        let names: Vec<String> = program.values.iter().map(|value| value.name.clone()).collect();
        drop_unread(&mut program);
        let kept = |value: &Value| {
            let at = names.iter().position(|name| *name == value.name)?;
            values.get(at).cloned().flatten()
        };
        let values = program.values.iter().map(kept).collect();
        Probe::new(program, Vec::new(), values, self.first)
    }

    /// The same instruction with another operator's attributes and these operands, dense and in the same order.
    ///
    /// # Errors
    /// The operator does not take them.
    pub fn altered(&self, operator: &Operator, operands: Vec<Tensor>) -> Result<Probe, ProbeError> {
        let types: Vec<Type> =
            operands.iter().map(|tensor| Type::new(tensor.dtype, tensor.sizes.iter().copied())).collect();
        let mut probe = Probe::of(operator, &types, 0, Regime::Normal, self.first)?;
        for (operand, tensor) in probe.instruction().operands.clone().into_iter().zip(operands) {
            probe.values[operand.value.0 as usize] = Some(tensor);
        }
        Ok(probe)
    }

    /// Other numbers of the same kind, drawn from a seed.
    pub fn redrawn(&self, seed: u64, regime: Regime) -> Probe {
        Probe { values: draw(self.program.program(), &self.symbols, seed, regime), ..self.clone() }
    }

    /// At other sizes (see [`isolate::resized`]), with numbers drawn from a seed. None where the operator does not take them,
    /// or the probe has views or symbols.
    pub fn resized(
        &self,
        map: &dyn Fn(usize, usize, usize) -> usize,
        seed: u64,
        regime: Regime,
    ) -> Option<Probe> {
        if !self.symbols.is_empty() {
            return None;
        }
        let program = isolate::resized(self.program.program(), map)?;
        let values = draw(&program, &[], seed, regime);
        Probe::new(program, Vec::new(), values, self.first).ok()
    }

    /// Moves the elements of each float operand by one, so that it is another run of the same kind.
    pub(crate) fn rotate_floats(&mut self) {
        for tensor in self.values.iter_mut().flatten().filter(|tensor| tensor.dtype.is_float()) {
            if !tensor.data.is_empty() {
                tensor.data.rotate_left(1);
            }
        }
    }

    /// Replaces what an operand reads, where it reads a whole value.
    pub(crate) fn set_operand(&mut self, at: usize, tensor: Tensor) {
        if let Some(Operand { value, view: None }) = self.instruction().operands.get(at).cloned() {
            self.values[value.0 as usize] = Some(tensor);
        }
    }

    /// Takes the whole value that an operand reads, through a view or not, from another probe of the same program.
    pub(crate) fn take_operand(&mut self, at: usize, other: &Probe) {
        if let Some(operand) = self.instruction().operands.get(at) {
            let id = operand.value.0 as usize;
            self.values[id] = other.values.get(id).cloned().flatten();
        }
    }

    /// Replaces a number of an operand that reads a whole value.
    pub(crate) fn set_number(&mut self, at: usize, place: usize, number: impl FnOnce(DType) -> f64) {
        let Some(Operand { value, view: None }) = self.instruction().operands.get(at).cloned() else {
            return;
        };
        if let Some(tensor) = self.values[value.0 as usize].as_mut()
            && let Some(held) = tensor.data.get_mut(place)
        {
            *held = number(tensor.dtype);
        }
    }

    /// Prepares it on a device.
    ///
    /// # Errors
    /// The device refuses or fails.
    pub fn open(&self, device: &mut dyn Device) -> Result<Opened, Fault> {
        let session = Session::open(device, &self.program, Width::Native)?;
        Ok(Opened { session, probe: self.clone() })
    }

    /// Runs it once.
    ///
    /// # Errors
    /// The device fails.
    pub fn run(&self, device: &mut dyn Device) -> Result<Outcome, Obstacle> {
        let opened = self.open(device).map_err(Obstacle::Subject)?;
        let outcome = opened.run(device, self);
        opened.close(device).map_err(Obstacle::Subject)?;
        outcome
    }

    /// The exact result and what errors are measured by.
    ///
    /// # Errors
    /// The oracle fails.
    pub fn exact(&self, oracle: &mut Oracle) -> Result<Exact, Obstacle> {
        let device = oracle.device.as_mut();
        let session = Session::open(device, &self.program, Width::Wide).map_err(Obstacle::Oracle)?;
        let outcome = Opened { session, probe: self.clone() };
        let want = outcome.run(device, self).map_err(|obstacle| match obstacle {
            Obstacle::Subject(fault) => Obstacle::Oracle(fault),
            other => other,
        });
        outcome.close(device).map_err(Obstacle::Oracle)?;
        let want = want?.outputs;
        let measured = measure(oracle, self.operator(), &self.operands(), &want, self.first);
        Ok(Exact { want, measured })
    }

    /// Judges what a device gave.
    pub fn judge(&self, exact: &Exact, outcome: &Outcome) -> Judgement {
        let mut judgement = judge(
            self.operator(),
            &self.operands(),
            &exact.want,
            &outcome.outputs,
            exact.measured.borrowed(),
        );
        if let Some(stray) = &outcome.stray {
            judgement.verdict = Verdict::Differ(format!("wrote outside of its outputs: {stray}"));
        }
        judgement
    }

    /// Runs it on a subject and judges it.
    ///
    /// # Errors
    /// A device fails.
    pub fn check(&self, subject: &mut dyn Device, oracle: &mut Oracle) -> Result<Judgement, Obstacle> {
        let outcome = self.run(subject)?;
        Ok(self.judge(&self.exact(oracle)?, &outcome))
    }

    /// As text that anybody can run again, with all its values.
    pub fn reproducer(&self, device: &str, found: &str) -> Reproducer {
        let program = self.program.program().clone();
        let named = |(id, value): (ValueId, &Value)| {
            let tensor = self.values.get(id.0 as usize)?.as_ref()?;
            Some((value.name.clone(), tensor.data.clone()))
        };
        let values = program.values_with_ids().filter_map(named).collect();
        let base = Reproducer::new(program.clone(), self.symbols.clone(), 0, Regime::Normal);
        let found = found.to_string();
        Reproducer { devices: vec![device.into()], first: self.first, found, values, ..base }
    }

    /// The number of elements that it reads and writes.
    pub fn elements(&self) -> usize {
        let of = |value: &Value| elements(&sizes(&value.shape, &self.symbols));
        self.program.program().values.iter().map(of).sum()
    }
}

impl Opened {
    /// Runs it with the values of a probe of the same program.
    ///
    /// # Errors
    /// The device fails.
    pub fn run(&self, device: &mut dyn Device, fed: &Probe) -> Result<Outcome, Obstacle> {
        self.run_over(device, fed, None)
    }

    /// As [`Opened::run`], with outputs that hold a number before.
    ///
    /// # Errors
    /// The device fails.
    pub fn run_over(
        &self,
        device: &mut dyn Device,
        fed: &Probe,
        before: Option<f64>,
    ) -> Result<Outcome, Obstacle> {
        let program = self.probe.program.program();
        let instruction = self.probe.instruction();
        let symbols = &self.probe.symbols;
        let mut image = self.session.blank();
        if let Some(number) = before {
            for id in &instruction.outputs {
                let value = program.value(*id);
                let sizes = sizes(&value.shape, symbols);
                let data = vec![number; elements(&sizes)];
                self.session.put(&mut image, *id, &Tensor::rounded(value.dtype, &sizes, data));
            }
        }
        for operand in &instruction.operands {
            if let Some(tensor) = fed.values.get(operand.value.0 as usize).and_then(Option::as_ref) {
                self.session.put(&mut image, operand.value, tensor);
            }
        }
        let span = Span { range: Range::Accumulate, from: 0, to: 1 };
        let checks = all_checks(program);
        let mut run = || {
            self.session.write(device, &image)?;
            self.session.run(device, span, symbols, fed.first, &checks)?;
            self.session.read(device)
        };
        let after = run().map_err(Obstacle::Subject)?;
        let places: Vec<Location> =
            instruction.outputs.iter().filter_map(|id| self.session.plan.place(*id)).collect();
        let stray = after.stray_write(&image, &places).map(|(region, at)| format!("{region:?} byte {at}"));
        let output = |id: &ValueId| {
            let value = program.value(*id);
            let sizes = sizes(&value.shape, symbols);
            self.session.get(&after, *id, &sizes).ok_or_else(|| Obstacle::Place(value.name.clone()))
        };
        let outputs = instruction.outputs.iter().map(output).collect::<Result<_, _>>()?;
        Ok(Outcome { outputs, stray })
    }

    /// Gives the buffers back.
    ///
    /// # Errors
    /// The device fails.
    pub fn close(self, device: &mut dyn Device) -> Result<(), Fault> {
        self.session.close(device)
    }
}

/// A name of letters and digits.
fn plain(name: &str, otherwise: &str) -> String {
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    if plain.is_empty() { otherwise.into() } else { plain }
}

fn drop_unread(program: &mut Program) {
    let mut used = vec![false; program.values.len()];
    for instruction in &program.accumulate {
        let reads = instruction.operands.iter().map(|operand| operand.value);
        reads.chain(instruction.outputs.iter().copied()).for_each(|id| used[id.0 as usize] = true);
    }
    // A scratch value that nobody names falls away in pruning.
    for (value, used) in program.values.iter_mut().zip(&used) {
        if !used {
            value.role = Role::Scratch;
        }
    }
    toprope_program::order::prune(program);
}
