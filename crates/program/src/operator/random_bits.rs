//! Counter-based random bits.

use super::*;

/// Attributes of `random_bits`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomBits {
    /// Tells apart the uses within one program: the last counter word.
    pub stream: u32,
    /// The shape of the result.
    pub shape: Vec<Dim>,
}

pub(super) const RECORD: Record = Record {
    name: "random_bits",
    summary: "Random words that are the same everywhere.",
    formula: "y[4b + w] = word w of philox4x32_10(counter = (b, 0, counter[0], stream), key = (key[0], key[1])), row-major",
    source: "Salmon et al., SC 2011",
    operands: &[slot("key", "[2]", Accepts::U32), slot("counter", "[1]", Accepts::U32)],
    outputs: &[slot("y", "shape", Accepts::U32)],
    numerics: "Exact.",
    gradient: "none (integers)",
    invariant: Invariant::Recompute,
};

impl Definition for RandomBits {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        dims("key", &operands[0], &[2.into()])?;
        scalar("counter", &operands[1])?;
        Ok(vec![Type { dtype: DType::U32, shape: self.shape.clone() }])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}
