//! `toprope export`: a run or a published model as a folder that transformers opens.

use crate::command::Export;
use crate::exit::{Exit, Failure, OrExit};
use crate::progress::Counted;
use crate::verb::prepare::TOKENIZER_FILE;
use crate::verb::{published, recipe};
use std::collections::BTreeMap;
use std::path::Path;
use toprope_model::ModelConfig;
use toprope_model::adapter::{AdaptedModule, AdapterOptions};
use toprope_model::checkpoint::{Piece, pieces};
use toprope_model::hub::{Extra, TOKENIZER_BYTES_MAX, save, save_adapter, text_of_folder};
use toprope_train::checkpoint::{CHECKPOINTS_FOLDER, Loaded, newest_intact_of_any};
use toprope_train::recipe::Recipe;
use toprope_train::tokenizer::TokenizerKind;
use toprope_world::{RealWorld, World};

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
    let is_folder = !world.files().is_file(&arguments.what).or_exit(Exit::Run)?;
    let kept = arguments.what.join("recipe.toml");
    let is_run = is_folder && world.files().inspect(&kept).or_exit(Exit::Run)?.is_some();
    let (from, tensors) = match is_run {
        true => of_run(&world, &arguments.what, &arguments.to, arguments.merge)?,
        false if arguments.merge => {
            let hint = "hint: --merge is for a run with adapters";
            let message = format!("{}: not a run's folder\n{hint}", arguments.what.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        false => of_model(&world, &arguments.what, &arguments.to)?,
    };
    println!("{tensors} tensors of {from} in {}", arguments.to.display());
    if json {
        println!("{}", serde_json::json!({ "from": from, "to": arguments.to, "tensors": tensors }));
    }
    Ok(Exit::Done)
}

/// The newest intact checkpoint of a run.
fn of_run(world: &dyn World, run: &Path, to: &Path, merge: bool) -> Result<(String, usize), Failure> {
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
    let from = format!("{} behind {} steps", run.display(), loaded.manifest().header.step);
    let mut stored = Stored { loaded: &loaded, current: (String::new(), Vec::new()) };
    let count = match (&recipe.adapter, merge) {
        (None, true) => {
            let message = format!("{}: the run has no adapters to merge", run.display());
            return Err(Failure::new(Exit::Usage, format!("{message}\nhint: leave --merge out")));
        }
        (None, false) => write(world, to, &config, &extras, |piece| stored.piece(piece))?,
        (Some(adapter), true) => write_merged(world, to, &config, &extras, stored, adapter)?,
        (Some(adapter), false) => {
            let base = recipe.from.as_ref().map(|origin| origin.model.display().to_string());
            let base = base.unwrap_or_default();
            save_adapter(world.files(), to, (&config).into(), adapter, &base, &extras, |name| {
                stored.read(name)
            })?
        }
    };
    Ok((from, count))
}

/// The parameters of a checkpoint.
struct Stored<'a> {
    loaded: &'a Loaded,
    /// The parameter that was read last: pieces of one come one after the other.
    current: (String, Vec<f32>),
}

impl Stored<'_> {
    fn read(&self, name: &str) -> Result<Vec<f32>, Failure> {
        let record = self.loaded.record(name);
        let elements = record.map_or(0, |record| record.shape.iter().product::<u64>());
        let mut bytes = vec![0; elements as usize * 4];
        self.loaded.read_tensor(name, &mut bytes).or_exit(Exit::Run)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn piece(&mut self, piece: &Piece) -> Result<Vec<f32>, Failure> {
        if self.current.0 != piece.parameter {
            self.current = (piece.parameter.clone(), self.read(&piece.parameter)?);
        }
        let run = piece.offset_elements..piece.offset_elements.saturating_add(piece.elements());
        let numbers = self.current.1.get(run).ok_or_else(|| {
            Failure::new(Exit::Run, format!("`{}` of the checkpoint is too short", piece.parameter))
        })?;
        Ok(numbers.to_vec())
    }
}

/// The model with its adapters' products added to its weights.
fn write_merged(
    world: &dyn World,
    to: &Path,
    config: &ModelConfig,
    extras: &[Extra],
    mut stored: Stored<'_>,
    adapter: &AdapterOptions,
) -> Result<usize, Failure> {
    let modules: BTreeMap<String, AdaptedModule> = adapter
        .modules(config.into())
        .into_iter()
        .map(|module| (format!("{}.weight", module.name), module))
        .collect();
    write(world, to, config, extras, |piece| {
        let mut numbers = stored.piece(piece)?;
        if let Some(module) = modules.get(&piece.name) {
            let (down, up) = (stored.read(&module.down())?, stored.read(&module.up())?);
            let lengths = adapter.dora.then(|| stored.read(&module.magnitude())).transpose()?;
            adapter.merge(module, &mut numbers, &down, &up, lengths.as_deref());
        }
        Ok(numbers)
    })
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
