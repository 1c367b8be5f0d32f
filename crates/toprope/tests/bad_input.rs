//! What a user can get wrong, each through the binary: one clear error that names the file, the place and the mend, the
//! documented exit code, nothing overwritten.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

struct Case {
    folder: TempDir,
}

impl Case {
    fn new() -> Case {
        Case { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A tiny recipe on a file of this folder, with lines replaced.
    fn recipe(&self, changes: &[(&str, &str)]) -> PathBuf {
        let data = self.path("text.txt");
        if !data.exists() {
            std::fs::write(&data, text(20_000)).unwrap();
        }
        let mut recipe = include_str!("../../../recipes/tiny-dense.toml").to_string();
        let source = recipe.lines().find(|line| line.starts_with("source = ")).unwrap().to_string();
        let files = format!(
            "source = \"files\"\ndocument_separator = \"\\n\\n\"\npaths = [{:?}]",
            data.display().to_string()
        );
        recipe = recipe.replace(&source, &files);
        for (from, to) in changes {
            assert!(recipe.contains(from), "{from} is not in the recipe");
            recipe = recipe.replacen(from, to, 1);
        }
        self.write("recipe.toml", recipe)
    }

    fn toprope(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_toprope"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    fn train(&self, recipe: &Path, more: &[&str]) -> Output {
        let mut arguments = vec!["train", recipe.to_str().unwrap(), "--run", "run", "--steps", "4"];
        arguments.extend(more);
        self.toprope(&arguments)
    }

    /// A run of four steps that ended well.
    fn trained(&self) -> PathBuf {
        let recipe = self.recipe(&[]);
        let output = self.train(&recipe, &["--set", "checkpoint.every=2"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        recipe
    }
}

fn text(bytes: usize) -> String {
    (0..bytes / 30).map(|i| format!("line {i} of a text to learn from\n\n")).collect()
}

/// The command failed with this code, its message holds all of `words`, and it did not panic.
#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
    let errors = message.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, 1, "one error: {message}");
}

#[test]
fn a_misspelt_key_has_its_line_and_the_nearest_right_one() {
    let case = Case::new();
    let recipe = case.recipe(&[("warmup_steps", "warmup_step")]);
    fails(
        &case.train(&recipe, &[]),
        3,
        &["recipe.toml", "line", "warmup_step", "did you mean `warmup_steps`?"],
    );
    let recipe = case.recipe(&[("[optimizer]", "[optimiser]")]);
    fails(&case.train(&recipe, &[]), 3, &["optimiser", "did you mean `optimizer`?"]);
    let recipe = case.recipe(&[("hidden_size", "hiden_size")]);
    fails(&case.train(&recipe, &[]), 3, &["hiden_size", "did you mean `hidden_size`?"]);
    assert!(!case.path("run").exists());
}

#[test]
fn a_wrong_type_has_its_line() {
    let case = Case::new();
    let recipe = case.recipe(&[("steps = 100", "steps = \"many\"")]);
    fails(&case.train(&recipe, &[]), 3, &["recipe.toml", "line 7", "many"]);
    let recipe = case.recipe(&[("steps = 100", "steps = -1")]);
    fails(&case.train(&recipe, &[]), 3, &["recipe.toml", "line 7"]);
    fails(
        &case.toprope(&["train", "tiny-dense", "--set", "training.batch=x"]),
        3,
        &["--set", "training.batch"],
    );
    fails(&case.toprope(&["train", "tiny-dense", "--set", "training.bach=2"]), 3, &["did you mean `batch`?"]);
    fails(&case.toprope(&["train", "tiny-dense", "--set", "nonsense"]), 3, &["--set", "key=value"]);
}

#[test]
fn impossible_sizes_name_their_key() {
    let case = Case::new();
    // A size that was set is blamed on what set it, never on a line of the recipe.
    let moe = |set: &str| {
        let output = case.toprope(&["train", "tiny-moe", "--set", set]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!message.contains("line") && message.contains(&format!("--set {set}")), "{message}");
        output
    };
    fails(&moe("model.num_experts_per_tok=9"), 3, &["num_experts_per_tok"]);
    fails(&moe("model.qk_rope_head_dim=3"), 3, &["qk_rope_head_dim"]);
    fails(&moe("model.n_group=3"), 3, &["n_group"]);
    fails(&moe("model.num_attention_heads=0"), 3, &["num_attention_heads"]);
    fails(&moe("model.hidden_size=0"), 3, &["hidden_size"]);
    fails(&moe("model.num_key_value_heads=1"), 3, &["num_key_value_heads"]);
    fails(&moe("training.sequence=1"), 3, &["training.sequence"]);
    fails(&moe("training.sequence=64"), 3, &["max_position_embeddings"]);
    fails(&moe("training.micro_batch=3"), 3, &["training.micro_batch", "hint"]);
    fails(&moe("training.batch=999999999999"), 3, &["training.batch"]);
    fails(&moe("model.hidden_size=99999999999999"), 3, &["hidden_size"]);
    fails(&moe("optimizer.beta1=1.5"), 3, &["optimizer.beta1"]);
    fails(
        &case.toprope(&["train", "tiny-moe", "--set", "schedule.learning_rate=-1.0"]),
        3,
        &["schedule.learning_rate"],
    );
}

#[test]
fn impossible_sizes_in_a_file_have_their_line() {
    let case = Case::new();
    for (right, wrong, key) in [
        ("qk_rope_head_dim = 4", "qk_rope_head_dim = 3", "model.qk_rope_head_dim"),
        ("num_attention_heads = 2", "num_attention_heads = 0", "model.num_attention_heads"),
        ("hidden_size = 32", "hidden_size = 99999999999999", "model.hidden_size"),
        ("sequence = 32", "sequence = 64", "training.sequence"),
        ("batch = 4", "batch = 0", "training.batch"),
        ("beta2 = 0.95", "beta2 = 1.0", "optimizer.beta2"),
    ] {
        let recipe = case.recipe(&[(right, wrong)]);
        let text = std::fs::read_to_string(&recipe).unwrap();
        let line = 1 + text.lines().position(|line| line.starts_with(wrong)).unwrap();
        fails(&case.train(&recipe, &[]), 3, &[&format!("recipe.toml, line {line}, key `{key}`")]);
    }
    assert!(!case.path("run").exists());
}

#[test]
fn a_recipe_that_is_not_there_lists_what_is() {
    let case = Case::new();
    fails(&case.toprope(&["train", "tinny"]), 3, &["tinny", "tiny-dense", "bench-moe"]);
    fails(&case.toprope(&["inspect", "nowhere.json"]), 3, &["nowhere.json"]);
    let config = case.write("config.json", "{\"model_type\": \"deepseek_v3\", \"sliding_window\": 4}");
    fails(&case.toprope(&["inspect", config.to_str().unwrap()]), 3, &["config.json", "sliding_window"]);
}

#[test]
fn bad_data_files_are_named_with_their_place() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let set = |name: &str| format!("data.paths=[{:?}]", case.path(name).display().to_string());
    let with =
        |name: &str| case.train(&recipe, &["--set", &set(name), "--set", "data.validation_fraction=0.0"]);
    case.write("empty.txt", "");
    fails(&with("empty.txt"), 4, &["empty.txt", "empty"]);
    case.write("binary.txt", [b'a', b'b', 0xff, 0xfe]);
    fails(&with("binary.txt"), 4, &["binary.txt", "UTF-8", "2"]);
    case.write("short.txt", "ab");
    fails(&with("short.txt"), 4, &["32"]);
    fails(&with("missing.txt"), 4, &["missing.txt"]);
    fails(&with("no-*.txt"), 4, &["no-*.txt"]);
    case.write("bad.jsonl", format!("{{\"text\": {:?}}}\n{{\"text\": \n", text(4000)));
    fails(&with("bad.jsonl"), 4, &["bad.jsonl", "2"]);
    case.write("field.jsonl", format!("{{\"body\": {:?}}}\n", text(4000)));
    fails(&with("field.jsonl"), 4, &["field.jsonl", "text"]);
    assert!(!case.path("run").exists());
}

#[cfg(feature = "parquet")]
#[test]
fn a_truncated_parquet_file_is_named() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let path = case.write("cut.parquet", b"PAR1 and then nothing that a footer could be");
    let set = format!("data.paths=[{:?}]", path.display().to_string());
    fails(&case.train(&recipe, &["--set", &set]), 4, &["cut.parquet"]);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_its_feature_says_how_to_build() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let path = case.write("a.parquet", b"PAR1");
    let set = format!("data.paths=[{:?}]", path.display().to_string());
    fails(&case.train(&recipe, &["--set", &set]), 4, &["parquet"]);
}

