//! Recipes: a whole run as TOML. Unknown keys are errors with the nearest right one.

mod error;
mod load; // from text to a recipe
mod onto; // a published model in place of the model section

pub use error::RecipeError;
pub use load::{BUILT_IN, built_in, parse, parse_onto};
pub use onto::Base;

use crate::data::DataConfig;
use crate::schedule::ScheduleConfig;
use crate::tokenizer::TokenizerConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use toprope_guard::policy::Policy;
use toprope_model::{AdamwOptions, AdapterOptions, Architecture, ModelConfig, MuonOptions, TrainingOptions};
use toprope_program::recompute::Recompute;
use toprope_program::{DType, StateLayout};

/// A whole run, with a model of one of the architectures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe<M = ModelConfig> {
    /// The name, for people.
    pub name: String,
    /// What it is for, in a line.
    #[serde(default)]
    pub description: String,
    /// Seed of the initial weights and of the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// The device that trains, where the command line names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Devices to go on with where it fails for good; they stand with `device`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
    /// Steps, sizes and precision.
    pub training: Training,
    /// Learning rate over steps.
    pub schedule: ScheduleConfig,
    /// AdamW, and Muon where it is asked for.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// What durable checkpoints are kept.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Held-out loss.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// Text made at the end.
    #[serde(default)]
    pub sample: Sample,
    /// What is done about faults; it changes no number of an undisturbed run.
    #[serde(default)]
    pub guard: Policy,
    /// Adapters, where they are trained instead of the model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterOptions>,
    /// Where text comes from.
    pub data: DataConfig,
    /// How text becomes tokens.
    #[serde(default)]
    pub tokenizer: TokenizerConfig,
    /// The published model that training goes on from, where it does: written by `train --from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// The model, with Hugging Face's keys.
    pub model: M,
}

/// A published model that a run goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The folder or file.
    pub model: PathBuf,
    /// What [`crate::initial::weights_hash`] gave of its weights.
    pub weights: String,
}

/// Steps, sizes and precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Steps of the whole run.
    pub steps: u64,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Sequences of a micro-batch; the whole step where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Dtype of activations and of the weights that products read; masters and moments are f32.
    pub dtype: DType,
    /// What the backward pass computes again.
    #[serde(default)]
    pub recompute: Recompute,
    /// Whether the next state lies beside the current one.
    #[serde(default)]
    pub state: StatePlan,
    /// Weight of the multi-token prediction loss, λ in DeepSeek-V3.
    #[serde(default = "mtp_weight")]
    pub mtp_weight: f64,
    /// Weight of the sequence-wise balance term, α in DeepSeek-V3.
    #[serde(default = "balance_alpha")]
    pub balance_alpha: f64,
    /// Step of the router's selection bias, γ in DeepSeek-V3.
    #[serde(default = "bias_update_rate")]
    pub bias_update_rate: f64,
    /// Whether matrices that write to the residual stream start smaller, by `1/√(2·layers)`.
    #[serde(default)]
    pub depth_scaled_init: bool,
}

fn mtp_weight() -> f64 {
    0.3
}

fn balance_alpha() -> f64 {
    1e-4
}

fn bias_update_rate() -> f64 {
    1e-3
}

/// Where the next state lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatePlan {
    /// Beside the current one: a death loses nothing.
    #[default]
    Double,
    /// In its place: half the memory.
    InPlace,
    /// Beside the current one in the device's own memory, with snapshots in the host's: for chips that cannot compute on
    /// the host's memory.
    OnDevice,
}

impl From<StatePlan> for StateLayout {
    fn from(plan: StatePlan) -> StateLayout {
        match plan {
            StatePlan::Double | StatePlan::OnDevice => StateLayout::Double,
            StatePlan::InPlace => StateLayout::InPlace,
        }
    }
}

/// What moves matrices of hidden layers; everything else is AdamW's in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// AdamW.
    #[default]
    Adamw,
    /// Muon: along the orthogonalised momentum, scaled to the size of AdamW's updates, so that the same learning rates and
    /// weight decay are right.
    Muon,
}

impl OptimizerKind {
    fn is_default(&self) -> bool {
        *self == OptimizerKind::default()
    }
}

