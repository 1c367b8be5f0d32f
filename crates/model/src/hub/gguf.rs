//! A GGUF file as a model: its metadata to a configuration, its tensors under Hugging Face's names.
//!
//! ggml's names stand in llama.cpp's table of tensors; its converter says what is done to each. For Llama it reorders the
//! rows of queries and keys, so that neighbouring columns are rotated together: here they are put back.

use super::error::HubError;
use super::gguf_config;
use crate::architecture::{Architecture, ModelConfig};
use crate::checkpoint::{Piece, pieces};
use crate::config::DeepseekV3Config;
use std::collections::BTreeSet;
use std::path::Path;
use toprope_formats::{Gguf, Stored, Tensors};
use toprope_world::Files;

/// A file with the configuration that it holds.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) gguf: Gguf,
    /// Whether rows of queries and keys were reordered.
    reordered: bool,
}

/// Where the elements of a published tensor are.
enum Place {
    /// A tensor as it is.
    Whole(String),
    /// Rows of heads, each in pairs of neighbours.
    Heads { name: String, heads: usize },
    /// One of a stack of experts.
    Expert { name: String, expert: usize },
    /// Expansion of the latent, stored apart for keys (transposed in each head) and values.
    Split { keys: String, values: String },
}

impl Source {
    /// Opens a file and checks all of it but the elements.
    pub(super) fn open(
        files: &dyn Files,
        path: &Path,
    ) -> Result<(Source, ModelConfig, Vec<String>), HubError> {
        let gguf = Gguf::open(files, path)?;
        let wrong = |source| HubError::Config { path: path.to_owned(), source };
        let (config, notes) = gguf_config::configuration(&gguf).map_err(wrong)?;
        let reordered = matches!(&config, ModelConfig::Llama(config) if config.model_type == "llama");
        let source = Source { gguf, reordered };
        source.check((&config).into())?;
        Ok((source, config, notes))
    }

    pub(super) fn tensors(&self) -> &Tensors {
        &self.gguf.tensors
    }

    fn wrong(&self, name: &str, reason: String, hint: &str) -> HubError {
        HubError::Tensor {
            path: self.tensors().root().to_owned(),
            name: name.into(),
            reason,
            hint: hint.into(),
        }
    }

    fn place(&self, piece: &Piece, architecture: Architecture<'_>) -> Result<Place, HubError> {
        let unknown =
            || self.wrong(&piece.name, "has no place in GGUF".into(), "take the Hugging Face folder");
        match piece.name.as_str() {
            "model.embed_tokens.weight" => return Ok(Place::Whole("token_embd.weight".into())),
            "model.norm.weight" => return Ok(Place::Whole("output_norm.weight".into())),
            "lm_head.weight" => return Ok(Place::Whole("output.weight".into())),
            _ => {}
        }
        let rest = piece.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let (layer, part) = rest.ok_or_else(unknown)?;
        if let Some(expert) = part.strip_prefix("mlp.experts.") {
            let (expert, matrix) = expert.split_once('.').ok_or_else(unknown)?;
            let expert = expert.parse().map_err(|_| unknown())?;
            let matrix = match matrix {
                "gate_proj.weight" => "ffn_gate_exps",
                "up_proj.weight" => "ffn_up_exps",
                "down_proj.weight" => "ffn_down_exps",
                _ => return Err(unknown()),
            };
            return Ok(Place::Expert { name: format!("blk.{layer}.{matrix}.weight"), expert });
        }
        let (module, suffix) = part.rsplit_once('.').ok_or_else(unknown)?;
        if part == "mlp.gate.e_score_correction_bias" {
            return Ok(Place::Whole(format!("blk.{layer}.exp_probs_b.bias")));
        }
        let theirs = NAMES.iter().find(|(ours, _)| *ours == module).ok_or_else(unknown)?.1;
        let name = format!("blk.{layer}.{theirs}.{suffix}");
        if theirs == "attn_kv_b" && self.tensors().get(&name).is_none() {
            let [keys, values] = ["attn_k_b", "attn_v_b"].map(|part| format!("blk.{layer}.{part}.{suffix}"));
            return Ok(Place::Split { keys, values });
        }
        match architecture {
            Architecture::Llama(config) if self.reordered && theirs == "attn_q" => {
                Ok(Place::Heads { name, heads: config.num_attention_heads })
            }
            Architecture::Llama(config) if self.reordered && theirs == "attn_k" => {
                Ok(Place::Heads { name, heads: config.key_value_heads() })
            }
            _ => Ok(Place::Whole(name)),
        }
    }

