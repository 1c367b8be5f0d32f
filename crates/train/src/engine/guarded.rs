//! Runs steps in worker processes under the guard.

use super::{
    BatchAt, Committed, Engine, EngineError, StateReader, StateTensors, Verdict, fits, inputs, specs,
};
use crate::batch::{StepBatch, StepInputs};
use crate::checkpoint::{self, DataCursor, Identity, Snapshot, SnapshotHeader, TensorSpec};
use crate::initial::{InitialError, InitialState};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use toprope_guard::supervisor::{
    CommittedState, Durable, GuardError, StepResult, Steps, Supervisor, TakeValue,
};
use toprope_program::{Description, Device, Fault, FaultKind, MemoryPlan, Session, Validated};
use toprope_world::World;

/// The steps of a run as the guard asks for them.
pub struct GuardedSteps {
    inputs: Arc<StepInputs>,
    /// The batch that was asked for last.
    last: Option<(u64, StepBatch)>,
}

impl GuardedSteps {
    /// The steps that these inputs make.
    pub fn new(inputs: Arc<StepInputs>) -> GuardedSteps {
        GuardedSteps { inputs, last: None }
    }

    fn batch(&mut self, step: u64) -> &StepBatch {
        let known = self.last.take().filter(|(at, _)| *at == step);
        let batch = known.map_or_else(|| self.inputs.step(step), |(_, batch)| batch);
        &self.last.insert((step, batch)).1
    }
}

impl Steps for GuardedSteps {
    fn micro_batches(&mut self, step: u64) -> usize {
        self.batch(step).micro.len()
    }

    fn write(
        &mut self,
        step: u64,
        micro_batch: usize,
        session: &mut Session,
        device: &mut dyn Device,
    ) -> Result<(), Fault> {
        let batch = self.batch(step);
        if micro_batch == 0 {
            inputs::write_scalars(device, session, batch)?;
        }
        match batch.micro.get(micro_batch) {
            Some(micro) => inputs::write_micro_batch(device, session, micro),
            None => Ok(()),
        }
    }
}

/// The run's folder of checkpoints, as the guard reads and writes it.
pub struct Checkpoints {
    /// Clock and files.
    pub world: Arc<dyn World>,
    /// Where they are.
    pub folder: PathBuf,
    /// The run's name.
    pub run_id: String,
    /// What they must agree with.
    pub identity: Identity,
    /// Seed of the order of the data.
    pub seed: u64,
    /// The step's program, whose state they hold.
    pub program: Arc<Validated>,
    /// How the run began.
    pub initial: Arc<InitialState>,
}

impl Durable for Checkpoints {
    fn newest(&mut self, take: &mut TakeValue<'_>) -> Result<Option<u64>, String> {
        let found = checkpoint::newest_intact(&*self.world, &self.folder, &self.identity);
        let (loaded, _) = found.map_err(|error| error.to_string())?;
        let Some(loaded) = loaded else {
            // A run without a checkpoint goes back to how it began.
            let mut refused = None;
            let taken = self.initial.each::<InitialError>(self.program.program(), |name, bytes| {
                if refused.is_none() {
                    refused = take(name, &bytes).err();
                }
                Ok(())
            });
            taken.map_err(|error| error.to_string())?;
            return refused.map_or(Ok(Some(0)), Err);
        };
        for tensor in loaded.tensors() {
            let tensor = tensor.map_err(|error| error.to_string())?;
            take(&tensor.name, &tensor.bytes)?;
        }
        Ok(Some(loaded.manifest().header.step))
    }

    fn write(&mut self, step: u64, state: &CommittedState<'_>) -> Result<(), String> {
        let path = self.folder.join(checkpoint::checkpoint_name(step));
        if checkpoint::open(&*self.world, &path).is_ok() {
            return Ok(());
        }
        let header = SnapshotHeader {
            run_id: self.run_id.clone(),
            step,
            data_cursor: DataCursor { seed: self.seed, next_step: step },
            identity: self.identity.clone(),
            device: "guard".into(),
            level: String::new(),
        };
        let state = HostState::new(&self.program, *state);
        let views = state.tensors.iter().zip(&state.values).map(|(spec, bytes)| spec.view(bytes));
        let snapshot = Snapshot { header: &header, tensors: views.collect() };
        let written = checkpoint::write(&*self.world, &self.folder, &snapshot);
        written.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// The committed state in the memory that outlives workers.
struct HostState<'a> {
    tensors: Vec<TensorSpec>,
    values: Vec<&'a [u8]>,
}

impl<'a> HostState<'a> {
    /// With the dtypes and shapes that the program gives.
    fn new(program: &Validated, state: CommittedState<'a>) -> HostState<'a> {
        let values: HashMap<&str, &[u8]> = state.values().collect();
        let mut tensors = specs(program);
        tensors.retain(|tensor| values.contains_key(tensor.name.as_str()));
        let values = tensors.iter().map(|tensor| values[tensor.name.as_str()]).collect();
        HostState { tensors, values }
    }
}

impl StateReader for HostState<'_> {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read(&mut self, tensor: usize, offset_bytes: u64, into: &mut [u8]) -> Result<(), EngineError> {
        let from = offset_bytes as usize;
        into.copy_from_slice(&self.values[tensor][from..from + into.len()]);
        Ok(())
    }
}

