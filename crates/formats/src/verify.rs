//! Whether checkpoints are whole: every file that belongs to one is there, every header, sum and shape in it holds, and every
//! number is one.

use crate::dcp::{self, ITEMS_SUFFIX, METADATA_FILE};
use crate::error::FormatError;
use crate::folder::{Folder, INDEX_FILE, SINGLE_FILE};
use crate::index::shards;
use crate::megatron::{self, COMMON_FILE, LATEST_FILE, RANK_PREFIX};
use crate::non_finite::NonFinite;
use crate::safetensors::read_file;
use crate::tensors::{TensorRecord, Tensors};
use crate::zip::Part;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use toprope_world::{EntryKind, Files};

/// Weights as `torch.save` writes them, and the index of several.
const PICKLED_FILE: &str = "pytorch_model.bin";
const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";
/// The weights of an adapter.
const ADAPTER_FILE: &str = "adapter_model.safetensors";
/// The longest file that names an iteration.
const LATEST_BYTES_MAX: u64 = 1 << 10;

/// Whose form a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckpointKind {
    /// Hugging Face's: safetensors, or what `torch.save` writes.
    HuggingFace,
    /// `torch.distributed.checkpoint`'s.
    Dcp,
    /// Megatron-LM's: a folder for each rank.
    Megatron,
    /// Megatron-LM's newer form: `torch.distributed`'s beside `common.pt`.
    MegatronDcp,
}

impl fmt::Display for CheckpointKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            CheckpointKind::HuggingFace => "Hugging Face",
            CheckpointKind::Dcp => "PyTorch DCP",
            CheckpointKind::Megatron => "Megatron",
            CheckpointKind::MegatronDcp => "Megatron over PyTorch DCP",
        })
    }
}

/// A checkpoint that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFolder {
    /// Its folder.
    pub path: PathBuf,
    /// Whose form it has.
    pub kind: CheckpointKind,
    /// The last number in the folder's name: step or iteration.
    pub number: Option<u64>,
}

/// What is in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Newest first: by the number in the name, then by the name.
    pub checkpoints: Vec<CheckpointFolder>,
    /// What `latest_checkpointed_iteration.txt` says.
    pub latest: Option<String>,
}

/// What a whole checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Files with tensors.
    pub files: usize,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors with numbers that are none.
    pub non_finite: Vec<NonFiniteTensor>,
}

/// A tensor with numbers that are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFiniteTensor {
    /// Its name.
    pub tensor: String,
    /// The file that it lies in, or the first one of them.
    pub file: PathBuf,
    /// How many are none.
    pub count: NonFinite,
    /// Its elements.
    pub elements: u64,
}

/// Finds the checkpoints in a folder: itself, or those right below it.
///
/// # Errors
/// There is none, or the folder cannot be read.
pub fn find(files: &dyn Files, folder: &Path) -> Result<Found, FormatError> {
    let named = |path: PathBuf, kind| {
        let number = path.file_name().and_then(|name| parted(&name.to_string_lossy()).1);
        CheckpointFolder { path, kind, number }
    };
    if let Some(kind) = kind(files, folder)? {
        return Ok(Found { checkpoints: vec![named(folder.to_owned(), kind)], latest: None });
    }
    let (mut checkpoints, mut others) = (Vec::new(), Vec::new());
    for entry in files.list(folder)? {
        if entry.kind != EntryKind::Folder || entry.name.starts_with('.') {
            continue;
        }
        let path = folder.join(&entry.name);
        // A folder that may not be read, or that is being removed, says nothing of those beside it.
        match kind(files, &path) {
            Ok(Some(kind)) => checkpoints.push(named(path, kind)),
            Ok(None) | Err(_) => others.push((path, parted(&entry.name).0)),
        }
    }
    // A save that ended at once leaves an empty folder: it is a checkpoint by the names beside it.
    let like: BTreeMap<String, CheckpointKind> = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.number.is_some())
        .filter_map(|checkpoint| {
            Some((parted(&checkpoint.path.file_name()?.to_string_lossy()).0, checkpoint.kind))
        })
        .collect();
    for (path, words) in others {
        if let Some(kind) = like.get(&words) {
            checkpoints.push(named(path, *kind));
        }
    }
    if checkpoints.is_empty() {
        return Err(FormatError::NoCheckpoint { path: folder.to_owned() });
    }
    checkpoints.sort_by(|a, b| (b.number, &b.path).cmp(&(a.number, &a.path)));
    let latest = folder.join(LATEST_FILE);
    let latest = match files.is_file(&latest)? {
        true => Some(String::from_utf8_lossy(&files.read(&latest, LATEST_BYTES_MAX)?).trim().to_string()),
        false => None,
    };
    Ok(Found { checkpoints, latest })
}

