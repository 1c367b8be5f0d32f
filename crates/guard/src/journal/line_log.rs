//! Append-only files of JSON objects, one a line, that outlive torn writes.
//!
//! A line is written at once and ends in a line feed. A process that dies, or a disk that is full, may leave the last
//! one torn; whoever opens the file to append ends such a line first, so that it stays one bad line among good ones.

use serde_json::{Map, Value};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use toprope_world::{FileError, FileOperation, FileWriter, Files};

/// The longest line that is read; what is longer was not written here.
const LINE_LIMIT_BYTES: usize = 1 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// An open log.
pub struct LineLog {
    file: Box<dyn FileWriter>,
    path: PathBuf,
    torn: bool,
}

impl LineLog {
    /// Opens a log to append to it, making it where it is missing.
    ///
    /// # Errors
    /// It cannot be opened, or its last byte not be read.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Self, FileError> {
        let file = files.append(path)?;
        let there = files.open(path)?;
        let mut last = [b'\n'];
        if let Some(offset) = there.len().checked_sub(1) {
            there.read_at(offset, &mut last)?;
        }
        Ok(Self { file, path: path.to_owned(), torn: last != *b"\n" })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// It could not be written whole, or is longer than a line that is read again.
    pub fn append(&mut self, line: &Map<String, Value>) -> Result<(), FileError> {
        let fail = |error: io::Error| FileError::new(FileOperation::Write, &self.path, error);
        let mut bytes = if self.torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut bytes, line).map_err(|error| fail(error.into()))?;
        if bytes.len() > LINE_LIMIT_BYTES {
            let text = format!("a line of {} bytes; lines have at most {LINE_LIMIT_BYTES}", bytes.len());
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        bytes.push(b'\n');
        self.torn = true;
        self.file.write(&bytes)?;
        self.torn = false;
        Ok(())
    }

    /// Makes all lines durable.
    ///
    /// # Errors
    /// The system could not.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync()
    }
}

/// A good line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// Its number in the file, from 1.
    pub number: u64,
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// What it says.
    pub value: Map<String, Value>,
}

impl LogLine {
    /// The attempt that wrote it; 0 where it does not say.
    pub fn attempt(&self) -> u64 {
        self.value.get("attempt").and_then(Value::as_u64).unwrap_or(0)
    }
}

/// A line that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// The log.
    pub path: PathBuf,
    /// The line's number, from 1.
    pub number: u64,
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, number, offset, reason } = self;
        write!(formatter, "skipped line {number} of {} (at byte {offset}): {reason}", path.display())
    }
}

/// Gives every good line of a log to `take`, in order, and returns those that are none: torn by a crash, damaged, or
/// not a JSON object. A log that is missing has no lines. Memory is bounded by the longest line that is allowed.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines(
    files: &dyn Files,
    path: &Path,
    mut take: impl FnMut(&LogLine),
) -> Result<Vec<BadLine>, FileError> {
    let file = match files.open(path) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut bad = Vec::new();
    let mut line = Vec::new();
    let (mut number, mut line_start, mut line_bytes) = (1, 0, 0_u64);
    let mut finish = |line: &mut Vec<u8>, number, offset, bytes: u64, torn: bool| {
        let parsed = if bytes > LINE_LIMIT_BYTES as u64 {
            Err(format!("{bytes} bytes are longer than a line may be ({LINE_LIMIT_BYTES})"))
        } else if torn {
            // Also where it happens to be whole: nobody was told that it was written.
            Err("torn: the process or the machine stopped while it was written".to_owned())
        } else {
            serde_json::from_slice(line).map_err(|error| format!("not a JSON object: {error}"))
        };
        match parsed {
            Ok(value) => take(&LogLine { number, offset, value }),
            Err(reason) => bad.push(BadLine { path: path.to_owned(), number, offset, reason }),
        }
        line.clear();
    };
    let mut offset = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while offset < file.len() {
        let count = usize::try_from(file.len() - offset).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let chunk = &mut chunk[..count];
        file.read_at(offset, chunk)?;
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            line_bytes += text.len() as u64;
            if line_bytes <= LINE_LIMIT_BYTES as u64 {
                line.extend_from_slice(text);
            }
            if ends {
                finish(&mut line, number, line_start, line_bytes, false);
                number += 1;
                line_start += line_bytes + 1;
                line_bytes = 0;
            }
        }
        offset += count as u64;
    }
    if line_bytes > 0 {
        finish(&mut line, number, line_start, line_bytes, true);
    }
    Ok(bad)
}
