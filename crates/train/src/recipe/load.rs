//! From a name or a file to a recipe.

use super::{Recipe, RecipeError};

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
/// The first thing that is wrong, with its line or key.
pub fn parse(file: &str, text: &str, sets: &[String]) -> Result<Recipe, RecipeError> {
    // The text alone comes first, so that its errors have lines.
    let recipe: Recipe = toml::from_str(text).map_err(|error| located(file, text, &error))?;
    let recipe = if sets.is_empty() { recipe } else { with_sets(file, text, sets)? };
    check(file, text, &recipe)?;
    Ok(recipe)
}

fn with_sets(file: &str, text: &str, sets: &[String]) -> Result<Recipe, RecipeError> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| located(file, text, &error))?;
    for set in sets {
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
        let mut section = &mut table;
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
        })?;
    }
    Recipe::deserialize_table(table).map_err(|error| located(file, text, &error))
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

/// What types cannot say.
fn check(file: &str, text: &str, recipe: &Recipe) -> Result<(), RecipeError> {
    let fail = |key: &str, reason: String| {
        let mut error = RecipeError::of_key(file, key, reason);
        let name = key.rsplit('.').next().unwrap_or(key);
        error.line = text.lines().position(|line| line.trim_start().starts_with(name)).map(|line| line + 1);
        error
    };
    recipe.guard.check().map_err(|error| RecipeError::of_key(file, "guard", error.to_string()))?;
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
    let stride = recipe.evaluation_stride();
    if stride == 0 || stride > training.sequence {
        let reason = format!("{stride} must be from 1 to training.sequence = {}", training.sequence);
        return Err(fail("evaluation.stride", reason));
    }
    let tokens = training.sequence.checked_mul(training.batch);
    if tokens.is_none_or(|tokens| tokens > 1 << 30) {
        return Err(fail("training.batch", "batch × sequence is more than 2^30 tokens".into()));
    }
    for (key, value) in [
        ("training.mtp_weight", training.mtp_weight),
        ("training.balance_alpha", training.balance_alpha),
        ("training.bias_update_rate", training.bias_update_rate),
        ("optimizer.weight_decay", recipe.optimizer.weight_decay),
        ("optimizer.clip", recipe.optimizer.clip),
        ("sample.temperature", recipe.sample.temperature),
    ] {
        if !(value.is_finite() && value >= 0.0) {
            return Err(fail(key, format!("{value} must not be negative")));
        }
    }
    for (key, beta) in
        [("optimizer.beta1", recipe.optimizer.beta1), ("optimizer.beta2", recipe.optimizer.beta2)]
    {
        if !(0.0..1.0).contains(&beta) {
            return Err(fail(key, format!("{beta} must lie in 0..1")));
        }
    }
    if !(recipe.optimizer.epsilon.is_finite() && recipe.optimizer.epsilon > 0.0) {
        return Err(fail("optimizer.epsilon", "must be positive".into()));
    }
    if recipe.checkpoint.keep_last == 0 {
        return Err(fail("checkpoint.keep_last", "must be at least 1".into()));
    }
    Ok(())
}
