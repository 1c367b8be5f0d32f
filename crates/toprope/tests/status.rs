//! `toprope status` and `--metrics` through the binary.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn toprope(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toprope")).args(arguments).current_dir(folder).output().unwrap()
}

/// A run's folder with these lines in its journal.
fn run(lines: &[Value]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    std::fs::create_dir(&path).unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(path.join("journal.jsonl"), text).unwrap();
    (folder, path)
}

fn line(mut fields: Value) -> Value {
    let line = fields.as_object_mut().unwrap();
    line.insert("attempt".into(), json!(1));
    line.insert("time".into(), json!("2026-01-01T00:00:00.000Z"));
    fields
}

fn begun(process: u32) -> Vec<Value> {
    vec![
        line(json!({"event": "created", "run_id": "0123", "process": process, "toprope_version": "0.1.0",
                    "journal_version": 1})),
        line(json!({"event": "start", "step": 0, "devices": ["cpu"]})),
        line(json!({"event": "committed", "step": 0, "number": 1, "states": [1]})),
        line(json!({"event": "committed", "step": 1, "number": 2, "states": [1]})),
    ]
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
    assert_eq!(message.lines().filter(|line| line.starts_with("error:")).count(), 1, "{message}");
}

fn json_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn what_is_no_run_is_one_clear_error() {
    let (folder, path) = run(&[]);
    fails(&toprope(folder.path(), &["status", "nowhere"]), 5, &["nowhere", "no run's folder", "hint:"]);
    fails(
        &toprope(folder.path(), &["status", "run"]),
        5,
        &["journal.jsonl", "no line names the run", "hint:"],
    );
    std::fs::write(path.join("journal.jsonl"), b"\x89PNG\r\n\x1a\n\0\0\0").unwrap();
    fails(&toprope(folder.path(), &["status", "run"]), 5, &["journal.jsonl", "line 1", "hint:"]);

    let mut lines = begun(1);
    lines.push(line(json!({"event": "resumed", "run_id": "ffff", "process": 1, "toprope_version": "0.1.0"})));
    let (folder, _path) = run(&lines);
    fails(&toprope(folder.path(), &["status", "run"]), 5, &["line 5", "ffff", "0123", "hint:"]);

    let mut lines = begun(1);
    lines[0]["journal_version"] = json!(99);
    let (folder, _path) = run(&lines);
    fails(&toprope(folder.path(), &["status", "run"]), 5, &["version 99", "hint:"]);
}

#[test]
fn the_ledger_is_proven_or_the_first_break_named() {
    let (folder, path) = run(&begun(1));
    let output = toprope(folder.path(), &["status", "run", "--ledger", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ledger proven: 2 batches committed, 0 lost, 0 doubled"), "{text}");
    assert!(text.contains("steps 0..=1  attempt 1  executions 1..=2  cpu  lines 3..=4"), "{text}");
    let summary = json_line(&output);
    assert_eq!((&summary["batches_lost"], &summary["batches_doubled"]), (&json!(0), &json!(0)));
    assert_eq!(summary["steps"], json!(2));
    assert_eq!(summary["state"], json!("died"));
    assert!(!path.join("report.html").exists(), "status writes nothing unless it is asked to");

    let mut lines = begun(1);
    lines.push(line(json!({"event": "committed", "step": 1, "number": 3, "states": [1]})));
    let (folder, _path) = run(&lines);
    let output = toprope(folder.path(), &["status", "run", "--json"]);
    fails(&output, 5, &["does not prove", "hint:"]);
    assert_eq!(json_line(&output)["batches_doubled"], json!(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("counted twice"));
}

#[test]
fn a_torn_last_line_is_told_and_passed_over() {
    let (folder, path) = run(&begun(1));
    let journal = path.join("journal.jsonl");
    let mut text = std::fs::read(&journal).unwrap();
    text.truncate(text.len() - 9);
    std::fs::write(&journal, text).unwrap();
    let output = toprope(folder.path(), &["status", "run"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: skipped line 4"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 batches committed"), "{output:?}");
}

#[test]
fn a_run_whose_process_lives_is_running() {
    let (folder, path) = run(&begun(std::process::id()));
    std::fs::write(path.join("run.lock"), format!("{}\n", std::process::id())).unwrap();
    let output = toprope(folder.path(), &["status", "run", "--json", "--html"]);
    assert_eq!(json_line(&output)["state"], json!("running"));
    assert!(std::fs::read_to_string(path.join("report.html")).unwrap().contains("running"));
}

#[test]
fn an_address_in_use_is_said_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = toprope(folder.path(), &["train", "tiny-dense", "--run", "run", "--metrics", &address]);
    fails(&output, 2, &[&address, "in use", "hint:"]);
    assert!(!folder.path().join("run").exists());
}
