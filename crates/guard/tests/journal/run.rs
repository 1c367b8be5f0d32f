//! A whole run's folder, read back: faults, timeline, accounts, state.

use crate::support::Lines;
use serde_json::json;
use toprope_guard::journal::{Accounts, DeviceDuty, GuardSummary, RunState};
use toprope_program::FaultClass;

/// Ten steps of a second on `cpu`, a death in step 4 that costs 3 s, failover to `reference` for two steps of 2 s, back,
/// a supervisor's death with a gap of 5 s that takes two steps back, and the end.
fn story() -> Lines {
    let mut lines = Lines::default();
    lines.begin(1, 0);
    lines.event(
        1,
        json!({"event": "worker_active", "rank": 0, "generation": 1, "device": 0, "standby": false}),
    );
    let mut number = 0;
    let mut step = |lines: &mut Lines, attempt, step, seconds: f64| {
        number += 1;
        lines.wait((seconds * 1e3) as u64);
        lines.commit(attempt, step, number);
        lines.step(attempt, step, seconds);
    };
    for done in 0..4 {
        step(&mut lines, 1, done, 1.0);
    }
    lines.event(
        1,
        json!({"event": "fault", "class": "lost", "reason": "ended by signal 9", "device": 0, "rank": 0, "step": 4,
               "place": null, "action": "retry", "injected": true}),
    );
    lines.event(1, json!({"event": "retried", "step": 4, "number": 5}));
    lines.event(1, json!({"event": "quarantined", "device": 0, "reason": "again"}));
    lines.event(1, json!({"event": "failed_over", "rank": 0, "from": 0, "to": 1}));
    lines.event(
        1,
        json!({"event": "worker_active", "rank": 0, "generation": 2, "device": 1, "standby": true}),
    );
    lines.wait(3_000);
    // The step that the fault fell into: its time is what it took beside the recovery.
    step(&mut lines, 1, 4, 1.0);
    lines.event(1, json!({"event": "recovered", "step": 4, "seconds": 3.0, "steps_redone": 1}));
    step(&mut lines, 1, 5, 2.0);
    lines.event(1, json!({"event": "checkpoint", "step": 6, "states": [1]}));
    step(&mut lines, 1, 6, 2.0);
    lines.event(1, json!({"event": "retested", "device": 0, "passed": true, "detail": "conformance"}));
    lines.event(1, json!({"event": "failed_back", "rank": 0, "from": 1, "to": 0}));
    step(&mut lines, 1, 7, 1.0);
    lines.wait(5_000);
    lines.begin(2, 6);
    lines.event(
        2,
        json!({"event": "worker_active", "rank": 0, "generation": 1, "device": 0, "standby": false}),
    );
    for done in 6..10 {
        step(&mut lines, 2, done, 1.0);
    }
    lines.event(2, json!({"event": "stopped", "reason": "done", "step": 10}));
    lines.wait(60_000);
    lines.event(2, json!({"event": "end", "summary": {"steps": 10, "interrupted": false}}));
    lines
}

#[test]
fn the_parts_of_the_wall_time_are_told_apart() {
    let run = story().read();
    assert!(run.ledger.prove().holds());
    let accounts = Accounts::of(&run);
    assert_eq!(accounts.clean_step_seconds, Some(1.0));
    // 4 + 3 + 1 + 2 + 2 + 1, then 5 down, then 4; the evaluation after the end is not training.
    assert!((accounts.wall_seconds - 22.0).abs() < 1e-9, "{accounts:?}");
    assert_eq!(accounts.productive_seconds, 10.0);
    assert_eq!(accounts.slower_seconds, 1.0);
    assert_eq!(accounts.recovery_seconds, 3.0);
    assert_eq!(accounts.redone_seconds, 3.0);
    assert!((accounts.down_seconds - 5.0).abs() < 1e-9);
    assert!(accounts.other_seconds.abs() < 1e-9, "{accounts:?}");
    assert_eq!(accounts.goodput, Some(10.0 / 22.0));
    let sum: f64 = accounts.parts().iter().map(|(_, seconds)| seconds).sum();
    assert!((sum - accounts.wall_seconds).abs() < 1e-9);
}

