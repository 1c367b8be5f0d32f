//! The state machine, one way after the other.

use proptest::prelude::*;
use std::time::Duration;
use toprope_guard::decide::{
    Accumulated, Action, Alarm, Attempt, DeviceIndex, Digest, Duty, Entry, Event, FaultClass, FaultKind,
    Finding, Generation, Guard, Phase, Rank, Setup, Source, StateHome, StopReason, Suspect, Updated, Worker,
};
use toprope_guard::policy::{BadData, Policy, WrongOperator};
use toprope_program::{Place, Range};

fn setup(ranks: u16, devices: u16, home: StateHome) -> Setup {
    Setup {
        ranks,
        devices: (0..devices).map(|index| format!("device:{index}")).collect(),
        home,
        steps: 100,
        checkpoint_every: 0,
        step_estimate: Duration::from_millis(100),
        launch_limit: Duration::from_secs(10),
    }
}

/// Plays the world's part: answers everything at once and well, but for what a test does itself.
struct Play {
    guard: Guard,
    now: Duration,
    entries: Vec<Entry>,
    /// Answers to the last actions, not yet given.
    answers: Vec<Event>,
    stopped: Option<StopReason>,
    actions: Vec<Action>,
}

fn state(step: u64, rank: Rank) -> Digest {
    Digest(1000 * step + u64::from(rank.0))
}

fn result(loss: f64, alarms: Vec<Alarm>) -> Accumulated {
    Accumulated { loss, gradients: None, alarms }
}

fn alarm(suspect: Suspect) -> Alarm {
    let kind = FaultKind::Mismatch { operator: "linear".into(), error: 1.0, tolerance: 0.1 };
    Alarm { kind, place: None, suspect }
}

fn lost() -> FaultKind {
    FaultKind::Lost { reason: "signal 9".into(), for_good: false }
}

impl Play {
    fn new(setup: Setup, policy: Policy) -> Play {
        let ranks = setup.ranks;
        let guard = Guard::new(setup, policy);
        let now = Duration::ZERO;
        let mut play =
            Play { guard, now, entries: Vec::new(), answers: Vec::new(), stopped: None, actions: Vec::new() };
        play.tell(Event::Begin { step: 0, states: (0..ranks).map(|rank| state(0, Rank(rank))).collect() });
        play
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.now += Duration::from_millis(50);
        let actions = self.guard.handle(self.now, event);
        for action in &actions {
            let committed = self.guard.committed();
            let answer = match action.clone() {
                Action::Launch { worker, .. } => Event::Ready { worker },
                Action::Restore { worker, step, .. } => {
                    Event::Restored { worker, step, state: state(step, worker.rank) }
                }
                Action::Accumulate { worker, attempt, .. } => {
                    Event::Accumulated { worker, attempt, result: result(2.0, Vec::new()) }
                }
                Action::Update { worker, attempt } => {
                    let state = state(attempt.step + 1, worker.rank);
                    let result = Updated { gradient_norm: 1.0, state, alarms: Vec::new() };
                    Event::Updated { worker, attempt, result }
                }
                Action::Snapshot { worker } => {
                    let state = state(committed, worker.rank);
                    Event::SnapshotTaken { worker, step: committed, state, seconds: 0.01 }
                }
                Action::Checkpoint { step, .. } => Event::CheckpointWritten { step },
                Action::Record(entry) => {
                    self.entries.push(entry);
                    continue;
                }
                Action::Stop(reason) => {
                    self.stopped = Some(reason);
                    continue;
                }
                _ => continue,
            };
            self.answers.push(answer);
        }
        self.actions.extend(actions.clone());
        actions
    }

