//! The tokenizer of a published model: as its makers use it, with markers.

use super::TokenizerError;
use std::path::Path;
use std::str::FromStr;

/// A published `tokenizer.json`. Unlike [`super::Tokenizer`], which reads documents for training, it knows markers in a text
/// and puts those around it that the model was trained with.
pub struct PublishedTokenizer {
    tokenizer: Box<tokenizers::Tokenizer>,
    vocabulary: usize,
}

/// Reads a `tokenizer.json`; the library unwraps what it finds inside, so what is no JSON of its shape must not get that far.
pub(super) fn parse(
    bytes: &[u8],
    origin: &Path,
) -> Result<(tokenizers::Tokenizer, serde_json::Value), TokenizerError> {
    let malformed = |reason: String| TokenizerError::Malformed { path: origin.to_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    if value.get("model").is_none_or(|model| !model.is_object()) {
        return Err(malformed("it has no `model`".into()));
    }
    if let Some(defect) = template_defect(&value) {
        return Err(malformed(format!("`post_processor` {defect}")));
    }
    let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_str(text));
    let parsed = parsed.map_err(|_| malformed("the library gave up on it".into()))?;
    let mut tokenizer = parsed.map_err(|error| malformed(error.to_string()))?;
    // A text is neither cut nor padded.
    tokenizer.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
    tokenizer.with_padding(None);
    Ok((tokenizer, value))
}

/// What a template of the post-processor names and the library, which looks for it when it encodes, would not find.
fn template_defect(value: &serde_json::Value) -> Option<String> {
    let processor = value.get("post_processor")?;
    let several = processor.get("processors").and_then(serde_json::Value::as_array);
    let templates: Vec<&serde_json::Value> =
        several.map_or_else(|| vec![processor], |several| several.iter().collect());
    templates.into_iter().find_map(|template| {
        let known = template.get("special_tokens");
        let pieces =
            |form: &str| template.get(form).and_then(serde_json::Value::as_array).into_iter().flatten();
        let named = |piece: &serde_json::Value, kind: &str| {
            piece.get(kind).and_then(|piece| piece.get("id")?.as_str()).map(str::to_string)
        };
        let mut markers =
            pieces("single").chain(pieces("pair")).filter_map(|piece| named(piece, "SpecialToken"));
        let unknown = markers.find(|name| known.is_none_or(|known| known.get(name).is_none()));
        if let Some(name) = unknown {
            return Some(format!("puts the token {name:?} in, which is not among its `special_tokens`"));
        }
        let second = pieces("single").any(|piece| named(piece, "Sequence").is_some_and(|name| name != "A"));
        second.then(|| "puts a second text into one text".into())
    })
}

/// What the library makes of a text: it ends in panics where a part of it says what another does not know.
pub(super) fn encoded(
    encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
) -> Result<tokenizers::Encoding, TokenizerError> {
    let failed = |reason: String| TokenizerError::Text { reason };
    let encoding = std::panic::catch_unwind(std::panic::AssertUnwindSafe(encode));
    let encoding = encoding.map_err(|_| failed("the library gave up on it".into()))?;
    encoding.map_err(|error| failed(error.to_string()))
}

/// The text of tokens, without markers; none where the library has none.
pub(super) fn decoded(tokenizer: &tokenizers::Tokenizer, tokens: &[u32]) -> String {
    let decode = std::panic::AssertUnwindSafe(|| tokenizer.decode(tokens, true));
    std::panic::catch_unwind(decode).ok().and_then(Result::ok).unwrap_or_default()
}

impl PublishedTokenizer {
    /// The tokenizer of the bytes of a `tokenizer.json`; `origin` is for messages.
    ///
    /// # Errors
    /// They are none, or it has more tokens than the model has rows.
    pub fn from_json(
        bytes: &[u8],
        origin: &Path,
        vocabulary: usize,
    ) -> Result<PublishedTokenizer, TokenizerError> {
        let (tokenizer, _) = parse(bytes, origin)?;
        let tokens = tokenizer.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1);
        if tokens > vocabulary {
            return Err(TokenizerError::LargerThanModel { path: origin.to_owned(), tokens, vocabulary });
        }
        Ok(PublishedTokenizer { tokenizer: Box::new(tokenizer), vocabulary })
    }

    /// The tokens of a text; with `framed`, the markers around it that the model was trained with.
    ///
    /// # Errors
    /// What the library says; a marker that the model has no row for.
    pub fn encode(&self, text: &str, framed: bool) -> Result<Vec<u32>, TokenizerError> {
        let ids = encoded(|| self.tokenizer.encode_fast(text, framed))?.get_ids().to_vec();
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            None => Ok(ids),
            Some(id) => {
                let reason = format!(
                    "it gives token {id}, and the model has {} rows; it is another model's tokenizer",
                    self.vocabulary
                );
                Err(TokenizerError::Text { reason })
            }
        }
    }

    /// The text of tokens, without markers; a character that is cut is replaced.
    pub fn decode(&self, tokens: &[u32]) -> String {
        decoded(&self.tokenizer, tokens)
    }
}
