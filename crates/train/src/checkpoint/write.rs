//! Writing one checkpoint, so that it is there whole or not at all.

use super::defect::CheckpointError;
use super::keep::remove_leftovers;
use super::layout::{self, ASIDE_PREFIX, MANIFEST_FILE, STATE_FILE, checkpoint_name};
use super::manifest::{MANIFEST_LIMIT_BYTES, Manifest, TensorRecord};
use super::read;
use super::snapshot::{Snapshot, SnapshotHeader, TensorSpec, TensorView, check_names, hash_of_records};
use std::path::{Path, PathBuf};
use toprope_world::{EntryKind, FileError, Files, World, utc_timestamp};

/// Hashed and handed to the file system at a time.
const CHUNK_BYTES: u64 = 4 << 20;

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

/// Reads bytes of a tensor, by its index in the list that was given, from an offset on.
pub type ReadBytes<'a, E> = dyn FnMut(usize, u64, &mut [u8]) -> Result<(), E> + 'a;

/// Writes a snapshot into the folder of checkpoints, which must exist; returns once it is durable. No other writer may
/// be at work in that folder (a run's lock sees to it).
///
/// # Errors
/// As [`write_from`].
pub fn write(world: &dyn World, folder: &Path, snapshot: &Snapshot<'_>) -> Result<Written, CheckpointError> {
    snapshot.tensors.iter().try_for_each(TensorView::check)?;
    let specs: Vec<TensorSpec> = snapshot.tensors.iter().map(TensorView::spec).collect();
    write_from(world, folder, snapshot.header, &specs, &mut |index, offset, into| {
        let bytes = snapshot.tensors[index].bytes;
        into.copy_from_slice(&bytes[offset as usize..][..into.len()]);
        Ok(())
    })
}

/// The same for a state that lies wherever it does: it is read a part at a time, so that no second copy of it is in
/// memory. Nobody may change it before this returns.
///
/// # Errors
/// Whatever fails, `read` too, the older checkpoints stay and what was written of this one is removed. An intact
/// checkpoint of the same step and another state is left alone and an error; a damaged one is moved aside.
pub fn write_from<E: From<CheckpointError>>(
    world: &dyn World,
    folder: &Path,
    header: &SnapshotHeader,
    tensors: &[TensorSpec],
    read: &mut ReadBytes<'_, E>,
) -> Result<Written, E> {
    check_names(tensors)?;
    let files = world.files();
    let step = header.step;
    let failed = |source| CheckpointError::Write { step, source };
    let path = folder.join(checkpoint_name(step));
    let there = files.inspect(&path).map_err(failed)?;
    if there.is_some()
        && let Some(written) = already_there(world, &path, header, tensors, read)?
    {
        return Ok(written);
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_unstable_by(|&left, &right| {
        let key = |index: usize| layout::order_key(tensors[index].dtype, &tensors[index].name);
        key(left).cmp(&key(right))
    });
    // Hashes are filled in while the tensors are written; the layout does not depend on them.
    let blank = blake3::Hash::from_bytes([0; 32]);
    let mut records: Vec<TensorRecord> = order.iter().map(|&index| tensors[index].record(blank)).collect();
    let Some(layout) = layout::layout(&records, step) else {
        let reason = "the tensors' sizes exceed 64 bits".to_owned();
        return Err(CheckpointError::Snapshot { name: String::new(), reason }.into());
    };

    remove_leftovers(files, folder).map_err(failed)?;
    // The manifest repeats the header's names and shapes and adds a hash of 64 digits and some words to each tensor.
    let needed_bytes = layout.file_bytes + layout.header.len() as u64 + 128 * records.len() as u64 + 4096;
    let free_bytes = files.free_bytes(folder).map_err(failed)?;
    if free_bytes < needed_bytes {
        let folder = folder.to_owned();
        return Err(CheckpointError::NoSpace { step, folder, needed_bytes, free_bytes }.into());
    }

    let aside = folder.join(format!("{ASIDE_PREFIX}{}", checkpoint_name(step)));
    let outcome = (|| {
        files.create_folder(&aside).map_err(failed)?;
        let mut file = files.create(&aside.join(STATE_FILE)).map_err(failed)?;
        file.write(&layout.header).map_err(failed)?;
        for (&index, record) in order.iter().zip(&mut records) {
            let hash = read_through(&tensors[index], index, read, &mut |chunk| {
                Ok(file.write(chunk).map_err(failed)?)
            })?;
            *record = tensors[index].record(hash);
        }
        file.sync().map_err(failed)?;
        drop(file);
        let manifest = Manifest {
            toprope_version: env!("CARGO_PKG_VERSION").to_owned(),
            created: utc_timestamp(world.clock().wall()),
            header: header.clone(),
            state_hash: hash_of_records(&records).unwrap_or_default(),
            tensors: std::mem::take(&mut records),
        };
        let bytes = manifest.to_bytes(layout.file_bytes).map_err(CheckpointError::from)?;
        if bytes.len() as u64 > MANIFEST_LIMIT_BYTES {
            let reason = format!("the manifest's {} bytes exceed {MANIFEST_LIMIT_BYTES}", bytes.len());
            return Err(CheckpointError::Snapshot { name: String::new(), reason }.into());
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

/// Hands a tensor's bytes to `take`, a chunk at a time, and gives their hash.
fn read_through<E: From<CheckpointError>>(
    tensor: &TensorSpec,
    index: usize,
    read: &mut ReadBytes<'_, E>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<blake3::Hash, E> {
    let Some(bytes) = tensor.bytes() else {
        let reason = format!("{} of shape {:?} exceeds 64 bits", tensor.dtype, tensor.shape);
        return Err(CheckpointError::Snapshot { name: tensor.name.clone(), reason }.into());
    };
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; bytes.min(CHUNK_BYTES) as usize];
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(CHUNK_BYTES);
        let part = &mut chunk[..count as usize];
        read(index, done, part)?;
        hasher.update(part);
        take(part)?;
        done += count;
    }
    Ok(hasher.finalize())
}

/// The hash of a state that lies wherever it does, as [`super::state_hash`].
///
/// # Errors
/// What `read` says.
pub fn hash_from<E: From<CheckpointError>>(
    tensors: &[TensorSpec],
    read: &mut ReadBytes<'_, E>,
) -> Result<String, E> {
    let mut records = Vec::with_capacity(tensors.len());
    for (index, tensor) in tensors.iter().enumerate() {
        records.push(tensor.record(read_through(tensor, index, read, &mut |_| Ok(()))?));
    }
    // Hexadecimal of ours always parses.
    Ok(hash_of_records(&records).unwrap_or_default())
}

/// What to answer where the step has its checkpoint already: it is the same; it is another; or, `None`, it is damaged.
fn already_there<E: From<CheckpointError>>(
    world: &dyn World,
    path: &Path,
    header: &SnapshotHeader,
    tensors: &[TensorSpec],
    read: &mut ReadBytes<'_, E>,
) -> Result<Option<Written>, E> {
    let step = header.step;
    let Ok(found) = read::verify(world.files(), path) else {
        return Ok(None);
    };
    let manifest = found.manifest();
    let state = hash_from(tensors, read)?;
    if manifest.state_hash != state || manifest.header.identity != header.identity {
        let (path, found) = (path.to_owned(), manifest.state_hash.clone());
        return Err(CheckpointError::Conflict { step, path, found, state }.into());
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
