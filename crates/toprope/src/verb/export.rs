//! `toprope export`: a run or a published model as a folder that transformers opens.

use crate::command::Export;
use crate::exit::{Exit, Failure, OrExit};
use crate::progress::Counted;
use crate::verb::prepare::TOKENIZER_FILE;
use crate::verb::{published, recipe};
use std::path::Path;
use toprope_model::ModelConfig;
use toprope_model::checkpoint::{Piece, pieces};
use toprope_model::hub::{Extra, save, text_of_folder};
use toprope_model::parameters::parameters;
use toprope_train::checkpoint::{CHECKPOINTS_FOLDER, Loaded, newest_intact_of_any};
use toprope_train::recipe::Recipe;
use toprope_train::tokenizer::TokenizerKind;
use toprope_world::{RealWorld, World};

/// The largest tokenizer that is copied.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// Exports.
pub fn run(arguments: &Export, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    if world.files().inspect(&arguments.to).or_exit(Exit::Run)?.is_some() {
        let hint = "hint: name a folder that is not there yet";
        return Err(Failure::new(
            Exit::Run,
            format!("{}: it exists already\n{hint}", arguments.to.display()),
        ));
    }
    let is_run = world.files().inspect(&arguments.what.join("recipe.toml")).or_exit(Exit::Run)?.is_some();
    let (from, tensors) = match is_run {
        true => of_run(&world, &arguments.what, &arguments.to)?,
        false => of_model(&world, &arguments.what, &arguments.to)?,
    };
    println!("{tensors} tensors of {from} in {}", arguments.to.display());
    if json {
        println!("{}", serde_json::json!({ "from": from, "to": arguments.to, "tensors": tensors }));
    }
    Ok(Exit::Done)
}

/// The newest intact checkpoint of a run.
fn of_run(world: &dyn World, run: &Path, to: &Path) -> Result<(String, usize), Failure> {
    let recipe = recipe::load(&run.join("recipe.toml").to_string_lossy(), &[])?;
    let loaded = newest(world, &run.join(CHECKPOINTS_FOLDER))?;
    if let ModelConfig::DeepseekV3(config) = &recipe.model
        && config.experts() == 0
        && config.num_nextn_predict_layers > 0
    {
        let reason = "transformers has no model of dense layers with prediction modules";
        let hint = "hint: a recipe with num_nextn_predict_layers = 0, or with experts, can be exported";
        return Err(Failure::new(Exit::Recipe, format!("{}: {reason}\n{hint}", run.display())));
    }
    let extras = extras_of_run(world, &recipe, run)?;
    let config = recipe.model;
    // Pieces of one parameter come one after the other, so each is read once.
    let sizes: std::collections::BTreeMap<String, u64> = parameters(&config)
        .into_iter()
        .map(|parameter| (parameter.name.clone(), parameter.elements()))
        .collect();
    let mut current: (String, Vec<f32>) = (String::new(), Vec::new());
    let count = write(world, to, &config, &extras, |piece| {
        if current.0 != piece.parameter {
            let elements = sizes.get(&piece.parameter).copied().unwrap_or(0);
            let mut bytes = vec![0; elements as usize * 4];
            loaded.read_tensor(&piece.parameter, &mut bytes).or_exit(Exit::Run)?;
            let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            current = (piece.parameter.clone(), numbers.collect());
        }
        let run = piece.offset_elements..piece.offset_elements.saturating_add(piece.elements());
        let numbers = current.1.get(run).ok_or_else(|| {
            Failure::new(Exit::Run, format!("`{}` of the checkpoint is too short", piece.parameter))
        })?;
        Ok(numbers.to_vec())
    })?;
    Ok((format!("{} behind {} steps", run.display(), loaded.manifest().header.step), count))
}

/// The small files that a run's tokenizer gives.
fn extras_of_run(world: &dyn World, recipe: &Recipe, run: &Path) -> Result<Vec<Extra>, Failure> {
    if recipe.tokenizer.kind == TokenizerKind::Published {
        return Ok(published::text_files(&text_of_folder(world.files(), run)?));
    }
    let tokenizer = run.join(TOKENIZER_FILE);
    if world.files().inspect(&tokenizer).or_exit(Exit::Run)?.is_none() {
        eprintln!("note: the run's tokens are bytes, which is no tokenizer.json");
        return Ok(Vec::new());
    }
    let bytes = world.files().read(&tokenizer, TOKENIZER_BYTES_MAX).or_exit(Exit::Run)?;
    let said = serde_json::json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    Ok(vec![
        Extra { name: "tokenizer.json", bytes },
        Extra { name: "tokenizer_config.json", bytes: said.to_string().into_bytes() },
    ])
}

fn newest(world: &dyn World, folder: &Path) -> Result<Loaded, Failure> {
    let (loaded, skipped) = newest_intact_of_any(world, folder).or_exit(Exit::Run)?;
    for skipped in skipped {
        eprintln!("warning: {skipped}");
    }
    loaded.ok_or_else(|| {
        let hint = "hint: a run writes one every checkpoint.every steps, and at its end";
        Failure::new(Exit::Run, format!("{}: there is no intact checkpoint\n{hint}", folder.display()))
    })
}

fn of_model(world: &dyn World, path: &Path, to: &Path) -> Result<(String, usize), Failure> {
    let hub = published::open(world, path)?;
    let text = hub.text(world.files())?;
    if let (None, Some(reason)) = (&text.tokenizer, &text.no_tokenizer) {
        eprintln!("note: no tokenizer: {reason}");
    }
    let extras = published::text_files(&text);
    hub.check_copies(hub.config().into())?;
    let count = write(world, to, hub.config(), &extras, |piece| Ok(hub.read(piece)?))?;
    Ok((path.display().to_string(), count))
}

fn write(
    world: &dyn World,
    to: &Path,
    config: &ModelConfig,
    extras: &[Extra],
    mut tensor: impl FnMut(&Piece) -> Result<Vec<f32>, Failure>,
) -> Result<usize, Failure> {
    let count = pieces(config).len();
    let progress = Counted::new("tensors", count as u64);
    let mut done = 0;
    save::<Failure>(world.files(), to, config, extras, |piece| {
        done += 1;
        progress.set(done, &piece.name);
        tensor(piece)
    })?;
    progress.finish();
    Ok(count)
}
