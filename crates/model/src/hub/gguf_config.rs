//! GGUF's metadata to a configuration. Every key of the architecture is either read or refused by name.

use crate::architecture::{Architecture, ModelConfig};
use crate::config::DeepseekV3Config;
use crate::error::{ModelError, unknown};
use crate::llama::LlamaConfig;
use crate::rope_scaling::RopeScaling;
use std::cell::RefCell;
use std::collections::BTreeSet;
use toprope_formats::{Gguf, Value};
use toprope_program::constant::{Llama3, Rope, Stretch};

/// The tensor that holds what rotary frequencies are divided by, where they are stretched as Llama 3.1's.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// Keys of an architecture that do not change what is computed.
const IGNORED: [&str; 2] = ["rope.scaling.finetuned", "tensor_data_layout"];

/// Layers that the metadata counts, prediction modules among them.
pub(super) fn blocks(gguf: &Gguf) -> Option<usize> {
    let name = gguf.metadata.get("general.architecture")?.as_text()?;
    gguf.metadata.get(&format!("{name}.block_count"))?.as_usize()
}

/// The configuration, and what a user should know of it.
pub(super) fn configuration(gguf: &Gguf) -> Result<(ModelConfig, Vec<String>), ModelError> {
    if let Some(parts) = gguf.metadata.get("split.count").and_then(Value::as_usize).filter(|parts| *parts > 1)
    {
        let mend = "join the parts with `llama-gguf-split --merge`";
        return Err(unknown("split.count", format!("is {parts}: this is a part of a model"), mend));
    }
    let name = gguf.metadata.get("general.architecture").and_then(Value::as_text);
    let name = name.ok_or_else(|| {
        unknown(
            "general.architecture",
            "is missing".into(),
            "it is no model, or not whole; get the file again",
        )
    })?;
    let keys = Keys { gguf, name, read: RefCell::new(BTreeSet::new()) };
    let (config, notes) = match name {
        "llama" | "qwen2" => (ModelConfig::Llama(keys.llama()?), Vec::new()),
        "deepseek2" => {
            let (config, notes) = keys.deepseek()?;
            (ModelConfig::DeepseekV3(config), notes)
        }
        _ => {
            let reason = format!("is \"{name}\"");
            return Err(unknown("general.architecture", reason, "supported are llama, qwen2 and deepseek2"));
        }
    };
    keys.all_read()?;
    Architecture::from(&config).validate()?;
    Ok((config, notes))
}

