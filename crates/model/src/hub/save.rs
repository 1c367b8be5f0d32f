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
    whole_or_nothing(files, folder, |aside| write(files, aside, config, extras, tensor))
}

/// Makes a folder aside, lets `write` fill it, and gives it its name when all is durable.
pub(super) fn whole_or_nothing<E: From<HubError>>(
    files: &dyn Files,
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if files.inspect(folder).map_err(HubError::from)?.is_some() {
        return Err(HubError::Exists { path: folder.to_owned() }.into());
    }
    let aside = aside(folder);
    let filled = || -> Result<(), E> {
        // Left by a process that died while it had this one's number.
        if files.inspect(&aside).map_err(HubError::from)?.is_some() {
            files.remove_folder(&aside).map_err(HubError::from)?;
        }
        files.create_folder(&aside).map_err(HubError::from)?;
        write(&aside)?;
        files.sync_folder(&aside).map_err(HubError::from)?;
        files.rename(&aside, folder).map_err(HubError::from)?;
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(files.sync_folder(parent.unwrap_or(Path::new("."))).map_err(HubError::from)?)
    };
    let written = filled();
    if written.is_err() {
        // Why it failed is what is told.
        let _ = files.remove_folder(&aside);
    }
    written
}

/// Writes small files.
pub(super) fn write_extras<'a>(
    files: &dyn Files,
    folder: &Path,
    extras: impl IntoIterator<Item = &'a Extra>,
) -> Result<(), HubError> {
    for extra in extras {
        let mut file = files.create(&folder.join(extra.name))?;
        file.write(&extra.bytes)?;
        file.sync()?;
    }
    Ok(())
}

fn write<E: From<HubError>>(
    files: &dyn Files,
    aside: &Path,
    config: &ModelConfig,
    extras: &[Extra],
    mut tensor: impl FnMut(&Piece) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let text = serde_json::to_string_pretty(&published(config)).unwrap_or_default();
    let configuration = Extra { name: "config.json", bytes: text.into_bytes() };
    write_extras(files, aside, extras.iter().chain([&configuration]))?;
    let pieces = pieces(Architecture::from(config));
    let announced: Vec<_> = pieces.iter().map(|piece| (piece.name.clone(), piece.shape.clone())).collect();
    let path = aside.join(SINGLE_FILE);
    let mut writer = SafetensorsWriter::create(files, &path, &announced).map_err(HubError::from)?;
    for piece in pieces {
        let numbers = tensor(&piece)?;
        writer.write(&path, &piece.name, &numbers).map_err(HubError::from)?;
    }
    Ok(writer.finish(&path).map_err(HubError::from)?)
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
