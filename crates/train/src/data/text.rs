//! Text files: one document each, or several with a separator.

use super::{DataError, Document};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The byte order mark that some editors put before UTF-8 text; it is no part of it.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Opens a regular file.
pub(super) fn open(path: &Path) -> Result<File, DataError> {
    let unreadable = |source| DataError::Unreadable { path: path.to_owned(), source };
    // Asked before opening: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(DataError::NotRegular { path: path.to_owned() });
    }
    File::open(path).map_err(unreadable)
}

/// The text of a file without byte order mark, cut at a character where it is longer than `limit_bytes`; whether it
/// was cut comes with it.
pub(super) fn read(path: &Path, limit_bytes: u64) -> Result<(String, bool), DataError> {
    let unreadable = |source| DataError::Unreadable { path: path.to_owned(), source };
    let mut file = open(path)?;
    let length = file.metadata().map_err(unreadable)?.len();
    // One byte more tells whether there is more; a cut character is at most three bytes too long.
    let wanted = length.min(limit_bytes.saturating_add(1));
    let mut bytes = Vec::new();
    let no_memory = || DataError::OutOfMemory { origin: path.display().to_string(), bytes: wanted };
    bytes.try_reserve_exact(usize::try_from(wanted).map_err(|_| no_memory())?).map_err(|_| no_memory())?;
    match file.by_ref().take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::OutOfMemory => return Err(no_memory()),
        Err(source) => return Err(unreadable(source)),
    }
    let cut = bytes.len() as u64 > limit_bytes;
    if cut {
        bytes.pop();
    }
    let mut text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            if !(cut && error.utf8_error().error_len().is_none()) {
                return Err(DataError::NotUtf8 { path: path.to_owned(), offset: valid as u64, line: None });
            }
            let mut bytes = error.into_bytes();
            bytes.truncate(valid);
            String::from_utf8(bytes).map_err(|_| DataError::NotUtf8 {
                path: path.to_owned(),
                offset: valid as u64,
                line: None,
            })?
        }
    };
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((text, cut))
}

/// Appends the documents of a text file, at most `limit_bytes` of text; whether the limit cut something off comes back.
pub(super) fn documents(
    path: &Path,
    separator: Option<&str>,
    limit_bytes: u64,
    documents: &mut Vec<Document>,
) -> Result<bool, DataError> {
    let (text, cut) = read(path, limit_bytes)?;
    let before = documents.len();
    let name = path.display().to_string();
    match separator {
        None if text.is_empty() => {}
        None => documents.push(Document::new(name, text)),
        Some(separator) => {
            for (index, part) in text.split(separator).enumerate() {
                if !part.is_empty() {
                    documents.push(Document::new(format!("{name}#{}", index + 1), part.to_owned()));
                }
            }
        }
    }
    // A limit of few bytes may hold no whole character.
    if documents.len() == before && !cut {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    Ok(cut)
}
