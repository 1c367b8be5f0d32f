//! Seeds that every build must pass, and guards that are wrong on purpose, which every build must catch.

use std::time::Duration;
use toprope_guard::decide::{Mutant, StateHome};
use toprope_simulator::goodput::Day;
use toprope_simulator::run::run;
use toprope_simulator::schedule::Schedule;
use toprope_simulator::shrink::shrink;

/// Seeds within which each mutant is caught.
const WITHIN: u64 = 500;

#[test]
fn no_promise_breaks() {
    let mut struck = 0;
    let mut ranks = [0_u64; 5];
    for seed in 0..600 {
        let schedule = Schedule::draw(seed);
        let outcome = run(&schedule, None, None);
        assert_eq!(outcome.violation, None, "toprope-simulator --seed {seed} --trace");
        struck += outcome.struck;
        ranks[usize::from(schedule.setup.ranks)] += 1;
    }
    assert!(struck >= 4 * 600, "several faults each: {struck}");
    assert!(ranks[1..].iter().all(|count| *count > 20), "one to four ranks: {ranks:?}");
}

#[test]
fn every_way_is_taken() {
    let mut counts = [0_u64; 10];
    for seed in 0..600 {
        for counters in run(&Schedule::draw(seed), None, None).counters {
            let seen = [
                counters.false_alarms,
                counters.data_alarms,
                counters.roll_backs,
                counters.states_refused,
                counters.promotions,
                counters.restarts,
                counters.fail_overs,
                counters.fail_backs,
                counters.batches_skipped,
                counters.snapshots,
            ];
            for (sum, count) in counts.iter_mut().zip(seen) {
                *sum += count;
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 77, 1234] {
        let traced = || {
            let mut lines = Vec::new();
            run(&Schedule::draw(seed), None, Some(&mut |line| lines.push(line.to_string())));
            lines
        };
        let first = traced();
        assert!(first.len() > 100, "seed {seed}: {} lines", first.len());
        assert_eq!(first, traced(), "seed {seed}");
    }
}

#[test]
fn every_mutant_is_caught() {
    let survivors: Vec<&str> = Mutant::ALL
        .iter()
        .filter(|(mutant, _)| {
            (0..WITHIN).all(|seed| run(&Schedule::draw(seed), Some(*mutant), None).violation.is_none())
        })
        .map(|(_, name)| *name)
        .collect();
    assert_eq!(survivors, Vec::<&str>::new(), "not caught within {WITHIN} seeds");
}

#[test]
fn a_failure_shrinks_to_what_it_needs() {
    let failing = (0..WITHIN).map(Schedule::draw).find(|schedule| {
        schedule.faults.len() > 3 && run(schedule, Some(Mutant::RestoreTorn), None).violation.is_some()
    });
    let schedule = failing.expect("a seed that catches it");
    let smallest = shrink(&schedule, Some(Mutant::RestoreTorn));
    assert!(smallest.faults.len() < schedule.faults.len());
    for index in 0..smallest.faults.len() {
        let mut fewer = smallest.clone();
        fewer.faults.remove(index);
        assert_eq!(
            run(&fewer, Some(Mutant::RestoreTorn), None).violation,
            None,
            "fault {index} is not needed"
        );
    }
}

fn day(hours: f64, between_faults_seconds: f64) -> Day {
    Day {
        hours,
        between_faults_seconds,
        step_seconds: 0.4,
        takeover_seconds: 0.3,
        start_seconds: 1.0,
        checkpoint_seconds: 1.0,
        snapshot_seconds: 0.3,
        kept_seconds: 0.02,
        checkpoint_every: 500,
        retest_seconds: 10.0,
        standby: true,
        home: StateHome::SharedDouble,
        devices: 2,
        seed: 1,
    }
}

#[test]
fn a_day_at_one_fault_a_minute_is_useful() {
    let day = day(24.0, 60.0);
    let (faults, guard) = day.live().expect("a whole day");
    assert!(faults > 1200, "{faults} faults");
    let goodput = day.goodput(&guard);
    assert!((0.95..1.0).contains(&goodput), "{goodput}");
    let said = guard.goodput(Duration::from_secs(86_400)).expect("it measured steps");
    assert!((said - goodput).abs() < 0.02, "the guard says {said}, it is {goodput}");
}

#[test]
fn faults_cost_goodput() {
    let goodput = |between| {
        let day = day(2.0, between);
        day.live().map(|(_, guard)| day.goodput(&guard)).expect("two hours")
    };
    let (calm, harried) = (goodput(1e9), goodput(10.0));
    assert!(calm > 0.985, "{calm}");
    assert!(harried < calm - 0.03, "{harried} beside {calm}");
}
