//! The recipe of a run and its folder: made anew, or gone on with.

use crate::command::Train;
use crate::exit::{Exit, Failure, OrExit};
use crate::verb::recipe;
use std::path::{Path, PathBuf};
use toprope_train::checkpoint::{Identity, OwnedTensor, newest_intact};
use toprope_train::recipe::Recipe;
use toprope_train::run_folder::RunFolder;
use toprope_world::World;

/// The recipe of the run: what was named, or on resuming what the folder holds.
pub(super) fn chosen_recipe(arguments: &Train, world: &dyn World) -> Result<Recipe, Failure> {
    let mut sets = arguments.sets.clone();
    if let Some(steps) = arguments.steps {
        sets.push(format!("training.steps={steps}"));
    }
    let named = arguments.recipe.as_deref();
    if !arguments.resume {
        return recipe::load(named.unwrap_or("default"), &sets);
    }
    let Some(folder) = &arguments.run else {
        return Err(Failure::new(Exit::Usage, "--resume needs the run's folder\nhint: add --run FOLDER"));
    };
    let kept = folder.join("recipe.toml");
    // A folder without a recipe is refused with its own message when it is opened.
    if !matches!(world.files().inspect(&kept), Ok(Some(_))) {
        return recipe::load(named.unwrap_or("default"), &sets);
    }
    let resolved = recipe::load(&kept.to_string_lossy(), &sets)?;
    match named {
        Some(name) if recipe::load(name, &sets)?.hash() != resolved.hash() => Err(Failure::new(
            Exit::Run,
            format!(
                "{}: the run was begun with another recipe than {name}\nhint: leave the recipe out, or choose another --run folder",
                folder.display()
            ),
        )),
        _ => Ok(resolved),
    }
}

/// The run's folder: what was named, or the first of runs/NAME, runs/NAME-2, … that is not there.
pub(super) fn run_path(arguments: &Train, recipe: &Recipe, world: &dyn World) -> Result<PathBuf, Failure> {
    let taken = |path: &Path| world.files().inspect(&path.join("recipe.toml")).map(|found| found.is_some());
    if let Some(path) = &arguments.run {
        if !arguments.resume && taken(path).or_exit(Exit::Run)? {
            return Err(Failure::new(
                Exit::Run,
                format!(
                    "{} has a run already\nhint: go on with it with --resume, or choose another --run folder",
                    path.display()
                ),
            ));
        }
        return Ok(path.clone());
    }
    let mut number = 1;
    loop {
        let name = if number == 1 { recipe.name.clone() } else { format!("{}-{number}", recipe.name) };
        let path = Path::new("runs").join(name);
        if !taken(&path).or_exit(Exit::Run)? {
            return Ok(path);
        }
        number += 1;
    }
}

/// Makes the folder, or opens it and reads the newest intact checkpoint. Gives the step to go on from, and the state.
pub(super) fn open_folder(
    arguments: &Train,
    recipe: &Recipe,
    path: &Path,
    world: &dyn World,
    identity: &Identity,
) -> Result<(RunFolder, u64, Option<Vec<OwnedTensor>>), Failure> {
    if !arguments.resume {
        let text = recipe.to_toml().or_exit(Exit::Internal)?;
        return Ok((RunFolder::create(world, path, &text).or_exit(Exit::Run)?, 0, None));
    }
    let folder = RunFolder::open_for_resume(world, path).or_exit(Exit::Run)?;
    for line in folder.bad_lines() {
        eprintln!("warning: {line}");
    }
    let (loaded, skipped) = newest_intact(world, &folder.checkpoints(), identity).or_exit(Exit::Run)?;
    for checkpoint in &skipped {
        eprintln!("warning: {checkpoint}");
    }
    let Some(loaded) = loaded else {
        if skipped.is_empty() {
            eprintln!("no checkpoint yet: the run begins anew");
            return Ok((folder, 0, None));
        }
        return Err(Failure::new(
            Exit::Run,
            format!(
                "{}: no checkpoint of the run is intact\nhint: begin a new run in another --run folder",
                path.display()
            ),
        ));
    };
    let snapshot = loaded.read_all().or_exit(Exit::Run)?;
    Ok((folder, snapshot.header.step, Some(snapshot.tensors)))
}
