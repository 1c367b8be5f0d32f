//! One bad die of several, by the binary: processes of `pytorch:cpu`, one started through an interpreter with a defect.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use toprope_defects::find;

/// Set by CI, which installs torch: a test that is skipped fails.
const REQUIRED: &str = "TOPROPE_TORCH_REQUIRED";

/// How many dies there are; `TOPROPE_DIES=8` makes the figure of docs/qualify.md.
const DIES: &str = "TOPROPE_DIES";

fn python() -> Option<PathBuf> {
    let python = std::env::var("TOPROPE_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut asked = Command::new(&python);
    asked.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
    let there = asked.status().is_ok_and(|status| status.success());
    assert!(there || std::env::var_os(REQUIRED).is_none(), "there is no torch");
    if !there {
        eprintln!(
            "SKIPPED, NOTHING WAS TESTED: no torch; name the interpreter that has it in TOPROPE_PYTHON"
        );
    }
    there.then(|| python.into())
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_bad_one_of_several_processes_is_named_by_the_binary() {
    let Some(python) = python() else { return };
    let count: usize = std::env::var(DIES).map_or(4, |count| count.parse().unwrap());
    let wrong = format!("pytorch:cpu:{}", count / 2 + 1);
    let all = format!("pytorch:cpu:all={count}");
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad-python");
    executable(&bad, &find("dropped_tail_columns").unwrap().interpreter(Some(&python)).unwrap());
    // The device's name is among the worker's words: one die gets the bad interpreter, the others the good one.
    let each = folder.path().join("python-of-dies");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *{wrong}*) exec {} \"$@\";; *) exec {} \"$@\";; esac\n",
        bad.display(),
        python.display()
    );
    executable(&each, &script);
    let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
    command.args(["qualify", "--quick", "--json", "--soak", "1", "--threads", "1", "--device", all.as_str()]);
    command.arg("--python").arg(&each).current_dir(folder.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(last)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
    let dies = summary["dies"]["dies"].as_array().unwrap();
    let bad: Vec<&str> = dies
        .iter()
        .filter(|die| die["alone"].as_u64() > Some(0) || die["outside"].as_u64() > Some(0))
        .map(|die| die["name"].as_str().unwrap())
        .collect();
    assert_eq!((dies.len(), bad), (count, vec![wrong.as_str()]), "{text}");
    // It is the one that is looked at, and it is wrong.
    assert_eq!(summary["device"], wrong.as_str(), "{text}");
    assert_ne!(output.status.code(), Some(0), "{text}");
}

#[test]
fn so_many_dies_must_be_a_number() {
    for (name, words) in [("pytorch:cpu:all", "pytorch:cpu:all=8"), ("pytorch:cpu:all=0", "from 1 to 64")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
        let output = command.args(["qualify", "--quick", "--device", name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(words), "{text}");
    }
}
