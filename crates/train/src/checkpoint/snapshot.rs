//! A run's state at a step, as it goes into a checkpoint.

use super::CheckpointError;
use super::manifest::TensorRecord;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The element types of a state's tensors, under their safetensors names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TensorDtype {
    /// IEEE 754 binary32.
    F32,
    /// The upper half of a binary32.
    BF16,
    /// Two's complement, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
}

impl TensorDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::BF16 => 2,
        }
    }

    /// Its name in safetensors and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
        }
    }
}

impl fmt::Display for TensorDtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What must be the same for a run to go on from a checkpoint. Hashes are whatever text the caller makes of them; the
/// recipe's should leave out what may change on resuming (number of steps, threads, device).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The model's name in the recipe.
    pub model_name: String,
    /// Hash of the recipe as resolved.
    pub recipe_hash: String,
    /// Hash of the step's program, without checks.
    pub program_hash: String,
    /// Hash of the tokenizer.
    pub tokenizer_hash: String,
    /// Hash of the documents in their order.
    pub corpus_hash: String,
}

impl Identity {
    /// Each field's name with the values here and in `other`, where they differ.
    pub(super) fn difference<'a>(&'a self, other: &'a Self) -> Option<(&'static str, &'a str, &'a str)> {
        [
            ("model", &self.model_name, &other.model_name),
            ("recipe", &self.recipe_hash, &other.recipe_hash),
            ("program", &self.program_hash, &other.program_hash),
            ("tokenizer", &self.tokenizer_hash, &other.tokenizer_hash),
            ("corpus", &self.corpus_hash, &other.corpus_hash),
        ]
        .into_iter()
        .find(|(_, here, there)| here != there)
        .map(|(field, here, there)| (field, here.as_str(), there.as_str()))
    }
}

/// Where the data stands: with the corpus, all that decides the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataCursor {
    /// The seed of the order of sequences.
    pub seed: u64,
    /// The index of the next step's batch.
    pub next_step: u64,
}

/// A snapshot without its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The run that it belongs to.
    pub run_id: String,
    /// Steps that were committed.
    pub step: u64,
    /// Where the data stands.
    pub data_cursor: DataCursor,
    /// What must be the same to go on from it.
    pub identity: Identity,
    /// The device that computed it, as on the command line.
    pub device: String,
    /// The device's dispatch level.
    pub level: String,
}

/// One tensor of the state without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name; each occurs once in a state.
    pub name: String,
    /// Its element type.
    pub dtype: TensorDtype,
    /// Its logical shape, row-major; none for a scalar.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Bytes of its elements, dense; `None` where no machine can hold them.
    pub fn bytes(&self) -> Option<u64> {
        byte_count(self.dtype, &self.shape)
    }

    /// The same with its bytes.
    pub fn view<'a>(&'a self, bytes: &'a [u8]) -> TensorView<'a> {
        TensorView { name: &self.name, dtype: self.dtype, shape: &self.shape, bytes }
    }

    /// Its record in the manifest, with the hash of its bytes.
    pub(super) fn record(&self, hash: blake3::Hash) -> TensorRecord {
        let Self { name, dtype, shape } = self.clone();
        TensorRecord { name, dtype, shape, hash: hash.to_hex().to_string() }
    }
}

/// Checks that each name is one that a checkpoint can hold, and occurs once.
pub(super) fn check_names(tensors: &[TensorSpec]) -> Result<(), CheckpointError> {
    let fail = |name: &str, reason: &str| {
        Err(CheckpointError::Snapshot { name: name.to_owned(), reason: reason.to_owned() })
    };
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return fail(pair[0], "the name occurs twice");
    }
    if let Some(name) = names.iter().find(|name| name.is_empty() || **name == "__metadata__") {
        return fail(name, "a tensor's name is neither empty nor `__metadata__`");
    }
    Ok(())
}

/// One tensor of the state, in memory that belongs to somebody else.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name; each occurs once in a snapshot.
    pub name: &'a str,
    /// Its element type.
    pub dtype: TensorDtype,
    /// Its logical shape, row-major; none for a scalar.
    pub shape: &'a [u64],
    /// Its elements, dense and little-endian.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// The same without its bytes.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.to_owned(), dtype: self.dtype, shape: self.shape.to_vec() }
    }

    /// Checks that it has the bytes that its shape asks for.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        match byte_count(self.dtype, self.shape) {
            Some(bytes) if bytes == self.bytes.len() as u64 => Ok(()),
            _ => Err(CheckpointError::Snapshot {
                name: self.name.to_owned(),
                reason: format!(
                    "{} of shape {:?} is not {} bytes long",
                    self.dtype,
                    self.shape,
                    self.bytes.len()
                ),
            }),
        }
    }
}

/// Bytes of a dense tensor, or `None` where no machine can hold them.
pub(super) fn byte_count(dtype: TensorDtype, shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(dtype.bytes(), |bytes, &size| bytes.checked_mul(size))
}

/// A run's state at a step, borrowed.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// All but the tensors.
    pub header: &'a SnapshotHeader,
    /// The tensors, in any order.
    pub tensors: Vec<TensorView<'a>>,
}

/// One tensor of the state with its own memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedTensor {
    /// Its name; each occurs once in a snapshot.
    pub name: String,
    /// Its element type.
    pub dtype: TensorDtype,
    /// Its logical shape, row-major; none for a scalar.
    pub shape: Vec<u64>,
    /// Its elements, dense and little-endian.
    pub bytes: Vec<u8>,
}

/// A run's state at a step with its own memory, to be written while the run goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSnapshot {
    /// All but the tensors.
    pub header: SnapshotHeader,
    /// The tensors, in any order.
    pub tensors: Vec<OwnedTensor>,
}

impl OwnedSnapshot {
    /// The same, borrowed.
    pub fn view(&self) -> Snapshot<'_> {
        let tensors = self.tensors.iter().map(|tensor| TensorView {
            name: &tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
            bytes: &tensor.bytes,
        });
        Snapshot { header: &self.header, tensors: tensors.collect() }
    }
}

/// The hash of a state: over its logical tensors, sorted by name; neither order nor layout changes it.
///
/// BLAKE3 over `toprope state 1\0` and, for each tensor, the length of its name (u64, little-endian), its name, its
/// dtype's name padded with zero bytes to 8, its rank and sizes (u64, little-endian) and the BLAKE3 hash of its
/// little-endian bytes (32 bytes).
pub fn state_hash(tensors: &[TensorView<'_>]) -> String {
    let records: Vec<_> =
        tensors.iter().map(|tensor| tensor.spec().record(blake3::hash(tensor.bytes))).collect();
    // Hexadecimal of ours always parses.
    hash_of_records(&records).unwrap_or_default()
}

/// [`state_hash`] from the tensors' records; `None` where a record's hash is not one.
pub(super) fn hash_of_records(records: &[TensorRecord]) -> Option<String> {
    let mut sorted: Vec<&TensorRecord> = records.iter().collect();
    sorted.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"toprope state 1\0");
    for record in sorted {
        let mut dtype = [0; 8];
        dtype[..record.dtype.name().len()].copy_from_slice(record.dtype.name().as_bytes());
        hasher.update(&(record.name.len() as u64).to_le_bytes());
        hasher.update(record.name.as_bytes());
        hasher.update(&dtype);
        hasher.update(&(record.shape.len() as u64).to_le_bytes());
        for size in &record.shape {
            hasher.update(&size.to_le_bytes());
        }
        hasher.update(blake3::Hash::from_hex(&record.hash).ok()?.as_bytes());
    }
    Some(hasher.finalize().to_hex().to_string())
}
