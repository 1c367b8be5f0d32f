//! State and batch of any step of a run, or of a recipe that nobody has run yet. It reads a run's folder and writes nothing
//! there.

use crate::exit::{Exit, Failure, OrExit};
use crate::verb::prepare::Prepared;
use crate::verb::recipe;
use crate::verb::train::{initial_state, not_begun};
use crate::verb::validated::validated;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toprope_devices::OpenOptions;
use toprope_diagnose::step::{MicroValues, StepValues};
use toprope_guard::journal::RunRecord;
use toprope_model::deepseek_v3;
use toprope_program::shape::sizes;
use toprope_program::{DType, Device, Role, Tensor, Validated, Width};
use toprope_train::batch::StepInputs;
use toprope_train::checkpoint::{CHECKPOINTS_FOLDER, Identity, OwnedTensor, newest_intact_until};
use toprope_train::engine::{Engine, Local, LocalOptions};
use toprope_train::recipe::{Recipe, built_in};
use toprope_world::{EntryKind, RealWorld, World};

/// Where steps come from.
pub struct Source {
    /// What was named.
    pub name: String,
    /// The recipe.
    pub recipe: Recipe,
    /// The training step.
    pub program: Arc<Validated>,
    /// The run's folder, where it is one.
    pub folder: Option<PathBuf>,
    inputs: Arc<StepInputs>,
    identity: Identity,
    /// Steps that the run has committed; none without a run.
    committed: Option<u64>,
}

impl Source {
    /// A run's folder, or a recipe by its name or file.
    pub fn open(world: &dyn World, what: &str, sets: &[String], threads: usize) -> Result<Source, Failure> {
        let path = Path::new(what);
        let kind = world.files().inspect(path).or_exit(Exit::Run)?;
        let folder = match kind {
            Some(EntryKind::Folder) if built_in(what).is_none() => Some(path.to_path_buf()),
            None if built_in(what).is_none() && !what.ends_with(".toml") => {
                return Err(Failure::new(
                    Exit::Run,
                    format!(
                        "{what}: there is no such run folder, and no recipe of this name\nhint: name the folder of a run, such as runs/tiny-moe, or a recipe, such as tiny-moe"
                    ),
                ));
            }
            _ => None,
        };
        let (recipe, committed) = match &folder {
            None => (recipe::load(what, sets)?, None),
            Some(folder) => {
                let kept = folder.join("recipe.toml");
                if world.files().inspect(&kept).or_exit(Exit::Run)?.is_none() {
                    return Err(Failure::new(
                        Exit::Run,
                        format!(
                            "{what} is not a run's folder (no recipe.toml)\nhint: name the folder that `toprope train` printed as `run folder`"
                        ),
                    ));
                }
                let record = RunRecord::read(world, folder).or_exit(Exit::Run)?;
                (recipe::load(&kept.to_string_lossy(), sets)?, Some(record.committed_steps()))
            }
        };
        let program = deepseek_v3::build_train(&recipe.model, &recipe.training_options(), &recipe.name);
        let program = validated(program.or_exit(Exit::Recipe)?)?;
        let Prepared { inputs, identity, .. } =
            Prepared::read(world, &recipe, &program, folder.as_deref(), threads)?;
        Ok(Source { name: what.into(), recipe, program, folder, inputs, identity, committed })
    }

    /// Refuses a step that the run does not have.
    pub fn check_step(&self, step: u64) -> Result<(), Failure> {
        let last = match self.committed {
            // The step behind the last committed one is the one that may have failed.
            Some(committed) => committed.min(self.recipe.training.steps.saturating_sub(1)),
            None => self.recipe.training.steps.saturating_sub(1),
        };
        if step <= last {
            return Ok(());
        }
        let why = match self.committed {
            Some(committed) => format!("{} has committed {committed} step(s)", self.name),
            None => format!("recipe {} has {} step(s)", self.name, self.recipe.training.steps),
        };
        Err(Failure::new(
            Exit::Run,
            format!(
                "there is no step {step}: {why}\nhint: steps are counted from 0; the last one is --step {last}"
            ),
        ))
    }

