//! From a name or a file to a recipe.

use super::onto::Base;
use super::{OptimizerKind, Recipe, RecipeError};
use crate::schedule::Schedule;
use crate::tokenizer::TokenizerKind;
use toprope_model::{DeepseekV3Config, LlamaConfig, ModelConfig, ModelError};

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
    resolve(file, text, sets, None)
}

/// Parses a recipe that goes on from a published model: model and tokenizer are that one's, and what the recipe says of
/// them may not contradict it.
///
/// # Errors
/// As [`parse`].
pub fn parse_onto(file: &str, text: &str, sets: &[String], base: &Base<'_>) -> Result<Recipe, RecipeError> {
    resolve(file, text, sets, Some(base))
}

fn resolve(file: &str, text: &str, sets: &[String], base: Option<&Base<'_>>) -> Result<Recipe, RecipeError> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| located(file, text, &error))?;
    // The text alone comes first, so that its errors have lines.
    let shape = Shape::of(&table, base);
    shape.check_text(text).map_err(|error| located(file, text, &error))?;
    let mut earlier = Vec::new();
    let mut last = complete(&table, base);
    for set in sets {
        with_set(&mut table, set, base)?;
        earlier.push(std::mem::replace(&mut last, complete(&table, base)));
    }
    let error = match last {
        Ok(recipe) => return Ok(recipe),
        Err(error) => error,
    };
    // What is wrong in the end came with the set behind the last state that was right, or with a later one that gave the very
    // key; where there is neither, with the file.
    let last_right = earlier.iter().rposition(Result::is_ok);
    let given = || sets.iter().rposition(|set| key_of(set) == error.key.as_deref());
    let (origin, line) = match last_right.max(given()) {
        Some(set) => (format!("--set {}", sets[set]), None),
        None => (file.to_string(), error.key.as_deref().and_then(|key| line_of(text, key))),
    };
    Err(RecipeError { file: origin, line, ..error })
}

/// Whose keys the model section has: parsed as what it is, so that errors name the key and its place.
#[derive(Clone, Copy)]
enum Shape {
    DeepseekV3,
    Llama,
    /// None is needed: it is a published model's.
    Published,
}

impl Shape {
    fn of(table: &toml::Table, base: Option<&Base<'_>>) -> Shape {
        let kind = table.get("model").and_then(|model| model.get("model_type")).and_then(toml::Value::as_str);
        match (base, kind) {
            (Some(_), _) => Shape::Published,
            (None, Some("llama" | "qwen2")) => Shape::Llama,
            (None, _) => Shape::DeepseekV3,
        }
    }

    fn check_text(self, text: &str) -> Result<(), toml::de::Error> {
        match self {
            Shape::DeepseekV3 => toml::from_str::<Recipe<DeepseekV3Config>>(text).map(|_| ()),
            Shape::Llama => toml::from_str::<Recipe<LlamaConfig>>(text).map(|_| ()),
            Shape::Published => toml::from_str::<Recipe<Option<toml::Table>>>(text).map(|_| ()),
        }
    }

    fn check_table(self, table: &toml::Table) -> Result<(), toml::de::Error> {
        let value = toml::Value::Table(table.clone());
        match self {
            Shape::DeepseekV3 => value.try_into::<Recipe<DeepseekV3Config>>().map(|_| ()),
            Shape::Llama => value.try_into::<Recipe<LlamaConfig>>().map(|_| ()),
            Shape::Published => value.try_into::<Recipe<Option<toml::Table>>>().map(|_| ()),
        }
    }
}

/// The recipe of a table whose keys are right, with what types cannot say checked.
fn complete(table: &toml::Table, base: Option<&Base<'_>>) -> Result<Recipe, RecipeError> {
    let mut table = table.clone();
    if let Some(base) = base {
        base.lay_under(&mut table)?;
    }
    let shape = Shape::of(&table, None);
    let value = toml::Value::Table(table);
    let recipe = match shape {
        Shape::Llama => value.try_into::<Recipe<LlamaConfig>>().map(Recipe::of_any),
        Shape::DeepseekV3 | Shape::Published => {
            value.try_into::<Recipe<DeepseekV3Config>>().map(Recipe::of_any)
        }
    };
    let recipe = recipe.map_err(|error| {
        let (reason, hint) = explain(error.message());
        RecipeError { file: String::new(), line: None, key: None, reason, hint }
    })?;
    check(&recipe)?;
    Ok(recipe)
}

impl<M: Into<ModelConfig>> Recipe<M> {
    fn of_any(self) -> Recipe {
        Recipe {
            name: self.name,
            description: self.description,
            seed: self.seed,
            device: self.device,
            fallback: self.fallback,
            training: self.training,
            schedule: self.schedule,
            optimizer: self.optimizer,
            checkpoint: self.checkpoint,
            evaluation: self.evaluation,
            sample: self.sample,
            guard: self.guard,
            adapter: self.adapter,
            data: self.data,
            tokenizer: self.tokenizer,
            from: self.from,
            model: self.model.into(),
        }
    }
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

/// Applies one `--set`; the recipe's keys must be right behind it.
fn with_set(table: &mut toml::Table, set: &str, base: Option<&Base<'_>>) -> Result<(), RecipeError> {
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
    Shape::of(table, base).check_table(table).map_err(|error| {
        let (reason, hint) = explain(error.message());
        RecipeError { file: "--set".into(), line: None, key: Some(key.into()), reason, hint }
    })
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
    if message.starts_with("missing field `model`") {
        let hint = "add a section [model], or name the published model to go on from with --from MODEL";
        return (message.into(), Some(hint.into()));
    }
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
    if recipe.tokenizer.kind == TokenizerKind::Published && recipe.from.is_none() {
        let reason = "`published` is the tokenizer of a model that training goes on from".to_string();
        return Err(fail("tokenizer.kind", reason).hint("add --from MODEL, or choose byte, bpe or file"));
    }
    if recipe.adapter.is_some() && recipe.from.is_none() {
        let reason = "adapters stand beside a published model's weights, and there are none".to_string();
        return Err(fail("adapter", reason).hint("add --from MODEL, or leave the section out"));
    }
    recipe.architecture().validate().map_err(|error| of_model(error, |key| format!("model.{key}")))?;
    recipe.training_options().validate(recipe.architecture()).map_err(|error| of_model(error, option))
}

/// The recipe's key for one of the model's training options.
fn option(key: &str) -> String {
    match key.strip_prefix("adamw.") {
        Some(key) => format!("optimizer.{key}"),
        None if key.starts_with("adapter.") => key.into(),
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
