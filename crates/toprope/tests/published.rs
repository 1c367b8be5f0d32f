//! Published models through the binary: `eval`, `generate`, `chat`, `export`, `inspect`.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use safetensors::SafeTensors;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::{golden, words_tokenizer};
use tempfile::TempDir;

const RECORDS: [&str; 10] = [
    "deepseek-default",
    "deepseek-fp8",
    "deepseek-mscale",
    "deepseek-yarn",
    "llama-default",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "qwen2-default",
    "qwen2-yarn",
];

fn toprope(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toprope")).args(arguments).output().unwrap()
}

fn done(arguments: &[&str]) -> String {
    let output = toprope(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// One error with this exit code and these words.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = toprope(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{arguments:?}: {word:?} is not in: {error}");
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn numbers(path: &Path, name: &str) -> (Vec<usize>, Vec<f64>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let words = view.data().chunks_exact(4).map(|word| <[u8; 4]>::try_from(word).unwrap());
    let numbers = match view.dtype() {
        safetensors::Dtype::I32 => words.map(|word| f64::from(i32::from_le_bytes(word))).collect(),
        _ => words.map(|word| f64::from(f32::from_le_bytes(word))).collect(),
    };
    (view.shape().to_vec(), numbers)
}

/// The record's tokens as an argument.
fn tokens(record: &str) -> String {
    let (_, tokens) = numbers(&golden("hub").join(record).join("expected.safetensors"), "tokens");
    tokens.iter().map(|token| token.to_string()).collect::<Vec<_>>().join(",")
}

fn logits(model: &Path, tokens: &str, dtype: &str, to: &Path) -> (Vec<usize>, Vec<f64>) {
    let (model, out) = (model.to_str().unwrap(), to.to_str().unwrap());
    done(&["eval", model, "--tokens", tokens, "--dtype", dtype, "--logits", out]);
    numbers(to, "logits")
}

fn distance(have: &[f64], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len());
    let largest = want.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let apart = have.iter().zip(want).map(|(a, b)| (a - b).abs() / largest);
    apart.fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { x.max(most) })
}

#[test]
fn logits_are_those_of_transformers_and_an_export_gives_the_same() {
    let room = TempDir::new().unwrap();
    for record in RECORDS {
        let (model, tokens) = (golden("hub").join(record), tokens(record));
        let (shape, want) = numbers(&model.join("expected.safetensors"), "logits");
        let out = |name: &str| room.path().join(format!("{record}.{name}.safetensors"));
        let (have_shape, have) = logits(&model, &tokens, "f32", &out("f32"));
        assert_eq!(have_shape, shape, "{record}");
        let apart = distance(&have, &want);
        assert!(apart <= 1e-4, "{record}: f32 lies {apart:e} of the largest logit apart");
        let (_, rounded) = logits(&model, &tokens, "bf16", &out("bf16"));
        let apart = distance(&rounded, &want);
        // Where experts are chosen, a rounding can choose another one.
        let bound = if record.starts_with("deepseek") { 0.5 } else { 0.1 };
        assert!(apart > 0.0 && apart <= bound, "{record}: bf16 lies {apart:e} of the largest logit apart");
        let exported = room.path().join(record);
        done(&["export", model.to_str().unwrap(), exported.to_str().unwrap()]);
        let (_, again) = logits(&exported, &tokens, "f32", &out("again"));
        assert_eq!(again, have, "{record}");
    }
}

#[test]
fn gguf_files_are_evaluated_shown_and_exported() {
    let room = TempDir::new().unwrap();
    for (name, record) in
        [("llama", "llama-default"), ("qwen2", "qwen2-default"), ("deepseek2-split", "deepseek-fp8")]
    {
        let model = golden(&format!("gguf/{name}.gguf"));
        let (_, want) = numbers(&golden("hub").join(record).join("expected.safetensors"), "logits");
        let (_, have) = logits(&model, &tokens(record), "f32", &room.path().join(name));
        let apart = distance(&have, &want);
        assert!(apart <= 1e-4, "{name}: {apart:e} of the largest logit apart");
        let shown = done(&["inspect", model.to_str().unwrap()]);
        assert!(shown.contains("GGUF") && shown.contains("F32"), "{shown}");
        let exported = room.path().join(format!("{name}-exported"));
        done(&["export", model.to_str().unwrap(), exported.to_str().unwrap()]);
        let (_, again) =
            logits(&exported, &tokens(record), "f32", &room.path().join(format!("{name}-again")));
        assert_eq!(again, have, "{name}");
    }
    let shown = done(&["inspect", golden("hub/llama-llama3").to_str().unwrap(), "--json"]);
    let described = json(&shown);
    assert_eq!(described["architecture"], "llama");
    assert_eq!(described["stored"]["BF16"]["tensors"], 34);
    assert!(shown.contains("llama3 by 8") && shown.contains("(tied)"), "{shown}");
}

