//! From a name or a file to a recipe.

use super::{OptimizerKind, Recipe, RecipeError};
use crate::schedule::Schedule;
use toprope_model::ModelError;

/// The recipes in the binary, by name. The first is the default.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("default", include_str!("../../../../recipes/default.toml")),
    ("tiny-dense", include_str!("../../../../recipes/tiny-dense.toml")),
    ("tiny-moe", include_str!("../../../../recipes/tiny-moe.toml")),
    ("small", include_str!("../../../../recipes/small.toml")),
    ("bench-dense", include_str!("../../../../recipes/bench-dense.toml")),
    ("bench-moe", include_str!("../../../../recipes/bench-moe.toml")),
];

/// The text of a built-in recipe.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(have, _)| *have == name).map(|(_, text)| *text)
}

/// Parses a recipe. `sets` are `section.key=value` with a TOML value (or a bare string) each, applied in order.
///
/// # Errors
/// The first thing that is wrong, with the line of the file or the `--set` that made it so.
pub fn parse(file: &str, text: &str, sets: &[String]) -> Result<Recipe, RecipeError> {
    // The text alone comes first, so that its errors have lines.
    let alone: Recipe = toml::from_str(text).map_err(|error| located(file, text, &error))?;
    let mut table: toml::Table = toml::from_str(text).map_err(|error| located(file, text, &error))?;
    let mut earlier = Vec::new();
    let mut recipe = alone;
    for set in sets {
        let next = with_set(&mut table, set)?;
        earlier.push(std::mem::replace(&mut recipe, next));
    }
    let Err(error) = check(&recipe) else { return Ok(recipe) };
    // What is wrong in the end came with the set behind the last state that was right, or with a later one that gave the very
    // key; where there is neither, with the file.
    let last_right = earlier.iter().rposition(|recipe| check(recipe).is_ok());
    let given = || sets.iter().rposition(|set| key_of(set) == error.key.as_deref());
    let (origin, line) = match last_right.max(given()) {
        Some(set) => (format!("--set {}", sets[set]), None),
        None => (file.to_string(), error.key.as_deref().and_then(|key| line_of(text, key))),
    };
    Err(RecipeError { file: origin, line, ..error })
}

fn key_of(set: &str) -> Option<&str> {
    set.split_once('=').map(|(key, _)| key.trim())
}

/// The line, from 1, on which a key stands, or else the table that it belongs to.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut section = "";
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let found = match line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            Some(name) => {
                section = name.trim();
                section == key
            }
            None => line.split_once('=').is_some_and(|(name, _)| match section {
                "" => name.trim() == key,
                section => {
                    key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) == Some(name.trim())
                }
            }),
        };
        if found {
            return Some(index + 1);
        }
    }
    key.rsplit_once('.').and_then(|(table, _)| line_of(text, table))
}

/// Applies one `--set` and gives the recipe as it is then.
fn with_set(table: &mut toml::Table, set: &str) -> Result<Recipe, RecipeError> {
    let Some((key, value)) = set.split_once('=') else {
        return Err(RecipeError {
            file: "--set".into(),
            line: None,
            key: None,
            reason: format!("`{set}` is not key=value"),
            hint: Some("write for example --set training.steps=100".into()),
        });
    };
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().unwrap_or_default();
    let mut section = &mut *table;
    for name in path {
        let entry = section.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let toml::Value::Table(inner) = entry else {
            return Err(RecipeError::of_key("--set", key, format!("`{name}` is not a section")));
        };
        section = inner;
    }
    section.insert(last.into(), value);
    Recipe::deserialize_table(table.clone()).map_err(|error| {
        let (reason, hint) = explain(error.message());
        RecipeError { file: "--set".into(), line: None, key: Some(key.into()), reason, hint }
    })
}

impl Recipe {
    fn deserialize_table(table: toml::Table) -> Result<Recipe, toml::de::Error> {
        serde::Deserialize::deserialize(toml::Value::Table(table))
    }
}

fn located(file: &str, text: &str, error: &toml::de::Error) -> RecipeError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let (reason, hint) = explain(error.message());
    let key = error.span().and_then(|span| text.get(span)).map(str::trim).filter(|key| {
        !key.is_empty() && key.len() < 60 && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    });
    RecipeError { file: file.into(), line, key: key.map(Into::into), reason, hint }
}

/// The parser's message, and the nearest right key where one is misspelt.
fn explain(message: &str) -> (String, Option<String>) {
    let message = message.trim();
    let Some(rest) = message.strip_prefix("unknown field ") else { return (message.into(), None) };
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let wrong = quoted.next().unwrap_or_default();
    let nearest = quoted
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= name.len().max(3) / 2);
    let hint = match nearest {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => {
            let known = rest.split_once("expected ").map_or("", |(_, known)| known);
            format!("known keys: {}", known.replace("one of ", ""))
        }
    };
    (format!("unknown key `{wrong}`"), Some(hint))
}

