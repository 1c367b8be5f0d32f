//! Finding a recipe by name or file.

use crate::exit::{Exit, Failure};
use toprope_train::recipe::{self, BUILT_IN, Recipe};

/// The largest recipe that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Loads a recipe: the name of one in the binary, or a file.
pub fn load(what: &str, sets: &[String]) -> Result<Recipe, Failure> {
    let (file, text) = match recipe::built_in(what) {
        Some(text) => (format!("{what} (built in)"), text.to_string()),
        None => (what.to_string(), read(what)?),
    };
    let recipe = recipe::parse(&file, &text, sets).map_err(|error| Failure::new(Exit::Recipe, error))?;
    check_model(&file, &text, &recipe)?;
    Ok(recipe)
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

/// What only the model knows of its sizes.
fn check_model(file: &str, text: &str, recipe: &Recipe) -> Result<(), Failure> {
    let checked = recipe.model.validate().and_then(|()| recipe.training_options().validate(&recipe.model));
    checked.map_err(|error| {
        let message = error.to_string();
        // The model's messages name their key first; the line makes it quick to find.
        let key = message.split('`').nth(1).unwrap_or_default();
        let line = text.lines().position(|line| line.trim_start().starts_with(key) && !key.is_empty());
        let place = line.map_or(String::new(), |line| format!(", line {}", line + 1));
        Failure::new(Exit::Recipe, format!("recipe {file}{place}: {message}"))
    })
}
