//! `toprope qualify` through the binary: a healthy processor, what a user can get wrong, and devices by torch where it is.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn qualify(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
    command.arg("qualify").args(arguments).current_dir(folder).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// The command failed with this code, with one error that holds all of `words`.
#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert!(told.matches("error:").count() == 1 && !told.contains("panicked"), "{told}");
    words.iter().for_each(|word| assert!(told.contains(word), "`{word}` is not in: {told}"));
}

const KEYS: [&str; 11] = [
    "verdict",
    "device",
    "opened",
    "emulated",
    "coverage",
    "operators",
    "training",
    "inference",
    "soak",
    "speed",
    "expires",
];
const OPERATOR_KEYS: [&str; 12] = [
    "name",
    "dtype",
    "variant",
    "shape",
    "passed",
    "effective_bits",
    "control_bits",
    "worst_error",
    "tolerance",
    "defect_guess",
    "setting",
    "extent",
];

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Without arguments and without torch: what is there, and a minute of the processor.
#[test]
fn without_arguments_it_says_what_is_there_and_qualifies_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let output = qualify(
        folder.path(),
        &[
            "--python",
            "/nowhere/python3",
            "--json",
            "--junit",
            "junit.xml",
            "--html",
            "page.html",
            "--memory",
            "64",
            "--soak",
            "2",
        ],
    );
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("what is there:"), "{text}");
    for words in ["cpu ", "no Python interpreter `/nowhere/python3`", "to see more: toprope qualify --device"]
    {
        // Lines are broken at 80 columns.
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(words), "`{words}` is not in {text}");
    }
    let told: Vec<&str> = text.lines().filter(|line| !line.starts_with('{')).collect();
    let wide: Vec<&&str> = told.iter().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.len() <= 8, "{wide:#?}");
    let summary = json(&output);
    assert_eq!(keys(&summary), KEYS);
    assert_eq!(summary["verdict"], "train");
    assert_eq!(summary["device"], "cpu");
    let operators = summary["operators"].as_array().unwrap();
    assert_eq!(keys(&operators[0]), OPERATOR_KEYS);
    assert!(operators.iter().all(|operator| operator["passed"] == true), "{operators:?}");
    assert_eq!(summary["coverage"]["run"], operators.len());
    assert!(summary["expires"]["hardware"].is_string());
    let junit = std::fs::read_to_string(folder.path().join("junit.xml")).unwrap();
    assert!(junit.contains("failures=\"0\"") && junit.ends_with("</testsuite>\n"), "{junit}");
    let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
    assert!(page.contains("<span class=\"badge good\">train</span>") && !page.contains("<script"));
    println!("a quick qualification of the processor took {:.1} s", took.as_secs_f64());
}

