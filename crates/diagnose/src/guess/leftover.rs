//! What a run before left behind, and what was never written.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use crate::probe::{Opened, Outcome, Probe};
use std::collections::BTreeSet;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;

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
    let kept = kept_operand(lab, &opened, &probe, two, &runs)?;
    let mut rising = Vec::new();
    for _ in 0..3 {
        rising.push(opened.run(lab.subject, &probe)?);
    }
    let in_place = lab.base.probe.operator().writes_in_place().is_some();
    let mut over = Vec::new();
    if !in_place {
        for before in [FILLED, FILLED - APART] {
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
    if rises(&lab.base, &rising) {
        let sentence = "What the runs before gave counts too: a workspace is not cleared.";
        let ran = "the same operands three times in turn";
        return Ok(lab.conclude(
            Kind::StaleBuffer,
            sentence,
            ran,
            "each time the right result is added to the last",
        ));
    }
    if let Some(operand) = kept {
        let name = lab.base.probe.operator().definition().record().operands.get(operand);
        let name = name.map_or("operand", |slot| slot.name);
        let sentence =
            format!("It does not read `{name}` anew: what it made of that of an earlier run is kept.");
        let ran = format!("another `{name}` in the same memory");
        let showed = "the same bits; in memory of its own the same operands gave other ones";
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
                a.dtype.is_float() && a.data[*e] == FILLED && b.data[*e] == FILLED - APART
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
        // What stood there before is added to: the results are as far apart as what stood there.
        let added = |(output, element): &(usize, usize)| {
            let (a, b) = (first.outputs[*output].data[*element], second.outputs[*output].data[*element]);
            let unit = first.outputs[*output].dtype.unit_roundoff();
            let room = 4.0 * unit * (a.abs() + b.abs() + APART);
            room < 1.0 && (a - b - APART).abs() <= room
        };
        let lost = probe.judge(&lab.base.exact, first).wrong;
        if lost.len() >= KEPT_LEAST && lost.iter().all(added) {
            let sentence = "It adds to what stood in its output before, in place of writing over it.";
            let ran = "outputs filled with two different numbers before";
            return Ok(lab.conclude(Kind::StaleBuffer, sentence, ran, "the results are as far apart"));
        }
    }
    lab.note(
        "a run on other numbers before, and outputs filled before",
        "nothing of either is left in the result",
    );
    Ok(None)
}

/// Whether the wrong outputs grow by the right result from run to run.
fn rises(base: &Sample, runs: &[Outcome]) -> bool {
    let wrong = base.wrong_outputs();
    let grows = |output: usize| {
        let (want, tolerance) = (&base.exact.want[output], base.tolerances()[output]);
        let moved = want.data.iter().filter(|x| **x != 0.0).count();
        moved >= RISING_LEAST.min(want.data.len())
            && (0..want.data.len()).all(|i| {
                runs.windows(2).all(|pair| {
                    let (a, b) = (pair[0].outputs[output].data[i], pair[1].outputs[output].data[i]);
                    let unit = want.dtype.unit_roundoff() * (a.abs() + b.abs());
                    (b - a - want.data[i]).abs() <= tolerance.bound(want.data[i], want.data[i].abs()) + unit
                })
            })
    };
    !wrong.is_empty() && wrong.into_iter().all(grows)
}

/// The operand that is not read anew where another one stands in the same memory, though other memory gave other results.
fn kept_operand(
    lab: &mut Lab<'_>,
    opened: &Opened,
    probe: &Probe,
    other: &Probe,
    runs: &[Outcome],
) -> Result<Option<usize>, Obstacle> {
    let elsewhere = !runs[5].same_bits(&lab.base.outcome);
    if !elsewhere || !runs[1].same_bits(&runs[5]) {
        return Ok(None);
    }
    for (at, operand) in other.operands().into_iter().enumerate() {
        if !operand.dtype.is_float() || operand.data.len() < KEPT_LEAST {
            continue;
        }
        let mut fed = probe.clone();
        fed.take_operand(at, other);
        let run = opened.run(lab.subject, &fed)?;
        if !run.same_bits(&runs[5]) {
            continue;
        }
        let exact = fed.exact(lab.oracle)?;
        let own = Outcome { outputs: lab.base.exact.want.clone(), stray: None };
        if matches!(fed.judge(&exact, &own).verdict, Verdict::Differ(_)) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// What outputs are filled with before a run, and how far the second number lies below the first.
const FILLED: f64 = 7.25;
const APART: f64 = 10.75;

/// Numbers that must grow, by what they must be, before that is no chance.
const RISING_LEAST: usize = 4;

/// Numbers of an operand that could be kept; fewer may make no difference.
const KEPT_LEAST: usize = 16;

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
