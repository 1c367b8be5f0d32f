//! Training speed beside PyTorch's best setting: runs in turn, medians, ratios within one run.

use crate::built::built;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Compares tokens per second and peak memory.
pub fn run(root: &Path, python: &str, recipe: &str, pairs: usize) -> Result<(), String> {
    let recipes: &[&str] = match recipe {
        "both" => &["bench-dense", "bench-moe"],
        "bench-dense" => &["bench-dense"],
        "bench-moe" => &["bench-moe"],
        other => return Err(format!("no bench recipe `{other}`: bench-dense, bench-moe or both")),
    };
    let binary = built(root)?.join("toprope");
    for recipe in recipes {
        let best = rival(root, python, recipe, None)?;
        let variant = best["variant"].as_str().unwrap_or_default().to_string();
        println!("{recipe}: PyTorch's best is {variant}");
        let mut ratios = Vec::new();
        for pair in 0..pairs {
            let ours = ours(root, &binary, recipe)?;
            let theirs = rival(root, python, recipe, Some(&best))?;
            let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
            let (a, b) = (number(&ours, "tokens_per_second"), number(&theirs, "tokens_per_second"));
            println!(
                "  pair {}: ours {a:.0} tok/s, {:.0} MiB; PyTorch {b:.0} tok/s, {:.0} MiB; ratio {:.2}",
                pair + 1,
                number(&ours, "peak_memory_bytes") / 1048576.0,
                number(&theirs, "peak_memory_bytes") / 1048576.0,
                a / b
            );
            ratios.push(a / b);
        }
        ratios.sort_by(f64::total_cmp);
        println!("{recipe}: median ratio {:.2} of {pairs} pairs", ratios[ratios.len() / 2]);
    }
    Ok(())
}

/// The last line of JSON that a command prints.
pub fn last_json(mut command: Command) -> Result<Value, String> {
    let output = command.output().map_err(|error| format!("cannot start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(last)
        .map_err(|error| format!("{error} in `{last}`; {}", String::from_utf8_lossy(&output.stderr)))
}

fn ours(root: &Path, binary: &Path, recipe: &str) -> Result<Value, String> {
    let run = std::env::temp_dir().join(format!("toprope-bench-{}", std::process::id()));
    let mut command = Command::new(binary);
    command.args(["train", recipe, "--steps", "12"]);
    command.args(["--threads", "2", "--json", "--set", "evaluation.final_tokens=256", "--run"]).arg(&run);
    command.current_dir(root);
    let summary = last_json(command);
    // The folder is ours alone; a run that failed early has none.
    let _ = std::fs::remove_dir_all(&run);
    summary
}

/// What the rival script is asked for: a search for its best setting, or that setting again.
fn rival(root: &Path, python: &str, recipe: &str, best: Option<&Value>) -> Result<Value, String> {
    let mut command = Command::new(python);
    command.arg("benches/rivals/pytorch_train.py").arg(recipe).args(["--threads", "2"]);
    command.current_dir(root);
    let Some(best) = best else {
        command.arg("--best");
        return last_json(command);
    };
    let text = |key: &str| best[key].as_str().unwrap_or_default().to_string();
    for key in ["precision", "attention", "experts"] {
        command.args([format!("--{key}"), best["setting"][key].as_str().unwrap_or_default().to_string()]);
    }
    let variant = text("variant");
    if best["compiled"].as_bool() == Some(true) {
        command.arg("--compile");
    }
    if variant.contains("head-chunked") {
        command.args(["--head", "chunked"]);
    }
    if variant.contains("keeping-allocator") {
        command.envs(KEEPING_ALLOCATOR);
    }
    command.env("OMP_NUM_THREADS", "2");
    last_json(command)
}

/// glibc's allocator that keeps what was freed, as the script's own table has it.
const KEEPING_ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000")];