    /// The last step that the run committed; 0 where there is no run.
    pub fn last_step(&self) -> u64 {
        self.committed.map_or(0, |committed| committed.saturating_sub(1))
    }

    /// The state before a step, replayed on a device from the newest checkpoint before it.
    pub fn state(
        &self,
        world: &dyn World,
        device: Box<dyn Device>,
        step: u64,
    ) -> Result<Vec<OwnedTensor>, Failure> {
        let mut from = 0;
        let mut loaded = None;
        if let Some(folder) = &self.folder {
            let checkpoints = folder.join(CHECKPOINTS_FOLDER);
            let (found, skipped) =
                newest_intact_until(world, &checkpoints, &self.identity, step).or_exit(Exit::Run)?;
            for checkpoint in skipped {
                eprintln!("warning: {checkpoint}");
            }
            if let Some(found) = found {
                from = found.manifest().header.step;
                loaded = Some(found);
            }
        }
        let own: Arc<dyn World> = Arc::new(RealWorld::new());
        let options = LocalOptions {
            train: self.program.clone(),
            evaluate: None,
            logits: None,
            layout: self.recipe.training.state.into(),
            initial: loaded.is_none().then(|| Arc::new(initial_state(&self.recipe, &own))),
            profile: None,
        };
        let mut engine = Local::open(device, options).map_err(|error| not_begun(&error))?;
        if let Some(checkpoint) = loaded {
            engine.restore(&mut checkpoint.tensors()).map_err(|error| not_begun(&error))?;
        }
        if from < step {
            eprintln!("replaying steps {from} to {} on {}", step - 1, engine.describe().name);
        }
        for number in from..step {
            let batch = self.inputs.step(number);
            engine.begin(number, &batch).or_exit(Exit::Device)?;
            engine.verdict().or_exit(Exit::Device)?;
            engine.commit().or_exit(Exit::Device)?;
        }
        engine.snapshot().or_exit(Exit::Device)
    }

    /// The values of a step: a state and the step's batch.
    pub fn values(&self, step: u64, state: &[OwnedTensor]) -> Result<StepValues, Failure> {
        let program = self.program.program();
        let batch = self.inputs.step(step);
        let mut values = Vec::new();
        for tensor in state {
            let id =
                program.find(&tensor.name).filter(|id| matches!(program.value(*id).role, Role::State { .. }));
            let tensor_of = |id| {
                let value = program.value(id);
                Tensor::from_bytes(value.dtype, &sizes(&value.shape, &[]), Width::Native, &tensor.bytes)
            };
            let missing =
                || Failure::new(Exit::Run, format!("the state's `{}` does not fit the program", tensor.name));
            values.push((tensor.name.clone(), id.and_then(tensor_of).ok_or_else(missing)?));
        }
        let plain = |dtype, numbers: Vec<f64>| Tensor { dtype, sizes: vec![numbers.len()], data: numbers };
        for (name, numbers) in &batch.scalars {
            if program.find(name).is_some() {
                values.push((
                    name.clone(),
                    plain(DType::F32, numbers.iter().copied().map(f64::from).collect()),
                ));
            }
        }
        let micro = batch
            .micro
            .iter()
            .map(|micro| {
                let there = micro.integers.iter().filter(|(name, _)| program.find(name).is_some());
                let values = there.map(|(name, numbers)| {
                    (name.clone(), plain(DType::I32, numbers.iter().copied().map(f64::from).collect()))
                });
                let symbols = program.symbols.iter().map(|_| micro.sequences).collect();
                MicroValues { symbols, values: values.collect() }
            })
            .collect();
        Ok(StepValues { values, micro })
    }
}

/// Opens a device by its name.
pub fn open_device(
    name: &str,
    threads: Option<usize>,
    python: Option<&Path>,
) -> Result<Box<dyn Device>, Failure> {
    let options = OpenOptions { threads, python: python.map(Path::to_path_buf), ..OpenOptions::default() };
    toprope_devices::open(name, &options).or_exit(Exit::Device)
}
