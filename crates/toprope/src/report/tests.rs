use super::*;
use serde_json::{Value, json};
use std::path::Path;
use toprope_program::FaultClass;
use toprope_world::Files;
use toprope_world::testing::{MemoryFiles, MemoryWorld};

const FOLDER: &str = "/run";
/// Ends elements and attributes, opens a script, refers to the network, hides, reorders and breaks lines.
const HOSTILE: &str =
    "\"'></td></style><script src=http://evil/>&amp;<img onerror=x>\u{202e}\u{0}\u{1b}[2J\nü€";

struct Journal {
    journal: String,
    metrics: String,
}

impl Journal {
    fn new(run_id: &str, devices: &[&str]) -> Journal {
        let mut journal = Journal { journal: String::new(), metrics: String::new() };
        journal.event(json!({"event": "created", "run_id": run_id, "process": 7, "toprope_version": run_id}));
        journal.event(json!({"event": "start", "step": 0, "devices": devices, "checks": run_id}));
        journal
    }

    fn event(&mut self, fields: Value) {
        self.journal.push_str(&line(fields));
    }

    fn step(&mut self, step: u64, loss: Value) {
        self.event(json!({"event": "committed", "step": step, "number": step + 1, "states": []}));
        self.metrics.push_str(&line(json!({"step": step + 1, "loss": loss, "tokens": 8, "seconds": 0.5})));
    }

    fn run(&self) -> RunRecord {
        let files = MemoryFiles::new();
        files.create_folder(Path::new(FOLDER)).unwrap();
        for (name, content) in [("journal.jsonl", &self.journal), ("metrics.jsonl", &self.metrics)] {
            files.create(&Path::new(FOLDER).join(name)).unwrap().write(content.as_bytes()).unwrap();
        }
        RunRecord::read(&MemoryWorld::new(files), Path::new(FOLDER)).unwrap()
    }
}

fn line(fields: Value) -> String {
    let mut line = json!({"attempt": 1, "time": "2026-01-01T00:00:00.000Z"});
    line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    format!("{line}\n")
}

fn fault(class: &str, text: &str) -> Value {
    json!({"event": "fault", "class": class, "reason": text, "message": text, "code": 1, "operator": text,
           "value": text, "metric": text, "device": 0, "rank": 1, "step": 3, "action": text, "injected": true,
           "place": {"range": "accumulate", "index": 1, "operator": text, "part": text}})
}

/// Every element is closed by its own name, and attributes are quoted: no text has become markup.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 1] = ["meta"];
    let mut open: Vec<&str> = Vec::new();
    let body = page.strip_prefix("<!doctype html>").unwrap();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').unwrap();
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "<{tag}>");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "at {}", &rest[start.saturating_sub(80)..end]);
        } else if !tag.ends_with('/') {
            let name = tag.split(' ').next().unwrap();
            if !VOID.contains(&name) {
                open.push(name);
            }
        }
        rest = &rest[end + 1..];
        if open.last() == Some(&"style") {
            rest = &rest[rest.find("</style>").unwrap()..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn assert_alone(page: &str) {
    let without_text = page.replace("http://evil", "");
    for word in ["http", "<script", "<img", "<link", "<iframe", "@import", "url(", "src="] {
        let found = without_text.matches(word).count();
        // The policy's own meta element has `http-equiv`.
        let own = usize::from(word == "http");
        let escaped = page.matches("src=http://evil").count();
        let own = if word == "src=" { escaped } else { own };
        assert_eq!(found, own, "{word}");
    }
}

#[test]
fn a_run_with_a_fault_of_each_class_has_each_on_the_page() {
    let mut journal = Journal::new("0123456789abcdef", &["cpu", "reference"]);
    for step in 0..20 {
        journal.step(step, json!(5.0 - step as f64 * 0.1));
    }
    for class in FaultClass::ALL {
        journal.event(fault(class.name(), "words"));
    }
    journal.event(json!({"event": "recovered", "step": 3, "seconds": 1.25, "steps_redone": 1}));
    journal.event(json!({"event": "stopped", "reason": "done", "step": 20}));
    let page = report(&journal.run());
    assert_well_formed(&page);
    assert_alone(&page);
    for class in FaultClass::ALL {
        assert!(page.contains(&format!("\">{}</span>", class.name().replace('_', " "))), "{class:?}");
    }
    for words in [
        "Run 0123456789abcdef",
        "ledger proven: 20 batches committed, 0 lost, 0 doubled",
        "1.25 s lost, 1 step redone",
        "class=\"curve\" d=\"M",
        "<b>3.1000</b>",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(words), "no `{words}`");
    }
}

#[test]
fn hostile_texts_stay_text() {
    let mut journal = Journal::new(HOSTILE, &[HOSTILE, "cpu"]);
    for step in 0..5 {
        journal.step(step, json!(1.0));
    }
    for class in FaultClass::ALL {
        journal.event(fault(class.name(), HOSTILE));
    }
    journal.event(json!({"event": "quarantined", "device": 0, "reason": HOSTILE}));
    journal.event(json!({"event": HOSTILE, "text": HOSTILE}));
    journal.event(json!({"event": "fault", "class": HOSTILE}));
    journal.event(json!({"event": "stopped", "reason": HOSTILE, "step": 5}));
    journal.journal.push_str("{\"torn\": \"</td><script>");
    let page = report(&journal.run());
    assert_well_formed(&page);
    assert_alone(&page);
    assert!(page.contains("&lt;script src=http://evil/&gt;"));
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert_eq!(page.chars().find(|&c| hidden(c)), None);
}

#[test]
fn runs_without_anything_and_with_absurd_numbers_have_a_page() {
    let empty = Journal::new("r", &[]);
    let page = report(&empty.run());
    assert_well_formed(&page);
    assert!(page.contains("no ledger"));

    let mut absurd = Journal::new("r", &["cpu"]);
    for (step, loss) in
        [(0, Value::Null), (1, json!(1e300)), (2, json!(-1e300)), (9_007_199_254_740_993, json!(0.0))]
    {
        absurd.step(step, loss);
    }
    absurd.event(
        json!({"event": "fault", "class": "slow", "factor": 1e308, "device": 65_535, "step": u64::MAX}),
    );
    absurd.event(json!({"event": "recovered", "step": u64::MAX, "seconds": 1e300, "steps_redone": u64::MAX}));
    absurd.event(
        json!({"event": "snapshot_interval", "steps": 0, "snapshot_seconds": 0.0, "step_seconds": 0.0,
                        "fault_seconds": 1e300}),
    );
    let page = report(&absurd.run());
    assert_well_formed(&page);
    assert!(page.contains("LEDGER BROKEN"));
    for word in ["NaN", "inf%", "inf\""] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn a_long_run_has_a_page_that_a_browser_can_hold() {
    let mut journal = Journal::new("r", &["cpu"]);
    for step in 0..20_000 {
        journal.step(step, json!(1.0));
    }
    for step in 0..5_000 {
        let mut fault = fault("hang", "x");
        fault["step"] = json!(step);
        journal.event(fault);
    }
    let page = report(&journal.run());
    assert!(page.len() < 2 << 20, "{} bytes", page.len());
    assert!(page.contains("The last 500 of 5000"));
}
