//! What is guessed of devices that are wrong in one known way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use toprope_conformance::generate::{cases, exemplars::exemplars};
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_conformance::values::{Regime, draw};
use toprope_conformance::{Oracle, Verdict};
use toprope_diagnose::{Effort, Guess, Kind, Outcome, Probe, guess};
use toprope_program::{Device, Range, Tensor};

/// The first case of an operator that a device gets wrong, and what it gave.
fn failing(subject: &mut dyn Device, oracle: &mut Oracle, operator: &str) -> Option<(Probe, Outcome)> {
    let exemplar = exemplars().into_iter().find(|exemplar| exemplar.name() == operator)?;
    for index in 0..60 {
        let case = cases::case(&exemplar, 1, index).unwrap();
        let program = case.program.program();
        for (turn, regime) in [Regime::Normal, Regime::ALL[1 + index as usize % 4]].into_iter().enumerate() {
            let mut held = draw(program, &case.symbols, case.seed + turn as u64, regime);
            for (at, instruction) in program.accumulate.iter().enumerate() {
                let probe =
                    Probe::at(program, Range::Accumulate, at, &case.symbols, &held, turn == 0).unwrap();
                let exact = probe.exact(oracle).unwrap();
                if instruction.operator.name() == operator {
                    let opened = probe.open(subject).ok()?;
                    // Something else ran before.
                    let other = probe.redrawn(5, Regime::Normal);
                    let runs: Vec<_> =
                        [&other, &probe].map(|fed| opened.run(subject, fed)).into_iter().collect();
                    opened.close(subject).ok()?;
                    let outcome = runs.into_iter().next_back()?.ok()?;
                    if matches!(probe.judge(&exact, &outcome).verdict, Verdict::Differ(_)) {
                        return Some((probe, outcome));
                    }
                }
                for (id, want) in instruction.outputs.iter().zip(exact.want) {
                    held[id.0 as usize] = Some(Tensor::rounded(want.dtype, &want.sizes, want.data));
                }
            }
        }
    }
    None
}

fn guessed(mutant: Mutant) -> Option<Guess> {
    let mut subject = MutantDevice::new(Box::new(support::reference()), mutant);
    let mut oracle = support::oracle();
    let (probe, outcome) = failing(&mut subject, &mut oracle, mutant.operator())?;
    Some(guess(&mut subject, &mut oracle, &probe, Some(&outcome), Effort::default()).unwrap())
}

/// The kinds that name a mutant rightly; none where no case of one operator shows it.
fn right(mutant: Mutant) -> &'static [Kind] {
    match mutant {
        Mutant::BfloatAccumulation | Mutant::HalfAccumulation => &[Kind::LowPrecisionAccumulation],
        Mutant::DroppedTailColumns | Mutant::DroppedLastTerms => &[Kind::DroppedTail],
        Mutant::BiasTwice => &[Kind::WrongOperand],
        Mutant::MaskOffByOne | Mutant::SegmentStartIgnored | Mutant::CacheLengthIgnored => &[Kind::Mask],
        Mutant::ScaleSwapped => &[Kind::WrongFactor],
        Mutant::HeadsInterleaved | Mutant::RopePairsSwapped => &[Kind::Layout],
        Mutant::BlindRowsNotZeroed | Mutant::EmptyExpertNotZeroed => &[Kind::EmptyGroup],
        // The mutant takes the term off after rounding: where that shows, no other operand explains it.
        Mutant::FirstQueryMissing => &[Kind::MissingTerms, Kind::Unknown],
        // What is summed is rounded.
        Mutant::RowSumsOfRoundedProduct => &[Kind::LowPrecisionOperands],
        Mutant::StaleOutput => &[Kind::StaleBuffer],
        Mutant::SubnormalsFlushedInMultiply | Mutant::SubnormalsFlushedInAdamw => &[Kind::SubnormalsFlushed],
        Mutant::SaturatingCast => &[Kind::Saturation],
        Mutant::TruncatingCast => &[Kind::TruncatingStore],
        Mutant::AllNan => &[Kind::AllNan],
        Mutant::AllZero
        | Mutant::CheckAlwaysPasses
        | Mutant::CompareAlwaysPasses
        | Mutant::AttentionCheckAlwaysPasses
        | Mutant::LossCheckAlwaysPasses
        | Mutant::VerifyAlwaysPasses
        | Mutant::UpdateDigestConstant
        | Mutant::DigestConstant => &[Kind::AllZero],
        Mutant::SumsAlwaysOne => &[Kind::ConstantOutput],
        Mutant::StuckLane => &[Kind::StuckElements],
        Mutant::WrongEpsilon => &[Kind::Epsilon],
        Mutant::BiasCorrectionMissing => &[Kind::BiasCorrection],
        Mutant::WeightDecayCoupled => &[Kind::WeightDecay],
        Mutant::DoubledWeightGradient | Mutant::BiasUpdateSign => &[Kind::WrongFactor],
        Mutant::FirstIgnored => &[Kind::FirstMicroBatch],
        Mutant::TiesToHigherIndex | Mutant::UnstableSort => &[Kind::TieBreak],
        Mutant::GroupLimitIgnored | Mutant::StreamIgnored | Mutant::RopeSign => &[Kind::WrongAttribute],
        Mutant::ScatterOverwrites => &[Kind::Collision],
        Mutant::ReluGradientAtZero => &[Kind::EdgeValue],
        Mutant::GatherClamps | Mutant::StrayTargetCounts | Mutant::AppendWraps => &[Kind::StrayIndex],
        Mutant::NonFiniteNormPasses => &[Kind::SpecialValues],
        Mutant::WritesBehindOutput => &[Kind::WritesOutside],
        // No experiment is made for these: `unknown` is the honest answer.
        Mutant::DigestOfOldState | Mutant::WeightsWithBias | Mutant::TargetTermMissing => &[Kind::Unknown],
        // Within the tolerance, or no result at all.
        Mutant::DiffersInRange | Mutant::DiffersFromRunToRun | Mutant::RefusesInRun => &[],
    }
}

#[test]
fn every_mutant_is_guessed_or_said_to_be_unknown() {
    let mut wrong = Vec::new();
    for mutant in Mutant::ALL.iter().copied() {
        let want = right(mutant);
        let guess = guessed(mutant);
        let kind = guess.as_ref().map(|guess| guess.kind);
        let sentence = guess.as_ref().map_or("", |guess| guess.sentence.as_str());
        println!("{:<28} {:<26} {sentence}", mutant.name(), kind.map_or("-".into(), |kind| kind.name()));
        let fits = match kind {
            None => want.is_empty(),
            Some(kind) => want.contains(&kind),
        };
        if !fits {
            wrong.push(format!("{} is taken for {kind:?}: {guess:#?}", mutant.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is right is never given a kind.
#[test]
fn a_right_device_is_not_guessed_at() {
    let (mut subject, mut oracle) = (support::cpu(), support::oracle());
    for operator in exemplars() {
        let case = cases::case(&operator, 3, 1).unwrap();
        let program = case.program.program();
        let held = draw(program, &case.symbols, case.seed, Regime::Normal);
        let probe = Probe::at(program, Range::Accumulate, 0, &case.symbols, &held, true).unwrap();
        let guess = guess(&mut subject, &mut oracle, &probe, None, Effort::default()).unwrap();
        assert_eq!(guess.kind, Kind::Unknown, "{}: {guess:#?}", operator.name());
    }
}
