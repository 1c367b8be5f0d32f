//! `train --from MODEL` through the binary: in full, with adapters, on conversations; and what does not fit.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use support::{Case, fails, golden, words_tokenizer};

const RECIPE: &str = r#"
name = "continued"
seed = 3

[training]
steps = 6
sequence = 16
batch = 4
micro_batch = 2
dtype = "f32"

[schedule]
kind = "constant"
learning_rate = 0.005

[checkpoint]
every = 2

[data]
paths = ["text.txt"]
document_separator = "\n"
validation_fraction = 0.1
"#;

const ADAPTER: &str = r#"
[adapter]
rank = 2
alpha = 4
targets = ["q_proj", "v_proj", "down_proj"]
"#;

const CHAT: &str = r#"
[data.chat]
"#;

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}";

/// A folder of a test with a record as the model, which has a tokenizer of one word a token, and a text of its words.
fn case(record: &str) -> Case {
    let case = Case::new();
    model(&case, "model", record, Some(TEMPLATE));
    let lines = (0..60).map(|line| {
        let words = (0..14).map(|word| format!("w{}", 2 + (line * 7 + word * word * 3) % 20));
        words.collect::<Vec<_>>().join(" ") + "\n"
    });
    case.write("text.txt", lines.collect::<String>());
    case.write("recipe.toml", RECIPE);
    case
}

fn model(case: &Case, name: &str, record: &str, template: Option<&str>) {
    for file in ["config.json", "model.safetensors"] {
        case.write(&format!("{name}/{file}"), std::fs::read(golden("hub").join(record).join(file)).unwrap());
    }
    let markers = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];
    let tokenizer = words_tokenizer(33, &markers);
    case.write(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    let mut said = json!({ "eos_token": "<|end|>" });
    if let Some(template) = template {
        said["chat_template"] = template.into();
    }
    case.write(&format!("{name}/tokenizer_config.json"), said.to_string());
}

fn from(case: &Case, run: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["train", "recipe.toml", "--from", "model", "--run", run];
    arguments.extend(more);
    case.toprope(&arguments)
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The hash of the final state.
#[track_caller]
fn state(output: &Output) -> String {
    let text = done(output);
    text.lines().find_map(|line| line.strip_prefix("state ")).unwrap().to_string()
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers =
        |data: &[u8]| data.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, view)| (name, numbers(view.data()))).collect()
}

fn logits(case: &Case, model: &str, tokens: &str) -> Vec<f32> {
    let out = case.path("logits.safetensors");
    let _ = std::fs::remove_file(&out);
    done(&case.toprope(&["eval", model, "--tokens", tokens, "--logits", "logits.safetensors"]));
    tensors(&out).remove("logits").unwrap()
}

/// What a step's line says of the main loss.
fn losses(case: &Case, run: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(case.path(run).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["parts"].as_array().unwrap().iter().find(|part| part[0] == "main").unwrap()[1]
                .as_f64()
                .unwrap()
        })
        .collect()
}

