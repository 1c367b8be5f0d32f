//! `toprope train`: from a recipe to a model.

mod folder; // the recipe, the run's folder and its first state
pub mod guarded; // the engine of a guarded run
mod learnt; // what the model learnt
mod profile; // where the time went
pub mod programs; // what is run
mod retest; // whether a quarantined device may come back

pub use folder::initial_state;

use crate::command::Train;
use crate::exit::{Exit, Failure, OrExit};
use crate::memory;
use crate::metrics::{Metrics, Server, Watched};
use crate::progress::{Progress, Shared, bytes, duration};
use crate::report;
use crate::verb::footprint::{Footprint, Place};
use crate::verb::prepare::{Prepared, TOKENIZER_FILE};
use crate::verb::published;
use learnt::{Learnt, measured};
use programs::Programs;
use serde::Serialize;
use std::cell::RefCell;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use toprope_devices::OpenOptions;
use toprope_guard::decide::StopReason;
use toprope_guard::inject::FillingDisk;
use toprope_guard::journal::{GuardSummary, RunRecord};
use toprope_guard::policy::Level;
use toprope_guard::supervisor::GuardError;
use toprope_model::totals;
use toprope_program::Device;
use toprope_train::checkpoint::{BackgroundWriter, KeepPolicy};
use toprope_train::engine::{Engine, EngineError, Guarded, Local, LocalOptions};
use toprope_train::peak;
use toprope_train::recipe::Recipe;
use toprope_train::trainer::{TrainError, Trainer};
use toprope_world::{RealWorld, World};

/// What `--json` prints last.
#[derive(Debug, Serialize)]
struct Summary {
    steps: u64,
    loss: f64,
    bits_per_byte: Option<f64>,
    gzip_bits_per_byte: Option<f64>,
    xz_bits_per_byte: Option<f64>,
    tokens_per_second: Option<f64>,
    step_seconds_median: Option<f64>,
    peak_memory_bytes: u64,
    planned_memory_bytes: u64,
    mfu: Option<f64>,
    peak_flops_per_second: f64,
    state_hash: String,
    device: String,
    level: String,
    threads: usize,
    parameters: u64,
    corpus_hash: String,
    program_hash: String,
    wall_seconds: f64,
    run: PathBuf,
    interrupted: bool,
    #[serde(flatten)]
    guard: Option<GuardSummary>,
}

