//! What can be wrong with a published model.

use crate::error::ModelError;
use std::path::PathBuf;
use toprope_formats::FormatError;
use toprope_world::FileError;

/// Why a published model is refused.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The system could not read a file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of weights is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A folder without a model.
    #[error(
        "{}: there is no model here: no config.json\nhint: name a folder as published on Hugging Face, or a .gguf file",
        path.display()
    )]
    NoModel {
        /// The folder.
        path: PathBuf,
    },
    /// What is to be written is there already.
    #[error("{}: it exists already\nhint: name a folder that is not there yet", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The configuration is wrong or asks for what is not supported.
    #[error("{}: {source}", path.display())]
    Config {
        /// `config.json`, or the file whose metadata it is.
        path: PathBuf,
        /// What is wrong.
        source: ModelError,
    },
    /// A tensor does not fit the configuration.
    #[error("{}: tensor `{name}` {reason}\nhint: {hint}", path.display())]
    Tensor {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: String,
    },
}
