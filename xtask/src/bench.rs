//! Training speed beside PyTorch's best setting: runs in turn, medians, ratios within one run.

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
    for recipe in recipes {
        let best = rival(root, python, recipe, None)?;
        let variant = best["variant"].as_str().unwrap_or_default().to_string();
        println!("{recipe}: PyTorch's best is {variant}");
        let mut ratios = Vec::new();
        for pair in 0..pairs {
            let ours = ours(root, recipe)?;
            let theirs = rival(root, python, recipe, Some(&variant))?;
            let number = |value: &serde_json::Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
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

fn last_json(mut command: Command) -> Result<serde_json::Value, String> {
    let output = command.output().map_err(|error| format!("cannot start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(last)
        .map_err(|error| format!("{error} in `{last}`; {}", String::from_utf8_lossy(&output.stderr)))
}

fn ours(root: &Path, recipe: &str) -> Result<serde_json::Value, String> {
    let run = std::env::temp_dir().join(format!("toprope-bench-{}", std::process::id()));
    let mut command = Command::new("cargo");
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "toprope",
        "--",
        "train",
        recipe,
        "--steps",
        "12",
    ]);
    command.args(["--threads", "2", "--json", "--set", "evaluation.tokens=256", "--run"]).arg(&run);
    command.current_dir(root);
    let summary = last_json(command);
    // The folder is ours alone; a run that failed early has none.
    let _ = std::fs::remove_dir_all(&run);
    summary
}

fn rival(
    root: &Path,
    python: &str,
    recipe: &str,
    variant: Option<&str>,
) -> Result<serde_json::Value, String> {
    let mut command = Command::new(python);
    command.arg("benches/rivals/pytorch_train.py").args(["--recipe", recipe, "--threads", "2"]);
    match variant {
        Some(variant) => command.args(["--variant", variant]),
        None => command.arg("--best"),
    };
    command.current_dir(root);
    last_json(command)
}
