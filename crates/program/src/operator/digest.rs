//! A digest of stored bits that any device can compute in any order.

use super::*;

/// Attributes of `digest`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {}

pub(super) const RECORD: Record = Record {
    name: "digest",
    summary: "64-bit digest of values' bits: the sum of a mix of each element with its index in its value.",
    formula: "y = Σ_x Σ_i mix(bits(x[i]) + 2^32·(i modulo 2^32)) modulo 2^64, low word first; mix is SplitMix64's finalizer after adding 0x9E3779B97F4A7C15; i counts row-major, bits are zero-extended",
    source: "mix: Steele et al., \"Fast splittable pseudorandom number generators\" (2014)",
    operands: &[many("x", "[...]", Accepts::Any)],
    outputs: &[slot("y", "[2]", Accepts::U32)],
    numerics: "Exact, in any order. In the reference's wide mode the bits are those of the value rounded to its dtype.",
    gradient: "none (integers)",
    invariant: Invariant::Recompute,
};

impl Definition for Digest {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, _: &[Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::new(DType::U32, [2])])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

/// The contribution of one element: its bits, zero-extended, and its row-major index.
#[inline]
pub fn mix(bits: u32, index: u64) -> u64 {
    let mut z = (u64::from(bits) | (index << 32)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