/// The optimizer's numbers; the learning rate is the schedule's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// What moves matrices of hidden layers.
    #[serde(skip_serializing_if = "OptimizerKind::is_default")]
    pub kind: OptimizerKind,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay of matrices; norms and biases have none.
    pub weight_decay: f64,
    /// The largest gradient norm; 0 clips nothing.
    pub clip: f64,
    /// Muon's numbers, where it is not to have its usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonOptions>,
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer {
            kind: OptimizerKind::Adamw,
            muon: None,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }
}

/// When durable checkpoints are written and which stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between two; 0 writes one at the end only.
    pub every: u64,
    /// How many of the newest stay.
    pub keep_last: usize,
    /// Every so many steps one stays for good; 0 keeps none.
    pub keep_every: u64,
}

impl Default for Checkpoint {
    fn default() -> Checkpoint {
        Checkpoint { every: 100, keep_last: 3, keep_every: 0 }
    }
}

/// Held-out loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Steps between two; 0 evaluates at the end only.
    pub every: u64,
    /// Tokens looked at between; 0 looks at all, as the end does.
    pub tokens: u64,
    /// Tokens looked at after the last step; 0 looks at all, as what the model is held against is of all.
    pub final_tokens: u64,
    /// Tokens between the beginnings of two windows; a whole sequence where it is not given. Below that, windows overlap
    /// and a token is predicted once, with more of its document before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
}

/// Text made at the end, in the model's own words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// How it begins.
    pub prompt: String,
    /// Tokens made; 0 makes none.
    pub tokens: usize,
    /// Flatness of the choice; 0 takes the likeliest.
    pub temperature: f64,
}

impl Default for Sample {
    fn default() -> Sample {
        Sample { prompt: String::new(), tokens: 0, temperature: 0.7 }
    }
}

impl Recipe {
    /// Sequences of a micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.training.micro_batch.unwrap_or(self.training.batch)
    }

    /// The model, as builders take it.
    pub fn architecture(&self) -> Architecture<'_> {
        (&self.model).into()
    }

    /// Tokens between the beginnings of two windows of held-out text.
    pub fn evaluation_stride(&self) -> usize {
        self.evaluation.stride.unwrap_or(self.training.sequence)
    }

    /// What the model's builder needs to know.
    pub fn training_options(&self) -> TrainingOptions {
        TrainingOptions {
            sequence: self.training.sequence,
            micro_batch_sequences: self.micro_batch(),
            dtype: self.training.dtype,
            mtp_weight: self.training.mtp_weight,
            balance_alpha: self.training.balance_alpha,
            bias_update_rate: self.training.bias_update_rate,
            clip: self.optimizer.clip,
            adamw: AdamwOptions {
                beta1: self.optimizer.beta1,
                beta2: self.optimizer.beta2,
                epsilon: self.optimizer.epsilon,
                weight_decay: self.optimizer.weight_decay,
            },
            muon: match self.optimizer.kind {
                OptimizerKind::Adamw => None,
                OptimizerKind::Muon => Some(self.optimizer.muon.clone().unwrap_or_default()),
            },
            recompute: self.training.recompute,
            depth_scaled_init: self.training.depth_scaled_init,
            adapter: self.adapter.clone(),
        }
    }

    /// The recipe as resolved, in TOML.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// The hash of everything that decides the run's numbers: not its length in steps, names, places, devices, checkpoints,
    /// evaluation or samples.
    pub fn hash(&self) -> String {
        let mut decisive = self.clone();
        decisive.name = String::new();
        decisive.description = String::new();
        decisive.device = None;
        decisive.fallback = Vec::new();
        decisive.training.steps = 0;
        decisive.checkpoint = Checkpoint::default();
        decisive.evaluation = Evaluation::default();
        decisive.sample = Sample::default();
        decisive.guard = Policy::default();
        if let Some(origin) = &mut decisive.from {
            origin.model = PathBuf::new();
        }
        let json = serde_json::to_string(&decisive).unwrap_or_default();
        blake3::hash(json.as_bytes()).to_hex().to_string()
    }
}
