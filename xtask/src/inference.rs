//! Tokens read and made per second beside llama.cpp: runs in turn, medians, ratios within one run.

use crate::bench::last_json;
use crate::built::built;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tokens of the prompt and of the answer.
const READ: usize = 512;
const MADE: usize = 64;
/// Rounds of llama.cpp in each pair, behind one that warms it up.
const ROUNDS: &str = "3";

/// What is asked for.
pub struct Asked {
    /// A GGUF file.
    pub model: PathBuf,
    /// Where llama.cpp's own BF16 form of it lies, or will.
    pub bf16: PathBuf,
    /// The interpreter that has llama-cpp-python.
    pub python: String,
    /// Pairs of runs.
    pub pairs: usize,
}

/// Compares tokens per second of reading a prompt and of making an answer.
pub fn run(root: &Path, asked: &Asked) -> Result<(), String> {
    if asked.pairs == 0 {
        return Err("--pairs: at least one".into());
    }
    let binary = built(root)?.join("toprope");
    let mut pairs: Vec<[f64; 4]> = Vec::new();
    let mut rival = Value::Null;
    for pair in 1..=asked.pairs {
        let ours = ours(&binary, &asked.model)?;
        rival = theirs(root, asked)?;
        let number = |value: &Value, key: &str| {
            value[key].as_f64().filter(|x| *x > 0.0).ok_or_else(|| format!("no `{key}` in {value}"))
        };
        let figures = [
            READ as f64 / number(&ours, "prefill_seconds")?,
            number(&rival, "prefill_tokens_per_second")?,
            MADE as f64 / number(&ours, "decode_seconds")?,
            number(&rival, "decode_tokens_per_second")?,
        ];
        println!(
            "pair {pair}: read {:.0} tok/s, llama.cpp {:.0}, ratio {:.2}; made {:.1} tok/s, llama.cpp {:.1}, ratio {:.2}",
            figures[0],
            figures[1],
            figures[0] / figures[1],
            figures[2],
            figures[3],
            figures[2] / figures[3]
        );
        pairs.push(figures);
    }
    let median = |of: &dyn Fn(&[f64; 4]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let text = |key: &str| rival[key].as_str().unwrap_or_default().to_string();
    println!(
        "\n| {} pairs, bf16, 2 threads | ours | llama.cpp (llama-cpp-python {}) | ratio |",
        asked.pairs,
        text("version")
    );
    println!("| --- | --- | --- | --- |");
    for (what, at, setting) in
        [("prefill, 512 tokens", 0, "prefill_setting"), ("decode, 64 tokens", 2, "decode_setting")]
    {
        println!(
            "| {what} | {:.0} tokens/s | {:.0} tokens/s ({}) | {:.2} |",
            median(&|figures| figures[at]),
            median(&|figures| figures[at + 1]),
            text(setting),
            median(&|figures| figures[at] / figures[at + 1])
        );
    }
    println!("llama.cpp: {}", text("system"));
    Ok(())
}

fn ours(binary: &Path, model: &Path) -> Result<Value, String> {
    // One token a word in every byte-level vocabulary.
    let prompt = vec!["a"; READ].join(" ");
    // The first token that is made comes out of the prompt.
    let made = (MADE + 1).to_string();
    let mut command = Command::new(binary);
    command.arg("generate").arg(model);
    command.args(["--prompt", &prompt, "--max-tokens", &made, "--context", "1024"]);
    command.args(["--dtype", "bf16", "--threads", "2", "--ignore-end", "--warm-up", "--json"]);
    let said = last_json(command)?;
    match said["prompt"].as_array().map(Vec::len) {
        Some(READ) => Ok(said),
        count => Err(format!("the prompt has {count:?} tokens, not {READ}")),
    }
}

fn theirs(root: &Path, asked: &Asked) -> Result<Value, String> {
    let mut command = Command::new(&asked.python);
    command.arg(root.join("benches/rivals/llama_cpp_infer.py")).arg(&asked.model);
    command.arg("--bf16").arg(&asked.bf16).args(["--rounds", ROUNDS]);
    command.args(["--read", &READ.to_string(), "--made", &MADE.to_string(), "--threads", "2"]);
    last_json(command)
}
