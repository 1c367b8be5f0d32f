//! Published models: a Hugging Face folder or a GGUF file as a configuration and its weights, read by part.

mod config; // config.json to a configuration
mod describe; // what `inspect` shows
mod error; // what can be wrong
mod folder; // tensors of a folder, FP8 among them
mod gguf; // tensors of a GGUF file
mod gguf_config; // its metadata to a configuration
mod gguf_tokenizer; // its metadata to a tokenizer.json
mod save; // a folder that transformers opens
mod save_adapter; // a folder that PEFT opens
mod sketch; // what `inspect` shows of a model that is refused

pub use config::{Published, parse};
pub use describe::Description;
pub use error::HubError;
pub use folder::text as text_of_folder;
pub use save::{Extra, save};
pub use save_adapter::save_adapter;
pub use sketch::Sketch;

use crate::architecture::{Architecture, ModelConfig};
use crate::checkpoint::{Piece, pieces};
use std::path::{Path, PathBuf};
use toprope_formats::{Folder, Tensors};
use toprope_world::Files;

/// The largest `config.json` or other small file that is read.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The largest `tokenizer.json` that is read.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// A published model: every header and the configuration are checked, no weight is in memory.
#[derive(Debug)]
pub struct Hub {
    path: PathBuf,
    config: ModelConfig,
    source: Source,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    Folder(folder::Source),
    Gguf(gguf::Source),
}

/// What a model's files say of text: each is there only where the files have it.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// A `tokenizer.json`, and where it is from.
    pub tokenizer: Option<(Vec<u8>, PathBuf)>,
    /// Why there is no tokenizer.
    pub no_tokenizer: Option<String>,
    /// How a conversation becomes a text, in Jinja.
    pub chat_template: Option<String>,
    /// The token that a text begins with, as it is written.
    pub beginning: Option<String>,
    /// The token that a text ends with, as it is written.
    pub end: Option<String>,
    /// Numbers of all tokens that end an answer.
    pub ends: Vec<u32>,
}

impl Hub {
    /// Opens a folder or a GGUF file.
    ///
    /// # Errors
    /// A file is missing, damaged or contradicts another; what the model needs is not supported.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Hub, HubError> {
        let path = path.to_owned();
        if files.is_file(&path)? {
            let (source, config, notes) = gguf::Source::open(files, &path)?;
            return Ok(Hub { path, config, source: Source::Gguf(source), notes });
        }
        let config_path = path.join("config.json");
        if !files.is_file(&config_path)? {
            return Err(HubError::NoModel { path });
        }
        let bytes = files.read(&config_path, CONFIG_BYTES_MAX)?;
        let wrong = |source| HubError::Config { path: config_path.clone(), source };
        let mut published = parse(&bytes).map_err(wrong)?;
        let tensors = Folder::open(files, &path)?.tensors;
        let notes = folder::settle_predictions(&mut published.config, &tensors);
        let source = folder::Source::new(tensors, published.fp8_block);
        source.check(&config_path, (&published.config).into())?;
        Ok(Hub { path, config: published.config, source: Source::Folder(source), notes })
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of what is there.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What a user should know of how the model was read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What the file is called that it is.
    pub fn format(&self) -> &'static str {
        match self.source {
            Source::Folder(_) => "safetensors",
            Source::Gguf(_) => "GGUF",
        }
    }

    /// Records of its tensors.
    pub fn tensors(&self) -> &Tensors {
        match &self.source {
            Source::Folder(source) => source.tensors(),
            Source::Gguf(source) => source.tensors(),
        }
    }

    /// The configuration without prediction modules: what inference computes.
    pub fn inference_config(&self) -> ModelConfig {
        let mut config = self.config.clone();
        if let ModelConfig::DeepseekV3(config) = &mut config {
            config.num_nextn_predict_layers = 0;
        }
        config
    }

    /// Hands each tensor of a configuration of this model to `take`, one at a time, in f32.
    ///
    /// # Errors
    /// A tensor cannot be read, or what `take` says.
    pub fn each<E: From<HubError>>(
        &self,
        architecture: Architecture<'_>,
        mut take: impl FnMut(&Piece, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_copies(architecture)?;
        for piece in pieces(architecture) {
            take(&piece, &self.read(&piece)?)?;
        }
        Ok(())
    }

    /// Where a head is said to be the embedding, one that is stored all the same must be it: it would be dropped.
    ///
    /// # Errors
    /// It differs, or cannot be read.
    pub fn check_copies(&self, architecture: Architecture<'_>) -> Result<(), HubError> {
        match &self.source {
            Source::Folder(source) => source.check_head(architecture),
            Source::Gguf(_) => Ok(()),
        }
    }

    /// One published tensor in f32.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, piece: &Piece) -> Result<Vec<f32>, HubError> {
        match &self.source {
            Source::Folder(source) => source.read(piece),
            Source::Gguf(source) => source.read(piece, (&self.config).into()),
        }
    }

    /// What the files say of text.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn text(&self, files: &dyn Files) -> Result<Text, HubError> {
        match &self.source {
            Source::Folder(_) => folder::text(files, &self.path),
            Source::Gguf(source) => Ok(gguf_tokenizer::text(&source.gguf, &self.path)),
        }
    }
}
