//! What memory a training run takes, told before it starts.

use crate::exit::{Exit, Failure};
use crate::progress::bytes;
use crate::verb::train::programs::Programs;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use toprope_devices::{in_host_memory, workspace_bytes};
use toprope_program::{Device, MemoryPlan, StateLayout, Validated, Width};
use toprope_train::data::expected_bytes;
use toprope_train::recipe::{Recipe, StatePlan};
use toprope_train::tokenizer::TokenizerKind;

/// Where a run computes.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The device's name.
    pub device: &'a str,
    /// Its threads; all where not given.
    pub threads: Option<usize>,
    /// Whether another device stands behind it, on which a worker stands by too.
    pub fallback: bool,
}

impl Place<'_> {
    /// Where a recipe's run computes if nobody says otherwise.
    pub fn of_recipe(recipe: &Recipe) -> Place<'_> {
        let device = recipe.device.as_deref().unwrap_or("cpu");
        Place { device, threads: None, fallback: !recipe.fallback.is_empty() }
    }
}

/// Bytes of a training run by what they are for: the sum over its processes, what they share counted once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Parameters and moments, all halves of them.
    pub state_bytes: u64,
    /// Gradients, activations, inputs, outputs and checks of a step.
    pub work_bytes: u64,
    /// What the device takes beside them; none where nobody can say before it is opened.
    pub workspace_bytes: Option<u64>,
    /// Evaluation and sampling beside a step.
    pub evaluation_bytes: u64,
    /// The copy of the state that is written behind the next steps.
    pub copy_bytes: u64,
    /// Tokens, and the text that is held out.
    pub text_bytes: u64,
    /// The processes themselves: the one that looks after the run, the one that computes, and the one that stands by.
    pub process_bytes: u64,
    /// What reading the text takes, before any of the others is there.
    pub reading_bytes: u64,
    /// The sum of the others, or what reading takes where that is more.
    pub total_bytes: u64,
    /// What the device itself must have.
    #[serde(skip)]
    needed_bytes: u64,
}

/// What a process takes before it computes anything, and for each instruction of the step: how it is known there. The
/// binary's own pages, which all share, are the supervisor's. Measured on runs of the recipes, as are the others.
const SUPERVISOR_BYTES: u64 = 20 << 20;
const SUPERVISOR_BYTES_EACH: u64 = 3 << 10;
const WORKER_BYTES: u64 = 5 << 19;
const WORKER_BYTES_EACH: u64 = 7600;

/// What is there while the text is read, and for each byte of it: the text, its pieces and their tokens.
const READING_BYTES: u64 = 24 << 20;
const READING_BYTES_EACH: [u64; 2] = [12, 6];

/// What a tokenizer takes for each of its tokens, and what is left of one's training.
const TOKENIZER_BYTES_EACH: u64 = 400;
const TRAINED_TOKENIZER_BYTES: u64 = 12 << 20;

/// Bytes of text for each token that a trained tokenizer makes of it, as seen on source text.
const TEXT_BYTES_A_TOKEN: u64 = 3;