#[test]
fn a_run_begins_at_the_model_and_ends_with_the_same_bits_in_every_way() {
    for record in ["llama-llama3", "deepseek-fp8"] {
        let case = case(record);
        let whole = state(&from(&case, "guarded", &[]));
        for (name, flags) in [
            ("unguarded", ["--unguarded", "--set", "seed=3"]),
            ("in-place", ["--set", "training.state=in_place", "--unguarded"]),
            ("hurt", ["--faults", "step 1: die in matmul; step 4: hang in matmul", "--threads=2"]),
        ] {
            assert_eq!(state(&from(&case, name, &flags)), whole, "{record} {name}");
        }
        // What it was before the first step is the model's own.
        let journal = std::fs::read_to_string(case.path("guarded/journal.jsonl")).unwrap();
        let started = journal.lines().find(|line| line.contains("\"event\":\"start\"")).unwrap();
        let started: Value = serde_json::from_str(started).unwrap();
        assert_eq!(started["from"]["model"], case.path("model").to_str().unwrap(), "{started}");
        assert_eq!(started["from"]["weights"].as_str().unwrap().len(), 64);
        // Losses go down from where the model stood.
        let losses = losses(&case, "guarded");
        assert!(losses[5] < losses[0] - 0.1, "{record}: {losses:?}");
        done(&case.toprope(&["export", "guarded", "exported"]));
        let (before, after) = (logits(&case, "model", "3,4,5,6"), logits(&case, "exported", "3,4,5,6"));
        assert!(before != after && after.iter().all(|logit| logit.is_finite()));
        let kept = |name: &str| std::fs::read_to_string(case.path("exported").join(name)).unwrap();
        let said: Value = serde_json::from_str(&kept("tokenizer_config.json")).unwrap();
        assert_eq!(
            (said["chat_template"].as_str(), said["eos_token"].as_str()),
            (Some(TEMPLATE), Some("<|end|>"))
        );
        assert_eq!(
            kept("tokenizer.json"),
            std::fs::read_to_string(case.path("model/tokenizer.json")).unwrap()
        );
    }
}

