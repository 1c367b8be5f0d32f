//! Runs one program on a subject and on the oracle, operator by operator, each fed the oracle's values, so that the first
//! wrong operator is found without accumulated error.

use crate::judge::{Judgement, judge, judge_classes, measure};
use crate::oracle::Oracle;
use crate::session::{Session, all_checks};
use crate::values::Values;
use crate::verdict::Verdict;
use std::sync::Arc;
use toprope_program::shape::{dense_strides, sizes};
use toprope_program::tensor::round;
use toprope_program::{
    Device, Fault, FaultKind, Instruction, Location, Operand, Program, Range, Role, Span, Tensor, Validated,
    Width,
};

/// What came of one instruction.
#[derive(Clone, Debug)]
pub struct Step {
    /// The range.
    pub range: Range,
    /// Index in its range.
    pub index: usize,
    /// The operator's name.
    pub operator: &'static str,
    /// The judgement of its outputs.
    pub judgement: Judgement,
    /// The whole values (not views) that its operands were read from, for a reproducer; kept where it differs.
    pub fed: Vec<Tensor>,
    /// Whether it ran as part of a first micro-batch.
    pub first: bool,
}

/// A program on both devices, ready to be fed.
#[derive(Debug)]
pub struct Lockstep {
    program: Arc<Validated>,
    subject: Session,
    oracle: Session,
    held: Values,
    symbols: Vec<usize>,
    /// Outputs that are left open, where values are judged by what they are.
    by_class: Option<&'static [usize]>,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// The subject failed.
    #[error("the subject failed: {0}")]
    Subject(Fault),
    /// The oracle failed.
    #[error("the oracle failed: {0}")]
    Oracle(Fault),
    /// An image had no room for a value, which validation rules out.
    #[error("%{0} has no place in the plan")]
    Place(String),
}

impl Obstacle {
    /// The operator that the subject refused, where it refused one.
    pub fn refused(&self) -> Option<&str> {
        match self {
            Obstacle::Subject(Fault { kind: FaultKind::Unsupported { operator, .. }, .. }) => Some(operator),
            _ => None,
        }
    }
}

impl Lockstep {
    /// Prepares a program on both. `values` are what the host writes before the first range.
    pub fn open(
        subject: &mut dyn Device,
        oracle: &mut Oracle,
        program: &Arc<Validated>,
        symbols: &[usize],
        values: Values,
    ) -> Result<Lockstep, Obstacle> {
        let subject = Session::open(subject, program, Width::Native).map_err(Obstacle::Subject)?;
        let oracle = Session::open(oracle.device.as_mut(), program, Width::Wide).map_err(Obstacle::Oracle)?;
        let (program, symbols) = (program.clone(), symbols.to_vec());
        Ok(Lockstep { program, subject, oracle, held: values, symbols, by_class: None })
    }

    /// From now on outputs are judged by [`judge_classes`], but for those that are left open.
    pub fn judge_by_class(&mut self, open: &'static [usize]) {
        self.by_class = Some(open);
    }

    /// Gives the buffers back.
    pub fn close(self, subject: &mut dyn Device, oracle: &mut Oracle) -> Result<(), Obstacle> {
        self.subject.close(subject).map_err(Obstacle::Subject)?;
        self.oracle.close(oracle.device.as_mut()).map_err(Obstacle::Oracle)
    }

    /// Replaces inputs, as for the next micro-batch; everything else keeps the oracle's values.
    pub fn feed_inputs(&mut self, values: &Values) {
        for (id, value) in self.program.program().values_with_ids() {
            if value.role == Role::Input {
                self.held[id.0 as usize].clone_from(&values[id.0 as usize]);
            }
        }
    }

    /// Replaces everything that the host writes.
    pub fn feed(&mut self, values: Values) {
        self.held = values;
    }

    /// The oracle's session, for comparisons beyond single operators.
    pub fn subject_session(&self) -> &Session {
        &self.subject
    }