#[test]
fn no_registry_folder_says_what_to_do() {
    let case = Case::new();
    let output = Command::new(env!("CARGO_BIN_EXE_toprope"))
        .args(["train", "tiny-dense"])
        .env("CARGO_HOME", case.path("nothing"))
        .current_dir(case.folder.path())
        .output()
        .unwrap();
    fails(&output, 4, &["nothing", "cargo"]);
}

#[test]
fn a_tokenizer_that_does_not_fit_says_the_sizes() {
    let case = Case::new();
    let recipe = case.recipe(&[("vocab_size = 264", "vocab_size = 200")]);
    fails(&case.train(&recipe, &[]), 4, &["257", "200"]);
    let recipe = case.recipe(&[("kind = \"byte\"", "kind = \"file\"\npath = \"t.json\"")]);
    fails(&case.train(&recipe, &[]), 4, &["t.json"]);
    case.write("t.json", "{\"version\": \"1.0\"");
    fails(&case.train(&recipe, &[]), 4, &["t.json"]);
}

#[test]
fn unknown_devices_and_levels_name_the_known() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    fails(&case.train(&recipe, &["--device", "gpu"]), 6, &["gpu", "cpu", "reference"]);
    fails(&case.train(&recipe, &["--device", "referense"]), 6, &["did you mean `reference`?"]);
    fails(&case.train(&recipe, &["--level", "avx3"]), 6, &["avx3", "portable"]);
    fails(&case.train(&recipe, &["--threads", "0"]), 6, &["thread"]);
}

