use std::path::{Path, PathBuf};
use toprope_train::checkpoint::{
    DataCursor, Identity, Loaded, OwnedSnapshot, OwnedTensor, Skipped, SnapshotHeader, TensorDtype,
    checkpoint_name, newest_intact, write,
};
use toprope_world::World;
use toprope_world::testing::MemoryWorld;

pub const FOLDER: &str = "/run/checkpoints";

pub fn identity() -> Identity {
    Identity {
        model_name: "tiny \"quoted\" – モデル".to_owned(),
        recipe_hash: "recipe".to_owned(),
        program_hash: "program".to_owned(),
        tokenizer_hash: "tokenizer".to_owned(),
        corpus_hash: "corpus".to_owned(),
    }
}

/// A state whose every byte depends on the step; all dtypes, a scalar, an empty tensor, names that need escaping.
pub fn snapshot(step: u64) -> OwnedSnapshot {
    let mut word = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut tensor = |name: &str, dtype: TensorDtype, shape: &[u64]| {
        let count = shape.iter().product::<u64>() * dtype.bytes();
        let bytes = (0..count).map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            (word >> 32) as u8
        });
        OwnedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.collect() }
    };
    let tensors = vec![
        tensor("layers.0.norm", TensorDtype::F32, &[5]),
        tensor("head", TensorDtype::BF16, &[7, 13]),
        tensor("embedding", TensorDtype::F32, &[13, 7]),
        tensor("odd \"name\" \u{1f9d7}\n", TensorDtype::BF16, &[3]),
        tensor("tokens_seen", TensorDtype::U32, &[]),
        tensor("rows", TensorDtype::I32, &[2, 2, 2]),
        tensor("empty", TensorDtype::F32, &[0, 4]),
    ];
    let header = SnapshotHeader {
        run_id: "run-1".to_owned(),
        step,
        data_cursor: DataCursor { seed: u64::MAX - 3, next_step: step },
        identity: identity(),
        device: "cpu".to_owned(),
        level: "avx2".to_owned(),
    };
    OwnedSnapshot { header, tensors }
}

/// The same state in the file's order, as [`Loaded::read_all`] gives it.
pub fn sorted(mut snapshot: OwnedSnapshot) -> OwnedSnapshot {
    snapshot.tensors.sort_by_key(|tensor| (std::cmp::Reverse(tensor.dtype.bytes()), tensor.name.clone()));
    snapshot
}

pub fn at_step(step: u64) -> PathBuf {
    Path::new(FOLDER).join(checkpoint_name(step))
}

/// A world with a folder of checkpoints and these in it.
pub fn world_with(steps: &[u64]) -> MemoryWorld {
    let world = MemoryWorld::default();
    for folder in ["/run", FOLDER] {
        world.files().create_folder(Path::new(folder)).unwrap();
    }
    for folder in ["/", "/run"] {
        world.files().sync_folder(Path::new(folder)).unwrap();
    }
    for &step in steps {
        write(&world, Path::new(FOLDER), &snapshot(step).view()).unwrap();
    }
    world
}

pub fn newest(world: &dyn World) -> (Option<Loaded>, Vec<Skipped>) {
    newest_intact(world, Path::new(FOLDER), &identity()).unwrap()
}

/// The step of the newest intact checkpoint, once its every byte was compared with what was written.
pub fn newest_step(world: &dyn World) -> Option<u64> {
    let (loaded, _) = newest(world);
    loaded.map(|loaded| {
        let step = loaded.manifest().header.step;
        assert_eq!(loaded.path(), at_step(step));
        assert_eq!(loaded.read_all().unwrap(), sorted(snapshot(step)));
        step
    })
}

pub fn read(world: &MemoryWorld, path: &Path) -> Vec<u8> {
    world.files().read(path, u64::MAX).unwrap()
}
