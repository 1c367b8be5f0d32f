//! Documents as one array of tokens.

use super::{DataError, Document};
use crate::tokenizer::{Tokenizer, parts};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens in the smallest integers that hold the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenStore {
    /// A vocabulary of at most 65,536.
    U16(Vec<u16>),
    /// A larger one.
    U32(Vec<u32>),
}

impl TokenStore {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(tokens) => tokens.len(),
            Self::U32(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The token at a place below [`len`](Self::len).
    pub fn at(&self, index: usize) -> i32 {
        match self {
            Self::U16(tokens) => i32::from(tokens[index]),
            Self::U32(tokens) => tokens[index] as i32,
        }
    }
}

/// Tokenized documents, one after the other.
///
/// A document is the token that begins one (but for some published models the one that ends one), its text's tokens, and
/// the end-of-document token. The first is never
/// predicted: the text's first token is predicted from it, as a model that ended one document begins the next. Each
/// token of the text and the last marker is predicted once. So the bits of a text are the sum over all its targets, the
/// end included, and its bytes are those of the text alone: markers count as zero bytes. That is slightly to a model's
/// disadvantage beside a compressor of the concatenated text, which need not say where documents end.
///
/// A conversation is the tokens of its text, markers in it known, with none around it: its template has them. Of its tokens
/// those are predicted that begin in a range that is, and its bytes are those ranges'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    store: TokenStore,
    /// Whether each token is predicted; none where all are that have one before them.
    learnt: Option<Vec<bool>>,
    /// The first token of each document, and after the last one the number of tokens.
    starts: Vec<usize>,
    bytes: u64,
    vocabulary_size: usize,
    padding: i32,
    origin: String,
}

/// Long documents are tokenized in parts of about this size where the tokenizer does not mind: its memory is many times
/// its input, and threads share the work.
const PART_BYTES: usize = 64 << 10;

impl Tokens {
    /// Tokenizes documents, each by itself, on `threads` threads; the result does not depend on their number.
    /// `origin` names the data in messages.
    ///
    /// # Errors
    /// A document that the tokenizer refuses.
    pub fn of_documents(
        documents: &[Document],
        tokenizer: &Tokenizer,
        threads: usize,
        origin: &str,
    ) -> Result<Self, DataError> {
        let part_bytes = if breaks_at_lines(tokenizer) { PART_BYTES } else { usize::MAX };
        let parts: Vec<(usize, &str)> = documents
            .iter()
            .enumerate()
            .flat_map(|(index, document)| {
                let whole = document.learnt.is_some();
                let bytes = if whole { usize::MAX } else { part_bytes };
                parts(&document.text, bytes).map(move |part| (index, part))
            })
            .collect();
        let (encoded, marks) = encode_all(documents, &parts, tokenizer, threads)?;
        let count = encoded.iter().map(Vec::len).sum::<usize>() + 2 * documents.len();
        let vocabulary_size = tokenizer.vocabulary_size();
        let mut starts = Vec::with_capacity(documents.len() + 1);
        let store = if vocabulary_size <= 1 << 16 {
            TokenStore::U16(flatten(documents, &parts, encoded, tokenizer, count, &mut starts, |t| t as u16))
        } else {
            TokenStore::U32(flatten(documents, &parts, encoded, tokenizer, count, &mut starts, |t| t))
        };
        let learnt = marks.map(|marks| masks(documents, &parts, &marks, &starts));
        Ok(Self {
            store,
            learnt,
            starts,
            bytes: documents.iter().map(Document::learnt_bytes).sum(),
            vocabulary_size,
            padding: tokenizer.end_of_document() as i32,
            origin: origin.to_owned(),
        })
    }

    /// How many tokens there are, markers included.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of the documents' texts that are predicted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tokens that are predicted: all but the start of each document, or those that are learnt.
    pub fn targets(&self) -> u64 {
        match &self.learnt {
            None => (self.len() - self.documents()) as u64,
            Some(learnt) => learnt.iter().filter(|learnt| **learnt).count() as u64,
        }
    }

    /// Whether the token at a place below [`len`](Self::len) is predicted, where one stands before it in its document.
    pub(super) fn is_learnt(&self, index: usize) -> bool {
        self.learnt.as_ref().is_none_or(|learnt| learnt[index])
    }

