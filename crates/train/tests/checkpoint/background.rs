use crate::support::{FOLDER, at_step, newest_step, snapshot, world_with};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toprope_train::checkpoint::{
    BackgroundWriter, CheckpointError, KeepPolicy, OwnedSnapshot, TensorSpec, TensorView, checkpoint_name,
    hash_from,
};
use toprope_world::World;
use toprope_world::testing::{Faults, MemoryWorld};

fn writer(world: &Arc<MemoryWorld>, inline: bool) -> BackgroundWriter {
    let shared: Arc<dyn World> = Arc::clone(world) as Arc<dyn World>;
    if inline {
        BackgroundWriter::inline(shared, PathBuf::from(FOLDER), KeepPolicy::default())
    } else {
        BackgroundWriter::new(shared, PathBuf::from(FOLDER), KeepPolicy::default())
    }
}

#[test]
fn each_outcome_comes_out_once_and_the_policy_is_kept() {
    for inline in [false, true] {
        let world = Arc::new(world_with(&[]));
        let mut writer = writer(&world, inline);
        assert!(writer.poll().is_none() && writer.finish().is_none());
        assert!(writer.submit(snapshot(10)).is_none());
        for step in [20, 30, 40] {
            let (written, kept) = writer.submit(snapshot(step)).unwrap().unwrap();
            assert_eq!((written.step, written.path), (step - 10, at_step(step - 10)));
            assert!(kept.error.is_none());
        }
        let (written, kept) = writer.finish().unwrap().unwrap();
        assert_eq!((written.step, kept.removed), (40, vec![at_step(20)]));
        assert!(writer.poll().is_none() && writer.finish().is_none() && !writer.is_busy());
        assert_eq!(newest_step(&*world), Some(40));
    }
}

/// A state that is read where it lies, and what was asked for at once.
fn in_parts<'a>(
    state: &'a OwnedSnapshot,
    largest: &'a mut usize,
) -> impl FnMut(usize, u64, &mut [u8]) -> Result<(), CheckpointError> + 'a {
    |tensor, offset, into| {
        *largest = (*largest).max(into.len());
        into.copy_from_slice(&state.tensors[tensor].bytes[offset as usize..][..into.len()]);
        Ok(())
    }
}

fn specs(state: &OwnedSnapshot) -> Vec<TensorSpec> {
    state.view().tensors.iter().map(TensorView::spec).collect()
}

#[test]
fn a_state_that_is_read_in_parts_gives_the_same_files_as_its_copy() {
    let (copied, read) = (Arc::new(world_with(&[])), Arc::new(world_with(&[])));
    let mut large = snapshot(10);
    // More than one part, and not a whole number of them.
    large.tensors[0].shape = vec![3, 700_001];
    large.tensors[0].bytes = (0..3 * 700_001 * large.tensors[0].dtype.bytes()).map(|x| x as u8).collect();
    let mut behind = writer(&copied, false);
    behind.submit(large.clone());
    let (by_copy, _) = behind.finish().unwrap().unwrap();
    let mut writer = writer(&read, false);
    let mut largest = 0;
    let saved = writer.save(&large.header, &specs(&large), &mut in_parts(&large, &mut largest));
    let (by_part, kept) = saved.unwrap();
    assert_eq!(by_part, by_copy);
    assert!(kept.error.is_none());
    assert!(largest <= 4 << 20 && largest as u64 > large.tensors[0].dtype.bytes());
    for file in ["state.safetensors", "manifest.json"] {
        let bytes = |world: &MemoryWorld| world.files().read(&at_step(10).join(file), u64::MAX).unwrap();
        assert!(bytes(&copied) == bytes(&read), "{file}");
    }
    assert_eq!(hash_from(&specs(&large), &mut in_parts(&large, &mut largest)).unwrap(), by_copy.state_hash);
}

#[test]
fn what_cannot_be_read_leaves_the_older_one_and_nothing_half_written() {
    let world = Arc::new(world_with(&[10]));
    let mut writer = writer(&world, false);
    let state = snapshot(20);
    let lost = || CheckpointError::Snapshot { name: "lost".into(), reason: "the device is gone".into() };
    let saved = writer.save(&state.header, &specs(&state), &mut |tensor, _, _| match tensor {
        1 => Err(lost()),
        _ => Ok(()),
    });
    assert!(matches!(saved, Err(CheckpointError::Snapshot { name, .. }) if name == "lost"));
    assert_eq!(newest_step(&*world), Some(10));
    let left: Vec<String> =
        world.files().list(Path::new(FOLDER)).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(left, [checkpoint_name(10)]);
    // What is in flight ends first, and is still told.
    writer.submit(snapshot(30));
    let mut largest = 0;
    let state = snapshot(40);
    writer.save(&state.header, &specs(&state), &mut in_parts(&state, &mut largest)).unwrap();
    let (before, _) = writer.finish().unwrap().unwrap();
    assert_eq!((before.step, newest_step(&*world)), (30, Some(40)));
}

#[test]
fn a_full_disk_surfaces_at_the_next_call_and_the_older_one_stays() {
    for inline in [false, true] {
        let world = Arc::new(world_with(&[10]));
        let files = world.memory_files().clone();
        let before = files.used_bytes();
        let mut writer = writer(&world, inline);
        files.set_faults(Faults {
            capacity_bytes: Some(before + 500),
            claimed_free_bytes: Some(u64::MAX),
            ..Faults::default()
        });
        assert!(writer.submit(snapshot(20)).is_none());
        while writer.is_busy() {
            std::thread::yield_now();
        }
        let error = writer.poll().unwrap().unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Write { step: 20, source } if source.is_disk_full()),
            "{error}"
        );
        assert!(error.to_string().contains("Older checkpoints stay"), "{error}");
        assert_eq!((newest_step(&*world), files.used_bytes()), (Some(10), before));

        // A later one goes through once there is room, and the error before it does not stop it.
        writer.submit(snapshot(30));
        let failed = writer.finish().unwrap();
        assert!(failed.is_err());
        files.set_faults(Faults::default());
        writer.submit(snapshot(40));
        drop(writer);
        assert_eq!(newest_step(&*world), Some(40));
    }
}
