//! What can be wrong with a model's configuration, its options or its tensors.

use toprope_program::BuildError;

/// Why a model cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// A key of the configuration or of the training options has a value that does not fit.
    #[error("`{key}` {reason}: {mend}")]
    Key {
        /// The key as it is written in the file.
        key: &'static str,
        /// What is wrong, with the value.
        reason: String,
        /// What to do.
        mend: String,
    },
    /// A key of a published configuration that changes the computation and is not supported, or is missing.
    #[error("`{key}` {reason}: {mend}")]
    Published {
        /// The key as it is written in the file.
        key: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        mend: String,
    },
    /// The configuration is not what its schema says; names the key and the place.
    #[error("not a model's configuration: {reason}")]
    Syntax {
        /// The parser's message.
        reason: String,
    },
    /// An operator does not fit: a mistake of the builder, not of the configuration.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A tensor of a checkpoint is missing or has another shape.
    #[error("tensor `{name}` {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

/// An error about a key.
pub(crate) fn key(key: &'static str, reason: impl Into<String>, mend: impl Into<String>) -> ModelError {
    ModelError::Key { key, reason: reason.into(), mend: mend.into() }
}

/// An error about a key of a published configuration.
pub(crate) fn unknown(key: &str, reason: String, mend: &str) -> ModelError {
    ModelError::Published { key: key.into(), reason, mend: mend.into() }
}
