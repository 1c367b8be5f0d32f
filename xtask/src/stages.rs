//! Stages of CI, each timed.

use crate::built::{built, release};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

type Stage<'a> = (&'a str, Vec<&'a str>);

fn run(root: &Path, stages: &[Stage<'_>]) -> Result<(), String> {
    let mut minutes = Vec::new();
    for (name, command) in stages {
        println!("\n== {name}: {}", command.join(" "));
        let started = Instant::now();
        let status = Command::new(command[0])
            .args(&command[1..])
            .current_dir(root)
            .status()
            .map_err(|error| format!("{name}: cannot start `{}`: {error}", command[0]))?;
        let elapsed = started.elapsed().as_secs_f64() / 60.0;
        minutes.push((*name, elapsed));
        if !status.success() {
            return Err(format!("stage `{name}` failed after {elapsed:.1} min"));
        }
    }
    println!("\nstage                minutes");
    for (name, elapsed) in &minutes {
        println!("{name:<20} {elapsed:>7.2}");
    }
    println!("{:<20} {:>7.2}", "all", minutes.iter().map(|(_, elapsed)| elapsed).sum::<f64>());
    Ok(())
}

/// What CI runs.
pub fn ci(root: &Path) -> Result<(), String> {
    // The binary that the tests were run with: `cargo run` would build it anew with fewer features.
    let binary = release(root).join("toprope");
    let binary = &*binary.to_string_lossy();
    run(
        root,
        &[
            ("format", vec!["cargo", "fmt", "--all", "--check"]),
            ("tidy", vec!["cargo", "xtask", "tidy"]),
            (
                "clippy",
                vec![
                    "cargo",
                    "clippy",
                    "--release",
                    "--workspace",
                    "--all-targets",
                    "--features",
                    "toprope/parquet",
                    "--",
                    "-D",
                    "warnings",
                ],
            ),
            ("test", vec!["cargo", "test", "--release", "--workspace", "--features", "toprope/parquet"]),
            // Tests leave the emulator's libraries where only they look; this puts them beside the binary.
            (
                "build",
                vec![
                    "cargo",
                    "build",
                    "--release",
                    "--workspace",
                    "--all-targets",
                    "--features",
                    "toprope/parquet",
                ],
            ),
            ("pytorch", vec![".ci/pytorch"]),
            ("foreign", vec![".ci/foreign"]),
            // Tests run on every dispatch level of the machine; this stage says which ones those are.
            ("levels", vec!["cargo", "xtask", "programs", "300"]),
            ("docs", vec!["cargo", "doc", "--release", "--workspace", "--no-deps"]),
            ("default recipe", vec![binary, "train", "--steps", "5", "--json"]),
            ("rehearse", vec![binary, "rehearse"]),
            ("rehearse cpu", vec![binary, "rehearse", "--device", "cpu"]),
            ("simulate", vec!["cargo", "xtask", "simulate", "300"]),
            ("worker kills", vec!["cargo", "xtask", "worker-kills", "24", "--others", "8"]),
            ("campaign", vec!["cargo", "xtask", "campaign", "--quick"]),
            // Its runs wait for calls that hang more than they compute.
            (
                "campaign npu",
                vec![
                    "cargo",
                    "xtask",
                    "campaign",
                    "npu",
                    "--every",
                    "23",
                    "--schedules",
                    "10",
                    "--threads",
                    "5",
                ],
            ),
        ],
    )
}

/// What takes longer.
pub fn full(root: &Path) -> Result<(), String> {
    ci(root)?;
    run(
        root,
        &[
            ("programs", vec!["cargo", "xtask", "programs", "10000"]),
            ("transformers", vec![".ci/transformers", "--all"]),
            ("foreign", vec![".ci/foreign", "--all", "--decode"]),
            ("kills", vec!["cargo", "xtask", "kills", "25"]),
            ("simulate", vec!["cargo", "xtask", "simulate", "10000"]),
            ("worker kills", vec!["cargo", "xtask", "worker-kills", "500", "--others", "100"]),
            ("campaign", vec!["cargo", "xtask", "campaign", "--faults", "5000"]),
            ("campaign npu", vec!["cargo", "xtask", "campaign", "npu"]),
        ],
    )
}

/// Random programs in lockstep; the example prints counts, seeds and whatever differed.
pub fn programs(root: &Path, count: u64, seed: u64) -> Result<(), String> {
    let (count, seed) = (count.to_string(), seed.to_string());
    let programs = built(root)?.join("examples/programs");
    run(root, &[("programs", vec![&programs.to_string_lossy(), &count, &seed])])
}
