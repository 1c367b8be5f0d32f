//! `toprope-campaign`: injects faults, counts what is caught, prints tables and writes JSON.

use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use toprope_campaign::draw::{Persistence, planned};
use toprope_campaign::npu::{Bench, Totals, Trial, all, matrix, schedules};
use toprope_campaign::report::{Report, costs_text};
use toprope_campaign::scene::{Scene, recipe};
use toprope_campaign::{CampaignError, clean, cost, supervised, trial};
use toprope_guard::remote::WorkerCommand;
use toprope_program::DType;
use toprope_world::{Files, RealWorld, World, write_durably};

#[derive(Parser)]
#[command(about = "Injects faults into training steps and counts which are caught")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// The guard on the emulated NPU: every code of the runtime at launch and at synchronisation, passing and sticky, a hang
    /// at every call, and random schedules; the batches that were lost or doubled, and what was named wrongly.
    Npu(NpuArguments),
    /// What the guard costs when nothing fails: a worker under a supervisor, with checks, beside nothing around the step.
    Cost {
        /// Pairs of steps with and without, for each level.
        #[arg(long, default_value_t = 200)]
        pairs: usize,
        /// Recipes, with commas.
        #[arg(long, value_delimiter = ',', default_value = "bench-dense,bench-moe")]
        recipes: Vec<String>,
        /// bf16, f32 or both.
        #[arg(long, value_delimiter = ',', default_value = "bf16")]
        dtypes: Vec<String>,
        /// Threads of the device.
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Measure the checks alone too, in one process.
        #[arg(long)]
        checks_alone: bool,
        /// Where to write JSON.
        #[arg(long, default_value = "target/cost.json")]
        out: PathBuf,
    },
}

#[derive(Args)]
struct NpuArguments {
    /// Every so many of the matrix's defects: 1 is all of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Random schedules.
    #[arg(long, default_value_t = 200)]
    schedules: u64,
    /// Decides what the schedules are.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The recipe.
    #[arg(long, default_value = "tiny-dense")]
    recipe: String,
    /// Runs beside each other.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only defects whose name has this in it.
    #[arg(long)]
    only: Option<String>,
    /// Tell every run, not only those in which something was wrong.
    #[arg(long)]
    verbose: bool,
}

#[derive(Args)]
struct RunArguments {
    /// Faults on the tiny recipes.
    #[arg(long, default_value_t = 5000)]
    faults: u64,
    /// Faults on the bench recipes.
    #[arg(long, default_value_t = 200)]
    bench_faults: u64,
    /// Decides all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Clean steps of each tiny recipe and dtype.
    #[arg(long, default_value_t = 2250)]
    clean_steps: u64,
    /// Clean steps of each bench recipe.
    #[arg(long, default_value_t = 0)]
    bench_clean_steps: u64,
    /// Lasting faults that are run on step by step under `sampled`.
    #[arg(long, default_value_t = 200)]
    lasting: u64,
    /// Threads of the device.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// A few faults of each kind, as CI runs it.
    #[arg(long)]
    quick: bool,
    /// Where to write JSON.
    #[arg(long, default_value = "target/campaign.json")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let world = RealWorld::default();
    let done = match arguments.command {
        Some(Command::Cost { pairs, recipes, dtypes, threads, checks_alone, out }) => {
            let world: Arc<dyn World> = Arc::new(world);
            costs(&world, pairs, (&recipes, &dtypes), threads, checks_alone, &out)
        }
        Some(Command::Npu(arguments)) => {
            let world: Arc<dyn World> = Arc::new(world);
            npu(&world, &arguments)
        }
        None => campaign(&world, &arguments.run),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn json(files: &dyn Files, out: &Path, value: &impl serde::Serialize) -> Result<(), CampaignError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| CampaignError::Recipe { recipe: "JSON".into(), reason: error.to_string() })?;
    write_durably(files, out, &text)?;
    println!("{}", out.display());
    Ok(())
}

fn dtype_of(name: &str) -> Result<DType, CampaignError> {
    let known = DType::from_name(name).filter(|dtype| dtype.is_float());
    known.ok_or_else(|| CampaignError::Recipe {
        recipe: name.into(),
        reason: "the dtype is bf16 or f32".into(),
    })
}

/// The binary beside this one, as a worker.
fn worker() -> Result<WorkerCommand, CampaignError> {
    let reason = |reason: String| CampaignError::Recipe { recipe: "worker".into(), reason };
    let program =
        std::env::current_exe().map_err(|error| reason(error.to_string()))?.with_file_name("toprope");
    if !program.exists() {
        return Err(reason(format!(
            "{} is not there: `cargo build --release -p toprope` builds it",
            program.display()
        )));
    }
    Ok(WorkerCommand { program, arguments: vec!["worker".into()], script: None })
}

