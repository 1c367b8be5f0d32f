//! What is guessed of devices that are wrong in one known way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use toprope_conformance::generate::{cases, exemplars::exemplars};
use toprope_conformance::mutant::{Mutant, MutantDevice};
use toprope_conformance::values::{Regime, draw};
use toprope_diagnose::search::{Failing, search};
use toprope_diagnose::{Effort, Guess, Kind, Probe, guess};
use toprope_program::Range;

fn guessed(mutant: Mutant) -> Option<Guess> {
    let mut subject = MutantDevice::new(Box::new(support::reference()), mutant);
    let mut oracle = support::oracle();
    let (failing, _) = search(&mut subject, &mut oracle, mutant.operator(), 60, 1).ok()?;
    let Failing { probe, observed, .. } = failing?;
    guess(&mut subject, &mut oracle, &probe, observed.as_ref(), Effort::default()).ok()
}

/// The kinds that name a mutant rightly; none where no case of one operator shows it.
fn right(mutant: Mutant) -> &'static [Kind] {
    match mutant {
        Mutant::BfloatAccumulation | Mutant::HalfAccumulation => &[Kind::LowPrecisionAccumulation],
        Mutant::DroppedTailColumns | Mutant::DroppedLastTerms => &[Kind::DroppedTail],
        Mutant::BiasTwice => &[Kind::WrongOperand],
        Mutant::MaskOffByOne | Mutant::SegmentStartIgnored | Mutant::CacheLengthIgnored => &[Kind::Mask],
        // Within a softmax the scale is no factor of the result.
        Mutant::ScaleSwapped => &[Kind::WrongAttribute],
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
        Mutant::DigestOfOldState => &[Kind::StaleBuffer],
        Mutant::WeightsWithBias => &[Kind::WrongOperand, Kind::Unknown],
        // No experiment is made for this: `unknown` is the honest answer.
        Mutant::TargetTermMissing => &[Kind::Unknown],
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
