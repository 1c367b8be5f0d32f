//! `toprope diagnose` and `toprope report`, run as a user runs them.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn toprope(folder: &Path, arguments: &[&str], python: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
    command.args(arguments).current_dir(folder);
    if let Some(python) = python {
        command.env("TOPROPE_PYTHON", python);
    }
    command.output().unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The last line of standard output, which `--json` promises to be one object.
fn last(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_else(|| panic!("no output: {}", told(output)));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}\n{}", told(output)))
}

/// Fails with this code, one error that has these words, and no panic.
fn fails(output: &Output, code: i32, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}", told(output));
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    assert!(!error.contains("panicked"), "{error}");
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

/// Some text in files, and a recipe on it.
fn recipe(folder: &Path) -> String {
    let text: String =
        (0..6000).map(|i| format!("fn f{i}(x: u32) -> u32 {{ x + {} }}\n\n", i * 7 % 31)).collect();
    std::fs::write(folder.join("text.txt"), &text[..60_000]).unwrap();
    let output = toprope(folder, &["inspect", "tiny-moe"], None);
    assert!(output.status.success());
    let source = include_str!("../../../recipes/tiny-moe.toml");
    let (before, behind) = source.split_once("[data]").unwrap();
    let rest = behind.split_once("\n[").map_or(String::new(), |(_, rest)| format!("[{rest}"));
    let data = "[data]\nsource = \"files\"\ndocument_separator = \"\\n\\n\"\npaths = [\"text.txt\"]\nvalidation_fraction = 0.0\n\n";
    std::fs::write(folder.join("small.toml"), format!("{before}{data}{rest}")).unwrap();
    "small.toml".into()
}

const SMALL: [&str; 6] =
    ["--set", "training.sequence=16", "--set", "training.batch=2", "--set", "training.micro_batch=1"];

/// A run of a few steps.
fn run(folder: &Path) -> String {
    let recipe = recipe(folder);
    let mut arguments = vec!["train", recipe.as_str(), "--steps", "6", "--run", "run", "--unguarded"];
    arguments.extend([
        "--set",
        "checkpoint.every=3",
        "--set",
        "evaluation.final_tokens=64",
        "--set",
        "sample.tokens=0",
    ]);
    arguments.extend(SMALL);
    let output = toprope(folder, &arguments, None);
    assert!(output.status.success(), "{}", told(&output));
    "run".into()
}

#[test]
fn a_healthy_run_names_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path());
    let output = toprope(
        folder.path(),
        &["diagnose", &run, "--step", "4", "--device", "cpu", "--against", "reference", "--json"],
        None,
    );
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let report = last(&output);
    assert_eq!(report["first_wrong"], Value::Null);
    assert_eq!(report["wrong"], 0);
    assert!(report["instructions"].as_u64().unwrap() > 200, "{report}");
    assert!(report["growth"]["loss"].is_array(), "{report}");
    assert!(told(&output).contains("replaying steps 3 to 3 on reference"), "{}", told(&output));
    // Three devices, some operators, each a few times.
    let output = toprope(
        folder.path(),
        &[
            "diagnose",
            &run,
            "--device",
            "cpu",
            "--against",
            "cpu:portable,reference",
            "--operator",
            "rope",
            "--operator",
            "adamw",
            "--repeat",
            "3",
            "--json",
        ],
        None,
    );
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let report = last(&output);
    let rows = report["table"].as_array().unwrap();
    assert!(rows.iter().all(|row| ["rope", "adamw"].contains(&row["operator"].as_str().unwrap())));
    assert!(
        rows.iter()
            .all(|row| row["standings"].as_array().unwrap().len() == 3 && row["standings"][0]["runs"] == 3)
    );
    assert!(told(&output).contains("was missed with a probability of at most 5 %"), "{}", told(&output));
    // Over a range of steps there is nothing to find.
    let output = toprope(
        folder.path(),
        &[
            "diagnose",
            &run,
            "--from",
            "0",
            "--to",
            "5",
            "--device",
            "cpu",
            "--against",
            "reference",
            "--operator",
            "rope",
            "--json",
        ],
        None,
    );
    assert_eq!(
        (output.status.code(), &last(&output)["first_wrong"]),
        (Some(0), &Value::Null),
        "{}",
        told(&output)
    );
}

