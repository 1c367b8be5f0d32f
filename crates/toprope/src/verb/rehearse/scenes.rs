//! Eleven scenes on the processor: a short training with every class of fault injected, and whether each promise held.
//!
//! Each scene is this binary's own `train`, as a user would run it, with faults injected; what happened is read from the
//! run's journal, and the end state is held against that of a run that nobody disturbed.

use super::curve::leaves;
use super::stage::{Stage, last_lines};
use crate::command::Rehearse;
use crate::exit::{Exit, Failure, OrExit};
use serde::Serialize;
use toprope_guard::journal::{FaultRecord, GuardSummary, RunRecord};
use toprope_world::{Exit as Ended, RealWorld, World};

/// How a scene must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// With the undisturbed run's bits.
    SameBits,
    /// On other devices: every batch once, and the loss within the curve tolerance.
    SameCurve,
    /// A longer run on several devices: every batch once.
    EveryBatch,
}

/// A run with faults.
struct Scene {
    name: &'static str,
    /// What is injected.
    faults: &'static str,
    /// Further arguments of `train`.
    arguments: &'static [&'static str],
    /// Whether the run dies of it and is to be resumed.
    resumes: bool,
    /// Whether it must fail back to the first device.
    comes_back: bool,
    /// Classes of faults that must be in the journal.
    expects: &'static [&'static str],
    promise: Promise,
}

const FULL: &[&str] = &["--set", "guard.level=full"];

const SCENES: &[Scene] = &[
    Scene {
        name: "the worker dies: before, in and after an operator, while it answers, in the update",
        faults: "step 4: die in rope (before); step 8: die in matmul; step 12: die in attention (after); step 16: die while answering; step 20: die in update",
        arguments: &[],
        resumes: false,
        comes_back: false,
        expects: &["lost"],
        promise: Promise::SameBits,
    },
    Scene {
        name: "the device hangs, is slow, gives errors",
        faults: "step 5: hang in attention; step 10: driver 507015 in matmul; step 15: out_of_memory in attention; step 25: slow x30 for 10",
        arguments: &[],
        resumes: false,
        comes_back: false,
        expects: &["hang", "driver", "out_of_memory", "slow"],
        promise: Promise::SameBits,
    },
    Scene {
        name: "numbers come out wrong once: a bit, a carry, a NaN, a tile of zeros, gradients that no check watches",
        faults: "step 6: flip bit 29 in matmul; step 12: wrong_carry bit 24 in attention; step 18: nan in rms_norm; step 24: zero_tile in grouped_matmul count 256; step 32: wrong_carry bit 28 in swiglu_gradient count 512",
        arguments: FULL,
        resumes: false,
        comes_back: false,
        expects: &["mismatch", "spike"],
        promise: Promise::SameBits,
    },
    Scene {
        name: "bits change at rest: in the state, into infinity; in gradients; half of a state never arrives",
        faults: "step 7: flip bit 30 at rest state model.norm.weight; step 14: flip bit 29 at rest carried gradient.model.norm.weight; step 21: tear state",
        arguments: FULL,
        resumes: false,
        comes_back: false,
        expects: &["mismatch", "non_finite"],
        promise: Promise::SameBits,
    },
    Scene {
        name: "state in place: a death under the update goes back to the checkpoint",
        faults: "step 24: die in update",
        arguments: &["--set", "training.state=in_place"],
        resumes: false,
        comes_back: false,
        expects: &["lost"],
        promise: Promise::SameBits,
    },
    Scene {
        name: "state on the device: deaths go back to a snapshot, and one comes in a snapshot",
        faults: "step 9: die in matmul; step 15: die in snapshot; step 22: die in update",
        arguments: &["--set", "training.state=on_device", "--set", "guard.snapshot_every=1"],
        resumes: false,
        comes_back: false,
        expects: &["lost"],
        promise: Promise::SameBits,
    },
    Scene {
        name: "the supervisor is killed; the run is resumed",
        faults: "step 25: kill supervisor",
        arguments: &[],
        resumes: true,
        comes_back: false,
        expects: &[],
        promise: Promise::SameBits,
    },
    Scene {
        name: "the disk fills up; the run is resumed",
        faults: "step 15: disk full",
        arguments: &[],
        resumes: true,
        comes_back: false,
        expects: &[],
        promise: Promise::SameBits,
    },
    Scene {
        name: "a device computes wrong for good: the run goes on elsewhere",
        faults: "step 10 device cpu always: flip bit 29 in matmul",
        arguments: &["--set", "guard.level=full", "--fallback", "cpu:portable"],
        resumes: false,
        comes_back: false,
        expects: &["mismatch"],
        promise: Promise::SameCurve,
    },
    Scene {
        name: "a device lacks an operator in the middle of a run: the run goes on elsewhere",
        faults: "step 12 device cpu always: unsupported in rope",
        arguments: &["--fallback", "cpu:portable"],
        resumes: false,
        comes_back: false,
        expects: &["unsupported"],
        promise: Promise::SameCurve,
    },
    Scene {
        name: "a device fails once: the run goes on elsewhere, and comes back after a test",
        faults: "step 8: unsupported in rope",
        arguments: &["--fallback", "reference", "--set", "guard.retest.after_seconds=0.2"],
        resumes: false,
        comes_back: true,
        expects: &["unsupported"],
        promise: Promise::EveryBatch,
    },
];

