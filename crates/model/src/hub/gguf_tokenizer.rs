//! GGUF's metadata to a `tokenizer.json`: byte-level BPE, with the rule by which a text is cut before.

use super::Text;
use serde_json::{Value as Json, json};
use std::path::Path;
use toprope_formats::{Gguf, Value};

/// Contractions, letters, digits by so many, the rest and white space: Llama 3's rule, and Qwen2's with single digits.
const WORDS_BY_THREE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const WORDS_BY_ONE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek-V3's three rules, one after the other.
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// Kinds of tokens: a marker, and one that somebody added.
const MARKER: i128 = 3;
const ADDED: i128 = 4;

/// What the metadata says of text.
pub(super) fn text(gguf: &Gguf, path: &Path) -> Text {
    let get = |key: &str| gguf.metadata.get(&format!("tokenizer.{key}"));
    let mut text = Text {
        chat_template: get("chat_template").and_then(Value::as_text).map(str::to_string),
        ..Text::default()
    };
    let tokens = get("ggml.tokens").and_then(Value::as_array).unwrap_or_default();
    let number = |key: &str| get(key).and_then(Value::as_usize);
    let written = |key: &str| tokens.get(number(key)?)?.as_text().map(str::to_string);
    text.beginning = written("ggml.bos_token_id");
    text.end = written("ggml.eos_token_id");
    let ends = ["ggml.eos_token_id", "ggml.eot_token_id", "ggml.eom_token_id"];
    text.ends = ends.iter().filter_map(|key| u32::try_from(number(key)?).ok()).collect();
    text.ends.sort_unstable();
    text.ends.dedup();
    match tokenizer(gguf) {
        Ok(json) => text.tokenizer = Some((json.to_string().into_bytes(), path.to_owned())),
        Err(reason) => text.no_tokenizer = Some(format!("{}: {reason}", path.display())),
    }
    text
}

fn tokenizer(gguf: &Gguf) -> Result<Json, String> {
    let get = |key: &str| gguf.metadata.get(&format!("tokenizer.ggml.{key}"));
    let model = get("model").and_then(Value::as_text).ok_or("`tokenizer.ggml.model` is missing")?;
    if model != "gpt2" {
        return Err(format!(
            "`tokenizer.ggml.model` is \"{model}\"; only \"gpt2\", byte-level BPE, is supported"
        ));
    }
    let cut = get("pre").and_then(Value::as_text).unwrap_or("default");
    let pre_tokenizer = pre_tokenizer(cut)
        .ok_or_else(|| format!("`tokenizer.ggml.pre` is \"{cut}\", which is not supported"))?;
    let array = |key: &str| {
        get(key).and_then(Value::as_array).ok_or_else(|| format!("`tokenizer.ggml.{key}` is missing"))
    };
    let (tokens, merges) = (array("tokens")?, array("merges")?);
    let kinds = get("token_type").and_then(Value::as_array).unwrap_or_default();
    let (mut vocabulary, mut added) = (serde_json::Map::new(), Vec::new());
    for (number, token) in tokens.iter().enumerate() {
        let token = token.as_text().ok_or("`tokenizer.ggml.tokens` holds what is no text")?;
        let kind = kinds.get(number);
        let is = |wanted| matches!(kind, Some(Value::Integer(kind)) if *kind == wanted);
        if is(MARKER) || is(ADDED) {
            added.push(json!({
                "id": number, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is(MARKER),
            }));
        }
        vocabulary.insert(token.to_string(), number.into());
    }
    let merges: Vec<&str> = merges.iter().filter_map(Value::as_text).collect();
    // A file that says to begin texts with a marker says which.
    let begins = matches!(get("add_bos_token"), Some(Value::Bool(true)));
    let beginning =
        get("bos_token_id").and_then(Value::as_usize).and_then(|id| Some((id, tokens.get(id)?.as_text()?)));
    let post_processor = match beginning.filter(|_| begins) {
        None => Json::Null,
        Some((id, token)) => json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": token, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
        }),
    };
    // Qwen composes characters before it cuts; GGUF has no key for that, and llama.cpp leaves it out.
    let normalizer = if cut == "qwen2" { json!({ "type": "NFC" }) } else { Json::Null };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": cut == "llama-bpe", "vocab": vocabulary, "merges": merges,
        },
    }))
}

/// How a text is cut into pieces before merging, by the name that GGUF has for it.
fn pre_tokenizer(name: &str) -> Option<Json> {
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let all = |steps: Vec<Json>| json!({ "type": "Sequence", "pretokenizers": steps });
    Some(match name {
        "gpt-2" => bytes(true),
        "smollm" | "starcoder" | "refact" => {
            all(vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true)])
        }
        "llama-bpe" | "llama3" | "llama-v3" => all(vec![split(WORDS_BY_THREE), bytes(false)]),
        "qwen2" | "deepseek-r1-qwen" => all(vec![split(WORDS_BY_ONE), bytes(false)]),
        "deepseek-v3" => all(DEEPSEEK.into_iter().map(split).chain([bytes(false)]).collect()),
        _ => return None,
    })
}
