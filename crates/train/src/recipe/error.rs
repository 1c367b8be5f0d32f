//! What is wrong with a recipe: the file, the place, the mend.

use std::fmt;

/// One error with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipeError {
    /// The file, or the name of the built-in recipe, or `--set`.
    pub file: String,
    /// Line, from 1, where known.
    pub line: Option<usize>,
    /// The key, as `section.key`, where known.
    pub key: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

impl RecipeError {
    /// An error of a key.
    pub fn of_key(file: &str, key: &str, reason: impl Into<String>) -> RecipeError {
        RecipeError {
            file: file.into(),
            line: None,
            key: Some(key.into()),
            reason: reason.into(),
            hint: None,
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> RecipeError {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "recipe {}", self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key `{key}`")?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RecipeError {}
