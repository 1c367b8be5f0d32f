//! Each verdict, from a healthy device or from one that is wrong in a known way.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;
use support::{bench, cpu, mutant, proofs, reference};
use toprope_conformance::mutant::Mutant;
use toprope_program::{DType, Device};
use toprope_qualify::result::{OperatorResult, Stage};
use toprope_qualify::setting::Setting;
use toprope_qualify::verdict::Change;
use toprope_qualify::{Alternative, Qualification, Request, Tier, Verdict, qualify};

type Open<'a> = &'a dyn Fn() -> Result<Box<dyn Device>, String>;

const CHECKS: [&str; 7] =
    ["product_check", "compare", "attention_check", "loss_check", "adamw_digest", "verify", "digest"];

/// A quick qualification with hardly any soak.
fn qualified(open: Open<'_>, alternatives: Vec<(&str, Open<'_>)>) -> Qualification {
    soaked(1, open, alternatives)
}

/// A quick qualification with so many seconds of soak.
fn soaked(seconds: u64, open: Open<'_>, alternatives: Vec<(&str, Open<'_>)>) -> Qualification {
    support::start();
    let mut bench = bench(open, 1);
    let inference = proofs::inference("tiny-moe", DType::F32);
    let mut tell = |stage: &Stage| {
        println!("{:<16} {:?} {}", stage.name, stage.outcome, stage.told);
        // What is left is for remedies and the soak.
        if stage.name == "speed" {
            support::jump(Duration::from_secs(45));
        }
    };
    let mut request = Request {
        apart: None,
        on_stream: None,
        datasheet: None,
        beside_sisters: None,
        tier: Tier::Quick,
        shapes: Vec::new(),
        skipped: Vec::new(),
        training: vec![
            proofs::training("tiny-moe", DType::F32, 3),
            proofs::training("tiny-dense", DType::Bf16, 3),
        ],
        for_inference: proofs::for_inference(&inference.0),
        inference: vec![inference],
        for_checks: CHECKS.iter().map(ToString::to_string).collect::<BTreeSet<_>>(),
        alternatives: alternatives
            .into_iter()
            .map(|(name, open)| Alternative { name: name.into(), open })
            .collect(),
        exact_products: false,
        without: &|_| None,
        timed: Vec::new(),
        beside_trusted: false,
        memory_bytes_max: 64 << 20,
        soak_max: Duration::from_secs(seconds),
        tell: &mut tell,
    };
    let qualification = qualify(&mut bench, &mut request).expect("the qualification is sound");
    println!("{:?}", qualification.ruling);
    qualification
}

#[test]
fn a_healthy_device_is_fit_to_train() {
    let qualification = soaked(5, &|| Ok(cpu(None)), Vec::new());
    assert_eq!(qualification.ruling.verdict, Verdict::Train);
    assert_eq!(qualification.coverage.not_run, 0);
    assert!(qualification.soak.runs > 10 && qualification.soak.rate_per_run < 0.3);
    assert!(qualification.training.iter().all(|proof| proof.steps == 3));
    // In a minute the first case goes in lockstep, the others freely.
    assert!(qualification.training[0].agreed > 50, "{}", qualification.training[0].agreed);
    assert!(qualification.inference.iter().all(|proof| proof.tokens == 12));
}

#[test]
fn a_wrong_optimizer_leaves_inference() {
    let qualification = qualified(&|| Ok(mutant(Mutant::BiasCorrectionMissing)), Vec::new());
    assert_eq!(qualification.ruling.verdict, Verdict::Infer);
    assert!(qualification.ruling.reasons[0].contains("`adamw`"), "{:?}", qualification.ruling.reasons);
}