    /// Gives answers until one that is to be held back; that one is returned.
    fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        for _ in 0..10_000 {
            assert!(!self.answers.is_empty(), "nothing is awaited: {:?}", self.guard.phase());
            let event = self.answers.remove(0);
            if wanted(&event) {
                return event;
            }
            self.tell(event);
        }
        panic!("it never comes");
    }

    fn until_step(&mut self, step: u64) -> (Worker, Attempt) {
        let held =
            self.until(|event| matches!(event, Event::Accumulated { attempt, .. } if attempt.step == step));
        match held {
            Event::Accumulated { worker, attempt, .. } => (worker, attempt),
            other => panic!("{other:?}"),
        }
    }

    fn run_out(&mut self) -> StopReason {
        for _ in 0..20_000 {
            if let Some(reason) = &self.stopped {
                return reason.clone();
            }
            if self.answers.is_empty() {
                self.now = self.now.max(self.guard.deadline().expect("something is awaited"));
                self.tell(Event::Tick { progress: Vec::new() });
            } else {
                let event = self.answers.remove(0);
                self.tell(event);
            }
        }
        panic!("no end: {:?} at step {}", self.guard.phase(), self.guard.committed());
    }

    /// The journal's lines of a kind.
    fn found<T>(&self, pick: impl Fn(&Entry) -> Option<T>) -> Vec<T> {
        self.entries.iter().filter_map(pick).collect()
    }

    fn verdicts(&self) -> Vec<String> {
        self.found(|entry| match entry {
            Entry::Judged { verdict, .. } => Some(verdict.clone()),
            _ => None,
        })
    }
}

#[test]
fn a_calm_run_commits_every_step_once() {
    for home in [StateHome::SharedDouble, StateHome::SharedInPlace, StateHome::Device] {
        let mut play = Play::new(setup(3, 1, home), Policy::default());
        assert_eq!(play.run_out(), StopReason::Done);
        let steps = play.found(|entry| match entry {
            Entry::Committed { attempt, .. } => Some(attempt.step),
            _ => None,
        });
        assert_eq!(steps, (0..100).collect::<Vec<_>>());
        assert_eq!(play.guard.durable(), Some(100));
        assert!(play.guard.counters().faults.is_empty());
        assert_eq!(play.guard.phase(), Phase::Stopped);
        assert!(play.tell(Event::StopRequested).is_empty(), "after the end nothing is done");
    }
}

#[test]
fn a_standby_takes_over_with_one_message() {
    let mut play = Play::new(setup(1, 1, StateHome::SharedDouble), Policy::default());
    let (worker, _) = play.until_step(9);
    let actions = play.tell(Event::Failed { worker, kind: lost(), place: None });
    assert!(actions.contains(&Action::Kill { worker }));
    let restored = actions.iter().find_map(|action| match action {
        Action::Restore { worker, source: Source::Committed, step: 9 } => Some(*worker),
        _ => None,
    });
    assert!(restored.is_some_and(|standby| standby != worker), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Launch { .. })), "not before it serves");
    play.until_step(10);
    assert_eq!(play.guard.committed(), 10);
    assert_eq!(play.guard.counters().promotions, 1);
    assert!(play.guard.counters().seconds_lost > 0.0);
    assert_eq!(play.run_out(), StopReason::Done);
}

#[test]
fn a_death_under_an_update_in_place_goes_back_to_the_file() {
    let mut setup = setup(2, 1, StateHome::SharedInPlace);
    setup.checkpoint_every = 4;
    let mut play = Play::new(setup, Policy::default());
    play.until(|event| matches!(event, Event::Updated { attempt, .. } if attempt.step == 9));
    let worker = Worker { rank: Rank(1), generation: Generation(2) };
    let actions = play.tell(Event::Failed { worker, kind: lost(), place: None });
    let sources: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Restore { source, step, .. } => Some((*source, *step)),
            _ => None,
        })
        .collect();
    assert_eq!(sources, [(Source::Checkpoint, 9), (Source::Checkpoint, 9)], "all ranks go back");
    // The newest file is of 8 steps.
    play.answers.clear();
    for action in actions {
        if let Action::Restore { worker, .. } = action {
            let more = play.tell(Event::Restored { worker, step: 8, state: state(8, worker.rank) });
            for action in more {
                if let Action::Restore { worker, .. } = action {
                    play.tell(Event::Restored { worker, step: 8, state: state(8, worker.rank) });
                }
            }
        }
    }
    let back = play.found(|entry| match entry {
        Entry::RolledBack { from, to, source } => Some((*from, *to, *source)),
        _ => None,
    });
    assert_eq!(back, [(9, 8, Source::Checkpoint)]);
    assert_eq!(play.guard.committed(), 8);
}

