//! Records of tensors, and reading their elements.

use crate::error::FormatError;
use crate::stored::Stored;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toprope_world::FileReader;

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRecord {
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub stored: Stored,
    /// Bytes that it takes.
    pub bytes: u64,
    /// The first byte in its file.
    pub(crate) offset: u64,
    /// Which file.
    pub(crate) file: usize,
}

impl TensorRecord {
    /// The number of elements; headers are refused where it does not fit.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How many elements a shape has; none where they cannot be counted, be it for the zeros among its sizes alone: the product may
/// then be taken in any order.
pub(crate) fn counted(shape: &[u64]) -> Option<u64> {
    let most = shape.iter().try_fold(1u64, |product, size| product.checked_mul((*size).max(1)))?;
    usize::try_from(most).ok()?;
    Some(if shape.contains(&0) { 0 } else { most })
}

/// The tensors of one model's files, by name.
#[derive(Debug)]
pub struct Tensors {
    root: PathBuf,
    files: Vec<(PathBuf, Box<dyn FileReader>)>,
    records: BTreeMap<String, TensorRecord>,
}

impl Tensors {
    pub(crate) fn new(root: &Path) -> Tensors {
        Tensors { root: root.to_owned(), files: Vec::new(), records: BTreeMap::new() }
    }

    /// Adds a file with its checked records.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        reader: Box<dyn FileReader>,
        records: impl IntoIterator<Item = (String, TensorRecord)>,
    ) -> Result<(), FormatError> {
        let file = self.files.len();
        self.files.push((path.to_owned(), reader));
        for (name, record) in records {
            if let Some(other) = self.records.get(&name) {
                let other = self.files.get(other.file).map_or_else(PathBuf::new, |(path, _)| path.clone());
                return Err(FormatError::Twice { path: path.to_owned(), name, other });
            }
            self.records.insert(name, TensorRecord { file, ..record });
        }
        Ok(())
    }

    /// The file or folder that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All records by name.
    pub fn records(&self) -> &BTreeMap<String, TensorRecord> {
        &self.records
    }

    /// The record of a tensor.
    pub fn get(&self, name: &str) -> Option<&TensorRecord> {
        self.records.get(name)
    }

    /// The file that a tensor lies in; the root where there is no such tensor.
    pub fn file(&self, name: &str) -> &Path {
        let file = self.records.get(name).and_then(|record| self.files.get(record.file));
        file.map_or(&self.root, |(path, _)| path)
    }

    /// A tensor's record, and the file that it lies in.
    pub(crate) fn place(&self, name: &str) -> Result<(&TensorRecord, &dyn FileReader), FormatError> {
        let missing = || FormatError::MissingTensor { path: self.root.clone(), name: name.into() };
        let record = self.records.get(name).ok_or_else(missing)?;
        let (_, reader) = self.files.get(record.file).ok_or_else(missing)?;
        Ok((record, reader.as_ref()))
    }

    /// Elements `first..first + count` of a tensor in f32. Of formats with blocks the whole blocks around them are read.
    ///
    /// # Errors
    /// There is no such tensor or range, its format cannot be read, or the file cannot.
    pub fn read_f32(&self, name: &str, first: usize, count: usize) -> Result<Vec<f32>, FormatError> {
        let (record, reader) = self.place(name)?;
        let path = self.file(name);
        if !record.stored.is_readable() {
            return Err(FormatError::Unsupported {
                path: path.to_owned(),
                name: name.into(),
                stored: record.stored.name().into(),
                supported: Stored::readable(),
            });
        }
        let end = first.checked_add(count).filter(|end| *end <= record.elements());
        let end = end.ok_or_else(|| FormatError::Malformed {
            path: path.to_owned(),
            place: format!("tensor `{name}`"),
            reason: format!("has {} elements, not {first} + {count}", record.elements()),
        })?;
        let (elements, size) = record.stored.block();
        let (from, to) = (first / elements, end.div_ceil(elements));
        let mut numbers: Vec<f32> = Vec::new();
        let memory = |_| FormatError::Memory { path: path.to_owned(), name: name.into(), elements: count };
        numbers.try_reserve_exact((to - from) * elements).map_err(memory)?;
        // Bytes are read in chunks, so that beside the numbers there is no second copy of a large tensor.
        let mut bytes = vec![0; size * CHUNK_BLOCKS.min(to - from)];
        let mut block = from;
        while block < to {
            let blocks = CHUNK_BLOCKS.min(to - block);
            let bytes = &mut bytes[..size * blocks];
            reader.read_at(record.offset + (block * size) as u64, bytes)?;
            record.stored.decode(bytes, &mut numbers);
            block += blocks;
        }
        numbers.truncate(end - from * elements);
        numbers.drain(..first - from * elements);
        Ok(numbers)
    }
}

/// Blocks that are read at once.
const CHUNK_BLOCKS: usize = 1 << 16;

/// Refuses tensors of one file that overlap; with `dense`, also bytes between them that are no tensor's.
pub(crate) fn check_places(
    path: &Path,
    records: &BTreeMap<String, TensorRecord>,
    dense: Option<(u64, u64)>,
) -> Result<(), FormatError> {
    let mut places: Vec<(u64, u64, &str)> =
        records.iter().map(|(name, record)| (record.offset, record.bytes, name.as_str())).collect();
    places.sort_unstable();
    for pair in places.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.0 + first.1 > second.0 {
            let (first, second) = (first.2.to_string(), second.2.to_string());
            return Err(FormatError::Overlap { path: path.to_owned(), first, second });
        }
    }
    let Some((start, end)) = dense else { return Ok(()) };
    let mut at = start;
    for (offset, bytes, name) in places {
        if offset != at {
            return Err(FormatError::Malformed {
                path: path.to_owned(),
                place: format!("tensor `{name}`"),
                reason: format!("begins {} bytes behind the tensor before it", offset - at),
            });
        }
        at += bytes;
    }
    if at != end {
        return Err(FormatError::Malformed {
            path: path.to_owned(),
            place: "the end".into(),
            reason: format!("{} bytes belong to no tensor", end - at),
        });
    }
    Ok(())
}
