//! Published models that contradict themselves or ask for what is not supported: one error that names the key or the tensor.

use std::path::{Path, PathBuf};
use toprope_model::hub::{Hub, parse};
use toprope_world::{RealWorld, World};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// The `config.json` of a record with keys changed; a key of several names is changed inside.
fn refused(record: &str, changes: &[(&str, &str)]) -> String {
    let bytes = std::fs::read(golden("hub").join(record).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    for (key, value) in changes {
        let mut at = &mut config;
        let (outer, last) = key.rsplit_once('/').unwrap_or(("", key));
        for name in outer.split('/').filter(|name| !name.is_empty()) {
            at = &mut at[name];
        }
        match *value {
            "" => {
                at.as_object_mut().unwrap().remove(last);
            }
            value => at[last] = serde_json::from_str(value).unwrap(),
        }
    }
    let result = parse(config.to_string().as_bytes());
    result.err().unwrap_or_else(|| panic!("{record} was taken with {changes:?}")).to_string()
}

/// A record, keys that are set in it, and what the refusal says.
type Refused = (&'static str, &'static [(&'static str, &'static str)], &'static str);

#[test]
fn every_key_that_changes_the_computation_is_read_or_refused_by_name() {
    let cases: [Refused; 31] = [
        ("llama-default", &[("logit_scale", "0.5")], "`logit_scale`"),
        ("llama-default", &[("hidden_act", "\"gelu\"")], "`hidden_act`"),
        ("llama-default", &[("sliding_window", "4096")], "`sliding_window`"),
        ("qwen2-default", &[("use_sliding_window", "true")], "`use_sliding_window`"),
        ("qwen2-default", &[("layer_types", "[\"sliding_attention\"]")], "`layer_types`"),
        ("qwen2-default", &[("num_key_value_heads", "")], "`num_key_value_heads` is missing"),
        ("llama-default", &[("attention_dropout", "0.1")], "`attention_dropout`"),
        ("llama-default", &[("partial_rotary_factor", "0.5")], "`partial_rotary_factor`"),
        ("llama-default", &[("architectures", "[\"MistralForCausalLM\"]")], "MistralForCausalLM"),
        ("llama-default", &[("model_type", "\"qwen2\"")], "`model_type`"),
        ("llama-default", &[("architectures", ""), ("model_type", "")], "`architectures` is missing"),
        (
            "llama-default",
            &[("rope_parameters/rope_type", "\"dynamic\""), ("rope_parameters/factor", "2")],
            "\"dynamic\"",
        ),
        (
            "llama-default",
            &[("rope_parameters/rope_type", "\"longrope\""), ("rope_parameters/factor", "2")],
            "\"longrope\"",
        ),
        ("llama-default", &[("rope_parameters/factor", "2")], "`rope_scaling.factor`"),
        ("llama-default", &[("rope_parameters/partial_rotary_factor", "0.5")], "partial_rotary_factor"),
        ("llama-default", &[("rope_theta", "1234.0")], "`rope_theta`"),
        ("llama-llama3", &[("rope_parameters/low_freq_factor", "")], "low_freq_factor"),
        ("llama-llama3", &[("rope_parameters/low_freq_factor", "9")], "high_freq_factor"),
        ("llama-llama3", &[("rope_parameters/mscale", "1")], "mscale"),
        ("llama-llama3", &[("rope_parameters/short_factor", "[1]")], "short_factor"),
        ("llama-linear", &[("rope_scaling/rope_type", "\"yarn\"")], "rope_type"),
        (
            "llama-linear",
            &[("rope_parameters", "{\"rope_type\": \"default\"}")],
            "contradicts rope_parameters",
        ),
        (
            "llama-default",
            &[("quantization_config", "{\"quant_method\": \"gptq\"}")],
            "quantization_config.quant_method",
        ),
        ("deepseek-fp8", &[("quantization_config/fmt", "\"e5m2\"")], "quantization_config.fmt"),
        ("deepseek-fp8", &[("quantization_config/weight_block_size", "null")], "weight_block_size"),
        ("deepseek-yarn", &[("n_group", "")], "`n_group` is missing"),
        ("deepseek-yarn", &[("scoring_func", "\"softmax\"")], "scoring_func"),
        ("deepseek-yarn", &[("num_local_experts", "99")], "num_local_experts"),
        ("deepseek-yarn", &[("attention_bias", "true")], "`attention_bias`"),
        ("llama-default", &[("num_key_value_heads", "3")], "`num_key_value_heads`"),
        ("llama-default", &[("vocab_size", "1000000000000")], "`vocab_size`"),
    ];
    for (record, changes, word) in cases {
        let message = refused(record, changes);
        assert!(message.contains(word), "{record} {changes:?}: {message}");
    }
    for bytes in [&b"{"[..], b"[]", b"null", b"\xff"] {
        assert!(parse(bytes).is_err());
    }
}

/// Files of a record in a folder of their own, to be damaged.
fn copied(record: &str) -> tempfile::TempDir {
    let room = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("hub").join(record)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), room.path().join(entry.file_name())).unwrap();
    }
    std::fs::remove_file(room.path().join("expected.safetensors")).unwrap();
    room
}

