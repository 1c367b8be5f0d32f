//! Training on the user's own PyTorch under the guard: real workers in Python, real deaths, failover and back.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Set by CI, which installs torch: a test that is skipped fails.
const REQUIRED: &str = "TOPROPE_TORCH_REQUIRED";

/// Whether there is a torch; says so loudly where there is none.
fn torch() -> bool {
    let python = std::env::var("TOPROPE_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut asked = Command::new(python);
    asked.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
    let there = asked.status().is_ok_and(|status| status.success());
    assert!(there || std::env::var_os(REQUIRED).is_none(), "there is no torch");
    if !there {
        eprintln!(
            "SKIPPED, NOTHING WAS TESTED: no torch; name the interpreter that has it in TOPROPE_PYTHON"
        );
    }
    there
}

fn command(folder: &TempDir, recipe: &str, run: &str, more: &[&str]) -> Command {
    let text: String =
        (0..4000).map(|n| format!("line {n} of a text that repeats itself, {}\n", n % 7)).collect();
    std::fs::write(folder.path().join("text.txt"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
    command.args(["train", recipe, "--json", "--threads", "1", "--run", run]);
    let source =
        "data={source=\"files\",paths=[\"text.txt\"],document_separator=\"\\n\",validation_fraction=0.0}";
    command.args(["--set", source, "--set", "evaluation.final_tokens=64"]).args(more);
    command.current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn train(folder: &TempDir, recipe: &str, run: &str, more: &[&str]) -> Output {
    command(folder, recipe, run, more).output().unwrap()
}

fn summary(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn events(folder: &TempDir, run: &str, file: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.path().join(run).join(file)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn is_whole(summary: &serde_json::Value) {
    assert_eq!((&summary["batches_lost"], &summary["batches_doubled"]), (&0.into(), &0.into()));
}

#[test]
fn a_killed_python_costs_no_bit() {
    if !torch() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let on = ["--device", "pytorch:cpu", "--steps", "60"];
    let calm = summary(&train(&folder, "tiny-dense", "calm", &on));
    let child = command(&folder, "tiny-dense", "harried", &on).spawn().unwrap();
    let began = Instant::now();
    let mut killed = 0;
    while killed < 2 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
        let committed = events(&folder, "harried", "journal.jsonl");
        let committed = committed.iter().filter(|event| event["event"] == "committed").count();
        if committed < 5 + 20 * killed {
            continue;
        }
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let Some(worker) = children.split_whitespace().next() else { continue };
        let line =
            std::fs::read_to_string(Path::new("/proc").join(worker).join("cmdline")).unwrap_or_default();
        // The guard starts Python itself.
        assert!(line.is_empty() || line.contains("toprope worker\0pytorch:cpu"), "{line}");
        killed += usize::from(Command::new("kill").args(["-KILL", worker]).status().unwrap().success());
    }
    let harried = summary(&child.wait_with_output().unwrap());
    assert_eq!(killed, 2);
    assert_eq!(harried["state_hash"], calm["state_hash"]);
    assert!(harried["faults"]["lost"].as_u64().unwrap() >= 1, "{}", harried["faults"]);
    is_whole(&harried);
}

#[test]
fn faults_of_every_class_happen_in_it_too() {
    if !torch() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let on = ["--device", "pytorch:cpu", "--steps", "24", "--set", "guard.level=full"];
    let calm = summary(&train(&folder, "tiny-dense", "calm", &on));
    let faults = "step 2: die in matmul; step 4: hang in attention; step 6: driver 507015 in matmul; \
                  step 8: out_of_memory in attention; step 10: nan in matmul; step 12: flip bit 30 in attention; \
                  step 14: flip bit 28 at rest state model.norm.weight; step 16: die while answering; \
                  step 18: tear state";
    let more = [&on[..], &["--faults", faults]].concat();
    let harried = summary(&train(&folder, "tiny-dense", "harried", &more));
    assert_eq!(harried["state_hash"], calm["state_hash"], "{}", harried["faults"]);
    for class in ["lost", "hang", "driver", "out_of_memory", "non_finite", "mismatch"] {
        assert!(harried["faults"][class].as_u64().unwrap() >= 1, "{class}: {}", harried["faults"]);
    }
    is_whole(&harried);
}

/// The test of a device that comes back is a step of the run in lockstep with the oracle, so this is that, too.
#[test]
fn it_fails_over_to_the_cpu_and_comes_back() {
    if !torch() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let faults = "step 5 device pytorch:cpu: unsupported in rope; step 0 device cpu: slow x60 for 100000";
    let more = ["--device", "pytorch:cpu", "--fallback", "cpu", "--steps", "300", "--faults", faults];
    let more = [&more[..], &["--set", "guard.retest.after_seconds=0.2"]].concat();
    let ended = summary(&train(&folder, "tiny-moe", "run", &more));
    is_whole(&ended);
    let journal = events(&folder, "run", "journal.jsonl");
    for event in ["failed_over", "failed_back"] {
        assert!(journal.iter().any(|line| line["event"] == event), "no {event}: {}", ended["devices"]);
    }
}

#[test]
fn it_stands_in_for_another_device() {
    if !torch() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let more = [
        "--fallback",
        "pytorch:cpu",
        "--steps",
        "12",
        "--faults",
        "step 4 device cpu always: unsupported in rope",
    ];
    let ended = summary(&train(&folder, "tiny-dense", "run", &more));
    is_whole(&ended);
    assert_eq!(ended["devices"][1]["name"], "pytorch:cpu");
    assert_eq!(ended["devices"][1]["steps"], 8);
}

/// The curve tolerance of the contract: f32 within 1e-5, bf16 within 2e-3, over the first 20 steps.
#[test]
fn its_losses_are_those_of_the_oracle() {
    if !torch() {
        return;
    }
    for (recipe, optimizer, dtype, tolerance) in [
        ("tiny-dense", "adamw", "f32", 1e-5),
        ("tiny-dense", "adamw", "bf16", 2e-3),
        ("tiny-moe", "adamw", "f32", 1e-5),
        ("tiny-moe", "adamw", "bf16", 2e-3),
        ("tiny-dense", "muon", "f32", 1e-5),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let losses = |device: &str, run: &str| -> Vec<f64> {
            let (dtype, kind) = (format!("training.dtype={dtype}"), format!("optimizer.kind={optimizer}"));
            let more = ["--device", device, "--steps", "20", "--set", &dtype, "--set", &kind];
            summary(&train(&folder, recipe, run, &more));
            events(&folder, run, "metrics.jsonl").iter().filter_map(|line| line["loss"].as_f64()).collect()
        };
        let (got, want) = (losses("pytorch:cpu", "torch"), losses("reference", "oracle"));
        assert_eq!((got.len(), want.len()), (20, 20), "{recipe} {optimizer} {dtype}");
        let distance = |(got, want): (&f64, &f64)| (got - want).abs() / want.abs();
        let worst = got.iter().zip(&want).map(distance).fold(0.0, f64::max);
        println!("{recipe} {optimizer} {dtype}: {worst:.2e} of {tolerance:.0e}");
        assert!(worst <= tolerance, "{recipe} {optimizer} {dtype}: {worst}");
    }
}

#[test]
fn what_is_wrong_with_a_name_or_an_interpreter_is_told_in_one_error() {
    let folder = tempfile::tempdir().unwrap();
    for (more, words) in [
        (vec!["--device", "pytorch:tpu:0"], "`pytorch:cuda:N`"),
        (vec!["--device", "pytorch:cpu+attention=magic"], "`attention` is one of plain, sdpa-math"),
        (
            vec!["--device", "pytorch:cpu", "--python", "/nowhere/python3"],
            "no Python interpreter `/nowhere/python3`",
        ),
        (vec!["--fallback", "pytorch:cuda"], "as in `pytorch:cuda:0`"),
    ] {
        let output = train(&folder, "tiny-dense", "run", &more);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{more:?}: {told}");
        assert!(told.contains(words) && told.matches("error:").count() == 1, "{more:?}: {told}");
        assert!(!folder.path().join("run").exists(), "{more:?}: a folder was made");
    }
}

/// A training script of somebody's own, with a command line.
const SCRIPT: &str = r#"
import argparse
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, required=True)
width = parser.parse_args().width
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(3):
    loss = model(torch.randn(4, width)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"#;

#[test]
fn a_script_of_ones_own_is_diagnosed_with_its_command_line() {
    if !torch() {
        return;
    }
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("train.py"), SCRIPT).unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/src");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
        command.args(["diagnose", "--script", "train.py", "--device", "cpu", "--json"]).args(more);
        command.current_dir(folder.path()).env("PYTHONPATH", &package).output().unwrap()
    };
    let told = run(&["--html", "page.html", "--cases", "cases.jsonl", "--", "--width", "24"]);
    assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stderr));
    let report = summary(&told);
    assert_eq!(report["first_wrong"], serde_json::Value::Null, "{report}");
    let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
    assert!(page.contains("<html"));
    // What it wrote is what `qualify --for` reads: the width that was asked for is in it.
    let cases = std::fs::read_to_string(folder.path().join("cases.jsonl")).unwrap();
    assert!(cases.lines().any(|line| line.contains("aten.addmm") && line.contains("24")), "{cases}");
    // A script that stumbles over its command line is told once.
    let missing = run(&["--step", "2"]);
    let text = String::from_utf8_lossy(&missing.stderr).to_string();
    assert_eq!(missing.status.code(), Some(15), "{text}");
    assert_eq!(text.matches("toprope: ").count(), 1, "{text}");
    assert!(!text.contains("could not be diagnosed"), "{text}");
    for refused in [["--repeat", "3"], ["--against", "reference"], ["--threads", "1"]] {
        let told = run(&refused);
        let text = String::from_utf8_lossy(&told.stderr).to_string();
        assert!(told.status.code() == Some(2) && text.contains(refused[0]), "{text}");
    }
}