fn npu(world: &Arc<dyn World>, arguments: &NpuArguments) -> Result<bool, CampaignError> {
    let bench = Bench::new(world, worker()?, &arguments.recipe)?;
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let cells: Vec<matrix::Cell> =
        matrix::cells(&bench).into_iter().filter(|cell| wanted(&cell.name())).collect();
    let cells: Vec<matrix::Cell> = cells.into_iter().step_by(arguments.every as usize).collect();
    let seeds: Vec<u64> = (0..arguments.schedules).map(|turn| arguments.seed + turn).collect();
    let tell = |trial: &Trial| {
        if arguments.verbose || !trial.wrong.is_empty() {
            let verdict = if trial.wrong.is_empty() { "right".into() } else { trial.wrong.join("; ") };
            println!("{:5.1} s  {}: {verdict}", trial.seconds, trial.name);
        }
    };
    let matrix = all(&bench, &cells, arguments.threads, matrix::trial, tell)?;
    let schedules = all(&bench, &seeds, arguments.threads, schedules::trial, tell)?;
    bench.close()?;
    for unmet in &matrix.unmet {
        println!("no run calls: {unmet}");
    }
    println!("{}", matrix.line("codes and hangs"));
    println!("{}", schedules.line("random schedules"));
    let passed = |totals: &Totals, asked: usize| asked == 0 || totals.passed();
    Ok(passed(&matrix, cells.len()) && passed(&schedules, seeds.len()))
}

fn costs(
    world: &Arc<dyn World>,
    pairs: usize,
    (recipes, dtypes): (&[String], &[String]),
    threads: usize,
    checks_alone: bool,
    out: &Path,
) -> Result<bool, CampaignError> {
    let clock = || world.clock().monotonic();
    let worker = worker()?;
    let journal = out.with_extension("journal.jsonl");
    let mut costs = Vec::new();
    for name in recipes {
        for dtype in dtypes {
            let steps = format!("training.steps={}", pairs + 10);
            let recipe = recipe(name, dtype_of(dtype)?, &[steps])?;
            if checks_alone {
                costs.extend(cost::measure(&recipe, threads, pairs, 1, &clock)?);
            }
            costs.extend(supervised::measure(world, &recipe, threads, pairs, &worker, &journal)?);
        }
    }
    print!("{}", costs_text(&costs));
    json(world.files(), out, &costs)?;
    Ok(true)
}

/// A recipe of the campaign: its name, dtype, the steps that are recorded.
struct Plan {
    name: &'static str,
    dtype: DType,
    freeze: &'static [u64],
    faults: u64,
    clean_steps: u64,
    lasting: u64,
}

fn plans(arguments: &RunArguments) -> Vec<Plan> {
    let quick = arguments.quick;
    let (faults, bench) = if quick { (400, 0) } else { (arguments.faults, arguments.bench_faults) };
    let clean = if quick { 50 } else { arguments.clean_steps };
    let lasting = if quick { 20 } else { arguments.lasting };
    let mut plans = Vec::new();
    for name in ["tiny-dense", "tiny-moe"] {
        for dtype in [DType::Bf16, DType::F32] {
            // Before, in and behind the warm-up.
            let (faults, lasting) = (faults.div_ceil(4), lasting.div_ceil(4));
            plans.push(Plan { name, dtype, freeze: &[2, 12, 40], faults, clean_steps: clean, lasting });
        }
    }
    for name in ["bench-dense", "bench-moe"] {
        for dtype in [DType::Bf16, DType::F32] {
            let (faults, clean_steps) = (bench.div_ceil(4), arguments.bench_clean_steps.div_ceil(2));
            let clean_steps = if quick { 0 } else { clean_steps };
            plans.push(Plan { name, dtype, freeze: &[2], faults, clean_steps, lasting: 0 });
        }
    }
    plans.retain(|plan| plan.faults > 0 || plan.clean_steps > 0);
    plans
}

/// Clean repeats of each recorded step.
const REPEATS: usize = 5;

fn campaign(world: &dyn World, arguments: &RunArguments) -> Result<bool, CampaignError> {
    let seed = arguments.seed;
    let mut report = Report { seed, ..Report::default() };
    for (number, plan) in plans(arguments).iter().enumerate() {
        let started = world.clock().monotonic();
        let steps = 100 + plan.clean_steps;
        let recipe = recipe(plan.name, plan.dtype, &[format!("training.steps={steps}")])?;
        let mut scene = Scene::new(&recipe, arguments.threads, plan.freeze, REPEATS)?;
        let (mut done, mut index, mut lasting) = (0, 0, 0);
        while done < plan.faults {
            index += 1;
            let Some(planned) = planned(&scene, seed.wrapping_add(number as u64 * 1_000_003), index) else {
                continue;
            };
            let mut trial = trial::run(&mut scene, &planned, seed)?;
            let lasts = planned.persistence != Persistence::Transient;
            if lasts && trial.harmful && trial.full && lasting < plan.lasting {
                trial.sampled_steps = Some(trial::steps_until_caught(&mut scene, &planned, seed)?);
                lasting += 1;
            }
            if done % 10 == 0 {
                report.controls.count(trial::control_holds(&mut scene, &planned)?);
            }
            report.trials.push(trial);
            done += 1;
        }
        if plan.clean_steps > 0 {
            report.clean.push(clean::run(&mut scene, plan.clean_steps, recipe.architecture().vocab_size())?);
        }
        let took = world.clock().monotonic().saturating_sub(started).as_secs_f64();
        eprintln!("{}: {done} faults, {} clean steps, {took:.0} s", scene.name, plan.clean_steps);
    }
    print!("{}", report.text());
    json(world.files(), &arguments.out, &report)?;
    // The control is what makes the rest believable.
    Ok(report.controls.caught == report.controls.of && report.clean.iter().all(|clean| clean.alarms == 0))
}