    /// Every tensor that the metadata asks for is there with its shape in a format that can be read, and there is no other.
    fn check(&self, architecture: Architecture<'_>) -> Result<(), HubError> {
        let mut known = BTreeSet::new();
        for piece in pieces(architecture) {
            let wanted = match self.place(&piece, architecture)? {
                Place::Whole(name) | Place::Heads { name, .. } => vec![(name, piece.shape.clone())],
                Place::Expert { name, .. } => {
                    let Architecture::DeepseekV3(config) = architecture else { continue };
                    vec![(name, [&[config.experts()], piece.shape.as_slice()].concat())]
                }
                Place::Split { keys, values } => {
                    let Architecture::DeepseekV3(config) = architecture else { continue };
                    let (heads, rank) = (config.num_attention_heads, config.kv_lora_rank);
                    vec![
                        (keys, vec![heads, rank, config.qk_nope_head_dim]),
                        (values, vec![heads, config.v_head_dim, rank]),
                    ]
                }
            };
            for (name, shape) in wanted {
                let Some(record) = self.tensors().get(&name) else {
                    let reason = format!("is missing; the metadata asks for it with shape {shape:?}");
                    return Err(self.wrong(&name, reason, "the file is not whole; get it again"));
                };
                if record.shape != shape {
                    let reason = format!("has shape {:?}; the metadata asks for {shape:?}", record.shape);
                    return Err(self.wrong(&name, reason, "metadata and tensors are of different models"));
                }
                if !record.stored.is_readable() {
                    let reason = format!("is stored as {}", record.stored.name());
                    return Err(self.wrong(&name, reason, &format!("supported are {}", Stored::readable())));
                }
                known.insert(name);
            }
        }
        // Llama's divisors of rotary frequencies are read into the configuration; prediction modules are left out of it.
        if matches!(architecture, Architecture::Llama(_)) {
            known.insert(gguf_config::DIVISORS.into());
        }
        let left_out = architecture.layers()..gguf_config::blocks(&self.gguf).unwrap_or(0);
        for name in self.tensors().records().keys() {
            let layer =
                name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
            if !known.contains(name) && !layer.is_some_and(|layer| left_out.contains(&layer)) {
                let reason = "is there, and the metadata has no place for it".to_string();
                return Err(self.wrong(name, reason, "it would change the computation; take another file"));
            }
        }
        Ok(())
    }

    /// The elements of one published tensor.
    pub(super) fn read(&self, piece: &Piece, architecture: Architecture<'_>) -> Result<Vec<f32>, HubError> {
        let (tensors, count) = (self.tensors(), piece.elements());
        Ok(match self.place(piece, architecture)? {
            Place::Whole(name) => tensors.read_f32(&name, 0, count)?,
            Place::Expert { name, expert } => tensors.read_f32(&name, expert * count, count)?,
            Place::Heads { name, heads } => {
                let columns = piece.shape.get(1).copied().unwrap_or(1);
                halves(&tensors.read_f32(&name, 0, count)?, heads, columns)
            }
            Place::Split { keys, values } => {
                let Architecture::DeepseekV3(config) = architecture else { return Ok(Vec::new()) };
                let all =
                    |name: &str| tensors.read_f32(name, 0, tensors.get(name).map_or(0, |r| r.elements()));
                expansion(config, &all(&keys)?, &all(&values)?)
            }
        })
    }
}

/// Rows of heads from pairs of neighbours (0, 1), (2, 3), … to halves (0, d/2), (1, d/2 + 1), …
fn halves(pairs: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let size = pairs.len() / columns.max(1) / heads.max(1);
    let mut rows = Vec::with_capacity(pairs.len());
    for head in 0..heads {
        for row in 0..size {
            let (half, pair) = (row / (size / 2).max(1), row % (size / 2).max(1));
            let from = (head * size + 2 * pair + half) * columns;
            rows.extend_from_slice(&pairs[from..from + columns]);
        }
    }
    rows
}

/// `[heads · (nope + value), rank]` from keys `[heads, rank, nope]` and values `[heads, value, rank]`.
fn expansion(config: &DeepseekV3Config, keys: &[f32], values: &[f32]) -> Vec<f32> {
    let (nope, value, rank) = (config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank);
    let mut rows = Vec::with_capacity(keys.len() + values.len());
    for (keys, values) in keys.chunks_exact(nope * rank).zip(values.chunks_exact(value * rank)) {
        for column in 0..nope {
            rows.extend(keys.iter().skip(column).step_by(nope));
        }
        rows.extend_from_slice(values);
    }
    rows
}

/// Modules of a layer in Hugging Face's words and in ggml's.
const NAMES: [(&str, &str); 19] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

#[cfg(test)]
mod tests {
    use super::halves;

    #[test]
    fn pairs_of_neighbours_become_halves() {
        // Two heads of four rows with two columns; a row holds its place among the halves.
        let pairs = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| [row as f32, row as f32 + 0.5]).concat();
        let want: Vec<f32> = (0..8).flat_map(|row| [row as f32, row as f32 + 0.5]).collect();
        assert_eq!(halves(&pairs, 2, 2), want);
    }
}
