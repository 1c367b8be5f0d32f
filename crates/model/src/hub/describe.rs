//! What `inspect` shows of a published model: from headers alone, however large it is.

use super::{Hub, Text};
use crate::architecture::{Architecture, ModelConfig};
use crate::error::ModelError;
use crate::totals::{Totals, totals};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use toprope_formats::Tensors;

/// A published model at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// `safetensors` or `GGUF`.
    pub format: &'static str,
    /// `llama`, `qwen2` or `deepseek_v3`.
    pub architecture: String,
    /// Layers, heads and sizes, in words.
    pub sizes: String,
    /// How rotary frequencies are made, in words.
    pub rope: String,
    /// Parameter counts.
    pub totals: Totals,
    /// Tensors, elements and bytes by the format that they are stored in.
    pub stored: BTreeMap<String, Stored>,
    /// What the files say of text, in words.
    pub tokenizer: String,
    /// What a user should know of how it is read.
    pub notes: Vec<String>,
}

/// What is stored in one format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Tensors.
    pub tensors: usize,
    /// Elements.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What is stored, by format.
pub(super) fn stored(tensors: &Tensors) -> BTreeMap<String, Stored> {
    let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
    for record in tensors.records().values() {
        let entry = stored.entry(record.stored.name().to_string()).or_default();
        entry.tensors += 1;
        entry.elements = entry.elements.saturating_add(record.elements() as u64);
        entry.bytes = entry.bytes.saturating_add(record.bytes);
    }
    stored
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors, {} elements, {}", self.tensors, self.elements, Bytes(self.bytes))
    }
}

impl Hub {
    /// Looks at it.
    ///
    /// # Errors
    /// The configuration does not hold.
    pub fn describe(&self, text: &Text) -> Result<Description, ModelError> {
        let (architecture, sizes, base, scaling) = match self.config() {
            ModelConfig::Llama(config) => (
                config.model_type.clone(),
                format!(
                    "{} layers, width {}, {} query heads and {} key heads of {}, inner width {}, vocabulary {}{}, context {}",
                    config.num_hidden_layers,
                    config.hidden_size,
                    config.num_attention_heads,
                    config.key_value_heads(),
                    config.head_size(),
                    config.intermediate_size,
                    config.vocab_size,
                    if config.tie_word_embeddings { " (tied)" } else { "" },
                    config.max_position_embeddings
                ),
                config.rope_theta,
                &config.rope_scaling,
            ),
            ModelConfig::DeepseekV3(config) => (
                config.model_type.clone(),
                format!(
                    "{} layers, width {}, {} heads, latent {}, {} experts of {} ({} a token), vocabulary {}, context {}",
                    config.num_hidden_layers,
                    config.hidden_size,
                    config.num_attention_heads,
                    config.kv_lora_rank,
                    config.experts(),
                    config.moe_intermediate_size,
                    config.num_experts_per_tok,
                    config.vocab_size,
                    config.max_position_embeddings
                ),
                config.rope_theta,
                &config.rope_scaling,
            ),
        };
        let rope = match scaling {
            None => format!("base {base}"),
            Some(scaling) => format!("base {base}, {} by {}", scaling.kind, scaling.factor),
        };
        let template =
            if text.chat_template.is_some() { "with a chat template" } else { "without a chat template" };
        let vocabulary = Architecture::from(self.config()).vocab_size();
        let tokenizer = match (&text.tokenizer, &text.no_tokenizer) {
            (Some((bytes, _)), _) => format!("{}, {template}", tokenizer(bytes, vocabulary)),
            (None, Some(reason)) => format!("none ({reason}), {template}"),
            (None, None) => format!("none, {template}"),
        };
        Ok(Description {
            format: self.format(),
            architecture,
            sizes,
            rope,
            totals: totals(self.config())?,
            stored: stored(self.tensors()),
            tokenizer,
            notes: self.notes().to_vec(),
        })
    }
}

/// A `tokenizer.json` in words; what will be refused of it is said.
fn tokenizer(bytes: &[u8], vocabulary: usize) -> String {
    let json: Value = match serde_json::from_slice(bytes) {
        Ok(json) => json,
        Err(error) => return format!("no JSON, which will be refused ({error})"),
    };
    let model = &json["model"];
    let count =
        |part: &Value| part.as_object().map_or_else(|| part.as_array().map_or(0, Vec::len), |map| map.len());
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let numbers = model["vocab"].as_object().into_iter().flat_map(|map| map.values());
    let numbers = numbers.chain(added.iter().map(|token| &token["id"]));
    let tokens =
        numbers.filter_map(Value::as_u64).max().map_or(count(&model["vocab"]) as u64, |last| last + 1);
    let kind = model["type"].as_str().unwrap_or("of an unnamed kind");
    let markers = added.iter().filter(|token| token["special"] == true).count();
    let words = format!("{kind}, {tokens} tokens, {markers} of them markers");
    match tokens > vocabulary as u64 {
        true => format!("{words} (more than the model's {vocabulary} rows, which will be refused)"),
        false => words,
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            if value < 1024.0 {
                break;
            }
            (value, unit) = (value / 1024.0, next);
        }
        if unit == "B" { write!(f, "{value:.0} B") } else { write!(f, "{value:.1} {unit}") }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "format        {}", self.format)?;
        writeln!(f, "architecture  {}: {}", self.architecture, self.sizes)?;
        writeln!(f, "RoPE          {}", self.rope)?;
        writeln!(f, "tokenizer     {}", self.tokenizer)?;
        for (name, stored) in &self.stored {
            writeln!(f, "stored        {name}: {stored}")?;
        }
        for note in &self.notes {
            writeln!(f, "note          {note}")?;
        }
        writeln!(f)?;
        write!(f, "{}", self.totals)
    }
}
