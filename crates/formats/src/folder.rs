//! A folder of safetensors as published: one file, or shards with an index.

use crate::error::FormatError;
use crate::index::shards;
use crate::safetensors::header;
use crate::tensors::Tensors;
use std::path::{Path, PathBuf};
use toprope_world::Files;

/// The index of a sharded folder.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The weights of a folder that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";

/// A folder with the records of all its tensors.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Its tensors.
    pub tensors: Tensors,
}

impl Folder {
    /// Opens a folder and checks every header in it.
    ///
    /// # Errors
    /// There are no weights, a shard is missing, a header does not hold, or the index names what is not there.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Folder, FormatError> {
        let mut tensors = Tensors::new(path);
        let index = path.join(INDEX_FILE);
        if files.is_file(&index)? {
            for shard in shards(files, &index)? {
                let reader = files.open(&shard.path)?;
                let records = header(&shard.path, reader.as_ref())?;
                shard.check(|tensor| records.contains_key(tensor))?;
                tensors.add(&shard.path, reader, records)?;
            }
        } else {
            let single = path.join(SINGLE_FILE);
            if !files.is_file(&single)? {
                return Err(FormatError::NoWeights { path: path.to_owned() });
            }
            let reader = files.open(&single)?;
            let records = header(&single, reader.as_ref())?;
            tensors.add(&single, reader, records)?;
        }
        Ok(Folder { path: path.to_owned(), tensors })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
