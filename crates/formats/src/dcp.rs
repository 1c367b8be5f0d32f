//! Checkpoints of `torch.distributed.checkpoint`: `.metadata`, a pickle that is written last, and `*.distcp` files, in which each
//! item is what `torch.save` writes.

use crate::error::FormatError;
use crate::pickle::{Id, Node, Pickle};
use crate::tensors::{TensorRecord, Tensors};
use crate::torch_file::{self, PICKLE_BYTES_MAX, TorchFile};
use crate::zip::{Archive, Part};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use toprope_world::{EntryKind, Files};

/// The file that says what there is.
pub(crate) const METADATA_FILE: &str = ".metadata";
/// How the names of files with items end.
pub(crate) const ITEMS_SUFFIX: &str = ".distcp";

/// A checkpoint whose items are all there.
#[derive(Debug)]
pub(crate) struct Dcp {
    /// Each part of a tensor under a name of its own.
    pub(crate) tensors: Tensors,
    /// The tensor that a part belongs to.
    pub(crate) whole: BTreeMap<String, String>,
    /// Files with items.
    pub(crate) files: usize,
}

/// A part of a tensor, or bytes, as the metadata has it.
struct Item {
    tensor: String,
    part: Option<Chunk>,
    offset: u64,
    length: u64,
}

/// Where a part of a tensor begins, and its sizes.
struct Chunk {
    dtype: String,
    offsets: Vec<u64>,
    sizes: Vec<u64>,
}

impl Dcp {
    /// Reads the metadata, and checks that every item is there, whole and what the metadata says. With this every byte of the
    /// files is read once.
    ///
    /// # Errors
    /// Something is missing, damaged, or contradicts the metadata.
    pub(crate) fn open(files: &dyn Files, folder: &Path) -> Result<Dcp, FormatError> {
        let path = folder.join(METADATA_FILE);
        if !matches!(files.inspect(&path)?, Some(EntryKind::File { .. })) {
            return Err(FormatError::Missing {
                path: folder.to_owned(),
                what: METADATA_FILE.into(),
                hint: "it is written last, so the save did not end; take an older checkpoint".into(),
            });
        }
        let pickle = Pickle::read(&path, "the metadata", &files.read(&path, PICKLE_BYTES_MAX)?)?;
        let metadata = Metadata { path: &path, pickle: &pickle };
        let by_file = metadata.items()?;
        let mut checkpoint =
            Dcp { tensors: Tensors::new(folder), whole: BTreeMap::new(), files: by_file.len() };
        for (name, items) in by_file {
            let file = folder.join(&name);
            if !matches!(files.inspect(&file)?, Some(EntryKind::File { .. })) {
                return Err(FormatError::MissingShard { index: path.clone(), shard: name });
            }
            let reader = files.open(&file)?;
            let mut records = BTreeMap::new();
            let mut end = 0;
            for item in &items {
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
                    let reason =
                        format!("begins at byte {}, within what lies before it in {name}", item.offset);
                    return Err(metadata.malformed(&item.tensor, reason));
                }
                end = item.offset + item.length;
                let part =
                    Part { path: &file, reader: reader.as_ref(), start: item.offset, length: item.length };
                if let Some((name, record)) = read_item(part, item)? {
                    checkpoint.whole.insert(name.clone(), item.tensor.clone());
                    records.insert(name, record);
                }
            }
            checkpoint.tensors.add(&file, reader, records)?;
        }
        Ok(checkpoint)
    }
}

/// Compares an item with what the metadata says of it.
fn read_item(part: Part<'_>, item: &Item) -> Result<Option<(String, TensorRecord)>, FormatError> {
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
    let name = match chunk.offsets.iter().any(|offset| *offset > 0) {
        true => format!("{} at {:?}", item.tensor, chunk.offsets),
        false => item.tensor.clone(),
    };
    let malformed = |reason: String| FormatError::Malformed {
        path: part.path.to_owned(),
        place: format!("tensor `{name}`"),
        reason,
    };
    let mut file = TorchFile::read(part)?;
    file.archive.check(part)?;
    let record = file.tensors.remove("").ok_or_else(|| malformed("is no tensor in its file".into()))?;
    let want = torch_file::stored(&chunk.dtype);
    let shape: Vec<u64> = record.shape.iter().map(|size| *size as u64).collect();
    if shape != chunk.sizes || Some(&record.stored) != want.as_ref() {
        return Err(malformed(format!(
            "has shape {shape:?} in {}, and {METADATA_FILE} says {:?} in {}",
            record.stored.name(),
            chunk.sizes,
            chunk.dtype
        )));
    }
    Ok(Some((name, record)))
}

struct Metadata<'a> {
    path: &'a Path,
    pickle: &'a Pickle,
}

