//! The same run again: bits that differ from run to run.

use super::axes::axes;
use super::lab::{Lab, flops_of};
use super::{Conclusion, Kind};
use crate::probe::Outcome;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;
use toprope_program::tensor::round;
use toprope_program::{DType, Tensor};

pub(super) fn repeat(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let probe = lab.base.probe.clone();
    let opened = probe.open(lab.subject).map_err(Obstacle::Subject)?;
    let mut outcomes = vec![lab.base.outcome.clone()];
    for _ in 0..lab.effort.repeats {
        outcomes.push(opened.run(lab.subject, &probe)?);
    }
    opened.close(lab.subject).map_err(Obstacle::Subject)?;
    if let Some(observed) = lab.observed.clone()
        && observed.outputs.len() == outcomes[0].outputs.len()
        && observed.outputs.iter().zip(&outcomes[0].outputs).all(|(a, b)| a.sizes == b.sizes)
    {
        outcomes.push(observed);
    }
    let runs = outcomes.len();
    let is_wrong =
        |outcome: &Outcome| matches!(probe.judge(&lab.base.exact, outcome).verdict, Verdict::Differ(_));
    let wrong = outcomes.iter().filter(|outcome| is_wrong(outcome)).count();
    let mut kinds: Vec<&Outcome> = Vec::new();
    for outcome in &outcomes {
        if !kinds.iter().any(|kind| kind.same_bits(outcome)) {
            kinds.push(outcome);
        }
    }
    let ran = format!("the same run {runs} times");
    lab.steady = kinds.len() == 1;
    if lab.steady {
        lab.note(ran, "the same bits each time");
        return if lab.base.fails() { Ok(None) } else { longer_sums(lab) };
    }
    let distinct = kinds.len();
    let flips = flipped(&outcomes, &lab.base.exact.want);
    let showed = format!("{distinct} different results, {wrong} of {runs} runs are wrong");
    if wrong == 0 {
        let sentence =
            "Bits differ from run to run, all within the tolerance: the order of additions changes.";
        return Ok(lab.conclude(Kind::OrderChanges, sentence, ran, showed));
    }
    if let Some(count) = flips {
        let sentence = format!(
            "Single bits are flipped: {count} elements differ from the right result in one bit each."
        );
        let showed = format!("{showed}; each wrong element is the right one with one bit flipped");
        return Ok(lab.conclude(Kind::BitFlips, sentence, ran, showed));
    }
    if wrong == runs {
        lab.note(ran, format!("{showed}: wrong every time, and never twice the same"));
        return Ok(None);
    }
    let sentence = format!(
        "{wrong} of {runs} runs of the same operands are wrong: a race, or memory that somebody else writes."
    );
    Ok(lab.conclude(Kind::Race, sentence, ran, showed))
}

/// Terms of a sum that several workers share.
const LONG: usize = 320;

/// What is not wrong and gives the same bits may have sums that nobody shares: the same run again with longer ones.
fn longer_sums(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if lab.base.probe.has_views() {
        return Ok(None);
    }
    let mut probe = lab.base.probe.clone();
    for axis in axes(&probe).into_iter().filter(|axis| !axis.in_outputs && axis.size < LONG) {
        let longer = probe.resized(&axis.map(LONG), lab.effort.seed, Regime::Normal);
        if let Some(longer) = longer.filter(|longer| flops_of(longer) <= 4 * lab.effort.flops_max) {
            probe = longer;
        }
    }
    // One that was found to fail once may fail at its own size alone.
    let Ok(opened) = probe.open(lab.subject) else { return Ok(None) };
    let first = opened.run(lab.subject, &probe)?;
    let mut others = 0;
    for _ in 0..lab.effort.repeats {
        others += usize::from(!opened.run(lab.subject, &probe)?.same_bits(&first));
    }
    opened.close(lab.subject).map_err(Obstacle::Subject)?;
    let ran = format!("sums of up to {LONG} terms, the same run {} times", 1 + lab.effort.repeats);
    if others == 0 {
        lab.note(ran, "the same bits each time");
        return Ok(None);
    }
    let exact = probe.exact(lab.oracle)?;
    if matches!(probe.judge(&exact, &first).verdict, Verdict::Differ(_)) {
        lab.note(ran, "other bits, and wrong ones");
        return Ok(None);
    }
    let sentence = "Bits differ from run to run, within the tolerance: the order of additions changes.";
    Ok(lab.conclude(Kind::OrderChanges, sentence, ran, format!("other bits in {others} of them")))
}

/// The number of elements that differ between runs, where each wrong one is what most runs gave with one bit flipped; none
/// where anything else differs.
fn flipped(outcomes: &[Outcome], want: &[Tensor]) -> Option<usize> {
    let mut count = 0;
    for (output, exact) in want.iter().enumerate() {
        for element in 0..exact.data.len() {
            let numbers: Vec<f64> =
                outcomes.iter().map(|outcome| outcome.outputs[output].data[element]).collect();
            let words: Vec<u32> = numbers.iter().map(|x| bits(exact.dtype, *x)).collect();
            if words.iter().all(|word| *word == words[0]) {
                continue;
            }
            // The healthy result is the one that lies nearest.
            let right = round(exact.dtype, exact.data[element]);
            let nearest = numbers
                .iter()
                .filter(|x| x.is_finite())
                .min_by(|a, b| (*a - right).abs().total_cmp(&(*b - right).abs()))?;
            let healthy = bits(exact.dtype, *nearest);
            for word in words.iter().filter(|word| **word != healthy) {
                if (word ^ healthy).count_ones() != 1 {
                    return None;
                }
                count += 1;
            }
        }
    }
    (count > 0).then_some(count)
}

fn bits(dtype: DType, x: f64) -> u32 {
    match dtype {
        DType::F32 => (x as f32).to_bits(),
        DType::Bf16 => (x as f32).to_bits() >> 16,
        DType::I32 => x as i64 as i32 as u32,
        DType::U32 => x as i64 as u32,
    }
}
