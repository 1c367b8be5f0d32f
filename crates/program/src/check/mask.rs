//! Which checks fire in a step.

use super::site::{CheckLevel, CheckSite};
use crate::device::CheckMask;
use crate::philox;

/// At the level `Sampled` every check fires at least once in this many steps.
pub const STEPS_MAX: usize = 20;

/// What `Sampled` may cost, as a share of the step, as long as [`STEPS_MAX`] allows it.
const SHARE_MAX: f64 = 0.005;

/// The checks that fire in step `step`: all of them at `Full`, none at `Off`; at `Sampled` one of at most [`STEPS_MAX`]
/// parts of equal cost, each in its turn, and those that must fire in every step. The same for the same arguments; `seed` chooses the parts' order.
pub fn mask(sites: &[CheckSite], level: CheckLevel, step: u64, seed: u64) -> CheckMask {
    let bits = sites.iter().map(|site| usize::from(site.bit) + 1).max().unwrap_or(0);
    match level {
        CheckLevel::Off => CheckMask::default(),
        CheckLevel::Full => CheckMask::all(bits),
        CheckLevel::Sampled => {
            let total: f64 = sites.iter().map(|site| site.cost_share).sum();
            let parts = ((total / SHARE_MAX).ceil() as usize).clamp(1, STEPS_MAX);
            let turn = (step.wrapping_add(seed) % parts as u64) as usize;
            let mut words = vec![0u64; bits.div_ceil(64)];
            for (site, part) in sites.iter().zip(deal(sites, parts, seed)) {
                if part == turn || site.every_step {
                    words[usize::from(site.bit) / 64] |= 1 << (site.bit % 64);
                }
            }
            CheckMask(words)
        }
    }
}

/// The part of each site: the dearest first, each to the part that costs least so far (Graham, 1969), equals by draw.
fn deal(sites: &[CheckSite], parts: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sites.len()).collect();
    let draw = |bit: u16| philox::block([u32::from(bit), 0, 0, 0], [seed as u32, (seed >> 32) as u32])[0];
    order.sort_by(|a, b| {
        let (a, b) = (&sites[*a], &sites[*b]);
        b.cost_share.total_cmp(&a.cost_share).then(draw(a.bit).cmp(&draw(b.bit))).then(a.bit.cmp(&b.bit))
    });
    let mut costs = vec![(0.0f64, 0usize); parts];
    let mut part_of = vec![0; sites.len()];
    for site in order {
        let cheapest = (0..parts).min_by(|a, b| {
            costs[*a].0.total_cmp(&costs[*b].0).then(costs[*a].1.cmp(&costs[*b].1)).then(a.cmp(b))
        });
        let part = cheapest.unwrap_or(0);
        part_of[site] = part;
        costs[part].0 += sites[site].cost_share;
        costs[part].1 += 1;
    }
    part_of
}
