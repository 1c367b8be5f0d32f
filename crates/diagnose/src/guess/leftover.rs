//! What a run before left behind, and what was never written.

use super::lab::Lab;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;

pub(super) fn leftover(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let probe = lab.base.probe.clone();
    let redrawn = probe.redrawn_consistently(lab.effort.seed.wrapping_add(77), Regime::Normal, lab.oracle);
    let Ok(other) = redrawn else { return Ok(None) };
    let opened = probe.open(lab.subject).map_err(Obstacle::Subject)?;
    let mut runs = Vec::new();
    for fed in [&other, &probe, &other, &probe] {
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
    let judged = probe.judge(&lab.base.exact, &runs[3]);
    let fails = matches!(judged.verdict, Verdict::Differ(_));
    if fails {
        let exact = other.exact(lab.oracle)?;
        let wrong: Vec<usize> = {
            let mut wrong: Vec<usize> = judged.wrong.iter().map(|(output, _)| *output).collect();
            wrong.dedup();
            wrong
        };
        let as_other = other.judge(&exact, &runs[3]);
        let previous = !wrong.is_empty() && !as_other.wrong.iter().any(|(output, _)| wrong.contains(output));
        if previous
            && wrong.iter().any(|output| exact.want[*output].data != lab.base.exact.want[*output].data)
        {
            let sentence = "Its output is that of the run before: what it computes reaches the buffer too late, or not at all.";
            let showed = "the second gives the result of the first";
            return Ok(lab.conclude(
                Kind::StaleBuffer,
                sentence,
                "a run on other numbers, then this one",
                showed,
            ));
        }
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
