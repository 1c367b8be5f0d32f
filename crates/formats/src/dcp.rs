//! Checkpoints of `torch.distributed.checkpoint`: `.metadata`, a pickle that is written last, and `*.distcp` files, in which each
//! item is what `torch.save` writes.

use crate::error::FormatError;
use crate::pickle::{Id, Node, Pickle};
use crate::tensors::{TensorRecord, counted};
use crate::torch_file::{self, PICKLE_BYTES_MAX, TorchFile};
use crate::zip::{Archive, Part};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use toprope_world::Files;

/// The file that says what there is.
pub(crate) const METADATA_FILE: &str = ".metadata";
/// How the names of files with items end.
pub(crate) const ITEMS_SUFFIX: &str = ".distcp";

/// A part of a tensor, or bytes, as the metadata has it.
struct Item<'a> {
    tensor: &'a str,
    part: Option<Chunk<'a>>,
    offset: u64,
    length: u64,
}

/// Where a part of a tensor begins, and its sizes.
struct Chunk<'a> {
    dtype: &'a str,
    offsets: Vec<u64>,
    sizes: Vec<u64>,
}

/// Reads the metadata, and checks that every item is there, whole and what the metadata says. With this every byte of the files
/// is read once. Each part of a tensor is handed on right behind its check, with the tensor's name; one file is open at a time,
/// since there is one for each of thousands of ranks. Gives the number of files.
///
/// # Errors
/// Something is missing, damaged, or contradicts the metadata.
pub(crate) fn read(
    files: &dyn Files,
    folder: &Path,
    mut each: impl FnMut(Part<'_>, &str, &TensorRecord) -> Result<(), FormatError>,
) -> Result<usize, FormatError> {
    let path = folder.join(METADATA_FILE);
    if !files.is_file(&path)? {
        return Err(FormatError::Missing {
            path: folder.to_owned(),
            what: METADATA_FILE.into(),
            hint: "it is written last, so the save did not end; take an older checkpoint".into(),
        });
    }
    let pickle = Pickle::read(&path, "the metadata", &files.read(&path, PICKLE_BYTES_MAX)?)?;
    let metadata = Metadata { path: &path, pickle: &pickle };
    let by_file = metadata.items()?;
    for (name, items) in &by_file {
        let file = folder.join(name);
        if !files.is_file(&file)? {
            return Err(FormatError::MissingShard { index: path.clone(), shard: (*name).into() });
        }
        let reader = files.open(&file)?;
        let mut end = 0;
        for item in items {
            let needed = u128::from(item.offset) + u128::from(item.length);
            if needed > u128::from(reader.len()) {
                return Err(FormatError::Truncated {
                    path: file,
                    place: format!("`{}`", item.tensor),
                    needed,
                    there: reader.len(),
                });
            }
            if item.offset < end {
                let reason = format!("begins at byte {}, within what lies before it in {name}", item.offset);
                return Err(metadata.malformed(item.tensor, reason));
            }
            end = item.offset + item.length;
            let part = Part { path: &file, reader: reader.as_ref(), start: item.offset, length: item.length };
            if let Some(record) = read_item(part, item)? {
                each(part, item.tensor, &record)?;
            }
        }
    }
    Ok(by_file.len())
}

/// Compares an item with what the metadata says of it; gives the tensor's record in its file, where it is one.
fn read_item(part: Part<'_>, item: &Item<'_>) -> Result<Option<TensorRecord>, FormatError> {
    let Some(chunk) = &item.part else {
        // Any object may be stored as bytes; it is not looked at, but for its sums where it is an archive.
        let mut first = [0; 4];
        if part.length >= 4 {
            part.reader.read_at(part.start, &mut first)?;
        }
        if first == *b"PK\x03\x04" {
            Archive::read(part)?.check(part)?;
        }
        return Ok(None);
    };
    let malformed = |reason: String| FormatError::Malformed {
        path: part.path.to_owned(),
        place: match chunk.offsets.iter().any(|offset| *offset > 0) {
            true => format!("tensor `{}` at {:?}", item.tensor, chunk.offsets),
            false => format!("tensor `{}`", item.tensor),
        },
        reason,
    };
    let mut file = TorchFile::read(part)?;
    file.archive.check(part)?;
    let record = file.tensors.remove("").ok_or_else(|| malformed("is no tensor in its file".into()))?;
    let want = torch_file::stored(chunk.dtype);
    let shape: Vec<u64> = record.shape.iter().map(|size| *size as u64).collect();
    if shape != chunk.sizes || Some(&record.stored) != want.as_ref() {
        return Err(malformed(format!(
            "has shape {shape:?} in {}, and {METADATA_FILE} says {:?} in {}",
            record.stored.name(),
            chunk.sizes,
            chunk.dtype
        )));
    }
    Ok(Some(record))
}

struct Metadata<'a> {
    path: &'a Path,
    pickle: &'a Pickle,
}

