//! Published models on a device: opening one, and its programs with their weights.

use crate::exit::{Exit, Failure, OrExit};
use crate::progress::{Counted, bytes};
use crate::verb::validated::validated;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use toprope_devices::OpenOptions;
use toprope_model::checkpoint::pieces;
use toprope_model::deepseek_v3::{Inference, build_inference};
use toprope_model::hub::{Extra, Hub, HubError, Text};
use toprope_model::{Architecture, ModelConfig};
use toprope_program::tensor::stored;
use toprope_program::{DType, Device, Fault, MemoryPlan, Session, StateLayout, Validated, Width};
use toprope_train::tokenizer::PublishedTokenizer;
use toprope_world::World;

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        Failure::new(Exit::Recipe, error)
    }
}

/// Opens a model and says what a user should know of it.
pub fn open(world: &dyn World, path: &Path) -> Result<Hub, Failure> {
    let hub = Hub::open(world.files(), path)?;
    for note in hub.notes() {
        eprintln!("note: {note}");
    }
    Ok(hub)
}

/// The dtypes that can be asked for.
pub fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        _ => Err("choose f32 or bf16".into()),
    }
}

/// A device in this process, or the worker of one that is not.
pub fn device(name: &str, threads: Option<usize>) -> Result<Box<dyn Device>, Failure> {
    let options = OpenOptions { threads, ..OpenOptions::default() };
    toprope_devices::open(name, &options).or_exit(Exit::Device)
}

/// What a model is called: its folder or file.
pub fn name(hub: &Hub) -> String {
    let name = hub.path().file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let printable = |c: char| if c.is_control() || c == '"' || c == '\\' { '_' } else { c };
    name.chars().map(printable).collect()
}

/// The program of what inference computes of a model.
pub fn inference(
    hub: &Hub,
    config: &ModelConfig,
    what: Inference,
    dtype: DType,
    tokens: usize,
) -> Result<Arc<Validated>, Failure> {
    let program = build_inference(config, what, dtype, tokens, &name(hub))
        .map_err(|error| Failure::new(Exit::Recipe, format!("{}: {error}", hub.path().display())))?;
    validated(program)
}

/// What inference computes of a model, prepared on a device with the weights written.
pub fn session(
    hub: &Hub,
    config: &ModelConfig,
    device: &mut dyn Device,
    what: Inference,
    dtype: DType,
    tokens: usize,
) -> Result<Session, Failure> {
    let program = inference(hub, config, what, dtype, tokens)?;
    let plan = MemoryPlan::new(&program, Width::Native, StateLayout::InPlace);
    let description = device.describe();
    let needed = plan.total_bytes() as u64;
    if let Some(there) = description.memory_bytes.filter(|there| needed > *there) {
        return Err(Failure::new(
            Exit::Memory,
            format!(
                "{} needs {} for {tokens} tokens and {} has {}\nhint: ask for fewer tokens, or for --dtype bf16",
                hub.path().display(),
                bytes(needed),
                description.name,
                bytes(there)
            ),
        ));
    }
    let session =
        Session::open(device, program, Width::Native, StateLayout::InPlace).or_exit(Exit::Device)?;
    write_weights(hub, config.into(), device, &session)?;
    Ok(session)
}

/// Why weights did not get to a device.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The model cannot be read.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The device failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The program is another model's.
    #[error("the program has no value `{0}`")]
    Missing(String),
}

impl From<WeightsError> for Failure {
    fn from(error: WeightsError) -> Failure {
        match error {
            WeightsError::Hub(error) => error.into(),
            WeightsError::Fault(fault) => Failure::new(Exit::Device, fault),
            missing @ WeightsError::Missing(_) => Failure::new(Exit::Internal, missing),
        }
    }
}

/// Writes every weight to its place, one published tensor at a time.
///
/// # Errors
/// The model cannot be read, or the device's fault.
pub fn write_weights(
    hub: &Hub,
    architecture: Architecture<'_>,
    device: &mut dyn Device,
    session: &Session,
) -> Result<(), WeightsError> {
    let program = session.program().program();
    // Of a large model a person sees that something goes on; a pipe is not told.
    let all = pieces(architecture).len() as u64;
    let progress = std::io::stderr().is_terminal().then(|| Counted::new("tensors", all));
    let mut done = 0;
    hub.each(architecture, |piece, numbers| {
        done += 1;
        if let Some(progress) = &progress {
            progress.set(done, &piece.name);
        }
        let found = program.find(&piece.parameter).and_then(|id| Some((id, session.plan().place(id)?)));
        let (id, location) = found.ok_or_else(|| WeightsError::Missing(piece.parameter.clone()))?;
        let dtype = program.value(id).dtype;
        let size = dtype.size_bytes(Width::Native);
        let mut offset = location.offset_bytes + piece.offset_elements * size;
        for part in numbers.chunks(PART_ELEMENTS) {
            let stored = stored(dtype, Width::Native, part);
            device.write(session.buffer(location), offset, &stored)?;
            offset += stored.len();
        }
        Ok::<(), WeightsError>(())
    })?;
    if let Some(progress) = &progress {
        progress.finish();
    }
    Ok(())
}

/// Elements that are converted at once, so that a large tensor is not in memory in a second form.
const PART_ELEMENTS: usize = 1 << 20;

/// The model's tokenizer, taken out of what its files say of text.
pub fn tokenizer(text: &mut Text, config: &ModelConfig) -> Result<PublishedTokenizer, Failure> {
    let (bytes, path) = text.tokenizer.take().ok_or_else(|| {
        let hint = "hint: a text needs the model's tokenizer; `eval --tokens 1,2,3` does without";
        Failure::new(Exit::Data, format!("{}\n{hint}", text.no_tokenizer.clone().unwrap_or_default()))
    })?;
    PublishedTokenizer::from_json(&bytes, &path, Architecture::from(config).vocab_size()).or_exit(Exit::Data)
}

/// The small files that say of a model's text what its own files said.
pub fn text_files(text: &Text) -> Vec<Extra> {
    let mut files = Vec::new();
    if let Some((bytes, _)) = &text.tokenizer {
        files.push(Extra { name: "tokenizer.json", bytes: bytes.clone() });
    }
    let mut said = serde_json::json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    for (name, value) in
        [("bos_token", &text.beginning), ("eos_token", &text.end), ("chat_template", &text.chat_template)]
    {
        if let Some(value) = value {
            said[name] = value.as_str().into();
        }
    }
    files.push(Extra { name: "tokenizer_config.json", bytes: said.to_string().into_bytes() });
    if !text.ends.is_empty() {
        let generation = serde_json::json!({ "eos_token_id": text.ends });
        files.push(Extra { name: "generation_config.json", bytes: generation.to_string().into_bytes() });
    }
    files
}

/// Writes a window of tokens that begins a sequence at `from`.
pub fn write_window(
    device: &mut dyn Device,
    session: &mut Session,
    tokens: &[i32],
    from: usize,
) -> Result<(), Failure> {
    session.bind(tokens.len());
    let positions: Vec<i32> = (from..from + tokens.len()).map(|place| place as i32).collect();
    for (name, numbers) in
        [("tokens", tokens), ("positions", &positions), ("segment_start", &vec![0; tokens.len()])]
    {
        session.write_i32(device, name, numbers).or_exit(Exit::Device)?;
    }
    Ok(())
}
