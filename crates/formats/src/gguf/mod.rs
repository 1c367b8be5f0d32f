//! GGUF: metadata, records of tensors, elements in ggml's formats.

mod cursor; // reading a header front to back
mod types; // ggml's numbers for formats

use crate::error::FormatError;
use crate::tensors::{TensorRecord, Tensors, check_places};
use cursor::Cursor;
use std::collections::BTreeMap;
use std::path::Path;
use toprope_world::Files;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any of the integers.
    Integer(i128),
    /// Either of the floats.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

impl Value {
    /// As a size.
    pub fn as_usize(&self) -> Option<usize> {
        match self {
            Value::Integer(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// As a float; integers are floats too.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            Value::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// As a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// As a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }

    /// As an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// One file: its metadata and its tensors. Shapes are outermost first, as everywhere here.
#[derive(Debug)]
pub struct Gguf {
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// Its tensors.
    pub tensors: Tensors,
}

/// The most dimensions that a tensor has.
const DIMENSIONS_MAX: u32 = 4;
/// Where elements begin if the file says nothing else.
const ALIGNMENT: u64 = 32;
/// The fewest bytes of a key with its value, and of a tensor's record.
const ENTRY_BYTES_MIN: u64 = 13;
const RECORD_BYTES_MIN: u64 = 24;

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// It cannot be read, or its header does not hold.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Gguf, FormatError> {
        let reader = files.open(path)?;
        let mut cursor = Cursor::new(path, reader.as_ref());
        let magic = cursor.bytes::<4>("the magic number")?;
        if magic != *b"GGUF" {
            return Err(cursor.malformed("the magic number", "is not GGUF's".into()));
        }
        let version = cursor.u32("the version")?;
        if version.swap_bytes() == 3 || version.swap_bytes() == 2 {
            return Err(
                cursor.malformed("the version", "the file is big-endian, which is not supported".into())
            );
        }
        if !(2..=3).contains(&version) {
            return Err(cursor.malformed("the version", format!("is {version}; 2 and 3 are supported")));
        }
        let tensor_count = cursor.count("the number of tensors", RECORD_BYTES_MIN)?;
        let entry_count = cursor.count("the number of keys", ENTRY_BYTES_MIN)?;
        let mut metadata = BTreeMap::new();
        for index in 0..entry_count {
            let key = cursor.text(&format!("key {index}"))?;
            let place = format!("key `{key}`");
            let kind = cursor.u32(&place)?;
            let value = cursor.value(&place, kind, true)?;
            if metadata.insert(key, value).is_some() {
                return Err(cursor.malformed(&place, "stands there twice".into()));
            }
        }
        let alignment = match metadata.get("general.alignment").map(Value::as_usize) {
            None => ALIGNMENT,
            Some(Some(value)) if value.is_power_of_two() && value <= 1 << 20 => value as u64,
            Some(_) => {
                let reason = "must be a power of two of at most a MiB".into();
                return Err(cursor.malformed("key `general.alignment`", reason));
            }
        };
        let mut records: BTreeMap<String, TensorRecord> = BTreeMap::new();
        for index in 0..tensor_count {
            let name = cursor.text(&format!("tensor {index}"))?;
            let place = format!("tensor `{name}`");
            let record = cursor.record(&place, DIMENSIONS_MAX)?;
            if records.insert(name, record).is_some() {
                return Err(cursor.malformed(&place, "stands there twice".into()));
            }
        }
        let start = cursor.position().next_multiple_of(alignment);
        let length = reader.len();
        for (name, record) in &mut records {
            let place = format!("tensor `{name}`");
            if !record.offset.is_multiple_of(alignment) {
                let reason = format!("its offset {} is no multiple of {alignment}", record.offset);
                return Err(cursor.malformed(&place, reason));
            }
            let end = u128::from(start) + u128::from(record.offset) + u128::from(record.bytes);
            if end > u128::from(length) {
                let there = length;
                return Err(FormatError::Truncated { path: path.to_owned(), place, needed: end, there });
            }
            record.offset += start;
        }
        check_places(path, &records, None)?;
        let mut tensors = Tensors::new(path);
        tensors.add(path, reader, records)?;
        Ok(Gguf { metadata, tensors })
    }
}