#[test]
fn the_summary_counts_what_the_journal_says() {
    let summary = GuardSummary::of(&story().read());
    assert_eq!((summary.batches_lost, summary.batches_doubled), (Some(0), Some(0)));
    assert_eq!(
        (summary.faults["lost"], summary.faults["hang"], summary.faults.len()),
        (1, 0, FaultClass::ALL.len())
    );
    assert_eq!(summary.faults_injected, 1);
    // One execution given up, two commits taken back.
    assert_eq!(summary.steps_redone, 3);
    assert!((summary.seconds_lost - 11.0).abs() < 1e-9, "{summary:?}");
    let devices: Vec<(&str, u64, u64)> =
        summary.devices.iter().map(|device| (device.name.as_str(), device.steps, device.faults)).collect();
    assert_eq!(devices, [("cpu", 8, 1), ("reference", 2, 0)]);
}

#[test]
fn a_fault_bears_what_its_recovery_cost() {
    let run = story().read();
    let [fault] = &run.faults[..] else { panic!("{:?}", run.faults) };
    assert_eq!((fault.cost_seconds, fault.steps_redone, fault.injected), (Some(3.0), Some(1), true));
    assert_eq!(fault.device, "cpu");
}

#[test]
fn one_recovery_ends_all_faults_before_it_and_costs_once() {
    let mut lines = Lines::default();
    lines.begin(1, 0);
    let fault = |class: &str, step: u64| {
        json!({"event": "fault", "class": class, "reason": "x", "waited_ms": 1000, "device": 0, "rank": 0, "step": step,
               "place": null, "action": "restart"})
    };
    lines.event(1, fault("hang", 0));
    lines.event(1, fault("lost", 0));
    lines.event(1, json!({"event": "recovered", "step": 1, "seconds": 2.5, "steps_redone": 2}));
    lines.event(1, fault("lost", 1));
    // The step that the hang fell into took long before it was noticed.
    lines.wait(10_000);
    lines.commit(1, 0, 3);
    lines.step(1, 0, 5.0);
    for step in 1..4 {
        lines.commit(1, step, step + 3);
        lines.step(1, step, 1.0);
    }
    let run = lines.read();
    let costs: Vec<Option<f64>> = run.faults.iter().map(|fault| fault.cost_seconds).collect();
    assert_eq!(costs, [Some(2.5), Some(0.0), None]);
    assert_eq!(run.recovery_seconds, 2.5);
    assert_eq!(Accounts::of(&run).recovery_seconds, 4.0);
}

#[test]
fn the_timeline_says_who_served_when() {
    let run = story().read();
    let began = run.attempts[0].began.unwrap();
    let told: Vec<(&str, DeviceDuty, f64, f64)> = run
        .timeline
        .iter()
        .map(|segment| {
            let since = |time: std::time::Duration| time.saturating_sub(began).as_secs_f64();
            (segment.device.as_str(), segment.duty, since(segment.from), since(segment.to.unwrap()))
        })
        .collect();
    assert_eq!(
        told,
        [
            ("cpu", DeviceDuty::Serving, 0.0, 4.0),
            ("cpu", DeviceDuty::Quarantined, 4.0, 12.0),
            ("reference", DeviceDuty::Serving, 4.0, 12.0),
            ("cpu", DeviceDuty::Serving, 12.0, 13.0),
            ("cpu", DeviceDuty::Serving, 18.0, 22.0),
        ]
    );
}

#[test]
fn a_run_is_running_done_stopped_or_dead() {
    let mut lines = story();
    assert_eq!(lines.read().state, RunState::Done);
    lines.journal.pop();
    lines.journal.pop();
    // The process of the last attempt does not live in this world, and no lock names it.
    assert_eq!(lines.read().state, RunState::Died);
    lines.event(2, json!({"event": "stopped", "reason": "no_device", "step": 10}));
    assert_eq!(lines.read().state, RunState::Stopped { reason: "no_device".to_owned() });
    lines.journal.pop();
    lines.event(2, json!({"event": "end", "summary": {"steps": 10, "interrupted": true}}));
    assert_eq!(lines.read().state, RunState::Stopped { reason: "requested".to_owned() });
}

#[test]
fn a_run_without_a_guard_has_no_ledger_but_steps() {
    let mut lines = Lines::default();
    lines.begin(1, 0);
    for step in 0..5 {
        lines.wait(500);
        lines.step(1, step, 0.5);
    }
    let run = lines.read();
    assert!(!run.ledger.is_kept());
    assert_eq!(run.committed_steps(), 5);
    let summary = GuardSummary::of(&run);
    assert_eq!((summary.batches_lost, summary.batches_doubled), (None, None));
    assert_eq!(summary.goodput, Some(1.0));
}
