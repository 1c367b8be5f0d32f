//! What a run before left behind, and what was never written.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use crate::probe::{Exact, Outcome, Probe};
use std::collections::BTreeSet;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;
use toprope_program::Tensor;

pub(super) fn leftover(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let probe = lab.base.probe.clone();
    let mut others = Vec::new();
    for turn in [77, 78] {
        let redrawn =
            probe.redrawn_consistently(lab.effort.seed.wrapping_add(turn), Regime::Normal, lab.oracle);
        others.extend(redrawn.ok());
    }
    let [one, two] = others.as_slice() else { return Ok(None) };
    let opened = probe.open(lab.subject).map_err(Obstacle::Subject)?;
    let mut runs = Vec::new();
    for fed in [one, &probe, two, &probe, one, &probe] {
        runs.push(opened.run(lab.subject, fed)?);
    }
    let in_place = lab.base.probe.operator().writes_in_place().is_some();
    let mut over = Vec::new();
    if !in_place {
        for before in [7.25, -3.5] {
            over.push(opened.run_over(lab.subject, &probe, Some(before))?);
        }
    }
    opened.close(lab.subject).map_err(Obstacle::Subject)?;
    let judged = probe.judge(&lab.base.exact, &runs[1]);
    let fails = matches!(judged.verdict, Verdict::Differ(_));
    // The result of the same operands follows what ran before, each time.
    if fails && !runs[1].same_bits(&runs[3]) && runs[1].same_bits(&runs[5]) {
        let sentence = "Its output is that of the run before: what it computes reaches the buffer too late, or not at all.";
        let ran = "the same operands after two different runs, in turn";
        return Ok(lab.conclude(Kind::StaleBuffer, sentence, ran, "the result follows the run before"));
    }
    if let Some(operand) = kept_operand(lab, &[one, &probe, two, &probe, one, &probe], &runs)? {
        let name = lab.base.probe.operator().definition().record().operands.get(operand);
        let name = name.map_or("operand", |slot| slot.name);
        let sentence =
            format!("It reads `{name}` of an earlier run, and not its own: what was made of it is kept.");
        let ran = "the same operands after two different runs, in turn";
        let showed = format!("all results are those with one and the same `{name}`");
        return Ok(lab.conclude(Kind::StaleBuffer, sentence, ran, showed));
    }
    // A part that changes from run to run: what is wrong there is of the run before, or no number at all.
    let again =
        [(1, 0), (3, 2), (5, 4)].map(|(at, before)| remains(&probe, &lab.base, &runs[at], &runs[before]));
    if let [Some((first, ..)), Some((second, ..)), Some((third, ..))] = &again
        && !(first == second && second == third)
    {
        let held: usize = again.iter().flatten().map(|(_, held)| held).sum();
        let (kind, what) = match held {
            0 => (Kind::NotWritten, "they hold no numbers: nothing is written there"),
            _ => (Kind::StaleBuffer, "they hold what the run before gave there"),
        };
        let sentence = format!("Elements of its output, others in each run, keep what was there: {what}.");
        let ran = "the same operands after two different runs, three times";
        return Ok(lab.conclude(
            kind,
            sentence,
            ran,
            "other elements are wrong each time, all by what was left there",
        ));
    }
    if let [first, second] = over.as_slice() {
        let unwritten = judged
            .wrong
            .iter()
            .filter(|(o, e)| {
                let (a, b) = (&first.outputs[*o], &second.outputs[*o]);
                a.dtype.is_float() && a.data[*e] == 7.25 && b.data[*e] == -3.5
            })
            .count();
        if unwritten > 0 {
            let sentence =
                format!("{unwritten} elements of its output are not written: they keep what was there.");
            let showed = format!("{unwritten} elements keep them");
            return Ok(lab.conclude(
                Kind::NotWritten,
                sentence,
                "outputs filled with two different numbers before",
                showed,
            ));
        }
    }
    lab.note(
        "a run on other numbers before, and outputs filled before",
        "nothing of either is left in the result",
    );
    Ok(None)
}

/// The operand of which all runs read one and the same, that of an earlier run; none where no run is wrong.
fn kept_operand(lab: &mut Lab<'_>, fed: &[&Probe; 6], runs: &[Outcome]) -> Result<Option<usize>, Obstacle> {
    if lab.base.probe.has_views() {
        return Ok(None);
    }
    let mut rights = Vec::new();
    for probe in &fed[..3] {
        rights.push(probe.exact(lab.oracle)?);
    }
    let differs = |probe: &Probe, exact: &Exact, outcome: &Outcome| {
        matches!(probe.judge(exact, outcome).verdict, Verdict::Differ(_))
    };
    if !fed[..3].iter().zip(&rights).zip(runs).any(|((probe, exact), run)| differs(probe, exact, run)) {
        return Ok(None);
    }
    let mut earlier: Vec<Vec<Tensor>> = vec![fed[0].operands(), fed[2].operands()];
    earlier.extend(lab.samples.iter().map(|sample| sample.probe.operands()));
    for at in 0..fed[0].operands().len() {
        for old in earlier.iter().filter_map(|operands| operands.get(at)) {
            let (mut explained, mut told) = (true, false);
            for ((probe, run), right) in fed.iter().zip(runs).zip(&rights).take(3) {
                if probe.operands().get(at).is_none_or(|own| own.sizes != old.sizes) {
                    explained = false;
                    break;
                }
                let mut other = (*probe).clone();
                other.set_operand(at, old.clone());
                let exact = other.exact(lab.oracle)?;
                if other.judge(&exact, run).verdict != Verdict::Agree {
                    explained = false;
                    break;
                }
                // With its own operand it would be another result, and is not what was given.
                let own = Outcome { outputs: right.want.clone(), stray: None };
                told |= differs(&other, &exact, &own) && differs(probe, right, run);
            }
            if explained && told {
                return Ok(Some(at));
            }
        }
    }
    Ok(None)
}

/// The wrong elements of a run, and how many of them are what the run before gave there; none where one is neither that nor
/// NaN, or where none is wrong.
fn remains(
    probe: &Probe,
    base: &Sample,
    run: &Outcome,
    before: &Outcome,
) -> Option<(BTreeSet<(usize, usize)>, usize)> {
    let judgement = probe.judge(&base.exact, run);
    let wrong: BTreeSet<(usize, usize)> = judgement.wrong.iter().copied().collect();
    let mut held = 0;
    for (output, element) in &wrong {
        let (got, old) = (run.outputs[*output].data[*element], before.outputs[*output].data[*element]);
        if got == old {
            held += 1;
        } else if !(got.is_nan() && base.exact.want[*output].data[*element].is_finite()) {
            return None;
        }
    }
    (!wrong.is_empty()).then_some((wrong, held))
}