/// What types cannot say. Whether the file or a `--set` is to blame is the caller's to find out.
fn check(recipe: &Recipe) -> Result<(), RecipeError> {
    let fail = |key: &str, reason: String| RecipeError::of_key("", key, reason);
    recipe.guard.check().map_err(|error| fail("guard", error.to_string()))?;
    let training = &recipe.training;
    for (key, value) in [("steps", training.steps), ("batch", training.batch as u64)] {
        if value == 0 {
            return Err(fail(&format!("training.{key}"), "must be at least 1".into()));
        }
    }
    if training.sequence < 2 {
        return Err(fail("training.sequence", "must be at least 2: a token and its target".into()));
    }
    let micro = recipe.micro_batch();
    if micro == 0 || !training.batch.is_multiple_of(micro) {
        let reason = format!("{micro} does not divide the batch of {} sequences", training.batch);
        return Err(fail("training.micro_batch", reason).hint("choose a divisor of training.batch"));
    }
    if recipe.optimizer.kind == OptimizerKind::Adamw && recipe.optimizer.muon.is_some() {
        let reason = "is given, and optimizer.kind is \"adamw\"".into();
        return Err(
            fail("optimizer.muon", reason).hint("set optimizer.kind to \"muon\", or remove the table")
        );
    }
    let stride = recipe.evaluation_stride();
    if stride == 0 || stride > training.sequence {
        let reason = format!("{stride} must be from 1 to training.sequence = {}", training.sequence);
        return Err(fail("evaluation.stride", reason));
    }
    let tokens = training.sequence.checked_mul(training.batch);
    if tokens.is_none_or(|tokens| tokens > 1 << 30) {
        return Err(fail("training.batch", "batch × sequence is more than 2^30 tokens".into()));
    }
    let temperature = recipe.sample.temperature;
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(fail("sample.temperature", format!("{temperature} must be a number of at least 0")));
    }
    if recipe.checkpoint.keep_last == 0 {
        return Err(fail("checkpoint.keep_last", "must be at least 1".into()));
    }
    Schedule::new(&recipe.schedule, training.steps)
        .map_err(|error| fail(&format!("schedule.{}", error.key), error.reason))?;
    recipe.model.validate().map_err(|error| of_model(error, |key| format!("model.{key}")))?;
    recipe.training_options().validate(&recipe.model).map_err(|error| of_model(error, option))
}

/// The recipe's key for one of the model's training options.
fn option(key: &str) -> String {
    match key.strip_prefix("adamw.") {
        Some(key) => format!("optimizer.{key}"),
        None if key == "clip" || key.starts_with("muon.") => format!("optimizer.{key}"),
        None if key == "micro_batch_sequences" => "training.micro_batch".into(),
        None => format!("training.{key}"),
    }
}

/// What only the model knows of its sizes.
fn of_model(error: ModelError, name: impl Fn(&str) -> String) -> RecipeError {
    match error {
        ModelError::Key { key, reason, mend } => RecipeError::of_key("", &name(key), reason).hint(mend),
        other => RecipeError::of_key("", "model", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../../../recipes/tiny-moe.toml");

    fn refused(text: &str, sets: &[&str]) -> RecipeError {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        parse("a.toml", text, &sets).expect_err("it is wrong")
    }

    fn line(text: &str, start: &str) -> usize {
        1 + text.lines().position(|line| line.starts_with(start)).expect("the line is there")
    }

    #[test]
    fn the_file_is_blamed_with_the_line_of_its_own_section() {
        let text = TEXT.replace("n_group = 2", "n_group = 3");
        let error = refused(&text, &[]);
        assert_eq!((error.file.as_str(), error.line), ("a.toml", Some(line(&text, "n_group"))));
        assert_eq!(error.key.as_deref(), Some("model.n_group"));
        let text = TEXT.replace("batch = 4 ", "batch = 0 ");
        let text = text.replace("[data]", "[evaluation]\nevery = 0\n\n[data]");
        assert_eq!(refused(&text, &[]).line, Some(line(&text, "batch = 0")));
        let text = text.replace("batch = 0 ", "batch = 4 ").replace("every = 0", "stride = 0");
        assert_eq!(refused(&text, &[]).line, Some(line(&text, "stride")));
        let text = TEXT.replace("[optimizer]", "[checkpoint]\nkeep_last = 0\n\n[optimizer]");
        assert_eq!(refused(&text, &[]).line, Some(line(&text, "keep_last")));
    }

    #[test]
    fn a_set_is_blamed_where_the_file_was_right() {
        let error = refused(TEXT, &["training.steps=7", "model.n_group=3"]);
        assert_eq!((error.file.as_str(), error.line), ("--set model.n_group=3", None));
        // Another key's limit is passed: what was changed is to blame, not the key that is named.
        let error = refused(TEXT, &["model.n_routed_experts=5", "seed=2"]);
        assert_eq!(error.file, "--set model.n_routed_experts=5");
        assert_eq!(error.key.as_deref(), Some("model.n_group"));
        // A later set mends an earlier one.
        let mended = ["model.n_group=3", "model.n_group=2"].map(String::from);
        assert!(parse("a.toml", TEXT, &mended).is_ok());
    }

    #[test]
    fn a_set_of_the_very_key_is_blamed_where_the_file_was_wrong_too() {
        let text = TEXT.replace("n_group = 2", "n_group = 3");
        assert_eq!(refused(&text, &["model.n_group=7"]).file, "--set model.n_group=7");
        assert_eq!(refused(&text, &["seed=3"]).line, Some(line(&text, "n_group")));
        assert!(parse("a.toml", &text, &["model.n_group=2".into()]).is_ok());
    }
}
