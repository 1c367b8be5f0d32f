//! Judges a router: a choice whose margin lies within the tolerance of the scores may fall either way, and is counted.

use super::slack::router_underflow;
use super::{Court, one};
use toprope_program::operator::Router;
use toprope_program::{DType, Tensor, Tolerance};

pub(super) fn judge(
    court: &mut Court,
    router: &Router,
    operands: &[Tensor],
    want: &[Tensor],
    got: &[Tensor],
    magnitudes: &[Vec<f64>],
    tolerances: &[Tolerance],
) {
    let (logits, bias) = (&operands[0], &operands[1]);
    let (rows, experts) = (logits.sizes[0], logits.sizes[1]);
    let k = router.top_k;
    let scores = want[0].data.iter().zip(&got[0].data).zip(&magnitudes[0]);
    for (element, ((want, got), magnitude)) in scores.enumerate() {
        one(court, (0, element), DType::F32, *got, *want, *magnitude, tolerances[0]);
    }
    let mut counted = vec![0f64; experts];
    for row in 0..rows {
        let scores = &want[0].data[row * experts..(row + 1) * experts];
        let magnitude = &magnitudes[0][row * experts..(row + 1) * experts];
        let candidates: Vec<Candidate> = (0..experts)
            .map(|expert| {
                let (score, bias) = (scores[expert], bias.data[expert]);
                let key = if score.is_nan() { f64::NEG_INFINITY } else { score + bias };
                // The score's own bound, and one f32 sum.
                let error = tolerances[0].bound(score, magnitude[expert])
                    + DType::F32.unit_roundoff() * (score.abs() + bias.abs());
                Candidate { expert, key, error, origin: vec![(logits.data[row * experts + expert], bias)] }
            })
            .collect();
        let tied = is_tied(router, &candidates);
        court.routed_rows += 1;
        court.tied_rows += u64::from(tied);
        let chosen = &got[1].data[row * k..(row + 1) * k];
        let mut seen = vec![false; experts];
        for (place, &index) in chosen.iter().enumerate() {
            let element = row * k + place;
            let valid = index >= 0.0 && (index as usize) < experts && !seen[index as usize];
            if !valid {
                court
                    .differs(|| format!("output 1 element {element}: {index} is no expert, or chosen twice"));
                continue;
            }
            seen[index as usize] = true;
            counted[index as usize] += 1.0;
            if tied {
                court.cannot_compare("the choice hangs on less than the tolerance of the scores");
                continue;
            }
            one(court, (1, element), DType::I32, index, want[1].data[element], 0.0, Tolerance::EXACT);
            let (want, got) = (want[2].data[element], got[2].data[element]);
            one(court, (2, element), DType::F32, got, want, magnitudes[2][element], tolerances[2]);
        }
        if tied && seen.iter().filter(|seen| **seen).count() == k {
            // What the scores may be off besides their tolerance was taken into their magnitudes.
            let beyond: Vec<f64> = scores
                .iter()
                .zip(magnitude)
                .map(|(score, magnitude)| (magnitude - score.abs()) * tolerances[0].accumulated)
                .collect();
            let got = &got[2].data[row * k..(row + 1) * k];
            tied_weights(court, router, (scores, &beyond), chosen, got, tolerances[2]);
        }
    }
    // Counts follow from the subject's own choices.
    for (expert, (&count, &got)) in counted.iter().zip(&got[3].data).enumerate() {
        one(court, (3, expert), DType::I32, got, count, 0.0, Tolerance::EXACT);
    }
}

/// The weights of a tied row follow from its own choice.
fn tied_weights(
    court: &mut Court,
    router: &Router,
    (scores, beyond): (&[f64], &[f64]),
    chosen: &[f64],
    got: &[f64],
    tolerance: Tolerance,
) {
    let picked: Vec<f64> = chosen.iter().map(|&expert| scores[expert as usize]).collect();
    let plain: f64 = picked.iter().sum();
    let sum = if router.normalize { plain + 1e-20 } else { 1.0 };
    let total: f64 = chosen.iter().map(|&expert| beyond[expert as usize]).sum();
    for (place, (score, &got)) in picked.iter().zip(got).enumerate() {
        let want = router.scale * score / sum;
        let share = if plain > 0.0 { total / plain } else { 0.0 };
        let own = if *score > 0.0 { beyond[chosen[place] as usize] / score } else { 0.0 };
        let more = router_underflow(router, plain) + (own + share) * want.abs();
        let magnitude = want.abs() + more / tolerance.accumulated;
        one(court, (2, place), DType::F32, got, want, magnitude, tolerance);
    }
}

#[derive(Clone, Debug)]
struct Candidate {
    expert: usize,
    key: f64,
    error: f64,
    /// What the key was computed from; the same origin gives the same key on every device.
    origin: Vec<(f64, f64)>,
}

/// Best first, ties to the lower index.
fn ranked(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| b.key.total_cmp(&a.key).then(a.expert.cmp(&b.expert)));
    candidates
}

/// Whether any of the first `decided` places could go to its successor.
fn hangs(ranked: &[Candidate], decided: usize) -> bool {
    ranked.windows(2).take(decided).any(|pair| {
        let (first, second) = (&pair[0], &pair[1]);
        let apart = first.key - second.key;
        let same_origin = {
            let sorted = |origin: &[(f64, f64)]| {
                let mut sorted = origin.to_vec();
                sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
                sorted
            };
            sorted(&first.origin) == sorted(&second.origin)
        };
        !same_origin && apart.is_finite() && apart <= first.error + second.error
    })
}

fn is_tied(router: &Router, candidates: &[Candidate]) -> bool {
    let mut reachable = candidates.to_vec();
    if router.groups > 1 && router.top_groups < router.groups {
        let size = candidates.len() / router.groups;
        let mut within = false;
        let groups: Vec<Candidate> = candidates
            .chunks(size)
            .enumerate()
            .map(|(group, members)| {
                let best = ranked(members.to_vec());
                let top = &best[..best.len().min(2)];
                // Which of two members counts does not matter to the sum beyond their distance, which is within error.
                let error = top.iter().map(|c| c.error).sum::<f64>() * 2.0;
                let key = top.iter().map(|c| c.key).sum::<f64>();
                let origin = top.iter().flat_map(|c| c.origin.clone()).collect();
                Candidate { expert: group, key, error, origin }
            })
            .collect();
        let groups = ranked(groups);
        // Only the border between chosen and other groups matters, not the order of the chosen.
        let border = &groups[router.top_groups - 1..=router.top_groups];
        within |= hangs(border, 1);
        if within {
            return true;
        }
        let chosen: Vec<usize> = groups[..router.top_groups].iter().map(|group| group.expert).collect();
        reachable.retain(|candidate| chosen.contains(&(candidate.expert / size)));
    }
    hangs(&ranked(reachable), router.top_k)
}
