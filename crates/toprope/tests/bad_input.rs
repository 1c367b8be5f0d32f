//! What a user can get wrong, each through the binary: one clear error that names the file, the place and the mend, the
//! documented exit code, nothing overwritten.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod support;

#[cfg(feature = "parquet")]
#[path = "support/parquet.rs"]
mod parquet; // a good file to cut

use std::process::Command;
use support::{Case, fails, text};

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
    fails(&moe("schedule.learning_rate=-1.0"), 3, &["schedule.learning_rate"]);
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
    fails(&with("empty.txt"), 4, &["empty.txt: the file is empty", "byte offset 0", "leave it out"]);
    case.write("binary.txt", [b'a', b'b', 0xff, 0xfe]);
    fails(&with("binary.txt"), 4, &["binary.txt: not UTF-8 at byte offset 2", "convert the file"]);
    case.write("short.txt", "ab");
    fails(&with("short.txt"), 4, &["short.txt", "one sequence of 32 tokens", "lower `training.sequence`"]);
    fails(&with("missing.txt"), 4, &["missing.txt: there is no such file", "correct `data.paths`"]);
    fails(&with("no-*.txt"), 4, &["no-*.txt: no file matches", "correct `data.paths`"]);
    case.write("bad.jsonl", format!("{{\"text\": {:?}}}\n{{\"text\": \n", text(4000)));
    fails(&with("bad.jsonl"), 4, &["bad.jsonl:2:", "correct the line"]);
    case.write("field.jsonl", format!("{{\"body\": {:?}}}\n", text(4000)));
    fails(&with("field.jsonl"), 4, &["field.jsonl:1: no field `text`", "(there are body)", "`data.field`"]);
    assert!(!case.path("run").exists());
}

/// What permissions forbid is no test for the superuser; a link that leads to itself, or a file that the system refuses to
/// read, is one for everybody.
#[test]
fn a_data_file_that_cannot_be_read_is_named_with_the_systems_reason() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    std::os::unix::fs::symlink(case.path("circle.txt"), case.path("circle.txt")).unwrap();
    let set = |path: &str| format!("data.paths=[{path:?}]");
    let circle = set(&case.path("circle.txt").display().to_string());
    fails(
        &case.train(&recipe, &["--set", &circle]),
        4,
        &["circle.txt: cannot be read: ", "give this user access"],
    );
    std::os::unix::fs::symlink(case.path("gone.txt"), case.path("dangling.txt")).unwrap();
    let dangling = set(&case.path("dangling.txt").display().to_string());
    fails(&case.train(&recipe, &["--set", &dangling]), 4, &["dangling.txt: there is no such file"]);
    if cfg!(target_os = "linux") {
        let memory = set("/proc/self/mem");
        fails(&case.train(&recipe, &["--set", &memory]), 4, &["/proc/self/mem: cannot be read: "]);
    }
    assert!(!case.path("run").exists());
}

