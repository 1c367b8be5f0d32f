//! Ctrl-C as a terminal sends it: to the whole group of processes, workers and all.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A long run of a tiny recipe in a group of its own, as a shell starts it.
fn start(folder: &TempDir, more: &[&str]) -> Child {
    std::fs::write(
        folder.path().join("text.txt"),
        "fn main() { println!(\"so it goes\"); }\n\n".repeat(4000),
    )
    .unwrap();
    Command::new(env!("CARGO_BIN_EXE_toprope"))
        .args(["train", "tiny-dense", "--run", "run", "--steps", "100000000", "--json"])
        .args(["--set", "data.source=files", "--set", "data.paths=[\"text.txt\"]"])
        .args(["--set", "data.validation_fraction=0", "--set", "evaluation.every=0"])
        .args(more)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn wait_for_steps(run: &mut Child, folder: &TempDir, steps: usize) {
    while lines(&folder.path().join("run/metrics.jsonl")) < steps {
        if run.try_wait().unwrap().is_some() {
            let mut told = String::new();
            run.stderr.take().unwrap().read_to_string(&mut told).unwrap();
            panic!("the run ended: {told}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a terminal does at Ctrl-C.
fn interrupt(run: &Child) {
    assert!(Command::new("kill").args(["-INT", "--", &format!("-{}", run.id())]).status().unwrap().success());
}

fn resumed(folder: &TempDir, steps: u64, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toprope"))
        .args(["train", "--run", "run", "--resume", "--steps", &steps.to_string(), "--json"])
        .args(more)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

#[test]
fn the_step_is_finished_and_no_worker_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = start(&folder, &[]);
    wait_for_steps(&mut run, &folder, 3);
    interrupt(&run);
    let output = run.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("go on with: toprope train --run run --resume"), "{told}");
    let journal = std::fs::read_to_string(folder.path().join("run/journal.jsonl")).unwrap();
    assert!(!journal.contains("\"fault\""), "a worker met the signal: {journal}");
    let done = lines(&folder.path().join("run/metrics.jsonl")) as u64;
    assert!(folder.path().join(format!("run/checkpoints/step-{done:08}")).exists(), "after {done} steps");
    let output = resumed(&folder, done + 2, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("going on from step {done}")));
}

#[test]
fn the_second_one_ends_the_run_at_once_and_nothing_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    // Steps that take seconds, each with a checkpoint.
    let slow = ["--set", "training.batch=2048", "--set", "checkpoint.every=1"];
    let mut run = start(&folder, &slow);
    wait_for_steps(&mut run, &folder, 1);
    let mut sent = 0;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        if sent < 2 {
            interrupt(&run);
            sent += 1;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "it does not end");
        std::thread::sleep(Duration::from_millis(30));
    };
    assert_eq!((status.code(), sent), (Some(130), 2));
    let mut told = String::new();
    run.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(!told.contains("go on with"), "it took its time to say: {told}");
    // The newest intact checkpoint is found, and the run goes on from it.
    let output = resumed(&folder, 2, &slow);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
