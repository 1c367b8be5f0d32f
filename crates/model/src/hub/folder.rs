//! The tensors of a folder against a configuration, and reading them. Weights of eight bits come with a scale for each
//! block of rows and columns (DeepSeek-V3, arXiv 2412.19437, section 3.3): `weight · weight_scale_inv`.

use super::error::HubError;
use super::{CONFIG_BYTES_MAX, TOKENIZER_BYTES_MAX, Text};
use crate::architecture::{Architecture, ModelConfig};
use crate::checkpoint::{Piece, pieces};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use toprope_formats::{Stored, Tensors};
use toprope_world::Files;

/// What is appended to an eight-bit weight's name for its scales.
const SCALES: &str = "_scale_inv";

/// Tensors under Hugging Face's names.
#[derive(Debug)]
pub(super) struct Source {
    tensors: Tensors,
    fp8_block: Option<[usize; 2]>,
}

/// transformers counts a prediction module in the configuration whether or not its weights are there. All of them are,
/// or none is; what is left are the ones that are there.
pub(super) fn settle_predictions(config: &mut ModelConfig, tensors: &Tensors) -> Vec<String> {
    let ModelConfig::DeepseekV3(config) = config else { return Vec::new() };
    let depth = config.num_nextn_predict_layers;
    let is_there = |layer: usize| {
        let prefix = format!("model.layers.{layer}.");
        tensors.records().range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
    };
    if depth == 0 || (0..depth).any(|at| is_there(config.num_hidden_layers + at)) {
        return Vec::new();
    }
    config.num_nextn_predict_layers = 0;
    vec![format!("the configuration counts {depth} prediction module(s) and the files have none")]
}

impl Source {
    pub(super) fn new(tensors: Tensors, fp8_block: Option<[usize; 2]>) -> Source {
        Source { tensors, fp8_block }
    }

    pub(super) fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    fn wrong(&self, name: &str, reason: String, hint: &str) -> HubError {
        HubError::Tensor {
            path: self.tensors.file(name).to_owned(),
            name: name.into(),
            reason,
            hint: hint.into(),
        }
    }

    /// Every tensor that the configuration asks for is there with its shape in a format that can be read, and there is
    /// no other.
    pub(super) fn check(&self, config: &Path, architecture: Architecture<'_>) -> Result<(), HubError> {
        let mut known = BTreeSet::new();
        for piece in pieces(architecture) {
            let Some(record) = self.tensors.get(&piece.name) else {
                let reason =
                    format!("is missing; {} asks for it with shape {:?}", config.display(), piece.shape);
                return Err(self.wrong(&piece.name, reason, "get all shards, or mend the configuration"));
            };
            if record.shape != piece.shape {
                let reason =
                    format!("has shape {:?}; {} asks for {:?}", record.shape, config.display(), piece.shape);
                return Err(self.wrong(
                    &piece.name,
                    reason,
                    "the configuration is of another model; mend it",
                ));
            }
            if !record.stored.is_readable() {
                let reason = format!("is stored as {}", record.stored.name());
                let hint = format!("supported are {}", Stored::readable());
                return Err(self.wrong(&piece.name, reason, &hint));
            }
            let scales = format!("{}{SCALES}", piece.name);
            match (&record.stored, self.tensors.get(&scales)) {
                (Stored::F8E4m3, None) => {
                    let reason = format!("is stored as F8_E4M3 and has no `{scales}`");
                    return Err(self.wrong(&piece.name, reason, "get all shards"));
                }
                (Stored::F8E4m3, Some(record)) => {
                    let [rows, columns] = self.fp8_block.ok_or_else(|| {
                        let reason = "is stored as F8_E4M3".to_string();
                        self.wrong(&piece.name, reason, "write quantization_config into config.json")
                    })?;
                    let want: Vec<usize> = piece
                        .shape
                        .iter()
                        .zip([rows, columns])
                        .map(|(size, block)| size.div_ceil(block))
                        .collect();
                    if piece.shape.len() != 2 || record.shape != want {
                        let reason = format!("has shape {:?}, not {want:?}", record.shape);
                        return Err(self.wrong(
                            &scales,
                            reason,
                            "quantization_config.weight_block_size is another's",
                        ));
                    }
                    if !matches!(record.stored, Stored::F32 | Stored::Bf16) {
                        let reason = format!("is stored as {}", record.stored.name());
                        return Err(self.wrong(&scales, reason, "scales are F32 or BF16"));
                    }
                    known.insert(scales);
                }
                (_, Some(_)) => {
                    let reason =
                        format!("is there, and `{}` is stored as {}", piece.name, record.stored.name());
                    return Err(self.wrong(
                        &scales,
                        reason,
                        "remove the scales, or get the eight-bit weight",
                    ));
                }
                (_, None) => {}
            }
            known.insert(piece.name);
        }
        for name in self.tensors.records().keys() {
            if !known.contains(name) && !is_copy(name, architecture) {
                let reason = "is there, and the configuration has no place for it".to_string();
                return Err(self.wrong(
                    name,
                    reason,
                    "it would change the computation; mend the configuration",
                ));
            }
        }
        Ok(())
    }

