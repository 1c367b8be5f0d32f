//! Many texts to tokens, fast: pieces that came before are looked up.
//!
//! A tokenizer that is trained here cuts a text into pieces ([`WORDS`](super::train::WORDS)) and encodes each by itself.
//! Source text repeats few pieces often, so an encoder keeps the tokens of each piece that it met. ASCII is cut by the
//! scanner below; other text, and each piece that is new, goes through the library. Both give the same tokens, which a
//! test holds against each other.

use super::{Kind, Tokenizer, TokenizerError};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

/// Longer pieces are not kept; they hardly come again.
const PIECE_BYTES_MAX: usize = 64;
/// At most so many pieces are kept.
const PIECES_MAX: usize = 1 << 20;
/// Text that is not ASCII goes through the library in parts of about this size, so that the ASCII around it does not.
const PART_BYTES: usize = 256;

/// Turns texts into tokens, and learns while it does.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    known: HashMap<Box<[u8]>, Box<[u32]>, BuildHasherDefault<DefaultHasher>>,
}

impl Tokenizer {
    /// An encoder; its tokens are those of [`Tokenizer::encode`].
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: self, known: HashMap::default() }
    }
}

impl Encoder<'_> {
    /// The tokens of a text, without markers.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub fn encode(&mut self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if !matches!(self.tokenizer.kind, Kind::Library { pieces_known: true, .. }) {
            return self.tokenizer.encode(text);
        }
        let mut tokens = Vec::with_capacity(text.len() / 3);
        for part in parts(text, if text.is_ascii() { usize::MAX } else { PART_BYTES }) {
            if part.is_ascii() {
                self.encode_ascii(part, &mut tokens)?;
            } else {
                tokens.extend(self.tokenizer.encode(part)?);
            }
        }
        Ok(tokens)
    }

    fn encode_ascii(&mut self, text: &str, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(first_piece(rest.as_bytes()));
            rest = after;
            if let Some(known) = self.known.get(piece.as_bytes()) {
                tokens.extend_from_slice(known);
                continue;
            }
            let new = self.tokenizer.encode(piece)?;
            tokens.extend_from_slice(&new);
            if piece.len() <= PIECE_BYTES_MAX && self.known.len() < PIECES_MAX {
                self.known.insert(piece.as_bytes().into(), new.into());
            }
        }
        Ok(())
    }
}

/// The length of the first match of [`WORDS`](super::train::WORDS) in ASCII text that is not empty: its alternatives in
/// their order.
fn first_piece(text: &[u8]) -> usize {
    let at = |place: usize| text.get(place).copied();
    let run = |from: usize, within: fn(u8) -> bool| {
        from + text[from..].iter().take_while(|byte| within(**byte)).count()
    };
    let is = |place: usize, class: fn(u8) -> bool| at(place).is_some_and(class);
    let first = text[0];
    if letter(first) {
        return run(0, letter);
    }
    if !line_end(first) && !first.is_ascii_digit() && is(1, letter) {
        return run(1, letter);
    }
    if first.is_ascii_digit() {
        return run(0, |byte| byte.is_ascii_digit()).min(3);
    }
    let sign_at = usize::from(first == b' ');
    if is(sign_at, sign) {
        return run(run(sign_at, sign), line_end);
    }
    // White space is left.
    let blank_end = run(0, blank);
    match text[..blank_end].iter().rposition(|byte| line_end(*byte)) {
        Some(last) => last + 1,
        None if blank_end == text.len() => blank_end,
        // The last blank belongs to what follows.
        None => (blank_end - 1).max(1),
    }
}

fn letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic()
}

fn line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// Unicode's White_Space within ASCII.
fn blank(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

fn sign(byte: u8) -> bool {
    !blank(byte) && !byte.is_ascii_alphanumeric()
}

/// Cuts a text into parts of at least `bytes` bytes, between a line feed and an ASCII letter or closing brace: places
/// that no piece reaches across.
pub(crate) fn parts(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (part, after) = rest.split_at(line_break(rest, bytes));
        rest = after;
        Some(part)
    })
}

/// The first such place at or after `from`, or the end.
fn line_break(text: &str, from: usize) -> usize {
    let bytes = text.as_bytes();
    (from.max(1)..bytes.len())
        .find(|&place| {
            bytes[place - 1] == b'\n' && (bytes[place].is_ascii_alphabetic() || bytes[place] == b'}')
        })
        .unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Tokenizer};
    use super::{line_break, parts};
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::LazyLock;

    static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| {
        let text = include_str!("encoder.rs").repeat(3);
        Tokenizer::train_bpe(&[&text, "größer und kleiner – 漢字\n"], 700).unwrap()
    });

    #[test]
    fn parts_make_up_the_text_and_end_at_lines() {
        let text = "fn é() {\n    one();\n\n}\nfn b() {\n    two();\n}\n".repeat(50);
        let cut: Vec<&str> = parts(&text, 100).collect();
        assert!(cut.len() > 10);
        assert_eq!(cut.concat(), text);
        for part in &cut[..cut.len() - 1] {
            assert!(part.len() >= 100 && part.ends_with('\n'), "{part:?}");
        }
        assert_eq!(line_break("no line at all", 3), 14);
        assert_eq!(parts("", 10).count(), 0);
    }

    #[test]
    fn source_text_has_the_library_s_tokens() {
        let tokenizer = &*TRAINED;
        assert!(matches!(tokenizer.kind, Kind::Library { pieces_known: true, .. }));
        let mut encoder = tokenizer.encoder();
        for text in
            [include_str!("encoder.rs"), include_str!("train.rs"), include_str!("../tokenizer.rs"), ""]
        {
            let expected = tokenizer.encode(text).unwrap();
            assert_eq!(encoder.encode(text).unwrap(), expected);
            assert_eq!(encoder.encode(text).unwrap(), expected, "from what is known");
        }
        assert!(encoder.known.len() > 100);
    }

    #[test]
    fn other_tokenizers_are_left_to_the_library() {
        let mut json: serde_json::Value = serde_json::from_str(TRAINED.to_json().unwrap()).unwrap();
        let known = |json: &serde_json::Value| {
            let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t"), None).unwrap();
            matches!(tokenizer.kind, Kind::Library { pieces_known: true, .. })
        };
        assert!(known(&json));
        let whole = json.clone();
        json["normalizer"] = serde_json::json!({ "type": "NFC" });
        assert!(!known(&json));
        json = whole.clone();
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+".into();
        assert!(!known(&json));
        json = whole;
        json["added_tokens"][0]["special"] = false.into();
        assert!(!known(&json));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn any_ascii_has_the_library_s_tokens(text in "[ -~\t\n\r\u{b}\u{c}\u{0}\u{1c}\u{7f}]{0,60}") {
            prop_assert_eq!(TRAINED.encoder().encode(&text).unwrap(), TRAINED.encode(&text).unwrap());
        }

        #[test]
        fn blanks_and_borders_have_the_library_s_tokens(text in "[ \t\n\r\u{b}a1}.']{0,24}") {
            prop_assert_eq!(TRAINED.encoder().encode(&text).unwrap(), TRAINED.encode(&text).unwrap());
        }

        #[test]
        fn any_text_has_the_library_s_tokens(text in "([a-z é漢\u{a0}\u{2003}\n}]|\n[ax}]){0,200}") {
            let mut encoder = TRAINED.encoder();
            let text = text.repeat(4);
            prop_assert_eq!(encoder.encode(&text).unwrap(), TRAINED.encode(&text).unwrap());
        }
    }
}
