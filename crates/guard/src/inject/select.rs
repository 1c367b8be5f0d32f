//! Which elements a corruption hits: a function of its seed alone, so that a persistent fault hits the same ones each time.

use super::spec::{Change, Corruption};
use std::collections::BTreeSet;
use toprope_program::philox;

/// Elements between two stuck lanes: the width of a tile's row in the matrix units that the pattern is known from.
const LANE_PERIOD: usize = 64;

/// A random number from a seed, a purpose and a turn.
pub(super) fn draw(seed: u64, purpose: u32, turn: u64) -> u64 {
    let block =
        philox::block([turn as u32, (turn >> 32) as u32, purpose, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(block[0]) | (u64::from(block[1]) << 32)
}

/// Distinct places among `elements`, in ascending order except for lanes, whose fours stay together.
pub(super) fn select(
    elements: usize,
    row: usize,
    corruption: &Corruption,
    in_band: impl Fn(usize) -> bool,
) -> Vec<usize> {
    if elements == 0 {
        return Vec::new();
    }
    let count = corruption.count.min(elements);
    let seed = corruption.seed;
    match corruption.change {
        Change::ZeroTile => {
            tile(elements, row, count, seed).into_iter().filter(|index| in_band(*index)).collect()
        }
        Change::StuckLane => {
            lanes(elements, count, seed).into_iter().filter(|index| in_band(*index)).collect()
        }
        _ => {
            let candidates: Option<Vec<usize>> =
                corruption.band.map(|_| (0..elements).filter(|index| in_band(*index)).collect());
            let among = candidates.as_ref().map_or(elements, Vec::len);
            let chosen = scattered(among, count.min(among), seed);
            match candidates {
                Some(candidates) => chosen.into_iter().map(|index| candidates[index]).collect(),
                None => chosen.into_iter().collect(),
            }
        }
    }
}

/// Floyd's sampling without replacement.
fn scattered(elements: usize, count: usize, seed: u64) -> BTreeSet<usize> {
    let mut chosen = BTreeSet::new();
    for last in elements - count..elements {
        let candidate = (draw(seed, 0, last as u64) % (last as u64 + 1)) as usize;
        if !chosen.insert(candidate) {
            chosen.insert(last);
        }
    }
    chosen
}

/// Neighbouring rows and columns, about square.
fn tile(elements: usize, row: usize, count: usize, seed: u64) -> Vec<usize> {
    let row = row.clamp(1, elements);
    let rows = elements / row;
    let columns = ((count as f64).sqrt().ceil() as usize).clamp(count.div_ceil(rows.max(1)), row);
    let high = count.div_ceil(columns).min(rows.max(1));
    let top = (draw(seed, 0, 0) % (rows.saturating_sub(high) as u64 + 1)) as usize;
    let left = (draw(seed, 0, 1) % ((row - columns) as u64 + 1)) as usize;
    let places = (0..high).flat_map(|r| (0..columns).map(move |c| (top + r) * row + left + c));
    places.filter(|index| *index < elements).take(count).collect()
}

/// Fours of neighbours at one period.
fn lanes(elements: usize, count: usize, seed: u64) -> Vec<usize> {
    let wanted = count.max(4).min(elements);
    let period = LANE_PERIOD.min((elements / 4 * 4).max(4));
    let phase = (draw(seed, 0, 0) % (period as u64 / 4)) as usize * 4;
    let lanes = elements.div_ceil(period).max(1);
    let first = (draw(seed, 0, 1) % lanes as u64) as usize;
    let mut places = Vec::with_capacity(wanted);
    for lane in 0..lanes {
        let start = (first + lane) % lanes * period + phase;
        if start + 4 <= elements {
            places.extend(start..start + 4);
        }
        if places.len() >= wanted {
            break;
        }
    }
    places.truncate(wanted.max(4));
    if places.is_empty() { (0..wanted).collect() } else { places }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_distinct_places_as_asked_for_and_none_outside() {
        for (elements, row) in [(1, 1), (7, 7), (64, 8), (1000, 40), (4096, 64)] {
            for count in [1, 3, 8, 100, 5000] {
                for change in [Change::Flip(None), Change::ZeroTile] {
                    for seed in 0..5 {
                        let corruption = Corruption { count, seed, ..Corruption::one(change) };
                        let chosen = select(elements, row, &corruption, |_| true);
                        let distinct: BTreeSet<_> = chosen.iter().copied().collect();
                        assert_eq!(distinct.len(), count.min(elements), "{change} {count} of {elements}");
                        assert!(distinct.iter().all(|index| *index < elements));
                    }
                }
            }
        }
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        let places = |seed| {
            let corruption = Corruption { count: 10, seed, ..Corruption::one(Change::Flip(None)) };
            select(10_000, 100, &corruption, |_| true)
        };
        assert_eq!(places(5), places(5));
        assert_ne!(places(5), places(6));
    }
}