impl Footprint {
    /// Of a recipe's run; `checked` is its step as the guard runs it, none for a run without.
    pub fn of(
        recipe: &Recipe,
        programs: &Programs,
        checked: Option<&Arc<Validated>>,
        place: Place<'_>,
    ) -> Footprint {
        let step = checked.unwrap_or(&programs.train);
        let layout: StateLayout = recipe.training.state.into();
        let plan =
            |program: &Arc<Validated>, layout| Arc::new(MemoryPlan::new(program, Width::Native, layout));
        let workspace = |program: &Arc<Validated>, plan: &Arc<MemoryPlan>| {
            workspace_bytes(place.device, program, plan, place.threads)
        };
        let train = plan(step, layout);
        let (mut own, mut evaluation) = (workspace(step, &train), 0);
        // A sample touches the rows of its own tokens only.
        let rows = match recipe.sample.tokens {
            0 => 0,
            tokens => tokens.saturating_add(recipe.sample.prompt.len()).min(recipe.training.sequence),
        };
        for (program, rows) in [(&programs.evaluate, recipe.training.sequence), (&programs.logits, rows)] {
            let plan = plan(program, StateLayout::InPlace);
            own = own.max(workspace(program, &plan));
            let share = (plan.work_bytes as u128 * rows as u128) / recipe.training.sequence.max(1) as u128;
            evaluation = evaluation.max(share as u64);
        }
        let apart = recipe.training.state == StatePlan::OnDevice || !in_host_memory(place.device);
        let halves = match (apart && checked.is_some(), layout) {
            // On the device as many, and two snapshots beside them.
            (true, StateLayout::Double) => 4,
            (true, StateLayout::InPlace) => 3,
            (false, StateLayout::Double) => 2,
            (false, StateLayout::InPlace) => 1,
        };
        let (every, steps) = (recipe.checkpoint.every, recipe.training.steps);
        let copied = layout == StateLayout::Double && every > 0 && every < steps;
        let instructions = (step.program().accumulate.len() + step.program().update.len()) as u64;
        let standing_by = u64::from(recipe.guard.standby) * (1 + u64::from(place.fallback));
        let workers = if checked.is_some() { 1 + standing_by } else { 0 };
        let worker = WORKER_BYTES + WORKER_BYTES_EACH * instructions;
        let tokens = recipe.architecture().vocab_size() as u64;
        let tokenizer = match recipe.tokenizer.kind {
            TokenizerKind::Byte => 0,
            TokenizerKind::Bpe => tokens * TOKENIZER_BYTES_EACH + TRAINED_TOKENIZER_BYTES,
            TokenizerKind::File | TokenizerKind::Published => tokens * TOKENIZER_BYTES_EACH,
        };
        let mut footprint = Footprint {
            state_bytes: (train.state_bytes as u64).saturating_mul(halves),
            work_bytes: train.work_bytes as u64,
            workspace_bytes: own.map(|bytes| bytes as u64),
            evaluation_bytes: evaluation,
            copy_bytes: if copied { train.state_bytes as u64 } else { 0 },
            text_bytes: text_bytes(recipe),
            process_bytes: SUPERVISOR_BYTES
                + SUPERVISOR_BYTES_EACH * instructions
                + tokenizer
                + workers * worker,
            reading_bytes: reading_bytes(recipe),
            total_bytes: 0,
            needed_bytes: 0,
        };
        footprint.total_bytes = footprint.running_bytes().max(footprint.reading_bytes);
        footprint.needed_bytes = match in_host_memory(place.device) {
            true => footprint.total_bytes,
            false => train.total_bytes() as u64,
        };
        footprint
    }

    /// Says before the start what does not fit: on the host all of it, on a chip with memory of its own the state and the step.
    ///
    /// # Errors
    /// What is needed, what is there, and what to change.
    pub fn check(&self, name: &str, device: &dyn Device) -> Result<(), Failure> {
        let description = device.describe();
        let there = description.memory_bytes.unwrap_or(u64::MAX);
        if self.needed_bytes <= there {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Memory,
            format!(
                "{name} needs {} and {} has {}\nhint: lower training.micro_batch, set training.recompute = \"products\" or training.state = \"in_place\"",
                bytes(self.needed_bytes),
                description.name,
                bytes(there)
            ),
        ))
    }

    fn running_bytes(&self) -> u64 {
        self.parts().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(bytes.unwrap_or(0)))
    }

    fn parts(&self) -> [(&'static str, Option<u64>); 7] {
        [
            ("state", Some(self.state_bytes)),
            ("gradients, activations, checks", Some(self.work_bytes)),
            ("the device's own", self.workspace_bytes),
            ("evaluation, sampling", Some(self.evaluation_bytes)),
            ("a checkpoint's copy", Some(self.copy_bytes)),
            ("text", Some(self.text_bytes)),
            ("processes", Some(self.process_bytes)),
        ]
    }
}

/// Tokens of all text, and the text that is held out. Of text that is not there nothing is known.
fn text_bytes(recipe: &Recipe) -> u64 {
    let Ok((training, held_out)) = expected_bytes(&recipe.data) else { return 0 };
    let per_token = if recipe.tokenizer.kind == TokenizerKind::Byte { 1 } else { TEXT_BYTES_A_TOKEN };
    let token = if recipe.architecture().vocab_size() <= 1 << 16 { 2 } else { 4 };
    (training.saturating_add(held_out) / per_token).saturating_mul(token).saturating_add(held_out)
}

/// What reading the text takes, before anything else is there.
fn reading_bytes(recipe: &Recipe) -> u64 {
    let Ok((training, held_out)) = expected_bytes(&recipe.data) else { return 0 };
    let [bytes, pieces] = READING_BYTES_EACH;
    let each = if recipe.tokenizer.kind == TokenizerKind::Byte { bytes } else { pieces };
    READING_BYTES.saturating_add(training.saturating_add(held_out).saturating_mul(each))
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<30} {:>12}", "training takes", "bytes")?;
        for (what, count) in self.parts() {
            match count {
                Some(0) => {}
                Some(count) => writeln!(f, "{what:<30} {:>12}", bytes(count))?,
                None => writeln!(f, "{what:<30} {:>12}", "not known")?,
            }
        }
        writeln!(f, "{:<30} {:>12}", "in all processes", bytes(self.running_bytes()))?;
        if self.reading_bytes > self.running_bytes() {
            writeln!(f, "{:<30} {:>12}", "while the text is read", bytes(self.reading_bytes))?;
        }
        Ok(())
    }
}
