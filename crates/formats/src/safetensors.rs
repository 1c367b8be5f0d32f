//! One safetensors file: eight bytes with the length of the header, the header in JSON, the elements.

use crate::error::FormatError;
use crate::stored::Stored;
use crate::tensors::{TensorRecord, Tensors, check_places, counted};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use toprope_world::{FileReader, FileWriter, Files};

/// The longest header that the format's own library takes.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;
/// Where elements begin in files that are written here is a multiple of this.
const ALIGNMENT: usize = 64;

/// Opens one file.
///
/// # Errors
/// It cannot be read, or its header does not hold.
pub fn read_file(files: &dyn Files, path: &Path) -> Result<Tensors, FormatError> {
    let reader = files.open(path)?;
    let records = header(path, reader.as_ref())?;
    let mut tensors = Tensors::new(path);
    tensors.add(path, reader, records)?;
    Ok(tensors)
}

/// The checked records of one file.
pub(crate) fn header(
    path: &Path,
    reader: &dyn FileReader,
) -> Result<BTreeMap<String, TensorRecord>, FormatError> {
    let length = reader.len();
    let truncated = |place: &str, needed: u128| FormatError::Truncated {
        path: path.to_owned(),
        place: place.into(),
        needed,
        there: length,
    };
    let malformed = |place: &str, reason: String| FormatError::Malformed {
        path: path.to_owned(),
        place: place.into(),
        reason,
    };
    if length < LENGTH_BYTES {
        return Err(truncated("the header's length", u128::from(LENGTH_BYTES)));
    }
    let mut bytes = [0; LENGTH_BYTES as usize];
    reader.read_at(0, &mut bytes)?;
    let header_bytes = u64::from_le_bytes(bytes);
    if header_bytes > HEADER_BYTES_MAX {
        let reason = format!("{header_bytes} bytes are more than the {HEADER_BYTES_MAX} that a header has");
        return Err(malformed("the header's length", reason));
    }
    let start = LENGTH_BYTES + header_bytes;
    if start > length {
        return Err(truncated("the header", u128::from(start)));
    }
    let mut bytes = vec![0; header_bytes as usize];
    reader.read_at(LENGTH_BYTES, &mut bytes)?;
    let entries: Entries =
        serde_json::from_slice(&bytes).map_err(|error| malformed("the header", error.to_string()))?;
    let mut records = BTreeMap::new();
    for (name, value) in entries.0 {
        if name == "__metadata__" {
            continue;
        }
        let place = format!("tensor `{name}`");
        let entry: Entry =
            serde_json::from_value(value).map_err(|error| malformed(&place, error.to_string()))?;
        let record = record(&entry, start).map_err(|reason| malformed(&place, reason))?;
        let end = u128::from(start) + u128::from(entry.data_offsets.1);
        if end > u128::from(length) {
            return Err(truncated(&place, end));
        }
        records.insert(name, record);
    }
    check_places(path, &records, Some((start, length)))?;
    Ok(records)
}

/// The header's entries in order; a name that comes twice is refused.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from names to tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let (mut entries, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{name}` stands there twice")));
                    }
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn record(entry: &Entry, start: u64) -> Result<TensorRecord, String> {
    let stored = stored(&entry.dtype).ok_or_else(|| format!("its dtype `{}` is not known", entry.dtype))?;
    let (from, to) = entry.data_offsets;
    let taken = to.checked_sub(from).ok_or_else(|| format!("it ends at {to}, before its begin {from}"))?;
    let needed = counted(&entry.shape).and_then(|elements| elements.checked_mul(stored.block().1 as u64));
    match needed {
        Some(needed) if needed == taken => {}
        Some(needed) => {
            return Err(format!(
                "its shape {:?} in {} takes {needed} bytes, and the header gives it {taken}",
                entry.shape, entry.dtype
            ));
        }
        None => return Err(format!("its shape {:?} has more elements than can be counted", entry.shape)),
    }
    let shape = entry.shape.iter().map(|size| usize::try_from(*size)).collect::<Result<_, _>>();
    let offset = start.checked_add(from).ok_or("its offset is beyond any file")?;
    offset.checked_add(taken).ok_or("its end is beyond any file")?;
    Ok(TensorRecord {
        shape: shape.map_err(|_| "a size does not fit this machine".to_string())?,
        stored,
        bytes: taken,
        offset,
        file: 0,
    })
}

fn stored(dtype: &str) -> Option<Stored> {
    let bytes = match dtype {
        "F64" => return Some(Stored::F64),
        "F32" => return Some(Stored::F32),
        "F16" => return Some(Stored::F16),
        "BF16" => return Some(Stored::Bf16),
        "F8_E4M3" => return Some(Stored::F8E4m3),
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E8M0" => 1,
        "I16" | "U16" => 2,
        "I32" | "U32" => 4,
        "I64" | "U64" | "C64" => 8,
        _ => return None,
    };
    Some(Stored::Other(dtype.into(), 1, bytes))
}

/// Writes one file, tensor by tensor, so that no more than one is in memory.
pub struct SafetensorsWriter {
    file: Box<dyn FileWriter>,
    left: std::collections::VecDeque<(String, usize)>,
}

impl SafetensorsWriter {
    /// Begins a file of F32 tensors with these names and shapes; they must then come in this order.
    ///
    /// # Errors
    /// The file is there already or cannot be written.
    pub fn create(
        files: &dyn Files,
        path: &Path,
        tensors: &[(String, Vec<usize>)],
    ) -> Result<SafetensorsWriter, FormatError> {
        let mut header = serde_json::Map::new();
        // transformers opens files only where it is told that they are PyTorch's.
        header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
        let (mut offset, mut left) = (0usize, std::collections::VecDeque::new());
        for (name, shape) in tensors {
            let bytes = shape.iter().fold(4usize, |product, size| product.saturating_mul(*size));
            let end = offset.saturating_add(bytes);
            let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
            header.insert(name.clone(), entry);
            left.push_back((name.clone(), bytes));
            offset = end;
        }
        let mut text = Value::Object(header).to_string();
        let behind = (LENGTH_BYTES as usize + text.len()).next_multiple_of(ALIGNMENT);
        text.extend(std::iter::repeat_n(' ', behind - LENGTH_BYTES as usize - text.len()));
        let mut file = files.create(path)?;
        file.write(&(text.len() as u64).to_le_bytes())?;
        file.write(text.as_bytes())?;
        Ok(SafetensorsWriter { file, left })
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// It is not the one that was announced next, or the file cannot be written.
    pub fn write(&mut self, path: &Path, name: &str, numbers: &[f32]) -> Result<(), FormatError> {
        let expected = self.left.pop_front();
        if expected != Some((name.to_string(), numbers.len() * 4)) {
            return Err(FormatError::Malformed {
                path: path.to_owned(),
                place: format!("tensor `{name}`"),
                reason: format!("with {} elements is not what was announced: {expected:?}", numbers.len()),
            });
        }
        for part in numbers.chunks(1 << 18) {
            let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.file.write(&bytes)?;
        }
        Ok(())
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// Tensors are missing, or the system refuses.
    pub fn finish(mut self, path: &Path) -> Result<(), FormatError> {
        if let Some((name, _)) = self.left.front() {
            return Err(FormatError::MissingTensor { path: path.to_owned(), name: name.clone() });
        }
        Ok(self.file.sync()?)
    }
}