/// Trains.
pub fn run(arguments: &Train, json: bool) -> Result<Exit, Failure> {
    toprope_world::map_large_allocations();
    let disk = FillingDisk::new(Arc::new(RealWorld::new()));
    let disk_full = disk.full();
    let world: Arc<dyn World> = Arc::new(disk);
    let started = world.clock().monotonic();
    let mut recipe = folder::chosen_recipe(arguments, &*world)?;
    let arguments = &placed(arguments, &recipe);
    let path = folder::run_path(arguments, &recipe, &*world)?;
    let programs = Programs::build(&recipe)?;
    let guarded = !(arguments.unguarded || arguments.profile);
    let checked = guarded::checked(arguments, &recipe, &programs.train)?;
    let fallback = !arguments.fallback.is_empty();
    let place = Place { device: arguments.device(), threads: arguments.threads, fallback };
    let footprint = Footprint::of(&recipe, &programs, guarded.then_some(&checked.program), place);
    let mut device =
        if guarded { probe(arguments.device(), arguments, &*world)? } else { open_device(arguments)? };
    for fallback in &arguments.fallback {
        probe(fallback, arguments, &*world)?;
    }
    let threads = device.describe().units;
    footprint.check(&recipe.name, &*device)?;
    let stop = stop_on_interrupt()?;
    let metrics = Arc::new(Metrics::new(&path.to_string_lossy()));
    let server = arguments.metrics.as_ref().map(|address| Server::start(address, metrics.clone()));
    let server = server.transpose().or_exit(Exit::Usage)?;

    let saved = path.join(TOKENIZER_FILE);
    let own = arguments.resume.then_some(path.as_path());
    if !arguments.resume {
        folder::hash_weights(&*world, &mut recipe)?;
    }
    let prepared = Prepared::read(&*world, &recipe, &programs.train, own, threads)?;
    let Prepared { corpus, training_bytes, tokenizer, inputs, text, identity } = &prepared;
    memory::end_phase();
    let totals = totals::totals(&recipe.model).or_exit(Exit::Recipe)?;

    let budget = Duration::from_millis(150);
    let peak_flops = peak::measure_flops(&mut *device, recipe.training.dtype, world.clock(), budget)
        .or_exit(Exit::Device)?;
    let (folder, from, state) = folder::open_folder(arguments, &recipe, &path, &*world, identity)?;
    let folder = Rc::new(RefCell::new(folder));
    let flops = programs.step_flops(&recipe);
    let planned = footprint.total_bytes;
    let progress = Progress::new(recipe.training.steps, from, flops / peak_flops);
    let progress = Rc::new(RefCell::new(progress));
    let initial = Arc::new(initial_state(&recipe, &world));
    let mut engine = if guarded {
        // The probe has done its work, and its memory is wanted.
        drop(device);
        let parts = guarded::Parts {
            arguments,
            recipe: &recipe,
            world: &world,
            programs: &programs,
            checked,
            inputs,
            folder: &folder,
            identity,
            initial: &initial,
            restored: state.is_some(),
            progress: &progress,
            metrics: server.is_some().then(|| metrics.clone()),
            disk_full,
            step_estimate: Duration::from_secs_f64(flops / peak_flops),
        };
        let mut engine = guarded::engine(parts)?;
        engine.restored_at(from);
        Running::Guarded(Box::new(engine))
    } else {
        let options = LocalOptions {
            train: programs.train.clone(),
            evaluate: Some(programs.evaluate.clone()),
            logits: Some(programs.logits.clone()),
            layout: recipe.training.state.into(),
            initial: state.is_none().then(|| initial.clone()),
            profile: arguments.profile.then(|| world.clone()),
        };
        Running::Local(Box::new(Local::open(device, options).map_err(|error| not_begun(&error))?))
    };
    if let Some(checkpoint) = state {
        engine.engine().restore(&mut checkpoint.tensors()).map_err(|error| not_begun(&error))?;
        eprintln!("going on from step {from}");
    }
    // What reading the weights took is not there when steps run.
    memory::end_phase();
    if let Running::Guarded(engine) = &mut engine {
        engine.start().map_err(|error| gave_up(&error, &path))?;
    }
    if let Some(text) = text.as_ref().filter(|_| !saved.exists()) {
        // The tokenizer comes last: where it is, all is.
        for file in published::text_files(text).into_iter().rev() {
            let path = path.join(file.name);
            toprope_world::write_durably(world.files(), &path, &file.bytes).or_exit(Exit::Run)?;
        }
    } else if let Some(json) = tokenizer.to_json().filter(|_| !saved.exists()) {
        toprope_world::write_durably(world.files(), &saved, json.as_bytes()).or_exit(Exit::Run)?;
    }
    let description = engine.engine().describe();
    let devices: Vec<&str> =
        std::iter::once(arguments.device()).chain(arguments.fallback.iter().map(String::as_str)).collect();
    let checks = if guarded { recipe.guard.level } else { Level::Off };
    folder
        .borrow_mut()
        .event(
            &*world,
            &serde_json::json!({
                "event": "start", "step": from, "devices": devices, "checks": checks,
                "device": description.name, "level": description.level,
                "program": identity.program_hash, "corpus": identity.corpus_hash, "from": recipe.from,
            }),
        )
        .or_exit(Exit::Run)?;

    progress.borrow().line(&format!("{}: {}", recipe.name, recipe.description));
    if let Some(origin) = &recipe.from {
        progress.borrow().line(&format!("going on from {}", origin.model.display()));
    }
    progress.borrow().line(&format!(
        "{} parameters, {:.2} GFLOP and {} tokens a step, {} of memory, {} of text ({:.2} epochs)",
        totals.main,
        flops / 1e9,
        recipe.training.batch * recipe.training.sequence,
        bytes(planned),
        bytes(*training_bytes),
        inputs.epochs()
    ));
    progress.borrow().line(&format!(
        "{} ({}), level {}, {} thread(s), measured peak {:.0} GFLOP/s in {}",
        description.name,
        description.hardware,
        description.level,
        description.units,
        peak_flops / 1e9,
        recipe.training.dtype
    ));
    progress.borrow().line(&format!("run folder {}", path.display()));

    if let Some(server) = &server {
        progress.borrow().line(&format!("metrics at http://{}/metrics", server.address()));
    }

    let began = world.clock().monotonic();
    let metrics = server.is_some().then_some(metrics);
    let mut observer = Shared(progress.clone());
    let mut watched = Watched { observer: &mut observer, metrics, world: &*world, began };
    let writer = BackgroundWriter::new(world.clone(), folder.borrow().checkpoints(), keep_policy(&recipe));
    let trainer = Trainer {
        recipe: &recipe,
        inputs,
        engine: engine.engine(),
        world: &*world,
        folder: &folder,
        writer,
        identity: identity.clone(),
        observer: &mut watched,
        stop: &stop,
    };
    let ran = trainer.run(from);
    if let Running::Guarded(engine) = &mut engine {
        engine.finish();
    }
    let outcome = ran.map_err(|error| {
        progress.borrow_mut().finish();
        match error {
            TrainError::Engine { error, .. } => gave_up(&error, &path),
            other => Failure::new(Exit::Run, format!("{other}\n{}", go_on(&path))),
        }
    })?;
    progress.borrow_mut().finish();

    let wall = || world.clock().monotonic().saturating_sub(started).as_secs_f64();
    if outcome.interrupted {
        eprintln!(
            "stopped after step {}; go on with: toprope train --run {} --resume",
            outcome.steps,
            path.display()
        );
    }
    let said = match outcome.interrupted {
        true => None,
        false => measured(engine.engine(), &recipe, &prepared)?,
    };
    memory::end_phase();
    if let (Running::Local(engine), true) = (&engine, arguments.profile) {
        profile::show(engine);
    }
    // Compressors want memory of their own, and nothing is computed any more.
    drop(engine);
    let learnt = match said {
        Some(said) => said.told(&recipe, &prepared)?,
        None => Learnt::default(),
    };
    let peak_memory = memory::peak_bytes();
    let median = median(&outcome.step_seconds);
    let rate = median.map(|seconds| (recipe.training.batch * recipe.training.sequence) as f64 / seconds);
    if let (Some(seconds), Some(rate)) = (median, rate) {
        println!(
            "{} steps in {}: loss {:.4}, {:.0} tokens/s, {:.1} ms a step, {} peak memory",
            outcome.steps - from,
            duration(wall()),
            outcome.loss,
            rate,
            seconds * 1e3,
            bytes(peak_memory)
        );
    }
    let summary = Summary {
        steps: outcome.steps,
        loss: outcome.loss,
        bits_per_byte: learnt.model,
        gzip_bits_per_byte: learnt.gzip,
        xz_bits_per_byte: learnt.xz,
        tokens_per_second: rate,
        step_seconds_median: median,
        peak_memory_bytes: peak_memory,
        planned_memory_bytes: planned,
        mfu: median.map(|seconds| flops / seconds / peak_flops),
        peak_flops_per_second: peak_flops,
        state_hash: outcome.state_hash.clone(),
        device: description.name,
        level: description.level,
        threads,
        parameters: totals.main,
        corpus_hash: corpus.hash.clone(),
        program_hash: programs.train.hash().to_string(),
        wall_seconds: wall(),
        run: path,
        interrupted: outcome.interrupted,
        guard: RunRecord::read(&*world, folder.borrow().path()).ok().map(|run| GuardSummary::of(&run)),
    };
    folder
        .borrow_mut()
        .event(&*world, &serde_json::json!({ "event": "end", "summary": summary }))
        .or_exit(Exit::Run)?;
    folder.borrow_mut().sync(&*world).or_exit(Exit::Run)?;
    write_report(&*world, &summary.run);
    println!("state {}", summary.state_hash);
    if json {
        println!("{}", serde_json::to_string(&summary).or_exit(Exit::Internal)?);
    }
    Ok(if summary.interrupted { Exit::Interrupted } else { Exit::Done })
}