#[test]
fn a_step_that_takes_too_long_is_a_hang() {
    let mut play = Play::new(setup(2, 1, StateHome::SharedDouble), Policy::default());
    play.until_step(9);
    let deadline = play.guard.deadline().expect("a step has a deadline");
    assert_eq!(deadline - play.now, Duration::from_secs(1), "three medians are less");
    play.now = deadline;
    let worker = Worker { rank: Rank(0), generation: Generation(1) };
    play.tell(Event::Tick { progress: vec![(worker, None)] });
    assert_eq!(play.guard.counters().faults.get(&FaultClass::Hang), Some(&2), "both are silent");
    assert_eq!(play.run_out(), StopReason::Done);
}

/// A device that is slow for a while must get through; the next step has its usual deadline again.
#[test]
fn a_deadline_that_passed_is_doubled() {
    let mut policy = Policy::default();
    policy.restart.give_up_after = 8;
    policy.restart.backoff_seconds = 0.0;
    let mut play = Play::new(setup(1, 1, StateHome::SharedDouble), policy);
    for seconds in [1, 2, 4] {
        let (worker, _) = play.until_step(9);
        let deadline = play.guard.deadline().expect("a step has a deadline");
        assert_eq!((deadline - play.now).as_secs_f64().round(), f64::from(seconds));
        play.now = deadline;
        play.tell(Event::Tick { progress: vec![(worker, None)] });
    }
    let (worker, attempt) = play.until_step(9);
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, Vec::new()) });
    play.until_step(10);
    let left = play.guard.deadline().expect("a step has a deadline") - play.now;
    assert!(left < Duration::from_secs(2), "{left:?}");
    assert_eq!(play.run_out(), StopReason::Done);
}

#[test]
fn an_alarm_that_another_device_clears_costs_nothing() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(9);
    let actions =
        play.tell(Event::Accumulated { worker, attempt, result: result(2.0, vec![alarm(Suspect::Compute)]) });
    assert!(actions.contains(&Action::Replay { worker, attempt, range: Range::Accumulate, place: None }));
    let actions = play.tell(Event::Replayed { worker, attempt, finding: Finding::Agrees });
    let device = Some(DeviceIndex(1));
    assert!(actions.contains(&Action::Confirm {
        worker,
        attempt,
        range: Range::Accumulate,
        place: None,
        device
    }));
    let actions = play.tell(Event::Confirmed { attempt, device, other_chip: true, finding: Finding::Agrees });
    assert!(actions.contains(&Action::Update { worker, attempt }), "{actions:?}");
    assert_eq!(play.verdicts(), ["false_alarm"]);
    assert_eq!(play.guard.counters().false_alarms, 1);
    assert!(play.guard.counters().faults.is_empty());
}

#[test]
fn a_transient_fault_is_retried_with_every_check() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(9);
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, vec![alarm(Suspect::Compute)]) });
    let actions = play.tell(Event::Replayed { worker, attempt, finding: Finding::Differs });
    let again = Attempt { step: 9, number: attempt.number + 1 };
    assert!(actions.contains(&Action::Accumulate { worker, attempt: again, evidence: true }), "{actions:?}");
    assert_eq!(play.verdicts(), ["transient"]);
    assert_eq!(play.guard.placement(), [DeviceIndex(0)]);
}

#[test]
fn a_persistent_fault_moves_the_run_and_a_passed_test_moves_it_back() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(9);
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, vec![alarm(Suspect::Compute)]) });
    play.tell(Event::Replayed { worker, attempt, finding: Finding::Agrees });
    let device = Some(DeviceIndex(1));
    play.tell(Event::Confirmed { attempt, device, other_chip: true, finding: Finding::Differs });
    assert_eq!(play.verdicts(), ["persistent"]);
    assert_eq!(play.guard.quarantined(), [DeviceIndex(0)]);
    assert_eq!(play.guard.placement(), [DeviceIndex(1)]);
    play.until_step(20);
    play.now = Duration::from_secs(100);
    let actions = play.tell(Event::Tick { progress: Vec::new() });
    assert!(actions.contains(&Action::Retest { device: DeviceIndex(0) }), "{actions:?}");
    play.tell(Event::Retested { device: DeviceIndex(0), passed: true, detail: "passed".into() });
    assert_eq!(play.run_out(), StopReason::Done);
    assert_eq!(play.guard.placement(), [DeviceIndex(0)]);
    assert_eq!(play.guard.counters().fail_backs, 1);
}

