//! Random schedules of faults on `pytorch:cpu`, each with a failover to `cpu` and back: no batch may be lost or doubled.

use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Steps of each run at least; it goes on until it has come back.
const STEPS: u64 = 200;

/// Steps behind the return.
const BEHIND: u64 = 20;

/// A run that has not come back by then never does.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs `count` schedules from seed `first` on.
pub fn run(root: &Path, count: u64, first: u64, python: Option<&str>) -> Result<(), String> {
    let binary = crate::built::built(root)?.join("toprope");
    let folder = std::env::temp_dir().join(format!("toprope-pytorch-schedules-{}", std::process::id()));
    let (mut faults, mut away, mut back) = (0, 0, 0);
    for seed in first..first + count {
        let started = Instant::now();
        let path = folder.join(format!("seed-{seed}"));
        let told = one(&binary, seed, &path, python).map_err(|reason| {
            format!("seed {seed}: {reason}\nhint: the run is kept in {}", path.display())
        })?;
        println!("seed {seed}: {told} in {:.1} s", started.elapsed().as_secs_f64());
        faults += told.faults;
        away += u64::from(told.on_fallback > 0);
        back += u64::from(told.came_back);
        std::fs::remove_dir_all(&path)
            .map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
    }
    println!(
        "{count} schedules, {faults} faults, {away} failovers to cpu, {back} returns: 0 lost, 0 doubled"
    );
    if away < count || back < count {
        return Err("some runs never left pytorch:cpu or never came back to it".into());
    }
    Ok(())
}

/// What became of a run.
struct Told {
    faults: u64,
    on_fallback: u64,
    came_back: bool,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let back = if self.came_back { "and back" } else { "and NOT back" };
        write!(f, "{} faults, {} steps on cpu {back}", self.faults, self.on_fallback)
    }
}

fn one(binary: &Path, seed: u64, path: &Path, python: Option<&str>) -> Result<Told, String> {
    // `cpu` is slowed down from its first step on, so that the re-test falls into the run on most machines; where it does not,
    // the run is long enough to wait for it.
    let leaves = 10 + seed % 30;
    let faults = format!(
        "step {leaves} device pytorch:cpu: unsupported in rope; step 0 device cpu: slow x40 for 100000; \
         random seed={seed} rate=0.02 classes=lost,hang,driver,out_of_memory,non_finite,mismatch,rest"
    );
    let mut command = Command::new(binary);
    command.args(["train", "tiny-moe", "--json", "--threads", "1", "--steps", "100000"]);
    command.args(["--device", "pytorch:cpu", "--fallback", "cpu", "--faults", &faults, "--run"]).arg(path);
    command.args(["--set", "evaluation.final_tokens=256", "--set", "guard.level=full"]);
    command.args(["--set", "guard.retest.after_seconds=0.2", "--set", "guard.attempts_max=1000"]);
    if let Some(python) = python {
        command.args(["--python", python]);
    }
    let (out, errors) = (path.with_extension("out"), path.with_extension("errors"));
    let create = |path: &Path| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
    std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(|error| error.to_string())?;
    command.stdout(create(&out)?).stderr(create(&errors)?);
    let mut child = command.spawn().map_err(|error| format!("cannot start: {error}"))?;
    let came_back = watched(&mut child, path);
    // The first asks it to end after its step; a run that does not is ended.
    let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    let ended = waited(&mut child, Duration::from_secs(120))?;
    let text = std::fs::read_to_string(&out).map_err(|error| error.to_string())?;
    let told = std::fs::read_to_string(&errors).unwrap_or_default();
    if !ended {
        return Err(format!("it did not end when it was asked to: {}", told.trim_end()));
    }
    let last = text.lines().last().unwrap_or_default();
    let summary: Value =
        serde_json::from_str(last).map_err(|_| format!("no summary: {}", told.trim_end()))?;
    let enough = summary["steps"].as_u64().is_some_and(|steps| steps >= STEPS);
    if summary["batches_lost"] != 0 || summary["batches_doubled"] != 0 || !enough {
        return Err(format!("the ledger does not hold: {last}"));
    }
    for file in [&out, &errors] {
        std::fs::remove_file(file).map_err(|error| format!("cannot remove {}: {error}", file.display()))?;
    }
    Ok(Told {
        faults: events(path).iter().filter(|event| event["event"] == "fault").count() as u64,
        on_fallback: summary["devices"][1]["steps"].as_u64().unwrap_or(0),
        came_back,
    })
}

/// Waits until the run has its steps, has come back, and has gone on for a while; false where it does not come back.
fn watched(child: &mut Child, path: &Path) -> bool {
    let began = Instant::now();
    let mut back = None;
    while began.elapsed() < LIMIT && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(200));
        let events = events(path);
        // Of those that were taken back, only those that were done again.
        let committed = events.iter().rfind(|event| event["event"] == "committed");
        let steps = committed.and_then(|event| event["step"].as_u64()).map_or(0, |step| step + 1);
        let returned = |event: &Value| {
            event["event"] == "failed_over" && event["to"] == 0 || event["event"] == "failed_back"
        };
        if back.is_none() && events.iter().any(returned) {
            back = Some(steps);
        }
        if back.is_some_and(|at| steps >= STEPS.max(at + BEHIND)) {
            return true;
        }
    }
    back.is_some()
}

/// Whether a process ended in time; it is killed where it did not.
fn waited(child: &mut Child, limit: Duration) -> Result<bool, String> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if child.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
    Ok(false)
}

/// What the journal holds so far; a line that is being written is none yet.
fn events(path: &Path) -> Vec<Value> {
    let journal = std::fs::read_to_string(path.join("journal.jsonl")).unwrap_or_default();
    journal.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
