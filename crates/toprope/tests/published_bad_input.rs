//! Published models that are damaged, lie or ask for what is not supported, each through the binary: one error that names the
//! file, the place and the mend, with less memory than any model would take.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

#[path = "../../formats/tests/support/forged.rs"]
mod forged;
mod support;

use forged::*;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::copied::copy;
use support::{Case, fails, golden, words_tokenizer};

/// The address space that a refusal may take, in KiB.
const ADDRESSES_KIB: usize = 512 << 10;
/// Files that may be open at a time.
const OPEN_FILES: usize = 64;

/// A copy of a record, to be damaged.
fn copied(case: &Case, record: &str) -> PathBuf {
    let to = case.path(record);
    copy(&golden("hub").join(record), &to);
    std::fs::remove_file(to.join("expected.safetensors")).unwrap();
    to
}

/// Runs the binary with little memory, and few files open at a time.
fn limited(arguments: &[&str]) -> Output {
    let script = format!("ulimit -v {ADDRESSES_KIB} && ulimit -n {OPEN_FILES} && exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_toprope")])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Every verb that opens a model refuses this one with these words.
#[track_caller]
fn refused(model: &Path, words: &[&str]) {
    let model = model.to_str().unwrap();
    let words = [&[model], words].concat();
    for arguments in [
        &["inspect", model][..],
        &["eval", model, "--tokens", "1,2"],
        &["generate", model, "--prompt", "a"],
        &["chat", model],
    ] {
        fails(&limited(arguments), 3, &words);
    }
}

fn replace(path: &Path, from: &str, to: &str) {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("{from} is not in {}", path.display()));
    std::fs::write(path, [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()).unwrap();
}

#[test]
fn a_folder_that_is_cut_or_lies_is_refused() {
    let case = Case::new();
    let model = copied(&case, "qwen2-default");
    let (weights, config) = (model.join("model.safetensors"), model.join("config.json"));
    let whole = std::fs::read(&weights).unwrap();
    let published = std::fs::read(&config).unwrap();
    for (end, place) in [(4, "the header's length"), (700, "the header"), (whole.len() - 1, "tensor `")] {
        std::fs::write(&weights, &whole[..end]).unwrap();
        refused(&model, &["model.safetensors", place, "needs", "hint:"]);
    }
    // Each change keeps the header's length.
    let lies: [(&str, &str, &[&str]); 6] = [
        ("\"data_offsets\":[0,1376]", "\"data_offsets\":[0,1378]", &["embed_tokens", "takes 1376 bytes"]),
        ("\"data_offsets\":[1376,1408]", "\"data_offsets\":[1374,1406]", &["overlap"]),
        ("\"shape\":[43,16]", "\"shape\":[16,43]", &["embed_tokens", "[16, 43]", "[43, 16]", "config.json"]),
        ("\"BF16\",\"shape\":[43,16]", "\"I16\", \"shape\":[43,16]", &["embed_tokens", "stored as I16"]),
        ("\"BF16\",\"shape\":[43,16]", "\"F4\",  \"shape\":[43,16]", &["embed_tokens", "`F4` is not known"]),
        ("__metadata__", "__metadata_\u{1}", &["the header"]),
    ];
    for (from, to, words) in lies {
        std::fs::write(&weights, &whole).unwrap();
        replace(&weights, from, to);
        refused(&model, &[&["model.safetensors", "hint:"], words].concat());
    }
    std::fs::write(&weights, &whole).unwrap();
    let contradictions: [(&str, &str, &[&str]); 6] = [
        ("\"vocab_size\": 43", "\"vocab_size\": 44", &["embed_tokens", "[44, 16]"]),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", &["model.layers.2", "is missing"]),
        ("\"vocab_size\": 43", "\"vocab_size\": 1000000000000", &["config.json", "`vocab_size`"]),
        ("Qwen2ForCausalLM", "MambaForCausalLM", &["config.json", "MambaForCausalLM"]),
        (
            "\"use_cache\": true",
            "\"quantization_config\": {\"quant_method\": \"awq\"}",
            &["config.json", "quantization_config.quant_method"],
        ),
        ("\"vocab_size\"", "\"vocab_size", &["config.json", "line"]),
    ];
    for (from, to, words) in contradictions {
        std::fs::write(&config, &published).unwrap();
        replace(&config, from, to);
        refused(&model, words);
    }
    let model = copied(&case, "llama-default");
    std::fs::remove_file(model.join("model-00003-of-00004.safetensors")).unwrap();
    refused(&model, &["model.safetensors.index.json", "model-00003-of-00004.safetensors"]);
}

