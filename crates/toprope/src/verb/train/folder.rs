//! The recipe of a run and its folder: made anew, or gone on with.

use crate::command::Train;
use crate::exit::{Exit, Failure, OrExit};
use crate::progress::Counted;
use crate::verb::{published, recipe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toprope_model::checkpoint::pieces;
use toprope_model::hub::Hub;
use toprope_train::checkpoint::{Identity, Loaded, newest_intact};
use toprope_train::initial::{InitialState, weights_hash};
use toprope_train::recipe::{Base, Origin, Recipe};
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
        return match (&arguments.from, named) {
            (Some(model), Some(name)) => onto(world, name, &sets, model),
            (Some(_), None) => {
                let hint = "hint: recipes/continue.toml is one to start from";
                Err(Failure::new(
                    Exit::Usage,
                    format!("--from needs a recipe: what to train on, and how\n{hint}"),
                ))
            }
            (None, named) => recipe::load(named.unwrap_or("default"), &sets),
        };
    }
    let Some(folder) = &arguments.run else {
        return Err(Failure::new(Exit::Usage, "--resume needs the run's folder\nhint: add --run FOLDER"));
    };
    let kept = folder.join("recipe.toml");
    if !matches!(world.files().inspect(&kept), Ok(Some(_))) {
        // What the folder lacks is told by what opens it.
        RunFolder::open_for_resume(world, folder).or_exit(Exit::Run)?;
    }
    let mut resolved = recipe::load(&kept.to_string_lossy(), &sets)?;
    match (&arguments.from, &mut resolved.from) {
        (Some(model), Some(origin)) => origin.model = std::path::absolute(model).or_exit(Exit::Recipe)?,
        (Some(_), None) => {
            let message = format!("{}: the run did not begin from a published model", folder.display());
            return Err(Failure::new(Exit::Usage, format!("{message}\nhint: leave --from out")));
        }
        (None, _) => {}
    }
    let again = |name: &str| match &resolved.from {
        Some(origin) => {
            recipe::load_onto(name, &sets, &Base { origin: origin.clone(), config: &resolved.model })
        }
        None => recipe::load(name, &sets),
    };
    match named {
        Some(name) if again(name)?.hash() != resolved.hash() => Err(Failure::new(
            Exit::Run,
            format!(
                "{}: the run was begun with another recipe than {name}\nhint: leave the recipe out, or choose another --run folder",
                folder.display()
            ),
        )),
        _ => Ok(resolved),
    }
}

/// A recipe laid onto a published model, whose weights are still to be hashed.
fn onto(world: &dyn World, name: &str, sets: &[String], model: &Path) -> Result<Recipe, Failure> {
    let hub = published::open(world, model)?;
    let origin = Origin { model: std::path::absolute(model).or_exit(Exit::Recipe)?, weights: String::new() };
    recipe::load_onto(name, sets, &Base { origin, config: hub.config() })
}

/// Reads and hashes the weights that a new run begins from, which takes as long as the disk does: called when all that can be
/// refused sooner is known to be right.
pub(super) fn hash_weights(world: &dyn World, recipe: &mut Recipe) -> Result<(), Failure> {
    let Some(origin) = &mut recipe.from else { return Ok(()) };
    let hub = Hub::open(world.files(), &origin.model)?;
    let progress = Counted::new("tensors", pieces(hub.config()).len() as u64);
    let mut read = 0;
    origin.weights = weights_hash(&hub, |tensor| {
        read += 1;
        progress.set(read, tensor);
    })?;
    progress.finish();
    Ok(())
}

/// The state before the run's first step.
pub fn initial_state(recipe: &Recipe, world: &Arc<dyn World>) -> InitialState {
    match &recipe.from {
        Some(origin) => {
            InitialState::published(recipe.seed, world.clone(), origin.clone(), recipe.model.clone())
        }
        None => InitialState::drawn(recipe.seed),
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

/// Makes the folder, or opens it and reads the newest intact checkpoint. Gives the step to go on from, and the checkpoint with the state.
pub(super) fn open_folder(
    arguments: &Train,
    recipe: &Recipe,
    path: &Path,
    world: &dyn World,
    identity: &Identity,
) -> Result<(RunFolder, u64, Option<Loaded>), Failure> {
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
    Ok((folder, loaded.manifest().header.step, Some(loaded)))
}
