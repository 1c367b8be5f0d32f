//! What a configuration must satisfy before anything is computed from it. Each error names the key and the mend.

use super::DeepseekV3Config;
use crate::architecture::Architecture;
use crate::error::{ModelError, key};
use toprope_program::operator::Scoring;

/// The largest vocabulary, width or rank: products of three of them and the layers stay within 64 bits.
const SIZE_MAX: usize = 1 << 24;
/// The most layers, prediction modules included.
const LAYERS_MAX: usize = 4096;
/// The most elements of one tensor, as the program's validator has it.
const ELEMENTS_MAX: u128 = 1 << 46;

pub(crate) fn size(name: &'static str, value: usize) -> Result<(), ModelError> {
    match value {
        0 => Err(key(name, "is 0", "give it a size of at least 1")),
        _ if value > SIZE_MAX => {
            Err(key(name, format!("is {value}"), format!("sizes up to {SIZE_MAX} are supported")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn only(name: &'static str, have: &str, want: &str) -> Result<(), ModelError> {
    if have == want {
        return Ok(());
    }
    Err(key(name, format!("is \"{have}\""), format!("only \"{want}\" is supported")))
}

pub(crate) fn positive(name: &'static str, value: f64) -> Result<(), ModelError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(key(name, format!("is {value}"), "give a positive number"))
}

/// Refuses tensors with more elements than a tensor has.
pub(crate) fn elements(architecture: Architecture<'_>) -> Result<(), ModelError> {
    for parameter in crate::parameters::parameters(architecture) {
        let elements = parameter.shape.iter().fold(1u128, |product, size| product * *size as u128);
        if elements > ELEMENTS_MAX {
            return Err(key(
                parameter.key,
                format!("makes `{}` hold {elements} elements", parameter.name),
                format!("a tensor has at most {ELEMENTS_MAX}"),
            ));
        }
    }
    Ok(())
}

/// Refuses a number of layers that is none, or more than are supported.
pub(crate) fn layers(name: &'static str, layers: usize) -> Result<(), ModelError> {
    match layers {
        0 => Err(key(name, "is 0", "a model has at least one layer")),
        _ if layers > LAYERS_MAX => {
            Err(key(name, format!("is {layers}"), format!("at most {LAYERS_MAX} layers are supported")))
        }
        _ => Ok(()),
    }
}

/// Experts of all layers together: a configuration of a few bytes must not ask for more than fits. DeepSeek-V3 has 15,872.
const EXPERTS_MAX: usize = 1 << 19;

impl DeepseekV3Config {
    /// Checks sizes and their relations. Everything that computes from a configuration calls it first.
    pub fn validate(&self) -> Result<(), ModelError> {
        only("model_type", &self.model_type, "deepseek_v3")?;
        self.sizes()?;
        self.attention()?;
        if self.first_k_dense_replace > self.num_hidden_layers {
            return Err(key(
                "first_k_dense_replace",
                format!("is {}, more than the {} layers", self.first_k_dense_replace, self.num_hidden_layers),
                "lower it to num_hidden_layers or less",
            ));
        }
        if self.experts() > 0 {
            self.routing()?;
        }
        only("hidden_act", &self.hidden_act, "silu")?;
        if self.tie_word_embeddings {
            return Err(key(
                "tie_word_embeddings",
                "is true",
                "only untied heads are supported; set it to false",
            ));
        }
        if self.attention_bias {
            return Err(key("attention_bias", "is true", "only attention without biases is supported"));
        }
        if self.attention_dropout != 0.0 {
            return Err(key("attention_dropout", format!("is {}", self.attention_dropout), "set it to 0"));
        }
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("initializer_range", self.initializer_range)?;
        elements(self.into())
    }

    fn sizes(&self) -> Result<(), ModelError> {
        size("vocab_size", self.vocab_size)?;
        size("hidden_size", self.hidden_size)?;
        size("num_attention_heads", self.num_attention_heads)?;
        size("kv_lora_rank", self.kv_lora_rank)?;
        size("qk_nope_head_dim", self.qk_nope_head_dim)?;
        size("qk_rope_head_dim", self.qk_rope_head_dim)?;
        size("v_head_dim", self.v_head_dim)?;
        size("max_position_embeddings", self.max_position_embeddings)?;
        if let Some(rank) = self.q_lora_rank {
            size("q_lora_rank", rank)?;
        }
        let dense_layers = self.experts() == 0 || self.first_k_dense_replace > 0;
        if dense_layers {
            size("intermediate_size", self.intermediate_size)?;
        }
        layers("num_hidden_layers", self.num_hidden_layers)?;
        match self.num_nextn_predict_layers {
            0 => Ok(()),
            depth => layers("num_nextn_predict_layers", depth),
        }
    }

    fn attention(&self) -> Result<(), ModelError> {
        let agree = |name: &'static str, have: Option<usize>, want: usize, what: &str| match have {
            Some(have) if have != want => {
                Err(key(name, format!("is {have}"), format!("it must equal {what}, {want}; or leave it out")))
            }
            _ => Ok(()),
        };
        agree(
            "num_key_value_heads",
            self.num_key_value_heads,
            self.num_attention_heads,
            "num_attention_heads",
        )?;
        agree("head_dim", self.head_dim, self.qk_rope_head_dim, "qk_rope_head_dim")?;
        let both = self.query_head_size();
        agree("qk_head_dim", self.qk_head_dim, both, "qk_nope_head_dim + qk_rope_head_dim")?;
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return Err(key(
                "qk_rope_head_dim",
                format!("is {}, which is odd", self.qk_rope_head_dim),
                "columns are rotated in pairs; make it even",
            ));
        }
        crate::rope_scaling::validate(self.rope_theta, self.rope_scaling.as_ref())
    }

    fn routing(&self) -> Result<(), ModelError> {
        let (experts, groups) = (self.experts(), self.n_group);
        size("n_routed_experts", experts)?;
        let stacks = self.num_hidden_layers.saturating_add(self.num_nextn_predict_layers);
        if experts.saturating_mul(stacks) > EXPERTS_MAX {
            return Err(key(
                "n_routed_experts",
                format!("is {experts} in each of {stacks} layers"),
                format!("at most {EXPERTS_MAX} in all are taken: each has tensors of its own"),
            ));
        }
        size("moe_intermediate_size", self.moe_intermediate_size)?;
        if self.n_shared_experts != Some(0) && self.n_shared_experts.is_some() {
            size("n_shared_experts", self.shared_width())?;
        }
        if self.moe_layer_freq != 1 {
            return Err(key(
                "moe_layer_freq",
                format!("is {}", self.moe_layer_freq),
                "only 1 is supported: experts in every layer behind the leading dense ones",
            ));
        }
        only("topk_method", &self.topk_method, "noaux_tc")?;
        if self.scoring_func != Scoring::Sigmoid {
            return Err(key("scoring_func", "is \"softmax\"", "only \"sigmoid\" is supported with noaux_tc"));
        }
        if groups == 0 || !experts.is_multiple_of(groups) {
            return Err(key(
                "n_group",
                format!("is {groups}, which does not divide the {experts} experts"),
                "choose a divisor of n_routed_experts",
            ));
        }
        if self.topk_group == 0 || self.topk_group > groups {
            return Err(key(
                "topk_group",
                format!("is {}", self.topk_group),
                format!("it must lie in 1..={groups} (n_group)"),
            ));
        }
        let reach = experts / groups * self.topk_group;
        if self.num_experts_per_tok == 0 || self.num_experts_per_tok > reach {
            return Err(key(
                "num_experts_per_tok",
                format!("is {}", self.num_experts_per_tok),
                format!("it must lie in 1..={reach}, the experts within topk_group groups"),
            ));
        }
        positive("routed_scaling_factor", self.routed_scaling_factor)
    }
}
