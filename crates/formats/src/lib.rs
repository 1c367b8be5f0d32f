//! Files of published models, folders of safetensors and GGUF, and of checkpoints, PyTorch's and Megatron-LM's among them.
//! Headers are checked in full before memory is asked for, and tensors are read by part, each converted to f32.
//!
//! This crate knows no model: names, shapes and metadata are handed on as they are.

mod chunks; // a range of a file, a few megabytes at a time
mod dcp; // checkpoints of torch.distributed
mod error; // what can be wrong with a file
mod folder; // a folder of safetensors, sharded or not
mod gguf; // one file with metadata and quantised tensors
mod index; // which tensor lies in which shard
mod megatron; // checkpoints of Megatron-LM
mod non_finite; // NaN and infinities, counted
mod pickle; // Python's pickles as data, running nothing
mod safetensors; // one file's header, and writing one
mod stored; // how numbers are stored
mod tensors; // records of tensors, and reading their elements
mod torch_file; // what torch.save writes
mod verify; // whether checkpoints are whole
mod zip; // archives as torch.save writes them

pub use error::{FormatError, printable};
pub use folder::{Folder, INDEX_FILE, SINGLE_FILE};
pub use gguf::{Gguf, Value};
pub use non_finite::NonFinite;
pub use safetensors::{SafetensorsWriter, read_file};
pub use stored::Stored;
pub use tensors::{TensorRecord, Tensors};
pub use verify::{
    CheckpointFolder, CheckpointKind, Contents, Found, NonFiniteTensor, find, verify, verify_file,
};