#[test]
fn a_run_goes_on_without_the_model_and_without_a_checkpoint_with_it() {
    let case = case("qwen2-default");
    let whole = state(&from(&case, "whole", &[]));
    done(&from(&case, "run", &["--steps", "4"]));
    std::fs::rename(case.path("model"), case.path("moved")).unwrap();
    let resumed = case.toprope(&["train", "--run", "run", "--resume", "--steps", "6"]);
    assert_eq!(state(&resumed), whole);
    // The recipe may be named again.
    let named = case.toprope(&["train", "recipe.toml", "--run", "run", "--resume"]);
    assert_eq!(state(&named), whole);

    // Without a checkpoint the run begins anew, which takes the model.
    std::fs::remove_dir_all(case.path("run/checkpoints")).unwrap();
    let anew = |more: &[&str]| {
        let mut arguments = vec!["train", "--run", "run", "--resume"];
        arguments.extend(more);
        case.toprope(&arguments)
    };
    let moved = ["the run began from a published model", "no config.json", "--resume --from MODEL"];
    fails(&anew(&[]), 3, &moved);
    fails(&case.toprope(&["diagnose", "run", "--step", "1", "--device", "reference"]), 3, &moved);
    let tokenizer = case.path("run/tokenizer.json");
    let kept = std::fs::read(&tokenizer).unwrap();
    std::fs::remove_file(&tokenizer).unwrap();
    fails(&anew(&[]), 3, &moved);
    std::fs::write(&tokenizer, kept).unwrap();
    model(&case, "other", "qwen2-default", None);
    let weights = case.path("other/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    fails(&anew(&["--from", "other"]), 3, &["its weights are not those that the run began from"]);
    model(&case, "third", "llama-linear", None);
    fails(&anew(&["--from", "third"]), 3, &["its sizes are not those that the run began from"]);
    assert_eq!(state(&anew(&["--from", "moved", "--steps", "6"])), whole);
}

#[test]
fn adapters_alone_are_trained_and_leave_the_model_as_it_is() {
    let case = case("llama-llama3");
    case.write("recipe.toml", format!("{RECIPE}{ADAPTER}"));
    let whole = state(&from(&case, "run", &[]));
    for (name, flags) in [
        ("unguarded", ["--unguarded", "--set", "seed=3"]),
        ("in-place", ["--set", "training.state=in_place", "--threads=2"]),
        ("on-device", ["--set", "training.state=on_device", "--threads=2"]),
        ("shadow", ["--set", "guard.level=shadow", "--threads=2"]),
        ("hurt", ["--faults", "step 1: die in matmul; step 4: hang in matmul", "--threads=2"]),
    ] {
        assert_eq!(state(&from(&case, name, &flags)), whole, "{name}");
    }
    let with_lengths = state(&from(&case, "dora", &["--set", "adapter.dora=true"]));
    let alone = ["--set", "adapter.dora=true", "--set", "training.state=in_place", "--unguarded"];
    assert_eq!(state(&from(&case, "dora-alone", &alone)), with_lengths);
    let first = |run| losses(&case, run)[..2].to_vec();
    // It begins at the model, and then goes another way.
    assert!((first("dora")[0] - first("run")[0]).abs() < 1e-5 && first("dora")[1] != first("run")[1]);
    let state = tensors(&case.path("run/checkpoints/step-00000006/state.safetensors"));
    let model = tensors(&case.path("on-device/checkpoints/step-00000002/state.safetensors"));
    for (name, numbers) in &state {
        let trained = name.contains("lora_") || name == "step";
        assert_eq!(numbers == &model[name], !trained, "{name}");
    }
    let moments = state.keys().filter(|name| name.ends_with(".m")).count();
    // Two layers, three modules, two matrices.
    assert_eq!(moments, 12);

    done(&case.toprope(&["export", "run", "adapter"]));
    let adapters = tensors(&case.path("adapter/adapter_model.safetensors"));
    assert_eq!(adapters.len(), 12);
    let name = "model.layers.1.self_attn.v_proj.lora_A.weight";
    assert_eq!(adapters[&format!("base_model.model.{name}")], state[name]);
    let config: Value =
        serde_json::from_slice(&std::fs::read(case.path("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(2), Some(4.0)));
    assert_eq!(config["base_model_name_or_path"], case.path("model").to_str().unwrap());

    done(&case.toprope(&["export", "run", "merged", "--merge"]));
    done(&case.toprope(&["export", "model", "plain"]));
    let (merged, plain) =
        (tensors(&case.path("merged/model.safetensors")), tensors(&case.path("plain/model.safetensors")));
    for (name, numbers) in &merged {
        let adapted = ["q_proj.weight", "v_proj.weight", "down_proj.weight"];
        let adapted = adapted.iter().any(|module| name.ends_with(module));
        assert_eq!(numbers != &plain[name], adapted, "{name}");
    }
    // The merged model computes what was trained: its loss on a batch is that of the step that comes next.
    done(&case.toprope(&["export", "dora", "dora-merged", "--merge"]));
    let adapted = std::fs::read_to_string(case.path("recipe.toml")).unwrap();
    for (run, merged) in [("run", "merged"), ("dora", "dora-merged")] {
        case.write("recipe.toml", &adapted);
        done(&case.toprope(&["train", "--run", run, "--resume", "--steps", "7"]));
        case.write("recipe.toml", RECIPE);
        let onto = format!("onto-{merged}");
        let mut arguments = vec!["train", "recipe.toml", "--from", merged, "--run", &onto, "--steps", "7"];
        arguments.extend(["--set", "schedule.learning_rate=1e-30", "--set", "optimizer.weight_decay=0"]);
        done(&case.toprope(&arguments));
        let (next, merged) = (losses(&case, run)[6], losses(&case, &onto)[6]);
        assert!((next - merged).abs() < 1e-5, "{run}: {next} and {merged}");
    }
}

#[test]
fn muon_moves_published_matrices_and_those_of_adapters() {
    let muon = ["--set", "optimizer.kind=muon", "--steps", "48"];
    for adapter in ["", ADAPTER, &format!("{ADAPTER}dora = true\n")] {
        let case = case("qwen2-default");
        case.write("recipe.toml", format!("{RECIPE}{adapter}"));
        let whole = state(&from(&case, "guarded", &muon));
        assert_eq!(state(&from(&case, "unguarded", &[&muon[..], &["--unguarded"]].concat())), whole);
        let losses = losses(&case, "guarded");
        // Batches differ by more than a step moves an adapter.
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        assert!(mean(&losses[40..]) < mean(&losses[..8]) - 0.02, "{adapter}: {losses:?}");
    }
}

#[test]
fn of_conversations_what_the_assistant_said_is_learnt() {
    let case = case("llama-linear");
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    let conversations = [
        vec![
            said("user", "w3 w7"),
            said("assistant", "w11 w7 w3"),
            said("user", "w5"),
            said("assistant", "w2 w30"),
        ],
        vec![said("system", "w8"), said("user", "w10"), said("assistant", "w4 w12")],
    ];
    let lines: Vec<String> =
        conversations.iter().map(|messages| json!({ "id": 1, "messages": messages }).to_string()).collect();
    case.write("talk.jsonl", lines.join("\n"));
    let recipe = RECIPE.replace("text.txt", "talk.jsonl").replace("document_separator = \"\\n\"\n", "");
    let recipe =
        recipe.replace("0.1", "0.0").replace("batch = 4", "batch = 1").replace("micro_batch = 2", "");
    // Tokens and which of them are predicted, by hand.
    let documents: [(Vec<usize>, Vec<usize>); 2] = [
        (vec![34, 3, 7, 36, 35, 11, 7, 3, 36, 34, 5, 36, 35, 2, 30, 36], vec![5, 6, 7, 8, 13, 14, 15]),
        (vec![33, 8, 36, 34, 10, 36, 35, 4, 12, 36], vec![7, 8, 9]),
    ];
    let count: usize = documents.iter().map(|(tokens, _)| tokens.len()).sum();
    let recipe = recipe.replace("sequence = 16", &format!("sequence = {count}"));
    case.write("recipe.toml", format!("{recipe}{CHAT}"));
    let expected = |documents: &[(Vec<usize>, Vec<usize>)]| {
        let mut all = Vec::new();
        for (tokens, predicted) in documents {
            let text = tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let logits = logits(&case, "model", &text);
            let vocabulary = logits.len() / tokens.len();
            for place in predicted {
                let row = &logits[(place - 1) * vocabulary..place * vocabulary];
                let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                all.push(sum.ln() - f64::from(row[tokens[*place]]));
            }
        }
        all.iter().sum::<f64>() / all.len() as f64
    };
    let want = expected(&documents);
    done(&from(&case, "run", &[]));
    let have = losses(&case, "run")[0];
    assert!((have - want).abs() < 1e-5, "{have} and {want}");

    let mut both = documents.clone();
    both[0].1 = (1..16).filter(|place| *place != 4 && *place != 12).collect();
    both[1].1 = vec![3, 4, 5, 7, 8, 9];
    let want = expected(&both);
    done(&from(&case, "both", &["--set", "data.chat.roles=[\"user\", \"assistant\"]"]));
    let have = losses(&case, "both")[0];
    assert!((have - want).abs() < 1e-5, "{have} and {want}");

    // Held-out conversations, a template of one's own that goes along, and going on without the model.
    let many: Vec<String> = (0..20)
        .map(|at| {
            let ask = format!("w{} w{}", 2 + at, 5 + at % 7);
            json!({ "messages": [said("user", &ask), said("assistant", &format!("w{} w{}", 9 + at, 3 + at % 11))] })
                .to_string()
        })
        .collect();
    case.write("many.jsonl", many.join("\n"));
    model(&case, "mute", "llama-linear", None);
    case.write("own.jinja", TEMPLATE.replace("{{ m.content }}", "w1 {{ m.content }}"));
    let recipe = recipe
        .replace("talk.jsonl", "many.jsonl")
        .replace("validation_fraction = 0.0", "validation_fraction = 0.2");
    case.write("recipe.toml", format!("{recipe}{CHAT}template = \"own.jinja\"\n"));
    let arguments = ["train", "recipe.toml", "--from", "mute", "--run", "own", "--steps", "2"];
    let text = done(&case.toprope(&arguments));
    assert!(text.contains("held-out conversations (4): ") && text.contains("assistant said"), "{text}");
    std::fs::remove_dir_all(case.path("mute")).unwrap();
    std::fs::remove_file(case.path("own.jinja")).unwrap();
    done(&case.toprope(&["train", "--run", "own", "--resume", "--steps", "4"]));
    done(&case.toprope(&["export", "own", "spoken"]));
    let said: Value =
        serde_json::from_slice(&std::fs::read(case.path("spoken/tokenizer_config.json")).unwrap()).unwrap();
    assert!(said["chat_template"].as_str().unwrap().contains("w1 {{ m.content }}"));

    // Where nothing is predicted in what is evaluated there is no figure.
    case.write("many.jsonl", many.join("\n").replace("\"w", &format!("\"{}w", "w5 ".repeat(40))));
    case.write("recipe.toml", format!("{recipe}{CHAT}"));
    let sets = ["evaluation.every=1", "evaluation.tokens=1", "evaluation.final_tokens=1"];
    let flags = sets.iter().flat_map(|set| ["--set", *set]).chain(["--steps", "2", "--json"]);
    let output = from(&case, "long", &flags.collect::<Vec<_>>());
    let text = done(&output);
    assert!(text.contains("nothing in the first 1 tokens of what assistant said"), "{text}");
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(summary["bits_per_byte"].is_null(), "{summary}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("step 1: nothing is predicted in the first 1 held-out tokens"), "{told}");
}

#[test]
fn what_does_not_fit_the_model_is_one_error_with_its_place() {
    let case = case("llama-linear");
    let refused = |recipe: &str, more: &[&str], code: i32, words: &[&str]| {
        case.write("recipe.toml", recipe);
        fails(&from(&case, "run", more), code, words);
    };
    refused(
        &format!("{RECIPE}\n[model]\nhidden_size = 13\n"),
        &[],
        3,
        &[
            "recipe.toml, line 25, key `model.hidden_size`: is 13, and that of",
            "leave the section [model] out",
        ],
    );
    refused(
        &format!("{RECIPE}\n[model]\nhiden_size = 12\n"),
        &[],
        3,
        &["`model.hiden_size`", "has no such key"],
    );
    refused(RECIPE, &["--set", "model.num_hidden_layers=3"], 3, &["--set model.num_hidden_layers=3"]);
    refused(
        &format!("{RECIPE}\n[tokenizer]\nkind = \"bpe\"\n"),
        &[],
        3,
        &["line 25", "tokenizer of its own"],
    );
    refused(
        &RECIPE.replace("sequence = 16", "sequence = 65"),
        &[],
        3,
        &["line 7", "max_position_embeddings allows 64"],
    );
    refused(
        &RECIPE.replace("batch = 4", "bach = 4"),
        &[],
        3,
        &["line 8", "unknown key `bach`", "did you mean `batch`"],
    );
    let adapter = |from: &str, to: &str| format!("{RECIPE}{}", ADAPTER.replace(from, to));
    refused(
        &adapter("\"v_proj\"", "\"w_proj\""),
        &[],
        3,
        &[
            "key `adapter.targets`",
            "`w_proj` matches no module",
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ],
    );
    refused(&adapter("\"v_proj\"", "\"lm_head\""), &[], 3, &["`lm_head` matches no module"]);
    refused(&adapter("rank = 2", "rank = 0"), &[], 3, &["line 25, key `adapter.rank`"]);
    refused(&adapter("rank = 2", "rank = 50"), &[], 3, &["adapter.rank", "a rank above both sizes"]);
    refused(&adapter("alpha = 4", "alpha = -1"), &[], 3, &["line 26, key `adapter.alpha`"]);

    case.write("recipe.toml", RECIPE);
    let train = |arguments: &[&str]| case.toprope(&[&["train"], arguments].concat());
    fails(&train(&["recipe.toml", "--from", "nothing"]), 3, &["nothing", "no config.json"]);
    fails(&train(&["--from", "model"]), 2, &["--from needs a recipe"]);
    fails(&train(&["recipe.toml"]), 3, &["missing field `model`", "--from MODEL"]);
    let own = case.recipe(&[]);
    fails(&train(&[own.to_str().unwrap(), "--set", "tokenizer.kind=published"]), 3, &["--from MODEL"]);
    let sets = ["--set", "adapter.rank=2", "--set", "adapter.alpha=2"];
    fails(&train(&[&[own.to_str().unwrap()], &sets[..2]].concat()), 3, &["--set", "alpha"]);

    // A tokenizer that does not fit, or is not there.
    let path = case.path("model/tokenizer.json");
    let tokenizer = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, tokenizer.replace("\"w32\":32", "\"w32\":43")).unwrap();
    refused(RECIPE, &[], 4, &["44 tokens do not fit the model's vocabulary of 43"]);
    std::fs::remove_file(&path).unwrap();
    refused(RECIPE, &[], 4, &["tokenizer.json", "there is no such file", "beside the weights"]);
    std::fs::write(&path, &tokenizer).unwrap();
    refused(&format!("{RECIPE}\n[tokenizer]\nend_of_document = \"w99\"\n"), &[], 4, &["no token `w99`"]);

    // Conversations.
    let chat = RECIPE.replace("text.txt", "talk.jsonl").replace("document_separator = \"\\n\"\n", "") + CHAT;
    let good = r#"{"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]}"#;
    for (line, words) in [
        (r#"{"messages": [{"role": "user", "content": "w3"}]}"#, "no message of assistant"),
        (r#"{"messages": [{"role": "user"}]}"#, "message 1: it has no `content`"),
        (r#"{"text": "w3"}"#, "no field `messages` (there are text)"),
        (r#"{"messages": ["#, "EOF"),
        ("[]", "it is no JSON object"),
    ] {
        case.write("talk.jsonl", format!("{good}\n{good}\n{line}\n"));
        refused(&chat, &[], 4, &["talk.jsonl:3:", words]);
    }
    refused(&format!("{chat}rolls = 1\n"), &[], 3, &["unknown key `rolls`", "did you mean `roles`"]);
    refused(&format!("{chat}roles = []\n"), &[], 4, &["data.chat.roles"]);
    refused(&format!("{chat}template = \"nothing.jinja\"\n"), &[], 4, &["nothing.jinja"]);
    refused(&chat.replace("validation", "format = \"text\"\nvalidation"), &[], 4, &["data.format", "jsonl"]);
    case.write("own.jinja", "a\n{% if %}");
    refused(&format!("{chat}template = \"own.jinja\"\n"), &[], 3, &["own.jinja: the chat template, line 2"]);
    model(&case, "model", "llama-linear", None);
    case.write("talk.jsonl", format!("{good}\n"));
    refused(&chat, &[], 3, &["there is no chat template", "data.chat.template"]);
    model(&case, "model", "llama-linear", Some("{{ raise_exception('roles must alternate') }}"));
    refused(&chat, &[], 4, &["talk.jsonl:1:", "roles must alternate"]);
    let own = case.recipe(&[("document_separator = \"\\n\\n\"", "chat = {}")]);
    fails(&train(&[own.to_str().unwrap()]), 4, &["data.chat", "--from MODEL"]);

    // Exports.
    model(&case, "model", "llama-linear", None);
    case.write("recipe.toml", RECIPE);
    done(&from(&case, "run", &["--steps", "2"]));
    fails(&case.toprope(&["export", "run", "out", "--merge"]), 2, &["no adapters to merge"]);
    fails(&case.toprope(&["export", "model", "out", "--merge"]), 2, &["not a run's folder"]);
    let taken = from(&case, "run", &[]);
    fails(&taken, 5, &["has a run already"]);
    // Weights are not read for what is refused at once.
    assert!(!String::from_utf8_lossy(&taken.stderr).contains("tensors"));
    std::fs::create_dir(case.path("empty")).unwrap();
    let resume = |run: &str, more: &[&str]| {
        case.toprope(&[&["train", "recipe.toml", "--run", run, "--resume"], more].concat())
    };
    for more in [&[][..], &["--from", "model"]] {
        fails(&resume("nowhere", more), 5, &["nowhere does not exist"]);
        fails(&resume("empty", more), 5, &["empty is not a run's folder (no recipe.toml)"]);
        fails(&resume("text.txt", more), 5, &["text.txt is not a folder"]);
    }
}
