//! Random runs: what the ledger says is what the run did, whatever the journal was cut off at.

use crate::support::{Lines, read};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use toprope_guard::journal::{RunRecord, Violation};

/// What may happen next in a run.
#[derive(Clone, Debug)]
enum Happens {
    Commit,
    Retry,
    /// Back by so many hundredths of what is committed.
    RollBack(u64),
    /// The process dies, and another goes on from so many hundredths of what is committed.
    Resume(u64),
    Skip,
    Checkpoint,
    FailOver(u64),
    Fault,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        12 => Just(Happens::Commit),
        2 => Just(Happens::Retry),
        1 => (0..=100_u64).prop_map(Happens::RollBack),
        1 => (0..=100_u64).prop_map(Happens::Resume),
        1 => Just(Happens::Skip),
        1 => Just(Happens::Checkpoint),
        1 => (0..2_u64).prop_map(Happens::FailOver),
        1 => Just(Happens::Fault),
    ]
}

/// Who committed each step that counts: attempt, execution and device; or nobody, where it was left out.
type Truth = BTreeMap<u64, Option<(u64, u64, &'static str)>>;

/// Plays a run. After each line of the journal, what counts then.
fn play(story: &[Happens]) -> (Lines, Vec<Truth>) {
    let mut lines = Lines::default();
    let mut truth = Truth::new();
    let mut truths = Vec::new();
    let (mut attempt, mut number, mut device) = (1, 0, 0);
    lines.begin(attempt, 0);
    truths.extend([truth.clone(), truth.clone()]);
    for event in story {
        let steps = truth.len() as u64;
        match event {
            Happens::Commit => {
                number += 1;
                lines.commit(attempt, steps, number);
                truth.insert(steps, Some((attempt, number, ["cpu", "reference"][device as usize])));
            }
            Happens::Retry => {
                number += 1;
                lines.event(attempt, json!({"event": "retried", "step": steps, "number": number}));
            }
            Happens::RollBack(hundredths) => {
                let to = steps * hundredths / 100;
                let source = "checkpoint";
                lines.event(
                    attempt,
                    json!({"event": "rolled_back", "from": steps, "to": to, "source": source}),
                );
                truth.split_off(&to);
            }
            Happens::Resume(hundredths) => {
                let from = steps * hundredths / 100;
                (attempt, number, device) = (attempt + 1, 0, 0);
                // The line that names the process voids nothing yet.
                lines.begin(attempt, from);
                truths.push(truth.clone());
                truth.split_off(&from);
            }
            Happens::Skip => {
                lines.event(attempt, json!({"event": "batch_skipped", "step": steps, "reason": "asked"}));
                truth.insert(steps, None);
            }
            Happens::Checkpoint => lines.event(attempt, json!({"event": "checkpoint", "step": steps})),
            Happens::FailOver(to) => {
                device = *to;
                let active = json!({"event": "worker_active", "rank": 0, "generation": 1, "device": to});
                lines.event(attempt, active);
            }
            Happens::Fault => lines.event(
                attempt,
                json!({"event": "fault", "class": "lost", "reason": "signal 9", "device": 0, "rank": 0,
                       "step": steps, "place": null, "action": "restart"}),
            ),
        }
        truths.push(truth.clone());
    }
    assert_eq!(truths.len(), lines.journal.len());
    (lines, truths)
}

fn told(run: &RunRecord) -> Vec<(u64, u64, u64, String)> {
    let one = |commit: &toprope_guard::journal::Commit| {
        (commit.step, commit.attempt, commit.execution, commit.devices.join("+"))
    };
    run.ledger.commits().map(one).collect()
}

fn expected(truth: &Truth) -> Vec<(u64, u64, u64, String)> {
    let counted = truth.iter().filter_map(|(step, by)| Some((*step, (*by)?)));
    counted.map(|(step, (attempt, number, device))| (step, attempt, number, device.to_owned())).collect()
}

fn check(run: &RunRecord, truth: &Truth) {
    assert_eq!(told(run), expected(truth));
    let left_out: Vec<u64> = truth.iter().filter(|(_, by)| by.is_none()).map(|(step, _)| *step).collect();
    assert_eq!(run.ledger.skipped().collect::<Vec<_>>(), left_out);
    let proof = run.ledger.prove();
    assert!(proof.holds(), "{proof:?}");
    assert_eq!(proof.committed + proof.skipped, truth.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_ledger_is_what_the_run_did(story in prop::collection::vec(happens(), 0..120)) {
        let (lines, truths) = play(&story);
        check(&lines.read(), truths.last().unwrap());
    }

    #[test]
    fn a_commit_that_vanishes_or_is_copied_is_named(
        story in prop::collection::vec(happens(), 1..60),
        which in any::<prop::sample::Index>(),
    ) {
        let (lines, truths) = play(&story);
        // Only steps that count; the last one may vanish without a trace while nothing says how long the run was.
        let counted: Vec<(u64, u64)> = {
            let run = lines.read();
            run.ledger.commits().map(|commit| (commit.step, commit.line)).collect()
        };
        prop_assume!(!counted.is_empty());
        let (step, line) = counted[which.index(counted.len())];
        let last = truths.last().unwrap().len() as u64 - 1;

        let mut gone = lines.clone();
        gone.journal.remove(line as usize - 1);
        gone.event(99, json!({"event": "stopped", "reason": "done", "step": last + 1}));
        let proof = gone.read().ledger.prove();
        match proof.violation {
            Some(Violation::Lost { step: lost, count: 1 }) => prop_assert_eq!(lost, step),
            Some(Violation::Ended { said, committed, .. }) => {
                prop_assert_eq!((said, committed, step), (last + 1, last, last));
            }
            other => prop_assert!(false, "{other:?}"),
        }

        let mut twice = lines.clone();
        twice.journal.insert(line as usize, lines.journal[line as usize - 1].clone());
        let proof = twice.read().ledger.prove();
        prop_assert_eq!(proof.batches_doubled, 1);
        let named =
            matches!(&proof.violation, Some(Violation::Doubled { first, .. }) if first.step == step);
        prop_assert!(named, "{:?}", proof.violation);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_journal_cut_off_at_any_byte_reads_up_to_there(story in prop::collection::vec(happens(), 0..30)) {
        let (lines, truths) = play(&story);
        let whole = lines.journal_bytes();
        // Where the first line, which names the run, is whole.
        let first = lines.journal[0].len() + 1;
        for keep in first..=whole.len() {
            let run = read(&whole[..keep], b"").unwrap();
            let complete = whole[..keep].iter().filter(|&&byte| byte == b'\n').count();
            let torn = whole[..keep].last() != Some(&b'\n');
            assert_eq!(run.bad_lines.len(), usize::from(torn));
            check(&run, &truths[complete - 1]);
        }
    }

    #[test]
    fn a_process_that_dies_in_a_line_and_another_that_goes_on_prove_the_same(
        story in prop::collection::vec(happens(), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut lines, truths) = play(&story);
        // The last line is torn somewhere; the next process ends it and begins from what was durable.
        let last = lines.journal.pop().unwrap();
        let before = &truths[truths.len() - 2];
        let attempt = 100;
        let cut = (0..=cut.index(last.len())).rev().find(|cut| last.is_char_boundary(*cut)).unwrap();
        lines.journal.push(last[..cut].to_owned());
        let from = before.len() as u64 / 2;
        lines.begin(attempt, from);
        lines.commit(attempt, from, 1);
        let mut truth = before.clone();
        truth.split_off(&from);
        truth.insert(from, Some((attempt, 1, "cpu")));
        check(&lines.read(), &truth);
    }
}
