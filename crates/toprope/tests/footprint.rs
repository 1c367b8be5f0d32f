//! Memory: what `inspect` tells before the start is what training takes, and a checkpoint of a state in place takes no copy of it.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use serde_json::Value;
use support::Case;

/// A model that is large beside the processes that train it: 9 M parameters.
const LARGE: [&str; 5] = [
    "model.hidden_size=768",
    "model.intermediate_size=2048",
    "evaluation.final_tokens=64",
    "sample.tokens=0",
    "training.state=in_place",
];

fn sets<'a>(all: &[&'a str]) -> Vec<&'a str> {
    all.iter().flat_map(|set| ["--set", set]).collect()
}

fn json(case: &Case, arguments: &[&str]) -> Value {
    let output = case.toprope(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(told.lines().last().unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Bytes that were told before the start, and the most that was then held.
fn told_and_held(case: &Case, run: &str, changes: &[&str]) -> (f64, f64) {
    let recipe = case.recipe(&[("steps = 100", "steps = 3")]);
    let recipe = recipe.to_str().unwrap();
    let sets = sets(changes);
    let told = json(case, &[&["inspect", recipe, "--json"], &sets[..]].concat());
    let held = json(case, &[&["train", recipe, "--run", run, "--json"], &sets[..]].concat());
    assert_eq!(told["footprint"]["total_bytes"], held["planned_memory_bytes"]);
    (number(&told["footprint"]["total_bytes"]), number(&held["peak_memory_bytes"]))
}

#[test]
fn what_inspect_tells_is_what_training_takes() {
    let case = Case::new();
    let double = [&LARGE[..4], &["training.state=double"]].concat();
    let copied = [&double[..], &["checkpoint.every=1"]].concat();
    for (run, changes) in [("in-place", &LARGE[..]), ("double", &double), ("copied", &copied)] {
        let (told, held) = told_and_held(&case, run, changes);
        let mib = |bytes: f64| bytes / 1048576.0;
        println!("{run}: told {:.0} MiB, held {:.0} MiB, {:.3}", mib(told), mib(held), told / held);
        assert!((told / held - 1.0).abs() <= 0.05, "{run}: {told} told, {held} held");
    }
}

#[test]
fn a_checkpoint_of_a_state_in_place_takes_no_copy_of_it() {
    let case = Case::new();
    let (_, seldom) = told_and_held(&case, "seldom", &LARGE);
    let (_, always) = told_and_held(&case, "always", &[&LARGE[..], &["checkpoint.every=1"]].concat());
    // A copy would be 12 bytes for each of the parameters, more than half of all.
    assert!(always < 1.05 * seldom, "{always} bytes with a checkpoint at each step, {seldom} without");
}
