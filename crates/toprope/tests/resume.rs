//! Runs that are stopped or killed and go on: through the binary, with the bits of the undisturbed run.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::Case;

#[test]
fn the_same_bits_for_one_and_two_threads() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let hash = |run: &str, arguments: &[&str]| {
        let mut all = vec!["train", "--run", run, "--json"];
        all.extend(arguments);
        let output = case.toprope(&all);
        let text = String::from_utf8_lossy(&output.stdout).to_string();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let last = text.lines().last().unwrap().to_string();
        let summary: serde_json::Value = serde_json::from_str(&last).unwrap();
        for key in [
            "steps",
            "loss",
            "bits_per_byte",
            "tokens_per_second",
            "step_seconds_median",
            "peak_memory_bytes",
            "mfu",
            "state_hash",
            "device",
            "level",
            "parameters",
            "corpus_hash",
            "wall_seconds",
        ] {
            assert!(summary.get(key).is_some(), "no {key} in {last}");
        }
        summary["state_hash"].as_str().unwrap().to_string()
    };
    let recipe = recipe.to_str().unwrap();
    let one = hash("one", &[recipe, "--steps", "9", "--threads", "1"]);
    let two = hash("two", &[recipe, "--steps", "9", "--threads", "2"]);
    assert_eq!(one, two);
}

/// A run that would never end.
struct Endless<'a> {
    case: &'a Case,
    recipe: &'a str,
    /// Whether the next state lies beside the current one, and what the key is set to.
    state: &'a str,
    /// Processes so far.
    begun: usize,
}

impl Endless<'_> {
    /// What all runs of the test share: the rate of no step hangs on the run's length.
    const SETS: [&'static str; 4] = ["--set", "schedule.kind=\"constant\"", "--set", "checkpoint.every=1"];

    /// Begins it or goes on with it, on one thread and on two in turn.
    fn go_on(&mut self) -> Child {
        let threads = ["1", "2"][self.begun % 2];
        self.begun += 1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
        command.args([
            "train",
            self.recipe,
            "--run",
            "harried",
            "--steps",
            "100000000",
            "--threads",
            threads,
        ]);
        command.args(Self::SETS).args(["--set", self.state]).current_dir(self.case.folder.path());
        if self.case.path("harried/recipe.toml").exists() {
            command.arg("--resume");
        }
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Steps that were written down, those of earlier processes among them.
    fn steps(&self) -> usize {
        std::fs::read_to_string(self.case.path("harried/metrics.jsonl")).unwrap_or_default().lines().count()
    }

    /// Waits until the process did some steps of its own.
    fn wait_for_steps(&self, child: &mut Child, before: usize) {
        while self.steps() < before + 2 {
            assert!(child.try_wait().unwrap().is_none(), "the run ended");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Checkpoints that are there only in part.
    fn torn(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.case.path("harried/checkpoints")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with(".tmp-")).collect()
    }

    /// The newest checkpoint that is whole.
    fn newest(&self) -> u64 {
        let entries = std::fs::read_dir(self.case.path("harried/checkpoints")).unwrap();
        let names = entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap()
    }
}

#[test]
fn stopped_and_killed_runs_end_with_the_bits_of_the_undisturbed_one() {
    stopped_and_killed("training.state=double");
}

/// Here the state is written as it lies, part by part, while the step waits.
#[test]
fn so_do_those_whose_state_is_in_place() {
    stopped_and_killed("training.state=in_place");
}

fn stopped_and_killed(state: &str) {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let mut run = Endless { case: &case, recipe: recipe.to_str().unwrap(), state, begun: 0 };
    let mut random = u64::from(std::process::id()) | 1;
    println!("delays drawn from {random}");
    // Stopped once by Ctrl-C, killed three times at random.
    for kill in [false, true, true, true] {
        let before = run.steps();
        let mut child = run.go_on();
        run.wait_for_steps(&mut child, before);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(random % 60));
        if kill {
            child.kill().unwrap();
            assert!(!child.wait().unwrap().success());
        } else {
            let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
            assert_eq!(child.wait().unwrap().code(), Some(130));
        }
    }
    // Killed while a checkpoint is being written, until one was left torn.
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries <= 30, "no kill fell into the writing of a checkpoint");
        let (before, left) = (run.steps(), run.torn());
        let mut child = run.go_on();
        run.wait_for_steps(&mut child, before);
        while run.torn().is_subset(&left) {
            assert!(child.try_wait().unwrap().is_none(), "the run ended");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !run.torn().is_subset(&left) {
            break;
        }
    }
    println!("{tries} kills at a checkpoint, the last of which left {:?}", run.torn());
    let steps = (run.newest() + 3).to_string();
    let hash = |run: &str, more: &[&str]| {
        let mut arguments =
            vec!["train", recipe.to_str().unwrap(), "--run", run, "--steps", &steps, "--json"];
        arguments.extend(Endless::SETS);
        arguments.extend(["--set", state]);
        arguments.extend(more);
        let output = case.toprope(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told = String::from_utf8_lossy(&output.stdout);
        let summary: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        assert_eq!(summary["steps"].to_string(), steps);
        summary["state_hash"].as_str().unwrap().to_string()
    };
    assert_eq!(hash("harried", &["--resume"]), hash("calm", &["--threads", "1"]));
}
