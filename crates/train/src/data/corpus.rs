//! Documents, those that are trained on and those that are held out, and their hash.

use super::compression::{CompressedBytes, compressed_bytes};
use super::{
    DataConfig, DataError, Format, Render, Source, jsonl, near_duplicate, paths, registry, split, text,
};
use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it comes from: a file, with `:line`, `:row` or `#part` after it where a file holds several; from Cargo's
    /// registry the crate, its version and the path within.
    pub name: String,
    /// What it says; never empty.
    pub text: String,
    /// The bytes of the text that are predicted, of a conversation; none for all of it.
    pub learnt: Option<Vec<Range<usize>>>,
}

impl Document {
    /// A text that is predicted as a whole.
    pub fn new(name: String, text: String) -> Document {
        Document { name, text, learnt: None }
    }

    /// Cuts the text at the last character that ends within `bytes`.
    pub(super) fn truncate(&mut self, bytes: usize) {
        let end = self.text.floor_char_boundary(bytes);
        self.text.truncate(end);
        for range in self.learnt.iter_mut().flatten() {
            *range = range.start.min(end)..range.end.min(end);
        }
    }

    /// What is predicted, in one piece.
    pub(super) fn learnt_text(&self) -> Cow<'_, str> {
        match &self.learnt {
            None => Cow::Borrowed(&self.text),
            Some(ranges) => ranges.iter().filter_map(|range| self.text.get(range.clone())).collect(),
        }
    }

    /// Bytes that are predicted.
    pub(super) fn learnt_bytes(&self) -> u64 {
        match &self.learnt {
            None => self.text.len() as u64,
            Some(ranges) => ranges.iter().map(|range| range.len() as u64).sum(),
        }
    }
}

/// What was read, and what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CorpusCounts {
    /// Files whose text was taken.
    pub files: u64,
    /// Files of the registry that are not UTF-8.
    pub files_skipped: u64,
    /// Bad lines or rows, with `skip_bad_lines`.
    pub lines_skipped: u64,
    /// Files of the registry whose very text was taken from another already.
    pub copies_dropped: u64,
    /// Held-out documents that nearly repeat one that is trained on, or another held-out one.
    pub near_duplicates_dropped: u64,
    /// Whether there is more text than `max_bytes` or `validation_max_bytes` let in.
    pub limit_reached: bool,
}

/// The documents of a run.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Trained on, in the order of their sources.
    pub training: Vec<Document>,
    /// Held out, in the order of their sources.
    pub validation: Vec<Document>,
    /// BLAKE3, in hexadecimal, over both lists in order: of each the number of documents (u64, little-endian), then
    /// of each document its length in bytes (the same) and its bytes. Names do not enter, so that data that was moved
    /// keeps its hash. What is predicted of a conversation follows its bytes: begin and end of each range (the same).
    pub hash: String,
    /// What was read, and what was left out.
    pub counts: CorpusCounts,
    /// The data in a few words, for messages.
    pub origin: String,
}

impl Corpus {
    /// Reads what the recipe names, and holds a part of it out. The same text gives the same corpus, wherever it lies
    /// and however many threads there are.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, place and mend.
    pub fn load(config: &DataConfig, threads: usize) -> Result<Self, DataError> {
        Corpus::load_with(config, threads, None)
    }

