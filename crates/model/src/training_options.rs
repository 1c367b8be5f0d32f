//! What a training step needs beside the model's configuration.

use crate::adapter::AdapterOptions;
use crate::architecture::Architecture;
use crate::error::{ModelError, key};
use serde::{Deserialize, Serialize};
use toprope_program::DType;
use toprope_program::recompute::Recompute;

/// How a step is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingOptions {
    /// Tokens of a sequence.
    pub sequence: usize,
    /// The most sequences of a micro-batch: the bound of the symbol `sequences`.
    pub micro_batch_sequences: usize,
    /// Activations and rounded weights. Master weights, moments and router logits are f32 in any case.
    pub dtype: DType,
    /// Weight of the prediction modules' loss, λ in the report; divided among the depths.
    pub mtp_weight: f64,
    /// Weight of the sequence-wise balance loss, α in the report; 0 leaves it out.
    pub balance_alpha: f64,
    /// Step of the experts' selection bias, γ in the report.
    pub bias_update_rate: f64,
    /// Largest norm of the gradients; 0 lets all through.
    pub clip: f64,
    /// The optimizer, of all parameters where there is no other.
    pub adamw: AdamwOptions,
    /// Muon for the matrices of hidden layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonOptions>,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Whether matrices that write to the residual stream start smaller, by `1/√(2·layers)` (GPT-2, section 2.3).
    pub depth_scaled_init: bool,
    /// Where adapters are trained and everything else is frozen: which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterOptions>,
}

/// AdamW's constants. Weight decay is for matrices; norms have none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamwOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// Muon's constants. Its learning rate and weight decay are AdamW's: an update is scaled to the size of AdamW's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MuonOptions {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Whether a step looks ahead along the new momentum (Nesterov).
    pub nesterov: bool,
    /// Newton–Schulz iterations.
    pub steps: usize,
}

impl MuonOptions {
    /// The most iterations: after ten, singular values change no more.
    pub const STEPS_MAX: usize = 20;
}

impl Default for MuonOptions {
    /// Jordan's values.
    fn default() -> MuonOptions {
        MuonOptions { momentum: 0.95, nesterov: true, steps: 5 }
    }
}

impl Default for TrainingOptions {
    /// DeepSeek-V3's values (report, section 4.2) where it gives them.
    fn default() -> TrainingOptions {
        TrainingOptions {
            sequence: 256,
            micro_batch_sequences: 16,
            dtype: DType::Bf16,
            mtp_weight: 0.3,
            balance_alpha: 1e-4,
            bias_update_rate: 1e-3,
            clip: 1.0,
            adamw: AdamwOptions::default(),
            muon: None,
            recompute: Recompute::Nothing,
            depth_scaled_init: false,
            adapter: None,
        }
    }
}

impl Default for AdamwOptions {
    fn default() -> AdamwOptions {
        AdamwOptions { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

fn not_negative(name: &'static str, value: f64) -> Result<(), ModelError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(key(name, format!("is {value}"), "it must be a number of at least 0"))
}

impl TrainingOptions {
    /// Checks the options, and that they fit the configuration.
    pub fn validate<'a>(&self, architecture: impl Into<Architecture<'a>>) -> Result<(), ModelError> {
        let architecture = architecture.into();
        if !self.dtype.is_float() {
            return Err(key("dtype", format!("is {}", self.dtype), "choose f32 or bf16"));
        }
        for (name, value) in
            [("sequence", self.sequence), ("micro_batch_sequences", self.micro_batch_sequences)]
        {
            if value == 0 {
                return Err(key(name, "is 0", "give it a size of at least 1"));
            }
        }
        if self.sequence > architecture.max_position_embeddings() {
            return Err(key(
                "sequence",
                format!("is {}", self.sequence),
                format!("max_position_embeddings allows {}", architecture.max_position_embeddings()),
            ));
        }
        let choices = architecture.experts_per_token().max(1);
        let rows =
            self.sequence.checked_mul(self.micro_batch_sequences).and_then(|rows| rows.checked_mul(choices));
        if rows.is_none_or(|rows| rows > i32::MAX as usize) {
            return Err(key(
                "micro_batch_sequences",
                format!("makes a micro-batch of {} x {} tokens", self.micro_batch_sequences, self.sequence),
                "rows are counted in 32 bits; lower it and accumulate more micro-batches",
            ));
        }
        if architecture.prediction_layers() > 0 && self.mtp_weight <= 0.0 {
            return Err(key(
                "mtp_weight",
                format!("is {}, so the prediction modules would not learn", self.mtp_weight),
                "make it positive, or set num_nextn_predict_layers to 0",
            ));
        }
        if let Some(adapter) = &self.adapter {
            adapter.validate(architecture)?;
        }
        not_negative("mtp_weight", self.mtp_weight)?;
        not_negative("balance_alpha", self.balance_alpha)?;
        not_negative("bias_update_rate", self.bias_update_rate)?;
        not_negative("clip", self.clip)?;
        not_negative("adamw.weight_decay", self.adamw.weight_decay)?;
        for (name, beta) in [("adamw.beta1", self.adamw.beta1), ("adamw.beta2", self.adamw.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(key(name, format!("is {beta}"), "it must be at least 0 and below 1"));
            }
        }
        if let Some(muon) = &self.muon {
            if !(0.0..1.0).contains(&muon.momentum) {
                let reason = format!("is {}", muon.momentum);
                return Err(key("muon.momentum", reason, "it must be at least 0 and below 1"));
            }
            if !(1..=MuonOptions::STEPS_MAX).contains(&muon.steps) {
                let mend = format!("choose 1 to {}; 5 is usual", MuonOptions::STEPS_MAX);
                return Err(key("muon.steps", format!("is {}", muon.steps), mend));
            }
        }
        if !(self.adamw.epsilon.is_finite() && self.adamw.epsilon > 0.0) {
            return Err(key("adamw.epsilon", format!("is {}", self.adamw.epsilon), "it must be positive"));
        }
        Ok(())
    }
}
