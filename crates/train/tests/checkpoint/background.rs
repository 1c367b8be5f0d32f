use crate::support::{FOLDER, at_step, newest_step, snapshot, world_with};
use std::path::PathBuf;
use std::sync::Arc;
use toprope_train::checkpoint::{BackgroundWriter, CheckpointError, KeepPolicy};
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

#[test]
fn the_buffers_come_back() {
    let world = Arc::new(world_with(&[]));
    let mut writer = writer(&world, false);
    assert!(writer.take_spare().is_none());
    let first = snapshot(10);
    let address = first.tensors[0].bytes.as_ptr();
    writer.submit(first);
    writer.finish().unwrap().unwrap();
    let spare = writer.take_spare().unwrap();
    assert_eq!(spare.tensors[0].bytes.as_ptr(), address);
    assert_eq!(spare, snapshot(10));
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
