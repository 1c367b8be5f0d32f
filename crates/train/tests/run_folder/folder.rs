use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toprope_train::run_folder::{LogLine, RunFolder, RunFolderError, read_lines};
use toprope_world::testing::{Faults, MemoryFiles, MemoryWorld, Survival};
use toprope_world::{RealWorld, World};

const RUN: &str = "/runs/first";
const RECIPE: &str = "[model]\nname = \"tiny\"\n";

fn world() -> Arc<MemoryWorld> {
    let world = MemoryWorld::default();
    world.files().create_folder(Path::new("/runs")).unwrap();
    world.files().sync_folder(Path::new("/")).unwrap();
    Arc::new(world)
}

fn create(world: &Arc<MemoryWorld>) -> Result<RunFolder, RunFolderError> {
    RunFolder::create(&**world, Path::new(RUN), RECIPE)
}

fn resume(world: &Arc<MemoryWorld>) -> Result<RunFolder, RunFolderError> {
    RunFolder::open_for_resume(&**world, Path::new(RUN))
}

fn lines(world: &dyn World, path: &Path) -> Vec<LogLine> {
    let mut lines = Vec::new();
    let bad = read_lines(world.files(), path, |line| lines.push(line.clone())).unwrap();
    assert!(bad.is_empty(), "{bad:?}");
    lines
}

/// All files and folders with their contents, to see that a refusal changed nothing.
fn everything(files: &MemoryFiles) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    use toprope_world::Files;
    files.paths().into_iter().map(|path| (path.clone(), files.read(&path, u64::MAX).ok())).collect()
}

fn refused(outcome: Result<RunFolder, RunFolderError>) -> RunFolderError {
    match outcome {
        Ok(folder) => panic!("{} was given", folder.path().display()),
        Err(error) => error,
    }
}

#[test]
fn a_run_is_made_and_resumed_and_its_lines_bear_the_attempt() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("run");
    let world = RealWorld::new();
    let mut run_id = String::new();
    for attempt in 1..=3 {
        let mut folder = if attempt == 1 {
            RunFolder::create(&world, &path, RECIPE).unwrap()
        } else {
            RunFolder::open_for_resume(&world, &path).unwrap()
        };
        assert_eq!((folder.attempt(), folder.recipe(), folder.path()), (attempt, RECIPE, path.as_path()));
        assert!(folder.bad_lines().is_empty());
        if attempt == 1 {
            folder.run_id().clone_into(&mut run_id);
        }
        assert_eq!((folder.run_id(), run_id.len()), (run_id.as_str(), 16));
        folder.metric(&world, &json!({"step": attempt, "loss": 0.5, "attempt": 99})).unwrap();
        folder.event(&world, &json!({"event": "checkpoint", "step": attempt})).unwrap();
        let error = folder.metric(&world, &[1]).unwrap_err();
        assert!(error.to_string().contains("[1] is not a JSON object"), "{error}");
        folder.sync(&world).unwrap();
        assert!(world.files().list(&folder.checkpoints()).unwrap().is_empty());
        assert_eq!(folder.report(), path.join("report.html"));
    }
    let journal: Vec<_> = lines(&world, &path.join("journal.jsonl"))
        .iter()
        .map(|line| (line.attempt(), line.value["event"].as_str().unwrap().to_owned()))
        .collect();
    let expected = [(1, "created"), (2, "resumed"), (3, "resumed")]
        .into_iter()
        .flat_map(|(attempt, event)| [(attempt, event.to_owned()), (attempt, "checkpoint".to_owned())]);
    assert_eq!(journal, expected.collect::<Vec<_>>());
    let metrics: Vec<_> = lines(&world, &path.join("metrics.jsonl")).iter().map(LogLine::attempt).collect();
    assert_eq!(metrics, [1, 2, 3]);
}

#[test]
fn a_run_that_exists_is_not_begun_again() {
    let world = world();
    drop(create(&world).unwrap());
    let before = everything(world.memory_files());
    let error = refused(create(&world));
    assert!(matches!(&error, RunFolderError::Exists { path } if path == Path::new(RUN)), "{error}");
    assert!(error.to_string().contains("--resume"), "{error}");
    assert_eq!(everything(world.memory_files()), before);

    // Copied without its lock it is a run nevertheless.
    world.files().remove_file(&Path::new(RUN).join("run.lock")).unwrap();
    let error = refused(create(&world));
    assert!(matches!(error, RunFolderError::Exists { .. }), "{error}");
    assert_eq!(resume(&world).unwrap().attempt(), 2);
}

#[test]
fn a_folder_in_use_names_the_process() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("run");
    let world = RealWorld::new();
    let held = RunFolder::create(&world, &path, RECIPE).unwrap();
    for outcome in [RunFolder::create(&world, &path, RECIPE), RunFolder::open_for_resume(&world, &path)] {
        let error = refused(outcome);
        assert!(matches!(error, RunFolderError::InUse { .. }), "{error}");
        let process = format!("process {}, which is alive", std::process::id());
        assert!(error.to_string().contains(&process), "{error}");
    }
    drop(held);
    RunFolder::open_for_resume(&world, &path).unwrap();
}

