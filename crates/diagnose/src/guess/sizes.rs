//! Which sizes fail: a rest that does not fill a tile.

use super::axes::axes;
use super::lab::{Lab, flops};
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;

/// Sizes on and beside the multiples of the usual widths of tiles.
const SIZES: [usize; 16] = [8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64, 65, 96, 128, 129];

pub(super) fn sizes(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let base = lab.base.probe.clone();
    for axis in axes(&base) {
        let mut tried: Vec<(usize, bool)> = vec![(axis.size, true)];
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
            if let Some(fails) = lab.fails(probe)? {
                tried.push((size, fails));
            }
        }
        tried.sort_unstable();
        tried.dedup();
        let passing = tried.iter().filter(|(_, fails)| !fails).count();
        if passing == 0 || tried.len() < 6 {
            continue;
        }
        let letter = &axis.letter;
        let list = |which: bool| {
            let sizes = tried.iter().filter(|(_, fails)| *fails == which).map(|(size, _)| size.to_string());
            sizes.collect::<Vec<_>>().join(", ")
        };
        let ran = format!("other sizes of {letter}");
        let showed = format!("{} fail, {} agree", list(true), list(false));
        let rule = |tile: &usize| tried.iter().all(|(size, fails)| *fails != size.is_multiple_of(*tile));
        if let Some(tile) = [2usize, 4, 8, 16, 32, 64, 128].iter().find(|tile| rule(tile)) {
            let sentence = format!(
                "It is wrong where {letter} does not divide by {tile}: the rest of the last tile is lost."
            );
            return Ok(lab.conclude(Kind::DroppedTail, sentence, ran, showed));
        }
        lab.note(ran, showed);
    }
    Ok(None)
}
