//! `toprope inspect --verify` through the binary: what a person sees of whole and of broken checkpoints.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Output;
use support::copied::copy;
use support::{Case, fails, golden};

/// Exit code, what is printed, and its last line as JSON.
fn verified(case: &Case, folder: &Path) -> (i32, String, Value) {
    let output = case.toprope(&["inspect", "--verify", folder.to_str().unwrap(), "--json"]);
    let told = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(told.lines().last().unwrap_or_default());
    (output.status.code().unwrap(), told.clone(), json.unwrap_or_else(|_| panic!("{told}{error}")))
}

#[track_caller]
fn says(told: &str, words: &[&str]) {
    for word in words {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }
}

#[test]
fn whole_checkpoints_are_intact() {
    let case = Case::new();
    for (name, form) in [
        ("checkpoints/dcp", "PyTorch DCP"),
        ("checkpoints/megatron", "Megatron"),
        ("checkpoints/pickled", "Hugging Face"),
        ("hub/llama-default", "Hugging Face"),
    ] {
        let (code, told, json) = verified(&case, &golden(name));
        assert_eq!(code, 0, "{told}");
        says(&told, &["intact: ", "all numbers finite", "newest intact  ", form]);
        assert_eq!(json["checkpoints"][0]["complete"], true);
        assert!(json["newest_intact"].as_str().unwrap().contains(name), "{json}");
    }
}

#[test]
fn the_newest_intact_one_of_several_is_found() {
    let case = Case::new();
    let folder = case.path("run");
    for iteration in ["iter_0000010", "iter_0000020", "iter_0000030"] {
        copy(&golden("checkpoints/megatron/iter_0000010"), &folder.join(iteration));
    }
    std::fs::write(folder.join("latest_checkpointed_iteration.txt"), "30").unwrap();
    std::fs::remove_file(folder.join("iter_0000030/mp_rank_01/model_optim_rng.pt")).unwrap();
    let (code, told, json) = verified(&case, &folder);
    assert_eq!(code, 5, "{told}");
    says(
        &told,
        &[
            "iter_0000030  not intact",
            "mp_rank_01/model_optim_rng.pt is missing",
            "iter_0000020  intact",
            "1 older one was not read",
            "latest_checkpointed_iteration.txt says 30, which is another one",
        ],
    );
    assert!(json["newest_intact"].as_str().unwrap().ends_with("iter_0000020"), "{json}");
    for iteration in ["iter_0000010", "iter_0000020"] {
        std::fs::remove_dir_all(folder.join(iteration).join("mp_rank_00")).unwrap();
    }
    let (code, told, json) = verified(&case, &folder);
    assert_eq!((code, &json["newest_intact"]), (5, &Value::Null), "{told}");
    says(&told, &["newest intact  none"]);
}

#[test]
fn a_runs_own_checkpoints_are_verified_too() {
    let case = Case::new();
    case.trained();
    let (code, told, json) = verified(&case, &case.path("run"));
    assert_eq!(code, 0, "{told}");
    says(&told, &["checkpoints/step-00000004  intact", "1 older one was not read", "(Toprope)"]);
    assert!(json["newest_intact"].as_str().unwrap().ends_with("step-00000004"), "{json}");
    let state = case.path("run/checkpoints/step-00000004/state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let (code, told, _) = verified(&case, &case.path("run"));
    assert_eq!(code, 5, "{told}");
    says(&told, &["step-00000004  not intact", "does not match its hash", "step-00000002  intact"]);
}

/// A folder of safetensors in which one number is none.
#[test]
fn numbers_that_are_not_finite_are_named() {
    let case = Case::new();
    let folder = case.path("qwen2");
    copy(&golden("hub/qwen2-default"), &folder);
    let weights = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The first tensor is the embedding, in bf16.
    bytes[8 + header + 6..8 + header + 8].copy_from_slice(&0x7fc0u16.to_le_bytes());
    bytes[8 + header + 8..8 + header + 10].copy_from_slice(&0xff80u16.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let (code, told, json) = verified(&case, &folder);
    assert_eq!(code, 5, "{told}");
    says(
        &told,
        &[
            "complete, and one tensor has numbers that are not finite",
            "model.embed_tokens.weight: 1 NaN and 1 infinite of 688 (model.safetensors)",
            "newest intact  none",
        ],
    );
    assert_eq!(json["checkpoints"][0]["non_finite"][0]["nan"], 1);
}

#[test]
fn a_tensor_that_the_configuration_asks_for_is_missed() {
    let case = Case::new();
    let folder = case.path("qwen2");
    copy(&golden("hub/qwen2-default"), &folder);
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")).unwrap();
    let (code, told, _) = verified(&case, &folder);
    assert_eq!(code, 5, "{told}");
    says(&told, &["not intact", "model.layers.2", "is missing"]);
    // Of a model that is not known here the files alone are judged.
    std::fs::write(&config, text.replace("Qwen2ForCausalLM", "MambaForCausalLM")).unwrap();
    assert_eq!(verified(&case, &folder).0, 0);
}

#[test]
fn what_is_no_checkpoint_is_one_error() {
    let case = Case::new();
    let said = |output: &Output, words: &[&str]| fails(output, 5, &[words, &["hint:"]].concat());
    case.write("empty/notes.txt", "");
    said(&case.toprope(&["inspect", "--verify", "empty"]), &["empty", "no checkpoint here"]);
    said(&case.toprope(&["inspect", "--verify", "nothing"]), &["nothing", "no folder"]);
    said(&case.toprope(&["inspect", "--verify", "empty/notes.txt"]), &["notes.txt", "no folder"]);
    fails(&case.toprope(&["inspect", "--verify", "empty", "--program"]), 2, &["--program"]);
}