#[cfg(feature = "parquet")]
#[test]
fn a_truncated_parquet_file_is_named() {
    let case = Case::new();
    let recipe = case.recipe(&[]);
    let rows: Vec<String> =
        (0..200).map(|row| format!("row {row} of a column to learn from, which is long enough")).collect();
    let whole = parquet::file(&rows);
    let train = |name: &str, bytes: &[u8]| {
        let path = case.write(name, bytes);
        let set = format!("data.paths=[{:?}]", path.display().to_string());
        let run = format!("run-{name}");
        let set = ["--set", &set, "--set", "data.validation_fraction=0.0"];
        let train = ["train", recipe.to_str().unwrap(), "--run", &run, "--steps", "1"];
        case.toprope(&[train.as_slice(), set.as_slice()].concat())
    };
    let output = train("whole.parquet", &whole);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for bytes in [whole.len() - 1, whole.len() - 20, whole.len() / 2, 8, 3] {
        let name = format!("cut-{bytes}.parquet");
        let place = format!("{name}: not an intact Parquet file: footer: ");
        fails(&train(&name, &whole[..bytes]), 4, &[&place, "fetch or write it again"]);
        assert!(!case.path(&format!("run-{name}")).exists());
    }
    // A hole in the middle: the footer promises pages that are not there.
    let mut holed = whole.clone();
    holed.drain(200..2200);
    fails(&train("holed.parquet", &holed), 4, &["holed.parquet: not an intact Parquet file: "]);
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
fn checkpoints_of_another_version_or_with_a_lying_header_are_named_with_the_mend() {
    let case = Case::new();
    case.trained();
    let file = |step: u64, name: &str| case.path(&format!("run/checkpoints/step-{step:08}/{name}"));
    let manifest = std::fs::read_to_string(file(4, "manifest.json")).unwrap();
    assert_eq!(manifest.matches("\"format_version\": 1,").count(), 1);
    let newer = manifest.replace("\"format_version\": 1,", "\"format_version\": 2,");
    std::fs::write(file(4, "manifest.json"), newer).unwrap();
    let resume = |steps: &str| case.toprope(&["train", "--run", "run", "--resume", "--steps", steps]);
    let output = resume("6");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    for words in [
        "step-00000004: it has format version 2, and this program reads version 1",
        "to go on from it, use the Toprope that wrote it",
        "going on from step 2",
    ] {
        assert!(told.contains(words), "no `{words}` in: {told}");
    }
    // The header says another shape than the manifest: found at its byte, before memory is asked for.
    let mut state = std::fs::read(file(6, "state.safetensors")).unwrap();
    let shape = b"\"shape\":[264,32]";
    let at = state.windows(shape.len()).position(|window| window == shape).unwrap() + b"\"shape\":[".len();
    state[at..at + 3].copy_from_slice(b"999");
    std::fs::write(file(6, "state.safetensors"), &state).unwrap();
    // And one whose header claims to be longer than any file.
    let mut older = std::fs::read(file(4, "state.safetensors")).unwrap();
    older[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(file(4, "state.safetensors"), older).unwrap();
    let output = resume("8");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    for (step, byte) in [(6, at), (4, 0)] {
        let place = "state.safetensors: the header differs from manifest.json at byte";
        let place = format!("step-{step:08}: {place} {byte}\n");
        assert!(told.contains(&place), "no `{place}` in: {told}");
    }
    assert!(told.contains("going on from step 2"), "{told}");
}

/// The system lets no file grow beyond an eighth of the state, as a full disk would not: the run ends with one error, what was
/// durable stays, and with room again the run ends as one that nobody disturbed.
#[test]
fn a_full_disk_loses_nothing() {
    let case = Case::new();
    case.trained();
    let state = case.path("run/checkpoints/step-00000004/state.safetensors");
    let before = std::fs::read(&state).unwrap();
    // In blocks of 512 or 1024 bytes, by the shell.
    let blocks = (before.len() / 8192).to_string();
    let limited = "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"";
    let binary = env!("CARGO_BIN_EXE_toprope");
    let resume = ["train", "--run", "run", "--resume", "--steps", "8", "--unguarded", "--json"];
    let output = Command::new("sh")
        .args(["-c", limited, "sh", &blocks, binary])
        .args(resume)
        .current_dir(case.folder.path())
        .output()
        .unwrap();
    fails(
        &output,
        5,
        &[
            "the checkpoint of step 6 was not written: cannot write to ",
            "state.safetensors: File too large",
            "Older checkpoints stay as they are",
            "hint: go on with `toprope train --run run --resume`",
        ],
    );
    assert_eq!(std::fs::read(&state).unwrap(), before);
    let names = std::fs::read_dir(case.path("run/checkpoints")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["step-00000002", "step-00000004"]);
    let hash = |output: &std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told = String::from_utf8_lossy(&output.stdout);
        let summary: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        summary["state_hash"].as_str().unwrap().to_string()
    };
    let resumed = case.toprope(&resume);
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("going on from step 4"));
    // The rate is on its way up in all of these steps, whatever the run's length.
    let recipe = case.path("run/recipe.toml");
    let calm = ["train", recipe.to_str().unwrap(), "--run", "calm", "--steps", "8", "--unguarded", "--json"];
    assert_eq!(hash(&resumed), hash(&case.toprope(&calm)));
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
