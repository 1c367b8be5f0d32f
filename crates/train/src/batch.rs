//! What an engine is given for a step: a pure function of recipe, data and step number.

use crate::data::{Batch, BatchShape, Batches, DataError, Tokens, ValidationBatches};
use crate::recipe::Recipe;
use crate::schedule::{Schedule, ScheduleError};

/// The inputs of one run of `accumulate`.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatch {
    /// Sequences in it: the binding of the program's symbol.
    pub sequences: usize,
    /// Targets that are not ignored.
    pub targets: u64,
    /// Integer inputs by name.
    pub integers: Vec<(String, Vec<i32>)>,
}

/// The inputs of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatch {
    /// In the order in which they are accumulated.
    pub micro: Vec<MicroBatch>,
    /// f32 inputs by name: scales of the losses, rates of the optimizer.
    pub scalars: Vec<(String, Vec<f32>)>,
    /// The schedule's rate.
    pub learning_rate: f64,
    /// Tokens in it.
    pub tokens: u64,
}

/// Held-out text as batches, each made when it is asked for.
#[derive(Clone, Debug)]
pub struct Validation<'a> {
    batches: Option<ValidationBatches<'a>>,
    count: usize,
    /// Tokens of a batch.
    each: u64,
    /// Bytes of text that they stand for; of a part of the text, its share by targets.
    pub bytes: f64,
}

impl Validation<'_> {
    /// The batch at a place, in the order of the text; none behind the last.
    pub fn batch(&self, index: usize) -> Option<StepBatch> {
        let batches = self.batches.as_ref().filter(|_| index < self.count)?;
        let batch = batches.batch(index);
        let scalars = scales(std::slice::from_ref(&batch));
        Some(StepBatch { micro: vec![micro_batch(batch)], scalars, learning_rate: 0.0, tokens: self.each })
    }
}

/// Makes the inputs of any step.
pub struct StepInputs {
    recipe: Recipe,
    schedule: Schedule,
    training: Tokens,
    validation: Tokens,
}

impl StepInputs {
    /// Inputs from a recipe and its tokens.
    ///
    /// # Errors
    /// Fewer tokens than one sequence has.
    pub fn new(
        recipe: &Recipe,
        schedule: Schedule,
        training: Tokens,
        validation: Tokens,
    ) -> Result<StepInputs, DataError> {
        let inputs = StepInputs { recipe: recipe.clone(), schedule, training, validation };
        inputs.batches()?;
        Ok(inputs)
    }

    /// The schedule of a recipe.
    ///
    /// # Errors
    /// The key that is wrong.
    pub fn schedule(recipe: &Recipe) -> Result<Schedule, ScheduleError> {
        Schedule::new(&recipe.schedule, recipe.training.steps)
    }

    fn shape(&self, sequences: usize) -> BatchShape {
        BatchShape {
            sequence_length: self.recipe.training.sequence,
            sequences,
            mtp_depth: self.recipe.architecture().prediction_layers(),
        }
    }

    fn batches(&self) -> Result<Batches<'_>, DataError> {
        Batches::new(&self.training, self.shape(self.recipe.training.batch), self.recipe.seed)
    }

    /// Tokens of an epoch over those of a run.
    pub fn epochs(&self) -> f64 {
        self.batches().map_or(0.0, |batches| batches.epoch(self.recipe.training.steps))
    }

    /// The inputs of a step, counted from 0.
    pub fn step(&self, step: u64) -> StepBatch {
        let (size, micro) = (self.recipe.training.batch, self.recipe.micro_batch());
        // `new` made sure that there are batches.
        let parts: Vec<Batch> = self.batches().map_or_else(
            |_| Vec::new(),
            |batches| {
                let starts = (0..size).step_by(micro);
                starts.map(|start| batches.micro_batch(step, start..(start + micro).min(size))).collect()
            },
        );
        let learning_rate = self.schedule.learning_rate(step);
        let correction = |beta: f64| (1.0 - beta.powf(step as f64 + 1.0)) as f32;
        let optimizer = &self.recipe.optimizer;
        let rates = vec![learning_rate as f32, correction(optimizer.beta1), correction(optimizer.beta2)];
        let mut scalars = vec![("rates".to_string(), rates)];
        scalars.extend(scales(&parts));
        StepBatch {
            micro: parts.into_iter().map(micro_batch).collect(),
            scalars,
            learning_rate,
            tokens: (size * self.recipe.training.sequence) as u64,
        }
    }

    /// Held-out text, at most about `tokens` of it; 0 for all.
    pub fn validation(&self, tokens: u64) -> Validation<'_> {
        let sequences = self.recipe.micro_batch();
        let stride = self.recipe.evaluation_stride();
        let each = (sequences * stride) as u64;
        let Ok(all) = ValidationBatches::new(&self.validation, self.shape(sequences), stride) else {
            return Validation { batches: None, count: 0, each, bytes: 0.0 };
        };
        let count = if tokens == 0 { all.len() } else { (tokens.div_ceil(each) as usize).min(all.len()) };
        let seen = match count == all.len() {
            true => all.targets(),
            false => (0..count).map(|index| all.batch(index).target_count).sum(),
        };
        let bytes = all.bytes() as f64 * seen as f64 / all.targets().max(1) as f64;
        Validation { batches: Some(all), count, each, bytes }
    }
}

/// One over the number of targets of each loss in the whole step, so that micro-batches add up to a mean.
fn scales(parts: &[Batch]) -> Vec<(String, Vec<f32>)> {
    let inverse = |count: u64| vec![(1.0 / count.max(1) as f64) as f32];
    let targets = parts.iter().map(|part| part.target_count).sum();
    let sequences = parts.iter().map(|part| part.sequences as u64).sum();
    let mut scales =
        vec![("loss_scale".to_string(), inverse(targets)), ("balance_scale".to_string(), inverse(sequences))];
    let depth = parts.first().map_or(0, |part| part.mtp_target_counts.len());
    for index in 0..depth {
        let targets = parts.iter().map(|part| part.mtp_target_counts[index]).sum();
        scales.push((format!("mtp_scale.{}", index + 1), inverse(targets)));
    }
    scales
}

fn micro_batch(batch: Batch) -> MicroBatch {
    let mut integers = vec![
        ("tokens".to_string(), batch.tokens),
        ("targets".to_string(), batch.targets),
        ("segment_start".to_string(), batch.segment_start),
        ("positions".to_string(), batch.positions),
    ];
    for (index, tokens) in batch.mtp_tokens.into_iter().enumerate() {
        integers.push((format!("mtp_tokens.{}", index + 1), tokens));
    }
    for (index, targets) in batch.mtp_targets.into_iter().enumerate() {
        integers.push((format!("mtp_targets.{}", index + 1), targets));
    }
    MicroBatch { sequences: batch.sequences, targets: batch.target_count, integers }
}