#[test]
fn what_is_not_a_run_is_refused_and_left_alone() {
    let world = world();
    let files = world.files();
    let error = refused(resume(&world));
    assert!(matches!(error, RunFolderError::Missing { .. }), "{error}");

    files.create(Path::new(RUN)).unwrap();
    for outcome in [create(&world), resume(&world)] {
        let error = refused(outcome);
        assert!(matches!(error, RunFolderError::NotAFolder { .. }), "{error}");
    }
    files.remove_file(Path::new(RUN)).unwrap();

    files.create_folder(Path::new(RUN)).unwrap();
    let error = refused(resume(&world));
    assert!(matches!(error, RunFolderError::NotARun { .. }), "{error}");
    let thesis = Path::new(RUN).join("thesis.tex");
    files.create(&thesis).unwrap().write(b"years of work").unwrap();
    let before = everything(world.memory_files());
    let error = refused(create(&world));
    assert!(matches!(&error, RunFolderError::Foreign { name, .. } if name == "thesis.tex"), "{error}");
    let error = refused(resume(&world));
    assert!(matches!(error, RunFolderError::NotARun { .. }), "{error}");
    assert_eq!(everything(world.memory_files()), before);

    files.remove_file(&thesis).unwrap();
    create(&world).unwrap();
}

#[test]
fn missing_folders_above_it_are_made_and_a_file_above_it_is_named() {
    let world = Arc::new(MemoryWorld::default());
    drop(create(&world).unwrap());
    assert_eq!(resume(&world).unwrap().attempt(), 2);
    let world = Arc::new(MemoryWorld::default());
    world.files().create(Path::new("/runs")).unwrap();
    let error = refused(create(&world));
    assert!(error.to_string().contains(RUN), "{error}");
}

#[test]
fn a_damaged_recipe_and_a_lost_journal_are_named() {
    let world = world();
    drop(create(&world).unwrap());
    let recipe = Path::new(RUN).join("recipe.toml");
    world.memory_files().corrupt(&recipe, |bytes| bytes[3] = 0xff).unwrap();
    let error = refused(resume(&world));
    assert!(matches!(error, RunFolderError::RecipeNotText { offset: 3, .. }), "{error}");
    world.memory_files().corrupt(&recipe, |bytes| bytes[3] = b'd').unwrap();
    world.files().remove_file(&Path::new(RUN).join("journal.jsonl")).unwrap();
    let error = refused(resume(&world));
    assert!(matches!(error, RunFolderError::NoRunId { .. }), "{error}");
}

#[test]
fn a_stop_at_any_operation_of_making_it_leaves_a_run_or_a_folder_that_can_be_begun() {
    let dry = Arc::new(MemoryWorld::default());
    dry.memory_files().set_faults(Faults::default());
    drop(create(&dry).unwrap());
    let count = dry.memory_files().operations();
    assert!(count > 15, "{count}");
    let mut began = 0;
    for operation in 1..=count {
        let stopped = Arc::new(MemoryWorld::default());
        stopped.memory_files().set_faults(Faults { stop_at: Some(operation), ..Faults::default() });
        refused(create(&stopped));
        for survival in Survival::ALL {
            let place = format!("stop at {operation}, {survival:?}");
            let after = Arc::new(MemoryWorld::new(stopped.memory_files().after(survival)));
            match resume(&after) {
                Ok(folder) => {
                    assert_eq!((folder.recipe(), folder.attempt()), (RECIPE, 2), "{place}");
                    began += 1;
                }
                Err(error) => {
                    let begin = matches!(
                        error,
                        RunFolderError::Missing { .. }
                            | RunFolderError::NotARun { .. }
                            | RunFolderError::NeverBegan { .. }
                    );
                    assert!(begin, "{place}: {error}");
                    drop(create(&after).unwrap_or_else(|error| panic!("{place}: {error}")));
                    assert_eq!(resume(&after).unwrap().recipe(), RECIPE, "{place}");
                }
            }
        }
    }
    assert!(began > 0);
}

#[test]
fn what_was_synced_survives_a_stop_and_a_torn_line_is_told() {
    let world = world();
    let mut folder = create(&world).unwrap();
    folder.metric(&*world, &json!({"step": 1})).unwrap();
    folder.sync(&*world).unwrap();
    folder.metric(&*world, &json!({"step": 2})).unwrap();
    for survival in Survival::ALL {
        let after = Arc::new(MemoryWorld::new(world.memory_files().after(survival)));
        let mut resumed = resume(&after).unwrap();
        let torn = usize::from(survival == Survival::TornContents);
        assert_eq!(resumed.bad_lines().len(), torn, "{survival:?}");
        resumed.metric(&*after, &json!({"step": 3})).unwrap();
        let mut steps = Vec::new();
        let path = Path::new(RUN).join("metrics.jsonl");
        let bad = read_lines(after.files(), &path, |line| {
            steps.push((line.attempt(), line.value["step"].as_u64().unwrap()));
        });
        assert_eq!(bad.unwrap().len(), torn, "{survival:?}");
        let expected = if survival == Survival::Everything {
            vec![(1, 1), (1, 2), (2, 3)]
        } else {
            vec![(1, 1), (2, 3)]
        };
        assert_eq!(steps, expected, "{survival:?}");
    }
}
