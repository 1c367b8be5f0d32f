//! The index of a sharded folder: which tensor lies in which file.

use crate::error::FormatError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toprope_world::Files;

/// The longest index that is read.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// A file that an index names, and that is there.
pub(crate) struct Shard<'a> {
    index: &'a Path,
    name: String,
    /// The file.
    pub(crate) path: PathBuf,
    /// The tensors that it holds, as the index says.
    tensors: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn malformed(index: &Path, place: String, reason: String) -> FormatError {
    FormatError::Malformed { path: index.to_owned(), place, reason }
}

/// The shards of a folder by their names.
///
/// # Errors
/// The index is no such file, names what is no file of its folder, or a shard is not there.
pub(crate) fn shards<'a>(files: &dyn Files, index: &'a Path) -> Result<Vec<Shard<'a>>, FormatError> {
    let read: Index = serde_json::from_slice(&files.read(index, INDEX_BYTES_MAX)?)
        .map_err(|error| malformed(index, "the index".into(), error.to_string()))?;
    let mut tensors: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in read.weight_map {
        tensors.entry(shard).or_default().push(tensor);
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    let mut shards = Vec::new();
    for (name, tensors) in tensors {
        let is_plain = Path::new(&name).components().count() == 1
            && !name.contains(['/', '\\', '\0'])
            && name != ".."
            && name != ".";
        if !is_plain {
            return Err(malformed(index, "the index".into(), format!("{name:?} is no file's name")));
        }
        let path = folder.join(&name);
        if !files.is_file(&path)? {
            return Err(FormatError::MissingShard { index: index.to_owned(), shard: name });
        }
        shards.push(Shard { index, name, path, tensors });
    }
    Ok(shards)
}

impl Shard<'_> {
    /// Compares what the index says with what the file holds.
    ///
    /// # Errors
    /// A tensor is not in the file.
    pub(crate) fn check(&self, is_there: impl Fn(&str) -> bool) -> Result<(), FormatError> {
        match self.tensors.iter().find(|tensor| !is_there(tensor)) {
            None => Ok(()),
            Some(tensor) => Err(malformed(
                self.index,
                format!("tensor `{tensor}`"),
                format!("is not in {}, where the index says that it is", self.name),
            )),
        }
    }
}
