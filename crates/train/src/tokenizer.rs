//! Text to tokens and back: bytes, byte-level BPE trained on the corpus, or a Hugging Face `tokenizer.json`.

mod encoder; // many texts, fast
mod published; // a published model's, with markers
mod train; // byte-level BPE from documents

pub use encoder::Encoder;
pub(crate) use encoder::parts;
pub use published::PublishedTokenizer;
use published::{decoded, encoded};

use crate::data::Document;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toprope_model::hub::{TOKENIZER_BYTES_MAX, Text};

/// The recipe's `[tokenizer]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Which.
    #[serde(default)]
    pub kind: TokenizerKind,
    /// For `file`: a Hugging Face `tokenizer.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// For `file`: the token that ends a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_document: Option<String>,
}

/// Kinds of tokenizers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// A token a byte, and one for the end of a document: 257.
    #[default]
    Byte,
    /// Byte-level BPE, trained on the training documents to the model's vocabulary.
    Bpe,
    /// From a file.
    File,
    /// That of the published model that training goes on from.
    Published,
}

/// What is wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// `kind = "file"` without a path.
    #[error("tokenizer: `kind = \"file\"` needs `path`\nhint: name a tokenizer.json")]
    NoPath,
    /// The file cannot be read.
    #[error("tokenizer {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a tokenizer.
    #[error(
        "tokenizer {}: not a tokenizer.json: {reason}\nhint: it must be the file that Hugging Face's `tokenizers` saves",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },
    /// No token ends a document.
    #[error(
        "tokenizer {}: no token `{token}`\nhint: name one of its tokens in `tokenizer.end_of_document`",
        path.display()
    )]
    NoEnd {
        /// The file.
        path: PathBuf,
        /// The token that was looked for.
        token: String,
    },
    /// More tokens than the model has rows for.
    #[error(
        "tokenizer: its {tokens} tokens do not fit the model's vocabulary of {vocabulary}\nhint: set model.vocab_size to {tokens} or more"
    )]
    TooLarge {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// The model's `vocab_size`.
        vocabulary: usize,
    },
    /// More tokens than a published model has rows for.
    #[error(
        "tokenizer {}: its {tokens} tokens do not fit the model's vocabulary of {vocabulary}\nhint: it is another model's tokenizer",
        path.display()
    )]
    LargerThanModel {
        /// The file.
        path: PathBuf,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// The model's `vocab_size`.
        vocabulary: usize,
    },
    /// A published model without one.
    #[error("{reason}\nhint: training goes on with the model's own tokenizer; put it beside the weights")]
    NoneHere {
        /// What was looked for.
        reason: String,
    },
    /// A text that has no tokens.
    #[error("tokenizer: a text could not be tokenized: {reason}")]
    Text {
        /// What the library says.
        reason: String,
    },
    /// Training failed.
    #[error("tokenizer: training to {vocabulary} tokens failed: {reason}")]
    Training {
        /// The size asked for.
        vocabulary: usize,
        /// Why.
        reason: String,
    },
}

/// The end of a document in tokenizers that are trained here.
const END: &str = "<|end_of_document|>";
/// Ends of documents in files, most specific first.
const ENDS: [&str; 5] = [END, "<|endoftext|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>", "</s>"];

enum Kind {
    Byte,
    Library {
        tokenizer: Box<tokenizers::Tokenizer>,
        /// The same, but it knows markers in a text: a published model's, for conversations.
        marked: Option<Box<tokenizers::Tokenizer>>,
        /// What a document begins with.
        begin: u32,
        end: u32,
        /// Whether it cuts text as those that are trained here do, and does nothing else to it.
        pieces_known: bool,
    },
}

/// A tokenizer.
pub struct Tokenizer {
    kind: Kind,
    json: Option<String>,
}

impl Tokenizer {
    /// A token a byte.
    pub fn byte() -> Tokenizer {
        Tokenizer { kind: Kind::Byte, json: None }
    }

