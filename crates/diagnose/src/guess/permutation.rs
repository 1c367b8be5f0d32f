//! The right numbers in another order.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_program::Operator;

pub(super) fn permutation(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    for output in lab.base.wrong_outputs() {
        let sizes = lab.base.exact.want[output].sizes.clone();
        let count: usize = sizes.iter().product();
        let row = sizes.last().copied().unwrap_or(1).max(1);
        let first = count / sizes.first().copied().unwrap_or(1).max(1);
        for (length, what) in
            [(row, "each row of its last axis"), (first, "each part of its first axis"), (count, "the whole")]
        {
            if length < 4 && length != count || count < 4 {
                continue;
            }
            if lab.failing().count() > 0 && lab.failing().all(|sample| permuted(sample, output, length)) {
                let sorted = matches!(lab.base.probe.operator(), Operator::ExpertSort(_));
                let kind = if sorted { Kind::TieBreak } else { Kind::Layout };
                let sentence = format!(
                    "Its output holds the right numbers in another order, within {what}: a layout or an index is exchanged."
                );
                let sentence = if sorted {
                    "Equal experts come in another order than that of their rows.".into()
                } else {
                    sentence
                };
                let showed = format!("the same numbers within {what}");
                return Ok(lab.conclude(kind, sentence, "result and right result, each sorted", showed));
            }
        }
    }
    lab.note("result and right result, each sorted", "are different numbers");
    Ok(None)
}

/// Whether each run of `length` elements holds the right numbers, at least four of them different.
fn permuted(sample: &Sample, output: usize, length: usize) -> bool {
    let (want, got) = (&sample.exact.want[output], &sample.outcome.outputs[output]);
    let tolerance = sample.tolerances()[output];
    let magnitudes = sample.exact.measured.whole.get(output);
    let (mut various, mut elsewhere) = (false, false);
    for start in (0..want.data.len()).step_by(length.max(1)) {
        let part = start..(start + length).min(want.data.len());
        let mut right: Vec<(f64, f64)> = part
            .clone()
            .map(|i| (want.data[i], magnitudes.and_then(|m| m.get(i)).copied().unwrap_or(0.0)))
            .collect();
        let mut given: Vec<f64> = got.data[part].to_vec();
        right.sort_by(|a, b| a.0.total_cmp(&b.0));
        given.sort_by(f64::total_cmp);
        // Neighbours in order may have other magnitudes than their own: the largest counts.
        let most = right.iter().map(|(_, m)| *m).fold(0.0, f64::max);
        if !right.iter().zip(&given).all(|((want, _), got)| tolerance.accepts(*got, *want, most)) {
            return false;
        }
        // Numbers that are off by less than what is let through here stand where they should.
        let room = 4.0 * tolerance.bound(most, most);
        elsewhere |=
            (start..(start + length).min(want.data.len())).any(|i| (got.data[i] - want.data[i]).abs() > room);
        let mut distinct: Vec<f64> = given.clone();
        distinct.dedup();
        let spread = tolerance.bound(0.0, most) * 8.0;
        let range = distinct.last().copied().unwrap_or(0.0) - distinct.first().copied().unwrap_or(0.0);
        various |= distinct.len() >= 3 && range > spread;
    }
    various && elsewhere
}