impl<'a> Metadata<'a> {
    fn malformed(&self, tensor: &str, reason: String) -> FormatError {
        FormatError::Malformed { path: self.path.to_owned(), place: format!("`{tensor}`"), reason }
    }

    fn unsupported(&self, tensor: &str, reason: String) -> FormatError {
        FormatError::UnsupportedForm { path: self.path.to_owned(), place: format!("`{tensor}`"), reason }
    }

    /// What is stored, by file, each file's items in order. Every part of every tensor is among them once.
    fn items(&self) -> Result<BTreeMap<&'a str, Vec<Item<'a>>>, FormatError> {
        let pickle = self.pickle;
        let wrong = |reason: &str| FormatError::Malformed {
            path: self.path.to_owned(),
            place: "the metadata".into(),
            reason: reason.into(),
        };
        let table = |name: &str| {
            let table = pickle.field(pickle.root(), "Metadata", name).and_then(|id| pickle.pairs(id));
            table.ok_or_else(|| wrong(&format!("has no `{name}`")))
        };
        let storage = table("storage_data")?;
        // What is expected: names with the parts of each. A pickle may hold one list of parts a thousand times, so that there may
        // be no more of them than are stored before memory is asked for.
        let mut parts: BTreeMap<(&str, Vec<u64>), Option<Chunk<'a>>> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for (name, value) in table("state_dict_metadata")? {
            let name = pickle.text(*name).ok_or_else(|| wrong("has a name that is no text"))?;
            if !names.insert(name) {
                return Err(self.malformed(name, "stands there twice".into()));
            }
            let left = storage.len().saturating_sub(parts.len());
            match pickle.made(*value).map(|(class, _)| class) {
                Some("BytesStorageMetadata") if left == 0 => return Err(self.unstored(name)),
                Some("BytesStorageMetadata") => drop(parts.insert((name, Vec::new()), None)),
                Some("TensorStorageMetadata") => {
                    for chunk in self.chunks(name, *value, left)? {
                        if parts.insert((name, chunk.offsets.clone()), Some(chunk)).is_some() {
                            return Err(self.malformed(name, "has a part twice".into()));
                        }
                    }
                }
                _ => return Err(self.malformed(name, "is neither a tensor nor bytes".into())),
            }
        }
        let mut by_file: BTreeMap<&str, Vec<Item<'a>>> = BTreeMap::new();
        for (index, info) in storage {
            let field = |name| pickle.field(*index, "MetadataIndex", name);
            let name = field("fqn")
                .and_then(|id| pickle.text(id))
                .ok_or_else(|| wrong("has an index without a name"))?;
            let offsets = field("offset").and_then(|id| pickle.sizes(id)).unwrap_or_default();
            let key = (name, offsets);
            let Some(part) = parts.remove(&key) else {
                let reason = format!("is stored at {:?}, and is no part of what there is", key.1);
                return Err(self.malformed(name, reason));
            };
            let (file, offset, length) = self.stored(name, *info)?;
            by_file.entry(file).or_default().push(Item { tensor: name, part, offset, length });
        }
        if let Some(((name, offsets), _)) = parts.first_key_value() {
            return Err(self.malformed(name, format!("has a part at {offsets:?} that is stored nowhere")));
        }
        for items in by_file.values_mut() {
            items.sort_by_key(|item| item.offset);
        }
        Ok(by_file)
    }

    fn unstored(&self, name: &str) -> FormatError {
        let reason = "there are more parts up to here than are stored; some are stored nowhere";
        self.malformed(name, reason.into())
    }

    /// File, first byte and bytes of an item.
    fn stored(&self, name: &str, info: Id) -> Result<(&'a str, u64, u64), FormatError> {
        let pickle = self.pickle;
        let field = |field| pickle.field(info, "_StorageInfo", field);
        let found = (|| {
            let file = pickle.text(field("relative_path")?)?;
            Some((file, pickle.size(field("offset")?)?, pickle.size(field("length")?)?))
        })();
        let found = found.ok_or_else(|| self.malformed(name, "has no place in a file".into()))?;
        let inside = Path::new(found.0).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || found.0.is_empty() || found.0.contains('\0') {
            return Err(
                self.malformed(name, format!("lies in {:?}, which is no file of this folder", found.0))
            );
        }
        match field("transform_descriptors").map(|id| pickle.node(id)) {
            None | Some(Node::Nothing) => Ok(found),
            Some(Node::Items(items)) if items.is_empty() => Ok(found),
            Some(Node::Items(items)) => {
                let names: Vec<&str> = items.iter().filter_map(|item| pickle.text(*item)).collect();
                Err(self.unsupported(name, format!("was written through {names:?}, which is not supported")))
            }
            Some(_) => Err(self.unsupported(name, "was written through what is not known".into())),
        }
    }

    /// The parts of a tensor, at most `most`, which together are all of it.
    fn chunks(&self, name: &str, id: Id, most: usize) -> Result<Vec<Chunk<'a>>, FormatError> {
        let pickle = self.pickle;
        let class = "TensorStorageMetadata";
        let listed = pickle.field(id, class, "chunks").and_then(|id| pickle.items(id));
        if listed.is_some_and(|chunks| chunks.len() > most) {
            return Err(self.unstored(name));
        }
        let read = (|| {
            let size = pickle.sizes(pickle.field(id, class, "size")?)?;
            let properties = pickle.field(id, class, "properties")?;
            // Its state is a tuple that begins with the dtype, or a dictionary.
            let Node::Object { state: Some(state), .. } = pickle.node(properties) else { return None };
            let dtype = match pickle.items(*state) {
                Some(items) => *items.first()?,
                None => pickle.entry(*state, "dtype")?,
            };
            let (_, dtype) = pickle.global(dtype)?;
            let field =
                |chunk: &Id, name| pickle.sizes(pickle.field(*chunk, "ChunkStorageMetadata", name)?);
            let chunks: Option<Vec<Chunk<'a>>> = listed?
                .iter()
                .map(|chunk| {
                    let (offsets, sizes) = (field(chunk, "offsets")?, field(chunk, "sizes")?);
                    Some(Chunk { dtype, offsets, sizes })
                })
                .collect();
            Some((size, dtype, chunks?))
        })();
        let (size, dtype, chunks) =
            read.ok_or_else(|| self.malformed(name, "is described in a way that is not known".into()))?;
        if torch_file::stored(dtype).is_none() {
            return Err(self.unsupported(name, format!("its dtype `{dtype}` is not known")));
        }
        let uncountable =
            || self.malformed(name, format!("its shape {size:?} has more elements than can be counted"));
        let wanted = counted(&size).ok_or_else(uncountable)?;
        let mut there = 0u64;
        let mut begins = BTreeSet::new();
        for chunk in &chunks {
            let inside = chunk.offsets.len() == size.len()
                && chunk.sizes.len() == size.len()
                && (0..size.len()).all(|at| {
                    chunk.offsets[at].checked_add(chunk.sizes[at]).is_some_and(|end| end <= size[at])
                });
            if !inside || !begins.insert(&chunk.offsets) {
                let reason = format!(
                    "has a part of {:?} at {:?}, and its shape is {size:?}",
                    chunk.sizes, chunk.offsets
                );
                return Err(self.malformed(name, reason));
            }
            there = counted(&chunk.sizes).and_then(|more| there.checked_add(more)).ok_or_else(uncountable)?;
        }
        if there != wanted {
            return Err(self.malformed(name, format!("its parts have {there} of its {wanted} elements")));
        }
        // As many elements as there should be are all of them only where none is there twice.
        if let Some((first, second)) = overlap(&chunks, size.len()) {
            return Err(self.malformed(
                name,
                format!(
                    "its parts {:?} at {:?} and {:?} at {:?} overlap, so that others are missing",
                    first.sizes, first.offsets, second.sizes, second.offsets
                ),
            ));
        }
        Ok(chunks)
    }
}

