//! Kills a training run with SIGKILL at random times and resumes it, until it ends; then compares the end state with that
//! of a run that nobody disturbed.

use crate::built::built;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `count` kills at least; the run is made long enough by `steps`.
pub fn run(root: &Path, count: u32, recipe: &str, steps: u64) -> Result<(), String> {
    let binary = built(root)?.join("toprope");
    let folder = std::env::temp_dir().join(format!("toprope-kills-{}", std::process::id()));
    let calm = folder.join("calm");
    let harried = folder.join("harried");
    let steps = steps.to_string();
    let command = |run: &Path, resume: bool| {
        let mut command = Command::new(&binary);
        // A checkpoint every few steps: many of the kills fall into the writing of one.
        command.args([
            "train",
            recipe,
            "--steps",
            &steps,
            "--set",
            "checkpoint.every=3",
            "--set",
            "evaluation.final_tokens=256",
            "--json",
            "--run",
        ]);
        command.arg(run);
        if resume {
            command.arg("--resume");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let started = Instant::now();
    let undisturbed = hash_of(command(&calm, false))?;
    let whole = started.elapsed();
    println!("undisturbed: {undisturbed} in {:.1} s", whole.as_secs_f64());
    let mut random = u64::from(std::process::id()) | 1;
    let mut kills = 0;
    let mut resume = false;
    while kills < count {
        let mut child =
            command(&harried, resume).spawn().map_err(|error| format!("cannot start the run: {error}"))?;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Long enough to get some steps done, short enough to stay under way.
        let span = whole.as_millis() as u64 / 8 + 60;
        std::thread::sleep(Duration::from_millis(20 + random % span));
        let ended = child.try_wait().map_err(|error| error.to_string())?.is_some();
        child.kill().map_err(|error| error.to_string())?;
        child.wait().map_err(|error| error.to_string())?;
        if ended {
            return Err(format!("the run ended after {kills} kills: give it more --steps"));
        }
        kills += 1;
        resume = harried.join("recipe.toml").exists();
    }
    let disturbed = hash_of(command(&harried, resume))?;
    println!("{kills} kills:  {disturbed}");
    std::fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    if disturbed == undisturbed {
        println!("equal");
        Ok(())
    } else {
        Err("the end states differ".into())
    }
}

fn hash_of(mut command: Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot start the run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let summary: serde_json::Value =
        serde_json::from_str(last).map_err(|error| format!("no summary ({error}): {text}"))?;
    summary["state_hash"].as_str().map(Into::into).ok_or_else(|| format!("no state_hash in {last}"))
}
