//! Adds into a carried value, the only write to one.

use super::*;

/// Attributes of `accumulate`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accumulate {}

pub(super) const RECORD: Record = Record {
    name: "accumulate",
    summary: "Adds a micro-batch's gradient or counter into a carried value, in place.",
    formula: "first micro-batch of a step (a binding): target = x; later ones: target = target + x",
    source: "definition",
    operands: &[slot("target", "[...]", Accepts::Any), slot("x", "[...]", Accepts::Any)],
    outputs: &[slot("target", "[...]", Accepts::Any)],
    numerics: "One f32 sum (i32: modulo 2^32) per micro-batch, in their order; magnitude |target| + |x|.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for Accumulate {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        if operands[0] != operands[1] || !matches!(operands[0].dtype, DType::F32 | DType::I32) {
            return Err("target and x must have one shape and one dtype, f32 or i32".into());
        }
        Ok(vec![operands[0].clone()])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        if operands[0].dtype == DType::I32 {
            vec![Tolerance::EXACT]
        } else {
            vec![Tolerance::rounded(DType::F32, 0.0)]
        }
    }
}
