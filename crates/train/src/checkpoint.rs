//! Durable checkpoints: written aside, made durable, renamed, kept by a policy, and verified to the last bit on load.
//!
//! A checkpoint is a folder `step-00000123` with two files:
//!
//! * `state.safetensors`: every tensor of the run's state under its name, little-endian, in the safetensors format, so
//!   that other programs read it as it is;
//! * `manifest.json`: step, data cursor, what the run was (model, recipe, program, tokenizer, corpus), where it ran, and
//!   for each tensor dtype, shape and BLAKE3 hash; its last line is the hash of all before it.
//!
//! It is written as `.tmp-step-00000123`, every file and the folder made durable, then renamed, and then the parent
//! folder made durable: a process that is killed or a machine that stops leaves the older checkpoint or the new one,
//! never half of one. The state's hash is over the logical tensors, never over a layout.

mod background; // writes behind the next steps
mod defect; // what can be wrong with a checkpoint that is found, and errors of writing and reading
mod keep; // which are kept, and how the others go
mod layout; // names of folders and files, order and offsets of tensors, the safetensors header
mod manifest; // manifest.json
mod read; // the newest intact one
mod snapshot; // what is written: tensors and the run's identity
mod write; // writing one

pub use background::{BackgroundWriter, Outcome};
pub use defect::{CheckpointError, Defect};
pub use keep::{KeepPolicy, Kept};
pub use layout::{CHECKPOINTS_FOLDER, checkpoint_name};
pub use manifest::{FORMAT_VERSION, Manifest, TensorRecord};
pub use read::{
    Loaded, Skipped, is_checkpoint, newest_first, newest_intact, newest_intact_of_any, newest_intact_until,
    open,
};
pub use snapshot::{
    DataCursor, Identity, OwnedSnapshot, OwnedTensor, Snapshot, SnapshotHeader, TensorDtype, TensorSpec,
    TensorView, state_hash,
};
pub use write::{ReadBytes, Written, hash_from, write, write_from};