/// Two parts that share an element. Parts are sorted along the axis on which the fewest lie side by side, and each is compared
/// with those only that begin before it ends there.
fn overlap<'c, 'a>(chunks: &'c [Chunk<'a>], axes: usize) -> Option<(&'c Chunk<'a>, &'c Chunk<'a>)> {
    let mut parts: Vec<&Chunk<'a>> = chunks.iter().filter(|chunk| !chunk.sizes.contains(&0)).collect();
    let ends = |chunk: &Chunk<'_>, axis: usize| chunk.offsets[axis].saturating_add(chunk.sizes[axis]);
    let pairs = |axis: usize| {
        let mut begins: Vec<u64> = parts.iter().map(|part| part.offsets[axis]).collect();
        begins.sort_unstable();
        let before_end = |part: &&Chunk<'_>| begins.partition_point(|begin| *begin < ends(part, axis)) as u64;
        let before_begin =
            |part: &&Chunk<'_>| begins.partition_point(|begin| *begin < part.offsets[axis]) as u64;
        parts.iter().fold(0u64, |sum, part| sum.saturating_add(before_end(part) - before_begin(part)))
    };
    let axis = (0..axes).min_by_key(|axis| pairs(*axis))?;
    parts.sort_by_key(|part| part.offsets[axis]);
    for (at, first) in parts.iter().enumerate() {
        for second in parts[at + 1..].iter().take_while(|second| second.offsets[axis] < ends(first, axis)) {
            let shared = |axis: usize| {
                first.offsets[axis] < ends(second, axis) && second.offsets[axis] < ends(first, axis)
            };
            if (0..axes).all(shared) {
                return Some((first, second));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Chunk, overlap};

    fn overlapping(parts: &[([u64; 2], [u64; 2])]) -> bool {
        let chunks: Vec<Chunk<'_>> = parts
            .iter()
            .map(|(offsets, sizes)| Chunk { dtype: "float32", offsets: offsets.into(), sizes: sizes.into() })
            .collect();
        overlap(&chunks, 2).is_some()
    }

    #[test]
    fn parts_that_share_an_element_are_seen() {
        assert!(!overlapping(&[([0, 0], [2, 4]), ([2, 0], [2, 2]), ([2, 2], [2, 2])]));
        assert!(!overlapping(&[([0, 0], [4, 1]), ([0, 1], [4, 1]), ([0, 2], [4, 2])]));
        // Nothing is shared with what holds nothing.
        assert!(!overlapping(&[([0, 0], [4, 4]), ([1, 1], [0, 4])]));
        assert!(overlapping(&[([0, 0], [2, 4]), ([1, 0], [2, 4])]));
        assert!(overlapping(&[([0, 0], [4, 1]), ([0, 2], [4, 2]), ([0, 3], [1, 1])]));
        // The one that shares is not the next one.
        assert!(overlapping(&[([0, 0], [4, 2]), ([1, 2], [1, 2]), ([2, 1], [1, 1])]));
        assert!(overlapping(&[([3, 3], [1, 1]), ([0, 0], [4, 4])]));
    }
}