#[test]
fn memory_that_does_not_fit_is_said_before_the_start() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let huge = [
        "--set",
        "model.hidden_size=65536",
        "--set",
        "model.intermediate_size=524288",
        "--set",
        "model.num_hidden_layers=60",
    ];
    fails(&case.train(&recipe, &huge), 7, &["needs", "GiB", "hint"]);
    assert!(!case.path("run").exists());
}

#[test]
fn a_run_folder_that_exists_is_left_alone() {
    let case = Case::new();
    let recipe = case.trained();
    let before = std::fs::read(case.path("run/recipe.toml")).unwrap();
    fails(&case.train(&recipe, &[]), 5, &["run", "--resume"]);
    assert_eq!(std::fs::read(case.path("run/recipe.toml")).unwrap(), before);
    case.write("other/precious.txt", "mine");
    fails(
        &case.toprope(&["train", recipe.to_str().unwrap(), "--run", "other", "--steps", "2"]),
        5,
        &["other", "precious.txt"],
    );
    fails(&case.toprope(&["train", "--run", "nowhere", "--resume"]), 5, &["nowhere"]);
    fails(&case.toprope(&["train", "--resume"]), 2, &["--run"]);
}

#[test]
fn damaged_checkpoints_are_named_and_the_older_one_is_used() {
    let case = Case::new();
    case.trained();
    let state = case.path("run/checkpoints/step-00000004/state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, &bytes).unwrap();
    let output = case.toprope(&["train", "--run", "run", "--resume", "--steps", "6", "--json"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("step-00000004") && told.contains("going on from step 2"), "{told}");
    for name in ["step-00000002", "step-00000004", "step-00000006"] {
        let state = case.path(&format!("run/checkpoints/{name}/state.safetensors"));
        if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&state) {
            file.set_len(100).unwrap();
        }
    }
    let output = case.toprope(&["train", "--run", "run", "--resume", "--steps", "8"]);
    fails(&output, 5, &["no checkpoint", "hint"]);
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let case = Case::new();
    case.trained();
    let output = case.toprope(&[
        "train",
        "--run",
        "run",
        "--resume",
        "--steps",
        "8",
        "--set",
        "model.intermediate_size=96",
    ]);
    fails(&output, 5, &["step-00000004"]);
}

#[test]
fn a_folder_in_use_names_the_process() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let mut long = Command::new(env!("CARGO_BIN_EXE_toprope"))
        .args(["train", recipe.to_str().unwrap(), "--run", "run", "--steps", "100000000"])
        .current_dir(case.folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !case.path("run/metrics.jsonl").exists() {
        assert!(long.try_wait().unwrap().is_none(), "the long run ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = case.toprope(&["train", "--run", "run", "--resume"]);
    fails(&output, 5, &["in use", &long.id().to_string()]);
    long.kill().unwrap();
    long.wait().unwrap();
}

#[test]
fn interrupted_runs_are_durable_and_go_on() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let mut long = Command::new(env!("CARGO_BIN_EXE_toprope"))
        .args(["train", recipe.to_str().unwrap(), "--run", "run", "--steps", "100000000"])
        .current_dir(case.folder.path())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::read_to_string(case.path("run/metrics.jsonl")).unwrap_or_default().lines().count() < 3 {
        assert!(long.try_wait().unwrap().is_none(), "the long run ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let interrupt = Command::new("kill").args(["-INT", &long.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = long.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("go on with: toprope train --run run --resume"), "{told}");
    let checkpoints = std::fs::read_dir(case.path("run/checkpoints")).unwrap().count();
    assert!(checkpoints >= 1);
}

#[test]
fn the_same_bits_for_one_and_two_threads_and_after_resuming() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let hash = |run: &str, arguments: &[&str]| {
        let mut all = vec!["train", "--run", run, "--json"];
        all.extend(arguments);
        let output = case.toprope(&all);
        let text = String::from_utf8_lossy(&output.stdout).to_string();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let last = text.lines().last().unwrap().to_string();
        let summary: serde_json::Value = serde_json::from_str(&last).unwrap();
        for key in [
            "steps",
            "loss",
            "bits_per_byte",
            "tokens_per_second",
            "step_seconds_median",
            "peak_memory_bytes",
            "mfu",
            "state_hash",
            "device",
            "level",
            "parameters",
            "corpus_hash",
            "wall_seconds",
        ] {
            assert!(summary.get(key).is_some(), "no {key} in {last}");
        }
        summary["state_hash"].as_str().unwrap().to_string()
    };
    let recipe = recipe.to_str().unwrap();
    let one = hash("one", &[recipe, "--steps", "9", "--threads", "1"]);
    let two = hash("two", &[recipe, "--steps", "9", "--threads", "2"]);
    assert_eq!(one, two);
}
