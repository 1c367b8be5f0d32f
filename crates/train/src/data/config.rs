//! The recipe's `[data]` table.

use super::{ChatConfig, DataError};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where documents come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The files that `paths` names.
    #[default]
    Files,
    /// The Rust sources of the crates in Cargo's registry folder: text that each machine with Rust has.
    CargoRegistry,
}

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// By its extension: `.jsonl` and `.ndjson`, `.parquet`, and text for everything else.
    #[default]
    Auto,
    /// UTF-8 text, one document (see [`DataConfig::document_separator`]).
    Text,
    /// A JSON object a line, one document each.
    Jsonl,
    /// A row a document, with the cargo feature `parquet`.
    Parquet,
}

/// The recipe's `[data]` table: which documents, how they are read, which are held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Where documents come from.
    pub source: Source,
    /// Files, folders (all files below) and glob patterns (`**` is any depth); relative ones start at the working
    /// folder. Folders and patterns leave hidden files out. A file that is named twice is read once. Documents keep
    /// the order of this list, and within a folder or a pattern that of the sorted paths.
    pub paths: Vec<String>,
    /// Held-out documents from files of their own, named as in `paths`; then none is taken from `paths`.
    pub validation_paths: Vec<String>,
    /// How files are read.
    pub format: Format,
    /// The field or column with the text in JSONL and Parquet.
    pub field: String,
    /// Where the files hold conversations, one a line: how they are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatConfig>,
    /// Only files with one of these extensions are taken from folders, without the dot; empty takes all.
    pub extensions: Vec<String>,
    /// Cuts a text file into documents, itself left out; without it each file is one document.
    pub document_separator: Option<String>,
    /// Skips and counts bad lines of JSONL and rows of Parquet without text, where without it the first is an error.
    pub skip_bad_lines: bool,
    /// At most so many bytes of text are trained on. Of files the first ones are taken and the last document is cut at
    /// a character; of Cargo's registry a seeded selection of whole files.
    pub max_bytes: u64,
    /// At most so many bytes of text are held out; a seeded selection of whole documents.
    pub validation_max_bytes: u64,
    /// The part of the documents that is held out (of the crates, with `cargo-registry`); 0 holds none out.
    pub validation_fraction: Option<f64>,
    /// The number of documents that is held out, instead of a fraction.
    pub validation_documents: Option<u64>,
    /// A held-out document is dropped where more than this part of its five-word shingles is in one document that
    /// is trained on (so all with a Jaccard index above it are); 1 drops none.
    pub near_duplicate_threshold: f64,
    /// Cargo's folder for `cargo-registry`; otherwise `$CARGO_HOME`, otherwise `.cargo` in the home folder.
    pub cargo_home: Option<PathBuf>,
    /// Seeds the choice of held-out documents and of registry files.
    pub seed: u64,
}

/// Part of the documents, or crates, that is held out where the recipe does not say.
pub(super) const VALIDATION_FRACTION_DEFAULT: f64 = 0.1;

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: Source::Files,
            paths: Vec::new(),
            validation_paths: Vec::new(),
            format: Format::Auto,
            field: "text".to_owned(),
            chat: None,
            extensions: Vec::new(),
            document_separator: None,
            skip_bad_lines: false,
            max_bytes: 1 << 30,
            validation_max_bytes: 1 << 20,
            validation_fraction: None,
            validation_documents: None,
            near_duplicate_threshold: 0.5,
            cargo_home: None,
            seed: 0,
        }
    }
}

impl DataConfig {
    /// Checks each key by itself and against the others.
    ///
    /// # Errors
    /// [`DataError::Config`] with the key that is wrong and what it may be.
    pub fn check(&self) -> Result<(), DataError> {
        let wrong =
            |key: &'static str, reason: &str| Err(DataError::Config { key, reason: reason.to_owned() });
        let registry = self.source == Source::CargoRegistry;
        if registry && !self.paths.is_empty() {
            return wrong(
                "paths",
                "must be empty with source = \"cargo-registry\"; to train on files set source = \"files\"",
            );
        }
        if registry && !self.validation_paths.is_empty() {
            return wrong(
                "validation_paths",
                "must be empty with source = \"cargo-registry\": whole crates are held out",
            );
        }
        if registry && self.validation_documents.is_some() {
            return wrong(
                "validation_documents",
                "does not go with source = \"cargo-registry\": crates are held out; give `validation_fraction`",
            );
        }
        if !registry && self.paths.is_empty() {
            return wrong(
                "paths",
                "is empty; name files, folders or patterns, or set source = \"cargo-registry\"",
            );
        }
        if !registry && self.cargo_home.is_some() {
            return wrong("cargo_home", "goes with source = \"cargo-registry\" only; remove it");
        }
        if self.field.is_empty() {
            return wrong("field", "is empty; name the field or column with the text");
        }
        if let Some(chat) = &self.chat {
            if registry {
                return wrong(
                    "chat",
                    "does not go with source = \"cargo-registry\": sources are no conversations",
                );
            }
            if !matches!(self.format, Format::Auto | Format::Jsonl) {
                return wrong(
                    "format",
                    "must be \"jsonl\" with [data.chat]: a conversation is a line of JSON",
                );
            }
            if self.document_separator.is_some() {
                return wrong(
                    "document_separator",
                    "does not go with [data.chat]: each line is a conversation",
                );
            }
            if chat.field.is_empty() {
                return wrong("chat.field", "is empty; name the field with the messages");
            }
            if chat.roles.is_empty() || chat.roles.iter().any(String::is_empty) {
                return wrong(
                    "chat.roles",
                    "names nobody whose turns are predicted; name for example \"assistant\"",
                );
            }
        }
        if let Some(extension) = self.extensions.iter().find(|e| e.is_empty() || e.contains(['.', '/'])) {
            let reason = format!("`{extension}` is not an extension; write it without dot, as in \"txt\"");
            return wrong("extensions", &reason);
        }
        if self.document_separator.as_deref() == Some("") {
            return wrong("document_separator", "is empty; remove it to make each file one document");
        }
        if self.max_bytes == 0 {
            return wrong("max_bytes", "is 0; give the bytes of text to train on");
        }
        if self.validation_max_bytes == 0 {
            return wrong(
                "validation_max_bytes",
                "is 0; give the bytes of text to hold out, or set validation_fraction = 0",
            );
        }
        if self.validation_fraction.is_some() && self.validation_documents.is_some() {
            return wrong("validation_documents", "does not go with `validation_fraction`; keep one of them");
        }
        if !self.validation_paths.is_empty()
            && (self.validation_fraction.is_some() || self.validation_documents.is_some())
        {
            return wrong(
                "validation_paths",
                "does not go with `validation_fraction` or `validation_documents`; keep one of them",
            );
        }
        if let Some(fraction) = self.validation_fraction
            && !(0.0..1.0).contains(&fraction)
        {
            let reason = format!("is {fraction}; it must be at least 0 and below 1");
            return wrong("validation_fraction", &reason);
        }
        if !(0.0..=1.0).contains(&self.near_duplicate_threshold) {
            let reason = format!("is {}; it must be from 0 to 1", self.near_duplicate_threshold);
            return wrong("near_duplicate_threshold", &reason);
        }
        Ok(())
    }

    /// The part that is held out, with the default filled in.
    pub(super) fn held_out_fraction(&self) -> f64 {
        self.validation_fraction.unwrap_or(VALIDATION_FRACTION_DEFAULT)
    }
}