/// A header that is true of a file with holes, so that only the configuration speaks against a tensor of 10¹² elements.
#[test]
fn a_tensor_of_a_million_million_elements_asks_for_no_memory() {
    let case = Case::new();
    let model = copied(&case, "qwen2-default");
    let weights = model.join("model.safetensors");
    let (elements, bytes) = (1_000_000_000_000u64, 2_000_000_000_000u64);
    let header = format!(
        "{{\"model.embed_tokens.weight\":{{\"dtype\":\"BF16\",\"shape\":[{elements}],\"data_offsets\":[0,{bytes}]}}}}"
    );
    let head = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let file = std::fs::File::create(&weights).unwrap();
    std::io::Write::write_all(&mut &file, &head).unwrap();
    file.set_len(head.len() as u64 + bytes).unwrap();
    refused(&model, &["embed_tokens", "[1000000000000]", "[43, 16]"]);
}

#[test]
fn a_gguf_file_that_is_cut_or_lies_is_refused() {
    let case = Case::new();
    let whole = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    let model = case.path("model.gguf");
    for end in [0, 3, 23, 700, whole.len() - 64] {
        std::fs::write(&model, &whole[..end]).unwrap();
        refused(&model, &["hint:"]);
    }
    for (from, to, word) in [
        ("general.architecture", "general.architectura", "`general.architecture` is missing"),
        ("llama.block_count", "llama.block_cound", "llama.block_coun"),
        ("blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "blk.1.ffn_up.weight"),
    ] {
        std::fs::write(&model, &whole).unwrap();
        replace(&model, from, to);
        refused(&model, &[word]);
    }
    // The record: the name, the number of dimensions, two sizes, the format, the offset.
    let name = b"blk.1.ffn_up.weight";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    for (place, number, words) in [
        (4 + 16, 26u64, &["blk.1.ffn_up.weight", "is stored as I32"][..]),
        (4 + 16, 99, &["blk.1.ffn_up.weight", "its format 99 is not known"]),
        (4 + 16, 16, &["blk.1.ffn_up.weight", "whole blocks of 256"]),
        (4, 1 << 31, &["blk.1.ffn_up.weight"]),
        (4 + 16 + 4, 1 << 20, &["blk.1.ffn_up.weight", "needs"]),
    ] {
        let mut changed = whole.clone();
        let bytes = number.to_le_bytes();
        let width = if place == 4 + 16 { 4 } else { 8 };
        changed[at + place..at + place + width].copy_from_slice(&bytes[..width]);
        std::fs::write(&model, changed).unwrap();
        refused(&model, words);
    }
}

/// A template that fails, loops or grows is refused without the memory for it.
#[test]
fn a_chat_template_that_fails_loops_or_grows_is_refused() {
    let case = Case::new();
    let model = copied(&case, "qwen2-default");
    let tokenizer = words_tokenizer(43, &[]);
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (template, word) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}", "fuel"),
        (
            "{% set a = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set a.x = a.x ~ a.x %}{% endfor %}",
            "fuel",
        ),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "line 1"),
        ("{{ messages.nothing.more }}", "undefined"),
    ] {
        std::fs::write(model.join("chat_template.jinja"), template).unwrap();
        let output = limited(&["chat", model.to_str().unwrap()]);
        fails(&output, 3, &[model.to_str().unwrap(), "the chat template", word, "hint:"]);
    }
    std::fs::write(model.join("tokenizer_config.json"), "{\"chat_template\": ").unwrap();
    fails(&limited(&["chat", model.to_str().unwrap()]), 3, &["tokenizer_config.json"]);
    std::fs::remove_file(model.join("tokenizer_config.json")).unwrap();
    let mut marked = tokenizer.clone();
    marked["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }], "pair": [],
        "special_tokens": {},
    });
    std::fs::write(model.join("tokenizer.json"), marked.to_string()).unwrap();
    let output = limited(&["generate", model.to_str().unwrap(), "--prompt", "w1"]);
    fails(&output, 4, &["tokenizer.json", "`post_processor`", "\"<s>\""]);
    for text in ["", "{}", "{\"model\": {\"type\": \"None\"}}", "\u{0}"] {
        std::fs::write(model.join("tokenizer.json"), text).unwrap();
        let output = limited(&["generate", model.to_str().unwrap(), "--prompt", "w1"]);
        fails(&output, 4, &["tokenizer.json"]);
    }
}

