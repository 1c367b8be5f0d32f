//! Which sizes fail: a rest that does not fill a tile.

use super::axes::axes;
use super::lab::{Lab, flops_of};
use super::steps::TILES;
use super::{Conclusion, Kind};
use crate::probe::Probe;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;

/// Sizes on and beside the multiples of the usual widths of tiles.
const SIZES: [usize; 22] =
    [8, 10, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 48, 63, 64, 65, 96, 128, 129, 192, 256, 384];

/// The share of sizes with a rest that must fail: what is lost may be nothing, such as rows that nobody reads, or too
/// little to be told.
const FAILING_SHARE: f64 = 0.6;

/// Sizes without a rest that must agree where some with one do.
const WITHOUT_LEAST: usize = 5;

/// A size that leaves a rest.
#[derive(Clone, Copy)]
struct Rule {
    tile: usize,
    /// Below which there is no tile, and so no rest.
    least: usize,
}

impl Rule {
    fn rests(self, size: usize) -> bool {
        !size.is_multiple_of(self.tile) && size > self.least
    }

    /// How many sizes do not follow it; none where a size without a rest fails, or too many with one agree.
    fn exceptions(self, tried: &[(usize, bool)]) -> Option<usize> {
        if tried.iter().any(|(size, fails)| *fails && !self.rests(*size)) {
            return None;
        }
        let with_rest = tried.iter().filter(|(size, _)| self.rests(*size)).count();
        let agree = tried.iter().filter(|(size, fails)| !fails && self.rests(*size)).count();
        // Few sizes without a rest agree by chance, where one with a rest does.
        let without = tried.iter().filter(|(size, _)| !self.rests(*size)).count();
        if agree > 0 && without < WITHOUT_LEAST {
            return None;
        }
        // Above the first size without a rest too: else it is small sizes that fail.
        let first = tried.iter().filter(|(size, _)| !self.rests(*size)).map(|(size, _)| *size).min()?;
        let rests = tried.iter().filter(|(size, _)| self.rests(*size) && *size > first);
        let above: Vec<bool> = rests.map(|(_, fails)| *fails).collect();
        let failing = above.iter().filter(|fails| **fails).count();
        if failing * 2 < above.len() || failing == 0 {
            return None;
        }
        (agree as f64 <= (1.0 - FAILING_SHARE) * with_rest as f64 + 1e-9).then_some(agree)
    }
}

/// Whether the rule holds on other numbers: then it is the size that decides, and not what was drawn.
fn holds_again(lab: &mut Lab<'_>, rule: Rule, probes: Vec<(usize, Probe)>) -> Result<bool, Obstacle> {
    let mut tried = Vec::new();
    for (size, probe) in probes {
        let seed = lab.effort.seed.wrapping_add(9);
        let Ok(again) = probe.redrawn_consistently(seed, Regime::Normal, lab.oracle) else { continue };
        tried.extend(fails(lab, again)?.map(|fails| (size, fails)));
    }
    Ok(rule.exceptions(&tried).is_some())
}

/// Whether it fails; none where it is refused, or where there is nothing but zeros that could be wrong.
fn fails(lab: &mut Lab<'_>, probe: Probe) -> Result<Option<bool>, Obstacle> {
    let outputs = lab.base.wrong_outputs();
    let Some(sample) = lab.sample(probe)? else { return Ok(None) };
    let small = |output: usize| {
        let most = |data: &[f64]| data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let sizes = sample.exact.measured.whole.get(output).map_or(0.0, |m| most(m));
        sample.exact.want.get(output).is_none_or(|want| most(&want.data) <= 1e-9 * sizes)
    };
    if !sample.fails() && outputs.into_iter().all(small) {
        return Ok(None);
    }
    Ok(Some(sample.fails()))
}

pub(super) fn sizes(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let base = lab.base.probe.clone();
    for axis in axes(&base) {
        let mut tried: Vec<(usize, bool)> = vec![(axis.size, true)];
        let mut probes: Vec<(usize, Probe)> = Vec::new();
        // First one that every tile divides: where that fails it is not the rest. Costly ones are left out.
        let multiple = axis.size.div_ceil(128) * 128;
        let mut sizes = SIZES.to_vec();
        sizes.retain(|size| *size != multiple && *size != axis.size);
        sizes.insert(0, multiple);
        for size in sizes {
            let Some(probe) = base.resized(&axis.map(size), lab.effort.seed, Regime::Normal) else {
                continue;
            };
            // An element that is moved costs as much as some operations.
            let cost = flops_of(&probe).max(16 * probe.elements() as u64);
            if cost > lab.effort.flops_max && size > axis.size {
                continue;
            }
            let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
            if let Some(fails) = fails(lab, probe.clone())? {
                tried.push((size, fails));
                probes.push((size, probe));
                if fails && size.is_multiple_of(128) {
                    break;
                }
            }
        }
        tried.sort_unstable();
        tried.dedup();
        let passing = tried.iter().filter(|(_, fails)| !fails).count();
        // A few sizes follow a rule by chance.
        if passing < 3 || tried.len() - passing < 3 {
            continue;
        }
        let letter = &axis.letter;
        let list = |which: bool| {
            let sizes = tried.iter().filter(|(_, fails)| *fails == which).map(|(size, _)| size.to_string());
            sizes.collect::<Vec<_>>().join(", ")
        };
        let ran = format!("other sizes of {letter}");
        let showed = format!("{} fail, {} agree", list(true), list(false));
        // Where there is no whole tile some kernels take another way.
        let whole = TILES.into_iter().map(|tile| Rule { tile, least: 0 });
        let long = TILES.into_iter().map(|tile| Rule { tile, least: tile });
        let followed = whole.chain(long).filter_map(|rule| Some((rule.exceptions(&tried)?, rule)));
        if let Some((_, rule)) = followed.min_by_key(|(exceptions, _)| *exceptions)
            && holds_again(lab, rule, probes)?
        {
            let tile = rule.tile;
            let above = if rule.least > 0 { format!(", above {}", rule.least) } else { String::new() };
            let sentence = format!(
                "It is wrong where {letter} does not divide by {tile}{above}: the rest of the last tile is lost."
            );
            return Ok(lab.conclude(Kind::DroppedTail, sentence, ran, showed));
        }
        lab.note(ran, showed);
    }
    Ok(None)
}
