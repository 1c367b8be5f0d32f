//! The page says what the guard writes, no more and no less.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use toprope_guard::decide::{
    Attempt, DeviceIndex, Digest, Entry, Generation, Rank, Source, StopReason, Worker,
};
use toprope_guard::journal::{EVENTS, EventSchema, LogLine, Record, What, page};
use toprope_program::{FaultClass, FaultKind, Place, Range};

fn kinds() -> Vec<FaultKind> {
    let text = || "x".to_owned();
    vec![
        FaultKind::Lost { reason: text(), for_good: true },
        FaultKind::Hang { waited_ms: 1 },
        FaultKind::Driver { code: 7, message: text() },
        FaultKind::OutOfMemory { needed_bytes: 1, available_bytes: None },
        FaultKind::Unsupported { operator: text(), dtype: None, shape: vec![1], reason: text() },
        FaultKind::NonFinite { value: text() },
        FaultKind::Mismatch { operator: text(), error: 1.0, tolerance: 0.5 },
        FaultKind::Spike { metric: text(), value: 1.0, limit: 0.5 },
        FaultKind::Slow { factor: 2.0 },
    ]
}

/// An entry of each kind. The match below makes this list grow with the guard's words.
fn entries() -> Vec<Entry> {
    let text = || "x".to_owned();
    let attempt = Attempt { step: 3, number: 4 };
    let (from, to) = (DeviceIndex(0), DeviceIndex(1));
    let place =
        Place { range: Range::Accumulate, index: 7, operator: "matmul".into(), part: "layer 2".into() };
    let fault = |kind| Entry::Fault {
        kind,
        device: from,
        rank: Rank(0),
        step: 3,
        place: Some(place.clone()),
        action: text(),
    };
    let worker = Worker { rank: Rank(0), generation: Generation(1) };
    let mut entries: Vec<Entry> = kinds().into_iter().map(fault).collect();
    entries.extend([
        Entry::WorkerActive { worker, device: to, standby: true },
        Entry::Committed { attempt, states: vec![Digest(1)] },
        Entry::Judged { attempt, verdict: text(), detail: text() },
        Entry::Retried { attempt },
        Entry::Evidence { attempt, before: Some(Digest(1)), now: None },
        Entry::RolledBack { from: 5, to: 3, source: Source::Snapshot },
        Entry::StateRefused { rank: Rank(0), source: Source::Snapshot, step: 3, reason: text() },
        Entry::Quarantined { device: from, reason: text() },
        Entry::FailedOver { rank: Rank(0), from, to },
        Entry::FailedBack { rank: Rank(0), from: to, to: from },
        Entry::OperatorMoved { device: from, operator: text(), to },
        Entry::Retested { device: from, passed: true, detail: text() },
        Entry::BatchSkipped { step: 3, reason: text() },
        Entry::Checkpoint { step: 4, states: vec![Digest(1)] },
        Entry::CheckpointFailed { step: 4, reason: text() },
        Entry::Stopped { reason: StopReason::Policy { class: text() }, step: 4 },
    ]);
    let mut missing: BTreeSet<&str> = EVENTS.iter().map(|schema| schema.event).collect();
    for entry in &entries {
        missing.remove(name(entry));
    }
    // What others than the state machine write.
    let others =
        BTreeSet::from(["created", "resumed", "start", "injected", "recovered", "snapshot_interval", "end"]);
    assert_eq!(
        missing, others,
        "an event of the page that nobody writes, or an entry that is not tried here"
    );
    entries
}