    /// The tokenizer that a recipe asks for and that is no published model's; `documents` and the model's `vocabulary` are for one that is trained.
    ///
    /// # Errors
    /// The file is none, or training fails.
    pub fn from_config(
        config: &TokenizerConfig,
        documents: &[Document],
        vocabulary: usize,
    ) -> Result<Tokenizer, TokenizerError> {
        match config.kind {
            TokenizerKind::Byte => Ok(Tokenizer::byte()),
            TokenizerKind::Bpe => {
                let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
                Tokenizer::train_bpe(&texts, vocabulary)
            }
            TokenizerKind::File | TokenizerKind::Published => {
                let path = config.path.as_deref().ok_or(TokenizerError::NoPath)?;
                Tokenizer::from_file(path, config.end_of_document.as_deref())
            }
        }
    }

    /// The tokenizer that a run saved in its folder.
    ///
    /// # Errors
    /// The file is none.
    pub fn saved(config: &TokenizerConfig, path: &Path) -> Result<Tokenizer, TokenizerError> {
        match config.kind {
            TokenizerKind::Byte => Ok(Tokenizer::byte()),
            TokenizerKind::Bpe | TokenizerKind::File | TokenizerKind::Published => {
                Tokenizer::from_file(path, config.end_of_document.as_deref())
            }
        }
    }

