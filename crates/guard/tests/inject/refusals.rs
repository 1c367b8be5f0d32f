//! Schedules that cannot happen, and random ones that can.

use crate::support::program;
use toprope_guard::inject::{Schedule, check, expand, parse};
use toprope_program::{Phase, Program};

#[test]
fn what_cannot_happen_is_refused_with_the_mend() {
    let program = program();
    let check_text = |text: &str| check(&parse(text).unwrap(), &program, 50);
    for text in [
        "step 49: die in update",
        "step 0: flip bit 31 of matmul in layers.1",
        "step 0: flip at rest state model.norm.weight bit 31 count 32",
        "step 0: flip at rest carried gradient.model.norm.weight",
        "step 0: flip at rest activation layers.0.mlp.gate_up bit 15",
        "random rate=0.5",
    ] {
        check_text(text).unwrap_or_else(|error| panic!("{error}"));
    }
    for (text, reason) in [
        ("step 50: die", "the run has 50 steps"),
        ("step 0: nan in router", "no `router`"),
        ("step 0: nan in matmul in layers.7", "no `matmul` in `layers.7`"),
        ("step 0: flip bit 32 of matmul", "its bits are 0 to 31"),
        ("step 0: wrong_carry bit 31 of matmul", "its bits are 0 to 30"),
        ("step 0: flip at rest activation layers.0.mlp.gate_up bit 16", "its bits are 0 to 15"),
        ("step 0: flip at rest state model.norm.weight count 33", "has 32 elements"),
        ("step 0: flip at rest state model.norm.wait", "the nearest is `model.norm.weight`"),
        ("step 0: flip at rest carried model.norm.weight", "not carried"),
        ("step 0: flip at rest state loss", "not a part of the state"),
        ("step 0: die in accumulate at 100000", "instructions, counted from 0"),
        ("step 0: nan in matmul output 1", "1 output(s)"),
    ] {
        let error = check_text(text).expect_err(text);
        assert!(error.reason.contains(reason), "{text}: {error}");
    }
}

#[test]
fn random_schedules_follow_from_their_seed_and_can_happen() {
    let program = program();
    let drawn = |text: &str| expand(&parse(text).unwrap(), &program, 200);
    let faults = drawn("random seed=7 rate=0.5").unwrap();
    assert_eq!(faults, drawn("random seed=7 rate=0.5").unwrap());
    assert_ne!(faults, drawn("random seed=8 rate=0.5").unwrap());
    assert!((60..140).contains(&faults.len()), "{}", faults.len());
    check(&Schedule::of(faults), &program, 200).unwrap();
    assert!(drawn("random seed=7 rate=0").unwrap().is_empty());
    // A class without a place in the program is told, not skipped.
    let empty = Program {
        name: "empty".into(),
        phase: Phase::Train,
        symbols: Vec::new(),
        values: Vec::new(),
        accumulate: Vec::new(),
        update: Vec::new(),
    };
    assert!(expand(&parse("random rate=1 classes=mismatch").unwrap(), &empty, 1).is_err());
}