#[test]
fn what_cannot_be_diagnosed_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path());
    let on = |arguments: &[&str]| toprope(folder.path(), arguments, None);
    let diagnose = |more: &[&str]| {
        let mut arguments = vec!["diagnose", run.as_str()];
        arguments.extend(more);
        on(&arguments)
    };
    fails(
        &diagnose(&["--step", "7", "--device", "cpu", "--against", "reference"]),
        5,
        &["there is no step 7", "6 step(s)", "--step"],
    );
    fails(&diagnose(&["--device", "gpu"]), 6, &["there is no device `gpu`", "`cpu`"]);
    fails(&diagnose(&["--device", "cpu", "--against", "tpu"]), 6, &["there is no device `tpu`"]);
    fails(&diagnose(&["--device", "cpu", "--against", "cpu"]), 2, &["named twice", "hint"]);
    fails(
        &diagnose(&["--device", "cpu", "--against", "reference,cpu:avx2,cpu:portable"]),
        2,
        &["at most two"],
    );
    fails(
        &diagnose(&["--device", "cpu", "--against", "reference", "--operator", "matmull"]),
        2,
        &["matmull", "rms_norm"],
    );
    fails(
        &diagnose(&["--device", "cpu", "--against", "reference", "--from", "4", "--to", "2"]),
        2,
        &["--from 4"],
    );
    fails(
        &on(&["diagnose", "nowhere", "--device", "cpu", "--against", "reference"]),
        5,
        &["nowhere", "tiny-moe"],
    );
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    fails(
        &on(&["diagnose", "empty", "--device", "cpu", "--against", "reference"]),
        5,
        &["not a run's folder", "recipe.toml"],
    );
    fails(&on(&["report", "empty", "--operator", "rope"]), 5, &["not a run's folder"]);
    fails(&on(&["report", &run, "--operator", "rop"]), 2, &["there is no operator `rop`", "rope"]);
    fails(&on(&["report", &run, "--operator", "rope", "--device", "gpu"]), 6, &["there is no device `gpu`"]);
    fails(&on(&["report", &run, "--operator", "rope", "--step", "99"]), 5, &["there is no step 99"]);
    fails(
        &on(&["report", &run, "--operator", "rope", "--device", "cpu", "--against", "cpu"]),
        2,
        &["named twice"],
    );
    let passed = on(&["report", &run, "--operator", "rope"]);
    fails(&passed, 5, &["`rope` passed on cpu", "nothing to report"]);
    assert!(!folder.path().join("run/toprope-report-rope.tar.gz").exists());
    fails(
        &on(&["diagnose", "--script", "nothing.py", "--device", "cpu"]),
        2,
        &["nothing.py", "no such script"],
    );
    std::fs::write(folder.path().join("train.py"), "print(1)\n").unwrap();
    let script = ["diagnose", "--script", "train.py", "--device", "cpu", "--python", "/bin/false"];
    fails(&on(&script), 6, &["/bin/false", "toprope", "pip install"]);
}

