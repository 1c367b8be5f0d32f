//! Writes rows into a decoding cache, in place.

use super::*;

/// Attributes of `append`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Append {}

pub(super) const RECORD: Record = Record {
    name: "append",
    summary: "Writes rows into a cache from a position on, in place.",
    formula: "cache[position[0] + t, ...] = rows[t, ...] for rows that lie inside the cache",
    source: "definition",
    operands: &[
        slot("cache", "[P, ...]", Accepts::Float),
        slot("rows", "[T, ...]", Accepts::Float),
        slot("position", "[1]", Accepts::I32),
    ],
    outputs: &[slot("cache", "[P, ...]", Accepts::Float)],
    numerics: "Exact.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for Append {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let (cache, rows) = (&operands[0], &operands[1]);
        if cache.rank() == 0 || cache.rank() != rows.rank() || cache.shape[1..] != rows.shape[1..] {
            return Err("cache and rows must agree in all but the first dimension".into());
        }
        if cache.dtype != rows.dtype {
            return Err("cache and rows must have one dtype".into());
        }
        scalar("position", &operands[2])?;
        Ok(vec![cache.clone()])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}
