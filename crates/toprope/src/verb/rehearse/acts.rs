//! The story on the emulated NPU, in four acts of one run: a hang; a wrong operator; the chip lost; the chip back.
//!
//! The defects are the emulator's own (`CANN_EMULATOR_DEFECTS` of the workers), switched on and off by files while the run
//! goes on: nothing in Toprope knows that they come.

use super::curve::{last_mean, leaves};
use super::stage::{Stage, last_lines};
use super::watch::{Missed, Watch, is_fault};
use crate::command::Rehearse;
use crate::exit::{Exit, Failure, OrExit};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toprope_guard::journal::{GuardSummary, RunRecord};
use toprope_world::{ChildProcess, Exit as Ended, RealWorld, World, write_durably};

/// The operator that goes wrong, by the contract's name, and the emulator's defect.
const WRONG: (&str, &str) = ("rms_norm_gradient", "norm.gradient_mean");

/// More steps than any rehearsal takes: it ends the run itself.
const STEPS: u64 = 100_000;

/// Steps between two acts.
const BETWEEN: u64 = 4;

/// No act takes longer, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(180);

/// Last steps whose mean loss is told.
const LAST: usize = 20;

/// What `--json` prints last.
#[derive(Debug, Serialize)]
struct Summary {
    passed: bool,
    device: String,
    emulated: bool,
    emulator: String,
    acts: Vec<String>,
    broken: Vec<String>,
    batches_lost: u64,
    batches_doubled: u64,
    loss: Option<f64>,
    undisturbed_loss: Option<f64>,
    report: PathBuf,
    guard: GuardSummary,
    wall_seconds: f64,
}

/// Files by which the defects come and go.
struct Switches<'a> {
    world: &'a RealWorld,
    folder: PathBuf,
}

impl Switches<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The emulator's rules.
    fn rules(&self) -> String {
        format!(
            "runtime.hang@op=Matmul,token={}; {}@while={}; runtime.device_lost@op=*,while={}",
            self.file("hang").display(),
            WRONG.1,
            self.file("wrong").display(),
            self.file("lost").display(),
        )
    }

    fn on(&self, name: &str) -> Result<(), Failure> {
        write_durably(self.world.files(), &self.file(name), b"").or_exit(Exit::Run)
    }

    fn off(&self, name: &str) -> Result<(), Failure> {
        self.world.files().remove_file(&self.file(name)).or_exit(Exit::Run)
    }
}

/// Plays the story.
pub(super) fn run(arguments: &Rehearse, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let started = world.clock().monotonic();
    let device = arguments.device.as_str();
    let found = toprope_devices::ascend_emulator(device).or_exit(Exit::Device)?;
    let Some(emulator) = found else {
        return Err(Failure::new(
            Exit::Device,
            format!(
                "{device} is a real NPU here, and a rehearsal switches on defects that only the emulator has\n\
                 hint: name the emulator, as in --device ascend:0+library=target/release, or inject faults: --device cpu"
            ),
        ));
    };
    let folder = match &arguments.keep {
        Some(folder) => folder.clone(),
        None => free(&world)?,
    };
    let own = world.processes().own_id();
    let switches =
        Switches { world: &world, folder: std::env::temp_dir().join(format!("toprope-switches-{own}")) };
    world.files().create_folder(&switches.folder).or_exit(Exit::Run)?;
    println!(
        "rehearsing {} on {device}, EMULATED ({emulator}): no NPU takes part; {} is trusted",
        arguments.recipe, arguments.fallback
    );
    let stage = Stage { world: &world, recipe: &arguments.recipe, folder: &folder };
    let played = play(&stage, arguments, &switches);
    world.files().remove_folder(&switches.folder).or_exit(Exit::Run)?;
    let (acts, mut broken) = played?;
    let run = RunRecord::read(&world, &stage.run_folder("ascend")).map_err(|error| {
        // A run that ended before it had a journal has said why.
        let reason = if broken.is_empty() { error.to_string() } else { broken.join("\n") };
        Failure::new(Exit::Run, reason)
    })?;
    let guard = GuardSummary::of(&run);
    let proof = run.ledger.prove();
    broken.extend(proof.violation.as_ref().map(ToString::to_string));
    let committed = proof.committed;
    let (mut loss, mut undisturbed_loss) = (None, None);
    if broken.is_empty() {
        let calm = stage.train("undisturbed", committed, &undisturbed(arguments), None, false)?;
        if calm.ended != Ended::Code(0) {
            return Err(Failure::new(
                Exit::Internal,
                format!("the undisturbed run failed: {}", last_lines(&calm.told)),
            ));
        }
        let clean = RunRecord::read(&world, &stage.run_folder("undisturbed")).or_exit(Exit::Run)?;
        broken.extend(leaves(&run, &clean));
        (loss, undisturbed_loss) = (last_mean(&run, LAST), last_mean(&clean, LAST));
    }
    let (lost, doubled) = (proof.batches_lost, proof.batches_doubled);
    println!("ledger: {committed} steps, each batch counted once: {lost} lost, {doubled} doubled");
    if let (Some(loss), Some(calm)) = (loss, undisturbed_loss) {
        println!(
            "loss of the last {LAST} steps: {loss:.4}; undisturbed on {}: {calm:.4}",
            arguments.fallback
        );
    }
    let report = stage.run_folder("ascend").join("report.html");
    println!("report: {}", report.display());
    for reason in &broken {
        println!("BROKEN: {reason}");
    }
    let wall_seconds = world.clock().monotonic().saturating_sub(started).as_secs_f64();
    let passed = broken.is_empty();
    match passed {
        true => println!("every promise was kept, on emulation ({wall_seconds:.0} s)"),
        false => println!("{} promise(s) broken ({wall_seconds:.0} s)", broken.len()),
    }
    if json {
        let summary = Summary {
            passed,
            device: device.into(),
            emulated: true,
            emulator,
            acts,
            broken,
            batches_lost: lost,
            batches_doubled: doubled,
            loss,
            undisturbed_loss,
            report,
            guard,
            wall_seconds,
        };
        println!("{}", serde_json::to_string(&summary).or_exit(Exit::Internal)?);
    }
    Ok(if passed { Exit::Done } else { Exit::Promise })
}