    /// Runs one instruction on both and judges it.
    pub fn step(
        &mut self,
        subject: &mut dyn Device,
        oracle: &mut Oracle,
        range: Range,
        index: usize,
        first: bool,
    ) -> Result<Step, Obstacle> {
        let validated = self.program.clone();
        let program = validated.program();
        let instruction = &program.range(range)[index];
        let span = Span { range, from: index, to: index + 1 };
        let checks = all_checks(program);
        let want = {
            let mut image = self.oracle.blank();
            put_operands(&self.oracle, &mut image, instruction, &self.held);
            let device = oracle.device.as_mut();
            let mut run = || -> Result<_, Fault> {
                self.oracle.write(device, &image)?;
                self.oracle.run(device, span, &self.symbols, first, &checks)?;
                self.oracle.read(device)
            };
            let after = run().map_err(Obstacle::Oracle)?;
            outputs(&self.oracle, &after, program, instruction, &self.symbols)?
        };
        let mut before = self.subject.blank();
        put_operands(&self.subject, &mut before, instruction, &self.held);
        let mut run = || -> Result<_, Fault> {
            self.subject.write(subject, &before)?;
            self.subject.run(subject, span, &self.symbols, first, &checks)?;
            self.subject.read(subject)
        };
        let after = run().map_err(Obstacle::Subject)?;
        let got = outputs(&self.subject, &after, program, instruction, &self.symbols)?;
        let operands: Vec<Tensor> = instruction
            .operands
            .iter()
            .map(|operand| {
                seen(program, operand, &self.held, &self.symbols)
                    .ok_or_else(|| Obstacle::Place(program.value(operand.value).name.clone()))
            })
            .collect::<Result<_, _>>()?;
        let measured = measure(oracle, &instruction.operator, &operands, &want, first);
        let (operator, magnitudes) = (&instruction.operator, measured.borrowed());
        let mut judgement = match self.by_class {
            None => judge(operator, &operands, &want, &got, magnitudes),
            Some(open) => judge_classes(operator, &operands, &want, &got, magnitudes, open),
        };
        let places: Vec<Location> =
            instruction.outputs.iter().filter_map(|id| self.subject.plan.place(*id)).collect();
        if let Some((region, at)) = after.stray_write(&before, &places) {
            judgement.verdict =
                Verdict::Differ(format!("wrote outside of its outputs: {region:?} byte {at}"));
        }
        let fed = if matches!(judgement.verdict, Verdict::Differ(_)) {
            let whole = |operand: &Operand| self.held[operand.value.0 as usize].clone();
            instruction.operands.iter().filter_map(whole).collect()
        } else {
            Vec::new()
        };
        for (id, want) in instruction.outputs.iter().zip(want) {
            let data = want.data.into_iter().map(|x| round(want.dtype, x)).collect();
            self.held[id.0 as usize] = Some(Tensor { data, ..want });
        }
        Ok(Step { range, index, operator: instruction.operator.name(), judgement, fed, first })
    }

    /// Runs a range, an instruction at a time.
    pub fn range(
        &mut self,
        subject: &mut dyn Device,
        oracle: &mut Oracle,
        range: Range,
        first: bool,
    ) -> Result<Vec<Step>, Obstacle> {
        let count = self.program.program().range(range).len();
        (0..count).map(|index| self.step(subject, oracle, range, index, first)).collect()
    }
}

fn put_operands(
    session: &Session,
    image: &mut crate::session::Image,
    instruction: &Instruction,
    held: &Values,
) {
    for operand in &instruction.operands {
        if let Some(tensor) = &held[operand.value.0 as usize] {
            session.put(image, operand.value, tensor);
        }
    }
}

fn outputs(
    session: &Session,
    image: &crate::session::Image,
    program: &Program,
    instruction: &Instruction,
    symbols: &[usize],
) -> Result<Vec<Tensor>, Obstacle> {
    instruction
        .outputs
        .iter()
        .map(|id| {
            let value = program.value(*id);
            let sizes = sizes(&value.shape, symbols);
            session.get(image, *id, &sizes).ok_or_else(|| Obstacle::Place(value.name.clone()))
        })
        .collect()
}

/// An operand as the operator sees it, dense.
pub fn seen(program: &Program, operand: &Operand, held: &Values, symbols: &[usize]) -> Option<Tensor> {
    let whole = held.get(operand.value.0 as usize)?.as_ref()?;
    let Some(view) = &operand.view else { return Some(whole.clone()) };
    let sizes = sizes(&view.shape, symbols);
    // Strides were checked against the value's shape; the symbolic outermost dimension does not enter them.
    dense_strides(&program.value(operand.value).shape)?;
    let count: usize = sizes.iter().product();
    let mut data = Vec::with_capacity(count);
    let mut place = vec![0usize; sizes.len()];
    for _ in 0..count {
        let at = view.offset + place.iter().zip(&view.strides).map(|(i, stride)| i * stride).sum::<usize>();
        data.push(*whole.data.get(at)?);
        for axis in (0..sizes.len()).rev() {
            place[axis] += 1;
            if place[axis] < sizes[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
    Some(Tensor { dtype: whole.dtype, sizes, data })
}
