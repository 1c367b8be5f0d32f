//! Names of folders and files, and where each tensor lies in `state.safetensors`.

use super::manifest::TensorRecord;
use super::snapshot::{TensorDtype, byte_count};
use serde_json::{Map, Value, json};

/// The folder of checkpoints within a run's folder.
pub const CHECKPOINTS_FOLDER: &str = "checkpoints";
/// The file of tensors.
pub(super) const STATE_FILE: &str = "state.safetensors";
/// The file that says what they are.
pub(super) const MANIFEST_FILE: &str = "manifest.json";
/// How a folder's name begins while it is written.
pub(super) const ASIDE_PREFIX: &str = ".tmp-";
/// How a folder's name begins while it is removed.
pub(super) const DOOMED_PREFIX: &str = ".delete-";

/// The folder of the checkpoint at a step: `step-00000123`.
pub fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step that a folder's name says, where it is a checkpoint's.
pub(super) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

/// The order of tensors in the file: wider elements first, so that each begins at a multiple of its element's size;
/// then by name.
pub(super) fn order_key(dtype: TensorDtype, name: &str) -> (std::cmp::Reverse<u64>, &str) {
    (std::cmp::Reverse(dtype.bytes()), name)
}

/// The layout of a state file.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// All before the first tensor: the header's length (u64, little-endian) and the header, padded with spaces to a
    /// multiple of 8 bytes.
    pub header: Vec<u8>,
    /// For each tensor, where it begins and how long it is, in bytes from the start of the file.
    pub extents: Vec<(u64, u64)>,
    /// The file's length.
    pub file_bytes: u64,
}

/// Where tensors, sorted by [`order_key`], lie; `None` where their bytes exceed what 64 bits can count.
///
/// The format is that of <https://github.com/huggingface/safetensors#format>.
pub(super) fn layout(records: &[TensorRecord], step: u64) -> Option<Layout> {
    let mut entries = Map::new();
    entries
        .insert("__metadata__".to_owned(), json!({"format": "toprope checkpoint", "step": step.to_string()}));
    let mut data_bytes: u64 = 0;
    let mut extents = Vec::with_capacity(records.len());
    for record in records {
        let bytes = byte_count(record.dtype, &record.shape)?;
        let end = data_bytes.checked_add(bytes)?;
        entries.insert(
            record.name.clone(),
            json!({"dtype": record.dtype.name(), "shape": record.shape, "data_offsets": [data_bytes, end]}),
        );
        extents.push((data_bytes, bytes));
        data_bytes = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    let start = header.len() as u64;
    for (offset, _) in &mut extents {
        *offset = offset.checked_add(start)?;
    }
    Some(Layout { header, extents, file_bytes: start.checked_add(data_bytes)? })
}