/// A name without its last number, and the number.
fn parted(name: &str) -> (String, Option<u64>) {
    let end = name.rfind(|c: char| c.is_ascii_digit()).map_or(0, |at| at + 1);
    let begin = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + name[at..].chars().next().map_or(1, char::len_utf8));
    (format!("{}#{}", &name[..begin], &name[end..]), name[begin..end].parse().ok())
}

/// Whose form a folder has, where it is a checkpoint.
fn kind(files: &dyn Files, folder: &Path) -> Result<Option<CheckpointKind>, FormatError> {
    let entries = match files.inspect(folder)? {
        Some(EntryKind::Folder) => files.list(folder)?,
        _ => return Err(FormatError::NoCheckpoint { path: folder.to_owned() }),
    };
    let is_file = |wanted: &dyn Fn(&str) -> bool| {
        entries.iter().any(|entry| matches!(entry.kind, EntryKind::File { .. }) && wanted(&entry.name))
    };
    let is_rank = |name: &str| name.starts_with(RANK_PREFIX);
    if entries.iter().any(|entry| entry.kind == EntryKind::Folder && is_rank(&entry.name)) {
        return Ok(Some(CheckpointKind::Megatron));
    }
    if is_file(&|name| name == METADATA_FILE || name.ends_with(ITEMS_SUFFIX)) {
        let megatron = is_file(&|name| name == COMMON_FILE);
        return Ok(Some(if megatron { CheckpointKind::MegatronDcp } else { CheckpointKind::Dcp }));
    }
    let published = [INDEX_FILE, SINGLE_FILE, PICKLED_FILE, PICKLED_INDEX, ADAPTER_FILE, "config.json"];
    Ok(is_file(&|name| published.contains(&name)).then_some(CheckpointKind::HuggingFace))
}

/// Reads every byte of a checkpoint.
///
/// # Errors
/// A file is missing, cut off or damaged, contradicts another, or asks for what no checkpoint needs.
pub fn verify(files: &dyn Files, checkpoint: &CheckpointFolder) -> Result<Contents, FormatError> {
    let folder = checkpoint.path.as_path();
    let mut contents = Contents::default();
    match checkpoint.kind {
        CheckpointKind::HuggingFace => hugging_face(files, folder, &mut contents)?,
        CheckpointKind::Dcp => distributed(files, folder, &mut contents)?,
        CheckpointKind::MegatronDcp => {
            distributed(files, folder, &mut contents)?;
            pickled(files, &folder.join(COMMON_FILE), COMMON_FILE, &mut contents)?;
        }
        CheckpointKind::Megatron => ranks(files, folder, &mut contents)?,
    }
    Ok(contents)
}

/// Reads every byte of one safetensors file.
///
/// # Errors
/// It is cut off or damaged.
pub fn verify_file(files: &dyn Files, path: &Path) -> Result<Contents, FormatError> {
    let mut contents = Contents::default();
    contents.count(&read_file(files, path)?, |name| name.to_string())?;
    Ok(contents)
}

fn hugging_face(files: &dyn Files, folder: &Path, contents: &mut Contents) -> Result<(), FormatError> {
    let is_file = |name: &str| files.is_file(&folder.join(name));
    if is_file(INDEX_FILE)? || is_file(SINGLE_FILE)? {
        let tensors = Folder::open(files, folder)?.tensors;
        return contents.count(&tensors, |name| name.to_string());
    }
    if is_file(ADAPTER_FILE)? {
        *contents = verify_file(files, &folder.join(ADAPTER_FILE))?;
        return Ok(());
    }
    if !is_file(PICKLED_INDEX)? {
        if !is_file(PICKLED_FILE)? {
            return Err(FormatError::NoWeights { path: folder.to_owned() });
        }
        pickled(files, &folder.join(PICKLED_FILE), "", contents)?;
        return Ok(());
    }
    for shard in shards(files, &folder.join(PICKLED_INDEX))? {
        let names = pickled(files, &shard.path, "", contents)?;
        shard.check(|tensor| names.contains(tensor))?;
    }
    Ok(())
}

