//! What memory a training run takes, told before it starts.

use crate::memory;
use crate::verb::train::programs::Programs;
use serde::Serialize;
use std::sync::Arc;
use toprope_program::{MemoryPlan, StateLayout, Validated, Width};
use toprope_train::recipe::Recipe;

/// Where a run computes.
pub struct Place<'a> {
    /// The device's name.
    pub device: &'a str,
    /// Its threads; all where not given.
    pub threads: Option<usize>,
}

/// Bytes of a training run by what they are for: the sum over its processes, what they share counted once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Parameters and moments, all halves of them.
    pub state_bytes: u64,
    /// Gradients, activations, inputs and outputs of a step.
    pub work_bytes: u64,
    /// What the device takes for itself; none where nobody can say before it is opened.
    pub workspace_bytes: Option<u64>,
    /// Evaluation and sampling beside a step.
    pub evaluation_bytes: u64,
    /// The copy of the state that is written behind the next steps.
    pub checkpoint_bytes: u64,
    /// Tokens, and the text that is held out.
    pub text_bytes: u64,
    /// The processes themselves.
    pub process_bytes: u64,
}

impl Footprint {
    /// Of a recipe's run under the guard.
    pub fn of(
        recipe: &Recipe,
        programs: &Programs,
        checked: &Arc<Validated>,
        place: &Place<'_>,
    ) -> Footprint {
        let layout: StateLayout = recipe.training.state.into();
        let plan =
            |program: &Arc<Validated>, layout| Arc::new(MemoryPlan::new(program, Width::Native, layout));
        let workspace = |program: &Arc<Validated>, plan: &Arc<MemoryPlan>| {
            toprope_devices::workspace_bytes(place.device, program, plan, place.threads)
        };
        let train = plan(checked, layout);
        let mut own = workspace(checked, &train);
        let mut beside = 0;
        for program in [&programs.evaluate, &programs.logits] {
            let plan = plan(program, StateLayout::InPlace);
            own = own.max(workspace(program, &plan));
            beside = beside.max(plan.work_bytes);
        }
        let halves = if layout == StateLayout::Double { 2 } else { 1 };
        let copied = layout == StateLayout::Double
            && recipe.checkpoint.every > 0
            && recipe.checkpoint.every < recipe.training.steps;
        eprintln!("base {:?}", memory::own_bytes());
        Footprint {
            state_bytes: (train.state_bytes * halves) as u64,
            work_bytes: train.work_bytes as u64,
            workspace_bytes: own.map(|bytes| bytes as u64),
            evaluation_bytes: beside as u64,
            checkpoint_bytes: if copied { train.state_bytes as u64 } else { 0 },
            text_bytes: 0,
            process_bytes: memory::own_bytes(),
        }
    }
}
