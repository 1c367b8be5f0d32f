//! Tokens read and made per second with SmolLM2-135M in bf16, beside llama.cpp.

use super::pairs::Pairs;
use super::rival::{figure, last_json, text};
use super::training::row;
use super::{Bench, Row, THREADS};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Tokens of the prompt and of the answer.
const READ: usize = 512;
const MADE: usize = 64;
/// Rounds of llama.cpp in each pair, behind one that warms it up.
const ROUNDS: &str = "3";

impl Bench<'_> {
    /// Two rows: reading a prompt, and making an answer.
    pub fn inference(&self) -> Result<Vec<Row>, String> {
        let model = self.asked.model.as_deref().ok_or("no --model was given")?;
        let python = self.asked.llama_python.as_ref().unwrap_or(&self.asked.python);
        let found = Command::new(python).args(["-c", "import llama_cpp"]).output();
        if !found.map_err(|error| format!("cannot start {python}: {error}"))?.status.success() {
            return Err(format!("{python} has no llama_cpp (llama-cpp-python)"));
        }
        let (mut read, mut made) = (Pairs::default(), Pairs::default());
        let (mut last, mut beside) = (Value::Null, Value::Null);
        for _ in 0..self.asked.pairs {
            let ours = self.generated(model)?;
            let theirs = self.llama_cpp(python, model)?;
            let rate = |tokens: usize, key: &str| Ok::<_, String>(tokens as f64 / figure(&ours, key)?);
            let unit = "tokens/s";
            read.push(
                "prefill",
                rate(READ, "prefill_seconds")?,
                figure(&theirs, "prefill_tokens_per_second")?,
                unit,
            );
            made.push(
                "decode",
                rate(MADE, "decode_seconds")?,
                figure(&theirs, "decode_tokens_per_second")?,
                unit,
            );
            (last, beside) = (ours, theirs);
        }
        let how = |setting: &str| {
            format!(
                "bf16, {THREADS} threads; ours: `{}` ({}); llama-cpp-python {}, {}, {}",
                text(&last, "device"),
                text(&last, "level"),
                text(&beside, "version"),
                text(&beside, setting),
                text(&beside, "system").replace('|', ";")
            )
        };
        Ok(vec![
            row("prefill SmolLM2-135M, 512 tokens", &read, "tokens/s", "2; 4", &how("prefill_setting")),
            row(
                "decode the same, 64 tokens",
                &made,
                "tokens/s",
                "1.0; memory bandwidth",
                &how("decode_setting"),
            ),
        ])
    }

    fn generated(&self, model: &Path) -> Result<Value, String> {
        // One token a word in every byte-level vocabulary.
        let prompt = vec!["a"; READ].join(" ");
        // The first token that is made comes out of the prompt.
        let tokens = (MADE + 1).to_string();
        let mut command = self.program("toprope");
        command.arg("generate").arg(model);
        command.args(["--prompt", &prompt, "--max-tokens", &tokens, "--context", "1024"]);
        command.args(["--dtype", "bf16", "--threads", THREADS, "--ignore-end", "--warm-up", "--json"]);
        let said = last_json(command)?;
        match said["prompt"].as_array().map(Vec::len) {
            Some(READ) => Ok(said),
            count => Err(format!("the prompt has {count:?} tokens, not {READ}")),
        }
    }

    fn llama_cpp(&self, python: &str, model: &Path) -> Result<Value, String> {
        let mut command = self.script(python, "llama_cpp_infer.py");
        command.arg(model).arg("--bf16").arg(&self.asked.bf16).args(["--rounds", ROUNDS]);
        command.args(["--read", &READ.to_string(), "--made", &MADE.to_string(), "--threads", THREADS]);
        last_json(command)
    }
}
