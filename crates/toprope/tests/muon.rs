//! Muon through the binary: it trains, guarded and alone, and what a recipe can get wrong is told.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use support::{Case, fails};

const MUON: [&str; 2] = ["--set", "optimizer.kind=muon"];

/// The loss of the last step of a run.
fn loss(case: &Case, run: &str, more: &[&str]) -> f64 {
    let recipe = case.recipe(&[("steps = 100", "steps = 60")]);
    let arguments = [&["train", recipe.to_str().unwrap(), "--run", run, "--json"], more].concat();
    let output = case.toprope(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let json: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    json["loss"].as_f64().unwrap()
}

#[test]
fn a_run_learns_under_the_guard_and_as_well_without() {
    let case = Case::new();
    let guarded = loss(&case, "guarded", &MUON);
    let alone = loss(&case, "alone", &[&MUON[..], &["--unguarded"]].concat());
    let adamw = loss(&case, "adamw", &[]);
    assert_eq!(guarded, alone);
    assert!(guarded < 4.0 && guarded < 1.5 * adamw, "Muon comes to {guarded}, AdamW to {adamw}");
}

#[test]
fn what_does_not_fit_is_one_error_with_its_key() {
    let case = Case::new();
    let refused = |sets: &[&str], words: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let output = case.toprope(&[&["train", "tiny-dense", "--run", "run"][..], &sets].concat());
        fails(&output, 3, words);
    };
    refused(&["optimizer.kind=moun"], &["optimizer.kind", "moun", "muon"]);
    refused(&["optimizer.muon.momentum=0.9"], &["optimizer.muon", "optimizer.kind is \"adamw\"", "hint:"]);
    let muon = "optimizer.kind=muon";
    refused(&[muon, "optimizer.muon.momentum=1.0"], &["optimizer.muon.momentum", "below 1"]);
    refused(&[muon, "optimizer.muon.steps=0"], &["optimizer.muon.steps", "choose 1 to 20"]);
    refused(&[muon, "optimizer.muon.stepps=5"], &["stepps", "did you mean `steps`?"]);
    refused(&[muon, "optimizer.weight_decay=-1.0"], &["optimizer.weight_decay"]);
}
