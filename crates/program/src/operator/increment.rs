//! Counters.

use super::*;

/// Attributes of `increment`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Increment {
    /// What is added.
    pub by: i32,
}

pub(super) const RECORD: Record = Record {
    name: "increment",
    summary: "Adds a number to a counter.",
    formula: "y = x + by, modulo 2^32",
    source: "definition",
    operands: &[slot("x", "[1]", Accepts::I32)],
    outputs: &[slot("y", "[1]", Accepts::I32)],
    numerics: "Exact.",
    gradient: "none (integers)",
    invariant: Invariant::Recompute,
};

impl Definition for Increment {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        scalar("x", &operands[0])?;
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}
