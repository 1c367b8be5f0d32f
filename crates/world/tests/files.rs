//! The real files and the files in memory answer alike, and locks, durability and faults are what they say.

use std::path::{Path, PathBuf};
use toprope_world::testing::{Faults, MemoryFiles, MemoryWorld, Survival};
use toprope_world::{EntryKind, FileOperation, Files, LockError, RealWorld, World, write_durably};

/// A run of operations with their outcomes as text; the same on every file system.
fn outcomes(files: &dyn Files, root: &Path) -> Vec<String> {
    let path = |name: &str| root.join(name);
    let mut said = Vec::new();
    let mut say = |what: &str, outcome: Result<String, toprope_world::FileError>| {
        said.push(match outcome {
            Ok(text) => format!("{what}: {text}"),
            Err(error) => format!("{what}: {:?} {:?}", error.operation, error.source.kind()),
        });
    };
    let unit = |outcome: Result<(), toprope_world::FileError>| outcome.map(|()| "done".to_owned());
    let shown = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();

    say("folder", unit(files.create_folder(&path("a"))));
    say("folder again", unit(files.create_folder(&path("a"))));
    say("folder without a parent", unit(files.create_folder(&path("x/y"))));
    say(
        "file",
        files.create(&path("a/f")).and_then(|mut file| unit(file.write(b"one").and_then(|()| file.sync()))),
    );
    say("file again", files.create(&path("a/f")).map(|_| "made".to_owned()));
    say("append", files.append(&path("a/f")).and_then(|mut file| unit(file.write(b" two"))));
    say("append to new", files.append(&path("a/g")).and_then(|mut file| unit(file.write(b"g"))));
    say("read", files.read(&path("a/f"), 100).map(shown));
    say("read over the limit", files.read(&path("a/f"), 6).map(shown));
    say("read a folder", files.read(&path("a"), 100).map(shown));
    say("read nothing", files.read(&path("none"), 100).map(shown));
    let past_end = || files.open(&path("a/f"))?.read_at(4, &mut [0; 4]);
    say("read past the end", unit(past_end()));
    say("list", files.list(root).map(|entries| format!("{entries:?}").replace("4096", "n")));
    say("list a", files.list(&path("a")).map(|entries| format!("{entries:?}")));
    say("list a file", files.list(&path("a/f")).map(|entries| format!("{entries:?}")));
    say("inspect", files.inspect(&path("a/f")).map(|kind| format!("{kind:?}")));
    say("inspect nothing", files.inspect(&path("zzz")).map(|kind| format!("{kind:?}")));
    say("second folder", unit(files.create_folder(&path("b"))));
    say("rename folder onto empty", unit(files.rename(&path("a"), &path("b"))));
    say("third folder", unit(files.create_folder(&path("c"))));
    say("rename folder onto full", unit(files.rename(&path("c"), &path("b"))));
    say("rename nothing", unit(files.rename(&path("none"), &path("d"))));
    say("rename file onto file", unit(files.rename(&path("b/g"), &path("b/f"))));
    say("read renamed", files.read(&path("b/f"), 100).map(shown));
    say("sync folder", unit(files.sync_folder(&path("b"))));
    say(
        "remove a folder as a file",
        files.remove_file(&path("b")).map(|()| "removed".to_owned()).map_err(|mut error| {
            error.source = std::io::ErrorKind::IsADirectory.into(); // systems disagree here
            error
        }),
    );
    say("durably", unit(write_durably(files, &path("c/d"), b"first")));
    say("durably again", unit(write_durably(files, &path("c/d"), b"second")));
    say("read durable", files.read(&path("c/d"), 100).map(shown));
    say("list c", files.list(&path("c")).map(|entries| format!("{entries:?}")));
    say("remove folder", unit(files.remove_folder(&path("b"))));
    say("remove file", unit(files.remove_file(&path("c/d"))));
    say("remove nothing", unit(files.remove_file(&path("c/d"))));
    say("list at the end", files.list(root).map(|entries| format!("{entries:?}")));
    said
}

#[test]
fn real_files_and_files_in_memory_answer_alike() {
    let folder = tempfile::tempdir().unwrap();
    let real = RealWorld::new();
    let memory = MemoryWorld::default();
    let real_outcomes = outcomes(real.files(), folder.path());
    assert_eq!(real_outcomes, outcomes(memory.files(), Path::new("/")));
    assert!(real_outcomes.iter().any(|line| line == "read: one two"), "{real_outcomes:#?}");
    assert!(real_outcomes.iter().any(|line| line == "read durable: second"), "{real_outcomes:#?}");
}

