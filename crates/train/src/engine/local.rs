//! Runs steps on a device of this process.

use super::{
    BatchAt, Committed, Engine, EngineError, StateReader, StateTensors, Verdict, fits, inputs, specs,
};
use crate::batch::StepBatch;
use crate::checkpoint::TensorSpec;
use crate::initial::InitialState;
use std::sync::Arc;
use toprope_program::{
    Description, Device, Fault, FaultKind, MemoryPlan, Range, Session, StateLayout, Validated, Width,
};
use toprope_world::World;

/// What a [`Local`] engine is made of.
pub struct LocalOptions {
    /// The training step.
    pub train: Arc<Validated>,
    /// The loss without gradients, where the run evaluates.
    pub evaluate: Option<Arc<Validated>>,
    /// Logits of one window, where the run samples.
    pub logits: Option<Arc<Validated>>,
    /// Whether the next state takes the current one's place.
    pub layout: StateLayout,
    /// The state before the first step; none where one will be restored.
    pub initial: Option<Arc<InitialState>>,
    /// Whose clock times each instruction, where the run is profiled.
    pub profile: Option<Arc<dyn World>>,
}

/// Seconds of each instruction of the step, summed over runs.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Runs of `accumulate`.
    pub runs: u64,
    /// By instruction of `accumulate`.
    pub accumulate: Vec<f64>,
    /// Runs of `update`.
    pub updates: u64,
    /// By instruction of `update`.
    pub update: Vec<f64>,
}

/// The engine of a run without a guard.
pub struct Local {
    device: Box<dyn Device>,
    train: Session,
    evaluate: Option<Arc<Validated>>,
    logits: Option<Arc<Validated>>,
    step: u64,
    /// Logits' session over the state of the step that it was opened at.
    sampler: Option<(u64, Session)>,
    timing: Option<Arc<dyn World>>,
    profile: Profile,
}

impl Local {
    /// Prepares the program on the device and writes the initial state.
    ///
    /// # Errors
    /// The device's fault; a state that cannot be read.
    pub fn open(mut device: Box<dyn Device>, options: LocalOptions) -> Result<Local, EngineError> {
        let train = Session::open(&mut *device, options.train.clone(), Width::Native, options.layout)?;
        if let Some(initial) = &options.initial {
            initial.each::<EngineError>(options.train.program(), |name, bytes| {
                Ok(train.write(&mut *device, name, &bytes)?)
            })?;
        }
        Ok(Local {
            device,
            train,
            evaluate: options.evaluate,
            logits: options.logits,
            step: 0,
            sampler: None,
            timing: options.profile,
            profile: Profile::default(),
        })
    }

    /// Where the time went, for a run that was opened to be profiled.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    fn run(&mut self, range: Range) -> Result<(), Fault> {
        let device = &mut *self.device;
        let ran = match &self.timing {
            None => self.train.run(device, range),
            Some(world) => {
                let profile = &mut self.profile;
                let (runs, times) = match range {
                    Range::Accumulate => (&mut profile.runs, &mut profile.accumulate),
                    Range::Update => (&mut profile.updates, &mut profile.update),
                };
                *runs += 1;
                self.train.run_timed(device, range, &|| world.clock().monotonic(), times)
            }
        };
        ran.map_err(|fault| self.at_step(fault))
    }

    fn fault(&self, kind: FaultKind) -> Fault {
        let mut fault = Fault::new(self.device.describe().name, kind);
        fault.step = Some(self.step);
        fault
    }

    fn at_step(&self, mut fault: Fault) -> Fault {
        fault.step.get_or_insert(self.step);
        fault
    }
}

impl Engine for Local {
    fn describe(&self) -> Description {
        self.device.describe()
    }

    fn program(&self) -> &Validated {
        self.train.program()
    }

    fn plan(&self) -> &MemoryPlan {
        self.train.plan()
    }

