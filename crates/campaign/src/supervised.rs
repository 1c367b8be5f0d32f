//! What the guard costs a run in which nothing fails: steps of a worker process under a supervisor, with checks and a journal,
//! beside the same steps in this process with nothing around them, in turn.

use crate::CampaignError;
use crate::cost::Cost;
use crate::scene::{checked, device, inputs, wrong};
use crate::statistics::median;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use toprope_guard::remote::WorkerCommand;
use toprope_guard::supervisor::{
    CommittedState, DeviceSpec, Durable, News, Options, Recorder, Supervisor, TakeValue, insert_digests,
};
use toprope_program::check::CheckLevel;
use toprope_program::{StateLayout, validate};
use toprope_train::batch::{StepBatch, StepInputs};
use toprope_train::engine::{
    Engine, EngineError, Guarded, GuardedOptions, GuardedSteps, Local, LocalOptions,
};
use toprope_train::initial::InitialState;
use toprope_train::recipe::Recipe;
use toprope_world::{FileWriter, World};

/// Measures a recipe: `pairs` pairs for each level. `worker` starts a worker, `journal` is where decisions are written down as
/// a run would.
///
/// # Errors
/// A recipe that does not build or has too few steps, a device that fails, a worker that does not start.
pub fn measure(
    world: &Arc<dyn World>,
    recipe: &Recipe,
    threads: usize,
    pairs: usize,
    worker: &WorkerCommand,
    journal: &Path,
) -> Result<Vec<Cost>, CampaignError> {
    let inputs = Arc::new(inputs(recipe)?);
    let (train, _) = checked(recipe, CheckLevel::Off)?;
    let options = LocalOptions {
        train: train.clone(),
        evaluate: None,
        logits: None,
        layout: StateLayout::Double,
        initial: Some(Arc::new(InitialState::drawn(recipe.seed))),
        profile: None,
    };
    let failed = |error: EngineError| wrong(&recipe.name, error);
    let bare = Local::open(device(threads)?, options).map_err(failed)?;
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(bare)];
    let mut checks = 0;
    for level in [CheckLevel::Sampled, CheckLevel::Full] {
        let (program, sites) = checked(recipe, CheckLevel::Full)?;
        checks = sites.len();
        let mut program = program.program().clone();
        insert_digests(&mut program);
        let program = validate(program).map_err(|defects| {
            wrong(&recipe.name, defects.first().map(ToString::to_string).unwrap_or_default())
        })?;
        let spec = DeviceSpec {
            name: "cpu".into(),
            threads: Some(threads),
            level: None,
            command: None,
            in_host_memory: true,
        };
        let supervisor = Supervisor::new(Options {
            world: world.clone(),
            run: "cost".into(),
            command: worker.clone(),
            devices: vec![spec],
            program: Arc::new(program),
            sites,
            checks: level,
            layout: StateLayout::Double,
            shadow: false,
            state_on_device: false,
            retest: Arc::new(|_| (false, "a device that fails here ends the measurement".into())),
            policy: recipe.guard.clone(),
            steps: Box::new(GuardedSteps::new(inputs.clone())),
            durable: Box::new(NoCheckpoints),
            recorder: recorder(world.files().append(journal)?),
            faults: Vec::new(),
            on_own_fault: Box::new(|_| {}),
            step_estimate: Duration::from_secs(5),
        });
        let supervisor = supervisor.map_err(|error| wrong(&recipe.name, error))?;
        let options = GuardedOptions {
            supervisor,
            train: train.clone(),
            evaluate: None,
            logits: None,
            initial: Some(Arc::new(InitialState::drawn(recipe.seed))),
        };
        let mut guarded = Guarded::open(options).map_err(failed)?;
        guarded.start().map_err(failed)?;
        engines.push(Box::new(guarded));
    }
    let seconds = in_turn(world, &mut engines, &inputs, pairs).map_err(failed)?;
    let scene = format!("{} {}", recipe.name, recipe.training.dtype);
    let mut costs = Vec::new();
    for (which, level) in [(1, "supervisor + sampled"), (2, "supervisor + full")] {
        let ratios: Vec<f64> =
            seconds[which].iter().zip(&seconds[0]).map(|(on, off)| on / off - 1.0).collect();
        if let (Some(overhead), Some(step_seconds)) = (median(&ratios), median(&seconds[0])) {
            costs.push(Cost { scene: scene.clone(), level, overhead, step_seconds, checks });
        }
    }
    Ok(costs)
}

/// Each engine's seconds of each step.
fn in_turn(
    world: &Arc<dyn World>,
    engines: &mut [Box<dyn Engine>],
    inputs: &StepInputs,
    pairs: usize,
) -> Result<Vec<Vec<f64>>, EngineError> {
    let mut seconds = vec![Vec::new(); engines.len()];
    // The first steps warm caches and threads and are not counted.
    for turn in 0..pairs + WARM {
        let batch = inputs.step(turn as u64);
        for place in 0..engines.len() {
            // Each takes each place in its turn, so that drift hits all alike.
            let which = (place + turn) % engines.len();
            let took = step(world, &mut *engines[which], turn as u64, &batch)?;
            if turn >= WARM {
                seconds[which].push(took);
            }
        }
    }
    Ok(seconds)
}

/// Steps that are not counted.
const WARM: usize = 3;

fn step(
    world: &Arc<dyn World>,
    engine: &mut dyn Engine,
    number: u64,
    batch: &StepBatch,
) -> Result<f64, EngineError> {
    let started = world.clock().monotonic();
    engine.begin(number, batch)?;
    engine.verdict()?;
    engine.commit()?;
    Ok(world.clock().monotonic().saturating_sub(started).as_secs_f64())
}

/// The journal, a line for each decision. Nothing that fails to be written stops a step, as in a run.
fn recorder(mut journal: Box<dyn FileWriter>) -> Recorder {
    Box::new(move |news| {
        if let News::Decision { entry, .. } = news {
            let mut line = serde_json::to_vec(entry).unwrap_or_default();
            line.push(b'\n');
            let _ = journal.write(&line);
        }
    })
}

/// No checkpoint is written or read: nothing fails, and checkpoints are another cost.
struct NoCheckpoints;

impl Durable for NoCheckpoints {
    fn newest(&mut self, _take: &mut TakeValue<'_>) -> Result<Option<u64>, String> {
        Ok(None)
    }

    fn write(&mut self, _step: u64, _state: &CommittedState<'_>) -> Result<(), String> {
        Ok(())
    }
}
