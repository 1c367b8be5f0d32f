//! The training loop.

use crate::batch::{StepBatch, StepInputs};
use crate::checkpoint::{
    BackgroundWriter, CheckpointError, DataCursor, Identity, Outcome as Saved, OwnedSnapshot, SnapshotHeader,
    hash_from,
};
use crate::engine::{Committed, Engine, EngineError, Verdict};
use crate::recipe::Recipe;
use crate::run_folder::{RunFolder, RunFolderError};
use serde::Serialize;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use toprope_program::StateLayout;
use toprope_world::World;

/// Why training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device failed and nothing guards it, or the guard gave up.
    #[error("step {step}: {error}")]
    Engine {
        /// The step that was under way; it was not committed.
        step: u64,
        /// What the engine said.
        error: EngineError,
    },
    /// A checkpoint could not be written; the older one is still there.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run's folder could not be written.
    #[error(transparent)]
    RunFolder(#[from] RunFolderError),
}

/// One committed step, as journal, metrics and progress see it.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Steps committed so far.
    pub step: u64,
    /// The loss that was differentiated, in nats per token.
    pub loss: f64,
    /// Its parts by name.
    pub parts: Vec<(String, f64)>,
    /// Before clipping.
    pub gradient_norm: f64,
    /// The rate of this step.
    pub learning_rate: f64,
    /// Tokens of the step.
    pub tokens: u64,
    /// Wall time of the step.
    pub seconds: f64,
}

/// What happens, for whoever shows it.
pub trait Observer {
    /// A step was committed.
    fn step(&mut self, report: &StepReport);
    /// A checkpoint is durable.
    fn checkpoint(&mut self, step: u64);
    /// The held-out loss was measured, in bits per byte.
    fn evaluated(&mut self, step: u64, bits_per_byte: f64);
    /// Something that does not end the run but must be known.
    fn warning(&mut self, text: &str);
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Steps committed in all.
    pub steps: u64,
    /// The last step's main loss, in nats per token.
    pub loss: f64,
    /// Wall seconds of each step of this process.
    pub step_seconds: Vec<f64>,
    /// Tokens trained on in this process.
    pub tokens: u64,
    /// The hash of the final state.
    pub state_hash: String,
    /// Whether somebody asked to stop.
    pub interrupted: bool,
}

/// A run that is ready to go.
pub struct Trainer<'a> {
    /// The recipe as resolved.
    pub recipe: &'a Recipe,
    /// Batches by step.
    pub inputs: &'a StepInputs,
    /// Runs the steps.
    pub engine: &'a mut dyn Engine,
    /// Clock and files.
    pub world: &'a dyn World,
    /// Journal, metrics and checkpoints.
    pub folder: &'a RefCell<RunFolder>,
    /// Writes checkpoints behind the steps.
    pub writer: BackgroundWriter,
    /// What a checkpoint must agree with.
    pub identity: Identity,
    /// Whom to tell.
    pub observer: &'a mut dyn Observer,
    /// Set when somebody asks to stop after this step.
    pub stop: &'a AtomicBool,
}

