//! Journals by hand.

use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use toprope_guard::journal::{JournalError, RunRecord};
use toprope_world::testing::{MemoryFiles, MemoryWorld};
use toprope_world::{Files, utc_timestamp};

pub const FOLDER: &str = "/run";
pub const RUN_ID: &str = "0123456789abcdef";

/// Lines, each with its attempt and a time that goes on by itself.
#[derive(Clone, Default)]
pub struct Lines {
    pub journal: Vec<String>,
    pub metrics: Vec<String>,
    milliseconds: u64,
}

impl Lines {
    fn line(&self, attempt: u64, fields: Value) -> String {
        let time =
            utc_timestamp(Duration::from_secs(1_767_225_600) + Duration::from_millis(self.milliseconds));
        let mut line = json!({"attempt": attempt, "time": time});
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        line.to_string()
    }

    pub fn wait(&mut self, milliseconds: u64) {
        self.milliseconds += milliseconds;
    }

    pub fn event(&mut self, attempt: u64, fields: Value) {
        let line = self.line(attempt, fields);
        self.journal.push(line);
    }

    pub fn begin(&mut self, attempt: u64, step: u64) {
        let event = if attempt == 1 { "created" } else { "resumed" };
        self.event(
            attempt,
            json!({"event": event, "run_id": RUN_ID, "process": 40 + attempt, "toprope_version": "0.1.0",
                   "journal_version": 1}),
        );
        self.event(attempt, json!({"event": "start", "step": step, "devices": ["cpu", "reference"]}));
    }

    pub fn commit(&mut self, attempt: u64, step: u64, number: u64) {
        self.event(attempt, json!({"event": "committed", "step": step, "number": number, "states": [step]}));
    }

    pub fn step(&mut self, attempt: u64, step: u64, seconds: f64) {
        let loss = 5.0 - step as f64 * 0.01;
        let line =
            json!({"step": step + 1, "loss": loss, "tokens": 64, "seconds": seconds, "gradient_norm": 1.0});
        let line = self.line(attempt, line);
        self.metrics.push(line);
    }

    pub fn journal_bytes(&self) -> Vec<u8> {
        bytes(&self.journal)
    }

    pub fn read(&self) -> RunRecord {
        read(&self.journal_bytes(), &bytes(&self.metrics)).unwrap()
    }
}

fn bytes(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

pub fn read(journal: &[u8], metrics: &[u8]) -> Result<RunRecord, JournalError> {
    let files = MemoryFiles::new();
    files.create_folder(Path::new(FOLDER)).unwrap();
    for (name, content) in [("journal.jsonl", journal), ("metrics.jsonl", metrics)] {
        files.create(&Path::new(FOLDER).join(name)).unwrap().write(content).unwrap();
    }
    RunRecord::read(&MemoryWorld::new(files), Path::new(FOLDER))
}