/// What runs the steps.
enum Running {
    Local(Box<Local>),
    Guarded(Box<Guarded>),
}

impl Running {
    fn engine(&mut self) -> &mut dyn Engine {
        match self {
            Running::Local(engine) => &mut **engine,
            Running::Guarded(engine) => &mut **engine,
        }
    }
}

fn go_on(path: &Path) -> String {
    format!("hint: go on with `toprope train --run {} --resume`", path.display())
}

/// Why an engine did not open.
pub fn not_begun(error: &EngineError) -> Failure {
    let exit = match error {
        EngineError::Initial(_) => Exit::Recipe,
        EngineError::Checkpoint(_) => Exit::Run,
        EngineError::Fault(_) | EngineError::Guard(_) => Exit::Device,
    };
    Failure::new(exit, error)
}

/// An engine's last word.
fn gave_up(error: &EngineError, path: &Path) -> Failure {
    let gone = matches!(
        error,
        EngineError::Guard(error)
            if matches!(**error, GuardError::Stopped { reason: StopReason::NoDevice, .. })
    );
    let exit = if gone { Exit::NoDevice } else { Exit::Device };
    Failure::new(exit, format!("{error}\n{}", go_on(path)))
}

/// A worker that only says what its device is and measures it: no vendor's code runs in this process.
fn probe(name: &str, arguments: &Train, world: &dyn World) -> Result<Box<dyn Device>, Failure> {
    let spec = guarded::spec(name, arguments)?;
    let device = toprope_guard::supervisor::probe(world, &guarded::worker_command(arguments)?, &spec);
    Ok(Box::new(device.or_exit(Exit::Device)?))
}

