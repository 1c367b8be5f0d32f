//! One bad die of eight: eight processes of `pytorch:cpu`, one with a defect, vote by bits as `qualify` lets them. The bad one
//! is named and no good one; with no defect nobody is.

mod support;

use std::time::{Duration, Instant};
use toprope_defects::{Defect, Switch, find, known};
use toprope_qualify::Deadline;
use toprope_qualify::dies::{Die, Vote, vote};

const DIES: usize = 8;
const BAD: usize = 5;

/// As many rounds as the verb gives them.
const ROUNDS: u64 = 8;

/// Of each sort one that shows in so many rounds. What only large or special shapes show (`mask_corner`) takes more.
const DEFECTS: [&str; 8] = [
    "bf16_accumulation",
    "dropped_tail_columns",
    "mask_off_by_one",
    "doubled_weight_gradient",
    "pairs_swapped",
    "ties_to_higher",
    "order_of_sum_changes",
    "truncating_cast",
];

fn dies() -> Option<(Vec<Die>, Switch)> {
    let (bad, switch) = support::bench(known())?.split();
    let mut dies = Vec::new();
    for number in 0..DIES - 1 {
        dies.push(Die { name: format!("good {number}"), device: support::healthy()? });
    }
    dies.insert(BAD, Die { name: "bad".into(), device: Box::new(bad) });
    Some((dies, switch))
}

fn voted(dies: &mut [Die], switch: &Switch, defect: Option<&Defect>) -> Vote {
    switch.put(defect);
    let started = Instant::now();
    let clock = || started.elapsed();
    let deadline = Deadline::within(&clock, Duration::from_secs(600));
    let found = vote(dies, &mut support::oracle(), 3, ROUNDS, &deadline).expect("they vote");
    let name = defect.map_or("no defect", |defect| defect.name);
    println!("{name}: {} ({:.1} s)", found.told(), started.elapsed().as_secs_f64());
    found
}

#[test]
fn one_bad_die_of_eight_is_named_and_no_good_one() {
    let Some((mut dies, switch)) = dies() else { return };
    let none = voted(&mut dies, &switch, None);
    assert!(none.bad().is_empty() && none.undecided == 0 && none.programs > 300, "{none:?}");
    for name in DEFECTS {
        let defect = find(name).expect("a known defect");
        let found = voted(&mut dies, &switch, Some(&defect));
        let bad: Vec<_> = found.bad().iter().map(|die| die.name.as_str()).collect();
        assert_eq!(bad, ["bad"], "{name}: {}", found.told());
        assert_eq!(found.undecided, 0, "{name}");
        let operators = &found.dies[BAD].operators;
        assert!(operators.iter().any(|operator| operator == defect.operator), "{name}: {operators:?}");
    }
    println!("{} defects: the bad die of {DIES} named each time, a good one never", DEFECTS.len());
}