    /// A tied head that is stored all the same must be the embedding: otherwise it is anybody's guess which one counts.
    pub(super) fn check_head(&self, architecture: Architecture<'_>) -> Result<(), HubError> {
        let (head, table) = ("lm_head.weight", "model.embed_tokens.weight");
        let Some(record) = self.tensors.get(head).filter(|_| architecture.tied()) else { return Ok(()) };
        let rows = record.shape.first().copied().unwrap_or(0);
        let columns = record.elements() / rows.max(1);
        let same_shape = self.tensors.get(table).is_some_and(|table| table.shape == record.shape);
        // Row by row: a head is the largest tensor there is.
        for row in 0..rows {
            let read = |name| self.tensors.read_f32(name, row * columns, columns);
            if !same_shape || read(head)? != read(table)? {
                let reason = "is there and is not the embedding".to_string();
                return Err(self.wrong(head, reason, "set tie_word_embeddings to false in config.json"));
            }
        }
        Ok(())
    }

    /// The elements of one published tensor.
    pub(super) fn read(&self, piece: &Piece) -> Result<Vec<f32>, HubError> {
        let mut numbers = self.tensors.read_f32(&piece.name, 0, piece.elements())?;
        let eight_bits = self.tensors.get(&piece.name).is_some_and(|record| record.stored == Stored::F8E4m3);
        if let (true, Some([rows, columns]), [_, width]) =
            (eight_bits, self.fp8_block, piece.shape.as_slice())
        {
            let name = format!("{}{SCALES}", piece.name);
            let count = self.tensors.get(&name).map_or(0, |record| record.elements());
            let scales = self.tensors.read_f32(&name, 0, count)?;
            let across = width.div_ceil(columns);
            for (row, numbers) in numbers.chunks_exact_mut(*width).enumerate() {
                for (column, number) in numbers.iter_mut().enumerate() {
                    *number *=
                        scales.get(row / rows * across + column / columns).copied().unwrap_or(f32::NAN);
                }
            }
        }
        Ok(numbers)
    }
}

/// Tensors that published files have beside the model's: copies, and tables that are computed here.
fn is_copy(name: &str, architecture: Architecture<'_>) -> bool {
    if name.ends_with(".rotary_emb.inv_freq") {
        return true;
    }
    if architecture.tied() && name == "lm_head.weight" {
        return true;
    }
    let main = architecture.layers();
    (main..main + architecture.prediction_layers()).any(|layer| {
        let prefix = format!("model.layers.{layer}");
        name == format!("{prefix}.embed_tokens.weight") || name == format!("{prefix}.shared_head.head.weight")
    })
}

/// What the small files of a folder say of text: `tokenizer.json` and those beside it.
///
/// # Errors
/// A file is there and cannot be read.
pub fn text(files: &dyn Files, path: &Path) -> Result<Text, HubError> {
    let mut text = Text::default();
    let tokenizer = path.join("tokenizer.json");
    match files.inspect(&tokenizer)? {
        Some(_) => text.tokenizer = Some((files.read(&tokenizer, TOKENIZER_BYTES_MAX)?, tokenizer)),
        None => text.no_tokenizer = Some(format!("{}: there is no such file", tokenizer.display())),
    }
    let json = |name: &str| -> Result<Value, HubError> {
        let path = path.join(name);
        if files.inspect(&path)?.is_none() {
            return Ok(Value::Null);
        }
        let bytes = files.read(&path, CONFIG_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map_err(|error| HubError::Config {
            path,
            source: crate::ModelError::Syntax { reason: error.to_string() },
        })
    };
    let said = json("tokenizer_config.json")?;
    // A token is a text, or an object that holds one.
    let token = |name: &str| {
        let value = said.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
    };
    (text.beginning, text.end) = (token("bos_token"), token("eos_token"));
    text.chat_template = match said.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        // Several by name; the one without tools or documents is called default.
        Some(Value::Array(templates)) => templates.iter().find_map(|entry| {
            (entry.get("name")?.as_str()? == "default")
                .then(|| entry.get("template")?.as_str().map(str::to_string))?
        }),
        _ => None,
    };
    let apart = path.join("chat_template.jinja");
    if files.inspect(&apart)?.is_some() {
        let bytes = files.read(&apart, CONFIG_BYTES_MAX)?;
        text.chat_template = Some(String::from_utf8_lossy(&bytes).into_owned());
    }
    for name in ["generation_config.json", "config.json"] {
        let ends = match json(name)?.get("eos_token_id") {
            Some(Value::Array(ends)) => ends.iter().filter_map(Value::as_u64).collect(),
            Some(value) => value.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        text.ends.extend(ends.into_iter().filter_map(|end: u64| u32::try_from(end).ok()));
    }
    text.ends.sort_unstable();
    text.ends.dedup();
    Ok(text)
}