/// An alarm about an operator that the replay repeats and the other device does not.
fn wrong_operator(play: &mut Play, step: u64, operator: &str) -> Vec<Action> {
    let (worker, attempt) = play.until_step(step);
    let place = Place { range: Range::Accumulate, index: 3, operator: operator.into(), part: String::new() };
    let alarm = Alarm { place: Some(place), ..alarm(Suspect::Compute) };
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, vec![alarm]) });
    play.tell(Event::Replayed { worker, attempt, finding: Finding::Agrees });
    let device = Some(DeviceIndex(1));
    play.tell(Event::Confirmed { attempt, device, other_chip: true, finding: Finding::Differs })
}

#[test]
fn a_wrong_operator_alone_moves_where_the_policy_says_so_and_the_fourth_takes_the_device_with_it() {
    let policy = Policy { wrong_operator: WrongOperator::Move, ..Policy::default() };
    let mut play = Play::new(setup(1, 2, StateHome::Device), policy);
    for (step, operator) in [(9, "matmul"), (15, "rope"), (21, "rms_norm")] {
        let actions = wrong_operator(&mut play, step, operator);
        let (device, to, operator) = (DeviceIndex(0), DeviceIndex(1), operator.to_string());
        let moved = actions
            .iter()
            .position(|action| *action == Action::Move { device, operator: operator.clone(), to });
        let moved = moved.unwrap_or_else(|| panic!("{operator} stays: {actions:?}"));
        // Workers that know nothing of it are gone, and new ones come, after the device was changed.
        let behind = &actions[moved..];
        assert!(behind.iter().any(|action| matches!(action, Action::Kill { .. })), "{actions:?}");
        let launched =
            |action: &Action| matches!(action, Action::Launch { device, .. } if *device == DeviceIndex(0));
        assert!(behind.iter().any(launched), "{actions:?}");
        assert_eq!(play.guard.placement(), [DeviceIndex(0)]);
    }
    assert_eq!(play.guard.counters().operators_moved, 3);
    let actions = wrong_operator(&mut play, 27, "attention");
    assert!(!actions.iter().any(|action| matches!(action, Action::Move { .. })), "{actions:?}");
    assert_eq!(play.guard.placement(), [DeviceIndex(1)]);
    assert_eq!(play.run_out(), StopReason::Done);
}

#[test]
fn a_device_that_is_lost_for_good_is_left_at_once() {
    let mut play = Play::new(setup(1, 2, StateHome::Device), Policy::default());
    let (worker, _) = play.until_step(9);
    let kind = FaultKind::Lost { reason: "507010 LOST_HEARTBEAT".into(), for_good: true };
    play.tell(Event::Failed { worker, kind, place: None });
    assert_eq!(play.guard.placement(), [DeviceIndex(1)]);
    assert_eq!(play.guard.quarantined(), [DeviceIndex(0)]);
    assert_eq!(play.run_out(), StopReason::Done);
}

#[test]
fn one_that_stands_by_on_the_other_device_takes_over_with_one_message() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    let (worker, _) = play.until_step(9);
    let kind = FaultKind::Lost { reason: "507010 LOST_HEARTBEAT".into(), for_good: true };
    let actions = play.tell(Event::Failed { worker, kind, place: None });
    let restored = actions.iter().find_map(|action| match action {
        Action::Restore { worker, source: Source::Committed, step: 9 } => Some(*worker),
        _ => None,
    });
    let launched = play.actions.iter().find_map(|action| match action {
        Action::Launch { worker, device: DeviceIndex(1), duty: Duty::Standby } => Some(*worker),
        _ => None,
    });
    assert!(restored.is_some() && restored == launched, "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Launch { .. })), "not before it serves");
    assert_eq!(play.guard.placement(), [DeviceIndex(1)]);
    assert_eq!(play.run_out(), StopReason::Done);
    // One on each device, whatever happens.
    let active = |action: &&Action| matches!(action, Action::Launch { duty: Duty::Active, .. });
    assert_eq!(play.actions.iter().filter(active).count(), 1);
}