    fn begin(&mut self, step: u64, batch: &StepBatch) -> Result<(), EngineError> {
        self.step = step;
        inputs::write_scalars(&mut *self.device, &self.train, batch)?;
        for (index, micro) in batch.micro.iter().enumerate() {
            self.train.set_first(index == 0);
            inputs::write_micro_batch(&mut *self.device, &mut self.train, micro)?;
            self.run(Range::Accumulate)?;
        }
        Ok(())
    }

    fn verdict(&mut self) -> Result<Verdict, EngineError> {
        let loss = f64::from(self.train.read_scalar(&mut *self.device, "loss")?);
        let mut parts = Vec::new();
        for part in ["main", "mtp", "balance"] {
            let name = format!("loss_{part}");
            if self.train.has(&name) {
                parts.push((part.into(), f64::from(self.train.read_scalar(&mut *self.device, &name)?)));
            }
        }
        if !loss.is_finite() {
            return Err(self.fault(FaultKind::NonFinite { value: "loss".into() }).into());
        }
        Ok(Verdict { loss, parts })
    }

    fn commit(&mut self) -> Result<Committed, EngineError> {
        self.run(Range::Update)?;
        let gradient_norm = f64::from(self.train.read_scalar(&mut *self.device, "gradient_norm")?);
        if !gradient_norm.is_finite() {
            return Err(self.fault(FaultKind::NonFinite { value: "gradient_norm".into() }).into());
        }
        self.train.flip();
        Ok(Committed { gradient_norm })
    }

    fn state(&mut self) -> Result<Box<dyn StateReader + '_>, EngineError> {
        let tensors = specs(self.train.program());
        Ok(Box::new(DeviceState { device: &mut *self.device, session: &self.train, tensors }))
    }

    fn restore(&mut self, state: &mut StateTensors<'_>) -> Result<(), EngineError> {
        let expected = self.train.program().program().state().count();
        if state.len() != expected {
            let message = format!("the state has {} tensors, the program {expected}", state.len());
            return Err(self.fault(FaultKind::Driver { code: 0, message }).into());
        }
        for tensor in state {
            let tensor = tensor?;
            if !fits(self.train.program(), &tensor) {
                let message = format!("the state's `{}` does not fit the program", tensor.name);
                return Err(self.fault(FaultKind::Driver { code: 0, message }).into());
            }
            self.train.write(&mut *self.device, &tensor.name, &tensor.bytes)?;
        }
        self.sampler = None;
        Ok(())
    }

    fn evaluate(&mut self, batches: &BatchAt<'_>) -> Result<(f64, u64), EngineError> {
        let Some(program) = self.evaluate.clone() else { return Ok((0.0, 0)) };
        Ok(inputs::evaluate(&mut *self.device, &self.train, program, batches)?)
    }

    fn logits(&mut self, window: &[i32]) -> Result<Vec<f32>, EngineError> {
        let Some(program) = self.logits.clone() else { return Ok(Vec::new()) };
        // The state's halves change places at each commit, so a session over an older step's is of no use.
        let mut session = match self.sampler.take() {
            Some((step, session)) if step == self.step => session,
            stale => {
                if let Some((_, session)) = stale {
                    session.close(&mut *self.device)?;
                }
                self.train.open_over(&mut *self.device, program)?
            }
        };
        let logits = inputs::logits(&mut *self.device, &mut session, window)?;
        self.sampler = Some((self.step, session));
        Ok(logits)
    }
}

/// The committed state on the device.
struct DeviceState<'a> {
    device: &'a mut dyn Device,
    session: &'a Session,
    tensors: Vec<TensorSpec>,
}

impl StateReader for DeviceState<'_> {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read(&mut self, tensor: usize, offset_bytes: u64, into: &mut [u8]) -> Result<(), EngineError> {
        let name = &self.tensors[tensor].name;
        Ok(self.session.read_part(self.device, name, offset_bytes as usize, into)?)
    }
}