/// What `--json` prints last.
#[derive(Debug, Serialize)]
struct Summary {
    passed: bool,
    scenes: Vec<SceneReport>,
    wall_seconds: f64,
}

#[derive(Debug, Serialize)]
struct SceneReport {
    name: String,
    passed: bool,
    broken: Vec<String>,
    faults: Vec<FaultRecord>,
    summary: Option<GuardSummary>,
    seconds: f64,
}

/// Plays the scenes.
pub(super) fn run(arguments: &Rehearse, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let started = world.clock().monotonic();
    let (folder, temporary) = match &arguments.keep {
        Some(folder) => (folder.clone(), false),
        None => {
            let name = format!("toprope-rehearsal-{}", world.processes().own_id());
            (std::env::temp_dir().join(name), true)
        }
    };
    let steps = arguments.steps;
    let stage = Stage { world: &world, recipe: &arguments.recipe, folder: &folder };
    println!("rehearsing {steps} steps of {} on cpu: every fault below is injected", arguments.recipe);
    let clean = stage.train("undisturbed", steps, &[], None, false)?;
    let Some(hash) = clean.hash.clone() else {
        return Err(Failure::new(Exit::Internal, format!("the undisturbed run failed:\n{}", clean.told)));
    };
    let clean_run = RunRecord::read(&world, &folder.join("undisturbed")).or_exit(Exit::Run)?;
    println!("undisturbed: {:.1} s, state {}", clean.seconds, &hash[..16]);
    let mut reports = Vec::new();
    for (number, scene) in SCENES.iter().enumerate() {
        let report = play(&stage, (number + 1, scene), steps, (&hash, &clean_run))?;
        show(number + 1, scene, &report);
        reports.push(report);
    }
    let passed = reports.iter().all(|report| report.passed);
    let wall_seconds = world.clock().monotonic().saturating_sub(started).as_secs_f64();
    let seen: u64 = reports.iter().map(|report| report.faults.len() as u64).sum();
    let broken = reports.iter().filter(|report| !report.passed).count();
    match passed {
        true => println!(
            "\nall {} scenes kept their promises: {seen} faults met, no batch lost, none counted twice ({wall_seconds:.0} s)",
            reports.len()
        ),
        false => println!("\n{broken} of {} scenes broke a promise ({wall_seconds:.0} s)", reports.len()),
    }
    if temporary && passed {
        world.files().remove_folder(&folder).or_exit(Exit::Run)?;
    } else {
        println!("the runs are kept in {}", folder.display());
    }
    if json {
        let summary = Summary { passed, scenes: reports, wall_seconds };
        println!("{}", serde_json::to_string(&summary).or_exit(Exit::Internal)?);
    }
    Ok(if passed { Exit::Done } else { Exit::Promise })
}

