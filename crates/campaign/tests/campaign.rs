//! The campaign's own promises: it repeats itself, its harm is harm, its rules accuse what they describe.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use toprope_campaign::draw::{Persistence, Planned, Site, planned};
use toprope_campaign::rules::Rule;
use toprope_campaign::scene::{Scene, recipe};
use toprope_campaign::trial::{control_holds, run, steps_until_caught};
use toprope_guard::inject::{Entry, What, parse};
use toprope_program::{DType, Range};

fn scene(dtype: DType) -> Scene {
    Scene::new(&recipe("tiny-dense", dtype, &[]).unwrap(), 1, &[12], 2).unwrap()
}

/// A fault by its text, at the recorded step.
fn fault(scene: &Scene, site: Site, text: &str) -> Planned {
    let Entry::Fault(fault) = parse(&format!("step 12{text}")).unwrap().entries.remove(0) else {
        panic!("{text}")
    };
    let persistence = match (&fault.what, fault.always) {
        (_, false) => Persistence::Transient,
        (What::Compute { corruption, .. }, true) if corruption.anew => Persistence::Varying,
        (_, true) => Persistence::Repeating,
    };
    let (value, instruction) = match &fault.what {
        What::Compute { target, .. } => {
            let text = target.to_string();
            let value = text.split('%').nth(1).unwrap().trim().to_string();
            let id = scene.program.program().find(&value).unwrap();
            let list = &scene.program.program().accumulate;
            let index = list.iter().position(|i| i.outputs.contains(&id)).unwrap();
            (value, Some((Range::Accumulate, index)))
        }
        What::AtRest { value, .. } => (value.clone(), None),
        _ => panic!("{text}"),
    };
    Planned {
        frozen: 0,
        site,
        operator: "any".into(),
        backward: false,
        persistence,
        value,
        instruction,
        fault,
    }
}

fn accuses(trial: &toprope_campaign::trial::Trial, rule: Rule) -> bool {
    trial.rules[Rule::ALL.iter().position(|known| *known == rule).unwrap()]
}

#[test]
fn a_gross_wrong_product_is_harm_and_everyone_sees_what_their_rule_describes() {
    let mut scene = scene(DType::Bf16);
    let gross = fault(&scene, Site::Product, ": flip bit 30 in %layers.0.mlp.down count 100");
    let trial = run(&mut scene, &gross, 1).unwrap();
    assert!(trial.harmful && trial.full && trial.shadow, "{trial:?}");
    assert!(accuses(&trial, Rule::SameDevice) && accuses(&trial, Rule::AsdChecksum), "{trial:?}");
    // The same on a chip that is broken for good: running it again on that chip clears it.
    let repeating = fault(&scene, Site::Product, " always: flip bit 30 in %layers.0.mlp.down count 100");
    let trial = run(&mut scene, &repeating, 1).unwrap();
    assert!(trial.harmful && trial.full, "{trial:?}");
    assert!(!accuses(&trial, Rule::SameDevice) && !accuses(&trial, Rule::AsdChecksum), "{trial:?}");
    let caught = steps_until_caught(&mut scene, &repeating, 1).unwrap();
    assert!(caught < 20, "{caught}");
    // NaN in one element: the NaN check's own case, which Huawei's checksum does not flag.
    let nan = fault(&scene, Site::Product, ": nan in %layers.0.mlp.down");
    let trial = run(&mut scene, &nan, 1).unwrap();
    assert!(accuses(&trial, Rule::Nan) && !accuses(&trial, Rule::AsdChecksum), "{trial:?}");
}

#[test]
fn the_lowest_bit_is_no_harm_and_the_state_is_put_back() {
    let mut scene = scene(DType::F32);
    let small = fault(&scene, Site::State, ": flip at rest state model.norm.weight bit 0");
    let trial = run(&mut scene, &small, 1).unwrap();
    assert!(!trial.harmful && trial.elements == 1 && trial.shadow, "{trial:?}");
    let large = fault(&scene, Site::State, ": flip at rest state lm_head.weight bit 29 count 10");
    assert!(run(&mut scene, &large, 1).unwrap().harmful);
    assert!(control_holds(&mut scene, &large).unwrap());
}

#[test]
fn checkpoints_and_snapshots_go_through_what_verifies_them() {
    let mut scene = scene(DType::Bf16);
    for (site, home) in [(Site::Snapshot, "snapshot"), (Site::Checkpoint, "checkpoint")] {
        for text in [
            "lm_head.weight bit 0",
            "model.norm.weight.m bit 31",
            "model.embed_tokens.weight bit 30 count 1000",
        ] {
            let planned = fault(&scene, site, &format!(": flip at rest {home} {text}"));
            let trial = run(&mut scene, &planned, 1).unwrap();
            assert!(trial.full && trial.elements > 0, "{trial:?}");
        }
    }
}

#[test]
fn the_seed_decides_which_faults_and_all_of_them_can_happen() {
    let scene = &scene(DType::Bf16);
    let texts = |seed| {
        let drawn = (0..200).filter_map(move |index| planned(scene, seed, index));
        drawn.map(|planned| planned.fault.to_string()).collect::<Vec<_>>()
    };
    let first = texts(1);
    assert_eq!(first, texts(1));
    assert_ne!(first, texts(2));
    assert!(first.len() > 150, "{}", first.len());
}