    /// The tokenizer of a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read, is none, or has no such end of a document.
    pub fn from_file(path: &Path, end: Option<&str>) -> Result<Tokenizer, TokenizerError> {
        let unreadable = |source| TokenizerError::Unreadable { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > TOKENIZER_BYTES_MAX {
            let reason = format!("{bytes} bytes are more than a tokenizer has");
            return Err(TokenizerError::Malformed { path: path.to_owned(), reason });
        }
        Tokenizer::from_json(&std::fs::read(path).map_err(unreadable)?, path, end)
    }

    /// The tokenizer of the bytes of a `tokenizer.json`; `origin` is for messages.
    ///
    /// # Errors
    /// They are none, or have no such end of a document.
    pub fn from_json(bytes: &[u8], origin: &Path, end: Option<&str>) -> Result<Tokenizer, TokenizerError> {
        let (mut tokenizer, value) = published::parse(bytes, origin)?;
        // What looks like a marker in a document is text: otherwise the sources of a tokenizer would end documents where
        // they name the token that does.
        tokenizer.set_encode_special_tokens(true);
        let found = match end {
            Some(token) => tokenizer.token_to_id(token),
            None => ENDS.iter().find_map(|token| tokenizer.token_to_id(token)),
        };
        let Some(end) = found else {
            let token = end.unwrap_or(END).to_string();
            return Err(TokenizerError::NoEnd { path: origin.to_owned(), token });
        };
        let pieces_known = train::cuts_alike(&value);
        let kind =
            Kind::Library { tokenizer: Box::new(tokenizer), marked: None, begin: end, end, pieces_known };
        Ok(Tokenizer { kind, json: Some(String::from_utf8_lossy(bytes).into_owned()) })
    }

    /// The tokenizer of a published model, for documents: one ends with `end`, or else with the model's own end of a text, and
    /// begins with what the model puts before a text, or else with what ends the one before.
    ///
    /// # Errors
    /// The model has none; it is none; it has no such end of a document; it has more tokens than the model has rows.
    pub fn published(text: &Text, end: Option<&str>, vocabulary: usize) -> Result<Tokenizer, TokenizerError> {
        let Some((bytes, path)) = &text.tokenizer else {
            return Err(TokenizerError::NoneHere { reason: text.no_tokenizer.clone().unwrap_or_default() });
        };
        let end = end.or(text.end.as_deref());
        let mut made = Tokenizer::from_json(bytes, path, end)?;
        let tokens = made.vocabulary_size();
        if tokens > vocabulary {
            return Err(TokenizerError::LargerThanModel { path: path.clone(), tokens, vocabulary });
        }
        if let Kind::Library { tokenizer, marked, begin, .. } = &mut made.kind {
            let framed = encoded(|| tokenizer.encode_fast("", true))?;
            let first = framed.get_ids().first().copied();
            let known = text.beginning.as_deref().and_then(|token| tokenizer.token_to_id(token));
            *begin = first.filter(|first| Some(*first) == known).unwrap_or(*begin);
            let mut knowing = tokenizer.clone();
            knowing.set_encode_special_tokens(false);
            // It would shorten places by the spaces in them.
            knowing.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
            *marked = Some(knowing);
        }
        Ok(made)
    }

    /// The `tokenizer.json`, where there is one.
    pub fn to_json(&self) -> Option<&str> {
        self.json.as_deref()
    }

    /// A hash of everything that decides its tokens.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.json.as_deref().unwrap_or("byte").as_bytes());
        hasher.update(&self.end_of_document().to_le_bytes());
        if self.beginning_of_document() != self.end_of_document() {
            hasher.update(&self.beginning_of_document().to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// One more than the largest token.
    pub fn vocabulary_size(&self) -> usize {
        match &self.kind {
            Kind::Byte => 257,
            Kind::Library { tokenizer, .. } => {
                let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
                largest as usize + 1
            }
        }
    }

    /// The token that a document begins with, so that its first token is predicted from something: the one that ends a
    /// document, but where a published model has another.
    pub fn beginning_of_document(&self) -> u32 {
        match &self.kind {
            Kind::Byte => 256,
            Kind::Library { begin, .. } => *begin,
        }
    }

    /// The token that ends a document; it is a target like any other.
    pub fn end_of_document(&self) -> u32 {
        match &self.kind {
            Kind::Byte => 256,
            Kind::Library { end, .. } => *end,
        }
    }

    /// Checks that each token has a row in the model. A model may have more, as padded vocabularies do.
    ///
    /// # Errors
    /// It has more tokens than the model.
    pub fn check_fits(&self, vocabulary: usize) -> Result<(), TokenizerError> {
        let tokens = self.vocabulary_size();
        if tokens <= vocabulary { Ok(()) } else { Err(TokenizerError::TooLarge { tokens, vocabulary }) }
    }

    /// The tokens of a text, without markers.
    ///
    /// # Errors
    /// What the library says; a byte-level tokenizer has tokens for every text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.kind {
            Kind::Byte => Ok(text.bytes().map(u32::from).collect()),
            Kind::Library { tokenizer, .. } => {
                Ok(encoded(|| tokenizer.encode_fast(text, false))?.get_ids().to_vec())
            }
        }
    }

    /// The tokens of a conversation's text, in which markers are known, each with the byte that it begins at.
    ///
    /// # Errors
    /// What the library says; a tokenizer that is no published model's.
    pub fn encode_marked(&self, text: &str) -> Result<Vec<(u32, usize)>, TokenizerError> {
        let Kind::Library { marked: Some(tokenizer), .. } = &self.kind else {
            let reason = "conversations need the tokenizer of a published model".into();
            return Err(TokenizerError::Text { reason });
        };
        let encoding = encoded(|| tokenizer.encode(text, false))?;
        let places = encoding.get_offsets().iter().map(|(begin, _)| *begin);
        Ok(encoding.get_ids().iter().copied().zip(places).collect())
    }

    /// The text of tokens; a character that is cut is replaced.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match &self.kind {
            Kind::Byte => {
                let bytes: Vec<u8> = tokens.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Kind::Library { tokenizer, .. } => decoded(tokenizer, tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "fn main() {\n\tlet x = \"ünïcödé 漢字 👩‍👩‍👧\";\r\n    x += 12345;\u{0}\u{7f} }\n\n\n";

    #[test]
    fn bytes_come_back() {
        let tokenizer = Tokenizer::byte();
        assert_eq!(tokenizer.decode(&tokenizer.encode(NASTY).unwrap()), NASTY);
        assert_eq!(tokenizer.vocabulary_size(), 257);
        assert!(tokenizer.check_fits(256).unwrap_err().to_string().contains("model.vocab_size to 257"));
    }

    #[test]
    fn trained_pairs_come_back_and_training_repeats() {
        let documents: Vec<String> = (0..200)
            .map(|i| format!("let value_{i} = compute({i});\n    return value_{i};\n{NASTY}"))
            .collect();
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let tokenizer = Tokenizer::train_bpe(&documents, 400).unwrap();
        assert!((300..=400).contains(&tokenizer.vocabulary_size()), "{}", tokenizer.vocabulary_size());
        for text in [NASTY, "unseen: ∑∫ 𝕏 ~~~", ""] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
        }
        let end = tokenizer.end_of_document();
        assert!(!tokenizer.encode("a").unwrap().contains(&end));
        for _ in 0..3 {
            assert_eq!(Tokenizer::train_bpe(&documents, 400).unwrap().hash(), tokenizer.hash());
        }
        let json = tokenizer.to_json().unwrap();
        let again = Tokenizer::from_json(json.as_bytes(), Path::new("x"), None).unwrap();
        assert_eq!(again.encode(NASTY).unwrap(), tokenizer.encode(NASTY).unwrap());
    }

    #[test]
    fn what_is_no_tokenizer_is_named() {
        let message = |bytes: &[u8], end| {
            Tokenizer::from_json(bytes, Path::new("dir/t.json"), end).err().unwrap().to_string()
        };
        assert!(message(b"{", None).contains("tokenizer dir/t.json: not a tokenizer.json"));
        assert!(message(&[0xff, 0xfe], None).contains("dir/t.json"));
        let json = Tokenizer::train_bpe(&["abc abc"], 300).unwrap().to_json().unwrap().to_string();
        assert!(message(json.as_bytes(), Some("<none>")).contains("no token `<none>`"));
        for cut in (0..json.len()).step_by(97).filter(|cut| json.is_char_boundary(*cut)) {
            assert!(Tokenizer::from_json(&json.as_bytes()[..cut], Path::new("t"), None).is_err());
        }
    }

    /// The library looks for a template's token when it encodes, and ends in a panic.
    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let template = serde_json::json!({
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        });
        let within = |inner| serde_json::json!({ "type": "Sequence", "processors": [inner] });
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": within(within(template)),
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "a": 0, "</s>": 1 }, "unk_token": "a" },
        });
        let bytes = json.to_string().into_bytes();
        let own = PublishedTokenizer::from_json(&bytes, Path::new("t"), 2).unwrap();
        assert_eq!(own.encode("a", false).unwrap(), [0]);
        let text = Text { tokenizer: Some((bytes, "t".into())), ..Text::default() };
        let errors = [own.encode("a", true).err(), Tokenizer::published(&text, Some("</s>"), 2).err()];
        for error in errors {
            let error = error.unwrap().to_string();
            assert!(error.contains("the library gave up on it"), "{error}");
        }
        let thrown = encoded(|| panic!("a test"));
        assert!(thrown.unwrap_err().to_string().contains("could not be tokenized"));
    }

    #[test]
    fn what_looks_like_a_marker_is_text_and_nothing_is_cut_or_padded() {
        let trained = Tokenizer::train_bpe(&["some text, some more text"], 300).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(trained.to_json().unwrap()).unwrap();
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
        });
        json["padding"] = serde_json::json!({
            "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": END
        });
        let read = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t"), None).unwrap();
        let text = format!("text that names {END} in its midst");
        for tokenizer in [&trained, &read] {
            let tokens = tokenizer.encode(&text).unwrap();
            assert!(!tokens.contains(&tokenizer.end_of_document()));
            assert_eq!(tokenizer.decode(&tokens), text);
            assert_eq!(tokenizer.encoder().encode(&text).unwrap(), tokens);
        }
    }
}