fn opened(path: &Path) -> String {
    match Hub::open(RealWorld::new().files(), path) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(error) => error.to_string(),
    }
}

fn change(room: &Path, file: &str, from: &str, to: &str) {
    let path = room.join(file);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("{from} is not in {file}"));
    let changed = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
    std::fs::write(&path, changed).unwrap();
}

#[test]
fn a_configuration_that_contradicts_its_tensors_is_refused() {
    let weights = "model.safetensors";
    let cases: [(&str, &str, &str, &str, &[&str]); 8] = [
        (
            "qwen2-default",
            "config.json",
            "\"vocab_size\": 43",
            "\"vocab_size\": 44",
            &["model.embed_tokens.weight", "[43, 16]", "[44, 16]"],
        ),
        (
            "qwen2-default",
            "config.json",
            "\"intermediate_size\": 22",
            "\"intermediate_size\": 24",
            &["mlp.gate_proj.weight", "[22, 16]"],
        ),
        (
            "qwen2-default",
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            &["model.layers.2", "is missing"],
        ),
        (
            "qwen2-default",
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            &["model.layers.1", "no place"],
        ),
        (
            "qwen2-default",
            "config.json",
            "\"tie_word_embeddings\": true ",
            "\"tie_word_embeddings\": false",
            &["lm_head.weight", "is missing"],
        ),
        (
            "qwen2-default",
            weights,
            "layers.1.mlp.up_proj.weight",
            "layers.1.mlp.up_qroj.weight",
            &["layers.1.mlp.up_proj.weight", "is missing"],
        ),
        ("deepseek-fp8", "config.json", "\"fp8\"", "\"fp4\"", &["quantization_config.quant_method"]),
        (
            "deepseek-fp8",
            weights,
            "q_a_proj.weight_scale_inv",
            "q_a_proj.weight_scale_abc",
            &["q_a_proj.weight", "F8_E4M3"],
        ),
    ];
    for (record, file, from, to, words) in cases {
        let room = copied(record);
        if file == "config.json" {
            // The configuration may change its length.
            let text = std::fs::read_to_string(room.path().join(file)).unwrap();
            let (from, to) = (from.trim_end(), to);
            assert!(text.contains(from), "{from} is not in {record}");
            std::fs::write(room.path().join(file), text.replace(from, to)).unwrap();
        } else {
            change(room.path(), file, from, to);
        }
        let message = opened(room.path());
        for word in words {
            assert!(message.contains(word), "{record}, {to}: {word:?} is not in: {message}");
        }
    }
}

#[test]
fn a_folder_without_parts_is_refused() {
    let room = tempfile::tempdir().unwrap();
    assert!(opened(room.path()).contains("no config.json"));
    assert!(opened(&room.path().join("nothing")).contains("no config.json"));
    let room = copied("qwen2-default");
    std::fs::remove_file(room.path().join("model.safetensors")).unwrap();
    assert!(opened(room.path()).contains("model.safetensors"));
    let room = copied("llama-default");
    std::fs::remove_file(room.path().join("model-00002-of-00004.safetensors")).unwrap();
    assert!(opened(room.path()).contains("model-00002-of-00004.safetensors"));
}

#[test]
fn a_gguf_file_of_another_model_is_refused() {
    let room = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    let cases = [
        ("general.architecture", "general.architectura", "`general.architecture` is missing"),
        ("llama.context_length", "llama.context_lengtk", "llama.context_length"),
        ("llama.rope.freq_base", "llama.rope.freq_bass", "llama.rope.freq_bass"),
        ("blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "blk.1.ffn_up.weight"),
    ];
    for (from, to, word) in cases {
        let path = room.path().join("changed.gguf");
        std::fs::write(&path, &bytes).unwrap();
        change(room.path(), "changed.gguf", from, to);
        let message = opened(&path);
        assert!(message.contains(word) && message.contains("changed.gguf"), "{to}: {message}");
    }
    let blocks = opened(&golden("gguf/blocks.gguf"));
    assert!(blocks.contains("is \"blocks\"") && blocks.contains("llama, qwen2 and deepseek2"), "{blocks}");
}
