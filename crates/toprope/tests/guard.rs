//! The guard through the binary: real workers, real deaths, and what a user can get wrong.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn toprope(folder: &TempDir, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toprope")).args(arguments).current_dir(folder.path()).output().unwrap()
}

/// A tiny run on text of its own.
fn train(run: &str, folder: &TempDir, more: &[&str]) -> Output {
    let text: String =
        (0..4000).map(|n| format!("line {n} of a text that repeats itself, {}\n", n % 7)).collect();
    std::fs::write(folder.path().join("text.txt"), text).unwrap();
    let mut arguments = vec!["train", "tiny-dense", "--json", "--steps", "12", "--run", run];
    let source =
        "data={source=\"files\",paths=[\"text.txt\"],document_separator=\"\\n\",validation_fraction=0.0}";
    arguments.extend(["--set", source, "--set", "evaluation.final_tokens=64"]);
    arguments.extend(more);
    toprope(folder, &arguments)
}

fn summary(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    })
}

#[test]
fn deaths_errors_and_wrong_numbers_leave_the_undisturbed_bits_and_one_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let calm = summary(&train("calm", &folder, &["--unguarded"]));
    let faults = "step 2: die in matmul; step 4: die while answering; step 6: driver 507015 in attention; \
                  step 8: flip bit 30 in matmul; step 10: die in update";
    let output = train("harried", &folder, &["--set", "guard.level=full", "--faults", faults]);
    let harried = summary(&output);
    assert_eq!(harried["state_hash"], calm["state_hash"]);
    assert_eq!((&harried["batches_lost"], &harried["batches_doubled"]), (&0.into(), &0.into()));
    let told = String::from_utf8_lossy(&output.stderr);
    for step in [2, 4, 6, 8, 10] {
        let lines = told.lines().filter(|line| line.contains(&format!(" step {step} cpu: ")));
        assert_eq!(lines.count(), 1, "step {step}: {told}");
    }
    for (class, count) in [("lost", 3), ("driver", 1), ("mismatch", 1)] {
        assert_eq!(harried["faults"][class], count, "{class}");
    }
}

#[test]
fn everything_twice_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let calm = summary(&train("calm", &folder, &["--unguarded"]));
    let shadowed = summary(&train("twice", &folder, &["--set", "guard.level=shadow"]));
    assert_eq!(shadowed["state_hash"], calm["state_hash"]);
    assert_eq!(shadowed["faults"]["mismatch"], 0);
}

#[test]
fn a_device_that_lacks_an_operator_for_good_is_left_and_no_batch_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "step 3 device cpu always: unsupported in rope";
    let ended = summary(&train("run", &folder, &["--fallback", "reference", "--faults", faults]));
    assert_eq!((&ended["batches_lost"], &ended["batches_doubled"]), (&0.into(), &0.into()));
    assert_eq!(ended["devices"][1]["name"], "reference");
    assert_eq!(ended["devices"][1]["steps"], 9);
    let proof = toprope(&folder, &["status", "run", "--ledger"]);
    assert!(proof.status.success());
    assert!(String::from_utf8_lossy(&proof.stdout).contains("0 lost, 0 doubled"));
}

#[test]
fn without_a_device_the_run_ends_durably_with_its_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "step 5 always: unsupported in rope";
    let output = train("run", &folder, &["--faults", faults]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{told}");
    assert!(told.contains("no device is left") && told.contains("--run run --resume"), "{told}");
    assert!(folder.path().join("run/checkpoints/step-00000005").is_dir(), "{told}");
    let resumed = toprope(&folder, &["train", "--run", "run", "--resume", "--json"]);
    assert_eq!(summary(&resumed)["steps"], 12);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    for (more, code, words) in [
        (["--fallback", "quantum:7"], 6, "there is no device `quantum:7`"),
        (["--faults", "step 5: dye in matmul"], 2, "did you mean `die`?"),
        (["--faults", "step 99: die in matmul"], 2, "12 steps"),
        (["--faults", "step 5: flip bit 99 in matmul"], 2, "0 to 31"),
        (["--set", "guard.levle=full"], 3, "did you mean `level`?"),
        (["--set", "guard.level=most"], 3, "shadow"),
        (["--set", "guard.attempts_max=0"], 3, "attempts_max"),
    ] {
        let output = train("run", &folder, &more);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {told}");
        assert!(told.contains(words), "{more:?}: {told}");
    }
}

#[test]
fn a_worker_that_hears_nonsense_or_another_version_says_so_and_ends() {
    let hello = r#"{"id":1,"generation":3,"step":0,"call":"hello","version":99,"toprope":"9","run":"r","rank":0,"device":"cpu","regions":[],"progress":[0,0]}"#;
    let mut other = Vec::new();
    other.extend((hello.len() as u32).to_le_bytes());
    other.extend(0u32.to_le_bytes());
    other.extend(hello.as_bytes());
    for (sent, words) in
        [(b"nonsense from a shell\n".to_vec(), "not one of this protocol"), (other, "version 99")]
    {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_toprope"))
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Open until it has ended by itself: a worker whose input is closed ends without a word.
        let mut input = worker.stdin.take().unwrap();
        input.write_all(&sent).unwrap();
        let output = worker.wait_with_output().unwrap();
        drop(input);
        let told = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&told).contains(words), "{}", String::from_utf8_lossy(&told));
    }
}
