//! Llama's and Qwen2's configuration with Hugging Face's key names. Qwen2 is a Llama with biases on queries, keys and
//! values.

use crate::architecture::Architecture;
use crate::config::validate::{elements, layers, only, positive, size};
use crate::error::{ModelError, key};
use crate::rope_scaling::{self, RopeScaling, rope};
use serde::{Deserialize, Serialize};
use toprope_program::constant::Rope;

/// The published `config.json` of a Llama or Qwen2 model, in its older spelling of RoPE's keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// `llama` or `qwen2`.
    pub model_type: String,
    /// Tokens that there are.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads, a divisor of the query heads; as many as those where absent.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Columns of a head; `hidden_size / num_attention_heads` where absent.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// `silu`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Added to the mean square in norms.
    #[serde(default = "epsilon")]
    pub rms_norm_eps: f64,
    /// The longest context.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Where the context was extended.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding's table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Llama: whether attention's four products have biases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attention_bias: bool,
    /// Llama: whether the feed-forward layers' products have biases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mlp_bias: bool,
    /// Must be 0.
    #[serde(default)]
    pub attention_dropout: f64,
    /// Standard deviation of initial matrices.
    #[serde(default = "range")]
    pub initializer_range: f64,
}

fn silu() -> String {
    "silu".into()
}
fn epsilon() -> f64 {
    1e-6
}
fn theta() -> f64 {
    10_000.0
}
fn range() -> f64 {
    0.02
}

impl LlamaConfig {
    /// Columns of a head.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Key and value heads.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Rows of the one matrix that gives queries, keys and values: those of the queries, of the keys, of the values.
    pub fn projection_rows(&self) -> [usize; 3] {
        let rows = |heads: usize| heads.saturating_mul(self.head_size());
        let keys = rows(self.key_value_heads());
        [rows(self.num_attention_heads), keys, keys]
    }

    /// Whether queries, keys and values have biases.
    pub fn projection_bias(&self) -> bool {
        self.attention_bias || self.model_type == "qwen2"
    }

    /// What rotary tables hold.
    pub fn rope(&self) -> Rope {
        rope(self.rope_theta, self.rope_scaling.as_ref())
    }

    /// What attention scores are multiplied by.
    pub fn softmax_scale(&self) -> f64 {
        (self.head_size() as f64).powf(-0.5)
    }

    /// Checks sizes and their relations. Everything that computes from a configuration calls it first.
    ///
    /// # Errors
    /// The first key that does not fit.
    pub fn validate(&self) -> Result<(), ModelError> {
        let qwen2 = self.model_type == "qwen2";
        if !qwen2 {
            only("model_type", &self.model_type, "llama")?;
        }
        size("vocab_size", self.vocab_size)?;
        size("hidden_size", self.hidden_size)?;
        size("intermediate_size", self.intermediate_size)?;
        size("num_attention_heads", self.num_attention_heads)?;
        size("max_position_embeddings", self.max_position_embeddings)?;
        layers("num_hidden_layers", self.num_hidden_layers)?;
        self.heads()?;
        only("hidden_act", &self.hidden_act, "silu")?;
        if self.attention_dropout != 0.0 {
            return Err(key("attention_dropout", format!("is {}", self.attention_dropout), "set it to 0"));
        }
        for (name, given) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if qwen2 && given {
                return Err(key(name, "is true", "Qwen2 has biases on queries, keys and values alone"));
            }
        }
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("initializer_range", self.initializer_range)?;
        rope_scaling::validate(self.rope_theta, self.rope_scaling.as_ref())?;
        elements(Architecture::Llama(self))
    }

    fn heads(&self) -> Result<(), ModelError> {
        let (heads, groups) = (self.num_attention_heads, self.key_value_heads());
        size("num_key_value_heads", groups)?;
        if !heads.is_multiple_of(groups) {
            return Err(key(
                "num_key_value_heads",
                format!("is {groups}, which does not divide the {heads} heads"),
                "choose a divisor of num_attention_heads",
            ));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            return Err(key(
                "num_attention_heads",
                format!("is {heads}, which does not divide hidden_size {}", self.hidden_size),
                "choose a divisor, or give head_dim",
            ));
        }
        size("head_dim", self.head_size())?;
        if !self.head_size().is_multiple_of(2) {
            return Err(key(
                "head_dim",
                format!("is {}, which is odd", self.head_size()),
                "columns are rotated in pairs; make it even",
            ));
        }
        Ok(())
    }
}
