//! The same run again: bits that differ from run to run.

use super::lab::Lab;
use super::{Conclusion, Kind};
use crate::probe::Outcome;
use toprope_conformance::lockstep::Obstacle;
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
        return Ok(None);
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
