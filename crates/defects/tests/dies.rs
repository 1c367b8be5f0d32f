//! One bad die of eight: eight processes of `pytorch:cpu`, one with a defect, vote by bits. The bad one is named and no good
//! one, for defects of every kind; with no defect nobody is.

mod support;

use toprope_conformance::generate::{cases, exemplars::exemplars, programs};
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::vote::{Tally, vote};
use toprope_defects::{Bench, Defect, known};
use toprope_program::Device;

const DIES: usize = 8;
const BAD: usize = 5;

/// The seven good dies, and the bad one among them.
struct Dies {
    good: Vec<Box<dyn Device>>,
    bad: Bench,
}

impl Dies {
    fn open() -> Option<Dies> {
        let bad = support::bench(known())?;
        let good = (1..DIES).map(|_| support::healthy()).collect::<Option<Vec<_>>>()?;
        Some(Dies { good, bad })
    }

    /// All of them with this defect in the bad one.
    fn with(&mut self, defect: Option<&Defect>) -> Vec<&mut dyn Device> {
        let mut dies: Vec<&mut dyn Device> = self.good.iter_mut().map(|die| die.as_mut() as _).collect();
        dies.insert(BAD, self.bad.with(defect));
        dies
    }

    /// Votes over `rounds` cases of an operator, until somebody is named.
    fn over_cases(&mut self, defect: &Defect, rounds: u64) -> (Tally, u64) {
        let exemplar = exemplars().into_iter().find(|exemplar| exemplar.name() == defect.operator);
        let exemplar = exemplar.expect("an operator of the contract");
        let mut tally = Tally::default();
        for index in 0..rounds {
            let case = cases::case(&exemplar, 3, index).expect("a case");
            let regime = Regime::ALL[index as usize % Regime::ALL.len()];
            let values = |turn: u64, regime| {
                draw(case.program.program(), &case.symbols, case.seed + 2 * index + turn, regime)
            };
            // A result that is left over shows in the second run only.
            let rounds = vec![values(0, Regime::Normal), values(1, regime)];
            let mut dies = self.with(Some(defect));
            let votes = vote(&mut dies, &case.program, &case.symbols, rounds);
            tally.add(DIES, &votes.expect("every die takes the program"));
            if !tally.named().is_empty() {
                return (tally, index + 1);
            }
        }
        (tally, rounds)
    }
}

/// A defect of each kind, but of those that change no bits of one instruction alone.
fn one_of_each_kind() -> Vec<Defect> {
    let mut defects = known();
    let told = ["slow", "differs_in_range", "refusal", "writes_outside", "race"];
    defects.retain(|defect| !defect.kinds.iter().any(|kind| told.contains(kind)));
    let mut kinds = Vec::new();
    defects.retain(|defect| {
        let fresh = !kinds.contains(&defect.kinds);
        kinds.push(defect.kinds.clone());
        fresh
    });
    defects
}

#[test]
fn one_bad_die_of_eight_is_named_and_no_good_one() {
    let Some(mut dies) = Dies::open() else { return };
    // The control: random programs on eight good dies.
    let mut tally = Tally::default();
    for seed in 1..9 {
        let program = programs::program(seed).expect("a program");
        let values = draw(program.program.program(), &program.symbols, program.seed, Regime::Normal);
        let votes = vote(&mut dies.with(None), &program.program, &program.symbols, vec![values]);
        tally.add(DIES, &votes.expect("every die takes the program"));
    }
    println!("no defect: {} votes, against a majority {:?}", tally.votes, tally.named());
    assert!(tally.votes > 50 && tally.undecided == 0 && tally.named().is_empty(), "{tally:?}");
    let defects = one_of_each_kind();
    for defect in &defects {
        let ((tally, rounds), seconds) = support::timed(|| dies.over_cases(defect, 200));
        println!(
            "{:<28} die {:?} of {DIES} named in {:?} after {rounds} cases ({seconds:.1} s)",
            defect.name,
            tally.named(),
            tally.against[BAD].1
        );
        assert_eq!(tally.named(), [BAD], "{}: {tally:?}", defect.name);
        assert_eq!(tally.against[BAD].1, Some(defect.operator));
        assert_eq!(tally.undecided, 0);
    }
    println!("{} defects: the bad die of {DIES} named each time, a good one never", defects.len());
}