#[test]
fn a_fallback_that_lacks_an_operator_is_known_before_it_is_needed() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    play.until_step(3);
    let waiting = play.actions.iter().rev().find_map(|action| match action {
        Action::Launch { worker, device: DeviceIndex(1), .. } => Some(*worker),
        _ => None,
    });
    let worker = waiting.expect("one stands by on it");
    let (operator, reason) = ("rope".into(), "there is no such operator".into());
    let kind = FaultKind::Unsupported { operator, dtype: None, shape: Vec::new(), reason };
    play.tell(Event::Failed { worker, kind, place: None });
    assert_eq!(play.guard.quarantined(), [DeviceIndex(1)]);
    assert_eq!(play.guard.placement(), [DeviceIndex(0)]);
    assert_eq!(play.run_out(), StopReason::Done);
    assert_eq!(play.guard.counters().steps_committed, 100);
}

#[test]
fn a_state_that_changed_at_rest_is_not_computed_from() {
    let mut play = Play::new(setup(2, 1, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(9);
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, vec![alarm(Suspect::State)]) });
    let event = play.until(|event| matches!(event, Event::Accumulated { worker: who, .. } if *who != worker));
    let actions = play.tell(event);
    let sources: Vec<_> = actions.iter().filter(|action| matches!(action, Action::Restore { .. })).collect();
    assert_eq!(sources.len(), 2, "{actions:?}");
    let previous =
        |action: &&Action| matches!(action, Action::Restore { source: Source::Previous, step: 8, .. });
    assert!(sources.iter().all(previous), "{sources:?}");
    assert_eq!(play.run_out(), StopReason::Done);
    assert_eq!(play.guard.counters().steps_redone, 1);
}

#[test]
fn poison_is_refused_and_the_next_older_state_taken() {
    let policy = Policy { standby: false, ..Policy::default() };
    let mut play = Play::new(setup(1, 1, StateHome::SharedDouble), policy);
    let (worker, _) = play.until_step(9);
    play.now += Duration::from_secs(5);
    play.tell(Event::Failed { worker, kind: lost(), place: None });
    let mut refused = 0;
    let held = play.until(|event| matches!(event, Event::Restored { .. }));
    let Event::Restored { worker, .. } = held else { panic!("{held:?}") };
    let mut asked = Source::Committed;
    while asked == Source::Committed {
        let actions = play.tell(Event::Restored { worker, step: 9, state: Digest(7) });
        refused += 1;
        let restore = actions.iter().find_map(|action| match action {
            Action::Restore { source, .. } => Some(*source),
            _ => None,
        });
        asked = restore.expect("it asks for another one");
    }
    assert_eq!((refused, asked), (2, Source::Previous), "once more from the same, then from an older one");
}

#[test]
fn numbers_that_are_none_twice_are_asked_about_and_met_by_the_policy() {
    for (bad_data, skipped) in [(BadData::Stop, 0), (BadData::SkipBatch, 1)] {
        let policy = Policy { bad_data, ..Policy::default() };
        let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), policy);
        for _ in 0..2 {
            let (worker, attempt) = play.until_step(9);
            play.tell(Event::Accumulated { worker, attempt, result: result(f64::NAN, Vec::new()) });
        }
        let asked = play.actions.iter().rev().find_map(|action| match action {
            Action::Confirm { attempt, device, .. } => Some((*attempt, *device)),
            _ => None,
        });
        let (attempt, device) = asked.expect("another device is asked");
        play.tell(Event::Confirmed { attempt, device, other_chip: true, finding: Finding::Agrees });
        let reason = play.run_out();
        assert_eq!(play.guard.counters().batches_skipped, skipped);
        match bad_data {
            BadData::Stop => {
                assert_eq!(reason, StopReason::Policy { class: "non_finite".into() });
                assert_eq!(play.guard.durable(), Some(9));
            }
            _ => assert_eq!(reason, StopReason::Done),
        }
    }
}

