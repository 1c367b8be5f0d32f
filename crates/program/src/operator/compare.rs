//! Counts the elements in which two runs of the same instruction differ.

use super::*;

/// Attributes of `compare`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {}

pub(super) const RECORD: Record = Record {
    name: "compare",
    summary: "Counts the elements whose bits differ between two lists of values: what a replayed instruction is judged by.",
    formula: "for operands a_0..a_{n-1}, b_0..b_{n-1}: y[0] = Σ_j Σ_i [bits(a_j[i]) ≠ bits(b_j[i])], two NaNs counting as the same",
    source: "definition",
    operands: &[many("values", "[...]", Accepts::Any)],
    outputs: &[slot("y", "[1]", Accepts::F32)],
    numerics: "An integer, rounded to f32; 0 only where all are the same.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for Compare {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        if operands.is_empty() || !operands.len().is_multiple_of(2) {
            return Err("the two lists must have the same length, at least 1".into());
        }
        let (a, b) = operands.split_at(operands.len() / 2);
        match a.iter().zip(b).position(|(a, b)| a != b) {
            Some(at) => Err(format!("the values {at} of both lists must have the same type")),
            None => Ok(vec![Type::new(DType::F32, [1])]),
        }
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}