/// What a [`Guarded`] engine is made of.
pub struct GuardedOptions {
    /// The supervisor, not yet begun.
    pub supervisor: Supervisor,
    /// The training step without checks.
    pub train: Arc<Validated>,
    /// The loss without gradients, where the run evaluates.
    pub evaluate: Option<Arc<Validated>>,
    /// Logits of one window, where the run samples.
    pub logits: Option<Arc<Validated>>,
    /// The state before the first step; none where one will be restored.
    pub initial: Option<Arc<InitialState>>,
}

/// The engine of a guarded run.
pub struct Guarded {
    supervisor: Supervisor,
    train: Arc<Validated>,
    evaluate: Option<Arc<Validated>>,
    logits: Option<Arc<Validated>>,
    begun: bool,
    restored: u64,
    result: Option<StepResult>,
    /// Logits' session, with the worker and the step that it was opened on.
    sampler: Option<(u64, u64, Session)>,
}

impl Guarded {
    /// Writes the initial state. No worker is started before the first step or a restored state.
    ///
    /// # Errors
    /// A program whose state has no place; a state that cannot be read.
    pub fn open(options: GuardedOptions) -> Result<Guarded, EngineError> {
        let GuardedOptions { mut supervisor, train, evaluate, logits, initial } = options;
        if let Some(initial) = initial {
            initial.each::<EngineError>(train.program(), |name, bytes| {
                Ok(supervisor.write_state(name, &bytes)?)
            })?;
        }
        Ok(Guarded {
            supervisor,
            train,
            evaluate,
            logits,
            begun: false,
            restored: 0,
            result: None,
            sampler: None,
        })
    }

    /// The supervisor, for summaries.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Says of how many committed steps the restored state is.
    pub fn restored_at(&mut self, step: u64) {
        self.restored = step;
    }

    /// No step comes any more.
    pub fn finish(&mut self) {
        self.supervisor.finish();
    }

    /// Starts the first worker, where none was started.
    ///
    /// # Errors
    /// The guard gave up.
    pub fn start(&mut self) -> Result<(), EngineError> {
        if !self.begun {
            self.begun = true;
            self.supervisor.check_fallbacks()?;
            self.supervisor.begin(self.restored)?;
        }
        Ok(())
    }
}

impl Engine for Guarded {
    fn describe(&self) -> Description {
        self.supervisor.describe().unwrap_or_else(|| Description {
            name: "guard".into(),
            hardware: String::new(),
            level: String::new(),
            versions: Vec::new(),
            dtypes: Vec::new(),
            memory_bytes: None,
            units: 0,
            deterministic: false,
            emulated: false,
            health: vec!["no worker is up".into()],
        })
    }

    fn program(&self) -> &Validated {
        &self.train
    }

    fn plan(&self) -> &MemoryPlan {
        self.supervisor.plan()
    }

    fn begin(&mut self, _step: u64, _batch: &StepBatch) -> Result<(), EngineError> {
        self.start()
    }

    /// The guard judges gradients and update, and commits: here is what it accepted.
    fn verdict(&mut self) -> Result<Verdict, EngineError> {
        let result = self.supervisor.advance()?;
        let value =
            |name: &str| result.scalars.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let parts = ["main", "mtp", "balance"].into_iter();
        let parts = parts.filter_map(|part| Some((part.to_string(), value(&format!("loss_{part}"))?)));
        let verdict = Verdict { loss: value("loss").unwrap_or(f64::NAN), parts: parts.collect() };
        self.result = Some(result);
        Ok(verdict)
    }

    fn commit(&mut self) -> Result<Committed, EngineError> {
        let gradient_norm = self.result.take().map_or(f64::NAN, |result| result.gradient_norm);
        Ok(Committed { gradient_norm })
    }

    fn checkpointed(&mut self, step: u64) {
        self.supervisor.checkpointed(step);
    }

    fn state(&mut self) -> Result<Box<dyn StateReader + '_>, EngineError> {
        let state = self.supervisor.committed_state()?;
        Ok(Box::new(HostState::new(&self.train, state)))
    }

    fn restore(&mut self, state: &mut StateTensors<'_>) -> Result<(), EngineError> {
        let expected = self.train.program().state().count();
        if state.len() != expected {
            let message = format!("the state has {} tensors, the program {expected}", state.len());
            return Err(Fault::new("guard", FaultKind::Driver { code: 0, message }).into());
        }
        for tensor in state {
            let tensor = tensor?;
            if !fits(&self.train, &tensor) {
                return Err(GuardError::State { name: tensor.name }.into());
            }
            self.supervisor.write_state(&tensor.name, &tensor.bytes)?;
        }
        Ok(())
    }

    fn evaluate(&mut self, batches: &BatchAt<'_>) -> Result<(f64, u64), EngineError> {
        self.start()?;
        let Some(program) = self.evaluate.clone() else { return Ok((0.0, 0)) };
        let evaluated = self
            .supervisor
            .with_worker(|device, session| inputs::evaluate(device, session, program.clone(), batches))?;
        Ok(evaluated)
    }

    fn logits(&mut self, window: &[i32]) -> Result<Vec<f32>, EngineError> {
        self.start()?;
        let Some(program) = self.logits.clone() else { return Ok(Vec::new()) };
        let step = self.supervisor.committed();
        let sampler = &mut self.sampler;
        let logits = self.supervisor.with_worker(|device, train| {
            let here = (device.generation(), step);
            let mut session = match sampler.take() {
                Some((generation, at, session)) if (generation, at) == here => session,
                // A session of another worker died with it.
                _ => train.open_over(device, program.clone())?,
            };
            let logits = inputs::logits(device, &mut session, window)?;
            *sampler = Some((here.0, here.1, session));
            Ok(logits)
        })?;
        Ok(logits)
    }
}