#[test]
fn a_spike_of_the_gradients_is_replayed_to_the_end_of_the_update() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(40);
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, Vec::new()) });
    let updated = Updated { gradient_norm: 500.0, state: Digest(41), alarms: Vec::new() };
    let actions = play.tell(Event::Updated { worker, attempt, result: updated });
    let range = Range::Update;
    assert!(actions.contains(&Action::Replay { worker, attempt, range, place: None }), "{actions:?}");
    play.tell(Event::Replayed { worker, attempt, finding: Finding::Differs });
    assert_eq!(play.verdicts(), ["transient"]);
}

#[test]
fn a_spike_of_the_data_is_committed() {
    let mut play = Play::new(setup(1, 2, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(40);
    let actions = play.tell(Event::Accumulated { worker, attempt, result: result(50.0, Vec::new()) });
    assert!(
        actions.contains(&Action::Replay { worker, attempt, range: Range::Accumulate, place: None }),
        "{actions:?}"
    );
    play.tell(Event::Replayed { worker, attempt, finding: Finding::Agrees });
    let device = Some(DeviceIndex(1));
    play.tell(Event::Confirmed { attempt, device, other_chip: false, finding: Finding::Agrees });
    play.until_step(41);
    assert_eq!(play.verdicts(), ["data"]);
    assert_eq!(play.guard.committed(), 41);
    assert!(play.guard.counters().faults.is_empty());
}

#[test]
fn without_a_device_there_is_a_checkpoint_and_an_end() {
    let mut play = Play::new(setup(1, 1, StateHome::SharedDouble), Policy::default());
    for _ in 0..100 {
        // Every worker dies as soon as it is up.
        let (worker, _) = match play.guard.committed() {
            0..9 => play.until_step(9),
            _ => {
                let launched = play.actions.iter().rev().find_map(|action| match action {
                    Action::Launch { worker, duty: Duty::Active, .. } => Some(*worker),
                    _ => None,
                });
                (launched.expect("one was started"), Attempt { step: 9, number: 0 })
            }
        };
        play.answers.retain(|event| !matches!(event, Event::Ready { .. } | Event::Restored { .. }));
        play.tell(Event::Failed { worker, kind: lost(), place: None });
        play.answers.retain(|event| !matches!(event, Event::Ready { .. } | Event::Restored { .. }));
        let standby = play.actions.iter().rev().find_map(|action| match action {
            Action::Restore { worker, .. } => Some(*worker),
            _ => None,
        });
        if let Some(worker) = standby {
            play.tell(Event::Failed { worker, kind: lost(), place: None });
        }
        if play.guard.phase() == Phase::Stopped || !play.guard.quarantined().is_empty() {
            break;
        }
        play.now += Duration::from_secs(60);
        play.tell(Event::Tick { progress: Vec::new() });
    }
    assert_eq!(play.guard.quarantined(), [DeviceIndex(0)]);
    let written = play.until(|event| matches!(event, Event::CheckpointWritten { .. }));
    assert_eq!(written, Event::CheckpointWritten { step: 9 });
    let actions = play.tell(written);
    assert!(actions.contains(&Action::Retest { device: DeviceIndex(0) }), "a last test: {actions:?}");
    play.tell(Event::Retested { device: DeviceIndex(0), passed: false, detail: "gone".into() });
    assert_eq!(play.stopped, Some(StopReason::NoDevice));
}

#[test]
fn a_stop_ends_after_the_step_with_a_checkpoint() {
    let mut play = Play::new(setup(1, 1, StateHome::SharedDouble), Policy::default());
    let (worker, attempt) = play.until_step(9);
    play.tell(Event::StopRequested);
    assert_eq!(play.guard.phase(), Phase::Accumulating, "the step is finished first");
    play.tell(Event::Accumulated { worker, attempt, result: result(2.0, Vec::new()) });
    assert_eq!(play.run_out(), StopReason::Requested);
    assert_eq!((play.guard.committed(), play.guard.durable()), (10, Some(10)));
}

#[test]
fn snapshots_are_as_frequent_as_faults_make_them_worth() {
    let mut calm = Play::new(setup(1, 1, StateHome::Device), Policy::default());
    calm.until_step(50);
    let mut harried = Play::new(setup(1, 1, StateHome::Device), Policy::default());
    for step in [10, 12, 14, 16, 18, 20, 22, 24, 26] {
        let (worker, _) = harried.until_step(step);
        harried.now += Duration::from_secs(30);
        harried.tell(Event::Failed { worker, kind: lost(), place: None });
    }
    assert!(harried.guard.snapshot_every() * 2 < calm.guard.snapshot_every());
}

fn any_event() -> impl Strategy<Value = Event> {
    let worker = (0_u16..3, 0_u64..12)
        .prop_map(|(rank, generation)| Worker { rank: Rank(rank), generation: Generation(generation) });
    let attempt = (0_u64..5, 0_u64..12).prop_map(|(step, number)| Attempt { step, number });
    let finding = prop_oneof![Just(Finding::Agrees), Just(Finding::Differs), Just(Finding::Unknown)];
    let number = prop_oneof![Just(2.0), Just(f64::NAN), Just(1e30), Just(-1.0)];
    let suspect = prop_oneof![Just(Suspect::Compute), Just(Suspect::Carried), Just(Suspect::State)];
    let alarms = proptest::collection::vec(suspect.prop_map(alarm), 0..2);
    let step = 0_u64..6;
    let device = (0_u16..4).prop_map(DeviceIndex);
    prop_oneof![
        worker.clone().prop_map(|worker| Event::Ready { worker }),
        (worker.clone(), step.clone(), 0_u64..6000).prop_map(|(worker, step, word)| Event::Restored {
            worker,
            step,
            state: Digest(word)
        }),
        (worker.clone(), attempt.clone(), number.clone(), alarms.clone()).prop_map(
            |(worker, attempt, loss, alarms)| Event::Accumulated {
                worker,
                attempt,
                result: result(loss, alarms)
            }
        ),
        (worker.clone(), attempt.clone(), number, alarms).prop_map(
            |(worker, attempt, gradient_norm, alarms)| Event::Updated {
                worker,
                attempt,
                result: Updated { gradient_norm, state: state(attempt.step + 1, worker.rank), alarms },
            }
        ),
        worker.clone().prop_map(|worker| Event::Failed { worker, kind: lost(), place: None }),
        (worker.clone(), attempt.clone(), finding.clone())
            .prop_map(|(worker, attempt, finding)| Event::Replayed { worker, attempt, finding }),
        (attempt, proptest::option::of(device.clone()), finding).prop_map(|(attempt, device, finding)| {
            Event::Confirmed { attempt, device, other_chip: true, finding }
        }),
        (worker, step.clone()).prop_map(|(worker, step)| Event::SnapshotTaken {
            worker,
            step,
            state: state(step, worker.rank),
            seconds: f64::NAN,
        }),
        step.clone().prop_map(|step| Event::CheckpointWritten { step }),
        (step, any::<bool>()).prop_map(|(step, damaged)| Event::CheckpointFailed {
            step,
            reason: "full".into(),
            damaged
        }),
        (device, any::<bool>()).prop_map(|(device, passed)| Event::Retested {
            device,
            passed,
            detail: String::new()
        }),
        Just(Event::Tick { progress: Vec::new() }),
        Just(Event::StopRequested),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is said, in whatever order, mixed into a run that goes on: no panic, and steps are committed in order.
    #[test]
    fn nonsense_does_no_harm(
        home in 0..3,
        ranks in 1_u16..4,
        events in proptest::collection::vec((any_event(), 0_u8..6, 0_u64..20_000), 1..120),
    ) {
        let home = [StateHome::SharedDouble, StateHome::SharedInPlace, StateHome::Device][home as usize];
        let mut play = Play::new(setup(ranks, 2, home), Policy::default());
        for (event, answers, later) in events {
            play.now += Duration::from_millis(later);
            play.tell(event);
            for _ in 0..answers {
                if !play.answers.is_empty() {
                    let answer = play.answers.remove(0);
                    play.tell(answer);
                }
            }
        }
        let mut committed = 0;
        for entry in &play.entries {
            match entry {
                Entry::Committed { attempt, .. } => {
                    prop_assert_eq!(attempt.step, committed);
                    committed += 1;
                }
                Entry::RolledBack { to, .. } => committed = *to,
                _ => {}
            }
        }
        prop_assert_eq!(committed, play.guard.committed());
    }
}
