//! Finding the newest intact checkpoint, and reading it.

use super::defect::{CheckpointError, Defect};
use super::layout::{Layout, MANIFEST_FILE, STATE_FILE, step_of};
use super::manifest::{MANIFEST_LIMIT_BYTES, Manifest, TensorRecord};
use super::snapshot::{Identity, OwnedSnapshot, OwnedTensor};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toprope_world::{EntryKind, FileError, FileReader, Files, World};

/// Read and hashed at a time.
const CHUNK_BYTES: u64 = 4 << 20;

/// A checkpoint that was found whole: every size and every hash of it holds.
#[derive(Debug)]
pub struct Loaded {
    path: PathBuf,
    manifest: Manifest,
    layout: Layout,
    index: BTreeMap<String, usize>,
    state: Box<dyn FileReader>,
}

/// A checkpoint that was passed over, and why.
#[derive(Debug)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: Defect,
}

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "skipped checkpoint {}: {}", self.path.display(), self.reason)
    }
}

/// The newest intact checkpoint in a folder, and each newer one that is not intact. No folder, or nothing in it, is
/// `None` with nothing skipped; `None` with something skipped means that the run had checkpoints and all are damaged,
/// which is for the caller to refuse.
///
/// # Errors
/// The folder cannot be listed; or the newest readable manifest is of another model, recipe, program, tokenizer or
/// corpus than `identity`: then somebody is about to go on with the wrong run, and no older checkpoint mends that.
pub fn newest_intact(
    world: &dyn World,
    folder: &Path,
    identity: &Identity,
) -> Result<(Option<Loaded>, Vec<Skipped>), CheckpointError> {
    newest_intact_until(world, folder, identity, u64::MAX)
}

/// As [`newest_intact`], of at most this many steps.
///
/// # Errors
/// As [`newest_intact`].
pub fn newest_intact_until(
    world: &dyn World,
    folder: &Path,
    identity: &Identity,
    steps_max: u64,
) -> Result<(Option<Loaded>, Vec<Skipped>), CheckpointError> {
    search(world, folder, Some(identity), steps_max)
}

/// As [`newest_intact`], of whatever run.
///
/// # Errors
/// The folder cannot be listed.
pub fn newest_intact_of_any(
    world: &dyn World,
    folder: &Path,
) -> Result<(Option<Loaded>, Vec<Skipped>), CheckpointError> {
    search(world, folder, None, u64::MAX)
}

fn search(
    world: &dyn World,
    folder: &Path,
    identity: Option<&Identity>,
    steps_max: u64,
) -> Result<(Option<Loaded>, Vec<Skipped>), CheckpointError> {
    let files = world.files();
    let mut skipped = Vec::new();
    if files.inspect(folder)?.is_none() {
        return Ok((None, skipped));
    }
    for (_, path) in steps(files, folder)?.into_iter().filter(|(step, _)| *step <= steps_max) {
        let verified = read_manifest(files, &path).and_then(|(manifest, layout)| {
            let difference = identity.and_then(|identity| manifest.header.identity.difference(identity));
            if let Some((field, found, expected)) = difference {
                return Ok(Err(CheckpointError::OtherRun {
                    path: path.clone(),
                    field,
                    found: found.to_owned(),
                    expected: expected.to_owned(),
                }));
            }
            verify_state(files, &path, manifest, layout).map(Ok)
        });
        match verified {
            Ok(Ok(loaded)) => return Ok((Some(loaded), skipped)),
            Ok(Err(other_run)) => return Err(other_run),
            Err(reason) => skipped.push(Skipped { path, reason }),
        }
    }
    Ok((None, skipped))
}

/// The folders that are checkpoints by their names, with their steps, newest first.
fn steps(files: &dyn Files, folder: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
    let mut found: Vec<(u64, PathBuf)> = files
        .list(folder)?
        .iter()
        .filter_map(|entry| step_of(&entry.name).map(|step| (step, folder.join(&entry.name))))
        .collect();
    found.sort_unstable_by(|left, right| right.cmp(left));
    Ok(found)
}

/// The folders below this one that are checkpoints by their names, newest first, whatever is in them.
///
/// # Errors
/// The folder cannot be listed.
pub fn newest_first(files: &dyn Files, folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    Ok(steps(files, folder)?.into_iter().map(|(_, path)| path).collect())
}

/// Whether a folder is a checkpoint, by its name or by the manifest in it.
///
/// # Errors
/// It cannot be looked at.
pub fn is_checkpoint(files: &dyn Files, path: &Path) -> Result<bool, FileError> {
    let named = path.file_name().is_some_and(|name| step_of(&name.to_string_lossy()).is_some());
    let state = path.join(STATE_FILE);
    Ok(named || (files.inspect(&path.join(MANIFEST_FILE))?.is_some() && files.inspect(&state)?.is_some()))
}

/// One checkpoint by its folder, whatever run it is of.
///
/// # Errors
/// [`CheckpointError::Damaged`] where it is not intact.
pub fn open(world: &dyn World, path: &Path) -> Result<Loaded, CheckpointError> {
    verify(world.files(), path).map_err(|defect| CheckpointError::Damaged { path: path.to_owned(), defect })
}

pub(super) fn verify(files: &dyn Files, path: &Path) -> Result<Loaded, Defect> {
    let (manifest, layout) = read_manifest(files, path)?;
    verify_state(files, path, manifest, layout)
}

fn missing_or(file: &'static str) -> impl Fn(FileError) -> Defect {
    move |error| if error.is_not_found() { Defect::Missing { file } } else { Defect::Unreadable(error) }
}

