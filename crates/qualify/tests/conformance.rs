//! Healthy devices are not called wrong, and every mutant is, by its operator's name.

mod support;

use std::time::Duration;
use support::{bench, clock, cpu, mutant, reference};
use toprope_conformance::mutant::Mutant;
use toprope_cpu::Level;
use toprope_program::Device;
use toprope_qualify::Deadline;
use toprope_qualify::cases::{Findings, ROUNDS, bands, conformance};

fn findings(open: &dyn Fn() -> Result<Box<dyn Device>, String>, seed: u64, rounds: u64) -> Findings {
    let mut bench = bench(open, seed);
    let deadline = Deadline::within(&clock, Duration::from_secs(120));
    let mut findings = conformance(&mut bench, &deadline, rounds).expect("the suite is sound");
    bands(&mut bench, &mut findings, &deadline, 8).expect("the suite is sound");
    findings
}

/// Everything that speaks against a device.
fn objections(findings: &Findings) -> Vec<String> {
    let wrong = findings.results("").into_iter().filter(|result| result.passed == Some(false));
    let wrong = wrong.map(|r| format!("{} {:?} {}: {:?}", r.name, r.dtype, r.shape, r.finding));
    let unrepeated = findings.unrepeated.iter().map(|(name, finding)| format!("{name}: {finding}"));
    wrong.chain(unrepeated).chain(findings.faults.clone()).collect()
}

#[test]
fn healthy_devices_are_not_called_wrong() {
    let seeds = std::env::var("TOPROPE_QUALIFY_SEEDS").ok();
    let seeds: u64 = seeds.map_or(1, |seeds| seeds.parse().expect("a number"));
    for seed in 1..=seeds {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let open = move || Ok(cpu(Some(level)));
            let findings = findings(&open, seed, ROUNDS);
            let objections = objections(&findings);
            assert!(objections.is_empty(), "{level} seed {seed}: {objections:#?}");
            assert!(findings.unjudged().is_empty(), "{:?}", findings.unjudged());
            println!("{level} seed {seed}: {} judged, {} bands", findings.judged(), findings.bands);
        }
        let open = || Ok(reference());
        let objections = objections(&findings(&open, seed, ROUNDS));
        assert!(objections.is_empty(), "reference seed {seed}: {objections:#?}");
    }
}

/// How a mutant shows under its operator's name.
fn named(findings: &Findings, wrong: &Mutant) -> Option<String> {
    let results = findings.results("");
    let result = results.iter().find(|r| r.passed == Some(false) && r.name == wrong.operator());
    let unrepeated = || findings.unrepeated.iter().any(|(name, _)| name == wrong.operator());
    match result {
        Some(result) => Some(result.finding.clone().unwrap_or_default()),
        None => unrepeated().then(|| "does not repeat".into()),
    }
}

#[test]
fn every_mutant_is_found_by_name() {
    let mut missed = Vec::new();
    for wrong in Mutant::ALL {
        let open = move || Ok(mutant(*wrong));
        // Most show in the first rounds.
        let found =
            [ROUNDS / 4, ROUNDS].into_iter().find_map(|rounds| named(&findings(&open, 1, rounds), wrong));
        match found {
            Some(found) => println!("{:<28} {found}", wrong.name()),
            None => missed.push(wrong.name()),
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
