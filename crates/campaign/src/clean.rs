//! Steps without faults: how many checks ran, which of them alarmed, whom the field's rules would have accused.

use crate::CampaignError;
use crate::rules::{History, Rule, checksum_flags};
use crate::scene::Scene;
use serde::Serialize;
use std::collections::BTreeMap;
use toprope_program::{CheckMask, Range, philox};
use toprope_train::batch::StepBatch;

/// What clean steps came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Clean {
    /// Recipe and dtype.
    pub scene: String,
    /// Steps.
    pub steps: u64,
    /// Steps whose tokens were random: data spikes.
    pub spikes: u64,
    /// Checks: one operator instance in one step.
    pub checks: u64,
    /// Checks that did not hold.
    pub alarms: u64,
    /// How often each of them did not, by kind and by what it checks, with the largest distance over its limit.
    pub alarmed: BTreeMap<String, (u64, f64)>,
    /// The largest distance over its limit.
    pub largest: f64,
    /// By rule, in the order of [`Rule::ALL`]: steps that it accused.
    pub accusations: Vec<u64>,
    /// Products that Huawei's checksum looked at, and those that it flagged before it ran them again.
    pub products: (u64, u64),
}

/// Every so many steps the batch is noise.
const SPIKE_EVERY: u64 = 50;

/// Tokens that nobody wrote: the loss and the gradients jump, and no device is to blame.
fn spiked(mut batch: StepBatch, step: u64, vocabulary: i32) -> StepBatch {
    for micro in &mut batch.micro {
        for (name, numbers) in &mut micro.integers {
            if name == "tokens" || name == "targets" {
                for (index, number) in numbers.iter_mut().enumerate().filter(|(_, number)| **number >= 0) {
                    let word = philox::block([index as u32, step as u32, 0, 0], [7, 11])[0];
                    *number = (word % vocabulary.max(1) as u32) as i32;
                }
            }
        }
    }
    batch
}

/// Trains `steps` steps with all checks, with a data spike now and then.
///
/// # Errors
/// A device that fails.
pub fn run(scene: &mut Scene, steps: u64, vocabulary: usize) -> Result<Clean, CampaignError> {
    scene.arm(Vec::new());
    scene.restore(0)?;
    let all = CheckMask::all(scene.bits());
    let first = scene.frozen[0].step;
    let mut before: BTreeMap<_, _> = scene.frozen[0].before.clone();
    let mut history: History = scene.frozen[0].history.clone();
    let accusations = vec![0; Rule::ALL.len()];
    let mut clean = Clean { scene: scene.name.clone(), accusations, ..Clean::default() };
    for step in first..first + steps {
        let spike = step % SPIKE_EVERY == SPIKE_EVERY - 1;
        let batch = scene.batch(step);
        let batch = if spike { spiked(batch, step, vocabulary as i32) } else { batch };
        let outcome = scene.execute_batch(step, &batch, &all, &before)?;
        if let Some(fault) = outcome.fault {
            return Err(fault.into());
        }
        clean.steps += 1;
        clean.spikes += u64::from(spike);
        clean.checks += (scene.sites.len() * batch.micro.len()) as u64;
        clean.alarms += outcome.mismatches.len() as u64;
        for (site, mismatch) in &outcome.mismatches {
            let site = &scene.sites[*site];
            let name = format!("{:?} of {:?}", site.kind, site.checked);
            let (count, worst) = clean.alarmed.entry(name).or_default();
            *count += 1;
            *worst = worst.max(mismatch.error / mismatch.tolerance);
        }
        clean.largest = clean.largest.max(outcome.largest);
        for (count, rule) in clean.accusations.iter_mut().zip(Rule::ALL) {
            let again = rule == Rule::SameDevice && step % 20 == 0;
            let accused = match again {
                true => !scene.execute_batch(step, &batch, &all, &before)?.same_bits(&outcome),
                false => history.accuses(rule, &scene.carried, &outcome),
            };
            *count += u64::from(accused);
        }
        history.see(&scene.carried, &outcome);
        before = scene.commit()?;
    }
    // One step's products, each as it stands right behind its instruction.
    for index in 0..scene.program.program().accumulate.len() {
        if scene.program.program().accumulate[index].operator.name() == "matmul" {
            scene.run_up_to(first + steps, Range::Accumulate, index)?;
            if let Some(flagged) = checksum_flags(scene, Range::Accumulate, index)? {
                clean.products.0 += 1;
                clean.products.1 += u64::from(flagged);
            }
        }
    }
    Ok(clean)
}
