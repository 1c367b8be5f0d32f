use crate::support::{FOLDER, at_step, identity, newest, read, snapshot, sorted, world_with};
use std::path::Path;
use toprope_train::checkpoint::{
    CheckpointError, OwnedSnapshot, OwnedTensor, TensorDtype, newest_intact, state_hash, write,
};
use toprope_world::{RealWorld, World};

fn hash(snapshot: &OwnedSnapshot) -> String {
    state_hash(&snapshot.view().tensors)
}

#[test]
fn what_is_written_is_what_is_read() {
    let world = world_with(&[20]);
    let (loaded, skipped) = newest(&world);
    let loaded = loaded.unwrap();
    assert!(skipped.is_empty());
    assert_eq!(loaded.read_all().unwrap(), sorted(snapshot(20)));
    assert_eq!(loaded.manifest().header, snapshot(20).header);
    assert_eq!(loaded.manifest().state_hash, hash(&snapshot(20)));
    assert_eq!(loaded.manifest().created, "2026-01-01T00:00:00.000Z");
    let record = loaded.record("head").unwrap();
    assert_eq!((record.dtype, record.shape.as_slice()), (TensorDtype::BF16, &[7, 13][..]));
    assert!(loaded.record("none").is_none());
}

#[test]
fn checkpoints_round_trip_through_this_machine_s_files() {
    let folder = tempfile::tempdir().unwrap();
    let world = RealWorld::new();
    for step in [3, 4] {
        let mut large = snapshot(step);
        let bytes = (0..9_000_004_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        large.tensors.push(OwnedTensor {
            name: "large".to_owned(),
            dtype: TensorDtype::F32,
            shape: vec![2_250_001],
            bytes,
        });
        let written = write(&world, folder.path(), &large.view()).unwrap();
        assert_eq!(written.state_hash, hash(&large));
        let (loaded, skipped) = newest_intact(&world, folder.path(), &identity()).unwrap();
        assert!(skipped.is_empty());
        assert_eq!(loaded.unwrap().read_all().unwrap(), sorted(large));
    }
    let names: Vec<_> =
        world.files().list(folder.path()).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["step-00000003", "step-00000004"]);
}

#[test]
fn the_safetensors_crate_reads_the_state_file() {
    let bytes = read(&world_with(&[20]), &at_step(20).join("state.safetensors"));
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), snapshot(20).tensors.len());
    for tensor in snapshot(20).tensors {
        let found = tensors.tensor(&tensor.name).unwrap();
        assert_eq!(found.dtype().to_string(), tensor.dtype.name());
        assert_eq!(found.shape().iter().map(|&size| size as u64).collect::<Vec<_>>(), tensor.shape);
        assert_eq!(found.data(), tensor.bytes);
        let offset = found.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert!(offset.is_multiple_of(tensor.dtype.bytes() as usize), "{} at {offset}", tensor.name);
    }
}

#[test]
fn the_manifest_is_json_that_people_can_read() {
    let text = String::from_utf8(read(&world_with(&[20]), &at_step(20).join("manifest.json"))).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["format_version"], 1);
    assert_eq!(value["step"], 20);
    assert_eq!(value["data_cursor"]["seed"], u64::MAX - 3);
    assert_eq!(value["identity"]["model_name"], identity().model_name);
    assert_eq!(value["tensors"].as_array().unwrap().len(), 7);
    assert!(
        text.lines()
            .any(|line| line.starts_with("    {\"name\":\"rows\",\"dtype\":\"I32\",\"shape\":[2,2,2],"))
    );
}

#[test]
fn the_state_s_hash_is_over_logical_tensors() {
    let state = snapshot(20);
    // Of version 1 of the definition: a change of this value makes every older run's hashes incomparable.
    assert_eq!(hash(&state), "a8aea68fd2ef2da60d0b38cb88c772e63893779f7996e3735e169d5eddf2c193");
    let mut reversed = state.clone();
    reversed.tensors.reverse();
    assert_eq!(hash(&reversed), hash(&state));
    let changes: [fn(&mut OwnedSnapshot); 6] = [
        |state| state.tensors[1].bytes[3] ^= 1,
        |state| state.tensors[1].name.push('x'),
        |state| state.tensors[1].shape.reverse(),
        |state| state.tensors[5].dtype = TensorDtype::U32,
        |state| drop(state.tensors.pop()),
        |state| {
            let taken = std::mem::take(&mut state.tensors[0].name);
            state.tensors[0].name = std::mem::replace(&mut state.tensors[2].name, taken);
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut other = state.clone();
        change(&mut other);
        assert_ne!(hash(&other), hash(&state), "change {number}");
    }
    assert_eq!(hash(&OwnedSnapshot { tensors: Vec::new(), ..state.clone() }).len(), 64);
}

#[test]
fn a_state_that_is_none_is_refused() {
    let world = world_with(&[]);
    let changes: [fn(&mut OwnedSnapshot); 6] = [
        |state| state.tensors[1].name.clone_from(&"embedding".to_owned()),
        |state| state.tensors[1].name.clear(),
        |state| state.tensors[1].name = "__metadata__".to_owned(),
        |state| state.tensors[1].bytes.truncate(181),
        |state| state.tensors[1].shape.push(2),
        |state| state.tensors[1].shape = vec![u64::MAX, u64::MAX],
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut state = snapshot(20);
        change(&mut state);
        let error = write(&world, Path::new(FOLDER), &state.view()).unwrap_err();
        assert!(matches!(error, CheckpointError::Snapshot { .. }), "change {number}: {error}");
    }
    assert!(newest(&world).0.is_none());
}