impl Trainer<'_> {
    /// Runs steps `from..recipe.training.steps`, each committed once.
    ///
    /// # Errors
    /// A fault of the device, or a folder that cannot be written. What was committed durably stays.
    pub fn run(mut self, from: u64) -> Result<Outcome, TrainError> {
        let mut outcome = Outcome { steps: from, ..Outcome::default() };
        while outcome.steps < self.recipe.training.steps {
            let started = self.world.clock().monotonic();
            let step = outcome.steps;
            let batch = self.inputs.step(step);
            let (verdict, committed) = self.step(step, &batch).map_err(|error| failed_at(step, error))?;
            outcome.steps += 1;
            let elapsed = self.world.clock().monotonic().saturating_sub(started);
            self.report(&mut outcome, &batch, verdict, &committed, elapsed)?;
            let written = self.writer.poll();
            self.checkpoint_written(written)?;
            outcome.interrupted = self.stop.load(Ordering::Relaxed);
            let every = self.recipe.checkpoint.every;
            let last = outcome.interrupted || outcome.steps == self.recipe.training.steps;
            if last || (every > 0 && outcome.steps.is_multiple_of(every)) {
                self.checkpoint(&mut outcome, last)?;
            }
            let every = self.recipe.evaluation.every;
            if every > 0 && outcome.steps.is_multiple_of(every) && !last {
                let tokens = self.recipe.evaluation.tokens;
                let bits = bits_per_byte(self.engine, self.inputs, tokens);
                match bits.map_err(|error| failed_at(step, error))? {
                    Some(bits) => self.observer.evaluated(outcome.steps, bits),
                    None => self.observer.warning(&format!(
                        "step {}: nothing is predicted in the first {tokens} held-out tokens, so there is no figure\nhint: raise evaluation.tokens",
                        outcome.steps
                    )),
                }
            }
            if outcome.interrupted {
                break;
            }
        }
        let written = self.writer.finish();
        self.checkpoint_written(written)?;
        if outcome.state_hash.is_empty() {
            let step = outcome.steps;
            let mut state = self.engine.state().map_err(|error| failed_at(step, error))?;
            let tensors = state.tensors().to_vec();
            outcome.state_hash = hash_from(&tensors, &mut |tensor, offset, into| {
                state.read(tensor, offset, into).map_err(|error| failed_at(step, error))
            })?;
        }
        Ok(outcome)
    }

    fn step(&mut self, step: u64, batch: &StepBatch) -> Result<(Verdict, Committed), EngineError> {
        self.engine.begin(step, batch)?;
        let verdict = self.engine.verdict()?;
        let committed = self.engine.commit()?;
        Ok((verdict, committed))
    }

    fn report(
        &mut self,
        outcome: &mut Outcome,
        batch: &StepBatch,
        verdict: Verdict,
        committed: &Committed,
        elapsed: Duration,
    ) -> Result<(), TrainError> {
        let main = verdict.parts.iter().find(|(name, _)| name == "main");
        outcome.loss = main.map_or(verdict.loss, |(_, loss)| *loss);
        outcome.step_seconds.push(elapsed.as_secs_f64());
        outcome.tokens += batch.tokens;
        let report = StepReport {
            step: outcome.steps,
            loss: verdict.loss,
            parts: verdict.parts,
            gradient_norm: committed.gradient_norm,
            learning_rate: batch.learning_rate,
            tokens: batch.tokens,
            seconds: elapsed.as_secs_f64(),
        };
        self.folder.borrow_mut().metric(self.world, &report)?;
        self.observer.step(&report);
        Ok(())
    }

    /// Where the state is double, its copy is written behind the next steps. In place there is no memory for a copy, and
    /// after the last step none is needed: the state is written as it lies.
    fn checkpoint(&mut self, outcome: &mut Outcome, last: bool) -> Result<(), TrainError> {
        let step = outcome.steps;
        let description = self.engine.describe();
        let header = SnapshotHeader {
            run_id: self.folder.borrow().run_id().to_string(),
            step,
            data_cursor: DataCursor { seed: self.recipe.seed, next_step: step },
            identity: self.identity.clone(),
            device: description.name,
            level: description.level,
        };
        // The ledger up to here must not be younger than the state that it explains.
        self.folder.borrow_mut().sync(self.world)?;
        // One that is still being written is awaited first: there is never more than one copy.
        let before = self.writer.finish();
        self.checkpoint_written(before)?;
        if !last && self.engine.plan().layout == StateLayout::Double {
            let tensors = self.engine.snapshot().map_err(|error| failed_at(step, error))?;
            let written = self.writer.submit(OwnedSnapshot { header, tensors });
            return self.checkpoint_written(written);
        }
        let mut state = self.engine.state().map_err(|error| failed_at(step, error))?;
        let tensors = state.tensors().to_vec();
        let saved = self.writer.save(&header, &tensors, &mut |tensor, offset, into| {
            state.read(tensor, offset, into).map_err(|error| failed_at(step, error))
        })?;
        drop(state);
        if last {
            outcome.state_hash = saved.0.state_hash.clone();
        }
        self.checkpoint_written(Some(Ok(saved)))
    }

    fn checkpoint_written(&mut self, written: Option<Saved>) -> Result<(), TrainError> {
        let Some(outcome) = written else { return Ok(()) };
        let (written, kept) = outcome?;
        self.folder
            .borrow_mut()
            .event(self.world, &serde_json::json!({ "event": "checkpoint", "step": written.step }))?;
        self.folder.borrow_mut().sync(self.world)?;
        self.engine.checkpointed(written.step);
        self.observer.checkpoint(written.step);
        for problem in kept.problems() {
            self.observer.warning(&problem);
        }
        Ok(())
    }
}

/// Held-out loss in bits per byte of text, over at most about `tokens` of it; 0 for all. None where nothing of them is
/// predicted.
///
/// # Errors
/// A fault of the device.
pub fn bits_per_byte(
    engine: &mut dyn Engine,
    inputs: &StepInputs,
    tokens: u64,
) -> Result<Option<f64>, EngineError> {
    let validation = inputs.validation(tokens);
    if validation.bytes == 0.0 {
        return Ok(None);
    }
    let (nats, _) = engine.evaluate(&|index| validation.batch(index))?;
    Ok(Some(nats / std::f64::consts::LN_2 / validation.bytes))
}

fn failed_at(step: u64, error: EngineError) -> TrainError {
    TrainError::Engine { step, error }
}
