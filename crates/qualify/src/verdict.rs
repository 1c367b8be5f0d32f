//! What it all comes to.

use crate::goodput::Goodput;
use crate::setting::Setting;
use serde::Serialize;
use toprope_program::DType;

/// What a device is fit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// To train and to infer.
    Train,
    /// To train with something changed.
    TrainWith,
    /// To infer only.
    Infer,
    /// For nothing.
    Unfit,
    /// Nothing speaks against it, and not enough for it.
    Inconclusive,
}

impl Verdict {
    /// All of them, the best first.
    pub const ALL: [Verdict; 5] =
        [Verdict::Train, Verdict::TrainWith, Verdict::Infer, Verdict::Unfit, Verdict::Inconclusive];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Train => "train",
            Verdict::TrainWith => "train with",
            Verdict::Infer => "infer",
            Verdict::Unfit => "unfit",
            Verdict::Inconclusive => "inconclusive",
        }
    }

    /// Whether somebody who expects `wanted` is served: by it, or by more. What is inconclusive serves only itself.
    pub fn serves(self, wanted: Verdict) -> bool {
        let rank = |verdict: Verdict| Verdict::ALL.iter().position(|v| *v == verdict);
        self == wanted
            || (self != Verdict::Inconclusive && wanted != Verdict::Inconclusive && rank(self) < rank(wanted))
    }
}

/// What must be changed so that the device is fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// Another variant of the device.
    Variant {
        /// Its name.
        device: String,
        /// The operators that are right in it.
        operators: Vec<String>,
        /// The time of a step over that of a step as it was; none where it was not measured.
        cost: Option<f64>,
    },
    /// Activations in another dtype.
    Precision {
        /// The dtype in which the operators are right.
        dtype: DType,
        /// The operators.
        operators: Vec<String>,
        /// The time of the largest product over that of the same in the dtype as it was.
        cost: Option<f64>,
    },
    /// A setting of the library.
    Setting {
        /// Which.
        setting: Setting,
    },
    /// Every result checked by the guard, and a second device in reach: faults are rare enough to be caught and repeated.
    Guarded {
        /// With 95 % confidence, the share of runs that are faulty is at most this.
        rate: f64,
    },
    /// The guard as it is by default: the device fails now and then, says so, and serves again once it is opened anew.
    Recovered {
        /// What was measured of it.
        goodput: Goodput,
    },
    /// The guard's own checks computed elsewhere: the device is wrong in them.
    Unchecked {
        /// The operators.
        operators: Vec<String>,
    },
}

/// The verdict with its reasons.
#[derive(Clone, Debug, Serialize)]
pub struct Ruling {
    /// What the device is fit for.
    pub verdict: Verdict,
    /// Why, the weightiest first.
    pub reasons: Vec<String>,
    /// What must be changed.
    pub changes: Vec<Change>,
}

/// What the verdict is made from.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Operators that are wrong, with no setting to explain it, and why: needed for inference.
    pub wrong_for_inference: Vec<(String, String)>,
    /// Needed for training only.
    pub wrong_for_training: Vec<(String, String)>,
    /// Needed by the guard's checks only.
    pub wrong_in_checks: Vec<(String, String)>,
    /// Wrong and not needed.
    pub wrong_beside: Vec<(String, String)>,
    /// Changes under which every wrong operator that is needed was right.
    pub remedies: Vec<Change>,
    /// Settings that were found.
    pub settings: Vec<Setting>,
    /// Needed operators that nothing was judged of.
    pub unjudged: Vec<String>,
    /// What says that the same program does not give the same result, or that the device was lost.
    pub unstable: Vec<String>,
    /// The share of faulty runs, at most, where some were.
    pub fault_rate: Option<f64>,
    /// Whether the device stayed gone.
    pub gone: bool,
    /// Faults that the device reported and that passed.
    pub lost: Vec<String>,
    /// Training steps through such faults.
    pub goodput: Option<Goodput>,
    /// How the training proof ended: none where there was none.
    pub training: Option<Result<(), String>>,
    /// How the inference proof ended.
    pub inference: Option<Result<(), String>>,
    /// Stages that failed and are needed in any case.
    pub failed: Vec<String>,
    /// Stages that did not run.
    pub missing: Vec<String>,
    /// How much of the user's own shapes was run, where it was not all of them.
    pub share: Option<String>,
}

/// A device that spends less of its time on steps that are committed is worth none.
const GOODPUT_MIN: f64 = 0.5;

/// A fault in more than one of so many runs is more than repeating them can mend.
const RATE_MAX: f64 = 0.02;