#[test]
fn a_wrong_norm_is_unfit_and_another_variant_that_is_right_is_found() {
    let wrong = || Ok(mutant(Mutant::WrongEpsilon));
    let alone = qualified(&wrong, Vec::new());
    assert_eq!(alone.ruling.verdict, Verdict::Unfit);
    assert!(alone.ruling.reasons[0].contains("`rms_norm`"), "{:?}", alone.ruling.reasons);
    let right: Open<'_> = &|| Ok(reference());
    let with = qualified(&wrong, vec![("wrong too", &wrong), ("right", right)]);
    assert_eq!(with.ruling.verdict, Verdict::TrainWith);
    let [Change::Variant { device, operators, cost }] = with.ruling.changes.as_slice() else {
        panic!("{:?}", with.ruling.changes)
    };
    assert_eq!((device.as_str(), operators.as_slice()), ("right", &["rms_norm".to_string()][..]));
    assert!(cost.is_some_and(|cost| cost > 0.1 && cost < 10.0), "{cost:?}");
}

#[test]
fn what_is_wrong_in_bf16_only_is_right_in_f32() {
    let qualification = qualified(&|| Ok(mutant(Mutant::TruncatingCast)), Vec::new());
    // A cast to bf16 reads f32: the dtype that it is known by is its operand's.
    assert_ne!(qualification.ruling.verdict, Verdict::Train);
}

#[test]
fn a_check_that_is_wrong_costs_the_checks_only() {
    let qualification = qualified(&|| Ok(mutant(Mutant::VerifyAlwaysPasses)), Vec::new());
    assert_eq!(qualification.ruling.verdict, Verdict::TrainWith);
    assert!(matches!(qualification.ruling.changes.as_slice(), [Change::Unchecked { .. }]));
}

#[test]
fn rounded_operands_are_a_setting() {
    let qualification = qualified(&|| Ok(support::rounding(10)), Vec::new());
    assert_eq!(qualification.settings, [Setting::OperandBits { bits: 10 }]);
    assert_eq!(qualification.ruling.verdict, Verdict::TrainWith);
    let changes = &qualification.ruling.changes;
    assert!(matches!(changes.as_slice(), [Change::Setting { .. }]), "{changes:?}");
    let wrong = qualification.operators.iter().filter(|result| result.passed == Some(false));
    assert!(wrong.clone().count() > 0);
    assert!(wrong.clone().all(|result| result.setting.is_some()), "{:#?}", wrong.collect::<Vec<_>>());
}

#[test]
fn a_setting_excuses_no_more_than_its_own_errors() {
    for mutant in [Mutant::DroppedTailColumns, Mutant::DroppedLastTerms] {
        let qualification = qualified(&|| Ok(support::rounding_of(support::mutant(mutant), 10)), Vec::new());
        assert_eq!(qualification.settings, [Setting::OperandBits { bits: 10 }], "{mutant:?}");
        let blamed =
            |r: &&OperatorResult| r.name == "matmul" && r.passed == Some(false) && r.setting.is_none();
        assert!(qualification.operators.iter().any(|r| blamed(&r)), "{mutant:?} was excused");
        let others = |r: &&OperatorResult| r.name != "matmul" && r.passed == Some(false);
        let others: Vec<_> = qualification.operators.iter().filter(others).collect();
        assert!(others.iter().all(|r| r.setting.is_some()), "{others:#?}");
    }
}

#[test]
fn sums_in_bf16_are_no_setting() {
    let qualification = qualified(&|| Ok(support::mutant(Mutant::BfloatAccumulation)), Vec::new());
    assert!(qualification.settings.is_empty(), "{:?}", qualification.settings);
    let blamed = |r: &&OperatorResult| r.name == "matmul" && r.passed == Some(false) && r.setting.is_none();
    assert!(qualification.operators.iter().any(|r| blamed(&r)));
}

#[test]
fn an_operator_that_is_refused_is_not_passed() {
    let qualification = qualified(&|| Ok(support::refusing("append")), Vec::new());
    assert_ne!(qualification.ruling.verdict, Verdict::Train);
    let told = qualification.ruling.reasons.join("\n");
    assert!(told.contains("append"), "{told}");
}
