//! `toprope train`: from a recipe to a model.

mod guarded; // the engine of a guarded run
mod retest; // whether a quarantined device may come back

use crate::command::Train;
use crate::exit::{Exit, Failure, OrExit};
use crate::metrics::{Metrics, Server, Watched};
use crate::progress::{Progress, Shared, bytes, duration};
use crate::report;
use crate::verb::recipe;
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
use toprope_model::{deepseek_v3, packed_cost, totals};
use toprope_program::{Device, Program, Range, StateLayout, Validated, validate};
use toprope_train::batch::StepInputs;
use toprope_train::checkpoint::{BackgroundWriter, Identity, KeepPolicy, OwnedTensor, newest_intact};
use toprope_train::data::{Corpus, Tokens};
use toprope_train::engine::{Engine, EngineError, Guarded, Local, LocalOptions};
use toprope_train::recipe::Recipe;
use toprope_train::run_folder::RunFolder;
use toprope_train::tokenizer::Tokenizer;
use toprope_train::trainer::{TrainError, Trainer, bits_per_byte};
use toprope_train::{peak, sample};
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
    let disk = FillingDisk::new(Arc::new(RealWorld::new()));
    let disk_full = disk.full();
    let world: Arc<dyn World> = Arc::new(disk);
    let started = world.clock().monotonic();
    let recipe = chosen_recipe(arguments, &*world)?;
    let arguments = &placed(arguments, &recipe);
    let path = run_path(arguments, &recipe, &*world)?;
    let programs = Programs::build(&recipe)?;
    let guarded = !(arguments.unguarded || arguments.profile);
    let checked = guarded::checked(arguments, &recipe, &programs.train)?;
    let mut device =
        if guarded { probe(arguments.device(), arguments, &*world)? } else { open_device(arguments)? };
    for fallback in &arguments.fallback {
        probe(fallback, arguments, &*world)?;
    }
    let threads = device.describe().units;
    check_memory(&programs, &recipe, &*device)?;
    let stop = stop_on_interrupt()?;
    let metrics = Arc::new(Metrics::new(&path.to_string_lossy()));
    let server = arguments.metrics.as_ref().map(|address| Server::start(address, metrics.clone()));
    let server = server.transpose().or_exit(Exit::Usage)?;

    let corpus = Corpus::load(&recipe.data, threads).or_exit(Exit::Data)?;
    let saved = path.join(TOKENIZER_FILE);
    let tokenizer = tokenizer(&recipe, &corpus, arguments.resume.then_some(saved.as_path()))?;
    let schedule = StepInputs::schedule(&recipe).map_err(|error| {
        Failure::new(Exit::Recipe, format!("recipe {}: key `schedule.{}`: {error}", recipe.name, error.key))
    })?;
    let tokens = |documents, origin: &str| {
        Tokens::of_documents(documents, &tokenizer, threads, origin).or_exit(Exit::Data)
    };
    let training = tokens(&corpus.training, &corpus.origin)?;
    let held_out = tokens(&corpus.validation, "the held-out documents")?;
    let inputs = StepInputs::new(&recipe, schedule, training, held_out).or_exit(Exit::Data)?;
    let totals = totals::totals(&recipe.model).or_exit(Exit::Recipe)?;

    let budget = Duration::from_millis(150);
    let peak_flops = peak::measure_flops(&mut *device, recipe.training.dtype, world.clock(), budget)
        .or_exit(Exit::Device)?;
    let identity = Identity {
        model_name: recipe.name.clone(),
        recipe_hash: recipe.hash(),
        program_hash: programs.train.hash().to_string(),
        tokenizer_hash: tokenizer.hash(),
        corpus_hash: corpus.hash.clone(),
    };
    let (folder, from, state) = open_folder(arguments, &recipe, &path, &*world, &identity)?;
    let folder = Rc::new(RefCell::new(folder));
    let inputs = Arc::new(inputs);
    let flops = step_flops(&programs.train, &recipe);
    let planned = planned_bytes(&programs.train, &recipe);
    let progress = Progress::new(recipe.training.steps, from, flops / peak_flops, planned);
    let progress = Rc::new(RefCell::new(progress));
    let mut engine = if guarded {
        // The probe has done its work, and its memory is wanted.
        drop(device);
        let parts = guarded::Parts {
            arguments,
            recipe: &recipe,
            world: &world,
            programs: &programs,
            checked,
            inputs: &inputs,
            folder: &folder,
            identity: &identity,
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
            seed: recipe.seed,
            profile: arguments.profile.then(|| world.clone()),
        };
        Running::Local(Box::new(Local::open(device, options).or_exit(Exit::Device)?))
    };
    if let Some(state) = state {
        engine.engine().restore(&state).or_exit(Exit::Device)?;
        eprintln!("going on from step {from}");
    }
    if let Running::Guarded(engine) = &mut engine {
        engine.start().map_err(|error| gave_up(&error, &path))?;
    }
    if let Some(json) = tokenizer.to_json().filter(|_| !saved.exists()) {
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
                "program": identity.program_hash, "corpus": identity.corpus_hash,
            }),
        )
        .or_exit(Exit::Run)?;

    progress.borrow().line(&format!("{}: {}", recipe.name, recipe.description));
    progress.borrow().line(&format!(
        "{} parameters, {:.2} GFLOP and {} tokens a step, {} planned, {} of text ({:.2} epochs)",
        totals.main,
        flops / 1e9,
        recipe.training.batch * recipe.training.sequence,
        bytes(planned),
        bytes(corpus.training_bytes()),
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
        inputs: &inputs,
        engine: engine.engine(),
        world: &*world,
        folder: &folder,
        writer,
        identity,
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
    let learnt = if outcome.interrupted {
        Learnt::default()
    } else {
        learnt(engine.engine(), &inputs, &recipe, &corpus, &tokenizer)?
    };
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
            bytes(peak_memory_bytes())
        );
    }
    if let (Running::Local(engine), true) = (&engine, arguments.profile) {
        show_profile(engine);
    }
    let summary = Summary {
        steps: outcome.steps,
        loss: outcome.loss,
        bits_per_byte: learnt.model,
        gzip_bits_per_byte: learnt.gzip,
        xz_bits_per_byte: learnt.xz,
        tokens_per_second: rate,
        step_seconds_median: median,
        peak_memory_bytes: peak_memory_bytes(),
        planned_memory_bytes: planned,
        mfu: median.map(|seconds| flops / seconds / peak_flops),
        peak_flops_per_second: peak_flops,
        state_hash: outcome.state_hash.clone(),
        device: description.name,
        level: description.level,
        threads,
        parameters: totals.main,
        corpus_hash: corpus.hash,
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

/// Bytes of state and work by the plan.
fn planned_bytes(program: &Validated, recipe: &Recipe) -> u64 {
    let layout: StateLayout = recipe.training.state.into();
    toprope_program::MemoryPlan::new(program, toprope_program::Width::Native, layout).total_bytes() as u64
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

/// The tokenizer of a run, in its folder.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The recipe of the run: what was named, or on resuming what the folder holds.
fn chosen_recipe(arguments: &Train, world: &dyn World) -> Result<Recipe, Failure> {
    let mut sets = arguments.sets.clone();
    if let Some(steps) = arguments.steps {
        sets.push(format!("training.steps={steps}"));
    }
    let named = arguments.recipe.as_deref();
    if !arguments.resume {
        return recipe::load(named.unwrap_or("default"), &sets);
    }
    let Some(folder) = &arguments.run else {
        return Err(Failure::new(Exit::Usage, "--resume needs the run's folder\nhint: add --run FOLDER"));
    };
    let kept = folder.join("recipe.toml");
    // A folder without a recipe is refused with its own message when it is opened.
    if !matches!(world.files().inspect(&kept), Ok(Some(_))) {
        return recipe::load(named.unwrap_or("default"), &sets);
    }
    let resolved = recipe::load(&kept.to_string_lossy(), &sets)?;
    match named {
        Some(name) if recipe::load(name, &sets)?.hash() != resolved.hash() => Err(Failure::new(
            Exit::Run,
            format!(
                "{}: the run was begun with another recipe than {name}\nhint: leave the recipe out, or choose another --run folder",
                folder.display()
            ),
        )),
        _ => Ok(resolved),
    }
}

/// The run's folder: what was named, or the first of runs/NAME, runs/NAME-2, … that is not there.
fn run_path(arguments: &Train, recipe: &Recipe, world: &dyn World) -> Result<PathBuf, Failure> {
    let taken = |path: &Path| world.files().inspect(&path.join("recipe.toml")).map(|found| found.is_some());
    if let Some(path) = &arguments.run {
        if !arguments.resume && taken(path).or_exit(Exit::Run)? {
            return Err(Failure::new(
                Exit::Run,
                format!(
                    "{} has a run already\nhint: go on with it with --resume, or choose another --run folder",
                    path.display()
                ),
            ));
        }
        return Ok(path.clone());
    }
    let mut number = 1;
    loop {
        let name = if number == 1 { recipe.name.clone() } else { format!("{}-{number}", recipe.name) };
        let path = Path::new("runs").join(name);
        if !taken(&path).or_exit(Exit::Run)? {
            return Ok(path);
        }
        number += 1;
    }
}

/// The three programs of a run.
struct Programs {
    train: Arc<Validated>,
    evaluate: Arc<Validated>,
    logits: Arc<Validated>,
}

impl Programs {
    fn build(recipe: &Recipe) -> Result<Programs, Failure> {
        let options = recipe.training_options();
        let checked = |program: Program| {
            validate(program).map(Arc::new).map_err(|defects| {
                let listed: Vec<String> = defects.iter().map(ToString::to_string).collect();
                Failure::new(Exit::Internal, format!("the program is not valid:\n{}", listed.join("\n")))
            })
        };
        let (model, name) = (&recipe.model, recipe.name.as_str());
        let (dtype, sequence) = (recipe.training.dtype, recipe.training.sequence);
        Ok(Programs {
            train: checked(deepseek_v3::build_train(model, &options, name).or_exit(Exit::Recipe)?)?,
            evaluate: checked(deepseek_v3::build_evaluate(model, &options, name).or_exit(Exit::Recipe)?)?,
            logits: checked(deepseek_v3::build_logits(model, dtype, sequence, name).or_exit(Exit::Recipe)?)?,
        })
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

/// Says before the start what does not fit.
fn check_memory(programs: &Programs, recipe: &Recipe, device: &dyn Device) -> Result<(), Failure> {
    let layout: StateLayout = recipe.training.state.into();
    let plan = toprope_program::MemoryPlan::new(&programs.train, toprope_program::Width::Native, layout);
    let description = device.describe();
    let needed = plan.total_bytes() as u64;
    match description.memory_bytes {
        Some(there) if needed > there => Err(Failure::new(
            Exit::Memory,
            format!(
                "{} needs {} and {} has {}\nhint: lower training.micro_batch, set training.recompute = \"products\" or training.state = \"in_place\"",
                recipe.name,
                bytes(needed),
                description.name,
                bytes(there)
            ),
        )),
        _ => Ok(()),
    }
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

fn tokenizer(recipe: &Recipe, corpus: &Corpus, saved: Option<&Path>) -> Result<Tokenizer, Failure> {
    let vocabulary = recipe.model.vocab_size;
    let tokenizer = match saved.filter(|path| path.exists()) {
        Some(path) => Tokenizer::saved(&recipe.tokenizer, path),
        None => Tokenizer::from_config(&recipe.tokenizer, &corpus.training, vocabulary),
    };
    let tokenizer = tokenizer.or_exit(Exit::Data)?;
    tokenizer.check_fits(vocabulary).or_exit(Exit::Data)?;
    Ok(tokenizer)
}

fn keep_policy(recipe: &Recipe) -> KeepPolicy {
    let last = u32::try_from(recipe.checkpoint.keep_last).ok().and_then(NonZeroU32::new);
    KeepPolicy {
        last: last.unwrap_or(NonZeroU32::MIN),
        every_steps: NonZeroU64::new(recipe.checkpoint.keep_every),
    }
}

/// Makes the folder, or opens it and reads the newest intact checkpoint. Gives the step to go on from, and the state.
fn open_folder(
    arguments: &Train,
    recipe: &Recipe,
    path: &Path,
    world: &dyn World,
    identity: &Identity,
) -> Result<(RunFolder, u64, Option<Vec<OwnedTensor>>), Failure> {
    if !arguments.resume {
        let text = recipe.to_toml().or_exit(Exit::Internal)?;
        return Ok((RunFolder::create(world, path, &text).or_exit(Exit::Run)?, 0, None));
    }
    let folder = RunFolder::open_for_resume(world, path).or_exit(Exit::Run)?;
    for line in folder.bad_lines() {
        eprintln!("warning: {line}");
    }
    let (loaded, skipped) = newest_intact(world, &folder.checkpoints(), identity).or_exit(Exit::Run)?;
    for checkpoint in &skipped {
        eprintln!("warning: {checkpoint}");
    }
    let Some(loaded) = loaded else {
        if skipped.is_empty() {
            eprintln!("no checkpoint yet: the run begins anew");
            return Ok((folder, 0, None));
        }
        return Err(Failure::new(
            Exit::Run,
            format!(
                "{}: no checkpoint of the run is intact\nhint: begin a new run in another --run folder",
                path.display()
            ),
        ));
    };
    let snapshot = loaded.read_all().or_exit(Exit::Run)?;
    Ok((folder, snapshot.header.step, Some(snapshot.tensors)))
}

/// FLOPs of a step.
fn step_flops(program: &Validated, recipe: &Recipe) -> f64 {
    let program = program.program();
    let micro_batches = (recipe.training.batch / recipe.micro_batch()) as f64;
    let mut flops = 0.0;
    for range in Range::ALL {
        let times = if range == Range::Accumulate { micro_batches } else { 1.0 };
        for instruction in program.range(range) {
            flops += packed_cost(program, instruction).flops as f64 * times;
        }
    }
    flops
}

/// What the model learnt, beside compressors.
#[derive(Default)]
struct Learnt {
    model: Option<f64>,
    gzip: Option<f64>,
    xz: Option<f64>,
}

fn learnt(
    engine: &mut dyn Engine,
    inputs: &StepInputs,
    recipe: &Recipe,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
) -> Result<Learnt, Failure> {
    if corpus.validation.is_empty() {
        return Ok(Learnt::default());
    }
    // By default all of it: the compressors' figures are of the same bytes.
    let model = bits_per_byte(engine, inputs, recipe.evaluation.final_tokens).or_exit(Exit::Device)?;
    let compressed = corpus.validation_compressed().or_exit(Exit::Data)?;
    let (gzip, xz) = (compressed.gzip_bits_per_byte(), compressed.xz_bits_per_byte());
    println!(
        "held-out text ({}): model {model:.3} bits per byte, gzip -9 {gzip:.3}, xz -9 {xz:.3}",
        bytes(corpus.validation_bytes())
    );
    if recipe.sample.tokens > 0 {
        let toprope_train::recipe::Sample { prompt, tokens, temperature } = &recipe.sample;
        let text = sample::continue_text(engine, tokenizer, prompt, *tokens, *temperature, recipe.seed)
            .or_exit(Exit::Device)?;
        println!("in its own words:\n{}", indented(&format!("{prompt}{text}")));
    }
    Ok(Learnt { model: Some(model), gzip: Some(gzip), xz: Some(xz) })
}

fn indented(text: &str) -> String {
    // Control characters of an untrained model's bytes must not reach the terminal.
    let visible = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.lines().map(|line| format!("    {}\n", line.chars().map(visible).collect::<String>())).collect()
}

fn median(seconds: &[f64]) -> Option<f64> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The most memory that this process has had, in bytes; 0 where the system does not say.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Where the time went, by operator.
fn show_profile(engine: &Local) {
    let (program, profile) = (engine.program().program(), engine.profile());
    let mut rows: Vec<ProfileRow> = Vec::new();
    let ranges = [
        (Range::Accumulate, profile.runs, &profile.accumulate),
        (Range::Update, profile.updates, &profile.update),
    ];
    for (range, runs, times) in ranges {
        for (instruction, seconds) in program.range(range).iter().zip(times) {
            let name = instruction.operator.name();
            let cost = packed_cost(program, instruction);
            let at = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                rows.push(ProfileRow { name, ..ProfileRow::default() });
                rows.len() - 1
            });
            let row = &mut rows[at];
            row.calls += runs;
            row.seconds += seconds;
            row.flops += cost.flops as f64 * runs as f64;
            row.bytes += cost.bytes as f64 * runs as f64;
        }
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let total: f64 = rows.iter().map(|row| row.seconds).sum();
    println!(
        "{:<30} {:>8} {:>9} {:>7} {:>9} {:>8}",
        "operator", "calls", "seconds", "share", "GFLOP/s", "GB/s"
    );
    for row in rows {
        println!(
            "{:<30} {:>8} {:>9.3} {:>6.1}% {:>9.1} {:>8.1}",
            row.name,
            row.calls,
            row.seconds,
            100.0 * row.seconds / total,
            row.flops / row.seconds / 1e9,
            row.bytes / row.seconds / 1e9
        );
    }
}

#[derive(Default)]
struct ProfileRow {
    name: &'static str,
    calls: u64,
    seconds: f64,
    flops: f64,
    bytes: f64,
}
