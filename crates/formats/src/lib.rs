//! Files of published models: folders of safetensors and GGUF. Headers are checked in full before memory is asked for,
//! and tensors are read by part, each converted to f32.
//!
//! This crate knows no model: names, shapes and metadata are handed on as they are.

mod error; // what can be wrong with a file
mod folder; // a folder of safetensors, sharded or not
mod gguf; // one file with metadata and quantised tensors
mod safetensors; // one file's header, and writing one
mod stored; // how numbers are stored
mod tensors; // records of tensors, and reading their elements

pub use error::FormatError;
pub use folder::{Folder, INDEX_FILE, SINGLE_FILE};
pub use gguf::{Gguf, Value};
pub use safetensors::{SafetensorsWriter, read_file};
pub use stored::Stored;
pub use tensors::{TensorRecord, Tensors};
