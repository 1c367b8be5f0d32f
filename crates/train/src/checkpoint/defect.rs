//! What can be wrong with a checkpoint that is found, and how writing or reading one can fail.

use super::manifest::FORMAT_VERSION;
use std::io;
use std::path::PathBuf;
use toprope_world::FileError;

/// Why a checkpoint is not whole.
#[derive(Debug, thiserror::Error)]
pub enum Defect {
    /// A file that belongs to it is not there.
    #[error("{file} is missing")]
    Missing {
        /// `manifest.json` or `state.safetensors`.
        file: &'static str,
    },
    /// The manifest was cut off, changed by a bad disk, or edited.
    #[error("manifest.json does not match its own hash: it was cut off, damaged or edited")]
    ManifestHash,
    /// The manifest says what cannot be.
    #[error("manifest.json: {0}")]
    Manifest(String),
    /// Written in another version of the format.
    #[error(
        "it has format version {found}, and this program reads version {FORMAT_VERSION}; to go on from it, use the \
         Toprope that wrote it (`toprope_version` in its manifest.json)"
    )]
    OtherVersion {
        /// Its version.
        found: u32,
    },
    /// The folder bears another step than the manifest.
    #[error("manifest.json is of step {found}, not of the step in the folder's name")]
    OtherStep {
        /// The manifest's step.
        found: u64,
    },
    /// The state file is shorter or longer than its tensors.
    #[error("state.safetensors has {found} bytes, not {expected}")]
    Length {
        /// What header and tensors make.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The state file's header is not that of the manifest's tensors.
    #[error("state.safetensors: the header differs from manifest.json at byte {offset}")]
    Header {
        /// The first byte that differs.
        offset: u64,
    },
    /// A tensor's bytes changed.
    #[error("state.safetensors: tensor `{name}` (bytes {start} to {end}) does not match its hash")]
    Tensor {
        /// The tensor.
        name: String,
        /// Its first byte in the file.
        start: u64,
        /// The byte after its last.
        end: u64,
    },
    /// It could not be read.
    #[error(transparent)]
    Unreadable(FileError),
}

/// Writing or reading checkpoints failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The snapshot that was to be written is not one; a defect of the program that made it.
    #[error("tensor `{name}` cannot go into a checkpoint: {reason}")]
    Snapshot {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is not enough room, found out before anything was written.
    #[error(
        "the checkpoint of step {step} was not written: it needs {needed_bytes} bytes and {} has {free_bytes} free; \
         free some space there. Older checkpoints stay as they are",
        folder.display()
    )]
    NoSpace {
        /// The snapshot's step.
        step: u64,
        /// The folder of checkpoints.
        folder: PathBuf,
        /// What the checkpoint takes.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// Writing failed; what was written of it was removed.
    #[error("the checkpoint of step {step} was not written: {source}. Older checkpoints stay as they are")]
    Write {
        /// The snapshot's step.
        step: u64,
        /// The operation that failed.
        source: FileError,
    },
    /// An intact checkpoint of that step holds another state.
    #[error(
        "the checkpoint of step {step} was not written: {} is intact and holds another state ({found}, not {state}); \
         move it away, or resume from it",
        path.display()
    )]
    Conflict {
        /// The snapshot's step.
        step: u64,
        /// The checkpoint that is there.
        path: PathBuf,
        /// Its state's hash.
        found: String,
        /// The snapshot's.
        state: String,
    },
    /// The manifest could not be put into words; a defect of this program.
    #[error("manifest.json cannot be written: {0}")]
    Manifest(#[from] serde_json::Error),
    /// The folder of checkpoints could not be read.
    #[error(transparent)]
    Files(#[from] FileError),
    /// A checkpoint belongs to another run.
    #[error(
        "{} is of another {field}: it has `{found}`, this run has `{expected}`; resume with the {field} that the run \
         began with, or choose another --run folder",
        path.display()
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// `model`, `recipe`, `program`, `tokenizer` or `corpus`.
        field: &'static str,
        /// What the checkpoint has.
        found: String,
        /// What this run has.
        expected: String,
    },
    /// A checkpoint was asked for that is not intact.
    #[error("{} is not an intact checkpoint: {defect}", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        defect: Defect,
    },
    /// A tensor was asked for that the checkpoint does not hold in this form.
    #[error("{}: tensor `{name}` {reason}", path.display())]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The thread that writes behind the run could not be started.
    #[error("the checkpoint of step {step} was not written: no thread to write it: {source}")]
    Thread {
        /// The snapshot's step.
        step: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The thread that writes behind the run panicked; a defect of this program.
    #[error("the checkpoint of step {step} was not written: its writer died")]
    WriterDied {
        /// The snapshot's step.
        step: u64,
    },
}
