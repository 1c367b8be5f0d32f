//! Where the wrong elements lie: behind the last multiple of a tile, at this size and at others.

use super::axes::{Axis, axes};
use super::lab::{Lab, Sample, flops_of};
use super::steps::TILES;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;

/// The share of the elements behind the last multiple that are wrong at least.
const WRONG_SHARE: f64 = 0.5;

/// Whether all wrong elements of an output lie at or behind an index along one of its axes, and most of those there are wrong.
fn lie_behind(sample: &Sample, output: usize, axis: usize, from: usize) -> bool {
    let sizes = &sample.exact.want[output].sizes;
    let stride: usize = sizes[axis + 1..].iter().product();
    let wrong = sample.wrong_in(output);
    let there =
        sample.exact.want[output].data.len() / sizes[axis].max(1) * (sizes[axis] - from.min(sizes[axis]));
    let behind = |element: &usize| element / stride.max(1) % sizes[axis] >= from;
    !wrong.is_empty() && wrong.iter().all(behind) && wrong.len() as f64 >= WRONG_SHARE * there as f64
}

pub(super) fn tail(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    if !lab.base.fails() || lab.base.probe.has_views() {
        return Ok(None);
    }
    let all = axes(&lab.base.probe);
    for output in lab.base.wrong_outputs() {
        let Some(value) = lab.base.probe.instruction().outputs.get(output).map(|id| id.0 as usize) else {
            continue;
        };
        for at in 0..lab.base.exact.want[output].sizes.len() {
            let size = lab.base.exact.want[output].sizes[at];
            let Some(axis) = all.iter().find(|axis| axis.stands_alone_at(value, at)) else { continue };
            for tile in TILES.into_iter().filter(|tile| size > *tile && !size.is_multiple_of(*tile)) {
                let from = size / tile * tile;
                if lab.failing().all(|sample| lie_behind(sample, output, at, from))
                    && elsewhere_too(lab, axis, (output, at), tile)?
                {
                    let letter = &axis.letter;
                    let sentence = format!(
                        "What lies behind the last multiple of {tile} along {letter} is wrong: the rest of the last tile is lost."
                    );
                    let ran =
                        format!("where the wrong elements lie, at {letter} = {size} and at other sizes");
                    let showed = format!(
                        "at {from} and behind, and so at other sizes; where {tile} divides it nothing is wrong"
                    );
                    return Ok(lab.conclude(Kind::DroppedTail, sentence, ran, showed));
                }
            }
        }
    }
    Ok(None)
}

/// Whether it is so at other sizes as well, and none is wrong where there is no rest.
fn elsewhere_too(
    lab: &mut Lab<'_>,
    axis: &Axis,
    (output, at): (usize, usize),
    tile: usize,
) -> Result<bool, Obstacle> {
    let base = lab.base.probe.clone();
    let (rest, whole) = (axis.size % tile, axis.size / tile);
    let mut behind = 0;
    for (size, rests) in
        [((whole + 1) * tile, false), ((whole + 1) * tile + rest, true), ((whole + 2) * tile + rest, true)]
    {
        let Some(probe) = base.resized(&axis.map(size), lab.effort.seed, Regime::Normal) else { continue };
        if flops_of(&probe) > 4 * lab.effort.flops_max {
            continue;
        }
        let Ok(probe) = probe.made_consistent(lab.oracle) else { continue };
        let Some(sample) = lab.sample(probe)? else { continue };
        match (rests, sample.fails()) {
            (false, true) => return Ok(false),
            (true, true) if !lie_behind(&sample, output, at, size / tile * tile) => return Ok(false),
            (true, true) => behind += 1,
            (_, false) => {}
        }
    }
    Ok(behind > 0)
}
