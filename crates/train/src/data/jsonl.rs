//! JSONL: one JSON object a line, one document each.

use super::{ChatConfig, DataError, Document, Render, chat, text};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A longer line is taken for a file that is not JSONL, before memory is asked for.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// What a line is.
#[derive(Clone, Copy)]
pub(super) enum Line<'a> {
    /// A text in a field.
    Text(&'a str),
    /// A conversation.
    Chat(&'a ChatConfig, &'a dyn Render),
}

/// Where a document is.
pub(super) struct Place<'a> {
    /// The file.
    pub(super) path: &'a Path,
    /// From 1.
    pub(super) line: u64,
}

impl Place<'_> {
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.path.display(), self.line)
    }
}

/// Appends the documents of a JSONL file until they hold `limit_bytes` of text; the last is cut at a character. Gives
/// whether the limit cut something off, and the bad lines that were skipped.
pub(super) fn documents(
    path: &Path,
    what: Line<'_>,
    skip_bad_lines: bool,
    limit_bytes: u64,
    documents: &mut Vec<Document>,
) -> Result<(bool, u64), DataError> {
    let unreadable = |source| DataError::Unreadable { path: path.to_owned(), source };
    let mut reader = BufReader::with_capacity(1 << 18, text::open(path)?);
    let mut line_bytes = Vec::new();
    let (mut line, mut offset, mut taken, mut skipped) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut first_defect = None;
    let before = documents.len();
    loop {
        line_bytes.clear();
        let length = reader
            .by_ref()
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut line_bytes)
            .map_err(unreadable)?;
        if length == 0 {
            break;
        }
        line += 1;
        if length as u64 > LINE_BYTES_MAX {
            // Not skipped either: the reader stands within the line.
            return Err(DataError::BadLine {
                path: path.to_owned(),
                line,
                column: 1,
                reason: format!("the line is longer than {} MiB, so this is not JSONL", LINE_BYTES_MAX >> 20),
            });
        }
        let start = offset;
        offset += length as u64;
        match document(&Place { path, line }, what, start, &line_bytes) {
            Ok(None) => {}
            Ok(Some(mut document)) => {
                let left = limit_bytes - taken;
                if document.text.len() as u64 > left {
                    document.truncate(left as usize);
                    if !document.text.is_empty() {
                        documents.push(document);
                    }
                    return Ok((true, skipped));
                }
                taken += document.text.len() as u64;
                documents.push(document);
            }
            Err(error) if skip_bad_lines => {
                skipped += 1;
                first_defect.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if documents.len() == before {
        return Err(match first_defect {
            Some(first) => DataError::AllBad { path: path.to_owned(), skipped, first: first.to_string() },
            None => DataError::Empty { path: path.to_owned() },
        });
    }
    Ok((false, skipped))
}

/// The document of one line; `None` for a blank line and for empty text.
fn document(
    place: &Place<'_>,
    what: Line<'_>,
    start: u64,
    bytes: &[u8],
) -> Result<Option<Document>, DataError> {
    let Place { path, line } = *place;
    let text = std::str::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
        path: path.to_owned(),
        offset: start + error.valid_up_to() as u64,
        line: Some(line),
    })?;
    let mark = if line == 1 && text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let text = &text[mark..];
    let field = match what {
        Line::Text(field) => field,
        Line::Chat(config, render) => {
            return chat::document(config, render, place, text).map_err(|(column, reason)| {
                DataError::BadLine { path: path.to_owned(), line, column: (column + mark) as u64, reason }
            });
        }
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let mut found = Vec::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Object { field, found: &mut found }
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value));
    match value {
        Ok(Some(text)) if text.is_empty() => Ok(None),
        Ok(Some(text)) => Ok(Some(Document::new(place.name(), text))),
        Ok(None) => {
            Err(DataError::MissingField { path: path.to_owned(), line, field: field.to_owned(), found })
        }
        Err(error) => {
            let (column, reason) = column_and_reason(&error);
            Err(DataError::BadLine { path: path.to_owned(), line, column: (column + mark) as u64, reason })
        }
    }
}

/// Where a line's JSON is wrong, from 1, and why, without the place.
pub(super) fn column_and_reason(error: &serde_json::Error) -> (usize, String) {
    let full = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    (error.column().max(1), full.strip_suffix(&place).unwrap_or(&full).to_owned())
}

/// Takes one field of an object and passes over the others without keeping them.
struct Object<'a> {
    field: &'a str,
    found: &'a mut Vec<String>,
}

/// As many names of other fields are kept for the message that the field is missing.
const NAMES_MAX: usize = 12;

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Option<String>;
    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a JSON object with the field `{}`", self.field)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(Name(name)) = map.next_key()? {
            if name == self.field {
                text = Some(map.next_value_seed(Text(self.field))?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if self.found.len() < NAMES_MAX {
                    self.found.push(name.into_owned());
                }
            }
        }
        Ok(text)
    }
}

#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A string; its message names the field.
struct Text<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_string(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = String;
    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a string in the field `{}`", self.0)
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}
