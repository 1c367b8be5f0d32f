//! Kills the worker of one long run at random times, and ends others in other ways; the end state must be that of a run
//! that nobody disturbed.

use crate::built::built;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `count` SIGKILLs in one run, then `others` of SIGSTOP, SIGSEGV, SIGABRT and a memory limit in another.
pub fn run(root: &Path, count: u32, others: u32, recipe: &str) -> Result<(), String> {
    let binary = built(root)?.join("toprope");
    let folder = std::env::temp_dir().join(format!("toprope-worker-kills-{}", std::process::id()));
    let mut random = u64::from(std::process::id()) | 1;
    for (name, wanted, ways) in [("SIGKILL", count, &KILL[..]), ("other ends", others, &OTHERS[..])] {
        if wanted == 0 {
            continue;
        }
        // About twice the steps that the kills take: the run is ended by its last step, not by us.
        let steps = u64::from(wanted) * if name == "SIGKILL" { 60 } else { 120 };
        let started = Instant::now();
        let kind = name.replace(' ', "-");
        let calm = hash(start(&binary, recipe, steps, &folder.join(format!("calm-{kind}")))?)?;
        println!(
            "{name}: undisturbed {steps} steps in {:.1} s, state {calm}",
            started.elapsed().as_secs_f64()
        );
        let started = Instant::now();
        let run = folder.join(format!("harried-{kind}"));
        let mut child = start(&binary, recipe, steps, &run)?;
        let mut done = 0;
        // Before the first step the run only asks what its device is.
        while !std::fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default().contains("committed") {
            if child.try_wait().map_err(cannot("watch the run"))?.is_some() {
                return Err("the run ended before its first step".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        while done < wanted && child.try_wait().map_err(cannot("watch the run"))?.is_none() {
            random = next(random);
            std::thread::sleep(Duration::from_millis(10 + random % 60));
            let Some(worker) = worker_of(child.id()) else { continue };
            random = next(random);
            let way = ways[(random % ways.len() as u64) as usize];
            let (program, arguments) = way;
            let mut command = Command::new(program);
            command.args(arguments.iter().map(|argument| argument.replace("PID", &worker.to_string())));
            command.stderr(Stdio::null());
            // One that is gone already is not counted.
            if command.status().is_ok_and(|status| status.success()) {
                done += 1;
            }
        }
        let harried = hash(child)?;
        println!("{name}: {done} of {wanted} in {:.1} s, state {harried}", started.elapsed().as_secs_f64());
        if done < wanted {
            return Err(format!("the run ended after {done} of {wanted}"));
        }
        if harried != calm {
            return Err(format!("{name}: the end states differ"));
        }
        println!("{name}: equal");
    }
    std::fs::remove_dir_all(&folder).map_err(cannot("remove the runs' folder"))
}

type Way = (&'static str, &'static [&'static str]);

const KILL: [Way; 1] = [("kill", &["-KILL", "PID"])];

const OTHERS: [Way; 4] = [
    ("kill", &["-STOP", "PID"]),
    ("kill", &["-SEGV", "PID"]),
    ("kill", &["-ABRT", "PID"]),
    // No further memory from here on: the next allocation that needs some fails.
    ("prlimit", &["--pid", "PID", "--as=1000000"]),
];

fn cannot(what: &'static str) -> impl Fn(std::io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

fn next(mut random: u64) -> u64 {
    random ^= random << 13;
    random ^= random >> 7;
    random ^ (random << 17)
}

fn start(binary: &Path, recipe: &str, steps: u64, run: &Path) -> Result<Child, String> {
    let mut command = Command::new(binary);
    command.args(["train", recipe, "--json", "--steps", &steps.to_string(), "--run"]).arg(run);
    command.args(["--set", "evaluation.final_tokens=256", "--set", "checkpoint.every=1000"]);
    // Ways of dying that a policy for production would answer with giving up are wanted here again and again.
    command.args(["--set", "guard.attempts_max=1000", "--set", "guard.restart.give_up_after=1000"]);
    // A worker that is killed while it starts is no reason to wait longer for the next one.
    command.args(["--set", "guard.restart.backoff_max_seconds=0.25"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().map_err(cannot("start the run"))
}

/// The oldest child of a process: the worker that serves.
pub fn worker_of(parent: u32) -> Option<u32> {
    let task = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let children: Vec<u32> = task.split_whitespace().filter_map(|child| child.parse().ok()).collect();
    children.first().copied()
}

fn hash(child: Child) -> Result<String, String> {
    let output = child.wait_with_output().map_err(cannot("await the run"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let summary: serde_json::Value =
        serde_json::from_str(last).map_err(|error| format!("no summary ({error}): {text}"))?;
    summary["state_hash"].as_str().map(Into::into).ok_or_else(|| format!("no state_hash in {last}"))
}