#[test]
fn what_is_refused_is_shown_before_the_reason() {
    let mut bytes = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    let key = b"general.architecture";
    let place = bytes.windows(key.len()).position(|part| part == key).unwrap();
    // Behind the key stand the value's type and its length.
    let value = place + key.len() + 12;
    assert_eq!(&bytes[value..value + 5], b"llama");
    bytes[value..value + 5].copy_from_slice(b"mamba");
    let room = TempDir::new().unwrap();
    let model = room.path().join("mamba.gguf");
    std::fs::write(&model, bytes).unwrap();
    let output = toprope(&["inspect", model.to_str().unwrap(), "--json"]);
    let (shown, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(
        shown.contains("GGUF") && shown.contains("mamba") && shown.contains("F32: 21 tensors"),
        "{shown}"
    );
    assert!(error.contains("`general.architecture` is \"mamba\""), "{error}");
    assert!(json(&shown)["refused"].as_str().unwrap().contains("mamba"));
}

#[test]
fn a_tokenizer_is_told_in_words() {
    let shown = done(&["inspect", golden("tokenizers/smollm.gguf").to_str().unwrap()]);
    assert!(shown.contains("BPE, 400 tokens, 2 of them markers, without a chat template"), "{shown}");
    let room = talking(None);
    let tokenizer = room.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    std::fs::write(&tokenizer, text.replace("\"w42\":42", "\"w42\":43")).unwrap();
    let shown = done(&["inspect", room.path().to_str().unwrap()]);
    assert!(shown.contains("44 tokens") && shown.contains("will be refused"), "{shown}");
}

/// A record's folder with a tokenizer of one word a token.
fn talking(template: Option<&str>) -> TempDir {
    let room = TempDir::new().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("hub/qwen2-default").join(file), room.path().join(file)).unwrap();
    }
    let tokenizer = words_tokenizer(43, &[]);
    std::fs::write(room.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut config = serde_json::json!({ "eos_token": "w1" });
    if let Some(template) = template {
        config["chat_template"] = template.into();
    }
    std::fs::write(room.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    room
}

#[test]
fn greedy_text_from_caches_is_that_of_whole_windows() {
    let room = talking(None);
    let model = room.path().to_str().unwrap();
    let said = json(&done(&[
        "generate",
        model,
        "--prompt",
        "w7 w3 w11",
        "--max-tokens",
        "12",
        "--ignore-end",
        "--warm-up",
        "--json",
    ]));
    let made: Vec<u64> =
        said["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
    assert_eq!(said["prompt"], serde_json::json!([7, 3, 11]));
    assert_eq!(made.len(), 12);
    let mut window = vec![7u64, 3, 11];
    for token in made {
        let tokens = window.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let next = json(&done(&["eval", model, "--tokens", &tokens, "--json"]));
        assert_eq!(next["next"].as_array().unwrap().last().unwrap().as_u64(), Some(token), "behind {tokens}");
        window.push(token);
    }
    let drawn = |seed: &str| {
        let arguments = [
            "generate",
            model,
            "--prompt",
            "w7",
            "--max-tokens",
            "12",
            "--temperature",
            "1.5",
            "--seed",
            seed,
        ];
        done(&arguments)
    };
    assert_eq!(drawn("4"), drawn("4"));
    assert!((0..8).any(|seed| drawn(&seed.to_string()) != drawn("4")));
}

#[test]
fn a_conversation_goes_through_the_template() {
    let room = talking(Some("{% for m in messages %}{{ m.content }} w2 {% endfor %}"));
    let model = room.path().to_str().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_toprope"))
        .args(["chat", model, "--max-tokens", "3", "--ignore-end", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"w5 w6\nw9\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = json(&String::from_utf8(output.stdout).unwrap());
    let messages = said["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[2], serde_json::json!({ "role": "user", "content": "w9" }));
    // What it answers first is what it says to the same prompt alone.
    let alone = json(&done(&[
        "generate",
        model,
        "--prompt",
        "w5 w6 w2",
        "--max-tokens",
        "3",
        "--ignore-end",
        "--json",
    ]));
    assert_eq!(messages[1]["content"], alone["text"]);
}

#[test]
fn a_text_is_evaluated_as_its_tokens_are() {
    let room = talking(None);
    let model = room.path().to_str().unwrap();
    let text = room.path().join("text.txt");
    std::fs::write(&text, "w1 w2 w3 w4 w5 w6 w7 w8 w9").unwrap();
    let of_tokens = json(&done(&["eval", model, "--tokens", "1,2,3,4,5,6,7,8,9", "--json"]));
    let of_text = json(&done(&["eval", model, "--data", text.to_str().unwrap(), "--json"]));
    let loss = |said: &serde_json::Value| said["loss"].as_f64().unwrap();
    assert!((loss(&of_tokens) - loss(&of_text)).abs() < 1e-5);
    let bits = loss(&of_text) * 8.0 / std::f64::consts::LN_2 / 26.0;
    assert!((of_text["bits_per_byte"].as_f64().unwrap() - bits).abs() < 1e-9);
    // Bytes that are no UTF-8 are told, and the rest of the text counts.
    let torn = room.path().join("torn.txt");
    std::fs::write(&torn, b"w1 w2 \xff w4").unwrap();
    let output = toprope(&["eval", model, "--data", torn.to_str().unwrap(), "--json"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("byte 6 is not UTF-8"));
    let said = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!((said["tokens"].as_f64(), said["bytes"].as_u64()), (Some(3.0), Some(10)));
    // Windows of three share a token: each token is predicted once.
    let windows = json(&done(&["eval", model, "--data", text.to_str().unwrap(), "--context", "3", "--json"]));
    let parts = ["1,2,3", "3,4,5", "5,6,7", "7,8,9"]
        .map(|part| loss(&json(&done(&["eval", model, "--tokens", part, "--json"]))));
    assert_eq!(windows["tokens"].as_f64(), Some(8.0));
    assert!((loss(&windows) - parts.iter().sum::<f64>() / 4.0).abs() < 1e-5);
}

#[test]
fn what_does_not_fit_is_one_error() {
    let record = golden("hub/qwen2-default");
    let model = record.to_str().unwrap();
    let room = talking(None);
    let there = room.path().join("config.json");
    refused(&["eval", model, "--tokens", "1,43"], 2, &["43 is none of the 43 tokens"]);
    refused(&["eval", model, "--tokens", "1,-1"], 2, &["-1"]);
    refused(&["eval", model], 2, &["--data FILE"]);
    refused(&["eval", model, "--tokens", "1", "--logits", there.to_str().unwrap()], 5, &["exists already"]);
    refused(&["eval", model, "--data", there.to_str().unwrap()], 4, &["tokenizer.json", "--tokens"]);
    refused(&["eval", model, "--tokens", &vec!["1"; 65].join(",")], 3, &["max_position_embeddings"]);
    refused(&["eval", "nothing/here", "--tokens", "1"], 3, &["nothing/here", "no config.json"]);
    refused(&["export", model, room.path().to_str().unwrap()], 5, &["exists already"]);
    refused(&["chat", room.path().to_str().unwrap()], 3, &["no chat template"]);
    refused(&["generate", room.path().to_str().unwrap(), "--prompt", ""], 2, &["--prompt"]);
    let tokenizer = std::fs::read_to_string(room.path().join("tokenizer.json")).unwrap();
    std::fs::write(room.path().join("tokenizer.json"), tokenizer.replace("\"w42\":42", "\"w42\":43"))
        .unwrap();
    let talking = room.path().to_str().unwrap();
    refused(
        &["generate", talking, "--prompt", "w1"],
        4,
        &["44 tokens do not fit the model's vocabulary of 43"],
    );
}
