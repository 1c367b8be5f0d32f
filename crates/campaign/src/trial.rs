//! One fault, and everything that is measured about it.

use crate::CampaignError;
use crate::at_rest::{changed, checkpoint_is_caught, snapshot_is_caught};
use crate::draw::{Persistence, Planned, Site};
use crate::harm::Harm;
use crate::rules::{Rule, checksum_flags};
use crate::scene::{Outcome, Scene};
use serde::Serialize;
use std::collections::BTreeMap;
use toprope_program::check::{CheckLevel, mask};
use toprope_program::{CheckMask, Range};

/// What came of a fault.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Recipe and dtype.
    pub scene: String,
    /// The fault as a schedule names it.
    pub fault: String,
    /// The class of its site.
    pub site: Site,
    /// The operator, or the kind of value at rest.
    pub operator: String,
    /// Whether it is in the backward pass or the update.
    pub backward: bool,
    /// How often it happens.
    pub persistence: Persistence,
    /// The change's name.
    pub change: String,
    /// The bit, where it is one.
    pub bit: Option<u32>,
    /// Elements asked for.
    pub count: usize,
    /// Whether it fires in a band of values only.
    pub band: bool,
    /// Stored elements whose bits changed.
    pub elements: usize,
    /// What it did.
    pub harm: Harm,
    /// Whether that is harm.
    pub harmful: bool,
    /// Whether `full` catches it before the step is committed.
    pub full: bool,
    /// What catches it there: kinds of checks, `non_finite`, a fault class, `digest` or `checkpoint`.
    pub by: Vec<String>,
    /// Whether the checks that `sampled` fires in that step catch it.
    pub sampled: bool,
    /// For a lasting harmful fault: committed steps until `sampled` catches it, where it was tried.
    pub sampled_steps: Option<u32>,
    /// Whether `shadow` catches it.
    pub shadow: bool,
    /// Whether each of the field's rules accuses, in the order of [`Rule::ALL`].
    pub rules: Vec<bool>,
}

/// Steps after which a lasting fault counts as never caught by `sampled`.
pub const SAMPLED_STEPS_MAX: u32 = 32;

fn draft(scene: &Scene, planned: &Planned) -> Trial {
    let corruption = planned.corruption();
    let change = corruption.map(|corruption| corruption.change.to_string()).unwrap_or_default();
    let mut words = change.split(' ');
    let name = words.next().unwrap_or_default().to_string();
    Trial {
        scene: scene.name.clone(),
        fault: planned.fault.to_string(),
        site: planned.site,
        operator: planned.operator.clone(),
        backward: planned.backward,
        persistence: planned.persistence,
        change: name,
        bit: words.nth(1).and_then(|bit| bit.parse().ok()),
        count: corruption.map_or(0, |corruption| corruption.count),
        band: corruption.is_some_and(|corruption| corruption.band.is_some()),
        elements: 0,
        harm: Harm::default(),
        harmful: false,
        full: false,
        by: Vec::new(),
        sampled: false,
        sampled_steps: None,
        shadow: false,
        rules: vec![false; Rule::ALL.len()],
    }
}

/// Runs a fault's step once with all checks: the checks change no other bit, so its loss and state are those of a step
/// without a guard, and which of the checks hold tells what each level would have seen.
///
/// # Errors
/// A device that fails by itself, a checkpoint that cannot be written.
pub fn run(scene: &mut Scene, planned: &Planned, seed: u64) -> Result<Trial, CampaignError> {
    match planned.site {
        Site::Snapshot | Site::Checkpoint => return in_the_host(scene, planned),
        _ => {}
    }
    let mut trial = draft(scene, planned);
    let at = planned.frozen;
    scene.restore(at)?;
    let outcome = strike(scene, planned)?;
    trial.elements = scene.handle.take_injected().iter().map(|injected| injected.elements).sum();
    let frozen = &scene.frozen[at];
    let clean = &frozen.clean;
    let failed = outcome.fault.as_ref().map(|fault| fault.kind.class().name().to_string());
    trial.harm = if failed.is_some() { Harm::default() } else { Harm::of(&scene.states, frozen, &outcome) };
    trial.harmful = failed.is_none() && trial.harm.is_harmful();
    let step = frozen.step;
    let fires = mask(&scene.sites, CheckLevel::Sampled, step, seed);
    let told = failed.is_some() || outcome.is_non_finite();
    for (site, _) in &outcome.mismatches {
        trial.by.push(format!("{:?}", scene.sites[*site].kind).to_lowercase());
    }
    trial.by.sort();
    trial.by.dedup();
    trial.by.extend(failed);
    if outcome.is_non_finite() {
        trial.by.push("non_finite".into());
    }
    trial.full = !trial.by.is_empty();
    trial.sampled = told || outcome.mismatches.iter().any(|(site, _)| fires.fires(scene.sites[*site].bit));
    // The second device has its own state and computes the step on its own.
    trial.shadow = trial.full || !outcome.same_bits(clean);
    for (index, rule) in Rule::ALL.into_iter().enumerate() {
        trial.rules[index] = match rule {
            Rule::SameDevice => outcome.fault.is_some() || again_differs(planned, &outcome, clean),
            Rule::AsdChecksum => false,
            _ => frozen.history.accuses(rule, &scene.carried, &outcome),
        };
    }
    if let Some((Range::Accumulate, index)) = planned.instruction.filter(|_| planned.site == Site::Product) {
        let place = Rule::ALL.iter().position(|rule| *rule == Rule::AsdChecksum);
        if let Some(place) = place {
            trial.rules[place] = checksum_accuses(scene, planned, index)?;
        }
    }
    scene.arm(Vec::new());
    if planned.site == Site::State {
        scene.soil();
    }
    Ok(trial)
}

