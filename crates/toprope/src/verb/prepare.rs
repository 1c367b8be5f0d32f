//! What a run is made of beside its programs: the text, the tokenizer, the batches, and the identity that its checkpoints carry.

use crate::exit::{Exit, Failure, OrExit};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toprope_model::hub::{Hub, Text, text_of_folder};
use toprope_program::Validated;
use toprope_train::batch::StepInputs;
use toprope_train::chat_template::ChatTemplate;
use toprope_train::checkpoint::Identity;
use toprope_train::data::{Corpus, Render, Tokens};
use toprope_train::initial::InitialError;
use toprope_train::recipe::Recipe;
use toprope_train::tokenizer::{Tokenizer, TokenizerKind};
use toprope_world::World;

/// The tokenizer of a run, in its folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The data of a recipe, read.
pub struct Prepared {
    /// The documents that are held out; of those that are trained on only the tokens are kept.
    pub corpus: Corpus,
    /// Bytes of text that is trained on.
    pub training_bytes: u64,
    /// Trained on them, or the run's own.
    pub tokenizer: Tokenizer,
    /// The batch of each step.
    pub inputs: Arc<StepInputs>,
    /// What the published model's files say of text, where the run goes on from one.
    pub text: Option<Text>,
    /// What a checkpoint of the run says of itself.
    pub identity: Identity,
}

impl Prepared {
    /// Reads a recipe's data. `run` is the folder of a run, whose own tokenizer is used where it has one; `train` is the
    /// recipe's training step.
    pub fn read(
        world: &dyn World,
        recipe: &Recipe,
        train: &Validated,
        run: Option<&Path>,
        threads: usize,
    ) -> Result<Prepared, Failure> {
        let text = published_text(world, recipe, run)?;
        let turns = match (&recipe.data.chat, &text) {
            (Some(_), Some((text, place))) => Some(ChatTemplate::new(place, text).or_exit(Exit::Recipe)?),
            _ => None,
        };
        let text = text.map(|(text, _)| text);
        let render = turns.as_ref().map(|turns| -> &dyn Render { turns });
        let mut corpus = Corpus::load_with(&recipe.data, threads, render).or_exit(Exit::Data)?;
        let vocabulary = recipe.architecture().vocab_size();
        let saved = run.map(|run| run.join(TOKENIZER_FILE)).filter(|path| path.exists());
        let tokenizer = match (&text, saved) {
            (Some(text), _) => {
                Tokenizer::published(text, recipe.tokenizer.end_of_document.as_deref(), vocabulary)
            }
            (None, Some(path)) => Tokenizer::saved(&recipe.tokenizer, &path),
            (None, None) => Tokenizer::from_config(&recipe.tokenizer, &corpus.training, vocabulary),
        };
        let tokenizer = tokenizer.or_exit(Exit::Data)?;
        tokenizer.check_fits(vocabulary).or_exit(Exit::Data)?;
        let schedule = StepInputs::schedule(recipe).map_err(|error| {
            Failure::new(
                Exit::Recipe,
                format!("recipe {}: key `schedule.{}`: {error}", recipe.name, error.key),
            )
        })?;
        let tokens = |documents, origin: &str| {
            Tokens::of_documents(documents, &tokenizer, threads, origin).or_exit(Exit::Data)
        };
        let training = tokens(&corpus.training, &corpus.origin)?;
        let held_out = tokens(&corpus.validation, "the held-out documents")?;
        let training_bytes = corpus.training_bytes();
        corpus.training = Vec::new();
        let inputs = StepInputs::new(recipe, schedule, training, held_out).or_exit(Exit::Data)?;
        let inputs = Arc::new(inputs);
        let identity = Identity {
            model_name: recipe.name.clone(),
            recipe_hash: recipe.hash(),
            program_hash: train.hash().to_string(),
            tokenizer_hash: tokenizer.hash(),
            corpus_hash: corpus.hash.clone(),
        };
        Ok(Prepared { corpus, training_bytes, tokenizer, inputs, text, identity })
    }
}

/// The largest chat template that is read.
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// What a published model's files say of text: those that a run keeps, or else the model's own with the recipe's chat
/// template; and where its template is.
fn published_text(
    world: &dyn World,
    recipe: &Recipe,
    run: Option<&Path>,
) -> Result<Option<(Text, PathBuf)>, Failure> {
    let Some(origin) = recipe.from.as_ref().filter(|_| recipe.tokenizer.kind == TokenizerKind::Published)
    else {
        return Ok(None);
    };
    let files = world.files();
    if let Some(run) = run
        && files.inspect(&run.join(TOKENIZER_FILE)).or_exit(Exit::Run)?.is_some()
    {
        return Ok(Some((text_of_folder(files, run)?, run.to_owned())));
    }
    let read = Hub::open(files, &origin.model).and_then(|hub| hub.text(files));
    let mut text = match run {
        // A run is there already, so its model may have moved since.
        Some(_) => read.map_err(InitialError::Hub).or_exit(Exit::Recipe)?,
        None => read?,
    };
    let Some(path) = recipe.data.chat.as_ref().and_then(|chat| chat.template.as_ref()) else {
        return Ok(Some((text, origin.model.clone())));
    };
    let bytes = files.read(path, TEMPLATE_BYTES_MAX).or_exit(Exit::Data)?;
    let template = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::new(Exit::Data, format!("{}: byte {at} is not UTF-8\nhint: give a template", path.display()))
    })?;
    text.chat_template = Some(template);
    Ok(Some((text, path.clone())))
}
