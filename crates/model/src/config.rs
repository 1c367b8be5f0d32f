//! DeepSeek-V3's configuration with Hugging Face's key names. Keys that would change the computation and are not known
//! are refused by name; keys that do not matter to it are listed and ignored.

pub(crate) mod validate;

use crate::error::ModelError;
use crate::rope_scaling::{RopeScaling, rope};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use toprope_program::constant::Rope;
use toprope_program::operator::Scoring;

/// The published `config.json` of a DeepSeek-V3 model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepseekV3Config {
    /// `deepseek_v3`, where it is said.
    #[serde(default = "model_type")]
    pub model_type: String,
    /// Tokens that there are.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers of the main model, without prediction modules.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Must equal the heads where it is given: MLA has a key and a value for each of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Rank of the compressed query; none where queries are not compressed.
    #[serde(default)]
    pub q_lora_rank: Option<usize>,
    /// Rank of the compressed keys and values.
    pub kv_lora_rank: usize,
    /// Columns of a query or key head without position.
    pub qk_nope_head_dim: usize,
    /// Columns of a query or key head that are rotated.
    pub qk_rope_head_dim: usize,
    /// Columns of a value head.
    pub v_head_dim: usize,
    /// Must equal `qk_rope_head_dim` where it is given, as transformers writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Must equal the sum of both parts where it is given, as transformers writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_head_dim: Option<usize>,
    /// Inner width of a dense layer.
    pub intermediate_size: usize,
    /// Inner width of one expert.
    #[serde(default)]
    pub moe_intermediate_size: usize,
    /// Routed experts of a layer; 0 or absent for a dense model.
    #[serde(default)]
    pub n_routed_experts: Option<usize>,
    /// Experts that every token uses, stored as one of their joint width.
    #[serde(default)]
    pub n_shared_experts: Option<usize>,
    /// Routed experts that a token uses.
    #[serde(default)]
    pub num_experts_per_tok: usize,
    /// Leading layers without experts.
    #[serde(default)]
    pub first_k_dense_replace: usize,
    /// 1: every layer behind the leading ones has experts.
    #[serde(default = "one")]
    pub moe_layer_freq: usize,
    /// Groups of experts.
    #[serde(default = "one")]
    pub n_group: usize,
    /// Groups that a token may choose from.
    #[serde(default = "one")]
    pub topk_group: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    #[serde(default = "yes")]
    pub norm_topk_prob: bool,
    /// What the weights of the chosen experts are multiplied by.
    #[serde(default = "unit")]
    pub routed_scaling_factor: f64,
    /// How router logits become scores.
    #[serde(default = "sigmoid")]
    pub scoring_func: Scoring,
    /// `noaux_tc`: a bias for each expert takes part in the choice.
    #[serde(default = "noaux_tc")]
    pub topk_method: String,
    /// `silu`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Added to the mean square in norms.
    #[serde(default = "epsilon")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Where the context was extended.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether neighbouring columns are rotated together, rather than halves.
    #[serde(default = "yes")]
    pub rope_interleave: bool,
    /// The longest context.
    pub max_position_embeddings: usize,
    /// Depth of multi-token prediction.
    #[serde(default)]
    pub num_nextn_predict_layers: usize,
    /// Must be false.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Must be false.
    #[serde(default)]
    pub attention_bias: bool,
    /// Must be 0.
    #[serde(default)]
    pub attention_dropout: f64,
    /// Standard deviation of initial matrices.
    #[serde(default = "range")]
    pub initializer_range: f64,
    #[serde(default, skip_serializing)]
    architectures: Ignored,
    #[serde(default, skip_serializing)]
    auto_map: Ignored,
    #[serde(default, skip_serializing)]
    aux_loss_alpha: Ignored,
    #[serde(default, skip_serializing)]
    bos_token_id: Ignored,
    #[serde(default, skip_serializing)]
    dtype: Ignored,
    #[serde(default, skip_serializing)]
    eos_token_id: Ignored,
    #[serde(default, skip_serializing)]
    ep_size: Ignored,
    #[serde(default, skip_serializing)]
    pad_token_id: Ignored,
    #[serde(default, skip_serializing)]
    pretraining_tp: Ignored,
    #[serde(default, skip_serializing)]
    quantization_config: Ignored,
    #[serde(default, skip_serializing)]
    seq_aux: Ignored,
    #[serde(default, skip_serializing)]
    torch_dtype: Ignored,
    #[serde(default, skip_serializing)]
    transformers_version: Ignored,
    #[serde(default, skip_serializing)]
    use_cache: Ignored,
}

/// A key that is known not to change the computation.
type Ignored = Option<IgnoredAny>;

fn model_type() -> String {
    "deepseek_v3".into()
}
fn noaux_tc() -> String {
    "noaux_tc".into()
}
fn silu() -> String {
    "silu".into()
}
fn sigmoid() -> Scoring {
    Scoring::Sigmoid
}
fn one() -> usize {
    1
}
fn unit() -> f64 {
    1.0
}
fn yes() -> bool {
    true
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

impl DeepseekV3Config {
    /// Parses a `config.json` and validates it.
    pub fn from_json(text: &str) -> Result<DeepseekV3Config, ModelError> {
        let config: DeepseekV3Config =
            serde_json::from_str(text).map_err(|error| ModelError::Syntax { reason: error.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// Routed experts of a layer, 0 where there are none.
    pub fn experts(&self) -> usize {
        self.n_routed_experts.unwrap_or(0)
    }

    /// Joint inner width of the shared experts, 0 where there are none.
    pub fn shared_width(&self) -> usize {
        self.n_shared_experts.unwrap_or(0).saturating_mul(self.moe_intermediate_size)
    }

    /// Whether a layer has experts. Prediction modules are numbered behind the main model's layers.
    pub fn has_experts(&self, layer: usize) -> bool {
        self.experts() > 0 && layer >= self.first_k_dense_replace
    }

    /// Layers with prediction modules.
    pub fn layers_total(&self) -> usize {
        self.num_hidden_layers.saturating_add(self.num_nextn_predict_layers)
    }

    /// Columns of a query or key head.
    pub fn query_head_size(&self) -> usize {
        self.qk_nope_head_dim.saturating_add(self.qk_rope_head_dim)
    }

    /// What rotary tables hold.
    pub fn rope(&self) -> Rope {
        rope(self.rope_theta, self.rope_scaling.as_ref())
    }

    /// What attention scores are multiplied by: `1/√d`, times YaRN's magnitude squared where `mscale_all_dim` is set
    /// (DeepSeek-V3's published modelling code).
    pub fn softmax_scale(&self) -> f64 {
        let plain = (self.query_head_size() as f64).powf(-0.5);
        plain * self.rope_scaling.as_ref().map_or(1.0, RopeScaling::score_magnitude)
    }
}