fn read_manifest(files: &dyn Files, path: &Path) -> Result<(Manifest, Layout), Defect> {
    let bytes =
        files.read(&path.join(MANIFEST_FILE), MANIFEST_LIMIT_BYTES).map_err(missing_or(MANIFEST_FILE))?;
    let (manifest, layout) = Manifest::from_bytes(&bytes)?;
    let step_in_name = path.file_name().and_then(|name| step_of(&name.to_string_lossy()));
    match step_in_name {
        Some(step) if step != manifest.header.step => Err(Defect::OtherStep { found: manifest.header.step }),
        // A folder that was copied elsewhere under a name of its own is as good.
        Some(_) | None => Ok((manifest, layout)),
    }
}

/// Length first, then header, then every tensor's hash, through a buffer of bounded size.
fn verify_state(
    files: &dyn Files,
    path: &Path,
    manifest: Manifest,
    layout: Layout,
) -> Result<Loaded, Defect> {
    let state_path = path.join(STATE_FILE);
    if let Some(EntryKind::Folder | EntryKind::Other) =
        files.inspect(&state_path).map_err(Defect::Unreadable)?
    {
        return Err(Defect::Missing { file: STATE_FILE });
    }
    let state = files.open(&state_path).map_err(missing_or(STATE_FILE))?;
    if state.len() != layout.file_bytes {
        return Err(Defect::Length { expected: layout.file_bytes, found: state.len() });
    }
    let mut header = vec![0; layout.header.len()];
    state.read_at(0, &mut header).map_err(Defect::Unreadable)?;
    if let Some(offset) = header.iter().zip(&layout.header).position(|(found, expected)| found != expected) {
        return Err(Defect::Header { offset: offset as u64 });
    }
    let mut buffer = Vec::new();
    for (record, &extent) in manifest.tensors.iter().zip(&layout.extents) {
        let mut hasher = blake3::Hasher::new();
        let (start, bytes) = extent;
        let mut done = 0;
        while done < bytes {
            let count = (bytes - done).min(CHUNK_BYTES);
            buffer.resize(count as usize, 0);
            state.read_at(start + done, &mut buffer).map_err(Defect::Unreadable)?;
            hasher.update(&buffer);
            done += count;
        }
        check_hash(record, extent, &hasher)?;
    }
    let index = manifest.tensors.iter().enumerate().map(|(at, record)| (record.name.clone(), at)).collect();
    Ok(Loaded { path: path.to_owned(), manifest, layout, index, state })
}

fn check_hash(
    record: &TensorRecord,
    (start, bytes): (u64, u64),
    hasher: &blake3::Hasher,
) -> Result<(), Defect> {
    if hasher.finalize().to_hex().as_str() == record.hash {
        return Ok(());
    }
    Err(Defect::Tensor { name: record.name.clone(), start, end: start + bytes })
}

impl Loaded {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of tensors.
    pub fn state_path(&self) -> PathBuf {
        self.path.join(STATE_FILE)
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A tensor's record.
    pub fn record(&self, name: &str) -> Option<&TensorRecord> {
        self.index.get(name).map(|&at| &self.manifest.tensors[at])
    }

    /// Reads a tensor to where it belongs, hashing it once more on the way.
    ///
    /// # Errors
    /// No tensor of that name, another length than `into` has, or bytes that changed since they were verified.
    pub fn read_tensor(&self, name: &str, into: &mut [u8]) -> Result<(), CheckpointError> {
        let wrong = |reason: String| {
            Err(CheckpointError::Tensor { path: self.path.clone(), name: name.to_owned(), reason })
        };
        let Some(&at) = self.index.get(name) else {
            return wrong("is not in this checkpoint".to_owned());
        };
        let (record, extent) = (&self.manifest.tensors[at], self.layout.extents[at]);
        if extent.1 != into.len() as u64 {
            return wrong(format!("has {} bytes, and {} were asked for", extent.1, into.len()));
        }
        let mut hasher = blake3::Hasher::new();
        let mut offset = extent.0;
        for chunk in into.chunks_mut(CHUNK_BYTES as usize) {
            self.state.read_at(offset, chunk)?;
            hasher.update(chunk);
            offset += chunk.len() as u64;
        }
        check_hash(record, extent, &hasher)
            .map_err(|defect| CheckpointError::Damaged { path: self.path.clone(), defect })
    }

    /// Its tensors one after another, each read when it is asked for.
    ///
    /// # Errors
    /// As [`Loaded::read_tensor`], or no memory.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Result<OwnedTensor, CheckpointError>> {
        self.manifest.tensors.iter().zip(&self.layout.extents).map(|(record, &(_, length))| {
            let mut bytes = Vec::new();
            let reserved =
                usize::try_from(length).is_ok_and(|length| bytes.try_reserve_exact(length).is_ok());
            if !reserved {
                let (path, name) = (self.path.clone(), record.name.clone());
                let reason = format!("finds no memory for its {length} bytes");
                return Err(CheckpointError::Tensor { path, name, reason });
            }
            bytes.resize(length as usize, 0);
            self.read_tensor(&record.name, &mut bytes)?;
            let TensorRecord { name, dtype, shape, .. } = record.clone();
            Ok(OwnedTensor { name, dtype, shape, bytes })
        })
    }

    /// The whole of it in memory of its own.
    ///
    /// # Errors
    /// As [`Loaded::read_tensor`], or no memory.
    pub fn read_all(&self) -> Result<OwnedSnapshot, CheckpointError> {
        let tensors = self.tensors().collect::<Result<_, _>>()?;
        Ok(OwnedSnapshot { tensors, header: self.manifest.header.clone() })
    }
}
