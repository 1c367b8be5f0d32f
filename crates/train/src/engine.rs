//! The seam between the training loop and whatever runs its steps: in this process, in a worker under the guard, or in
//! the simulator.

mod guarded; // in worker processes, under the guard
mod inputs; // a batch's numbers into a session
mod local; // in this process

pub use guarded::{Checkpoints, Guarded, GuardedOptions, GuardedSteps};
pub use local::{Local, LocalOptions, Profile};

use crate::batch::StepBatch;
use crate::checkpoint::{CheckpointError, OwnedTensor, TensorDtype, TensorSpec};
use crate::initial::InitialError;
use toprope_guard::supervisor::GuardError;
use toprope_program::shape::sizes;
use toprope_program::{DType, Description, Fault, MemoryPlan, Role, Validated, Value};

/// Why an engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The device failed, and nothing guards it.
    #[error(transparent)]
    Fault(Box<Fault>),
    /// The guard gave up.
    #[error(transparent)]
    Guard(Box<GuardError>),
    /// There is no state to begin with.
    #[error(transparent)]
    Initial(Box<InitialError>),
    /// There is no state to go on from.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
}

impl From<CheckpointError> for EngineError {
    fn from(error: CheckpointError) -> EngineError {
        EngineError::Checkpoint(Box::new(error))
    }
}

impl From<InitialError> for EngineError {
    fn from(error: InitialError) -> EngineError {
        EngineError::Initial(Box::new(error))
    }
}

impl From<Fault> for EngineError {
    fn from(fault: Fault) -> EngineError {
        EngineError::Fault(Box::new(fault))
    }
}

impl From<GuardError> for EngineError {
    fn from(error: GuardError) -> EngineError {
        EngineError::Guard(Box::new(error))
    }
}

/// The batch at a place; none behind the last.
pub type BatchAt<'a> = dyn Fn(usize) -> Option<StepBatch> + 'a;

/// The tensors of a state one after another, as many as it says.
pub type StateTensors<'a> = dyn ExactSizeIterator<Item = Result<OwnedTensor, CheckpointError>> + 'a;

/// What a step's gradients and losses look like, before anything is committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The loss that was differentiated.
    pub loss: f64,
    /// Its parts by name: `main`, `mtp`, `balance`.
    pub parts: Vec<(String, f64)>,
}

/// What a committed step left behind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// The norm of all gradients, before clipping.
    pub gradient_norm: f64,
}

/// The committed state where it lies: read a part at a time, so that there is no second copy of it. No step runs as long as
/// somebody holds this.
pub trait StateReader {
    /// What its tensors are.
    fn tensors(&self) -> &[TensorSpec];

    /// Reads bytes of a tensor, by its place in that list, from an offset on.
    fn read(&mut self, tensor: usize, offset_bytes: u64, into: &mut [u8]) -> Result<(), EngineError>;
}

/// Runs steps. A step that was not committed never happened.
pub trait Engine {
    /// The device that runs the steps.
    fn describe(&self) -> Description;

    /// The step's program.
    fn program(&self) -> &Validated;

    /// Where its values lie.
    fn plan(&self) -> &MemoryPlan;

    /// Runs `accumulate` over the step's micro-batches.
    fn begin(&mut self, step: u64, batch: &StepBatch) -> Result<(), EngineError>;

    /// Judges the accumulated gradients and losses; writes no state.
    fn verdict(&mut self) -> Result<Verdict, EngineError>;

    /// Runs `update`, judges it, and makes the next state the current one.
    fn commit(&mut self) -> Result<Committed, EngineError>;

    /// A durable checkpoint of this many steps was written.
    fn checkpointed(&mut self, step: u64) {
        let _ = step;
    }

    /// The committed state.
    fn state(&mut self) -> Result<Box<dyn StateReader + '_>, EngineError>;

    /// A copy of the committed state.
    fn snapshot(&mut self) -> Result<Vec<OwnedTensor>, EngineError> {
        let mut state = self.state()?;
        let specs = state.tensors().to_vec();
        let mut tensors = Vec::with_capacity(specs.len());
        for (index, spec) in specs.into_iter().enumerate() {
            let mut bytes = vec![0; spec.bytes().unwrap_or_default() as usize];
            state.read(index, 0, &mut bytes)?;
            let TensorSpec { name, dtype, shape } = spec;
            tensors.push(OwnedTensor { name, dtype, shape, bytes });
        }
        Ok(tensors)
    }

    /// Takes a state in, a tensor at a time; names that the program lacks and names that are missing are faults.
    fn restore(&mut self, state: &mut StateTensors<'_>) -> Result<(), EngineError>;

    /// Sum of losses and number of targets over batches until there is none, on the committed parameters.
    fn evaluate(&mut self, batches: &BatchAt<'_>) -> Result<(f64, u64), EngineError>;

    /// Logits of the last row of a window of tokens, on the committed parameters.
    fn logits(&mut self, window: &[i32]) -> Result<Vec<f32>, EngineError>;
}

/// A program's state as checkpoints have it.
fn specs(program: &Validated) -> Vec<TensorSpec> {
    program.program().state().map(|(_, value)| spec(value)).collect()
}

fn spec(value: &Value) -> TensorSpec {
    let shape = sizes(&value.shape, &[]).into_iter().map(|size| size as u64).collect();
    TensorSpec { name: value.name.clone(), dtype: stored(value.dtype), shape }
}

/// Whether a tensor is one of a program's state.
fn fits(program: &Validated, tensor: &OwnedTensor) -> bool {
    program.program().find(&tensor.name).is_some_and(|id| {
        let value = program.program().value(id);
        let own = spec(value);
        matches!(value.role, Role::State { .. }) && own.dtype == tensor.dtype && own.shape == tensor.shape
    })
}

fn stored(dtype: DType) -> TensorDtype {
    match dtype {
        DType::F32 => TensorDtype::F32,
        DType::Bf16 => TensorDtype::BF16,
        DType::I32 => TensorDtype::I32,
        DType::U32 => TensorDtype::U32,
    }
}
