//! Moving tokens to experts and back. `sortedIndices[i]` is the place in the permuted tokens of the i-th pair (token,
//! choice), as torch_npu's own description of the pair has it: unpermute selects by it.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::indexing::pick;
use crate::operator::run::Run;
use crate::operator::{Planned, kernel_with_workspace, operators};

operators! {
    MoeTokenPermute(
        tokens: T, indices: T, numOutTokens: i64, paddedMode: Flag, permutedTokens: To, sortedIndices: To,
    ) = permute;
    MoeTokenPermuteGrad(
        gradPermutedTokens: T, sortedIndices: T, numTopk: i64, paddedMode: Flag, gradTokens: To,
    ) = permute_gradient;
    MoeTokenUnpermute(
        permutedTokens: T, sortedIndices: T, probs: T, paddedMode: Flag, restoreShape: I,
        unpermutedTokens: To,
    ) = unpermute;
    MoeTokenUnpermuteGrad(
        permutedTokens: T, gradUnpermutedTokens: T, sortedIndices: T, probs: T, paddedMode: Flag,
        restoreShape: I, gradPermutedTokens: To, gradProbs: To,
    ) = unpermute_gradient;
    MoeComputeExpertTokens(sortedExperts: T, numExperts: i64, out: To) = counts;
}

fn unpadded(a: &Arguments) -> Result<(), Fault> {
    if a.flag("paddedMode")? { Err(not_implemented("paddedMode of permuted tokens")) } else { Ok(()) }
}

fn permute(a: &Arguments) -> Planned {
    unpadded(a)?;
    let (tokens, indices) = (a.tensor("tokens")?, a.tensor("indices")?);
    let (out, places_out) = (a.tensor("permutedTokens")?, a.tensor("sortedIndices")?);
    indices.must_be_integer()?;
    if tokens.rank() != 2 || tokens.shape[0] == 0 || !indices.len().is_multiple_of(tokens.shape[0]) {
        return Err(indices.refuse(format!("must hold choices for each row of {:?}", tokens.shape)));
    }
    let (pairs, width) = (indices.len(), tokens.shape[1]);
    let choices = pairs / tokens.shape[0];
    let kept = match a.integer("numOutTokens")? {
        count if count > 0 => (count as usize).min(pairs),
        count => pairs.saturating_sub(count.unsigned_abs() as usize),
    };
    out.must_have(&[kept, width])?;
    if places_out.len() != pairs {
        return Err(places_out.refuse(format!("must have {pairs} elements")));
    }
    kernel_with_workspace(pairs, move |run| {
        let experts = run.ints(&indices)?;
        let mut order: Vec<usize> = (0..pairs).collect();
        order.sort_by_key(|&pair| experts[pair]);
        let mut places = vec![0i64; pairs];
        for (place, &pair) in order.iter().enumerate() {
            places[pair] = place as i64;
        }
        let values = run.values(&tokens, tokens.dtype.domain())?;
        let rows = order[..kept].iter().map(|pair| pair / choices * width);
        run.store_values(&out, &pick(&values, rows.flat_map(|start| start..start + width)))?;
        run.store_ints(&places_out, &places)
    })
}

/// Places of pairs; none where a pair was dropped.
fn places(run: &Run, operand: &Operand, rows: usize) -> Result<Vec<Option<usize>>, Fault> {
    let place = |&place: &i64| usize::try_from(place).ok().filter(|&place| place < rows);
    Ok(run.ints(operand)?.iter().map(place).collect())
}

