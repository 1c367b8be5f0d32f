//! The guard on the emulated NPU: runs whose workers meet the emulator's defects, each counted by the journal's own ledger and
//! held against what was switched on. Everything here is *emulated*.

pub mod matrix; // every code and every call that hangs
pub mod run; // one supervised run with defects
pub mod schedules; // random ones

use crate::CampaignError;
use crate::scene::{checked, inputs, recipe, wrong};
use run::Disturbance;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use toprope_ascend::table::calls;
use toprope_guard::remote::WorkerCommand;
use toprope_guard::supervisor::insert_digests;
use toprope_program::check::{CheckLevel, CheckSite};
use toprope_program::{DType, Validated, validate};
use toprope_train::batch::StepInputs;
use toprope_train::checkpoint::OwnedTensor;
use toprope_train::recipe::Recipe;
use toprope_world::World;

/// The device under test.
pub const DEVICE: &str = "ascend:0";

/// The device that is trusted.
pub const FALLBACK: &str = "cpu";

/// Steps of a run.
pub const STEPS: u64 = 8;

/// What all runs share.
pub struct Bench {
    world: Arc<dyn World>,
    /// The binary whose worker holds the devices.
    worker: WorkerCommand,
    recipe: Recipe,
    inputs: Arc<StepInputs>,
    train: Arc<Validated>,
    program: Arc<Validated>,
    sites: Vec<CheckSite>,
    /// The contract's operators that call an operator of CANN's.
    callers: BTreeMap<&'static str, BTreeSet<&'static str>>,
    /// Where the files are that defects ask for.
    folder: PathBuf,
    /// The state and the losses of a run that nobody disturbed.
    calm: Calm,
}

/// A run that nobody disturbed.
#[derive(Default)]
struct Calm {
    state: Vec<OwnedTensor>,
    losses: Vec<f64>,
}

/// What a run showed.
#[derive(Debug)]
pub struct Trial {
    /// What was switched on.
    pub name: String,
    /// Whether it came to pass: a call that is never made cannot fail.
    pub met: bool,
    /// Batches lost and doubled, by the ledger.
    pub lost: u64,
    /// See `lost`.
    pub doubled: u64,
    /// What was not as it must be, in words; empty where all was.
    pub wrong: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}

/// Totals of trials.
#[derive(Debug, Default)]
pub struct Totals {
    /// How many.
    pub trials: usize,
    /// Of these, defects that nothing met.
    pub unmet: Vec<String>,
    /// Batches lost.
    pub lost: u64,
    /// Batches doubled.
    pub doubled: u64,
    /// Trials in which something was wrong.
    pub wrong: usize,
    /// Wall time.
    pub seconds: f64,
}

impl Totals {
    /// Whether every promise held.
    pub fn passed(&self) -> bool {
        self.trials > 0 && self.lost == 0 && self.doubled == 0 && self.wrong == 0
    }

    /// The line of totals.
    pub fn line(&self, what: &str) -> String {
        format!(
            "{what} (emulated): {} runs, {} batches lost, {} doubled, {} runs with something wrong or wrongly named, {} defects \
             that nothing met, {:.0} s",
            self.trials,
            self.lost,
            self.doubled,
            self.wrong,
            self.unmet.len(),
            self.seconds
        )
    }
}

impl Bench {
    /// Builds the recipe and runs it once, undisturbed.
    ///
    /// # Errors
    /// No emulator in reach, a recipe that does not build, a worker that does not start.
    pub fn new(world: &Arc<dyn World>, worker: WorkerCommand, name: &str) -> Result<Bench, CampaignError> {
        let emulator = toprope_devices::ascend_emulator(DEVICE).map_err(|error| wrong(DEVICE, error))?;
        if emulator.is_none() {
            return Err(wrong(
                DEVICE,
                "is a real NPU here, and the campaign switches on the emulator's defects",
            ));
        }
        let recipe = recipe(name, DType::Bf16, &[format!("training.steps={STEPS}")])?;
        let inputs = Arc::new(inputs(&recipe)?);
        let (train, _) = checked(&recipe, CheckLevel::Off)?;
        let (program, sites) = checked(&recipe, CheckLevel::Full)?;
        let mut program = program.program().clone();
        insert_digests(&mut program);
        let program = validate(program).map_err(|defects| {
            wrong(&recipe.name, defects.first().map(ToString::to_string).unwrap_or_default())
        })?;
        let mut callers: BTreeMap<&'static str, BTreeSet<&'static str>> = BTreeMap::new();
        for (operator, names) in calls(&program, true) {
            for name in names {
                callers.entry(name).or_default().insert(operator);
            }
        }
        let own = world.processes().own_id();
        let folder = std::env::temp_dir().join(format!("toprope-campaign-{own}"));
        world.files().create_folder(&folder)?;
        let mut bench = Bench {
            world: world.clone(),
            worker,
            recipe,
            inputs,
            train,
            program: Arc::new(program),
            sites,
            callers,
            folder,
            calm: Calm::default(),
        };
        let calm = bench.run(&Disturbance::none())?;
        let losses = calm.losses.clone();
        match calm.state {
            Ok(state) if calm.faults.is_empty() => bench.calm = Calm { state, losses },
            Ok(_) => return Err(wrong("undisturbed", format!("{:?}", calm.faults))),
            Err(reason) => return Err(wrong("undisturbed", reason)),
        }
        Ok(bench)
    }

    /// CANN's operators that a step without checks calls: those are called in each step.
    pub fn operators(&self) -> Vec<&'static str> {
        let mut names: BTreeSet<&'static str> = BTreeSet::new();
        names.extend(calls(&self.train, true).into_values().flatten());
        names.into_iter().collect()
    }

    /// Gives the folder of switches back.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn close(self) -> Result<(), CampaignError> {
        Ok(self.world.files().remove_folder(&self.folder)?)
    }
}

/// Runs jobs on a few threads and tells each trial as it ends.
///
/// # Errors
/// The first run that could not be made.
pub fn all<T: Sync>(
    bench: &Bench,
    jobs: &[T],
    threads: usize,
    job: impl Fn(&Bench, &T) -> Result<Trial, CampaignError> + Sync,
    mut tell: impl FnMut(&Trial),
) -> Result<Totals, CampaignError> {
    let started = bench.world.clock().monotonic();
    let next = AtomicUsize::new(0);
    let (sender, results) = channel();
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, next, job) = (sender.clone(), &next, &job);
            scope.spawn(move || {
                while let Some(one) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send(job(bench, one)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for result in results {
            let trial = result?;
            tell(&trial);
            if trial.met {
                totals.trials += 1;
            } else {
                totals.unmet.push(trial.name.clone());
            }
            totals.lost += trial.lost;
            totals.doubled += trial.doubled;
            totals.wrong += usize::from(!trial.wrong.is_empty());
        }
        Ok::<(), CampaignError>(())
    })?;
    totals.seconds = bench.world.clock().monotonic().saturating_sub(started).as_secs_f64();
    Ok(totals)
}
