//! The architectures that programs are built for, and what all builders ask of any of them.

use crate::config::DeepseekV3Config;
use crate::error::ModelError;
use crate::llama::LlamaConfig;
use serde::Serialize;
use toprope_program::constant::Rope;

/// A configuration of one of the architectures; written down it is that configuration's own keys, `model_type` among them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelConfig {
    /// DeepSeek-V3: latent attention, experts, prediction modules.
    DeepseekV3(DeepseekV3Config),
    /// Llama or Qwen2: grouped-query attention, dense layers.
    Llama(LlamaConfig),
}

/// A configuration by reference: what builders take.
#[derive(Clone, Copy, Debug)]
pub enum Architecture<'a> {
    /// DeepSeek-V3.
    DeepseekV3(&'a DeepseekV3Config),
    /// Llama or Qwen2.
    Llama(&'a LlamaConfig),
}

impl<'a> From<&'a DeepseekV3Config> for Architecture<'a> {
    fn from(config: &'a DeepseekV3Config) -> Architecture<'a> {
        Architecture::DeepseekV3(config)
    }
}

impl<'a> From<&'a LlamaConfig> for Architecture<'a> {
    fn from(config: &'a LlamaConfig) -> Architecture<'a> {
        Architecture::Llama(config)
    }
}

impl From<DeepseekV3Config> for ModelConfig {
    fn from(config: DeepseekV3Config) -> ModelConfig {
        ModelConfig::DeepseekV3(config)
    }
}

impl From<LlamaConfig> for ModelConfig {
    fn from(config: LlamaConfig) -> ModelConfig {
        ModelConfig::Llama(config)
    }
}

impl<'a> From<&'a ModelConfig> for Architecture<'a> {
    fn from(config: &'a ModelConfig) -> Architecture<'a> {
        match config {
            ModelConfig::DeepseekV3(config) => Architecture::DeepseekV3(config),
            ModelConfig::Llama(config) => Architecture::Llama(config),
        }
    }
}

/// The same key of either configuration.
macro_rules! either {
    ($self:ident, $config:ident => $value:expr) => {
        match $self {
            Architecture::DeepseekV3($config) => $value,
            Architecture::Llama($config) => $value,
        }
    };
}

impl Architecture<'_> {
    /// Checks sizes and their relations.
    ///
    /// # Errors
    /// The first key that does not fit.
    pub fn validate(self) -> Result<(), ModelError> {
        either!(self, config => config.validate())
    }

    /// Tokens that there are.
    pub fn vocab_size(self) -> usize {
        either!(self, config => config.vocab_size)
    }

    /// Width of the residual stream.
    pub fn hidden_size(self) -> usize {
        either!(self, config => config.hidden_size)
    }

    /// Layers of the main model.
    pub fn layers(self) -> usize {
        either!(self, config => config.num_hidden_layers)
    }

    /// The longest context.
    pub fn max_position_embeddings(self) -> usize {
        either!(self, config => config.max_position_embeddings)
    }

    /// Added to the mean square in norms.
    pub fn rms_norm_eps(self) -> f64 {
        either!(self, config => config.rms_norm_eps)
    }

    /// Standard deviation of initial matrices.
    pub fn initializer_range(self) -> f64 {
        either!(self, config => config.initializer_range)
    }

    /// Whether the head is the embedding's table.
    pub fn tied(self) -> bool {
        match self {
            Architecture::DeepseekV3(_) => false,
            Architecture::Llama(config) => config.tie_word_embeddings,
        }
    }

    /// The parameter that the head reads.
    pub fn head(self) -> &'static str {
        if self.tied() { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Depth of multi-token prediction.
    pub fn prediction_layers(self) -> usize {
        match self {
            Architecture::DeepseekV3(config) => config.num_nextn_predict_layers,
            Architecture::Llama(_) => 0,
        }
    }

    /// Routed experts that a token uses; 0 without experts.
    pub fn experts_per_token(self) -> usize {
        match self {
            Architecture::DeepseekV3(config) if config.experts() > 0 => config.num_experts_per_tok,
            _ => 0,
        }
    }

    /// What rotary tables hold, and the columns of a head that are rotated.
    pub fn rope(self) -> (Rope, usize) {
        match self {
            Architecture::DeepseekV3(config) => (config.rope(), config.qk_rope_head_dim),
            Architecture::Llama(config) => (config.rope(), config.head_size()),
        }
    }
}
