//! What a run is made of beside its programs: the text, the tokenizer, the batches, and the identity that its checkpoints carry.

use crate::exit::{Exit, Failure, OrExit};
use std::path::Path;
use std::sync::Arc;
use toprope_program::Validated;
use toprope_train::batch::StepInputs;
use toprope_train::checkpoint::Identity;
use toprope_train::data::{Corpus, Tokens};
use toprope_train::recipe::Recipe;
use toprope_train::tokenizer::Tokenizer;

/// The tokenizer of a run, in its folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The data of a recipe, read.
pub struct Prepared {
    /// The documents.
    pub corpus: Corpus,
    /// Trained on them, or the run's own.
    pub tokenizer: Tokenizer,
    /// The batch of each step.
    pub inputs: Arc<StepInputs>,
    /// What a checkpoint of the run says of itself.
    pub identity: Identity,
}

impl Prepared {
    /// Reads a recipe's data. `saved` is a run's own tokenizer, used where it exists; `train` is the recipe's training step.
    pub fn read(
        recipe: &Recipe,
        train: &Validated,
        saved: Option<&Path>,
        threads: usize,
    ) -> Result<Prepared, Failure> {
        let corpus = Corpus::load(&recipe.data, threads).or_exit(Exit::Data)?;
        let vocabulary = recipe.model.vocab_size;
        let tokenizer = match saved.filter(|path| path.exists()) {
            Some(path) => Tokenizer::saved(&recipe.tokenizer, path),
            None => Tokenizer::from_config(&recipe.tokenizer, &corpus.training, vocabulary),
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
        let inputs = StepInputs::new(recipe, schedule, training, held_out).or_exit(Exit::Data)?;
        let inputs = Arc::new(inputs);
        let identity = Identity {
            model_name: recipe.name.clone(),
            recipe_hash: recipe.hash(),
            program_hash: train.hash().to_string(),
            tokenizer_hash: tokenizer.hash(),
            corpus_hash: corpus.hash.clone(),
        };
        Ok(Prepared { corpus, tokenizer, inputs, identity })
    }
}
