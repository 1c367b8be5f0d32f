//! A model as a folder that transformers opens and that computes the same.

use super::error::HubError;
use crate::architecture::{Architecture, ModelConfig};
use crate::checkpoint::{Piece, pieces};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use toprope_formats::{SINGLE_FILE, SafetensorsWriter};
use toprope_world::Files;

/// A small file that goes beside the weights.
#[derive(Clone, Debug)]
pub struct Extra {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Writes a folder: `config.json`, the weights in F32, one tensor in memory at a time, and `extras`. It is written aside and
/// appears whole or not at all; where it cannot be written, nothing is left of it.
///
/// # Errors
/// Something of that name is there, a tensor cannot be given, or the system refuses.
pub fn save<E: From<HubError>>(
    files: &dyn Files,
    folder: &Path,
    config: &ModelConfig,
    extras: &[Extra],
    tensor: impl FnMut(&Piece) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let aside = aside(folder);
    let written = write(files, folder, &aside, config, extras, tensor);
    if written.is_err() {
        // Why it failed is what is told.
        let _ = files.remove_folder(&aside);
    }
    written
}

fn write<E: From<HubError>>(
    files: &dyn Files,
    folder: &Path,
    aside: &Path,
    config: &ModelConfig,
    extras: &[Extra],
    mut tensor: impl FnMut(&Piece) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let begun = || -> Result<(SafetensorsWriter, Vec<Piece>), HubError> {
        if files.inspect(folder)?.is_some() {
            return Err(HubError::Exists { path: folder.to_owned() });
        }
        files.create_folder(aside)?;
        let text = serde_json::to_string_pretty(&published(config)).unwrap_or_default();
        let configuration = Extra { name: "config.json", bytes: text.into_bytes() };
        for extra in extras.iter().chain([&configuration]) {
            let mut file = files.create(&aside.join(extra.name))?;
            file.write(&extra.bytes)?;
            file.sync()?;
        }
        let pieces = pieces(Architecture::from(config));
        let announced: Vec<_> =
            pieces.iter().map(|piece| (piece.name.clone(), piece.shape.clone())).collect();
        Ok((SafetensorsWriter::create(files, &aside.join(SINGLE_FILE), &announced)?, pieces))
    };
    let (mut writer, pieces) = begun()?;
    let path = aside.join(SINGLE_FILE);
    for piece in pieces {
        let numbers = tensor(&piece)?;
        writer.write(&path, &piece.name, &numbers).map_err(HubError::from)?;
    }
    writer.finish(&path).map_err(HubError::from)?;
    files.sync_folder(aside).map_err(HubError::from)?;
    files.rename(aside, folder).map_err(HubError::from)?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    files.sync_folder(parent.unwrap_or(Path::new("."))).map_err(HubError::from)?;
    Ok(())
}

/// Where a folder is written before it has its name: by each process in a place of its own.
fn aside(folder: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(format!(".tmp-{}-", std::process::id()));
    name.push(folder.file_name().unwrap_or_default());
    folder.with_file_name(name)
}

/// The keys that transformers reads.
fn published(config: &ModelConfig) -> Value {
    let (name, written) = match config {
        ModelConfig::DeepseekV3(config) => {
            let mut config = config.clone();
            config.num_key_value_heads = Some(config.num_attention_heads);
            // transformers knows no model without experts, but one whose layers are all dense.
            if config.experts() == 0 {
                config.first_k_dense_replace = config.num_hidden_layers;
                config.n_routed_experts = Some(1);
                (config.n_group, config.topk_group, config.num_experts_per_tok) = (1, 1, 1);
                config.moe_intermediate_size = config.moe_intermediate_size.max(1);
            }
            config.n_shared_experts = Some(config.n_shared_experts.unwrap_or(0));
            ("DeepseekV3ForCausalLM", serde_json::to_value(config))
        }
        ModelConfig::Llama(config) if config.model_type == "qwen2" => {
            ("Qwen2ForCausalLM", serde_json::to_value(config))
        }
        ModelConfig::Llama(config) => ("LlamaForCausalLM", serde_json::to_value(config)),
    };
    let mut keys = written.unwrap_or_default();
    keys["architectures"] = json!([name]);
    keys["dtype"] = "float32".into();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        keys[key] = Value::Null;
    }
    if let Some(scaling) = keys.get_mut("rope_scaling").and_then(Value::as_object_mut)
        && let Some(kind) = scaling.remove("type")
    {
        scaling.insert("rope_type".into(), kind);
    }
    // A head size that follows from the others need not be said.
    if let ModelConfig::Llama(_) = config
        && let Some(keys) = keys.as_object_mut()
    {
        keys.retain(|name, value| {
            !(value.is_null() && ["head_dim", "num_key_value_heads", "rope_scaling"].contains(&name.as_str()))
        });
    }
    keys
}