    /// As [`Corpus::load`]; `render` makes texts of conversations, where the files hold them.
    ///
    /// # Errors
    /// As [`Corpus::load`].
    pub fn load_with(
        config: &DataConfig,
        threads: usize,
        render: Option<&dyn Render>,
    ) -> Result<Self, DataError> {
        config.check()?;
        if config.chat.is_some() && render.is_none() {
            let reason =
                "needs the chat template of a published model: go on from one with --from MODEL".into();
            return Err(DataError::Config { key: "chat", reason });
        }
        let mut counts = CorpusCounts::default();
        let (mut training, mut validation, origin) = match config.source {
            Source::CargoRegistry => {
                let (training, validation) = registry::documents(config, &mut counts)?;
                (training, validation, "the sources in Cargo's registry folder".to_owned())
            }
            Source::Files => from_files(config, render, &mut counts)?,
        };
        let found = validation.len();
        let mut repeated =
            near_duplicate::find(&validation, &training, config.near_duplicate_threshold, threads)
                .into_iter();
        validation.retain(|_| repeated.next() == Some(false));
        counts.near_duplicates_dropped = (found - validation.len()) as u64;
        if found > 0 && validation.is_empty() {
            return Err(DataError::AllNearDuplicates { origin, found });
        }
        let bytes = validation.iter().map(|document| document.text.len() as u64).sum::<u64>();
        if bytes > config.validation_max_bytes {
            counts.limit_reached = true;
            validation = split::trim(validation, config.validation_max_bytes, config.seed);
        }
        training.shrink_to_fit();
        let hash = hash([&training, &validation]);
        Ok(Self { training, validation, hash, counts, origin })
    }

    /// Bytes of text that is trained on.
    pub fn training_bytes(&self) -> u64 {
        self.training.iter().map(|document| document.text.len() as u64).sum()
    }

    /// Bytes of text that is held out.
    pub fn validation_bytes(&self) -> u64 {
        self.validation.iter().map(|document| document.text.len() as u64).sum()
    }

    /// gzip and xz of the held-out documents, one after the other as one stream.
    ///
    /// # Errors
    /// Where a compressor gets no memory.
    pub fn validation_compressed(&self) -> std::io::Result<CompressedBytes> {
        compressed_bytes(self.validation.iter().map(|document| document.text.as_bytes()))
    }
}

/// Bytes of text that a configuration gives, trained on and held out, as far as sizes of files tell: at most so many, since
/// copies go and what is compressed or wrapped is another length.
///
/// # Errors
/// Files that cannot be found.
pub fn expected_bytes(config: &DataConfig) -> Result<(u64, u64), DataError> {
    let size = |entries: &[String], key| -> Result<u64, DataError> {
        let files = paths::expand(entries, &config.extensions, key)?;
        let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|found| found.len());
        Ok(sizes.fold(0, u64::saturating_add))
    };
    let (most, held_out_most) = (config.max_bytes, config.validation_max_bytes);
    if config.source == Source::CargoRegistry {
        return Ok((most, held_out_most));
    }
    let all = size(&config.paths, "paths")?;
    if !config.validation_paths.is_empty() {
        return Ok((all.min(most), size(&config.validation_paths, "validation_paths")?.min(held_out_most)));
    }
    let held_out = (all as f64 * config.held_out_fraction()) as u64;
    Ok((all.saturating_sub(held_out).min(most), held_out.min(held_out_most)))
}