/// Writes the run's report. A run without one is whole, so what goes wrong is a warning.
fn write_report(world: &dyn World, folder: &Path) {
    let read = RunRecord::read(world, folder).map_err(|error| error.to_string());
    match read.and_then(|run| report::write(world, &run).map_err(|error| error.to_string())) {
        Ok(path) => eprintln!("report {}", path.display()),
        Err(error) => eprintln!("warning: no report: {error}"),
    }
}

/// The command line with the recipe's devices where it names none.
fn placed(arguments: &Train, recipe: &Recipe) -> Train {
    let mut placed = arguments.clone();
    if placed.device.is_none() {
        placed.device.clone_from(&recipe.device);
        if placed.fallback.is_empty() && !(placed.unguarded || placed.profile) {
            placed.fallback.clone_from(&recipe.fallback);
        }
    }
    placed
}

fn open_device(arguments: &Train) -> Result<Box<dyn Device>, Failure> {
    let options = OpenOptions {
        threads: arguments.threads,
        level: arguments.level.clone(),
        python: arguments.python.clone(),
        ..OpenOptions::default()
    };
    toprope_devices::open(arguments.device(), &options).or_exit(Exit::Device)
}

/// The first Ctrl-C ends the run after its step, the second at once.
fn stop_on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let code = i32::from(Exit::Interrupted.code());
        signal_hook::flag::register_conditional_shutdown(signal, code, stop.clone())
            .or_exit(Exit::Internal)?;
        signal_hook::flag::register(signal, stop.clone()).or_exit(Exit::Internal)?;
    }
    Ok(stop)
}

fn median(seconds: &[f64]) -> Option<f64> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn keep_policy(recipe: &Recipe) -> KeepPolicy {
    let last = u32::try_from(recipe.checkpoint.keep_last).ok().and_then(NonZeroU32::new);
    KeepPolicy {
        last: last.unwrap_or(NonZeroU32::MIN),
        every_steps: NonZeroU64::new(recipe.checkpoint.keep_every),
    }
}
