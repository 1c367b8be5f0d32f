//! Snapshots and checkpoints: bytes that no device holds. They go through what the guard and the trainer verify them with.

use crate::CampaignError;
use crate::scene::{Named, Scene};
use std::path::Path;
use toprope_guard::inject::{Corruption, Handle};
use toprope_program::DType;
use toprope_program::operator::digest_mix;
use toprope_train::checkpoint::{
    DataCursor, Identity, OwnedSnapshot, OwnedTensor, SnapshotHeader, TensorDtype, newest_intact, write,
};
use toprope_world::World;
use toprope_world::testing::MemoryWorld;

/// The digest that the contract's `digest` gives for these bytes.
pub fn digest(bytes: &[u8], dtype: DType) -> u64 {
    let words: Vec<u32> = match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
        _ => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    };
    words
        .iter()
        .enumerate()
        .fold(0, |sum: u64, (index, bits)| sum.wrapping_add(digest_mix(*bits, index as u64)))
}

/// A recorded state with one value changed.
pub fn changed(scene: &Scene, frozen: usize, value: &str, corruption: &Corruption) -> Vec<Vec<u8>> {
    let mut state = scene.frozen[frozen].state.clone();
    for (named, bytes) in scene.states.iter().zip(&mut state).filter(|(named, _)| named.name == value) {
        let row = named.sizes.last().copied().unwrap_or(1);
        Handle::corrupt_bytes(bytes, named.dtype, row, corruption);
    }
    state
}

/// Whether the digests of a snapshot tell it from the state that it is of.
pub fn snapshot_is_caught(states: &[Named], state: &[Vec<u8>], snapshot: &[Vec<u8>]) -> bool {
    let pairs = states.iter().zip(state.iter().zip(snapshot));
    pairs.filter(|(_, (a, b))| a != b).any(|(named, (a, b))| digest(a, named.dtype) != digest(b, named.dtype))
}

/// Whether a checkpoint of `state` whose file then holds `changed` is refused when it is read.
///
/// # Errors
/// A checkpoint that cannot be written or found in its file at all.
pub fn checkpoint_is_caught(
    states: &[Named],
    state: &[Vec<u8>],
    changed: &[Vec<u8>],
) -> Result<bool, CampaignError> {
    let stored = |dtype: DType| match dtype {
        DType::F32 => TensorDtype::F32,
        DType::Bf16 => TensorDtype::BF16,
        DType::I32 => TensorDtype::I32,
        DType::U32 => TensorDtype::U32,
    };
    let tensors = states.iter().zip(state).map(|(named, bytes)| OwnedTensor {
        name: named.name.clone(),
        dtype: stored(named.dtype),
        shape: named.sizes.iter().map(|size| *size as u64).collect(),
        bytes: bytes.clone(),
    });
    let identity = Identity {
        model_name: "campaign".into(),
        recipe_hash: "campaign".into(),
        program_hash: "campaign".into(),
        tokenizer_hash: "campaign".into(),
        corpus_hash: "campaign".into(),
    };
    let header = SnapshotHeader {
        run_id: "campaign".into(),
        step: 1,
        data_cursor: DataCursor { seed: 1, next_step: 1 },
        identity: identity.clone(),
        device: "cpu".into(),
        level: "any".into(),
    };
    let world = MemoryWorld::default();
    let folder = Path::new("/checkpoints");
    world.files().create_folder(folder)?;
    let snapshot = OwnedSnapshot { header, tensors: tensors.collect() };
    let error =
        |error: toprope_train::checkpoint::CheckpointError| CampaignError::Checkpoint(error.to_string());
    write(&world, folder, &snapshot.view()).map_err(error)?;
    let pairs: Vec<_> = state.iter().zip(changed).filter(|(a, b)| a != b).collect();
    let mut found = false;
    let is_file = |path: &Path| world.files().read(path, u64::MAX).is_ok();
    for path in world.memory_files().paths().into_iter().filter(|path| is_file(path)) {
        world.memory_files().corrupt(&path, |file| {
            for (before, after) in &pairs {
                if let Some(at) = file.windows(before.len()).position(|window| window == before.as_slice()) {
                    file[at..at + after.len()].copy_from_slice(after);
                    found = true;
                }
            }
        })?;
    }
    if !found && !pairs.is_empty() {
        return Err(CampaignError::Checkpoint("the tensor's bytes are not in its file".into()));
    }
    let (loaded, _) = newest_intact(&world, folder, &identity).map_err(error)?;
    // A file may be opened by its manifest and refused when its tensors are read.
    Ok(loaded.is_none_or(|loaded| loaded.read_all().is_err()))
}
