//! The engine of a guarded run: devices in worker processes of this same binary.

use super::Programs;
use crate::command::Train;
use crate::exit::{Exit, Failure, OrExit};
use crate::progress::Progress;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use toprope_guard::policy::Policy;
use toprope_guard::remote::WorkerCommand;
use toprope_guard::supervisor::{DeviceSpec, Options, Recorder, Supervisor, insert_digests};
use toprope_program::check::{self, CheckLevel, CheckPlan, CheckSite};
use toprope_program::{Validated, validate};
use toprope_train::batch::StepInputs;
use toprope_train::checkpoint::Identity;
use toprope_train::engine::{Checkpoints, Guarded, GuardedOptions, GuardedSteps};
use toprope_train::recipe::Recipe;
use toprope_train::run_folder::RunFolder;
use toprope_world::World;

/// What the engine is made of.
pub(super) struct Parts<'a> {
    pub(super) arguments: &'a Train,
    pub(super) recipe: &'a Recipe,
    pub(super) world: &'a Arc<dyn World>,
    pub(super) programs: &'a Programs,
    pub(super) inputs: &'a Arc<StepInputs>,
    pub(super) folder: &'a Rc<RefCell<RunFolder>>,
    pub(super) identity: &'a Identity,
    pub(super) progress: &'a Rc<RefCell<Progress>>,
    pub(super) step_estimate: Duration,
}

/// This binary, as a worker.
pub(super) fn worker_command() -> Result<WorkerCommand, Failure> {
    let program = std::env::current_exe().or_exit(Exit::Internal)?;
    Ok(WorkerCommand { program, arguments: vec!["worker".into()] })
}

/// A device as the command line asks for it.
pub(super) fn spec(name: &str, arguments: &Train) -> DeviceSpec {
    // The level is the primary's; a fallback names its own, as in `cpu:avx2`.
    let level = arguments.level.clone().filter(|_| name == arguments.device);
    DeviceSpec { name: name.into(), threads: arguments.threads, level }
}

/// Builds the engine; starts nothing yet.
pub(super) fn engine(parts: Parts<'_>) -> Result<Guarded, Failure> {
    let Parts { arguments, recipe, world, programs, inputs, folder, identity, progress, step_estimate } =
        parts;
    let names = std::iter::once(&arguments.device).chain(&arguments.fallback);
    let (checkpoints, run_id) = {
        let folder = folder.borrow();
        (folder.checkpoints(), folder.run_id().to_string())
    };
    let durable = Checkpoints {
        world: world.clone(),
        folder: checkpoints,
        run_id: run_id.clone(),
        identity: identity.clone(),
        seed: recipe.seed,
        program: programs.train.clone(),
    };
    let (program, sites) = checked(&programs.train)?;
    let supervisor = Supervisor::new(Options {
        world: world.clone(),
        run: run_id,
        command: worker_command()?,
        devices: names.map(|name| spec(name, arguments)).collect(),
        program,
        sites,
        checks: CheckLevel::Sampled,
        state_on_device: false,
        retest: Arc::new(|_| (false, "no test was given".into())),
        layout: recipe.training.state.into(),
        policy: Policy::default(),
        steps: Box::new(GuardedSteps::new(inputs.clone())),
        durable: Box::new(durable),
        recorder: recorder(world, folder, progress),
        step_estimate,
    })
    .or_exit(Exit::Memory)?;
    let options = GuardedOptions {
        supervisor,
        train: programs.train.clone(),
        evaluate: Some(programs.evaluate.clone()),
        logits: Some(programs.logits.clone()),
        seed: recipe.seed,
    };
    Guarded::open(options).or_exit(Exit::Device)
}

/// The step with its checks and digests, validated.
fn checked(train: &Validated) -> Result<(Arc<Validated>, Vec<CheckSite>), Failure> {
    let mut program = train.program().clone();
    let sites = check::insert(&mut program, &CheckPlan { level: CheckLevel::Full });
    insert_digests(&mut program);
    let program = validate(program).map_err(|defects| {
        let listed: Vec<String> = defects.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, format!("the checked program is not valid:\n{}", listed.join("\n")))
    })?;
    Ok((Arc::new(program), sites))
}

/// Writes to the journal and tells the user.
fn recorder(
    world: &Arc<dyn World>,
    folder: &Rc<RefCell<RunFolder>>,
    progress: &Rc<RefCell<Progress>>,
) -> Recorder {
    let (world, folder, progress) = (world.clone(), folder.clone(), progress.clone());
    Box::new(move |entry| {
        let written = folder.borrow_mut().event(&*world, entry);
        if let Err(error) = written {
            progress.borrow().line(&format!("warning: {error}"));
        }
    })
}