#[test]
fn errors_name_operation_path_reason_and_mend() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    let error = RealWorld::new().files().open(&path).unwrap_err();
    assert_eq!(error.operation, FileOperation::Open);
    assert!(error.is_not_found());
    assert!(error.to_string().starts_with(&format!("cannot open {}: ", path.display())), "{error}");

    let files = MemoryFiles::new();
    files.set_faults(Faults { capacity_bytes: Some(3), ..Faults::default() });
    let error = files.create(Path::new("/f")).unwrap().write(b"four").unwrap_err();
    assert!(error.is_disk_full());
    assert!(error.to_string().ends_with("; free some space there"), "{error}");
    assert_eq!(files.read(Path::new("/f"), 9).unwrap(), b"fou");
}

#[test]
fn a_lock_is_exclusive_names_its_holder_and_ends_with_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let (real, memory) = (RealWorld::new(), MemoryWorld::default());
    let cases: [(&dyn World, PathBuf); 2] = [(&real, folder.path().join("lock")), (&memory, "/lock".into())];
    for (world, path) in cases {
        let held = world.files().lock(&path).unwrap();
        match world.files().lock(&path).unwrap_err() {
            LockError::Held { pid, alive, .. } => {
                assert_eq!((pid, alive), (Some(world.processes().own_id()), Some(true)));
            }
            LockError::File(error) => panic!("{error}"),
        }
        drop(held);
        drop(world.files().lock(&path).unwrap());
    }
}

#[test]
fn free_space_is_told_and_running_processes_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let world = RealWorld::new();
    assert!(world.files().free_bytes(folder.path()).unwrap() > 0);
    assert!(world.files().free_bytes(&folder.path().join("none")).is_err());
    assert!(world.processes().is_alive(std::process::id()));
    assert!(!world.processes().is_alive(0));
    assert!(!world.processes().is_alive(u32::MAX));
}

#[test]
fn only_what_was_made_durable_survives_a_power_failure() {
    let files = MemoryFiles::new();
    files.create_folder(Path::new("/kept")).unwrap();
    files.sync_folder(Path::new("/")).unwrap();
    let mut file = files.create(Path::new("/kept/named")).unwrap();
    file.write(b"durable").unwrap();
    file.sync().unwrap();
    file.write(b" torn").unwrap();
    files.sync_folder(Path::new("/kept")).unwrap();
    let mut unnamed = files.create(Path::new("/kept/unnamed")).unwrap();
    unnamed.write(b"x").unwrap();
    unnamed.sync().unwrap();

    let read = |survival, name: &str| files.after(survival).read(&Path::new("/kept").join(name), 100);
    assert_eq!(read(Survival::Everything, "named").unwrap(), b"durable torn");
    assert_eq!(read(Survival::DurableOnly, "named").unwrap(), b"durable");
    assert_eq!(read(Survival::NamesBeforeContents, "named").unwrap(), b"durable");
    assert_eq!(read(Survival::TornContents, "named").unwrap(), b"durable to\0\0");
    assert!(read(Survival::DurableOnly, "unnamed").unwrap_err().is_not_found());
    assert_eq!(read(Survival::NamesBeforeContents, "unnamed").unwrap(), b"x");
}

#[test]
fn a_small_file_written_durably_is_old_or_new_at_every_stop() {
    let prepared = || {
        let files = MemoryFiles::new();
        write_durably(&files, Path::new("/f"), b"old").unwrap();
        files.set_faults(Faults::default());
        files
    };
    let dry = prepared();
    write_durably(&dry, Path::new("/f"), b"new!").unwrap();
    let count = dry.operations();
    assert!(count >= 5, "{count}");
    for operation in 1..=count {
        let files = prepared();
        files.set_faults(Faults { stop_at: Some(operation), ..Faults::default() });
        assert!(write_durably(&files, Path::new("/f"), b"new!").is_err());
        for survival in Survival::ALL {
            let found = files.after(survival).read(Path::new("/f"), 100).unwrap();
            assert!(found == b"old" || found == b"new!", "stop at {operation}, {survival:?}: {found:?}");
        }
        let files = prepared();
        files.set_faults(Faults { fail_at: Some(operation), ..Faults::default() });
        assert!(write_durably(&files, Path::new("/f"), b"new!").is_err());
        let left: Vec<_> = files.paths().into_iter().filter(|path| path != Path::new("/f")).collect();
        // A file that cannot even be looked at, or whose removal fails, may stay aside; nothing else may.
        assert!(left.is_empty() || operation == count, "fail at {operation}: {left:?}");
    }
}

#[test]
fn a_link_that_leads_nowhere_is_something() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("none"), &link).unwrap();
    assert_eq!(RealWorld::new().files().inspect(&link).unwrap(), Some(EntryKind::Other));
    assert!(RealWorld::new().files().create(&link).is_err());
}
