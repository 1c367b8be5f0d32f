//! Writing one checkpoint, so that it is there whole or not at all.

use super::defect::CheckpointError;
use super::keep::remove_leftovers;
use super::layout::{self, ASIDE_PREFIX, Layout, MANIFEST_FILE, STATE_FILE, checkpoint_name};
use super::manifest::{MANIFEST_LIMIT_BYTES, Manifest, TensorRecord};
use super::read;
use super::snapshot::{Snapshot, TensorView, hash_of_records, state_hash};
use std::path::{Path, PathBuf};
use toprope_world::{EntryKind, FileError, Files, World, utc_timestamp};

/// Hashed and handed to the file system at a time.
const CHUNK_BYTES: usize = 4 << 20;

/// A checkpoint that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its folder.
    pub path: PathBuf,
    /// Its step.
    pub step: u64,
    /// The hash of its state.
    pub state_hash: String,
    /// Its length in bytes; zero where it was there already, intact and of the same state.
    pub bytes: u64,
    /// Where a damaged checkpoint of the same step was moved to.
    pub set_aside: Option<PathBuf>,
}

/// Writes a snapshot into the folder of checkpoints, which must exist; returns once it is durable. No other writer may
/// be at work in that folder (a run's lock sees to it). Nothing is copied: the tensors go to the file as they lie.
///
/// # Errors
/// Whatever fails, the older checkpoints stay and what was written of this one is removed. An intact checkpoint of the
/// same step and another state is left alone and an error; a damaged one is moved aside.
pub fn write(world: &dyn World, folder: &Path, snapshot: &Snapshot<'_>) -> Result<Written, CheckpointError> {
    snapshot.check()?;
    let files = world.files();
    let step = snapshot.header.step;
    let failed = |source| CheckpointError::Write { step, source };
    let path = folder.join(checkpoint_name(step));
    let there = files.inspect(&path).map_err(failed)?;
    if there.is_some()
        && let Some(written) = already_there(world, &path, snapshot)?
    {
        return Ok(written);
    }
    let mut tensors = snapshot.tensors.clone();
    tensors.sort_unstable_by(|left, right| {
        layout::order_key(left.dtype, left.name).cmp(&layout::order_key(right.dtype, right.name))
    });
    // Hashes are filled in while the tensors are written; the layout does not depend on them.
    let blank = blake3::Hash::from_bytes([0; 32]);
    let mut records: Vec<TensorRecord> = tensors.iter().map(|tensor| tensor.record(blank)).collect();
    let Some(layout) = layout::layout(&records, step) else {
        let reason = "the tensors' sizes exceed 64 bits".to_owned();
        return Err(CheckpointError::Snapshot { name: String::new(), reason });
    };

    remove_leftovers(files, folder).map_err(failed)?;
    // The manifest repeats the header's names and shapes and adds a hash of 64 digits and some words to each tensor.
    let needed_bytes = layout.file_bytes + layout.header.len() as u64 + 128 * records.len() as u64 + 4096;
    let free_bytes = files.free_bytes(folder).map_err(failed)?;
    if free_bytes < needed_bytes {
        return Err(CheckpointError::NoSpace { step, folder: folder.to_owned(), needed_bytes, free_bytes });
    }

    let aside = folder.join(format!("{ASIDE_PREFIX}{}", checkpoint_name(step)));
    let outcome = (|| {
        files.create_folder(&aside).map_err(failed)?;
        write_state(files, &aside.join(STATE_FILE), &layout, &tensors, &mut records).map_err(failed)?;
        let manifest = Manifest {
            toprope_version: env!("CARGO_PKG_VERSION").to_owned(),
            created: utc_timestamp(world.clock().wall()),
            header: snapshot.header.clone(),
            state_hash: hash_of_records(&records).unwrap_or_default(),
            tensors: std::mem::take(&mut records),
        };
        let bytes = manifest.to_bytes(layout.file_bytes)?;
        if bytes.len() as u64 > MANIFEST_LIMIT_BYTES {
            let reason = format!("the manifest's {} bytes exceed {MANIFEST_LIMIT_BYTES}", bytes.len());
            return Err(CheckpointError::Snapshot { name: String::new(), reason });
        }
        let mut file = files.create(&aside.join(MANIFEST_FILE)).map_err(failed)?;
        file.write(&bytes).and_then(|()| file.sync()).map_err(failed)?;
        drop(file);
        files.sync_folder(&aside).map_err(failed)?;
        let set_aside = if there.is_some() { Some(set_aside(files, &path).map_err(failed)?) } else { None };
        files.rename(&aside, &path).map_err(failed)?;
        let bytes = layout.file_bytes + bytes.len() as u64;
        Ok(Written { path: path.clone(), step, state_hash: manifest.state_hash, bytes, set_aside })
    })();
    match outcome {
        Ok(written) => {
            files.sync_folder(folder).map_err(failed)?;
            Ok(written)
        }
        Err(error) => {
            // The first error is the one to tell. What cannot be removed now goes with the next checkpoint.
            let _ = files.remove_folder(&aside);
            Err(error)
        }
    }
}

fn write_state(
    files: &dyn Files,
    path: &Path,
    layout: &Layout,
    tensors: &[TensorView<'_>],
    records: &mut [TensorRecord],
) -> Result<(), FileError> {
    let mut file = files.create(path)?;
    file.write(&layout.header)?;
    for (tensor, record) in tensors.iter().zip(records) {
        let mut hasher = blake3::Hasher::new();
        for chunk in tensor.bytes.chunks(CHUNK_BYTES) {
            hasher.update(chunk);
            file.write(chunk)?;
        }
        *record = tensor.record(hasher.finalize());
    }
    file.sync()
}

/// What to answer where the step has its checkpoint already: it is the same; it is another; or, `None`, it is damaged.
fn already_there(
    world: &dyn World,
    path: &Path,
    snapshot: &Snapshot<'_>,
) -> Result<Option<Written>, CheckpointError> {
    let step = snapshot.header.step;
    let Ok(found) = read::verify(world.files(), path) else {
        return Ok(None);
    };
    let manifest = found.manifest();
    let state = state_hash(&snapshot.tensors);
    if manifest.state_hash != state || manifest.header.identity != snapshot.header.identity {
        let found = manifest.state_hash.clone();
        return Err(CheckpointError::Conflict { step, path: path.to_owned(), found, state });
    }
    Ok(Some(Written { path: path.to_owned(), step, state_hash: state, bytes: 0, set_aside: None }))
}

/// Moves a damaged checkpoint to the first free `<name>.damaged-<k>`, where nobody takes it for a checkpoint.
fn set_aside(files: &dyn Files, path: &Path) -> Result<PathBuf, FileError> {
    let mut number = 1_u32;
    loop {
        let to = path.with_added_extension(format!("damaged-{number}"));
        match files.inspect(&to)? {
            None => return files.rename(path, &to).map(|()| to),
            Some(EntryKind::File { .. } | EntryKind::Folder | EntryKind::Other) => number += 1,
        }
    }
}