    /// Larger than each token.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The tokens themselves.
    pub fn store(&self) -> &TokenStore {
        &self.store
    }

    /// The data in a few words, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What stands where there is no token.
    pub(super) fn padding(&self) -> i32 {
        self.padding
    }

    /// First token and end of the document that holds the token at `index`.
    pub(super) fn document_around(&self, index: usize) -> (usize, usize) {
        let document = self.starts.partition_point(|start| *start <= index) - 1;
        (self.starts[document], self.starts[document + 1])
    }
}

/// Which tokens of a part are learnt; empty where the document says nothing of it.
type Marks = Vec<bool>;

/// Tokens of each part, and their marks where any document has them.
type Encoded = (Vec<Vec<u32>>, Option<Vec<Marks>>);

/// Tokens of each part, and where a document says which are learnt, those marks.
fn encode_all(
    documents: &[Document],
    parts: &[(usize, &str)],
    tokenizer: &Tokenizer,
    threads: usize,
) -> Result<Encoded, DataError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut encoder = tokenizer.encoder();
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((document, text)) = parts.get(index) else { return done };
            done.push((
                index,
                match &documents[*document].learnt {
                    None => encoder.encode(text).map(|tokens| (tokens, Marks::new())),
                    Some(learnt) => tokenizer.encode_marked(text).map(|places| marked(places, learnt)),
                },
            ));
        }
    };
    let mut encoded = vec![Vec::new(); parts.len()];
    let mut marks = vec![Marks::new(); parts.len()];
    let mut failed: Option<(usize, String)> = None;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, parts.len().max(1))).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(done) => {
                    for (index, result) in done {
                        match result {
                            Ok((tokens, learnt)) => (encoded[index], marks[index]) = (tokens, learnt),
                            Err(error) if failed.as_ref().is_none_or(|(first, _)| index < *first) => {
                                failed = Some((index, error.to_string()));
                            }
                            Err(_) => {}
                        }
                    }
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    match failed {
        None => {
            let any = documents.iter().any(|document| document.learnt.is_some());
            Ok((encoded, any.then_some(marks)))
        }
        Some((index, reason)) => {
            Err(DataError::Tokenize { document: documents[parts[index].0].name.clone(), reason })
        }
    }
}

/// Tokens, and for each whether it begins in a range that is learnt.
fn marked(places: Vec<(u32, usize)>, learnt: &[Range<usize>]) -> (Vec<u32>, Marks) {
    places
        .into_iter()
        .map(|(token, place)| (token, learnt.iter().any(|range| range.contains(&place))))
        .unzip()
}

/// The marks of all tokens. A conversation is one part; other documents are learnt but for their first token.
fn masks(documents: &[Document], parts: &[(usize, &str)], marks: &[Marks], starts: &[usize]) -> Vec<bool> {
    let mut all = Vec::with_capacity(starts.last().copied().unwrap_or(0));
    let mut of_parts = parts.iter().zip(marks).peekable();
    for ((index, document), bounds) in documents.iter().enumerate().zip(starts.windows(2)) {
        let count = bounds[1] - bounds[0];
        let begin = all.len();
        // By owner: a text may have no tokens, so no marks, and an empty one has no part.
        while let Some((_, marks)) = of_parts.next_if(|((owner, _), _)| *owner == index) {
            all.extend(marks);
        }
        all.resize(begin + count, document.learnt.is_none());
        if let Some(first) = all.get_mut(begin).filter(|_| count > 0) {
            *first = false;
        }
    }
    all
}

fn flatten<T>(
    documents: &[Document],
    parts: &[(usize, &str)],
    encoded: Vec<Vec<u32>>,
    tokenizer: &Tokenizer,
    count: usize,
    starts: &mut Vec<usize>,
    narrow: impl Fn(u32) -> T,
) -> Vec<T> {
    let mut tokens = Vec::with_capacity(count);
    let mut parts = parts.iter().zip(encoded).peekable();
    for (index, document) in documents.iter().enumerate() {
        starts.push(tokens.len());
        let framed = document.learnt.is_none();
        if framed {
            tokens.push(narrow(tokenizer.beginning_of_document()));
        }
        while let Some((_, part)) = parts.next_if(|((owner, _), _)| *owner == index) {
            tokens.extend(part.into_iter().map(&narrow));
        }
        if framed {
            tokens.push(narrow(tokenizer.end_of_document()));
        }
    }
    starts.push(tokens.len());
    tokens
}

