//! What goes in at one place comes out at another: rows that are copied from the wrong place, and elements whose one is felt
//! elsewhere than it should be.

use super::lab::{Lab, Sample};
use super::{Conclusion, Kind};
use std::collections::BTreeSet;
use toprope_conformance::lockstep::Obstacle;
use toprope_program::tensor::round;
use toprope_program::{Operator, Tensor};

/// Rows of the output that are other rows of an operand than they should be.
pub(super) fn rows(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || !matches!(lab.base.probe.operator(), Operator::Gather(_) | Operator::Append(_)) {
        return Ok(None);
    }
    let found: Option<Vec<BTreeSet<usize>>> = lab.failing().map(moved_rows).collect();
    let Some(found) = found else {
        lab.note("each wrong row, looked for among the operands' rows", "is none of them");
        return Ok(None);
    };
    let places: BTreeSet<usize> = found.into_iter().flatten().collect();
    let listed: Vec<String> = places.iter().take(4).map(ToString::to_string).collect();
    let sentence = format!(
        "Rows of its output are other rows of its operand than the indices say: output row {}.",
        listed.join(", ")
    );
    let showed = "each is another row of an operand";
    Ok(lab.conclude(Kind::Layout, sentence, "each wrong row, looked for among the operands' rows", showed))
}

/// The wrong rows of the first output, where each is a row of an operand; none where one is not.
fn moved_rows(sample: &Sample) -> Option<BTreeSet<usize>> {
    let got = sample.outcome.outputs.first()?;
    let width = got.sizes.last().copied().filter(|width| *width >= 4)?;
    let wrong: BTreeSet<usize> = sample.wrong_in(0).into_iter().map(|element| element / width).collect();
    let all: BTreeSet<usize> = sample.wrong_outputs();
    let operands = sample.probe.operands();
    let held = |row: &usize| {
        let row = &got.data[row * width..][..width];
        let same = |other: &[f64]| other.iter().zip(row).all(|(x, got_x)| round(got.dtype, *x) == *got_x);
        let among = |t: &Tensor| t.dtype.is_float() && t.data.chunks_exact(width).any(same);
        row.iter().any(|x| *x != row[0]) && operands.iter().any(among)
    };
    (!wrong.is_empty() && all.len() == 1 && wrong.iter().all(held)).then_some(wrong)
}

/// Ones that are put in, at most.
const IMPULSES: usize = 6;

/// A single one among zeros, in operators that are linear in an operand: as many elements answer as should, and others.
pub(super) fn impulse(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    // The operand that they are linear in, and copy or rotate but do not sum over.
    let operator = lab.base.probe.operator().clone();
    if !matches!(operator, Operator::Rope(_) | Operator::Assemble(_) | Operator::ScatterAdd(_)) {
        return Ok(None);
    }
    let operands = lab.base.probe.operands();
    let Some(count) = operands.first().map(|t| t.data.len()).filter(|count| *count > 1) else {
        return Ok(None);
    };
    let (mut tried, mut elsewhere) = (0, Vec::new());
    for turn in 0..IMPULSES {
        let at = (turn * 2 + 1) * count / (2 * IMPULSES);
        let mut fed = operands.clone();
        fed[0].data = vec![0.0; count];
        fed[0].data[at] = 1.0;
        let Ok(probe) = lab.base.probe.altered(&operator, fed) else { continue };
        let Some(sample) = lab.sample(probe)? else { continue };
        let answers = |tensors: &[Tensor]| -> Vec<BTreeSet<usize>> {
            let of =
                |t: &Tensor| t.data.iter().enumerate().filter(|(_, x)| **x != 0.0).map(|(i, _)| i).collect();
            tensors.iter().map(of).collect()
        };
        let (want, got) = (answers(&sample.exact.want), answers(&sample.outcome.outputs));
        let size = |sets: &[BTreeSet<usize>]| sets.iter().map(BTreeSet::len).collect::<Vec<_>>();
        tried += 1;
        if sample.fails() && want != got && size(&want) == size(&got) {
            elsewhere.push(at);
        }
    }
    let ran = format!("a single one among zeros, at {tried} places");
    if elsewhere.len() < 2 {
        lab.note(ran, "is felt where it should be, or by another number of elements");
        return Ok(None);
    }
    let sentence =
        "What goes in at one place comes out at another: pairs or axes are taken in another layout.";
    let showed = format!("at {} of them as many elements answer as should, and others", elsewhere.len());
    Ok(lab.conclude(Kind::Layout, sentence, ran, showed))
}
