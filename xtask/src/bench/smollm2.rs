//! SmolLM2-135M trained in full, 16 sequences of 512 tokens a step, beside transformers with PyTorch.

use super::pairs::Pairs;
use super::rival::{KEEPING_ALLOCATOR, Kept, best, figure, text, told_when};
use super::training::{MEMORY, ours_told, row};
use super::{Bench, Row, THREADS, machine};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const MIB: f64 = 1048576.0;
/// Text enough for a few steps: what is written of this project.
const PAGES: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "BENCHMARKS.md",
    "docs/models.md",
    "docs/checks.md",
    "docs/operators.md",
];
/// A step takes some twenty seconds: the median of two, the first among them.
const STEPS: &str = "2";

impl Bench<'_> {
    /// Speed and memory.
    pub fn smollm2(&self) -> Result<Vec<Row>, String> {
        let model = self.asked.model.as_deref().ok_or("no --model was given")?;
        let room = std::env::temp_dir().join(format!("toprope-bench-{}-smollm2", std::process::id()));
        let taken = self.in_room(model, &room);
        // The folder is ours alone.
        let _ = std::fs::remove_dir_all(&room);
        taken
    }

    fn in_room(&self, model: &Path, room: &Path) -> Result<Vec<Row>, String> {
        std::fs::create_dir_all(room).map_err(|error| format!("{}: {error}", room.display()))?;
        let folder = room.join("model");
        let output = self.program("toprope").arg("export").arg(model).arg(&folder).output();
        let output = output.map_err(|error| format!("cannot export: {error}"))?;
        if !output.status.success() {
            return Err(format!("cannot export: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let mut search = self.script(&self.asked.python, "transformers_train.py");
        search.arg(&folder).args(["--best", "--threads", THREADS]);
        let rival = best(self.asked.best.as_deref(), &machine::describe(), "smollm2", search)?;
        let mut kept = Kept::start(self.transformers(&folder, &rival))?;
        let (mut speed, mut memory) = (Pairs::default(), Pairs::default());
        let (mut last, mut beside) = (Value::Null, Value::Null);
        for _ in 0..self.asked.pairs {
            let ours = self.train_smollm2(model)?;
            let theirs = kept.round()?;
            let of = |key: &str| Ok::<_, String>((figure(&ours, key)?, figure(&theirs, key)?));
            let (a, b) = of("tokens_per_second")?;
            speed.push("SmolLM2", a, b, "tokens/s");
            let (a, b) = of("peak_memory_bytes")?;
            memory.push("SmolLM2", a / MIB, b / MIB, "MiB");
            (last, beside) = (ours, theirs);
        }
        let how = format!(
            "16 × 512; ours: {}, `recipes/continue.toml` with batch 16 (in-place state, one sequence at once, bf16); PyTorch {}, \
             transformers {}: {} ({}), {THREADS} threads",
            ours_told(&last),
            text(&beside, "torch"),
            text(&beside, "transformers"),
            text(&rival, "variant"),
            told_when(&rival)
        );
        Ok(vec![
            row("train SmolLM2-135M in full", &speed, "tokens/s", "2.5; 5", &how),
            row("peak memory of SmolLM2-135M", &memory, "MiB", "≤ 0.7; 0.4", MEMORY),
        ])
    }

    fn train_smollm2(&self, model: &Path) -> Result<Value, String> {
        let (model, paths) = (model.to_string_lossy(), format!("data.paths={PAGES:?}"));
        let recipe = self.root.join("recipes/continue.toml");
        let recipe = recipe.to_string_lossy();
        let mut arguments = vec![&*recipe, "--from", &model, "--steps", STEPS, "--threads", THREADS];
        for set in [&*paths, "data.validation_fraction=0.0", "training.batch=16", "sample.tokens=0"] {
            arguments.extend(["--set", set]);
        }
        self.trained(&arguments)
    }

    fn transformers(&self, folder: &Path, best: &Value) -> Command {
        let setting = &best["setting"];
        let mut command = self.script(&self.asked.python, "transformers_train.py");
        command.arg(folder).args(["--kept", "--threads", THREADS]);
        command.args(["--precision", text(setting, "precision"), "--head", text(setting, "head")]);
        command.args(["--micro", &setting["micro"].to_string()]);
        if setting["compiled"].as_bool() == Some(true) {
            command.arg("--compile");
        }
        if setting["keeping"].as_bool() == Some(true) {
            command.envs(KEEPING_ALLOCATOR);
        }
        command
    }
}
