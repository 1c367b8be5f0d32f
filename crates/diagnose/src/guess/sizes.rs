//! Which sizes fail: a rest that does not fill a tile.

use super::axes::axes;
use super::lab::{Lab, flops};
use super::steps::TILES;
use super::{Conclusion, Kind};
use crate::probe::Probe;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;

/// Sizes on and beside the multiples of the usual widths of tiles.
const SIZES: [usize; 19] = [8, 10, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 48, 63, 64, 65, 96, 128, 129];

/// Whether the rule holds on other numbers: then it is the size that decides, and not what was drawn.
fn holds_again(
    lab: &mut Lab<'_>,
    rests: &dyn Fn(usize) -> bool,
    probes: Vec<(usize, Probe)>,
) -> Result<bool, Obstacle> {
    for (size, probe) in probes {
        let seed = lab.effort.seed.wrapping_add(9);
        let Ok(again) = probe.redrawn_consistently(seed, Regime::Normal, lab.oracle) else { continue };
        if lab.fails(again)? == Some(!rests(size)) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn sizes(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let base = lab.base.probe.clone();
    for axis in axes(&base) {
        let mut tried: Vec<(usize, bool)> = vec![(axis.size, true)];
        let mut probes: Vec<(usize, Probe)> = Vec::new();
        // The sizes of this axis alone, from small to large; costly ones are left out.
        let multiple = axis.size.div_ceil(128) * 128;
        for size in SIZES.into_iter().chain([multiple]) {
            let Some(probe) = base.resized(&axis.map(size), lab.effort.seed, Regime::Normal) else {
                continue;
            };
            let growth = size as f64 / axis.size.max(1) as f64;
            if flops(&lab.base) as f64 * growth.max(1.0).powi(2) > 20.0 * lab.effort.flops_max as f64 {
                continue;
            }
            let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
            if let Some(fails) = lab.fails(probe.clone())? {
                tried.push((size, fails));
                probes.push((size, probe));
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
        let rests = |tile: usize, least: usize, size: usize| !size.is_multiple_of(tile) && size > least;
        let rule = |tile: usize, least: usize| tried.iter().all(|(size, fails)| *fails == rests(tile, least, *size));
        // Where there is no whole tile some kernels take another way.
        let whole = TILES.into_iter().map(|tile| (tile, 0));
        let long = TILES.into_iter().map(|tile| (tile, tile));
        if let Some((tile, least)) = whole.chain(long).find(|(tile, least)| rule(*tile, *least))
            && holds_again(lab, &|size| rests(tile, least, size), probes)?
        {
            let above = if least > 0 { format!(", above {least}") } else { String::new() };
            let sentence = format!(
                "It is wrong where {letter} does not divide by {tile}{above}: the rest of the last tile is lost."
            );
            return Ok(lab.conclude(Kind::DroppedTail, sentence, ran, showed));
        }
        lab.note(ran, showed);
    }
    Ok(None)
}