fn name(entry: &Entry) -> &'static str {
    match entry {
        Entry::WorkerActive { .. } => "worker_active",
        Entry::Committed { .. } => "committed",
        Entry::Fault { .. } => "fault",
        Entry::Judged { .. } => "judged",
        Entry::Retried { .. } => "retried",
        Entry::Evidence { .. } => "evidence",
        Entry::RolledBack { .. } => "rolled_back",
        Entry::StateRefused { .. } => "state_refused",
        Entry::Quarantined { .. } => "quarantined",
        Entry::FailedOver { .. } => "failed_over",
        Entry::FailedBack { .. } => "failed_back",
        Entry::OperatorMoved { .. } => "operator_moved",
        Entry::Retested { .. } => "retested",
        Entry::BatchSkipped { .. } => "batch_skipped",
        Entry::Checkpoint { .. } => "checkpoint",
        Entry::CheckpointFailed { .. } => "checkpoint_failed",
        Entry::Stopped { .. } => "stopped",
    }
}

fn schema(event: &str) -> &'static EventSchema {
    EVENTS.iter().find(|schema| schema.event == event).unwrap_or_else(|| panic!("{event} is not in EVENTS"))
}

fn understood(fields: Map<String, Value>) -> Record {
    let line = LogLine { number: 1, offset: 0, value: fields.clone() };
    let record = Record::of_line(&line).unwrap_or_else(|error| panic!("{error}: {fields:?}"));
    if let What::Note { known, .. } = &record.what {
        assert!(known, "{fields:?}");
    }
    record
}

#[test]
fn each_entry_is_described_and_understood() {
    for entry in entries() {
        let Value::Object(fields) = serde_json::to_value(&entry).unwrap() else { panic!("{entry:?}") };
        let event = fields["event"].as_str().unwrap();
        assert_eq!(event, name(&entry));
        let schema = schema(event);
        for field in fields.keys().filter(|field| *field != "event") {
            let listed = schema.fields.iter().any(|listed| listed.name == field);
            // A class's own fields stand in the meaning.
            let told = event == "fault" && schema.meaning.contains(field.as_str());
            assert!(listed || told, "docs/journal.md: `{event}` has a field `{field}` that EVENTS lacks");
        }
        for field in schema.fields.iter().filter(|field| field.always) {
            assert!(fields.contains_key(field.name), "`{event}` has no `{}`", field.name);
        }
        let record = understood(fields);
        if let Entry::Fault { kind, .. } = &entry {
            let What::Fault(fault) = record.what else { panic!("{record:?}") };
            assert_eq!(fault.class, kind.class());
            assert_eq!(fault.detail, kind.to_string());
            assert_eq!(fault.place.as_deref(), Some("accumulate 7 `matmul` in layer 2"));
        }
    }
}

#[test]
fn each_class_is_tried() {
    let tried: BTreeSet<FaultClass> = kinds().iter().map(FaultKind::class).collect();
    assert_eq!(tried, BTreeSet::from(FaultClass::ALL));
}

#[test]
fn a_line_with_the_fields_of_the_page_alone_is_understood() {
    for schema in EVENTS {
        let mut fields = json!({"event": schema.event}).as_object().unwrap().clone();
        for field in schema.fields.iter().filter(|field| field.always) {
            let value = match field.kind {
                "number" | "number or null" => json!(1),
                "text" | "text or object" if field.name == "class" => json!("hang"),
                "text" | "text or object" => json!("x"),
                "true or false" => json!(true),
                "list of numbers" => json!([1]),
                "list of texts" => json!(["x"]),
                "object" => json!({}),
                "object or null" => Value::Null,
                other => panic!("{}: a kind of field that is new here: {other}", field.name),
            };
            fields.insert(field.name.to_owned(), value);
        }
        understood(fields);
    }
}

#[test]
fn the_page_has_every_event_and_field() {
    let page = page();
    for schema in EVENTS {
        let section = page.split(&format!("\n## {}\n", schema.event)).nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for field in schema.fields {
            assert!(section.contains(&format!("| `{}`", field.name)), "{} {}", schema.event, field.name);
        }
    }
}

#[test]
fn the_page_in_docs_is_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/journal.md");
    assert_eq!(std::fs::read_to_string(file).unwrap(), page(), "run `cargo xtask docs`");
}
