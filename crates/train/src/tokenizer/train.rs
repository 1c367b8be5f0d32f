//! Byte-level BPE from documents, by Hugging Face's library.

use super::{END, Tokenizer, TokenizerError};
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

/// Words, numbers of up to three digits, runs of signs and of blanks; indentation stays together, which suits code.
pub(super) const WORDS: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Bytes of text that is looked at: documents at even distances, so that all of the corpus is seen.
const TRAINING_BYTES: usize = 4 << 20;

impl Tokenizer {
    /// Trains byte-level BPE on documents, to `vocabulary` tokens where the text has that many pairs.
    ///
    /// # Errors
    /// The library fails, or the vocabulary has no room for all bytes.
    pub fn train_bpe(documents: &[&str], vocabulary: usize) -> Result<Tokenizer, TokenizerError> {
        let failed = |reason: String| TokenizerError::Training { vocabulary, reason };
        if vocabulary < 257 {
            return Err(failed("256 bytes and the end of a document need 257".into()));
        }
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(vocabulary)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| failed(error.to_string()))?;
        let bytes = ByteLevel::new(false, false, false);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(words),
            PreTokenizerWrapper::ByteLevel(bytes),
        ])));
        tokenizer.with_decoder(Some(bytes));
        let total: usize = documents.iter().map(|document| document.len()).sum();
        let sample = documents.iter().step_by(total.div_ceil(TRAINING_BYTES).max(1)).copied();
        let mut trainer = TrainerWrapper::from(trainer);
        tokenizer.train(&mut trainer, sample).map_err(|error| failed(error.to_string()))?;
        let json = tokenizer.to_string(false).map_err(|error| failed(error.to_string()))?;
        Tokenizer::from_json(json.as_bytes(), Path::new("tokenizer.json"), Some(END))
    }
}

/// Whether a `tokenizer.json` cuts text by [`WORDS`], encodes each piece by itself, and does nothing else.
pub(super) fn cuts_alike(json: &serde_json::Value) -> bool {
    let pieces = serde_json::json!({
        "type": "Sequence",
        "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        ],
    });
    let absent = |key: &str| json.get(key).is_none_or(serde_json::Value::is_null);
    let special = |token: &serde_json::Value| token.get("special") == Some(&true.into());
    absent("normalizer")
        && absent("post_processor")
        && json.get("pre_tokenizer") == Some(&pieces)
        && json
            .get("added_tokens")
            .and_then(|tokens| tokens.as_array())
            .is_some_and(|all| all.iter().all(special))
}