/// `inspect --verify` says of this folder that it is not intact, with these words.
#[track_caller]
fn not_intact(folder: &Path, words: &[&str]) {
    let output = limited(&["inspect", "--verify", folder.to_str().unwrap()]);
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(5), "{told}{error}");
    for word in [words, &["not intact: ", "hint:"]].concat() {
        assert!(told.contains(word), "{word:?} is not in: {told}{error}");
    }
    assert!(told.len() < 4096, "{told}");
}

/// Pickles of a megabyte or two that would be gigabytes: a long name over many tensors, a list of parts that many tensors share;
/// and longer ones that keep something for each of their bytes.
#[test]
fn a_checkpoint_that_multiplies_is_refused() {
    let case = Case::new();
    let many = (0..20_000)
        .map(|key| (number(key), if key == 0 { kept(&tensor("0", &[1]), 1) } else { recalled(1) }));
    let named = dictionary(&[(text(&"n".repeat(1 << 20)), dictionary(&many.collect::<Vec<_>>()))]);
    let bytes = archive(&whole(&named), &[("0", floats(&[1.0]))]);
    assert!(bytes.len() < 2 << 20, "{}", bytes.len());
    case.write("named/pytorch_model.bin", bytes);
    not_intact(&case.path("named"), &["tensor `nnn", "more than the 67108864 bytes"]);

    let parts = 5000u64;
    let chunks: Vec<Vec<u8>> = (0..parts).map(|at| chunk(&[at], &[1])).collect();
    let shared = kept(&described(&[parts], list(&chunks)), 1);
    let tensors =
        (0..parts).map(|at| (text(&format!("t{at}")), if at == 0 { shared.clone() } else { recalled(1) }));
    let tensors = dictionary(&tensors.collect::<Vec<_>>());
    let storage: Vec<(Vec<u8>, Vec<u8>)> = (0..parts).map(|at| stored("t0", &[at], "a.distcp", 1)).collect();
    let bytes = metadata(tensors, dictionary(&storage));
    assert!(bytes.len() < 4 << 20, "{}", bytes.len());
    case.write("parts/.metadata", bytes);
    not_intact(&case.path("parts"), &[".metadata", "`t1`", "more parts up to here than are stored"]);

    for (name, head, opcode, length, what) in
        [("marks", &b""[..], b'(', 80 << 20, "marks"), ("memo", b"N", 0x94, 60 << 20, "things to remember")]
    {
        let mut bytes = head.to_vec();
        bytes.resize(length, opcode);
        case.write(&format!("{name}/.metadata"), bytes);
        not_intact(&case.path(name), &["the metadata, byte 16777", &format!("16777216 {what}")]);
    }
}

/// A file for each of hundreds of ranks.
#[test]
fn a_checkpoint_of_many_ranks_is_read_a_file_at_a_time() {
    let case = Case::new();
    let parts: Vec<Part> =
        (0..300).map(|at| Part { offsets: vec![at, 0], sizes: vec![1, 2], numbers: vec![1.0; 2] }).collect();
    write_dcp(&case.path("ranks"), &[300, 2], &parts);
    let output = limited(&["inspect", "--verify", case.path("ranks").to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("intact: 1 tensors in 300 files"), "{told}");
    assert_eq!(output.status.code(), Some(0), "{told}");
}

/// What a file says does nothing to the terminal that it is told on.
#[test]
fn names_in_a_checkpoint_are_shown_and_not_obeyed() {
    let case = Case::new();
    let value = dictionary(&[
        (text("a\u{1b}[2Jb"), tensor("0", &[1])),
        (text("c\u{1b}]0;d\u{7}"), tensor("1", &[1])),
    ]);
    let bytes = archive(&whole(&value), &[("0", floats(&[f32::NAN]))]);
    case.write("lacking/pytorch_model.bin", bytes);
    not_intact(&case.path("lacking"), &["tensor `c\\u{1b}]0;d\\u{7}`", "`data/1` is not there"]);
    let bytes = archive(&whole(&value), &[("0", floats(&[f32::NAN])), ("1", floats(&[1.0]))]);
    case.write("spoiled/pytorch_model.bin", bytes);
    let output = limited(&["inspect", "--verify", case.path("spoiled").to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("- a\\u{1b}[2Jb: 1 NaN") && !told.contains('\u{1b}'), "{told}");
}
