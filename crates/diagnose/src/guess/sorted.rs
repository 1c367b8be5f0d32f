//! A sort by expert: equals in another order, a tail that stays behind, places that are written wrongly.

use super::lab::{Lab, Sample};
use super::steps::TILES;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_program::Operator;

/// The pairs' experts, and how many choices a token has.
struct Pairs {
    experts: Vec<usize>,
    choices: usize,
}

impl Pairs {
    fn of(sample: &Sample, experts: usize) -> Option<Pairs> {
        let operands = sample.probe.operands();
        let indices = operands.first()?;
        let clamped = indices.data.iter().map(|x| x.clamp(0.0, experts.saturating_sub(1) as f64) as usize);
        Some(Pairs { experts: clamped.collect(), choices: indices.sizes.get(1).copied()?.max(1) })
    }

    /// Tokens and slots of an order of the pairs.
    fn outputs(&self, order: &[usize]) -> [Vec<f64>; 2] {
        let mut slots = vec![0.0; order.len()];
        order.iter().enumerate().for_each(|(place, pair)| slots[*pair] = place as f64);
        [order.iter().map(|pair| (pair / self.choices) as f64).collect(), slots]
    }

    /// The pairs in the order of a key, equals by their place, where only the first few are sorted.
    fn ordered(&self, sorted: usize, key: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.experts.len()).collect();
        let sorted = sorted.min(order.len());
        order[..sorted].sort_by_key(|pair| key(self.experts[*pair]));
        order
    }

    /// Whether exactly the pairs behind the first few of their expert have a wrong slot.
    fn is_crowded(&self, sample: &Sample) -> bool {
        let (want, got) = (&sample.exact.want[1].data, &sample.outcome.outputs[1].data);
        let mut seen = vec![0usize; self.experts.iter().max().map_or(0, |most| most + 1)];
        let (mut kept, mut lost) = (None::<usize>, None::<usize>);
        for (pair, expert) in self.experts.iter().enumerate() {
            let rank = seen[*expert];
            seen[*expert] += 1;
            match want[pair] == got[pair] {
                true => kept = kept.max(Some(rank)),
                false => lost = Some(lost.map_or(rank, |least| least.min(rank))),
            }
        }
        matches!((kept, lost), (Some(kept), Some(lost)) if kept < lost)
    }

    /// Whether each place holds a pair of its own expert.
    fn is_grouped(&self, tokens: &[f64], slots: &[f64]) -> bool {
        let right = self.ordered(self.experts.len(), |expert| expert);
        let expert_at = |place: usize| right.get(place).map(|pair| self.experts[*pair]);
        let by_slot = slots.iter().zip(&self.experts);
        let placed = by_slot.into_iter().all(|(slot, expert)| expert_at(*slot as usize) == Some(*expert));
        let chosen = tokens.iter().enumerate().all(|(place, token)| {
            let own = (0..self.choices).filter_map(|k| self.experts.get(*token as usize * self.choices + k));
            own.into_iter().any(|expert| expert_at(place) == Some(*expert))
        });
        placed && chosen
    }
}

pub(super) fn sorted(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let Operator::ExpertSort(sort) = lab.base.probe.operator().clone() else { return Ok(None) };
    if !lab.base.fails() {
        return Ok(None);
    }
    let all = |holds: &dyn Fn(&Pairs, &Sample) -> bool| {
        lab.failing().all(|sample| Pairs::of(sample, sort.experts).is_some_and(|pairs| holds(&pairs, sample)))
    };
    let gives = |sample: &Sample, outputs: &[Vec<f64>; 2]| {
        outputs.iter().zip(&sample.outcome.outputs).all(|(want, got)| *want == got.data)
    };
    let draws = lab.failing().count();
    for tile in TILES.into_iter().rev() {
        let without_tail = |pairs: &Pairs, sample: &Sample| {
            let whole = pairs.experts.len() / tile * tile;
            gives(sample, &pairs.outputs(&pairs.ordered(whole, |expert| expert)))
        };
        if all(&without_tail) {
            let ran = format!("a sort of what lies before the last multiple of {tile}, on {draws} draws");
            let sentence = format!("What lies behind the last multiple of {tile} stays behind, unsorted.");
            return Ok(lab.conclude(Kind::DroppedTail, sentence, ran, "it is what was given"));
        }
    }
    if all(&|pairs, sample| {
        gives(sample, &pairs.outputs(&pairs.ordered(usize::MAX, |expert| sort.experts - expert)))
    }) {
        let ran = format!("a sort from the highest expert to the lowest, on {draws} draws");
        let sentence = "It sorts the other way round.";
        return Ok(lab.conclude(Kind::WrongAttribute, sentence, ran, "it is what was given"));
    }
    let ran = "which pairs stand among those of their expert";
    if all(&|_, sample| {
        sample.wrong_outputs().into_iter().eq([1]) && is_order(&sample.outcome.outputs[1].data)
    }) {
        let sentence = "Tokens are sorted rightly; their slots are written at each other's places.";
        return Ok(lab.conclude(Kind::Layout, sentence, ran, "all tokens do; the slots are other ones"));
    }
    if all(&|pairs, sample| {
        pairs.is_grouped(&sample.outcome.outputs[0].data, &sample.outcome.outputs[1].data)
    }) {
        let sentence = "Equal experts come in another order than that of their rows.";
        return Ok(lab.conclude(Kind::TieBreak, sentence, ran, "all do, in another order"));
    }
    if all(&|pairs, sample| sample.wrong_outputs().into_iter().eq([1]) && pairs.is_crowded(sample)) {
        let ran = "which pairs of an expert have a wrong slot";
        let sentence = "An expert has room for a few pairs; the slots of later ones are not theirs.";
        return Ok(lab.conclude(
            Kind::Capacity,
            sentence,
            ran,
            "those behind its first ones, as many of each",
        ));
    }
    lab.note(ran, "not all do");
    Ok(None)
}

/// Whether each place is named once.
fn is_order(places: &[f64]) -> bool {
    let mut sorted = places.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.iter().enumerate().all(|(i, place)| *place == i as f64)
}
