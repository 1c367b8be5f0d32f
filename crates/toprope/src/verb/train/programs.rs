//! The programs of a run, what they cost, and whether they fit.

use crate::exit::{Exit, Failure, OrExit};
use crate::verb::validated::validated;
use std::sync::Arc;
use toprope_model::{deepseek_v3, packed_cost};
use toprope_program::{Range, Validated};
use toprope_train::recipe::Recipe;

/// The three programs of a run.
pub struct Programs {
    pub(crate) train: Arc<Validated>,
    pub(crate) evaluate: Arc<Validated>,
    pub(crate) logits: Arc<Validated>,
}

impl Programs {
    /// Builds and validates them.
    pub(crate) fn build(recipe: &Recipe) -> Result<Programs, Failure> {
        let options = recipe.training_options();
        let (model, name) = (&recipe.model, recipe.name.as_str());
        let (dtype, sequence) = (recipe.training.dtype, recipe.training.sequence);
        Ok(Programs {
            train: validated(deepseek_v3::build_train(model, &options, name).or_exit(Exit::Recipe)?)?,
            evaluate: validated(deepseek_v3::build_evaluate(model, &options, name).or_exit(Exit::Recipe)?)?,
            logits: validated(
                deepseek_v3::build_adapted_logits(model, dtype, sequence, recipe.adapter.as_ref(), name)
                    .or_exit(Exit::Recipe)?,
            )?,
        })
    }

    /// FLOPs of a step.
    pub(super) fn step_flops(&self, recipe: &Recipe) -> f64 {
        let program = self.train.program();
        let micro_batches = (recipe.training.batch / recipe.micro_batch()) as f64;
        let mut flops = 0.0;
        for range in Range::ALL {
            let times = if range == Range::Accumulate { micro_batches } else { 1.0 };
            for instruction in program.range(range) {
                flops += packed_cost(program, instruction).flops as f64 * times;
            }
        }
        flops
    }
}
