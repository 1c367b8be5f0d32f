//! Choosing experts.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid, not_implemented};
use crate::operator::{Planned, kernel_with_workspace, operators};

operators! {
    MoeGatingTopK(
        x: T, bias: T, k: i64, kGroup: i64, groupCount: i64, groupSelectMode: i64, renorm: i64,
        normType: i64, outFlag: Flag, routedScalingFactor: f64, eps: f64, y: To, expertIdx: To, normOut: To,
    ) = grouped;
    MoeGatingTopKSoftmax(
        x: T, finished: T, k: i64, y: To, expertIdx: To, rowIdx: To,
    ) = |a| softmax(a, 0, None);
    MoeGatingTopKSoftmaxV2(
        x: T, finished: T, k: i64, renorm: i64, softmaxFlag: Flag, y: To, expertIdx: To, softmaxOut: To,
    ) = |a| softmax(a, a.integer("renorm")?, a.optional("softmaxOut")?);
}

/// Places of the `count` largest, ties to the lower place.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    places.truncate(count);
    places
}

fn softmax_of(row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let raised: Vec<f32> = row.iter().map(|x| (x - most).exp()).collect();
    let sum: f32 = raised.iter().sum();
    raised.into_iter().map(|x| x / sum).collect()
}

fn sizes(x: &Operand, k: i64) -> Result<(usize, usize, usize), Fault> {
    let [rows, experts] = x.shape[..] else { return Err(x.refuse("must have 2 dimensions")) };
    let k = usize::try_from(k).ok().filter(|&k| (1..=experts).contains(&k));
    Ok((rows, experts, k.ok_or_else(|| invalid(format!("k must lie in 1..={experts}")))?))
}

/// DeepSeek-V3's routing: the best groups first, then the best experts in them.
fn grouped(a: &Arguments) -> Planned {
    let (x, bias) = (a.tensor("x")?, a.optional("bias")?);
    let (y, chosen, scores_out) = (a.tensor("y")?, a.tensor("expertIdx")?, a.optional("normOut")?);
    let (rows, experts, k) = sizes(&x, a.integer("k")?)?;
    let (kept, groups) = (a.integer("kGroup")?.max(1) as usize, a.integer("groupCount")?.max(1) as usize);
    let (pairs, sigmoid) = (a.integer("groupSelectMode")? == 1, a.integer("normType")? == 1);
    let (factor, epsilon) = (a.float("routedScalingFactor")? as f32, a.float("eps")? as f32);
    if a.integer("renorm")? != 0 {
        return Err(not_implemented("MoeGatingTopK with renorm"));
    }
    if experts % groups != 0 || kept > groups || k > experts / groups * kept {
        return Err(invalid(format!(
            "{k} of {experts} experts in {kept} of {groups} groups cannot be chosen"
        )));
    }
    y.must_have(&[rows, k])?;
    chosen.must_have(&[rows, k])?;
    kernel_with_workspace(x.len(), move |run| {
        let bias = bias.as_ref().map(|bias| run.floats(bias)).transpose()?;
        let (mut weights, mut places, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for row in run.floats(&x)?.chunks(experts) {
            let scores = if sigmoid {
                row.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect()
            } else {
                softmax_of(row)
            };
            let mut ranked: Vec<f32> = scores.clone();
            if let Some(bias) = &bias {
                ranked.iter_mut().zip(bias.iter()).for_each(|(score, bias)| *score += bias);
            }
            let size = experts / groups;
            let strength = |group: &[f32]| -> f32 {
                largest(group, if pairs { 2 } else { 1 }).iter().map(|&place| group[place]).sum()
            };
            let strengths: Vec<f32> = ranked.chunks(size).map(strength).collect();
            let best = largest(&strengths, kept);
            for (place, score) in ranked.iter_mut().enumerate() {
                if !best.contains(&(place / size)) {
                    *score = f32::NEG_INFINITY;
                }
            }
            let experts = largest(&ranked, k);
            let sum: f32 = experts.iter().map(|&expert| scores[expert]).sum();
            let divisor = if sigmoid { sum + epsilon } else { 1.0 };
            weights.extend(experts.iter().map(|&expert| scores[expert] / divisor * factor));
            places.extend(experts.iter().map(|&expert| expert as i64));
            all.extend(scores);
        }
        run.store(&y, &weights)?;
        run.store_ints(&chosen, &places)?;
        match &scores_out {
            Some(place) => run.store(place, &all),
            None => Ok(()),
        }
    })
}

fn softmax(a: &Arguments, renorm: i64, scores_out: Option<Operand>) -> Planned {
    if a.optional("finished")?.is_some() {
        return Err(not_implemented("gating with finished rows"));
    }
    let (x, y, chosen) = (a.tensor("x")?, a.tensor("y")?, a.tensor("expertIdx")?);
    let row_places = a.nullable("rowIdx").unwrap_or(None);
    let (rows, experts, k) = sizes(&x, a.integer("k")?)?;
    y.must_have(&[rows, k])?;
    chosen.must_have(&[rows, k])?;
    kernel_with_workspace(x.len(), move |run| {
        let (mut weights, mut places, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for row in run.floats(&x)?.chunks(experts) {
            let scores = softmax_of(row);
            let best = largest(&scores, k);
            let sum: f32 = if renorm == 1 { best.iter().map(|&place| scores[place]).sum() } else { 1.0 };
            weights.extend(best.iter().map(|&place| scores[place] / sum));
            places.extend(best.iter().map(|&place| place as i64));
            all.extend(scores);
        }
        run.store(&y, &weights)?;
        run.store_ints(&chosen, &places)?;
        if let Some(place) = &scores_out {
            run.store(place, &all)?;
        }
        match &row_places {
            // Of pair (row, choice): choice·rows + row.
            Some(out) => {
                let place = |pair: usize| (pair % k * rows + pair / k) as i64;
                run.store_ints(out, &(0..rows * k).map(place).collect::<Vec<_>>())
            }
            None => Ok(()),
        }
    })
}
