//! What can be wrong with a file.

use std::path::PathBuf;
use toprope_world::FileError;

/// Why a file is refused. Each message names the file, the place in it and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system could not read or write it.
    #[error(transparent)]
    File(#[from] FileError),
    /// It ends before something that it announces.
    #[error(
        "{}: {place} needs {needed} bytes and the file has {there}\nhint: the file was cut off or is no such file; get it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is not whole.
        place: String,
        /// Bytes from the file's start to the end of what is announced.
        needed: u128,
        /// The file's length.
        there: u64,
    },
    /// It is not what its name says.
    #[error("{}: {place}: {reason}\nhint: the file is damaged or of another format; get it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// Two tensors claim the same bytes.
    #[error(
        "{}: tensors `{first}` and `{second}` overlap\nhint: the header lies about its offsets; get the file again",
        path.display()
    )]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The one that begins first.
        first: String,
        /// The one that begins before the first ends.
        second: String,
    },
    /// Two files have a tensor of one name.
    #[error("{}: tensor `{name}` is also in {}\nhint: remove the shard that is not of this model", path.display(), other.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The other file.
        other: PathBuf,
    },
    /// An index names a file that is not there.
    #[error("{}: the index names the shard {shard}, which is not there\nhint: get the missing file", index.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The file's name.
        shard: String,
    },
    /// A folder without weights.
    #[error(
        "{}: there is no model here: neither {} nor {}\nhint: name a folder as published, or a .gguf file",
        path.display(),
        crate::INDEX_FILE,
        crate::SINGLE_FILE
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A tensor is not there.
    #[error("{}: there is no tensor `{name}`", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is stored in a way that cannot be read.
    #[error("{}: tensor `{name}` is stored as {stored}, which is not supported\nhint: supported are {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How it is stored.
        stored: String,
        /// What would be read.
        supported: String,
    },
    /// A pickle asks for what no checkpoint needs.
    #[error(
        "{}: {place}: it asks for {what}, which is not among what checkpoints of PyTorch need; nothing was run\nhint: a \
         pickle can run anything when it is loaded; load this one only where you trust its maker",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Where.
        place: String,
        /// The class, function or opcode.
        what: String,
    },
    /// A member of an archive changed.
    #[error(
        "{}: `{member}` does not match its CRC32\nhint: the file is damaged; get it again (or it was saved under \
         torch.serialization.set_crc32_options(False))",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The member.
        member: String,
    },
    /// A file or folder that belongs to a checkpoint is not there.
    #[error("{}: {what} is missing\nhint: {hint}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// What is not there.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A folder without any checkpoint that is known.
    #[error(
        "{}: there is no checkpoint here\nhint: name the folder of a Hugging Face, PyTorch DCP, Megatron or Toprope \
         checkpoint, or a folder of several",
        path.display()
    )]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// There is no memory for a tensor.
    #[error("{}: no memory for the {elements} elements of `{name}`", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its elements.
        elements: usize,
    },
}