/// Only one file is open at a time, and each is counted right behind its check.
fn distributed(files: &dyn Files, folder: &Path, contents: &mut Contents) -> Result<(), FormatError> {
    let mut wholes = Wholes::default();
    contents.files += dcp::read(files, folder, |part, tensor, record| {
        wholes.add(tensor, record, record.non_finite(part.reader)?, part.path);
        Ok(())
    })?;
    contents.take(wholes);
    Ok(())
}

fn ranks(files: &dyn Files, folder: &Path, contents: &mut Contents) -> Result<(), FormatError> {
    let ranks = megatron::ranks(files, folder)?;
    let mut compared = false;
    for name in &ranks.files {
        let path = folder.join(name);
        let reader = files.open(&path)?;
        let part = Part { path: &path, reader: reader.as_ref(), start: 0, length: reader.len() };
        let file = megatron::rank_file(part)?;
        compared |= ranks.check(folder, name, &file.pickle)?;
        let mut tensors = Tensors::new(&path);
        tensors.add(&path, reader, file.tensors)?;
        contents.count(&tensors, |tensor| tensor.to_string())?;
    }
    if !compared {
        ranks.check_optimizers(folder)?;
    }
    Ok(())
}

/// One file that `torch.save` wrote; gives its tensors' names.
fn pickled(
    files: &dyn Files,
    path: &Path,
    within: &str,
    contents: &mut Contents,
) -> Result<BTreeSet<String>, FormatError> {
    let reader = files.open(path)?;
    let part = Part { path, reader: reader.as_ref(), start: 0, length: reader.len() };
    let file = megatron::rank_file(part)?;
    let names = file.tensors.keys().cloned().collect();
    let mut tensors = Tensors::new(path);
    tensors.add(path, reader, file.tensors)?;
    contents.count(&tensors, |tensor| match within {
        "" => tensor.to_string(),
        within => format!("{within}: {tensor}"),
    })?;
    Ok(names)
}

/// Tensors by name, each the sum of its parts.
#[derive(Default)]
struct Wholes {
    by_name: BTreeMap<String, Whole>,
    bytes: u64,
}

#[derive(Default)]
struct Whole {
    elements: u64,
    count: NonFinite,
    /// The first file with a number that is none.
    file: Option<PathBuf>,
}

impl Wholes {
    /// Adds a part of a tensor, or all of it.
    fn add(&mut self, tensor: &str, part: &TensorRecord, count: NonFinite, file: &Path) {
        self.bytes = self.bytes.saturating_add(part.bytes);
        let whole = match self.by_name.get_mut(tensor) {
            Some(whole) => whole,
            None => self.by_name.entry(tensor.to_string()).or_default(),
        };
        whole.elements = whole.elements.saturating_add(part.elements() as u64);
        whole.count.add(count);
        if count.any() && whole.file.is_none() {
            whole.file = Some(file.to_owned());
        }
    }
}

impl Contents {
    /// Adds the tensors of files, each under the name that it is told by.
    fn count(&mut self, tensors: &Tensors, named: impl Fn(&str) -> String) -> Result<(), FormatError> {
        let mut wholes = Wholes::default();
        let mut files = BTreeSet::new();
        // A tensor may stand there under many names; it is read once.
        let mut counted = BTreeMap::new();
        for (name, record) in tensors.records() {
            let file = tensors.file(name);
            files.insert(file);
            let place = (file, record.offset, record.bytes, &record.stored);
            let count = match counted.get(&place) {
                Some(count) => *count,
                None => tensors.non_finite(name)?,
            };
            counted.insert(place, count);
            wholes.add(&named(name), record, count, file);
        }
        self.files += files.len();
        self.take(wholes);
        Ok(())
    }

    /// Adds tensors that were counted.
    fn take(&mut self, wholes: Wholes) {
        self.bytes = self.bytes.saturating_add(wholes.bytes);
        self.tensors += wholes.by_name.len();
        for (tensor, whole) in wholes.by_name {
            if let Some(file) = whole.file {
                let (count, elements) = (whole.count, whole.elements);
                self.non_finite.push(NonFiniteTensor { tensor, file, count, elements });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parted;

    #[test]
    fn the_last_number_of_a_name_is_its_step() {
        for (name, words, number) in [
            ("iter_0000300", "iter_#", Some(300)),
            ("checkpoint-500", "checkpoint-#", Some(500)),
            ("epoch=1-step=20.ckpt", "epoch=1-step=#.ckpt", Some(20)),
            ("20", "#", Some(20)),
            ("last", "#last", None),
            ("é7", "é#", Some(7)),
            ("99999999999999999999999", "#", None),
        ] {
            assert_eq!(parted(name), (words.to_string(), number), "{name}");
        }
    }
}
