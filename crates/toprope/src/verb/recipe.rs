//! Finding a recipe by name or file.

use crate::exit::{Exit, Failure};
use toprope_train::recipe::{self, BUILT_IN, Base, Recipe};

/// The largest recipe that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Loads a recipe: the name of one in the binary, or a file.
pub fn load(what: &str, sets: &[String]) -> Result<Recipe, Failure> {
    let (file, text) = text(what)?;
    recipe::parse(&file, &text, sets).map_err(|error| Failure::new(Exit::Recipe, error))
}

/// Loads a recipe and lays it onto a published model.
pub fn load_onto(what: &str, sets: &[String], base: &Base<'_>) -> Result<Recipe, Failure> {
    let (file, text) = text(what)?;
    recipe::parse_onto(&file, &text, sets, base).map_err(|error| Failure::new(Exit::Recipe, error))
}

/// What a recipe is called in messages, and its text.
fn text(what: &str) -> Result<(String, String), Failure> {
    Ok(match recipe::built_in(what) {
        Some(text) => (format!("{what} (built in)"), text.to_string()),
        None => (what.to_string(), read(what)?),
    })
}

fn read(path: &str) -> Result<String, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Recipe, reason);
    let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    let metadata = std::fs::metadata(path).map_err(|error| {
        wrong(format!(
            "recipe {path}: {error}\nhint: name a TOML file, or one of the recipes in the binary: {}",
            names.join(", ")
        ))
    })?;
    if metadata.len() > BYTES_MAX {
        return Err(wrong(format!("recipe {path}: {} bytes are more than a recipe has", metadata.len())));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(format!("recipe {path}: {error}")))
}