fn permute_gradient(a: &Arguments) -> Planned {
    unpadded(a)?;
    let (upstream, sorted, out) =
        (a.tensor("gradPermutedTokens")?, a.tensor("sortedIndices")?, a.tensor("gradTokens")?);
    let choices = usize::try_from(a.integer("numTopk")?).ok().filter(|&choices| choices > 0);
    let choices = choices.ok_or_else(|| invalid("numTopk must be above 0"))?;
    let width = upstream.shape.last().copied().unwrap_or(0);
    out.must_have(&[sorted.len() / choices, width])?;
    kernel_with_workspace(out.len(), move |run| {
        let places = places(run, &sorted, upstream.shape[0])?;
        let rows = run.floats(&upstream)?;
        let mut sums = vec![0.0f32; out.len()];
        for (pair, place) in places.into_iter().enumerate() {
            let Some(place) = place else { continue };
            let start = pair / choices * width;
            let row = &rows[place * width..(place + 1) * width];
            sums[start..start + width].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        run.store(&out, &sums)
    })
}

/// Probabilities as [T, K]; ones where there are none.
fn weights(run: &Run, probs: &Option<Operand>, pairs: usize) -> Result<Vec<f32>, Fault> {
    match probs {
        Some(probs) if probs.len() == pairs => Ok(run.floats(probs)?.into_vec()),
        Some(probs) => Err(probs.refuse(format!("must have {pairs} elements"))),
        None => Ok(vec![1.0; pairs]),
    }
}

/// Tokens and choices of an unpermute.
fn counted(out: &Operand, sorted: &Operand) -> Result<usize, Fault> {
    if out.rank() != 2 || out.shape[0] == 0 || !sorted.len().is_multiple_of(out.shape[0]) {
        return Err(sorted.refuse(format!("must hold choices for each row of {:?}", out.shape)));
    }
    Ok(sorted.len() / out.shape[0])
}

fn unpermute(a: &Arguments) -> Planned {
    unpadded(a)?;
    let (permuted, sorted, probs) =
        (a.tensor("permutedTokens")?, a.tensor("sortedIndices")?, a.optional("probs")?);
    let out = a.tensor("unpermutedTokens")?;
    let choices = counted(&out, &sorted)?;
    let width = out.shape[1];
    kernel_with_workspace(out.len(), move |run| {
        let places = places(run, &sorted, permuted.shape[0])?;
        let (rows, weights) = (run.floats(&permuted)?, weights(run, &probs, places.len())?);
        let mut sums = vec![0.0f32; out.len()];
        for (pair, place) in places.into_iter().enumerate() {
            let Some(place) = place else { continue };
            let start = pair / choices * width;
            let row = &rows[place * width..(place + 1) * width];
            sums[start..start + width]
                .iter_mut()
                .zip(row)
                .for_each(|(sum, value)| *sum += weights[pair] * value);
        }
        run.store(&out, &sums)
    })
}

fn unpermute_gradient(a: &Arguments) -> Planned {
    unpadded(a)?;
    let (permuted, upstream) = (a.tensor("permutedTokens")?, a.tensor("gradUnpermutedTokens")?);
    let (sorted, probs) = (a.tensor("sortedIndices")?, a.optional("probs")?);
    let (out, dprobs) = (a.tensor("gradPermutedTokens")?, a.optional("gradProbs")?);
    let choices = counted(&upstream, &sorted)?;
    let width = upstream.shape[1];
    out.must_have(&permuted.shape)?;
    kernel_with_workspace(out.len(), move |run| {
        let places = places(run, &sorted, permuted.shape[0])?;
        let (rows, dy) = (run.floats(&permuted)?, run.floats(&upstream)?);
        let weights = weights(run, &probs, places.len())?;
        let (mut to_rows, mut to_probs) = (vec![0.0f32; out.len()], vec![0.0f32; places.len()]);
        for (pair, place) in places.into_iter().enumerate() {
            let Some(place) = place else { continue };
            let start = pair / choices * width;
            let (row, dy) = (&rows[place * width..(place + 1) * width], &dy[start..start + width]);
            to_probs[pair] = row.iter().zip(dy).map(|(x, dy)| x * dy).sum();
            let target = to_rows[place * width..(place + 1) * width].iter_mut();
            target.zip(dy).for_each(|(to, dy)| *to = weights[pair] * dy);
        }
        run.store(&out, &to_rows)?;
        match &dprobs {
            Some(dprobs) => run.store(dprobs, &to_probs),
            None => Ok(()),
        }
    })
}

/// Running counts of sorted experts: how many pairs have an expert up to each.
fn counts(a: &Arguments) -> Planned {
    let (sorted, out) = (a.tensor("sortedExperts")?, a.tensor("out")?);
    let experts = usize::try_from(a.integer("numExperts")?).map_err(|_| invalid("numExperts is below 0"))?;
    out.must_have(&[experts])?;
    kernel_with_workspace(experts, move |run| {
        let sorted = run.ints(&sorted)?;
        let upto = |expert: usize| sorted.iter().filter(|&&one| one <= expert as i64).count() as i64;
        run.store_ints(&out, &(0..experts).map(upto).collect::<Vec<_>>())
    })
}
