//! Random schedules of faults on `pytorch:cpu`, each with a failover to `cpu` and back: no batch may be lost or doubled.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Steps of each run.
const STEPS: u64 = 200;

/// Runs `count` schedules from seed `first` on.
pub fn run(root: &Path, count: u64, first: u64, python: Option<&str>) -> Result<(), String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let binary = target.join("release/toprope");
    let build = ["build", "--quiet", "--release", "--package", "toprope", "--features", "parquet"];
    let built = Command::new("cargo").args(build).current_dir(root).status();
    if !built.map_err(|error| format!("cannot run cargo: {error}"))?.success() {
        return Err("the binary does not build".into());
    }
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
    // `cpu` is slowed down from its first step on, so that the return falls into the run.
    let leaves = 10 + seed % 30;
    let faults = format!(
        "step {leaves} device pytorch:cpu: unsupported in rope; step 0 device cpu: slow x40 for 100000; \
         random seed={seed} rate=0.02 classes=lost,hang,driver,out_of_memory,non_finite,mismatch,rest"
    );
    let mut command = Command::new(binary);
    command.args(["train", "tiny-moe", "--json", "--threads", "1", "--steps", &STEPS.to_string()]);
    command.args(["--device", "pytorch:cpu", "--fallback", "cpu", "--faults", &faults, "--run"]).arg(path);
    command.args(["--set", "evaluation.final_tokens=256", "--set", "guard.level=full"]);
    command.args(["--set", "guard.retest.after_seconds=0.2", "--set", "guard.attempts_max=1000"]);
    if let Some(python) = python {
        command.args(["--python", python]);
    }
    let output = command.stderr(Stdio::piped()).output().map_err(|error| format!("cannot start: {error}"))?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = text.lines().last().unwrap_or_default();
    let summary: serde_json::Value =
        serde_json::from_str(last).map_err(|_| format!("no summary: {}", errors.trim_end()))?;
    if summary["batches_lost"] != 0 || summary["batches_doubled"] != 0 || summary["steps"] != STEPS {
        return Err(format!("the ledger does not hold: {last}"));
    }
    let journal = std::fs::read_to_string(path.join("journal.jsonl")).map_err(|error| error.to_string())?;
    let lines = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let events: Vec<serde_json::Value> = lines.collect();
    Ok(Told {
        faults: events.iter().filter(|event| event["event"] == "fault").count() as u64,
        on_fallback: summary["devices"][1]["steps"].as_u64().unwrap_or(0),
        came_back: events.iter().any(|event| event["event"] == "failed_over" && event["to"] == 0)
            || events.iter().any(|event| event["event"] == "failed_back"),
    })
}