/// A folder beside other runs that nothing is in yet.
fn free(world: &RealWorld) -> Result<PathBuf, Failure> {
    let mut number = 1;
    loop {
        let name = if number == 1 { "rehearsal".to_string() } else { format!("rehearsal-{number}") };
        let path = Path::new("runs").join(name);
        if world.files().inspect(&path).or_exit(Exit::Run)?.is_none() {
            return Ok(path);
        }
        number += 1;
    }
}

/// A rate that does not depend on how long the run is going to be.
const CONSTANT: &str = "schedule.kind=constant";

fn undisturbed(arguments: &Rehearse) -> Vec<&str> {
    vec!["--device", &arguments.fallback, "--set", CONSTANT]
}

fn disturbed(arguments: &Rehearse) -> Vec<String> {
    let sets = [
        CONSTANT,
        "guard.level=full",
        "guard.wrong_operator=move",
        "guard.retest.after_seconds=0.5",
        "guard.retest.after_max_seconds=2",
        "guard.snapshot_every=1",
        "checkpoint.every=50",
        "sample.tokens=0",
    ];
    let mut words: Vec<String> = vec![arguments.recipe.clone()];
    let steps = STEPS.to_string();
    words.extend(
        ["--steps", &steps, "--device", &arguments.device, "--fallback", &arguments.fallback]
            .map(String::from),
    );
    words.extend(sets.iter().flat_map(|set| ["--set".to_string(), (*set).to_string()]));
    words
}

/// The run with its acts: what is told of each, and what did not come as it must.
fn play(
    stage: &Stage<'_>,
    arguments: &Rehearse,
    switches: &Switches<'_>,
) -> Result<(Vec<String>, Vec<String>), Failure> {
    let environment = vec![("CANN_EMULATOR_DEFECTS".into(), switches.rules().into())];
    let mut playing = stage.begin("ascend", disturbed(arguments), environment)?;
    let journal = stage.run_folder("ascend").join("journal.jsonl");
    let mut story = Story {
        watch: Watch::new(stage.world, journal),
        switches,
        names: vec![arguments.device.clone(), arguments.fallback.clone()],
        acts: Vec::new(),
    };
    let told = story.tell(&mut *playing.child);
    let acts = story.acts;
    let mut broken: Vec<String> = match told {
        Ok(()) => Vec::new(),
        Err(Trouble::Missed(missed)) => vec![format!("act {}: {missed}", acts.len() + 1)],
        Err(Trouble::Failure(failure)) => return Err(failure),
    };
    interrupt(&*playing.child)?;
    let played = playing.end(stage.world)?;
    let in_order = Ended::Code(i32::from(Exit::Interrupted.code()));
    if played.ended != in_order || played.hash.is_none() {
        broken.push(format!("the run did not end in order: {}", last_lines(&played.told)));
    }
    Ok((acts, broken))
}

/// As Ctrl-C: the step under way is finished and a checkpoint written.
fn interrupt(child: &dyn ChildProcess) -> Result<(), Failure> {
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    match id {
        // One that has ended already is told by how it ended.
        Some(id) => {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::INT);
            Ok(())
        }
        None => Err(Failure::new(Exit::Internal, "the run has no process number")),
    }
}

enum Trouble {
    Missed(Missed),
    Failure(Failure),
}

impl From<Missed> for Trouble {
    fn from(missed: Missed) -> Trouble {
        Trouble::Missed(missed)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Failure(failure)
    }
}