fn show(number: usize, scene: &Scene, report: &SceneReport) {
    let verdict = if report.passed { "kept" } else { "BROKEN" };
    println!("\n{number:>2}. {} — {verdict}, {:.1} s", scene.name, report.seconds);
    println!("    injected: {}", scene.faults);
    for fault in &report.faults {
        println!(
            "    step {:>3}  {:<13} {:<28} {}",
            fault.step,
            fault.class.name(),
            fault.action,
            fault.cost()
        );
    }
    if scene.resumes {
        println!("    resumed from the newest durable checkpoint");
    }
    let end = match scene.promise {
        Promise::SameBits => "the end state is the undisturbed one's, bit for bit",
        Promise::EveryBatch => "every batch once, and the first device serves again",
        Promise::SameCurve => "every batch once; the loss within the tolerance of another device",
    };
    match report.broken.as_slice() {
        [] => println!("    {end}"),
        broken => broken.iter().for_each(|reason| println!("    BROKEN: {reason}")),
    }
}

/// A rehearsal's journal is shorter.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;

/// Times the steps of the other scenes that a run lasts in which a device is tested and comes back.
const LONG: u64 = 15;

fn play(
    stage: &Stage<'_>,
    (number, scene): (usize, &Scene),
    steps: u64,
    (hash, clean): (&str, &RunRecord),
) -> Result<SceneReport, Failure> {
    let steps = if scene.comes_back { LONG * steps } else { steps };
    let name = format!("scene-{number}");
    let started = stage.world.clock().monotonic();
    let mut broken = Vec::new();
    let mut played = stage.train(&name, steps, scene.arguments, Some(scene.faults), false)?;
    if scene.resumes {
        if played.ended == Ended::Code(0) {
            broken.push("the run was to die and did not".to_string());
        }
        played = stage.train(&name, steps, &[], None, true)?;
    }
    let run = RunRecord::read(stage.world, &stage.folder.join(&name)).or_exit(Exit::Run)?;
    match (&played.hash, scene.promise) {
        (None, _) => broken.push(format!("the run did not end: {}", last_lines(&played.told))),
        (Some(end), Promise::SameBits) if end != hash => {
            broken.push(format!("the end state is {}, the undisturbed one's {}", &end[..16], &hash[..16]));
        }
        _ => {}
    }
    if scene.promise == Promise::SameCurve {
        broken.extend(leaves(&run, clean));
    }
    for class in scene.expects {
        if !run.faults.iter().any(|fault| fault.class.name() == *class) {
            broken.push(format!("no fault of class `{class}` was seen"));
        }
    }
    if scene.comes_back && !came_back(stage, &name) {
        broken.push("the run did not come back to its first device".into());
    }
    let proof = run.ledger.prove();
    if let Some(violation) = &proof.violation {
        broken.push(violation.to_string());
    }
    if proof.committed != steps {
        broken.push(format!("{} of {steps} steps are in the ledger", proof.committed));
    }
    let seconds = stage.world.clock().monotonic().saturating_sub(started).as_secs_f64();
    Ok(SceneReport {
        name: scene.name.into(),
        passed: broken.is_empty(),
        broken,
        faults: run.faults.clone(),
        summary: Some(GuardSummary::of(&run)),
        seconds,
    })
}

fn came_back(stage: &Stage<'_>, name: &str) -> bool {
    let path = stage.folder.join(name).join("journal.jsonl");
    let text = stage.world.files().read(&path, JOURNAL_BYTES_MAX).unwrap_or_default();
    String::from_utf8_lossy(&text).contains("\"event\":\"failed_back\"")
}
