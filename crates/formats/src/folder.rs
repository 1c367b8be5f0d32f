//! A folder of safetensors as published: one file, or shards with an index.

use crate::error::FormatError;
use crate::safetensors::header;
use crate::tensors::Tensors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toprope_world::{EntryKind, Files};

/// The index of a sharded folder.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The weights of a folder that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The largest index or other JSON file that is read.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// A folder with the records of all its tensors.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Its tensors.
    pub tensors: Tensors,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Folder {
    /// Opens a folder and checks every header in it.
    ///
    /// # Errors
    /// There are no weights, a shard is missing, a header does not hold, or the index names what is not there.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Folder, FormatError> {
        let mut tensors = Tensors::new(path);
        let index_path = path.join(INDEX_FILE);
        let is_file =
            |path: &Path| Ok::<_, FormatError>(matches!(files.inspect(path)?, Some(EntryKind::File { .. })));
        if !is_file(&index_path)? {
            let single = path.join(SINGLE_FILE);
            if !is_file(&single)? {
                return Err(FormatError::NoWeights { path: path.to_owned() });
            }
            let reader = files.open(&single)?;
            let records = header(&single, reader.as_ref())?;
            tensors.add(&single, reader, records)?;
            return Ok(Folder { path: path.to_owned(), tensors });
        }
        let bytes = files.read(&index_path, JSON_BYTES_MAX)?;
        let malformed = |place: String, reason: String| FormatError::Malformed {
            path: index_path.clone(),
            place,
            reason,
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| malformed("the index".into(), error.to_string()))?;
        let mut shards: Vec<&String> = index.weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            let plain = Path::new(shard).components().count() == 1
                && !shard.contains(['/', '\\', '\0'])
                && shard != "..";
            if !plain {
                return Err(malformed("the index".into(), format!("{shard:?} is no file's name")));
            }
            let file = path.join(shard);
            if !is_file(&file)? {
                return Err(FormatError::MissingShard { index: index_path.clone(), shard: shard.clone() });
            }
            let reader = files.open(&file)?;
            let records = header(&file, reader.as_ref())?;
            for (tensor, _) in index.weight_map.iter().filter(|(_, file)| *file == shard) {
                if !records.contains_key(tensor) {
                    return Err(malformed(
                        format!("tensor `{tensor}`"),
                        format!("is not in {shard}, where the index says that it is"),
                    ));
                }
            }
            tensors.add(&file, reader, records)?;
        }
        Ok(Folder { path: path.to_owned(), tensors })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
