//! What the user will run: `--for` a recipe, a model, a model's configuration or a list of cases, as shapes.

use super::cases_file;
use super::shard::{Shard, programs};
use crate::command::Qualify;
use crate::exit::{Exit, Failure};
use crate::verb::{published, recipe};
use std::path::Path;
use std::sync::Arc;
use toprope_model::hub::{self, Hub};
use toprope_model::{Architecture, DeepseekV3Config, ModelConfig, TrainingOptions};
use toprope_program::{DType, Program};
use toprope_qualify::shapes::{Need, Shape, Skipped, distinct, of_calls};
use toprope_train::recipe::Recipe;
use toprope_world::World;

/// What was asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// The shapes, the cheapest first.
    pub shapes: Vec<Shape>,
    /// What is not in the contract.
    pub skipped: Vec<Skipped>,
    /// The recipe, where one was named.
    pub recipe: Option<Recipe>,
    /// The model, where one was named: its own weights are proven.
    pub model: Option<Arc<Hub>>,
}

/// Tokens of a sequence where only a configuration is given.
const SEQUENCE: usize = 4096;
/// The largest configuration and the largest list of cases that are read.
const CONFIGURATION_BYTES_MAX: u64 = 1 << 20;
const CASES_BYTES_MAX: u64 = 64 << 20;

/// Reads what `--for` names.
pub fn asked(world: &dyn World, arguments: &Qualify) -> Result<Asked, Failure> {
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
        return Ok(Asked {
            shapes: of_model(target, &config, &alone(arguments, &config), shard)?,
            ..Asked::default()
        });
    }
    if target.ends_with(".gguf") || Path::new(target).is_dir() {
        let hub = published::open(world, Path::new(target))?;
        let shapes = of_model(target, hub.config(), &alone(arguments, hub.config()), shard)?;
        return Ok(Asked { shapes, model: Some(Arc::new(hub)), ..Asked::default() });
    }
    let recipe = recipe::load(target, &[])?;
    let mut options = recipe.training_options();
    options.sequence = arguments.seq.unwrap_or(options.sequence);
    options.micro_batch_sequences = arguments.micro_batch.unwrap_or(options.micro_batch_sequences);
    let shapes = of_model(target, &recipe.model, &options, shard)?;
    Ok(Asked { shapes, recipe: Some(recipe), ..Asked::default() })
}

/// How a model is run where nobody says.
fn alone(arguments: &Qualify, config: &ModelConfig) -> TrainingOptions {
    let longest = Architecture::from(config).max_position_embeddings();
    TrainingOptions {
        sequence: arguments.seq.unwrap_or(SEQUENCE.min(longest)),
        micro_batch_sequences: arguments.micro_batch.unwrap_or(1),
        dtype: DType::Bf16,
        ..TrainingOptions::default()
    }
}

fn of_model(
    file: &str,
    config: &ModelConfig,
    options: &TrainingOptions,
    shard: Shard,
) -> Result<Vec<Shape>, Failure> {
    options.validate(config).map_err(|error| Failure::new(Exit::Recipe, format!("{file}: {error}")))?;
    let programs = programs(file, config, options, shard)?;
    let listed: Vec<(&Program, Need)> = programs.iter().map(|(program, need)| (program, *need)).collect();
    Ok(distinct(&listed))
}

fn unknown(file: &str, kind: &str) -> Failure {
    Failure::new(
        Exit::Recipe,
        format!(
            "{file}: the architecture `{kind}` is not known; there are deepseek_v3, llama and qwen2\nhint: write cases.jsonl with the Python package `toprope` from a step of your model, and name it with --for"
        ),
    )
}

/// A configuration; one of another architecture is told with those that there are.
fn configuration(file: &str, text: &str) -> Result<ModelConfig, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Recipe, format!("{file}: {reason}"));
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| wrong(format!("no JSON: {error}")))?;
    match json.get("model_type").and_then(serde_json::Value::as_str) {
        None | Some("deepseek_v3") => DeepseekV3Config::from_json(text).map(ModelConfig::from),
        Some("llama" | "qwen2") => hub::parse(text.as_bytes()).map(|published| published.config),
        Some(kind) => return Err(unknown(file, kind)),
    }
    .map_err(|error| wrong(error.to_string()))
}

fn cases(target: &str) -> Result<Asked, Failure> {
    let text = read(target, CASES_BYTES_MAX)?;
    let cases = cases_file::parse(target, &text).map_err(|error| Failure::new(Exit::Data, error))?;
    Ok(Asked { shapes: of_calls(&cases.calls), skipped: cases.skipped, ..Asked::default() })
}

fn read(path: &str, bytes_max: u64) -> Result<String, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Data, format!("{path}: {reason}"));
    let bytes = std::fs::metadata(Path::new(path)).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > bytes_max {
        return Err(wrong(format!("{bytes} bytes are more than such a file has")));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}
