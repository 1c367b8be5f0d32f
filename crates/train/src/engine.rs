//! The seam between the training loop and whatever runs its steps: in this process, in a worker under the guard, or in
//! the simulator.

mod guarded; // in worker processes, under the guard
mod inputs; // a batch's numbers into a session
mod local; // in this process

pub use guarded::{Checkpoints, Guarded, GuardedOptions, GuardedSteps};
pub use local::{Local, LocalOptions, Profile};

use crate::batch::StepBatch;
use crate::checkpoint::OwnedTensor;
use crate::initial::InitialError;
use toprope_guard::supervisor::GuardError;
use toprope_program::{Description, Fault, MemoryPlan, Validated};

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

    /// A copy of the committed state, by name.
    fn snapshot(&mut self) -> Result<Vec<OwnedTensor>, EngineError>;

    /// Takes a state in; names that the program lacks and names that are missing are faults.
    fn restore(&mut self, state: &[OwnedTensor]) -> Result<(), EngineError>;

    /// Sum of losses and number of targets over batches, on the committed parameters.
    fn evaluate(&mut self, batches: &mut dyn Iterator<Item = StepBatch>) -> Result<(f64, u64), EngineError>;

    /// Logits of the last row of a window of tokens, on the committed parameters.
    fn logits(&mut self, window: &[i32]) -> Result<Vec<f32>, EngineError>;
}