#[test]
fn the_first_line_comes_within_three_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
    command.args(["qualify", "--device", "cpu", "--quick"]).current_dir(folder.path());
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let took = began.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn what_is_wrong_with_a_request_is_told_in_one_error_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("llama.json", r#"{"model_type": "llama", "hidden_size": 64}"#);
    write("gpt.json", r#"{"model_type": "gpt2", "hidden_size": 64}"#);
    write("dense.json", include_str!("../../../tests/golden/hub/qwen2-default/config.json"));
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    write("broken.json", "{");
    write("model.json", include_str!("data/deepseek_v3_config.json"));
    write("empty.jsonl", "\n");
    write("wrong.jsonl", "{\"version\": 1, \"operator\": \"aten.mm.default\", \"args\": []}\nno json\n");
    write("there.toml", "");
    let began = Instant::now();
    for (arguments, code, words) in [
        (&["--device", "quantum:7"][..], 6, &["there is no device `quantum:7`"][..]),
        (&["--device", "pytorch:tpu:0"], 6, &["`pytorch:cuda:N`"]),
        (
            &["--device", "pytorch:cpu", "--python", "/nowhere/python3"],
            6,
            &["no Python interpreter `/nowhere/python3`"],
        ),
        (&["--device", "cpu", "--against", "quantum:7"], 6, &["there is no device `quantum:7`"]),
        (&["--device", "cpu,cpu"], 2, &["`cpu` is named twice"]),
        (&["--device", "quantum:all"], 6, &["quantum:all", "there is no device `quantum:0`"]),
        (&["--for", "llama.json"], 3, &["llama.json", "missing field `vocab_size`"]),
        (&["--for", "gpt.json"], 3, &["gpt.json", "the architecture `gpt2` is not known", "hint:"]),
        (&["--for", "dense.json", "--tp", "4"], 3, &["--tp 4 does not divide `num_key_value_heads` = 2"]),
        (&["--for", "dense.json", "--ep", "2"], 3, &["--ep 2 divides nothing"]),
        (&["--for", "folder"], 3, &["folder", "config.json"]),
        (&["--for", "nowhere.gguf"], 3, &["nowhere.gguf"]),
        (&["--for", "broken.json"], 3, &["broken.json: no JSON"]),
        (&["--for", "nowhere.json"], 4, &["nowhere.json"]),
        (&["--for", "nowhere"], 3, &["nowhere", "hint:"]),
        (&["--for", "model.json", "--tp", "3"], 3, &["--tp 3 does not divide `num_attention_heads` = 128"]),
        (&["--for", "model.json", "--pp", "62"], 3, &["--pp 62 leaves stages without a layer"]),
        (&["--for", "model.json", "--ep", "7"], 3, &["--ep 7 does not divide `n_routed_experts` = 256"]),
        (&["--for", "model.json", "--tp", "0"], 3, &["--tp 0 does not divide"]),
        (&["--for", "model.json", "--seq", "0"], 3, &["model.json", "`sequence`"]),
        (&["--for", "empty.jsonl"], 4, &["empty.jsonl: no cases in it"]),
        (&["--for", "wrong.jsonl"], 4, &["wrong.jsonl:2: no JSON"]),
        (&["--for", "wrong.jsonl", "--tp", "2"], 2, &["cases have their shapes"]),
        (&["--hours", "0"], 2, &["--hours 0", "hint: --quick"]),
        (&["--hours", "1000000"], 2, &["--hours 1000000"]),
        (&["--expect", "perfect"], 2, &["train, train-with, infer, unfit, inconclusive"]),
        (&["--write", "there.toml"], 5, &["there.toml is there already"]),
    ] {
        fails(&qualify(folder.path(), arguments), code, words);
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

/// A list of cases: what is of the contract is judged, the rest is not run, and the verdict says what share that is.
#[test]
fn cases_that_are_unknown_are_listed_as_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = |shape: &str, stride: &str| {
        format!("{{\"tensor\": {{\"shape\": {shape}, \"stride\": {stride}, \"dtype\": \"float32\"}}}}")
    };
    let product = format!("[{}, {}]", tensor("[32, 48]", "[48, 1]"), tensor("[48, 16]", "[1, 48]"));
    let lines = format!(
        "{{\"version\": 1, \"operator\": \"aten.mm.default\", \"args\": {product}, \"kwargs\": {{}}, \"count\": 2}}\n\
         {{\"version\": 1, \"operator\": \"aten.fft_fft.default\", \"args\": [{}], \"kwargs\": {{}}, \"count\": 1}}\n",
        tensor("[8]", "[1]")
    );
    std::fs::write(folder.path().join("cases.jsonl"), lines).unwrap();
    let output = qualify(
        folder.path(),
        &[
            "--device",
            "cpu",
            "--quick",
            "--for",
            "cases.jsonl",
            "--json",
            "--memory",
            "64",
            "--soak",
            "2",
            "--expect",
            "train",
        ],
    );
    let summary = json(&output);
    let of = |name: &str| {
        let operators = summary["operators"].as_array().unwrap();
        operators.iter().find(|operator| operator["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(of("aten.fft_fft.default")["passed"], serde_json::Value::Null);
    assert_eq!(of("matmul")["passed"], true);
    assert_eq!(of("matmul")["shape"], "[32, 48] [48, 16]");
    assert_eq!(summary["coverage"]["not_run"], 1);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        (&summary["coverage"]["shapes_whole"], &summary["coverage"]["shapes_not_run"]),
        (&1.into(), &1.into())
    );
    assert_eq!((output.status.code(), &summary["verdict"]), (Some(0), &"train".into()), "{text}");
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains("of your 2 shapes 1 were run whole, 0 in part and 1 not at all"), "{text}");
    assert!(flat.contains("python -m toprope cases"), "{text}");
    // Kept, it can be held against the device as it is later.
    std::fs::write(folder.path().join("verdict.json"), text.as_bytes()).unwrap();
    let still = qualify(folder.path(), &["--still", "verdict.json"]);
    assert_eq!(still.status.code(), Some(0), "{}", String::from_utf8_lossy(&still.stdout));
    let other = qualify(folder.path(), &["--still", "verdict.json", "--device", "cpu:portable"]);
    let told = String::from_utf8_lossy(&other.stdout);
    assert!(other.status.code() == Some(13) && told.contains("level:"), "{told}");
    fails(&qualify(folder.path(), &["--still", "cases.jsonl"]), 4, &["cases.jsonl: its last line is none"]);
}

/// One die of many for the published model: a verdict within the minute, whatever the processor cannot do in it.
#[test]
fn a_die_is_qualified_for_a_share_of_the_671_b_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.json"), include_str!("data/deepseek_v3_config.json")).unwrap();
    let share = ["--for", "model.json", "--tp", "8", "--ep", "64", "--seq", "4096"];
    let rest = ["--device", "cpu", "--quick", "--json", "--memory", "64", "--soak", "1"];
    let output = qualify(folder.path(), &[&share[..], &rest[..]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = json(&output);
    assert_eq!((output.status.code(), &summary["verdict"]), (Some(0), &"train".into()), "{text}");
    let asked = summary["operators"].as_array().unwrap().iter().filter(|one| !one["extent"].is_null());
    let asked: Vec<_> = asked.collect();
    let part = asked.iter().filter(|one| one["extent"]["whole"] == false).count();
    println!("{} shapes run, {part} of them in part; {}", asked.len(), summary["coverage"]);
    assert!(asked.len() > 40 && part > 0 && asked.iter().all(|one| one["passed"] == true), "{text}");
}

/// A published model: its shapes, and its own weights through prefill and decode beside the trusted device.
#[test]
fn a_published_model_is_proven_with_its_own_weights() {
    for record in ["qwen2-default", "deepseek-fp8"] {
        let folder = tempfile::tempdir().unwrap();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hub");
        let model = models.join(record);
        let model = ["--for", model.to_str().unwrap()];
        let rest = ["--device", "cpu", "--quick", "--json", "--memory", "64", "--soak", "1"];
        let output = qualify(folder.path(), &[&model[..], &rest[..]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let summary = json(&output);
        assert_eq!((output.status.code(), &summary["verdict"]), (Some(0), &"train".into()), "{text}");
        let proofs = summary["inference"].as_array().unwrap();
        let own = &proofs[0];
        assert_eq!(own["name"], record, "what was asked for comes first: {own}");
        assert_eq!((&own["outcome"], &own["dtype"]), (&"passed".into(), &"bf16".into()), "{own}");
        let (tokens, agreed, tied) = (own["tokens"].as_u64(), own["agreed"].as_u64(), own["tied"].as_u64());
        assert!(tokens.unwrap() >= 8 && agreed.unwrap() + tied.unwrap() == tokens.unwrap(), "{own}");
        let asked = summary["operators"].as_array().unwrap().iter().filter(|one| !one["extent"].is_null());
        assert!(asked.count() > 10, "{text}");
    }
}

#[test]
fn two_dies_of_one_kind_agree_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let output = qualify(
        folder.path(),
        &[
            "--device",
            "cpu:portable,cpu:avx2,reference",
            "--quick",
            "--json",
            "--memory",
            "64",
            "--soak",
            "2",
        ],
    );
    let summary = json(&output);
    let dies = summary["dies"]["dies"].as_array().unwrap();
    assert_eq!(dies.len(), 3);
    // Both levels give the same bits; the reference adds in f64 and stands alone, inside of its bound.
    assert_eq!((&dies[0]["alone"], &dies[1]["alone"]), (&0.into(), &0.into()));
    assert_eq!(dies[2]["outside"], 0);
    // What is printed, what a script reads and the exit code say the same of it.
    assert_eq!((&summary["device"], &summary["verdict"]), (&"reference".into(), &"train with".into()));
    assert_eq!(output.status.code(), Some(10));
}