impl Metadata<'_> {
    fn malformed(&self, tensor: &str, reason: String) -> FormatError {
        FormatError::Malformed { path: self.path.to_owned(), place: format!("`{tensor}`"), reason }
    }

    /// What is stored, by file, each file's items in order. Every part of every tensor is among them once.
    fn items(&self) -> Result<BTreeMap<String, Vec<Item>>, FormatError> {
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
        // What is expected: names with the parts of each.
        let mut parts: BTreeMap<(String, Vec<u64>), Option<Chunk>> = BTreeMap::new();
        for (name, value) in table("state_dict_metadata")? {
            let name = pickle.text(*name).ok_or_else(|| wrong("has a name that is no text"))?;
            match pickle.made(*value).map(|(class, _)| class) {
                Some("BytesStorageMetadata") => drop(parts.insert((name.into(), Vec::new()), None)),
                Some("TensorStorageMetadata") => {
                    for chunk in self.chunks(name, *value)? {
                        let key = (name.to_string(), chunk.offsets.clone());
                        if parts.insert(key, Some(chunk)).is_some() {
                            return Err(self.malformed(name, "has a part twice".into()));
                        }
                    }
                }
                _ => return Err(self.malformed(name, "is neither a tensor nor bytes".into())),
            }
        }
        let mut by_file: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        let storage = table("storage_data")?;
        for (index, info) in storage {
            let field = |name| pickle.field(*index, "MetadataIndex", name);
            let name = field("fqn")
                .and_then(|id| pickle.text(id))
                .ok_or_else(|| wrong("has an index without a name"))?;
            let offsets = field("offset").and_then(|id| pickle.sizes(id)).unwrap_or_default();
            let Some(part) = parts.remove(&(name.to_string(), offsets.clone())) else {
                let reason = format!("is stored at {offsets:?}, and is no part of what there is");
                return Err(self.malformed(name, reason));
            };
            let (file, offset, length) = self.stored(name, *info)?;
            by_file.entry(file).or_default().push(Item { tensor: name.into(), part, offset, length });
        }
        if let Some(((name, offsets), _)) = parts.first_key_value() {
            return Err(self.malformed(name, format!("has a part at {offsets:?} that is stored nowhere")));
        }
        for items in by_file.values_mut() {
            items.sort_by_key(|item| item.offset);
        }
        Ok(by_file)
    }

    /// File, first byte and bytes of an item.
    fn stored(&self, name: &str, info: Id) -> Result<(String, u64, u64), FormatError> {
        let pickle = self.pickle;
        let field = |field| pickle.field(info, "_StorageInfo", field);
        let found = (|| {
            let file = pickle.text(field("relative_path")?)?;
            Some((file.to_string(), pickle.size(field("offset")?)?, pickle.size(field("length")?)?))
        })();
        let found = found.ok_or_else(|| self.malformed(name, "has no place in a file".into()))?;
        let inside = Path::new(&found.0).components().all(|part| matches!(part, Component::Normal(_)));
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
                Err(self.malformed(name, format!("was written through {names:?}, which is not supported")))
            }
            Some(_) => Err(self.malformed(name, "was written through what is not known".into())),
        }
    }

    /// The parts of a tensor, which together are all of it.
    fn chunks(&self, name: &str, id: Id) -> Result<Vec<Chunk>, FormatError> {
        let pickle = self.pickle;
        let class = "TensorStorageMetadata";
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
            let chunks = pickle.items(pickle.field(id, class, "chunks")?)?;
            let field =
                |chunk: &Id, name| pickle.sizes(pickle.field(*chunk, "ChunkStorageMetadata", name)?);
            let chunks: Option<Vec<Chunk>> = chunks
                .iter()
                .map(|chunk| {
                    let (offsets, sizes) = (field(chunk, "offsets")?, field(chunk, "sizes")?);
                    Some(Chunk { dtype: dtype.into(), offsets, sizes })
                })
                .collect();
            Some((size, dtype, chunks?))
        })();
        let (size, dtype, chunks) =
            read.ok_or_else(|| self.malformed(name, "is described in a way that is not known".into()))?;
        if torch_file::stored(dtype).is_none() {
            return Err(self.malformed(name, format!("its dtype `{dtype}` is not known")));
        }
        let elements =
            |sizes: &[u64]| sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let uncountable =
            || self.malformed(name, format!("its shape {size:?} has more elements than can be counted"));
        let wanted = elements(&size).ok_or_else(uncountable)?;
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
            there =
                elements(&chunk.sizes).and_then(|more| there.checked_add(more)).ok_or_else(uncountable)?;
        }
        if there != wanted {
            return Err(self.malformed(name, format!("its parts have {there} of its {wanted} elements")));
        }
        Ok(chunks)
    }
}
