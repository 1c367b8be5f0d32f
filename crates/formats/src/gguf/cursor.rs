//! Reading a header front to back. Whatever a count announces is compared with the bytes that are left before memory is
//! asked for.

use super::Value;
use super::types::stored;
use crate::error::FormatError;
use crate::tensors::{TensorRecord, counted};
use std::path::Path;
use toprope_world::FileReader;

/// Read from the file at once.
const WINDOW_BYTES: u64 = 1 << 20;
/// The longest key, name or text: templates and merges are far shorter.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// Values of all arrays together: the largest vocabularies have a million tokens with three arrays of them.
const VALUES_MAX: u64 = 1 << 24;
const ARRAY: u32 = 9;
const TEXT: u32 = 8;

pub(super) struct Cursor<'a> {
    path: &'a Path,
    reader: &'a dyn FileReader,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
    /// Values of arrays so far.
    values: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, reader: &'a dyn FileReader) -> Cursor<'a> {
        Cursor { path, reader, position: 0, window: Vec::new(), window_start: 0, values: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn malformed(&self, place: &str, reason: String) -> FormatError {
        FormatError::Malformed { path: self.path.to_owned(), place: place.into(), reason }
    }

    fn left(&self) -> u64 {
        self.reader.len().saturating_sub(self.position)
    }

    /// The next bytes; fewer than a window or a text.
    fn take(&mut self, place: &str, count: u64) -> Result<&[u8], FormatError> {
        if count > self.left() {
            return Err(FormatError::Truncated {
                path: self.path.to_owned(),
                place: place.into(),
                needed: u128::from(self.position) + u128::from(count),
                there: self.reader.len(),
            });
        }
        let inside = self.position >= self.window_start
            && self.position + count <= self.window_start + self.window.len() as u64;
        if !inside {
            let length = count.max(WINDOW_BYTES.min(self.left()));
            self.window.resize(length as usize, 0);
            self.reader.read_at(self.position, &mut self.window)?;
            self.window_start = self.position;
        }
        let from = (self.position - self.window_start) as usize;
        self.position += count;
        Ok(&self.window[from..from + count as usize])
    }

    pub(super) fn bytes<const N: usize>(&mut self, place: &str) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(place, N as u64)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, place: &str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.bytes(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.bytes(place)?))
    }

    /// A number of things that take at least so many bytes each.
    pub(super) fn count(&mut self, place: &str, bytes_min: u64) -> Result<u64, FormatError> {
        let count = self.u64(place)?;
        let needed = u128::from(count) * u128::from(bytes_min);
        if needed > u128::from(self.left()) {
            return Err(FormatError::Truncated {
                path: self.path.to_owned(),
                place: format!("{place}, {count},"),
                needed: u128::from(self.position) + needed,
                there: self.reader.len(),
            });
        }
        Ok(count)
    }

    pub(super) fn text(&mut self, place: &str) -> Result<String, FormatError> {
        let length = self.count(place, 1)?;
        if length > TEXT_BYTES_MAX {
            let reason =
                format!("a text of {length} bytes is longer than the {TEXT_BYTES_MAX} that are taken");
            return Err(self.malformed(place, reason));
        }
        // Tokens may be cut within a character: what is no text is replaced.
        Ok(String::from_utf8_lossy(self.take(place, length)?).into_owned())
    }

    pub(super) fn value(&mut self, place: &str, kind: u32, arrays: bool) -> Result<Value, FormatError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes(place)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes(place)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes(place)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes(place)?).into()),
            4 => Value::Integer(u32::from_le_bytes(self.bytes(place)?).into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes(place)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes(place)?).into()),
            7 => Value::Bool(self.bytes::<1>(place)?[0] != 0),
            TEXT => Value::Text(self.text(place)?),
            ARRAY if arrays => {
                let kind = self.u32(place)?;
                let size = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    TEXT | 10..=12 => 8,
                    _ => return Err(self.malformed(place, format!("an array of type {kind} is not known"))),
                };
                let count = self.count(place, size)?;
                // Held they take more room than in the file.
                self.values = self.values.saturating_add(count as u64);
                if self.values > VALUES_MAX {
                    let reason =
                        format!("with {count} values these are more than the {VALUES_MAX} that are taken");
                    return Err(self.malformed(place, reason));
                }
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(self.value(place, kind, false)?);
                }
                Value::Array(values)
            }
            10 => Value::Integer(self.u64(place)?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes(place)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes(place)?)),
            _ => return Err(self.malformed(place, format!("its type {kind} is not known"))),
        })
    }

    /// Sizes, format and offset of a tensor; the offset is relative to where elements begin.
    pub(super) fn record(&mut self, place: &str, dimensions_max: u32) -> Result<TensorRecord, FormatError> {
        let dimensions = self.u32(place)?;
        if dimensions > dimensions_max {
            return Err(
                self.malformed(place, format!("{dimensions} dimensions are more than {dimensions_max}"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(place)?;
            let size = usize::try_from(size)
                .map_err(|_| self.malformed(place, format!("a size of {size} does not fit this machine")))?;
            shape.push(size);
        }
        let kind = self.u32(place)?;
        let offset = self.u64(place)?;
        let stored =
            stored(kind).ok_or_else(|| self.malformed(place, format!("its format {kind} is not known")))?;
        let (elements_block, bytes_block) = stored.block();
        let row = shape.first().copied().unwrap_or(1);
        if !row.is_multiple_of(elements_block) {
            let reason = format!(
                "its rows of {row} are no whole blocks of {elements_block}, as {} has",
                stored.name()
            );
            return Err(self.malformed(place, reason));
        }
        let sizes: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        let bytes = counted(&sizes)
            .and_then(|elements| (elements / elements_block as u64).checked_mul(bytes_block as u64));
        let bytes = bytes.ok_or_else(|| {
            self.malformed(place, format!("its shape {shape:?} has more elements than can be counted"))
        })?;
        // The fastest dimension comes first in the file.
        shape.reverse();
        Ok(TensorRecord { shape, stored, bytes, offset, file: 0 })
    }
}