fn strike(scene: &mut Scene, planned: &Planned) -> Result<Outcome, CampaignError> {
    scene.handle.take_injected();
    scene.arm(vec![planned.fault.clone()]);
    let all = CheckMask::all(scene.bits());
    let frozen = &scene.frozen[planned.frozen];
    let (step, before) = (frozen.step, frozen.before.clone());
    Ok(scene.execute(step, &all, &before)?)
}

/// Whether a second run on the same device gives other bits. A transient fault is gone in it; one that repeats gives the
/// same bits again, as the device is deterministic; one that varies does so.
fn again_differs(planned: &Planned, outcome: &Outcome, clean: &Outcome) -> bool {
    match (planned.site, planned.persistence) {
        // The bits at rest are wrong in both runs.
        (Site::State, _) => false,
        (_, Persistence::Repeating) => false,
        _ => !outcome.same_bits(clean),
    }
}

/// Huawei's rule flags a product and runs it again on the same chip: if it comes out the same, the alarm is cleared.
fn checksum_accuses(scene: &mut Scene, planned: &Planned, index: usize) -> Result<bool, CampaignError> {
    scene.arm(vec![planned.fault.clone()]);
    let step = scene.frozen[planned.frozen].step;
    scene.run_up_to(step, Range::Accumulate, index)?;
    let flagged = checksum_flags(scene, Range::Accumulate, index)?.unwrap_or(false);
    scene.handle.take_injected();
    Ok(flagged && planned.persistence != Persistence::Repeating)
}

/// Faults in snapshots and checkpoints: harm is what a run that went on from them would carry.
fn in_the_host(scene: &mut Scene, planned: &Planned) -> Result<Trial, CampaignError> {
    let mut trial = draft(scene, planned);
    let Some(corruption) = planned.corruption() else { return Ok(trial) };
    let frozen = &scene.frozen[planned.frozen];
    let other = changed(scene, planned.frozen, &planned.value, corruption);
    let (update, tensor) = frozen.change.distance(&scene.states, &other, &frozen.state);
    let counters = scene
        .states
        .iter()
        .zip(other.iter().zip(&frozen.state))
        .any(|(named, (a, b))| !named.dtype.is_float() && a != b);
    trial.elements = other
        .iter()
        .zip(&frozen.state)
        .map(|(a, b)| a.chunks(4).zip(b.chunks(4)).filter(|(a, b)| a != b).count())
        .sum();
    trial.harm = Harm { loss: 0.0, update, tensor, counters };
    trial.harmful = trial.harm.is_harmful();
    let by = match planned.site {
        Site::Snapshot => snapshot_is_caught(&scene.states, &frozen.state, &other).then_some("digest"),
        _ => checkpoint_is_caught(&scene.states, &frozen.state, &other)?.then_some("checkpoint"),
    };
    trial.by.extend(by.map(Into::into));
    trial.full = by.is_some();
    (trial.sampled, trial.shadow) = (trial.full, trial.full);
    Ok(trial)
}

/// Runs a lasting fault step after step with the checks of `sampled` and commits what is not caught: how many steps were
/// committed before the first alarm.
///
/// # Errors
/// A device that fails by itself.
pub fn steps_until_caught(scene: &mut Scene, planned: &Planned, seed: u64) -> Result<u32, CampaignError> {
    scene.restore(planned.frozen)?;
    scene.handle.take_injected();
    scene.arm(vec![planned.fault.clone()]);
    let first = scene.frozen[planned.frozen].step;
    let mut before: BTreeMap<_, _> = scene.frozen[planned.frozen].before.clone();
    let mut steps = 0;
    while steps < SAMPLED_STEPS_MAX {
        let step = first + u64::from(steps);
        let fires = mask(&scene.sites, CheckLevel::Sampled, step, seed);
        let outcome = scene.execute(step, &fires, &before)?;
        if outcome.fault.is_some() || outcome.is_non_finite() || !outcome.mismatches.is_empty() {
            break;
        }
        before = scene.commit()?;
        steps += 1;
    }
    scene.handle.take_injected();
    scene.arm(Vec::new());
    scene.soil();
    Ok(steps)
}

/// Runs a fault's step with the injector turned off: it must be the clean one, bit by bit, and no check may fire.
///
/// # Errors
/// A device that fails by itself.
pub fn control_holds(scene: &mut Scene, planned: &Planned) -> Result<bool, CampaignError> {
    scene.restore(planned.frozen)?;
    scene.handle.set_enabled(false);
    let outcome = strike(scene, planned);
    scene.handle.set_enabled(true);
    scene.arm(Vec::new());
    let outcome = outcome?;
    let clean = &scene.frozen[planned.frozen].clean;
    Ok(outcome.same_bits(clean) && outcome.mismatches.is_empty() && scene.handle.take_injected().is_empty())
}
