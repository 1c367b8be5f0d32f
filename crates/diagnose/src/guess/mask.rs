//! Who sees whom: every wrong element of attention is what it would be with another mask.

use super::lab::Lab;
use super::{Conclusion, Kind};
use std::collections::{BTreeSet, HashSet};
use toprope_conformance::lockstep::Obstacle;
use toprope_program::{DType, Operator, Tensor};

/// A mask with what it is called.
struct Mask {
    what: String,
    operands: Vec<Tensor>,
}

pub(super) fn mask(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let operator = lab.base.probe.operator().clone();
    let starts = match &operator {
        Operator::Attention(_) => 3,
        Operator::AttentionGradient(_) => 6,
        _ => return Ok(None),
    };
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let samples: Vec<_> = lab.failing().cloned().collect();
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut rows: BTreeSet<usize> = BTreeSet::new();
    let queries = lab.base.probe.operands()[0].sizes[0];
    for sample in &samples {
        let mut left: HashSet<(usize, usize)> = sample.judgement.wrong.iter().copied().collect();
        if left.is_empty() || sample.judgement.wrong_count as usize > left.len() {
            return Ok(None);
        }
        for (output, element) in &left {
            let tensor = &sample.exact.want[*output];
            if tensor.sizes.first() == Some(&queries) {
                rows.insert(element / (tensor.data.len() / queries).max(1));
            }
        }
        for Mask { what, operands } in masks(&operator, starts, &sample.probe.operands()) {
            let Ok(other) = sample.probe.altered(&operator, operands) else { continue };
            let exact = other.exact(lab.oracle)?;
            let judgement = other.judge(&exact, &sample.outcome);
            if judgement.wrong_count as usize > judgement.wrong.len() {
                continue;
            }
            let wrong: HashSet<(usize, usize)> = judgement.wrong.into_iter().collect();
            let before = left.len();
            left.retain(|element| wrong.contains(element));
            if left.len() < before {
                used.insert(what);
            }
            if left.is_empty() {
                break;
            }
        }
        if !left.is_empty() {
            lab.note(
                "attention with other masks, element by element",
                format!("{} wrong elements remain", left.len()),
            );
            return Ok(None);
        }
    }
    let masks = used.into_iter().collect::<Vec<_>>().join("; or ");
    let share = format!("{} of {queries} queries", rows.len());
    let which = rows.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let sentence = format!("Its mask is wrong for {share} (from {which}): they see {masks}.");
    let showed = format!("every wrong element is what it is where queries see {masks}");
    Ok(lab.conclude(Kind::Mask, sentence, "attention with other masks, element by element", showed))
}

fn masks(operator: &Operator, starts: usize, operands: &[Tensor]) -> Vec<Mask> {
    let keys = operands[1].sizes[0];
    let start = |map: &dyn Fn(f64) -> f64| {
        let mut operands = operands.to_vec();
        operands[starts].data.iter_mut().for_each(|x| *x = map(*x));
        operands
    };
    let mut list = vec![
        Mask { what: "earlier documents".into(), operands: start(&|_| 0.0) },
        Mask { what: "one key less at the start of a document".into(), operands: start(&|x| x + 1.0) },
        Mask {
            what: "one key more before the start of a document".into(),
            operands: start(&|x| (x - 1.0).max(0.0)),
        },
    ];
    let one = |x: f64| Tensor { dtype: DType::I32, sizes: vec![1], data: vec![x] };
    if let Operator::Attention(_) = operator {
        let offset = operands.get(4).map_or(0.0, |t| t.data[0]);
        let length = operands.get(5).map_or(keys as f64, |t| t.data[0]);
        let with = |base: Vec<Tensor>, offset: f64, length: f64| {
            let mut operands = base[..4].to_vec();
            operands.extend([one(offset), one(length)]);
            operands
        };
        for step in 1..=(keys.min(16) as i64) {
            let what = format!("{step} key(s) behind their own");
            list.push(Mask { what, operands: with(operands.to_vec(), offset + step as f64, length) });
        }
        for step in 1..=(keys.min(16) as i64) {
            if offset - step as f64 >= 0.0 {
                let what = format!("{step} key(s) less than up to their own");
                list.push(Mask { what, operands: with(operands.to_vec(), offset - step as f64, length) });
            }
        }
        list.push(Mask {
            what: "every key behind them".into(),
            operands: with(operands.to_vec(), offset + keys as f64, length),
        });
        list.push(Mask {
            what: "every key of every document".into(),
            operands: with(start(&|_| 0.0), offset + keys as f64, length),
        });
        if length < keys as f64 {
            list.push(Mask {
                what: "keys behind the cache's length".into(),
                operands: with(operands.to_vec(), offset, keys as f64),
            });
        }
        for step in [1.0, -1.0] {
            let what = format!("a cache that is longer by {step}");
            list.push(Mask { what, operands: with(operands.to_vec(), offset, length + step) });
        }
        if offset > 0.0 {
            list.push(Mask {
                what: "no offset of their own".into(),
                operands: with(operands.to_vec(), 0.0, length),
            });
        }
    }
    list
}
