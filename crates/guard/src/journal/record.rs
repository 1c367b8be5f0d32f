//! A line's meaning, as far as a reader needs it.

use super::{FaultRecord, LogLine};
use serde_json::{Map, Value};
use std::time::Duration;
use toprope_world::parse_utc_timestamp;

/// A line of the journal that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line's number in the file, from 1.
    pub line: u64,
    /// The process that wrote it, from 1; 0 where it does not say.
    pub attempt: u64,
    /// When, since 1970.
    pub time: Option<Duration>,
    /// What it says.
    pub what: What,
}

/// What a line says. What only people read is kept as [`What::Note`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the fields are those of docs/journal.md
pub enum What {
    /// An attempt began.
    Begin { resumed: bool, run_id: String, version: String, journal_version: u64, process: u64 },
    /// Training goes on from the state of so many committed steps, on these devices.
    Start { step: u64, devices: Vec<String>, checks: Option<String> },
    /// A worker serves a rank.
    WorkerActive { rank: u64, device: u64, standby: bool },
    /// A step was committed.
    Committed { step: u64, execution: u64 },
    /// Something went wrong.
    Fault(Box<FaultRecord>),
    /// A fault's consequences are over.
    Recovered { step: u64, seconds: f64, steps_redone: u64 },
    /// An execution was given up.
    Retried { step: u64 },
    /// Committed steps were taken back.
    RolledBack { from: u64, to: u64 },
    /// A device is not to be used.
    Quarantined { device: u64 },
    /// The run moved from one device to another.
    Moved { rank: u64, from: u64, to: u64, back: bool },
    /// A quarantined device was tested.
    Retested { device: u64, passed: bool },
    /// A batch was left out on purpose.
    BatchSkipped { step: u64 },
    /// A durable checkpoint was written.
    Checkpoint { step: u64 },
    /// How often snapshots are taken, and from which figures that follows.
    SnapshotInterval { steps: u64, snapshot_seconds: f64, step_seconds: f64, fault_seconds: f64 },
    /// The guard ended.
    Stopped { reason: String, step: u64 },
    /// The process ended in order.
    End { interrupted: bool, steps: Option<u64> },
    /// A line for people: its event's name and its words.
    Note { event: String, text: String, known: bool },
}

impl Record {
    /// Understands a line.
    ///
    /// # Errors
    /// The field that is missing or of another type, in words.
    pub fn of_line(line: &LogLine) -> Result<Record, String> {
        let fields = Fields { event: text(&line.value, "event").unwrap_or_default(), map: &line.value };
        let what = fields.what()?;
        let time = line.value.get("time").and_then(Value::as_str).and_then(parse_utc_timestamp);
        let mut record = Record { line: line.number, attempt: line.attempt(), time, what };
        if let What::Fault(fault) = &mut record.what {
            (fault.line, fault.attempt, fault.time) = (record.line, record.attempt, record.time);
        }
        Ok(record)
    }
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    map.get(name).and_then(Value::as_str)
}

struct Fields<'a> {
    event: &'a str,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn what(&self) -> Result<What, String> {
        Ok(match self.event {
            "created" | "resumed" => What::Begin {
                resumed: self.event == "resumed",
                run_id: self.text("run_id")?,
                version: text(self.map, "toprope_version").unwrap_or("unknown").to_owned(),
                journal_version: self.optional_count("journal_version").unwrap_or(0),
                process: self.optional_count("process").unwrap_or(0),
            },
            "start" => What::Start {
                step: self.count("step")?,
                devices: self.devices(),
                checks: text(self.map, "checks").map(str::to_owned),
            },
            "worker_active" => What::WorkerActive {
                rank: self.count("rank")?,
                device: self.count("device")?,
                standby: self.flag("standby"),
            },
            "committed" => What::Committed { step: self.count("step")?, execution: self.count("number")? },
            "fault" => What::Fault(Box::new(FaultRecord::of_fields(self.map)?)),
            "recovered" => What::Recovered {
                step: self.count("step")?,
                seconds: self.seconds("seconds")?,
                steps_redone: self.optional_count("steps_redone").unwrap_or(0),
            },
            "retried" => What::Retried { step: self.count("step")? },
            "rolled_back" => What::RolledBack { from: self.count("from")?, to: self.count("to")? },
            "quarantined" => What::Quarantined { device: self.count("device")? },
            "failed_over" | "failed_back" => What::Moved {
                rank: self.count("rank")?,
                from: self.count("from")?,
                to: self.count("to")?,
                back: self.event == "failed_back",
            },
            "retested" => What::Retested { device: self.count("device")?, passed: self.flag("passed") },
            "batch_skipped" => What::BatchSkipped { step: self.count("step")? },
            "checkpoint" => What::Checkpoint { step: self.count("step")? },
            "snapshot_interval" => What::SnapshotInterval {
                steps: self.count("steps")?,
                snapshot_seconds: self.seconds("snapshot_seconds")?,
                step_seconds: self.seconds("step_seconds")?,
                fault_seconds: self.seconds("fault_seconds")?,
            },
            "stopped" => What::Stopped { reason: self.reason(), step: self.count("step")? },
            "end" => {
                let summary = self.map.get("summary");
                let field = |name| summary.and_then(|summary| summary.get(name));
                What::End {
                    interrupted: field("interrupted").and_then(Value::as_bool).unwrap_or(false),
                    steps: field("steps").and_then(Value::as_u64),
                }
            }
            "" => return Err("it has no `event`".to_owned()),
            other => {
                let known = super::EVENTS.iter().any(|schema| schema.event == other);
                What::Note { event: other.to_owned(), text: self.words(), known }
            }
        })
    }

    fn optional_count(&self, name: &str) -> Option<u64> {
        self.map.get(name).and_then(Value::as_u64)
    }

    fn count(&self, name: &str) -> Result<u64, String> {
        self.optional_count(name)
            .ok_or_else(|| format!("`{name}` of `{}` is missing or not a whole number", self.event))
    }

    fn seconds(&self, name: &str) -> Result<f64, String> {
        let seconds = self.map.get(name).and_then(Value::as_f64).filter(|seconds| *seconds >= 0.0);
        seconds.ok_or_else(|| format!("`{name}` of `{}` is missing or not a number of seconds", self.event))
    }

    fn text(&self, name: &str) -> Result<String, String> {
        let found = text(self.map, name).map(str::to_owned);
        found.ok_or_else(|| format!("`{name}` of `{}` is missing or not a text", self.event))
    }

    fn flag(&self, name: &str) -> bool {
        self.map.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The devices by name, in the order of their indices; a run without a guard has one.
    fn devices(&self) -> Vec<String> {
        match self.map.get("devices").and_then(Value::as_array) {
            Some(list) => list.iter().map(|name| name.as_str().unwrap_or("?").to_owned()).collect(),
            None => text(self.map, "device").map(str::to_owned).into_iter().collect(),
        }
    }

    /// `reason` is a word, or `{ word: particulars }`.
    fn reason(&self) -> String {
        match self.map.get("reason") {
            Some(Value::String(word)) => word.clone(),
            Some(Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
            _ => "unknown".to_owned(),
        }
    }

    /// The line's own fields, as `name value` pairs.
    fn words(&self) -> String {
        let own = self.map.iter().filter(|(name, _)| !["attempt", "time", "event"].contains(&name.as_str()));
        let one = |(name, value): (&String, &Value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        };
        own.map(one).collect::<Vec<_>>().join(", ")
    }
}
