//! What is no journal of this run: one clear error each, and never a panic.

use crate::support::{FOLDER, Lines, read};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;
use toprope_guard::journal::{JournalError, RunRecord};
use toprope_world::Files;
use toprope_world::testing::{MemoryFiles, MemoryWorld};

#[track_caller]
fn fails(result: Result<RunRecord, JournalError>, words: &[&str]) {
    let message = result.expect_err("this is no journal").to_string();
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

#[test]
fn a_folder_without_a_journal() {
    let files = MemoryFiles::new();
    files.create_folder(Path::new(FOLDER)).unwrap();
    fails(RunRecord::read(&MemoryWorld::new(files), Path::new(FOLDER)), &["/run", "journal.jsonl", "hint:"]);
}

#[test]
fn garbage() {
    fails(read(b"\x7fELF\x02\x01\n\xff\xfe", b""), &["/run/journal.jsonl", "line 1", "hint:"]);
    fails(read(b"", b""), &["no line names the run", "hint:"]);
    fails(read(b"{\"event\":\"start\",\"step\":0}\n", b""), &["no line names the run"]);
}

#[test]
fn another_run() {
    let mut lines = Lines::default();
    lines.begin(1, 0);
    lines.event(
        2,
        json!({"event": "resumed", "run_id": "ffff\u{1b}[2J", "process": 1, "toprope_version": "0"}),
    );
    let result = read(&lines.journal_bytes(), b"");
    assert!(matches!(result, Err(JournalError::OtherRun { line: 3, .. })));
    fails(result, &["line 3", "0123456789abcdef", "ffff [2J", "hint:"]);
}

#[test]
fn a_newer_version() {
    let mut lines = Lines::default();
    let newer = json!({"event": "created", "run_id": "a", "toprope_version": "9.1.0", "journal_version": 7});
    lines.event(1, newer);
    fails(read(&lines.journal_bytes(), b""), &["version 7", "toprope 9.1.0", "versions up to 1", "hint:"]);
}

#[test]
fn a_line_of_a_known_event_that_lacks_a_field_is_named_and_the_ledger_proves_nothing() {
    let mut lines = Lines::default();
    lines.begin(1, 0);
    lines.event(1, json!({"event": "committed", "number": 1}));
    lines.event(1, json!({"event": "something new", "field": 1}));
    let run = lines.read();
    assert_eq!(run.bad_lines.len(), 1);
    assert!(run.bad_lines[0].reason.contains("`step` of `committed`"), "{}", run.bad_lines[0]);
    assert!(!run.ledger.prove().holds());
    // What a newer one writes is passed over in silence.
    assert!(run.notes.iter().any(|(_, event, text)| event == "something new" && text == "field 1"));
}

proptest! {
    #[test]
    fn bytes_changed_anywhere_are_told_or_harmless(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        count in 1..4_usize,
    ) {
        let mut lines = Lines::default();
        lines.begin(1, 0);
        for step in 0..8 {
            lines.commit(1, step, step + 1);
            lines.step(1, step, 0.5);
        }
        let mut journal = lines.journal_bytes();
        let at = at.index(journal.len());
        let end = (at + count).min(journal.len());
        journal[at..end].fill(byte);
        // Whatever comes of it, it is an answer.
        if let Ok(run) = read(&journal, &journal) {
            let proof = run.ledger.prove();
            prop_assert!(proof.committed <= 9);
        }
    }

    #[test]
    fn random_bytes_do_no_harm(journal in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&journal, &journal);
        let mut lines = Lines::default();
        lines.begin(1, 0);
        let begun = [lines.journal_bytes(), journal.clone()].concat();
        let run = read(&begun, &journal).unwrap();
        prop_assert!(!run.ledger.is_kept());
    }
}
