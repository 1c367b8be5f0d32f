//! The two fixed recipes beside PyTorch's best setting, and on one thread.

use super::pairs::Pairs;
use super::rival::{KEEPING_ALLOCATOR, Kept, best, figure, last_json, text, told_when};
use super::{Bench, Row, THREADS, machine};
use serde_json::Value;
use std::process::Command;

const MIB: f64 = 1048576.0;
/// Steps of a round of ours, the first among them; PyTorch's are 9 behind 3.
const STEPS: &str = "12";

impl Bench<'_> {
    /// The rows of one recipe: speed, memory, and two threads against one.
    pub fn training(&self, recipe: &str, training: bool, threads: bool) -> Result<Vec<Row>, String> {
        let rival = if training { Some(self.pytorch(recipe)?) } else { None };
        let mut kept = rival.as_ref().map(|best| Kept::start(self.setting(recipe, best))).transpose()?;
        let (mut speed, mut memory, mut two) = (Pairs::default(), Pairs::default(), Pairs::default());
        let (mut last, mut beside) = (Value::Null, Value::Null);
        for _ in 0..self.asked.pairs {
            let ours = self.train(recipe, THREADS)?;
            if let Some(kept) = &mut kept {
                let theirs = kept.round()?;
                let of = |key: &str| Ok::<_, String>((figure(&ours, key)?, figure(&theirs, key)?));
                let (a, b) = of("tokens_per_second")?;
                speed.push(recipe, a, b, "tokens/s");
                let (a, b) = of("peak_memory_bytes")?;
                memory.push(recipe, a / MIB, b / MIB, "MiB");
                beside = theirs;
            }
            if threads {
                let one = self.train(recipe, "1")?;
                let key = "tokens_per_second";
                two.push(&format!("{recipe}, threads"), figure(&ours, key)?, figure(&one, key)?, "tokens/s");
            }
            last = ours;
        }
        let mut rows = Vec::new();
        if let Some(rival) = &rival {
            let how = format!(
                "ours: {}; PyTorch {}: {} ({}), {THREADS} threads",
                ours_told(&last),
                text(&beside, "torch"),
                text(rival, "variant"),
                told_when(rival)
            );
            let must = match (recipe, self.amx) {
                ("bench-dense", true) => "3; 6",
                ("bench-dense", false) => "1.5; –",
                (_, true) => "5; 10",
                (_, false) => "3; –",
            };
            rows.push(row(&format!("train `{recipe}`"), &speed, "tokens/s", must, &how));
            let name = format!("peak memory of `{recipe}`");
            rows.push(row(&name, &memory, "MiB", "≤ 0.7; 0.4", MEMORY));
        }
        if threads {
            let how = format!("ours: {}", ours_told(&last));
            let mut row =
                row(&format!("`{recipe}`, 2 threads against 1"), &two, "tokens/s", "1.7; 1.9", &how);
            row.theirs += ", one thread";
            rows.push(row);
        }
        Ok(rows)
    }

    /// PyTorch's best setting for a recipe.
    fn pytorch(&self, recipe: &str) -> Result<Value, String> {
        let mut search = self.script(&self.asked.python, "pytorch_train.py");
        // Few steps each: who is best is seen in five, and the figure is taken again in the pairs.
        search.args([recipe, "--best", "--threads", THREADS, "--warmup", "2", "--steps", "5"]);
        best(self.asked.best.as_deref(), &machine::describe(), recipe, search)
    }

    /// That setting, kept.
    fn setting(&self, recipe: &str, best: &Value) -> Command {
        let mut command = self.script(&self.asked.python, "pytorch_train.py");
        command.args([recipe, "--kept", "--threads", THREADS]);
        for key in ["precision", "attention", "experts"] {
            command.args([format!("--{key}"), text(&best["setting"], key).to_string()]);
        }
        let variant = text(best, "variant");
        if best["compiled"].as_bool() == Some(true) {
            command.arg("--compile");
        }
        if variant.contains("head-chunked") {
            command.args(["--head", "chunked"]);
        }
        if variant.contains("keeping-allocator") {
            command.envs(KEEPING_ALLOCATOR);
        }
        command
    }

    fn train(&self, recipe: &str, threads: &str) -> Result<Value, String> {
        self.trained(&[recipe, "--steps", STEPS, "--threads", threads])
    }

    /// A run of ours that leaves nothing behind, and what it says at its end.
    pub fn trained(&self, arguments: &[&str]) -> Result<Value, String> {
        let run = std::env::temp_dir().join(format!("toprope-bench-{}", std::process::id()));
        let mut command = self.program("toprope");
        command.arg("train").args(arguments);
        command.args(["--json", "--set", "evaluation.final_tokens=256", "--run"]).arg(&run);
        let summary = last_json(command);
        // The folder is ours alone; a run that failed early has none.
        let _ = std::fs::remove_dir_all(&run);
        summary
    }
}

/// How memory is counted.
pub const MEMORY: &str =
    "ours: all processes of the run, what they share once; PyTorch: VmHWM of the measured steps";

/// A row of pairs.
pub fn row(work: &str, pairs: &Pairs, unit: &str, must: &str, how: &str) -> Row {
    Row {
        work: work.into(),
        ours: pairs.ours(unit),
        theirs: pairs.theirs(unit),
        ratio: pairs.ratio(),
        must: must.into(),
        settings: how.into(),
    }
}

/// What a run of ours was.
pub fn ours_told(summary: &Value) -> String {
    format!(
        "`{}` ({}), guarded, {} threads",
        text(summary, "device"),
        text(summary, "level"),
        summary["threads"]
    )
}
