use crate::support::{FOLDER, at_step, newest, newest_step, snapshot, world_with};
use std::num::NonZeroU32;
use std::path::Path;
use toprope_train::checkpoint::{CheckpointError, Defect, KeepPolicy, Written, open, write};
use toprope_world::World;
use toprope_world::testing::{Faults, MemoryWorld, Survival};

const KEEP_ONE: KeepPolicy = KeepPolicy { last: NonZeroU32::MIN, every_steps: None };

/// Writes step 20 and lets the policy remove step 10, as the background writer does.
fn write_and_keep(world: &MemoryWorld) -> Result<Written, CheckpointError> {
    let written = write(world, Path::new(FOLDER), &snapshot(20).view())?;
    KEEP_ONE.apply(world.files(), Path::new(FOLDER), written.step);
    Ok(written)
}

/// Nothing there yet, an older one, and an older one beside a damaged one of the same step.
fn beginnings() -> [(&'static str, MemoryWorld); 3] {
    let damaged = world_with(&[10, 20]);
    damaged.memory_files().corrupt(&at_step(20).join("state.safetensors"), |bytes| bytes[700] ^= 1).unwrap();
    [("first", world_with(&[])), ("second", world_with(&[10])), ("damaged", damaged)]
}

fn count_operations(beginning: usize) -> u64 {
    let (_, world) = &beginnings()[beginning];
    world.memory_files().set_faults(Faults::default());
    write_and_keep(world).unwrap();
    assert_eq!(newest_step(world), Some(20));
    world.memory_files().operations()
}

#[test]
fn a_stop_at_any_operation_leaves_the_old_or_the_new_one() {
    for beginning in 0..3 {
        let count = count_operations(beginning);
        assert!(count > 20, "{count}");
        let mut found_new = 0;
        for operation in 1..=count {
            let (name, world) = &beginnings()[beginning];
            let had_old = *name != "first";
            world.memory_files().set_faults(Faults { stop_at: Some(operation), ..Faults::default() });
            let outcome = write_and_keep(world);
            for survival in Survival::ALL {
                let place = format!("{name}: stop at {operation} of {count}, {survival:?}");
                let after = MemoryWorld::new(world.memory_files().after(survival));
                let step = newest_step(&after);
                match (&outcome, step) {
                    (_, Some(20)) => found_new += 1,
                    (Err(_), Some(10)) => assert!(had_old, "{place}"),
                    (Err(_), None) => assert!(!had_old, "{place}"),
                    other => panic!("{place}: {other:?}"),
                }
                // One that was being removed is whole or gone from sight.
                if after.files().inspect(&at_step(10)).unwrap().is_some() {
                    open(&after, &at_step(10)).unwrap_or_else(|error| panic!("{place}: {error}"));
                }
                // Whatever is left, the run goes on: the same checkpoint is written again and all rubbish goes.
                write_and_keep(&after).unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(newest_step(&after), Some(20), "{place}");
                let (_, skipped) = newest(&after);
                assert!(skipped.is_empty(), "{place}: {skipped:?}");
            }
        }
        assert!(found_new > 0);
    }
}

#[test]
fn a_checkpoint_that_was_reported_is_durable() {
    let world = world_with(&[10]);
    write(&world, Path::new(FOLDER), &snapshot(20).view()).unwrap();
    for survival in Survival::ALL {
        let after = MemoryWorld::new(world.memory_files().after(survival));
        assert_eq!(newest_step(&after), Some(20), "{survival:?}");
    }
}

#[test]
fn a_failing_operation_leaves_the_old_or_the_new_one_and_nothing_half_written() {
    for beginning in 0..3 {
        for operation in 1..=count_operations(beginning) {
            let (name, world) = &beginnings()[beginning];
            let place = format!("{name}: fail at {operation}");
            world.memory_files().set_faults(Faults { fail_at: Some(operation), ..Faults::default() });
            let outcome = write_and_keep(world);
            world.memory_files().set_faults(Faults::default());
            if let Err(error) = &outcome {
                let text = error.to_string();
                assert!(text.contains("step 20") && text.contains("(injected)"), "{place}: {text}");
            }
            match newest_step(world) {
                Some(20) => {}
                Some(10) => assert!(outcome.is_err() && *name != "first", "{place}"),
                step => assert!(outcome.is_err() && *name == "first", "{place}: {step:?}"),
            }
            let aside: Vec<_> = world
                .memory_files()
                .paths()
                .into_iter()
                .filter(|path| {
                    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(".tmp-"))
                })
                .collect();
            assert!(aside.is_empty(), "{place}: {aside:?}");
        }
    }
}