/// Whether a text's parts, cut between a line feed and an ASCII letter or closing brace, give the text's own tokens:
/// asked on text that has each kind of neighbour there.
fn breaks_at_lines(tokenizer: &Tokenizer) -> bool {
    let before = ["a\n", " a \n", ";\n", "\n\n", " \n\n", "1\r\n", "\t\n", "é\n", "}\n", "// -\n"];
    let after = ["a", "fn x", "Z", "z9", "}", "} a", "}\n"];
    before.iter().all(|before| {
        after.iter().all(|after| {
            let whole = tokenizer.encode(&format!("{before}{after}"));
            match (whole, tokenizer.encode(before), tokenizer.encode(after)) {
                (Ok(whole), Ok(first), Ok(second)) => whole == [first, second].concat(),
                _ => false,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{TokenStore, Tokens, breaks_at_lines};
    use crate::data::Document;
    use crate::tokenizer::Tokenizer;
    use std::ops::Range;
    use toprope_model::hub::Text;

    #[test]
    fn markers_around_each_document_and_the_same_for_all_threads() {
        assert!(breaks_at_lines(&Tokenizer::byte()));
        let long = "let a = 1;\nlet b = 2;\n".repeat(20_000);
        let documents: Vec<Document> =
            ["ab", &long, "é"].iter().map(|text| Document::new("d".to_owned(), (*text).to_owned())).collect();
        let tokens = Tokens::of_documents(&documents, &Tokenizer::byte(), 1, "test").unwrap();
        let TokenStore::U16(all) = tokens.store() else { panic!("257 tokens fit 16 bits") };
        assert_eq!(all[..5], [256, 97, 98, 256, 256]);
        assert_eq!(all[all.len() - 4..], [256, 0xC3, 0xA9, 256]);
        assert_eq!(all[5..5 + long.len()], long.bytes().map(u16::from).collect::<Vec<_>>());
        assert_eq!(tokens.bytes(), 4 + long.len() as u64);
        assert_eq!(tokens.targets(), tokens.bytes() + 3);
        assert_eq!(tokens.documents(), 3);
        for threads in [2, 7] {
            assert_eq!(
                Tokens::of_documents(&documents, &Tokenizer::byte(), threads, "test").unwrap(),
                tokens
            );
        }
    }

    #[test]
    fn a_conversation_without_tokens_leaves_the_marks_of_others_where_they_are() {
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "a": 0, "b": 1, "c": 2, "</s>": 3 }, "unk_token": "a" },
        });
        let text = Text { tokenizer: Some((json.to_string().into(), "t.json".into())), ..Text::default() };
        let tokenizer = Tokenizer::published(&text, Some("</s>"), 4).unwrap();
        let said = |text: &str, learnt: Option<Range<usize>>| Document {
            learnt: Some(Vec::from_iter(learnt)),
            ..Document::new("d".into(), text.into())
        };
        let documents = [
            said("a b c", Some(2..3)),
            said("  ", Some(0..2)),
            said("", None),
            Document::new("d".into(), "c b".into()),
            said("c b a", Some(4..5)),
        ];
        for threads in [1, 3] {
            let tokens = Tokens::of_documents(&documents, &tokenizer, threads, "test").unwrap();
            let TokenStore::U16(all) = tokens.store() else { panic!("4 tokens fit 16 bits") };
            assert_eq!(all, &[0, 1, 2, 3, 2, 1, 3, 2, 1, 0]);
            let learnt: Vec<usize> = (0..all.len()).filter(|place| tokens.is_learnt(*place)).collect();
            assert_eq!(learnt, [1, 4, 5, 6, 9]);
            assert_eq!(tokens.targets(), 5);
        }
    }

    #[test]
    fn no_documents_are_no_tokens() {
        let tokens = Tokens::of_documents(&[], &Tokenizer::byte(), 2, "test").unwrap();
        assert!(tokens.is_empty());
        assert_eq!((tokens.documents(), tokens.targets(), tokens.bytes()), (0, 0, 0));
    }
}