/// Weighs the evidence.
pub fn rule(evidence: &Evidence) -> Ruling {
    let mut ruling = weighed(evidence);
    if let Some(share) = &evidence.share {
        // What speaks for a device is told with its limits first.
        let at = match ruling.verdict {
            Verdict::Train | Verdict::TrainWith | Verdict::Infer => 0,
            Verdict::Unfit | Verdict::Inconclusive => ruling.reasons.len(),
        };
        ruling.reasons.insert(at, share.clone());
    }
    ruling
}

fn weighed(evidence: &Evidence) -> Ruling {
    let mut reasons = Vec::new();
    let told = |list: &[(String, String)]| -> Vec<String> {
        list.iter().map(|(name, finding)| format!("`{name}`: {finding}")).collect()
    };
    let ruling = |verdict, reasons, changes| Ruling { verdict, reasons, changes };
    if evidence.gone {
        reasons.push("the device was lost again and again".into());
        reasons.extend(evidence.unstable.clone());
        return ruling(Verdict::Unfit, reasons, Vec::new());
    }
    let wrong_inference = !evidence.wrong_for_inference.is_empty();
    let wrong = wrong_inference || !evidence.wrong_for_training.is_empty();
    reasons.extend(told(&evidence.wrong_for_inference));
    reasons.extend(told(&evidence.wrong_for_training));
    reasons.extend(evidence.failed.clone());
    let inferring = matches!(evidence.inference, Some(Ok(())));
    let mut changes = Vec::new();
    if wrong {
        if evidence.remedies.is_empty() {
            if !wrong_inference && inferring && evidence.failed.is_empty() {
                return ruling(Verdict::Infer, reasons, changes);
            }
            if !wrong_inference && evidence.inference.is_none() && evidence.failed.is_empty() {
                reasons.insert(0, "not fit to train; the inference proof was not run to its end".into());
                return ruling(Verdict::Inconclusive, reasons, changes);
            }
            return ruling(Verdict::Unfit, reasons, changes);
        }
        changes.extend(evidence.remedies.clone());
    } else if !evidence.failed.is_empty() {
        return ruling(Verdict::Unfit, reasons, changes);
    }
    if !evidence.unstable.is_empty() {
        reasons.extend(evidence.unstable.clone());
        match evidence.fault_rate {
            Some(rate) if rate > RATE_MAX => return ruling(Verdict::Unfit, reasons, Vec::new()),
            rate => changes.push(Change::Guarded { rate: rate.unwrap_or(RATE_MAX) }),
        }
    }
    if let Some(first) = evidence.lost.first() {
        reasons.push(format!("failed {} times and was opened again each time: {first}", evidence.lost.len()));
        match evidence.goodput {
            Some(goodput) if goodput.share >= GOODPUT_MIN => changes.push(Change::Recovered { goodput }),
            Some(goodput) => {
                reasons.push(format!(
                    "goodput: {:.0} % of its time goes into steps that are committed",
                    100.0 * goodput.share
                ));
                return ruling(Verdict::Unfit, reasons, Vec::new());
            }
            None => changes.push(Change::Guarded { rate: RATE_MAX }),
        }
    }
    for setting in &evidence.settings {
        reasons.push(setting.told());
        changes.push(Change::Setting { setting: *setting });
    }
    if !evidence.wrong_in_checks.is_empty() {
        reasons.extend(told(&evidence.wrong_in_checks));
        let operators = evidence.wrong_in_checks.iter().map(|(name, _)| name.clone()).collect();
        changes.push(Change::Unchecked { operators });
    }
    // A remedy for an operator may well be one for the proof that stumbled over it.
    let remedied = changes.iter().any(|change| match change {
        Change::Variant { .. } | Change::Precision { .. } => true,
        Change::Guarded { .. } => !evidence.unstable.is_empty(),
        Change::Setting { setting } => setting.allowance().is_some(),
        Change::Recovered { .. } | Change::Unchecked { .. } => false,
    });
    match &evidence.training {
        Some(Err(reason)) if !remedied => {
            reasons.push(format!("training proof: {reason}"));
            let verdict = if inferring { Verdict::Infer } else { Verdict::Unfit };
            return ruling(verdict, reasons, Vec::new());
        }
        Some(Err(reason)) => reasons.push(format!("training proof, as it is now: {reason}")),
        _ => {}
    }
    match &evidence.inference {
        Some(Err(reason)) if !remedied => {
            reasons.push(format!("inference proof: {reason}"));
            return ruling(Verdict::Unfit, reasons, Vec::new());
        }
        Some(Err(reason)) => reasons.push(format!("inference proof, as it is now: {reason}")),
        _ => {}
    }
    let mut gaps = evidence.missing.clone();
    gaps.extend(evidence.unjudged.iter().map(|name| format!("`{name}` was not judged")));
    if evidence.training.is_none() {
        gaps.push("the training proof was not run to its end".into());
    }
    if evidence.inference.is_none() {
        gaps.push("the inference proof was not run to its end".into());
    }
    if !gaps.is_empty() {
        gaps.extend(reasons);
        return ruling(Verdict::Inconclusive, gaps, changes);
    }
    reasons.extend(told(&evidence.wrong_beside).into_iter().map(|told| format!("not needed: {told}")));
    // The guard is there unless it is turned off: nothing has to be changed for it.
    if changes.iter().all(|change| matches!(change, Change::Recovered { .. })) {
        return ruling(Verdict::Train, reasons, changes);
    }
    ruling(Verdict::TrainWith, reasons, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Evidence {
        Evidence { training: Some(Ok(())), inference: Some(Ok(())), ..Evidence::default() }
    }

    fn wrong(name: &str) -> Vec<(String, String)> {
        vec![(name.into(), "wrong".into())]
    }

    #[test]
    fn every_verdict_is_reached_and_what_did_not_run_never_passes() {
        assert_eq!(rule(&sound()).verdict, Verdict::Train);
        let missing = Evidence { unjudged: vec!["matmul".into()], ..sound() };
        assert_eq!(rule(&missing).verdict, Verdict::Inconclusive);
        let unproven = Evidence { training: None, ..sound() };
        assert_eq!(rule(&unproven).verdict, Verdict::Inconclusive);
        let gradient =
            Evidence { wrong_for_training: wrong("adamw"), training: Some(Err("apart".into())), ..sound() };
        assert_eq!(rule(&gradient).verdict, Verdict::Infer);
        let unknown = Evidence { wrong_for_training: wrong("adamw"), inference: None, ..sound() };
        assert_eq!(rule(&unknown).verdict, Verdict::Inconclusive);
        let forward = Evidence { wrong_for_inference: wrong("matmul"), ..sound() };
        assert_eq!(rule(&forward).verdict, Verdict::Unfit);
        let variant = Change::Variant { device: "x".into(), operators: vec!["matmul".into()], cost: None };
        let remedied = Evidence { remedies: vec![variant], ..forward };
        assert_eq!(rule(&remedied).verdict, Verdict::TrainWith);
        let setting = Evidence { settings: vec![Setting::ReducedSums], ..sound() };
        assert_eq!(rule(&setting).verdict, Verdict::TrainWith);
        let rare = Evidence { unstable: vec!["once".into()], fault_rate: Some(0.001), ..sound() };
        assert_eq!(rule(&rare).verdict, Verdict::TrainWith);
        let goodput = |share| Some(Goodput { steps: 100, faults: 2, seconds: 9.0, share });
        let fails = |share| Evidence { lost: vec!["507015".into()], goodput: goodput(share), ..sound() };
        assert_eq!(rule(&fails(0.9)).verdict, Verdict::Train);
        assert!(matches!(rule(&fails(0.9)).changes[..], [Change::Recovered { .. }]));
        assert_eq!(rule(&fails(0.2)).verdict, Verdict::Unfit);
        assert_eq!(rule(&Evidence { goodput: None, ..fails(0.9) }).verdict, Verdict::TrainWith);
        let often = Evidence { unstable: vec!["often".into()], fault_rate: Some(0.4), ..sound() };
        assert_eq!(rule(&often).verdict, Verdict::Unfit);
    }

    #[test]
    fn a_share_of_the_shapes_is_told_first_and_changes_no_verdict() {
        let part = Evidence { share: Some("2 of 3 in part".into()), ..sound() };
        assert_eq!(
            (rule(&part).verdict, rule(&part).reasons),
            (Verdict::Train, vec!["2 of 3 in part".into()])
        );
        let wrong = Evidence { wrong_for_inference: wrong("matmul"), ..part };
        assert_eq!(rule(&wrong).verdict, Verdict::Unfit);
        assert_eq!(rule(&wrong).reasons.last().map(String::as_str), Some("2 of 3 in part"));
    }

    #[test]
    fn more_serves_whoever_expects_less() {
        assert!(Verdict::Train.serves(Verdict::Infer) && Verdict::TrainWith.serves(Verdict::Infer));
        assert!(!Verdict::Infer.serves(Verdict::Train) && !Verdict::Inconclusive.serves(Verdict::Infer));
        assert!(Verdict::Unfit.serves(Verdict::Unfit) && !Verdict::Train.serves(Verdict::Inconclusive));
    }
}
