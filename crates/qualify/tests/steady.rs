//! What does not show in any one result: memory under load, a neighbour on the chip, a die that is slow.

mod support;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::troubled::{Trouble, Troubled};
use support::{bench, cpu, mutant, proofs, reference};
use toprope_conformance::mutant::Mutant;
use toprope_program::{DType, Device};
use toprope_qualify::Deadline;
use toprope_qualify::dies::Die;
use toprope_qualify::reset::{same_as, same_beside};
use toprope_qualify::result::Outcome;
use toprope_qualify::shapes::{Need, distinct, for_speed};
use toprope_qualify::sisters::measure;
use toprope_qualify::soak::soak;

const MEMORY: u64 = 64 << 20;

fn forgetful(reads: u64) -> Box<dyn Device> {
    let trouble = Trouble::Forgets(AtomicU64::new(reads));
    Box::new(Troubled { trouble, first: cpu(None), second: None })
}

/// A clock that is the machine's.
fn clock_from(began: Instant) -> impl Fn() -> Duration {
    move || began.elapsed()
}

#[test]
fn a_soak_holds_memory_full_and_goes_through_every_duty_cycle() {
    let open = || Ok(cpu(None));
    let mut bench = bench(&open, 1);
    let clock = clock_from(Instant::now());
    bench.clock = &clock;
    let deadline = Deadline::within(&clock, Duration::from_secs(9));
    let soak = soak(&mut bench, &[DType::F32], 64, MEMORY, &deadline).expect("it is sound");
    assert_eq!(soak.outcome, Outcome::Passed, "{soak:?}");
    assert!(soak.held_bytes == MEMORY && soak.held_reads >= 3, "{soak:?}");
    assert!(soak.duties.iter().all(|duty| duty.runs > 0 && duty.faults == 0), "{soak:?}");
    assert_eq!(soak.duties.iter().map(|duty| duty.runs).sum::<u64>() + 1, soak.runs);
    // Bursts rest longer than they work.
    let bursts = soak.duties.iter().find(|duty| duty.rest_ms > duty.work_ms).expect("there is one");
    assert!(bursts.rests >= 2, "{bursts:?}");
}

#[test]
fn memory_that_forgets_under_load_is_told() {
    let open = || Ok(forgetful(2));
    let mut bench = bench(&open, 1);
    let clock = clock_from(Instant::now());
    bench.clock = &clock;
    let deadline = Deadline::within(&clock, Duration::from_secs(9));
    let soak = soak(&mut bench, &[DType::F32], 64, MEMORY, &deadline).expect("it is sound");
    let lost = soak.lost.expect("a block has another bit");
    assert!(lost.contains(&format!("byte {}", 1 << 20)), "{lost}");
    assert!(soak.outcome.failed() && soak.faults == 0, "{:?}", soak.outcome);
}

#[test]
fn a_chip_that_minds_a_neighbour_is_told_and_one_that_does_not_is_right() {
    let clock = clock_from(Instant::now());
    for minds in [false, true] {
        let (busy, opened) = (Arc::new(AtomicBool::new(false)), Cell::new(0));
        let open = || -> Result<Box<dyn Device>, String> {
            opened.set(opened.get() + 1);
            if opened.get() > 1 {
                busy.store(minds, Ordering::Relaxed);
                return Ok(cpu(None));
            }
            let second = Some(mutant(Mutant::AllZero));
            Ok(Box::new(Troubled { trouble: Trouble::Crowded(busy.clone()), first: reference(), second }))
        };
        let mut bench = bench(&open, 3);
        bench.clock = &clock;
        let deadline = Deadline::within(&clock, Duration::from_secs(60));
        let (outcome, beside) = same_beside(&mut bench, 12, &deadline).expect("it is sound");
        assert!(beside.neighbour > 0 && beside.compared > 0, "{beside:?} {outcome:?}");
        match outcome {
            Outcome::Failed(finding) => {
                assert!(minds && finding.contains("works for somebody else"), "{finding}");
            }
            outcome => assert!(!minds && outcome.passed(), "{outcome:?}"),
        }
    }
}

#[test]
fn a_stream_that_gives_other_bits_is_told() {
    let open = || Ok(reference());
    let mut bench = bench(&open, 3);
    let clock = clock_from(Instant::now());
    bench.clock = &clock;
    let deadline = Deadline::within(&clock, Duration::from_secs(60));
    let (outcome, compared) = same_as(&mut bench, &open, "there", 12, &deadline).expect("it is sound");
    assert!(outcome.passed() && compared > 12, "{outcome:?} {compared}");
    let other = || Ok(mutant(Mutant::AllZero));
    let (outcome, _) = same_as(&mut bench, &other, "there", 12, &deadline).expect("it is sound");
    assert!(matches!(&outcome, Outcome::Failed(finding) if finding.ends_with(" there")), "{outcome:?}");
    let none = || Err("it has no streams".to_string());
    let (outcome, _) = same_as(&mut bench, &none, "there", 12, &deadline).expect("it is sound");
    assert_eq!(outcome, Outcome::NotRun("it has no streams".into()));
}

#[test]
fn a_die_that_is_slower_than_its_sisters_is_told() {
    let case = proofs::training("tiny-dense", DType::F32, 1);
    let need = Need { training: true, inference: false };
    let shapes = distinct(&[(case.program.program(), need)]);
    let shapes: Vec<_> = for_speed(&shapes).into_iter().filter(|shape| shape.operator == "matmul").collect();
    let slow = Troubled { trouble: Trouble::Slow(4), first: cpu(None), second: None };
    let mut dies: Vec<Die> =
        (0..3).map(|index| Die { name: format!("good {index}"), device: cpu(None) }).collect();
    dies.insert(1, Die { name: "slow".into(), device: Box::new(slow) });
    let clock = clock_from(Instant::now());
    let deadline = Deadline::within(&clock, Duration::from_secs(20));
    let paces = measure(&mut dies, &shapes, 1, &clock, &deadline).expect("it is sound");
    let told = paces.iter().find(|pace| pace.name == "slow").expect("it was timed");
    assert!(told.times_sisters.is_some_and(|times| times > 2.0), "{told:?}");
    assert!(told.slow.is_some() && told.speed.f32_flops_per_second > 0.0, "{told:?}");
    for good in paces.iter().filter(|pace| pace.name != "slow") {
        // A busy machine may slow anyone, and never four times.
        assert!(good.times_sisters.is_some_and(|times| times < 2.0), "{good:?}");
    }
}
