//! The verdicts on `ascend:0`, each from the emulator with what leads to it; and the chip's own settings, which are named with
//! the line that changes them.

use crate::support::{device, json, told, toprope};
use std::path::Path;
use std::process::Output;
use std::time::Instant;

/// A quick qualification.
fn qualify(folder: &Path, variants: &str, defects: &str, more: &[&str]) -> Output {
    let name = device(variants);
    let mut arguments = vec!["qualify", "--quick", "--device", name.as_str(), "--json", "--memory", "16"];
    arguments.extend(more);
    toprope(folder, defects, &arguments)
}

/// How many quick runs of a healthy chip are made, each with a seed of its own: `TOPROPE_QUALIFY_SEEDS=50` makes the figure of
/// docs/ascend.md.
const SEEDS: &str = "TOPROPE_QUALIFY_SEEDS";
const FIRST_SEED: u64 = 101;

#[test]
fn a_healthy_chip_is_never_called_wrong_and_said_to_be_emulated() {
    let folder = tempfile::tempdir().unwrap();
    let seeds: u64 = std::env::var(SEEDS).map_or(1, |seeds| seeds.parse().unwrap());
    assert!(seeds > 0, "{SEEDS} is 0: nothing would be tested");
    let (mut wrong, mut slowest) = (Vec::new(), 0.0f64);
    for seed in FIRST_SEED..FIRST_SEED + seeds {
        let (began, seed) = (Instant::now(), seed.to_string());
        let more = ["--soak", "1", "--seed", &seed, "--html", "page.html", "--expect", "train"];
        let output = qualify(folder.path(), "", "", &more);
        slowest = slowest.max(began.elapsed().as_secs_f64());
        let (summary, told) = (json(&output), told(&output));
        if (output.status.code(), &summary["verdict"]) != (Some(0), &"train".into()) {
            wrong.push(format!("seed {seed}: {told}"));
            continue;
        }
        assert_eq!((&summary["emulated"], &summary["device"]), (&true.into(), &"ascend:0".into()));
        assert!(told.contains("verdict: train: ascend:0 (emulated) is fit to train"), "{told}");
        let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
        assert!(page.contains("emulated"), "{page}");
        let operators = summary["operators"].as_array().unwrap();
        assert!(operators.iter().all(|operator| operator["passed"] == true), "{operators:?}");
    }
    // With 95 % confidence: 1 - 0.05^(1/n).
    let bound = 1.0 - 0.05f64.powf(1.0 / seeds as f64);
    println!(
        "{} of {seeds} healthy runs called wrong: at most {:.1} % at 95 %; the slowest took {slowest:.1} s",
        wrong.len(),
        100.0 * bound
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One of the chip's settings is found by its own experiment, explains what is wrong, and is told with its line; the recipe
/// that is written has it off.
fn is_a_setting_and_no_defect(variant: &str, words: &str, line: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = qualify(folder.path(), variant, "", &["--soak", "1"]);
    let (summary, told) = (json(&output), told(&output));
    assert_eq!(summary["verdict"], "train with", "{variant}: {told}");
    assert!(told.contains("setting, not a defect:") && told.contains(words), "{variant}: {told}");
    assert!(told.contains(&format!("(here: {line})")), "{variant}: {told}");
    let operators = summary["operators"].as_array().unwrap();
    let unexplained = |o: &&serde_json::Value| o["passed"] == false && o["setting"].is_null();
    assert_eq!(operators.iter().find(unexplained), None, "{variant}");
    let recipe = std::fs::read_to_string(folder.path().join("tiny-moe-on-ascend-0.toml")).unwrap();
    let device = recipe.lines().find(|line| line.starts_with("device")).unwrap();
    assert!(device.contains(&line[1..]) && !device.contains(variant), "{device}");
}

#[test]
fn rounded_operands_of_products_are_a_setting() {
    is_a_setting_and_no_defect("+cube=hf32", "f32 products round their operands to HF32", "+cube=f32");
}

#[test]
fn saturation_is_a_setting() {
    is_a_setting_and_no_defect(
        "+overflow=saturate",
        "what overflows is the largest number",
        "+overflow=ieee",
    );
}

#[test]
fn bits_that_differ_from_run_to_run_are_a_setting() {
    is_a_setting_and_no_defect("+deterministic=off", "bits may differ from run to run", "+deterministic=on");
}

/// A library that shortens operands of products which were asked for exactly is wrong, whatever the setting's name.
#[test]
fn a_setting_that_is_not_obeyed_is_a_defect() {
    let folder = tempfile::tempdir().unwrap();
    let output = qualify(folder.path(), "", "matmul.hf32", &["--soak", "1"]);
    let (summary, told) = (json(&output), told(&output));
    let operators = summary["operators"].as_array().unwrap();
    let wrong =
        |o: &&serde_json::Value| o["name"] == "matmul" && o["passed"] == false && o["setting"].is_null();
    assert!(operators.iter().any(|operator| wrong(&operator)), "{told}");
    assert!(told.contains("though exact ones were asked for"), "{told}");
}

/// Trains wrong, infers right: the optimizer's or a gradient's operator is wrong in every variant.
#[test]
fn wrong_gradients_alone_leave_inference() {
    let folder = tempfile::tempdir().unwrap();
    let output = qualify(folder.path(), "", "scatter.lost_update", &["--soak", "1", "--expect", "infer"]);
    let (summary, told) = (json(&output), told(&output));
    assert_eq!((output.status.code(), &summary["verdict"]), (Some(0), &"infer".into()), "{told}");
}

/// Wrong in a fused operator alone: right with plain ones, which the recipe then names.
#[test]
fn a_wrong_fused_gradient_trains_with_plain_operators() {
    let folder = tempfile::tempdir().unwrap();
    let output = qualify(folder.path(), "", "norm.gradient_mean", &["--soak", "1"]);
    let (summary, told) = (json(&output), told(&output));
    assert_eq!(summary["verdict"], "train with", "{told}");
    assert!(told.contains("+fused=off") && told.contains("`rms_norm_gradient`"), "{told}");
    let recipe = std::fs::read_to_string(folder.path().join("tiny-moe-on-ascend-0.toml")).unwrap();
    assert!(recipe.contains("fused=off"), "{recipe}");
}

/// Fails about every fifty steps, says so, and serves again once it is reset: the guard trains on it, and what that costs is
/// measured.
#[test]
fn a_chip_that_fails_every_fifty_steps_trains_under_the_guard() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        qualify(folder.path(), "", "runtime.507015@every=50000", &["--soak", "1", "--expect", "train"]);
    let (summary, told) = (json(&output), told(&output));
    assert_eq!((output.status.code(), &summary["verdict"]), (Some(0), &"train".into()), "{told}");
    assert!(told.contains("the guard, which is there by default") && told.contains("goodput"), "{told}");
}

/// What every product computes in is wrong: nothing is left to run on it.
#[test]
fn wrong_everywhere_is_unfit() {
    let folder = tempfile::tempdir().unwrap();
    let output = qualify(folder.path(), "", "matmul.tail_k;cast.truncate", &["--soak", "1"]);
    let (summary, told) = (json(&output), told(&output));
    assert_eq!((output.status.code(), &summary["verdict"]), (Some(12), &"unfit".into()), "{told}");
}