/// The interpreter that has torch; a test without one says so, and fails where one is required.
fn torch() -> Option<PathBuf> {
    let python = std::env::var_os("TOPROPE_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let there = Command::new(&python).args(["-c", "import torch"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(std::env::var_os("TOPROPE_TORCH_REQUIRED").is_none(), "{} has no torch", python.display());
    println!("SKIPPED, NOTHING WAS TESTED: {} has no torch", python.display());
    None
}

/// An interpreter whose torch has a product that loses the columns behind the last multiple of 16.
fn spoiled(folder: &Path, python: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let site = folder.join("site");
    std::fs::create_dir(&site).unwrap();
    let patch = "import torch\nright = torch.Tensor.__matmul__\ndef wrong(a, b):\n    y = right(a, b)\n    y[..., y.shape[-1] // 16 * 16:] = 0\n    return y\ntorch.Tensor.__matmul__ = wrong\n";
    std::fs::write(site.join("sitecustomize.py"), patch).unwrap();
    let wrapper = folder.join("python-spoiled");
    let found = if python.is_absolute() {
        python.display().to_string()
    } else {
        format!("$(command -v {})", python.display())
    };
    std::fs::write(&wrapper, format!("#!/bin/sh\nPYTHONPATH={} exec {found} \"$@\"\n", site.display()))
        .unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    wrapper
}

#[test]
fn a_wrong_torch_is_named_and_its_report_runs_by_itself() {
    let Some(python) = torch() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path());
    let wrong = spoiled(folder.path(), &python);
    let device = ["--device", "pytorch:cpu", "--against", "cpu"];
    // Right as it is.
    let mut arguments = vec!["diagnose", &run, "--step", "4", "--json"];
    arguments.extend(device);
    let output = toprope(folder.path(), &arguments, Some(&python));
    assert_eq!(
        (output.status.code(), &last(&output)["first_wrong"]),
        (Some(0), &Value::Null),
        "{}",
        told(&output)
    );
    // Wrong as it is spoiled.
    let output = toprope(folder.path(), &arguments, Some(&wrong));
    assert_eq!(output.status.code(), Some(14), "{}", told(&output));
    let first = &last(&output)["first_wrong"];
    println!("{}", String::from_utf8_lossy(&output.stdout).lines().take(60).collect::<Vec<_>>().join("\n"));
    assert_eq!((&first["operator"], &first["step"]), (&"matmul".into(), &4.into()));
    assert!(first["layer"].as_str().unwrap().starts_with("layers.0"), "{first}");
    assert_eq!(first["defect_guess"]["kind"], "dropped_tail");
    assert!(first["error"].as_f64().unwrap() > first["tolerance"].as_f64().unwrap());
    assert!(first["reproducer"].as_str().unwrap().contains("matmul("), "{first}");
    assert!(folder.path().join(first["saved"].as_str().unwrap()).exists());
    // Three devices: the spoiled torch stands alone.
    let mut three = vec!["diagnose", &run, "--step", "4", "--json", "--operator", "matmul"];
    three.extend(["--device", "pytorch:cpu", "--against", "cpu,reference"]);
    let output = toprope(folder.path(), &three, Some(&wrong));
    let vote = last(&output)["vote"].as_str().unwrap_or_default().to_string();
    assert!(vote.contains("pytorch:cpu"), "{vote}");
    // The first step that differs is the first of all.
    let mut range = vec!["diagnose", &run, "--from", "1", "--to", "3", "--json", "--operator", "matmul"];
    range.extend(device);
    let output = toprope(folder.path(), &range, Some(&wrong));
    assert_eq!(last(&output)["step"], 1, "{}", told(&output));
    // The report, and its script with nothing of ours beside it.
    let mut report = vec![
        "report",
        &run,
        "--operator",
        "matmul",
        "--step",
        "4",
        "--redact",
        "--out",
        "sent.tar.gz",
        "--json",
    ];
    report.extend(device);
    let output = toprope(folder.path(), &report, Some(&wrong));
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(last(&output)["guess"]["kind"], "dropped_tail");
    let clean = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(folder.path().join("sent.tar.gz"))
        .current_dir(clean.path())
        .status();
    assert!(unpacked.unwrap().success());
    let inside = clean.path().join("toprope-report-matmul");
    println!("{}", std::fs::read_to_string(inside.join("README.md")).unwrap());
    for (interpreter, code) in [(&wrong, 1), (&python, 0)] {
        let script = Command::new(interpreter).arg("repro_torch.py").current_dir(&inside).output().unwrap();
        assert_eq!(script.status.code(), Some(code), "{}", told(&script));
    }
}
