//! What the user will run: `--for` a recipe, a model's configuration or a list of cases, as shapes.

use super::cases_file;
use super::shard::{Shard, programs};
use crate::command::Qualify;
use crate::exit::{Exit, Failure};
use crate::verb::recipe;
use std::path::Path;
use toprope_model::{DeepseekV3Config, ModelConfig, TrainingOptions};
use toprope_program::{DType, Program};
use toprope_qualify::shapes::{Need, Shape, Skipped, distinct, of_calls};
use toprope_train::recipe::Recipe;

/// What was asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// The shapes, the cheapest first.
    pub shapes: Vec<Shape>,
    /// What is not in the contract.
    pub skipped: Vec<Skipped>,
    /// The recipe, where one was named.
    pub recipe: Option<Recipe>,
}

/// Tokens of a sequence where only a configuration is given.
const SEQUENCE: usize = 4096;
/// The largest configuration and the largest list of cases that are read.
const CONFIGURATION_BYTES_MAX: u64 = 1 << 20;
const CASES_BYTES_MAX: u64 = 64 << 20;

/// Reads what `--for` names.
pub fn asked(arguments: &Qualify) -> Result<Asked, Failure> {
    let Some(target) = &arguments.target else { return Ok(Asked::default()) };
    let sharded = [arguments.tp, arguments.pp, arguments.ep].iter().any(Option::is_some);
    let shard =
        Shard { tp: arguments.tp.unwrap_or(1), pp: arguments.pp.unwrap_or(1), ep: arguments.ep.unwrap_or(1) };
    if target.ends_with(".jsonl") {
        if sharded || arguments.seq.is_some() || arguments.micro_batch.is_some() {
            let message = format!(
                "{target}: cases have their shapes; leave --tp, --pp, --ep, --seq and --micro-batch out"
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        return cases(target);
    }
    if target.ends_with(".json") {
        let text = read(target, CONFIGURATION_BYTES_MAX)?;
        let config = configuration(target, &text)?;
        let sequence = arguments.seq.unwrap_or(SEQUENCE.min(config.max_position_embeddings));
        let options = TrainingOptions {
            sequence,
            micro_batch_sequences: arguments.micro_batch.unwrap_or(1),
            dtype: DType::Bf16,
            ..TrainingOptions::default()
        };
        return of_model(target, &config, &options, shard, None);
    }
    let recipe = recipe::load(target, &[])?;
    let mut options = recipe.training_options();
    options.sequence = arguments.seq.unwrap_or(options.sequence);
    options.micro_batch_sequences = arguments.micro_batch.unwrap_or(options.micro_batch_sequences);
    let model = match &recipe.model {
        ModelConfig::DeepseekV3(model) => model.clone(),
        ModelConfig::Llama(_) => return Err(unknown(target, "llama")),
    };
    of_model(target, &model, &options, shard, Some(recipe))
}

fn of_model(
    file: &str,
    config: &DeepseekV3Config,
    options: &TrainingOptions,
    shard: Shard,
    recipe: Option<Recipe>,
) -> Result<Asked, Failure> {
    options.validate(config).map_err(|error| Failure::new(Exit::Recipe, format!("{file}: {error}")))?;
    let programs = programs(file, config, options, shard)?;
    let listed: Vec<(&Program, Need)> = programs.iter().map(|(program, need)| (program, *need)).collect();
    Ok(Asked { shapes: distinct(&listed), skipped: Vec::new(), recipe })
}

fn unknown(file: &str, kind: &str) -> Failure {
    Failure::new(
        Exit::Recipe,
        format!(
            "{file}: the architecture `{kind}` is not known; there is deepseek_v3\nhint: write cases.jsonl with the Python package `toprope` from a step of your model, and name it with --for"
        ),
    )
}

/// A configuration; one of another architecture is told with those that there are.
fn configuration(file: &str, text: &str) -> Result<DeepseekV3Config, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Recipe, format!("{file}: {reason}"));
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| wrong(format!("no JSON: {error}")))?;
    let kind = json.get("model_type").and_then(serde_json::Value::as_str);
    if let Some(kind) = kind.filter(|kind| *kind != "deepseek_v3") {
        return Err(unknown(file, kind));
    }
    DeepseekV3Config::from_json(text).map_err(|error| wrong(error.to_string()))
}

fn cases(target: &str) -> Result<Asked, Failure> {
    let text = read(target, CASES_BYTES_MAX)?;
    let cases = cases_file::parse(target, &text).map_err(|error| Failure::new(Exit::Data, error))?;
    Ok(Asked { shapes: of_calls(&cases.calls), skipped: cases.skipped, recipe: None })
}

fn read(path: &str, bytes_max: u64) -> Result<String, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Data, format!("{path}: {reason}"));
    let bytes = std::fs::metadata(Path::new(path)).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > bytes_max {
        return Err(wrong(format!("{bytes} bytes are more than such a file has")));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}
