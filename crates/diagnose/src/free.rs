//! The same step freely on two devices, each on its own values: how a small error grows to the loss.

use crate::lockstep::distance;
use crate::step::{StepError, StepValues};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use toprope_program::shape::sizes;
use toprope_program::{
    Device, Fault, Range, Role, Session, Span, StateLayout, Tensor, Validated, ValueId, Width,
};

/// How far two devices are apart after an instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// Which micro-batch.
    pub micro_batch: usize,
    /// The range.
    pub range: Range,
    /// Index in its range.
    pub index: usize,
    /// The operator's name.
    pub operator: String,
    /// The part of the model.
    pub layer: String,
    /// The output's name.
    pub value: String,
    /// `‖subject - trusted‖ / ‖trusted‖`; none where one of the two is not finite.
    pub relative: Option<f64>,
}

/// How two devices come apart over a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// After each instruction, its output that is furthest apart; instructions whose outputs are the same are left out.
    pub distances: Vec<Distance>,
    /// The loss on the subject and on the trusted device, where the program has one.
    pub loss: Option<(f64, f64)>,
    /// How far the next state is apart.
    pub state: Option<f64>,
}

/// Why a step could not be run freely.
#[derive(Debug, thiserror::Error)]
pub enum FreeError {
    /// The values do not fit the program.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The subject failed.
    #[error("the subject failed: {0}")]
    Subject(Fault),
    /// The trusted device failed.
    #[error("the trusted device failed: {0}")]
    Trusted(Fault),
}

/// Runs a step on both from the same state and batch.
///
/// # Errors
/// A device fails, or the values do not fit the program.
pub fn free_run(
    subject: &mut dyn Device,
    trusted: &mut dyn Device,
    program: &Arc<Validated>,
    step: &StepValues,
) -> Result<Growth, FreeError> {
    let first = step.micro.first().ok_or(StepError::Empty)?;
    // Fits, or says what does not.
    step.before(program.program())?;
    let mut a = Runner::open(subject, program, step).map_err(FreeError::Subject)?;
    let mut b = Runner::open(trusted, program, step).map_err(FreeError::Trusted)?;
    let plain = program.program();
    let mut growth = Growth::default();
    let mut parts: Vec<(Range, usize)> =
        (0..step.micro.len()).map(|micro| (Range::Accumulate, micro)).collect();
    parts.push((Range::Update, step.micro.len() - 1));
    let mut apart = (0.0, 0.0);
    for (range, micro) in parts {
        if range == Range::Accumulate {
            a.feed(subject, step, micro).map_err(FreeError::Subject)?;
            b.feed(trusted, step, micro).map_err(FreeError::Trusted)?;
        }
        let symbols = &step.micro[micro].symbols;
        for (index, instruction) in plain.range(range).iter().enumerate() {
            let span = Span { range, from: index, to: index + 1 };
            a.run(subject, span).map_err(FreeError::Subject)?;
            b.run(trusted, span).map_err(FreeError::Trusted)?;
            let mut worst: Option<Distance> = None;
            for id in &instruction.outputs {
                let left = a.read(subject, *id, symbols).map_err(FreeError::Subject)?;
                let right = b.read(trusted, *id, symbols).map_err(FreeError::Trusted)?;
                let (Some(left), Some(right)) = (left, right) else { continue };
                if let Role::Next { .. } = plain.value(*id).role
                    && right.dtype.is_float()
                {
                    for (x, y) in left.data.iter().zip(&right.data) {
                        apart = (apart.0 + (x - y) * (x - y), apart.1 + y * y);
                    }
                }
                let relative = distance(&left, &right);
                if relative == 0.0 {
                    continue;
                }
                let further =
                    |held: &Distance| held.relative.is_some_and(|held| relative > held || relative.is_nan());
                if worst.as_ref().is_none_or(further) {
                    worst = Some(Distance {
                        micro_batch: micro,
                        range,
                        index,
                        operator: instruction.operator.name().into(),
                        layer: instruction.part.clone(),
                        value: plain.value(*id).name.clone(),
                        relative: relative.is_finite().then_some(relative),
                    });
                }
            }
            growth.distances.extend(worst);
        }
    }
    let loss = |runner: &Runner, device: &mut dyn Device| -> Result<Option<f64>, Fault> {
        match ["loss", "loss_sum"].iter().find(|name| runner.session.has(name)) {
            Some(name) => Ok(Some(f64::from(runner.session.read_scalar(device, name)?))),
            None => Ok(None),
        }
    };
    let ours = loss(&a, subject).map_err(FreeError::Subject)?;
    let theirs = loss(&b, trusted).map_err(FreeError::Trusted)?;
    growth.loss = ours.zip(theirs);
    growth.state = (apart.1 > 0.0).then(|| (apart.0 / apart.1).sqrt());
    let _ = first;
    a.close(subject).map_err(FreeError::Subject)?;
    b.close(trusted).map_err(FreeError::Trusted)?;
    Ok(growth)
}

/// A program with a step's values on a device, run an instruction at a time.
pub(crate) struct Runner {
    session: Session,
    program: Arc<Validated>,
}

impl Runner {
    pub(crate) fn open(
        device: &mut dyn Device,
        program: &Arc<Validated>,
        step: &StepValues,
    ) -> Result<Runner, Fault> {
        let session = Session::open(device, program.clone(), Width::Native, StateLayout::Double)?;
        for (name, tensor) in &step.values {
            session.write(device, name, &tensor.to_bytes(Width::Native))?;
        }
        Ok(Runner { session, program: program.clone() })
    }

    pub(crate) fn feed(
        &mut self,
        device: &mut dyn Device,
        step: &StepValues,
        micro: usize,
    ) -> Result<(), Fault> {
        self.session.set_first(micro == 0);
        if let Some(number) = step.micro[micro].symbols.first() {
            self.session.bind(*number);
        }
        for (name, tensor) in &step.micro[micro].values {
            self.session.write(device, name, &tensor.to_bytes(Width::Native))?;
        }
        Ok(())
    }

    pub(crate) fn run(&self, device: &mut dyn Device, span: Span) -> Result<(), Fault> {
        let ticket = self.session.queue_span(device, span)?;
        self.session.wait(device, span.range, ticket)
    }

    fn read(&self, device: &mut dyn Device, id: ValueId, symbols: &[usize]) -> Result<Option<Tensor>, Fault> {
        let value = self.program.program().value(id);
        let sizes = sizes(&value.shape, symbols);
        let raw = self.bytes(device, id, symbols)?;
        Ok(raw.and_then(|raw| Tensor::from_bytes(value.dtype, &sizes, Width::Native, &raw)))
    }

    /// A value as it lies in memory; none where it has no place.
    pub(crate) fn bytes(
        &self,
        device: &mut dyn Device,
        id: ValueId,
        symbols: &[usize],
    ) -> Result<Option<Vec<u8>>, Fault> {
        let value = self.program.program().value(id);
        let Some(place) = self.session.plan().place(id) else { return Ok(None) };
        let count = sizes(&value.shape, symbols).iter().product::<usize>();
        let mut raw = vec![0; count * value.dtype.size_bytes(Width::Native)];
        device.read(self.session.buffer(place), place.offset_bytes, &mut raw)?;
        Ok(Some(raw))
    }

    pub(crate) fn close(self, device: &mut dyn Device) -> Result<(), Fault> {
        self.session.close(device)
    }
}