/// The keys of one architecture, and which of them were read.
struct Keys<'a> {
    gguf: &'a Gguf,
    name: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        let key = format!("{}.{key}", self.name);
        let value = self.gguf.metadata.get(&key);
        self.read.borrow_mut().insert(key);
        value
    }

    fn wrong(&self, key: &str, reason: String, mend: &str) -> ModelError {
        unknown(&format!("{}.{key}", self.name), reason, mend)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_usize() {
                Some(size) => Ok(Some(size)),
                None => {
                    let reason = format!("is {}", shown(value));
                    Err(self.wrong(key, reason, "one size for all layers is supported"))
                }
            },
        }
    }

    fn needed(&self, key: &str) -> Result<usize, ModelError> {
        self.size(key)?
            .ok_or_else(|| self.wrong(key, "is missing".into(), "the file is not whole; get it again"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| self.wrong(key, format!("is {}", shown(value)), "it must be a number")),
        }
    }

    fn only(&self, key: &str, supported: f64) -> Result<(), ModelError> {
        match self.float(key)? {
            Some(value) if value != supported => {
                Err(self.wrong(key, format!("is {value}"), &format!("only {supported} is supported")))
            }
            _ => Ok(()),
        }
    }

    fn all_read(&self) -> Result<(), ModelError> {
        let (read, prefix) = (self.read.borrow(), format!("{}.", self.name));
        for (key, value) in &self.gguf.metadata {
            let Some(short) = key.strip_prefix(&prefix) else { continue };
            if !read.contains(key) && !IGNORED.contains(&short) {
                let reason = format!("is {}", shown(value));
                return Err(unknown(key, reason, "it is not supported, and may change the computation"));
            }
        }
        Ok(())
    }

    fn shape(&self, tensor: &str) -> Result<Vec<usize>, ModelError> {
        let record = self.gguf.tensors.get(tensor);
        let missing = || ModelError::Tensor { name: tensor.into(), reason: "is missing".into() };
        Ok(record.ok_or_else(missing)?.shape.clone())
    }

    fn vocabulary(&self) -> Result<usize, ModelError> {
        let rows = self.shape("token_embd.weight")?.first().copied().unwrap_or(0);
        match self.size("vocab_size")? {
            Some(said) if said != rows => {
                let reason = format!("is {said}, and the embedding has {rows} rows");
                Err(self.wrong("vocab_size", reason, "metadata and tensors are of different models"))
            }
            _ => Ok(rows),
        }
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors.get(tensor).is_some()
    }

    fn llama(&self) -> Result<LlamaConfig, ModelError> {
        let (hidden, heads) = (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        let size = self.size("attention.key_length")?.unwrap_or(hidden / heads.max(1));
        for key in ["attention.value_length", "rope.dimension_count"] {
            self.only(key, size as f64)?;
        }
        self.only("expert_count", 0.0)?;
        self.only("expert_used_count", 0.0)?;
        let max_position_embeddings = self.needed("context_length")?;
        let rope_theta = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let scaling = self.scaling(max_position_embeddings)?;
        let rope_scaling = match self.divisors(rope_theta, size)? {
            Some(_) if scaling.is_some() => {
                let mend = "frequencies are stretched in one way";
                return Err(unknown(DIVISORS, "stands beside rope.scaling".into(), mend));
            }
            Some(llama3) => Some(llama3),
            None => scaling,
        };
        Ok(LlamaConfig {
            model_type: self.name.into(),
            vocab_size: self.vocabulary()?,
            hidden_size: hidden,
            intermediate_size: self.needed("feed_forward_length")?,
            num_hidden_layers: self.needed("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: self.size("attention.head_count_kv")?,
            head_dim: Some(size),
            hidden_act: "silu".into(),
            rms_norm_eps: self.epsilon()?,
            max_position_embeddings,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: !self.has("output.weight"),
            attention_bias: self.name == "llama" && self.has("blk.0.attn_q.bias"),
            mlp_bias: self.name == "llama" && self.has("blk.0.ffn_gate.bias"),
            attention_dropout: 0.0,
            initializer_range: 0.02,
        })
    }

    fn epsilon(&self) -> Result<f64, ModelError> {
        let key = "attention.layer_norm_rms_epsilon";
        let epsilon = self.float(key)?;
        let epsilon = epsilon.ok_or_else(|| self.wrong(key, "is missing".into(), "the file is not whole"))?;
        // The file has the f32 nearest to what the model's makers wrote: its shortest decimal is that.
        Ok((epsilon as f32).to_string().parse().unwrap_or(epsilon))
    }

    fn scaling(&self, longest: usize) -> Result<Option<RopeScaling>, ModelError> {
        let kind = self.get("rope.scaling.type").map(|value| value.as_text().map(str::to_string));
        let factor = self.float("rope.scaling.factor")?;
        let original = self.size("rope.scaling.original_context_length")?;
        for key in
            ["rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"]
        {
            self.only(key, 1.0)?;
        }
        let weight = self.float("rope.scaling.yarn_log_multiplier")?;
        let [fast, slow] =
            ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"].map(|key| self.float(key));
        let (beta_fast, beta_slow) = (fast?, slow?);
        let kind = match kind {
            None if factor.is_none_or(|factor| factor == 1.0) => return Ok(None),
            // Before kinds were named, a factor was linear.
            None => "linear".to_string(),
            Some(Some(kind)) if kind == "none" => return Ok(None),
            Some(Some(kind)) => kind,
            Some(None) => {
                return Err(self.wrong("rope.scaling.type", "is no text".into(), "get the file again"));
            }
        };
        let yarn = kind == "yarn";
        // The file holds DeepSeek's weight times the 0.1 of the formula.
        let weight = weight.filter(|_| yarn).map(|weight| (weight * 10.0 * 1e6).round() / 1e6);
        Ok(Some(RopeScaling {
            kind,
            factor: factor.unwrap_or(1.0),
            original_max_position_embeddings: yarn.then(|| original.unwrap_or(longest)),
            beta_fast: beta_fast.filter(|_| yarn),
            beta_slow: beta_slow.filter(|_| yarn),
            mscale: weight,
            mscale_all_dim: weight,
            attention_factor: None,
            truncate: None,
            low_freq_factor: None,
            high_freq_factor: None,
        }))
    }

    /// What the file divides frequencies by, as the Llama 3.1 rule that gives it. Any other rule is refused: divisors could
    /// stand for themselves, but no published configuration can say so.
    fn divisors(&self, base: f64, size: usize) -> Result<Option<RopeScaling>, ModelError> {
        if !self.has(DIVISORS) {
            return Ok(None);
        }
        let refuse = |reason: String| unknown(DIVISORS, reason, "take the Hugging Face folder");
        let have =
            self.gguf.tensors.read_f32(DIVISORS, 0, size / 2).map_err(|error| refuse(error.to_string()))?;
        if have.iter().all(|divisor| *divisor == 1.0) {
            return Ok(None);
        }
        let factor = have.iter().copied().fold(1.0f32, f32::max);
        let plain = Rope { base, stretch: None }.frequencies(size);
        for original in [8192usize, 4096, 2048, 16384, 32768] {
            let (low, high) = (1.0, 4.0);
            let rule = Llama3 {
                factor: f64::from(factor),
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_positions: original as f64,
            };
            let stretched = Rope { base, stretch: Some(Stretch::Llama3(rule)) }.frequencies(size);
            let near = |((plain, stretched), have): ((&f64, &f64), &f32)| {
                (plain / stretched / f64::from(*have) - 1.0).abs() < 1e-4
            };
            if plain.iter().zip(&stretched).zip(&have).all(near) {
                return Ok(Some(RopeScaling {
                    kind: "llama3".into(),
                    factor: f64::from(factor),
                    original_max_position_embeddings: Some(original),
                    beta_fast: None,
                    beta_slow: None,
                    mscale: None,
                    mscale_all_dim: None,
                    attention_factor: None,
                    truncate: None,
                    low_freq_factor: Some(low),
                    high_freq_factor: Some(high),
                }));
            }
        }
        Err(refuse(format!("divides by up to {factor} in a way that is not Llama 3.1's")))
    }

    fn deepseek(&self) -> Result<(DeepseekV3Config, Vec<String>), ModelError> {
        let heads = self.needed("attention.head_count")?;
        let rank = self.needed("attention.kv_lora_rank")?;
        let rope = self.needed("rope.dimension_count")?;
        // Newer files give the sizes of the compressed attention under the plain keys.
        let (key, value) = (self.size("attention.key_length")?, self.size("attention.value_length")?);
        let key = self.size("attention.key_length_mla")?.or(key);
        let value = self.size("attention.value_length_mla")?.or(value);
        let absent =
            |name: &str| self.wrong(name, "is missing".into(), "the file is not whole; get it again");
        let key = key.ok_or_else(|| absent("attention.key_length"))?;
        let v_head_dim = value.ok_or_else(|| absent("attention.value_length"))?;
        let qk_nope_head_dim = key.checked_sub(rope).ok_or_else(|| {
            self.wrong(
                "attention.key_length",
                format!("is {key}, below the {rope} rotated columns"),
                "get the file again",
            )
        })?;
        match self.size("attention.head_count_kv")? {
            Some(groups) if groups != heads && groups != 1 => {
                return Err(self.wrong(
                    "attention.head_count_kv",
                    format!("is {groups}"),
                    "latent attention has no groups",
                ));
            }
            _ => {}
        }
        self.only("expert_gating_func", 2.0)?;
        let predictions = self.size("nextn_predict_layers")?.unwrap_or(0);
        let blocks = self.needed("block_count")?;
        let layers = blocks.checked_sub(predictions).ok_or_else(|| {
            self.wrong(
                "nextn_predict_layers",
                format!("is {predictions} of {blocks} blocks"),
                "get the file again",
            )
        })?;
        let normed = match self.get("expert_weights_norm") {
            // As llama.cpp reads it.
            None => false,
            Some(value) => value.as_bool().ok_or_else(|| {
                self.wrong("expert_weights_norm", "is no boolean".into(), "get the file again")
            })?,
        };
        let max_position_embeddings = self.needed("context_length")?;
        let said = serde_json::json!({
            "vocab_size": self.vocabulary()?,
            "hidden_size": self.needed("embedding_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "q_lora_rank": self.size("attention.q_lora_rank")?.filter(|rank| *rank > 0),
            "kv_lora_rank": rank,
            "qk_nope_head_dim": qk_nope_head_dim,
            "qk_rope_head_dim": rope,
            "v_head_dim": v_head_dim,
            "intermediate_size": self.needed("feed_forward_length")?,
            "moe_intermediate_size": self.needed("expert_feed_forward_length")?,
            "n_routed_experts": self.needed("expert_count")?,
            "n_shared_experts": self.size("expert_shared_count")?.unwrap_or(0),
            "num_experts_per_tok": self.needed("expert_used_count")?,
            "first_k_dense_replace": self.size("leading_dense_block_count")?.unwrap_or(0),
            "n_group": self.size("expert_group_count")?.unwrap_or(1),
            "topk_group": self.size("expert_group_used_count")?.unwrap_or(1),
            "norm_topk_prob": normed,
            "routed_scaling_factor": self.float("expert_weights_scale")?.unwrap_or(1.0),
            "rms_norm_eps": self.epsilon()?,
            "rope_theta": self.float("rope.freq_base")?.unwrap_or(10_000.0),
            "rope_scaling": self.scaling(max_position_embeddings)?,
            "max_position_embeddings": max_position_embeddings,
        });
        let config: DeepseekV3Config =
            serde_json::from_value(said).map_err(|error| ModelError::Syntax { reason: error.to_string() })?;
        let left_out = format!("{predictions} prediction module(s) of the file are left out");
        Ok((config, if predictions > 0 { vec![left_out] } else { Vec::new() }))
    }
}

/// A value in a message; arrays can be long.
fn shown(value: &Value) -> String {
    match value {
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Text(value) => format!("{:?}", value.chars().take(60).collect::<String>()),
        Value::Array(values) => format!("an array of {}", values.len()),
    }
}
