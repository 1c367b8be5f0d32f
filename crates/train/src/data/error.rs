//! What can be wrong with data: each message names the file, the place and the mend.

use std::io;
use std::path::PathBuf;

/// Why there are no documents, tokens or batches.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A key of the recipe's `[data]` table cannot be as it is.
    #[error("recipe key `data.{key}` {reason}")]
    Config {
        /// The key within `[data]`.
        key: &'static str,
        /// What is wrong and what it may be.
        reason: String,
    },
    /// Nothing is at a path of the recipe.
    #[error("{}: there is no such file or folder; correct `data.{key}` (relative paths start at the working folder)", path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
        /// `paths` or `validation_paths`.
        key: &'static str,
    },
    /// A glob pattern matches no file.
    #[error(
        "{pattern}: no file matches this pattern; correct `data.{key}` (relative patterns start at the working folder)"
    )]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// `paths` or `validation_paths`.
        key: &'static str,
    },
    /// A glob pattern that cannot be read.
    #[error("{pattern}: not a pattern, at character {position}: {reason}; correct `data.{key}`")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Characters before the mistake.
        position: usize,
        /// What is wrong.
        reason: &'static str,
        /// `paths` or `validation_paths`.
        key: &'static str,
    },
    /// A folder without a file to take.
    #[error("{}: no file in this folder {}; put files there, or correct `data.{key}`", path.display(), filter(extensions))]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// The extensions that are taken.
        extensions: Vec<String>,
        /// `paths` or `validation_paths`.
        key: &'static str,
    },
    /// A socket, a device or the like.
    #[error("{}: not a regular file; name a file or folder", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The system does not let it be read.
    #[error("{}: cannot be read: {source}; give this user access to it, or leave it out of the recipe", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No text in a file.
    #[error("{}: the file is empty (no text at byte offset 0); fill it, or leave it out of the recipe", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Text that is not UTF-8.
    #[error("{}: not UTF-8 at byte offset {offset}{}; convert the file to UTF-8, or leave it out with `data.extensions`", path.display(), in_line(*line))]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that cannot be.
        offset: u64,
        /// Its line, from 1, where the format has lines.
        line: Option<u64>,
    },
    /// A line of JSONL that is not a JSON object with text.
    #[error("{}:{line}:{column}: {reason}; correct the line, or set data.skip_bad_lines = true", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// In bytes, from 1.
        column: u64,
        /// What is wrong.
        reason: String,
    },
    /// A JSON object without the field.
    #[error("{}:{line}: no field `{field}`{}; set `data.field` to the one with the text, or set data.skip_bad_lines = true", path.display(), there(found))]
    MissingField {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// The field that was looked for.
        field: String,
        /// Fields that are there.
        found: Vec<String>,
    },
    /// A file of which every line was skipped.
    #[error("{}: all {skipped} lines or rows are bad, the first {first}; correct the file, or leave it out of the recipe", path.display())]
    AllBad {
        /// The file.
        path: PathBuf,
        /// How many were skipped.
        skipped: u64,
        /// Where the first is and what is wrong with it.
        first: String,
    },
    /// A Parquet file that cannot be read.
    #[error("{}: not an intact Parquet file: {reason}; fetch or write it again", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// A Parquet file without the column.
    #[error("{}: no column `{field}`{}; set `data.field` to the one with the text", path.display(), there(found))]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column that was looked for.
        field: String,
        /// Columns that are there.
        found: Vec<String>,
    },
    /// A column that does not hold one string a row.
    #[error("{}: column `{field}` does not hold text but {found}; set `data.field` to one that holds strings", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        field: String,
        /// What it holds.
        found: String,
    },
    /// A row whose text is missing or not UTF-8.
    #[error("{}: row {row}: column `{field}` {reason}; correct the row, or set data.skip_bad_lines = true", path.display())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// From 1.
        row: u64,
        /// The column.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// Built without the feature.
    #[error("{}: this program was built without Parquet; build it with `--features parquet`", path.display())]
    WithoutParquet {
        /// The file.
        path: PathBuf,
    },
    /// No sources of crates on this machine.
    #[error(
        "{}: no sources of crates there, which data.source = \"cargo-registry\" trains on; run `cargo fetch` in any \
         Rust project with dependencies, point `data.cargo_home` or CARGO_HOME to Cargo's folder, or train on your \
         own files with `data.source = \"files\"` and `data.paths`",
        path.display()
    )]
    NoRegistry {
        /// The folder that was looked for.
        path: PathBuf,
    },
    /// Neither a home folder nor Cargo's is known.
    #[error("neither CARGO_HOME nor HOME is set; set CARGO_HOME, or `data.cargo_home`, to Cargo's folder")]
    NoHome,
    /// Too little to hold something out.
    #[error("{origin}: only {found} {unit} there, of which none can be held out; {mend}")]
    NothingToHoldOut {
        /// The data.
        origin: String,
        /// How many there are.
        found: u64,
        /// `documents` or `crates`.
        unit: &'static str,
        /// What to do.
        mend: &'static str,
    },
    /// Every held-out document repeats what is trained on.
    #[error(
        "{origin}: each of the {found} held-out documents is nearly one that is trained on, so nothing is left to \
         measure with; give `data.validation_paths`, raise `data.near_duplicate_threshold`, or set \
         data.validation_fraction = 0"
    )]
    AllNearDuplicates {
        /// The data.
        origin: String,
        /// How many were held out.
        found: usize,
    },
    /// Too little for one sequence.
    #[error(
        "{origin}: its {tokens} tokens are fewer than one sequence of {sequence_length} tokens; give more text, or \
         lower `training.sequence`"
    )]
    TooShort {
        /// The data.
        origin: String,
        /// How many there are.
        tokens: u64,
        /// How many one sequence has.
        sequence_length: usize,
    },
    /// A batch's shape cannot be.
    #[error("recipe key `{key}` {reason}")]
    Shape {
        /// The key.
        key: &'static str,
        /// What is wrong and what it may be.
        reason: String,
    },
    /// A document could not be tokenized.
    #[error("{document}: cannot be tokenized: {reason}")]
    Tokenize {
        /// Its name.
        document: String,
        /// The tokenizer's reason.
        reason: String,
    },
    /// The machine's memory does not hold it.
    #[error("{origin}: no memory for {bytes} bytes; lower `data.max_bytes`")]
    OutOfMemory {
        /// The data.
        origin: String,
        /// How many were asked for.
        bytes: u64,
    },
}

fn filter(extensions: &[String]) -> String {
    if extensions.is_empty() {
        return "that is not hidden".to_owned();
    }
    format!("has one of the extensions {} (`data.extensions`)", extensions.join(", "))
}

fn in_line(line: Option<u64>) -> String {
    line.map(|line| format!(" (line {line})")).unwrap_or_default()
}

fn there(found: &[String]) -> String {
    if found.is_empty() {
        return String::new();
    }
    format!(" (there are {})", found.join(", "))
}
