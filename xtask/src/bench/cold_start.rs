//! A small recipe to the end of its first step, beside Python with PyTorch on the same model.

use super::pairs::Pairs;
use super::rival::{last_json, text};
use super::training::row;
use super::{Bench, Row, THREADS};
use serde_json::Value;
use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = "tiny-dense";
/// A start takes seconds at most.
const LIMIT: Duration = Duration::from_secs(120);

impl Bench<'_> {
    /// One row, of times.
    pub fn cold_start(&self) -> Result<Vec<Row>, String> {
        let mut pairs = Pairs::default();
        // Files are read once before, so that both come from memory.
        self.our_start()?;
        let record = last_json(self.first_step())?;
        for _ in 0..self.asked.pairs {
            pairs.push("cold start", self.our_start()?, to_first_line(self.first_step())?, "s");
        }
        let how = format!(
            "from the start of the process to the end of step 1 of `{RECIPE}`, files in memory; ours: `toprope train`, guarded, \
             {THREADS} threads, its text read and cut; PyTorch {}, Python {}: `import torch`, the model, one step of {}",
            text(&record, "torch"),
            text(&record, "python"),
            text(&record, "variant")
        );
        Ok(vec![row("cold start to the first step", &pairs, "s", "≤ 0.1; –", &how)])
    }

    fn first_step(&self) -> Command {
        let mut script = self.script(&self.asked.python, "pytorch_train.py");
        script.args([RECIPE, "--warmup", "0", "--steps", "1", "--threads", THREADS]);
        script
    }

    /// Seconds until the run's metrics hold a step.
    fn our_start(&self) -> Result<f64, String> {
        let run = std::env::temp_dir().join(format!("toprope-bench-{}-cold", std::process::id()));
        let mut command = self.program("toprope");
        command.args(["train", RECIPE, "--steps", "1", "--threads", THREADS, "--run"]).arg(&run);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let seconds = to_first_metrics(command, &run.join("metrics.jsonl"));
        // The folder is ours alone.
        let _ = std::fs::remove_dir_all(&run);
        seconds
    }
}

fn to_first_metrics(mut command: Command, metrics: &Path) -> Result<f64, String> {
    let began = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let mut seconds = None;
    while seconds.is_none() && began.elapsed() < LIMIT {
        let ended = child.try_wait().map_err(|error| error.to_string())?.is_some();
        if std::fs::read_to_string(metrics).is_ok_and(|text| text.contains('\n')) {
            seconds = Some(began.elapsed().as_secs_f64());
        } else if ended {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait().map_err(|error| error.to_string())?;
    seconds.ok_or_else(|| format!("{command:?} came to no step"))
}

fn to_first_line(mut command: Command) -> Result<f64, String> {
    let began = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let mut line = String::new();
    let output = child.stdout.take().ok_or("no pipe")?;
    std::io::BufReader::new(output).read_line(&mut line).map_err(|error| error.to_string())?;
    let seconds = began.elapsed().as_secs_f64();
    child.wait().map_err(|error| error.to_string())?;
    // The line is said when the step is over.
    match serde_json::from_str::<Value>(&line) {
        Ok(record) if record["loss_last"].is_number() => Ok(seconds),
        _ => Err(format!("{command:?} came to no step: `{}`", line.trim())),
    }
}