struct Story<'a> {
    watch: Watch<'a>,
    switches: &'a Switches<'a>,
    /// The devices by their indices.
    names: Vec<String>,
    acts: Vec<String>,
}

impl Story<'_> {
    fn tell(&mut self, child: &mut dyn ChildProcess) -> Result<(), Trouble> {
        self.watch.steps(child, 2 * BETWEEN, LIMIT)?;
        self.hang(child)?;
        self.wrong_operator(child)?;
        self.chip_lost(child)?;
        self.chip_back(child)
    }

    /// An act's line.
    fn act(&mut self, line: String) {
        println!("act {}: {line}", self.acts.len() + 1);
        self.acts.push(line);
    }

    fn event(
        &mut self,
        child: &mut dyn ChildProcess,
        wanted: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value, Trouble> {
        Ok(self.watch.next(child, wanted, LIMIT, is, |_| false)?)
    }

    /// The next fault; one of another class breaks the act.
    fn fault(&mut self, child: &mut dyn ChildProcess, class: &str) -> Result<Value, Trouble> {
        let ours = |event: &Value| is_fault(event) && event["class"] == class;
        let other = |event: &Value| is_fault(event) && event["class"] != class;
        Ok(self.watch.next(child, &format!("a fault of class `{class}`"), LIMIT, ours, other)?)
    }

    fn recovered(&mut self, child: &mut dyn ChildProcess) -> Result<String, Trouble> {
        let event = self.event(child, "the next commit", |event| event["event"] == "recovered")?;
        let seconds = event["seconds"].as_f64().unwrap_or_default();
        let redone = event["steps_redone"].as_u64().unwrap_or_default();
        Ok(format!("{seconds:.1} s, {redone} step{} redone", if redone == 1 { "" } else { "s" }))
    }

    fn hang(&mut self, child: &mut dyn ChildProcess) -> Result<(), Trouble> {
        self.switches.on("hang")?;
        let fault = self.fault(child, "hang")?;
        let cost = self.recovered(child)?;
        let operator = fault["place"]["operator"].as_str().unwrap_or("an operator that nobody named");
        let (step, name) = (&fault["step"], &self.names[0]);
        self.act(format!(
            "step {step}: {name} hung in `{operator}`; its worker was killed, another took over: {cost}"
        ));
        Ok(self.watch.steps(child, BETWEEN, LIMIT)?)
    }

    fn wrong_operator(&mut self, child: &mut dyn ChildProcess) -> Result<(), Trouble> {
        self.switches.on("wrong")?;
        let fault = self.fault(child, "mismatch")?;
        let moved = self.event(child, "an operator moved", |event| event["event"] == "operator_moved")?;
        let named = moved["operator"].as_str().unwrap_or_default();
        if named != WRONG.0 {
            return Err(Missed::Other(format!("`{}` moved", WRONG.0), moved.to_string()).into());
        }
        let cost = self.recovered(child)?;
        let to = moved["to"].as_u64().and_then(|to| self.names.get(to as usize)).cloned().unwrap_or_default();
        let (step, name) = (&fault["step"], &self.names[0]);
        self.act(format!(
            "step {step}: `{named}` is wrong on {name}, found before the commit and right on {to}; it alone moved to {to}, \
             the rest stays on {name}: {cost}"
        ));
        // The defect stays, and nothing is alarmed about any more.
        Ok(self.watch.steps(child, BETWEEN, LIMIT)?)
    }

    fn chip_lost(&mut self, child: &mut dyn ChildProcess) -> Result<(), Trouble> {
        self.switches.on("lost")?;
        let fault = self.fault(child, "lost")?;
        self.event(child, "the move to the fallback", |event| event["event"] == "failed_over")?;
        let cost = self.recovered(child)?;
        let (step, name, to) = (&fault["step"], &self.names[0], &self.names[1]);
        let (name, to) = (name.clone(), to.clone());
        self.act(format!(
            "step {step}: {name} is lost (507010 LOST_HEARTBEAT); the run goes on on {to}: {cost}"
        ));
        Ok(self.watch.steps(child, BETWEEN, LIMIT)?)
    }

    fn chip_back(&mut self, child: &mut dyn ChildProcess) -> Result<(), Trouble> {
        let from = self.watch.committed;
        self.switches.off("lost")?;
        let tested = self.event(child, "a test that is passed", |event| {
            event["event"] == "retested" && event["passed"] == true
        })?;
        self.event(child, "the way back", |event| event["event"] == "failed_back")?;
        let detail = tested["detail"].as_str().unwrap_or_default().to_string();
        let steps = self.watch.committed - from;
        let (name, to) = (self.names[0].clone(), self.names[1].clone());
        self.watch.steps(child, BETWEEN, LIMIT)?;
        self.act(format!(
            "step {}: {name} is there again and was tested ({detail}); after {steps} more steps on {to} the run is back on {name}",
            self.watch.committed - BETWEEN
        ));
        Ok(())
    }
}