#[test]
fn a_disk_that_fills_up_at_any_byte_leaves_the_older_one_and_no_rubbish() {
    let dry = world_with(&[10]);
    let before = dry.memory_files().used_bytes();
    let written = write(&dry, Path::new(FOLDER), &snapshot(20).view()).unwrap();
    assert_eq!(dry.memory_files().used_bytes() - before, written.bytes);
    for room in 0..=written.bytes {
        let world = world_with(&[10]);
        let files = world.memory_files();
        files.set_faults(Faults {
            capacity_bytes: Some(before + room),
            claimed_free_bytes: Some(u64::MAX),
            ..Faults::default()
        });
        let outcome = write_and_keep(&world);
        if room == written.bytes {
            outcome.unwrap();
            assert_eq!(newest_step(&world), Some(20));
            continue;
        }
        match outcome.unwrap_err() {
            CheckpointError::Write { step: 20, source } => assert!(source.is_disk_full(), "{source}"),
            other => panic!("{other}"),
        }
        assert_eq!(newest_step(&world), Some(10), "{room}");
        assert_eq!(files.used_bytes(), before, "{room}: {:?}", files.paths());
    }
}

#[test]
fn too_little_room_is_told_before_anything_is_written() {
    let world = world_with(&[10]);
    let files = world.memory_files();
    let paths = files.paths();
    files.set_faults(Faults { claimed_free_bytes: Some(100), ..Faults::default() });
    let error = write_and_keep(&world).unwrap_err();
    assert!(matches!(error, CheckpointError::NoSpace { step: 20, free_bytes: 100, .. }), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    assert_eq!(files.paths(), paths);
}

#[test]
fn the_room_asked_for_is_enough_and_not_much_more() {
    let world = world_with(&[]);
    world.memory_files().set_faults(Faults { claimed_free_bytes: Some(0), ..Faults::default() });
    let Err(CheckpointError::NoSpace { needed_bytes, .. }) = write_and_keep(&world) else {
        panic!("no room was room enough");
    };
    world.memory_files().set_faults(Faults { claimed_free_bytes: Some(needed_bytes), ..Faults::default() });
    let written = write_and_keep(&world).unwrap();
    assert!(
        (written.bytes..written.bytes + 8192).contains(&needed_bytes),
        "{needed_bytes} for {}",
        written.bytes
    );
}

#[test]
fn the_policy_keeps_the_last_and_every_so_many_and_spares_the_future() {
    let steps: Vec<u64> = (1..=9).map(|step| step * 10).collect();
    let world = world_with(&steps);
    let policy: KeepPolicy = serde_json::from_str(r#"{"last": 2, "every_steps": 30}"#).unwrap();
    let kept = policy.apply(world.files(), Path::new(FOLDER), 80);
    assert!(kept.error.is_none());
    assert_eq!(kept.removed, [50, 40, 20, 10].map(at_step));
    let left: Vec<_> =
        world.files().list(Path::new(FOLDER)).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(left, ["step-00000030", "step-00000060", "step-00000070", "step-00000080", "step-00000090"]);
    assert!(serde_json::from_str::<KeepPolicy>(r#"{"last": 0}"#).is_err());
    assert!(serde_json::from_str::<KeepPolicy>(r#"{"last": 1, "every": 3}"#).is_err());
}

#[test]
fn a_policy_that_cannot_remove_says_so_and_loses_nothing() {
    let world = world_with(&[10, 20]);
    world.memory_files().set_faults(Faults { fail_at: Some(2), ..Faults::default() });
    let kept = KEEP_ONE.apply(world.files(), Path::new(FOLDER), 20);
    assert!(kept.error.is_some() && kept.removed.is_empty());
    assert!(kept.problems().next().unwrap().contains("(injected)"));
    assert_eq!(newest_step(&world), Some(20));
}

#[test]
fn the_same_step_again_is_left_alone_set_aside_or_refused() {
    let world = world_with(&[20]);
    let state = world.memory_files().paths();
    let again = write(&world, Path::new(FOLDER), &snapshot(20).view()).unwrap();
    assert_eq!((again.bytes, &again.path, again.set_aside), (0, &at_step(20), None));
    assert_eq!(world.memory_files().paths(), state);

    let mut other = snapshot(20);
    other.tensors[0].bytes[0] ^= 1;
    let error = write(&world, Path::new(FOLDER), &other.view()).unwrap_err();
    assert!(matches!(error, CheckpointError::Conflict { step: 20, .. }), "{error}");
    assert_eq!(newest_step(&world), Some(20));

    for number in 1..=2 {
        world.memory_files().corrupt(&at_step(20).join("manifest.json"), |bytes| bytes[0] = b'[').unwrap();
        let (found, skipped) = newest(&world);
        assert!(found.is_none() && matches!(skipped[0].reason, Defect::ManifestHash));
        let written = write(&world, Path::new(FOLDER), &snapshot(20).view()).unwrap();
        let aside = Path::new(FOLDER).join(format!("step-00000020.damaged-{number}"));
        assert_eq!(written.set_aside.as_ref(), Some(&aside));
        assert!(world.files().inspect(&aside).unwrap().is_some());
        assert_eq!(newest_step(&world), Some(20));
    }
}