fn hash(parts: [&[Document]; 2]) -> String {
    let mut hasher = blake3::Hasher::new();
    for documents in parts {
        hasher.update(&(documents.len() as u64).to_le_bytes());
        for document in documents {
            hasher.update(&(document.text.len() as u64).to_le_bytes()).update(document.text.as_bytes());
            for range in document.learnt.iter().flatten() {
                hasher.update(&(range.start as u64).to_le_bytes()).update(&(range.end as u64).to_le_bytes());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn from_files(
    config: &DataConfig,
    render: Option<&dyn Render>,
    counts: &mut CorpusCounts,
) -> Result<(Vec<Document>, Vec<Document>, String), DataError> {
    let files = paths::expand(&config.paths, &config.extensions, "paths")?;
    let origin = match files.as_slice() {
        [only] => only.display().to_string(),
        [first, others @ ..] => format!("{} and {} more files", first.display(), others.len()),
        [] => String::new(),
    };
    if !config.validation_paths.is_empty() {
        let held_out_files = paths::expand(&config.validation_paths, &config.extensions, "validation_paths")?;
        if let Some(both) = held_out_files.iter().find(|file| files.contains(file)) {
            return Err(DataError::Config {
                key: "validation_paths",
                reason: format!(
                    "names {}, which `data.paths` names too; keep it in one of them",
                    both.display()
                ),
            });
        }
        let training = read(&files, config, render, config.max_bytes, counts)?;
        let validation = read(&held_out_files, config, render, config.validation_max_bytes, counts)?;
        return Ok((training, validation, origin));
    }
    let held_out = config.validation_documents.is_some() || config.held_out_fraction() > 0.0;
    let limit = if held_out {
        config.max_bytes.saturating_add(config.validation_max_bytes)
    } else {
        config.max_bytes
    };
    let documents = read(&files, config, render, limit, counts)?;
    let count = match config.validation_documents {
        Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
        None if !held_out => 0,
        None => ((documents.len() as f64 * config.held_out_fraction()).round() as usize).max(1),
    };
    if count > 0 && documents.len() < 2 {
        return Err(DataError::NothingToHoldOut {
            origin,
            found: documents.len() as u64,
            unit: "documents",
            mend: "cut it into documents with data.document_separator, give data.validation_paths, or set \
                   data.validation_fraction = 0",
        });
    }
    if config.validation_documents.is_some() && count >= documents.len() {
        return Err(DataError::Config {
            key: "validation_documents",
            reason: format!("is {count}, and there are {} documents in all; lower it", documents.len()),
        });
    }
    let (mut training, validation) = split::hold_out(documents, count, config.seed);
    if training.is_empty() {
        return Err(DataError::AllNearDuplicates { origin, found: validation.len() });
    }
    if cut(&mut training, config.max_bytes) {
        counts.limit_reached = true;
    }
    Ok((training, validation, origin))
}

/// Documents of files in order, up to `limit_bytes` of text.
fn read(
    files: &[PathBuf],
    config: &DataConfig,
    render: Option<&dyn Render>,
    limit_bytes: u64,
    counts: &mut CorpusCounts,
) -> Result<Vec<Document>, DataError> {
    let mut documents = Vec::new();
    let mut left = limit_bytes;
    for path in files {
        if left == 0 {
            counts.limit_reached = true;
            break;
        }
        let before = documents.len();
        let (cut, skipped) = match (format_of(path, config.format), &config.chat, render) {
            (_, Some(chat), Some(render)) => {
                let line = jsonl::Line::Chat(chat, render);
                jsonl::documents(path, line, config.skip_bad_lines, left, &mut documents)?
            }
            (Format::Jsonl, ..) => {
                let line = jsonl::Line::Text(&config.field);
                jsonl::documents(path, line, config.skip_bad_lines, left, &mut documents)?
            }
            (Format::Parquet, ..) => parquet(path, config, left, &mut documents)?,
            (Format::Auto | Format::Text, ..) => {
                (text::documents(path, config.document_separator.as_deref(), left, &mut documents)?, 0)
            }
        };
        counts.files += 1;
        counts.lines_skipped += skipped;
        left -= documents[before..].iter().map(|document| document.text.len() as u64).sum::<u64>().min(left);
        if cut {
            counts.limit_reached = true;
            break;
        }
    }
    Ok(documents)
}

fn format_of(path: &Path, format: Format) -> Format {
    if format != Format::Auto {
        return format;
    }
    match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("jsonl" | "ndjson") => Format::Jsonl,
        Some("parquet") => Format::Parquet,
        _ => Format::Text,
    }
}

#[cfg(feature = "parquet")]
fn parquet(
    path: &Path,
    config: &DataConfig,
    limit_bytes: u64,
    documents: &mut Vec<Document>,
) -> Result<(bool, u64), DataError> {
    super::parquet::documents(path, &config.field, config.skip_bad_lines, limit_bytes, documents)
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: &DataConfig, _: u64, _: &mut Vec<Document>) -> Result<(bool, u64), DataError> {
    Err(DataError::WithoutParquet { path: path.to_owned() })
}

/// Keeps the first `limit_bytes` of text; the last document is cut at a character.
fn cut(documents: &mut Vec<Document>, limit_bytes: u64) -> bool {
    let mut left = limit_bytes;
    for index in 0..documents.len() {
        let document = &mut documents[index];
        if document.text.len() as u64 > left {
            document.truncate(left as usize);
            let keep = if document.text.is_empty() { index } else { index + 1 };
            documents.truncate(keep);
            return true;
        }
        left -= document.text.len() as u64;
    }
    false
}
