//! `toprope inspect`: what a recipe, a model's configuration or a published model is, before anything is allocated.

mod verify; // whether checkpoints are whole

use crate::command::Inspect;
use crate::exit::{Exit, Failure, OrExit};
use crate::verb::footprint::{Footprint, Place};
use crate::verb::train::{guarded, programs::Programs};
use crate::verb::{published, recipe};
use std::path::Path;
use toprope_model::hub::{Hub, HubError, Sketch};
use toprope_model::{DeepseekV3Config, deepseek_v3, inspect, totals};
use toprope_program::text;
use toprope_train::recipe::{Base, Origin, Recipe};
use toprope_world::{RealWorld, World};

/// Shows it.
pub fn run(arguments: &Inspect, json: bool) -> Result<Exit, Failure> {
    if arguments.verify {
        return verify::run(Path::new(&arguments.what), json);
    }
    if arguments.what.ends_with(".json") {
        return configuration(&arguments.what, json);
    }
    let path = Path::new(&arguments.what);
    if path.is_dir() || arguments.what.ends_with(".gguf") {
        return of_headers(path, json);
    }
    let recipe = match &arguments.from {
        Some(model) => onto(model, arguments)?,
        None => recipe::load(&arguments.what, &arguments.sets)?,
    };
    if arguments.program {
        let program = deepseek_v3::build_train(&recipe.model, &recipe.training_options(), &recipe.name);
        print!("{}", text::print(&program.or_exit(Exit::Recipe)?));
        return Ok(Exit::Done);
    }
    let programs = Programs::build(&recipe)?;
    let (checked, _) = guarded::step(&programs.train)?;
    let footprint = Footprint::of(&recipe, &programs, Some(&checked), Place::of_recipe(&recipe));
    let summary = inspect::summarize(&recipe.model, &programs.train, recipe.training.state.into());
    let summary = summary.or_exit(Exit::Recipe)?;
    println!("{}: {}\n", recipe.name, recipe.description);
    print!("{summary}\n{footprint}");
    if json {
        let mut all = serde_json::to_value(&summary).or_exit(Exit::Internal)?;
        all["footprint"] = serde_json::to_value(&footprint).or_exit(Exit::Internal)?;
        println!("{all}");
    }
    Ok(Exit::Done)
}

/// A recipe laid onto a published model, of which the headers alone are read.
fn onto(model: &Path, arguments: &Inspect) -> Result<Recipe, Failure> {
    let world = RealWorld::new();
    let hub = published::open(&world, model)?;
    let origin = Origin { model: model.to_owned(), weights: String::new() };
    recipe::load_onto(&arguments.what, &arguments.sets, &Base { origin, config: hub.config() })
}

/// A published model, from its headers alone.
fn of_headers(path: &Path, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    let hub = match Hub::open(world.files(), path) {
        Ok(hub) => hub,
        Err(error) => return refused(&world, path, error, json),
    };
    let text = hub.text(world.files())?;
    let description = hub.describe(&text).or_exit(Exit::Recipe)?;
    print!("{description}");
    if json {
        println!("{}", serde_json::to_string(&description).or_exit(Exit::Internal)?);
    }
    Ok(Exit::Done)
}

/// What is refused is shown as far as its headers tell, before the reason.
fn refused(world: &dyn World, path: &Path, error: HubError, json: bool) -> Result<Exit, Failure> {
    if let Ok(sketch) = Sketch::of(world.files(), path) {
        print!("{sketch}");
        if json {
            println!("{}", serde_json::json!({ "refused": error.to_string(), "shown": sketch }));
        }
    }
    Err(error.into())
}

/// The largest configuration that is read.
const CONFIGURATION_BYTES_MAX: u64 = 1 << 20;

fn configuration(path: &str, json: bool) -> Result<Exit, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Recipe, format!("{path}: {reason}"));
    let bytes = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > CONFIGURATION_BYTES_MAX {
        return Err(wrong(format!("{bytes} bytes are more than a configuration has")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let config = DeepseekV3Config::from_json(&text).map_err(|error| wrong(error.to_string()))?;
    let totals = totals::totals(&config).map_err(|error| wrong(error.to_string()))?;
    print!("{totals}");
    if json {
        println!("{}", serde_json::to_string(&totals).or_exit(Exit::Internal)?);
    }
    Ok(Exit::Done)
}
