//! The seam between the training loop and whatever runs its steps: in this process, in a worker under the guard, or in
//! the simulator.

mod local;

pub use local::{Local, LocalOptions, Profile};

use crate::batch::StepBatch;
use crate::checkpoint::OwnedTensor;
use toprope_program::{Description, Fault, MemoryPlan, Validated};

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
    fn begin(&mut self, step: u64, batch: &StepBatch) -> Result<(), Fault>;

    /// Judges the accumulated gradients and losses; writes no state.
    fn verdict(&mut self) -> Result<Verdict, Fault>;

    /// Runs `update`, judges it, and makes the next state the current one.
    fn commit(&mut self) -> Result<Committed, Fault>;

    /// A copy of the committed state, by name.
    fn snapshot(&mut self) -> Result<Vec<OwnedTensor>, Fault>;

    /// Takes a state in; names that the program lacks and names that are missing are faults.
    fn restore(&mut self, state: &[OwnedTensor]) -> Result<(), Fault>;

    /// Sum of losses and number of targets over batches, on the committed parameters.
    fn evaluate(&mut self, batches: &mut dyn Iterator<Item = StepBatch>) -> Result<(f64, u64), Fault>;

    /// Logits of the last row of a window of tokens, on the committed parameters.
    fn logits(&mut self, window: &[i32]) -> Result<Vec<f32>, Fault>;
}
