//! A digest of stored bits that any device can compute in any order.

use super::*;

/// Attributes of `digest`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {}

pub(super) const RECORD: Record = Record {
    name: "digest",
    summary: "64-bit digest of values' bits: a sum of the elements with factors of their index in their value.",
    formula: "y = Σ_x Σ_i factor(⌊i/512⌋)·key(i modulo 512)·bits(x[i]) modulo 2^64, low word first; key(j) = mix(2^64-1-j) modulo 2^32, made odd; factor(b) = mix(b), made odd; mix is SplitMix64's finalizer after adding 0x9E3779B97F4A7C15; i counts row-major, bits are zero-extended",
    source: "multilinear hashing: Lemire and Kaser, \"Strongly universal string hashing is fast\" (2014); mix: Steele et al., \"Fast splittable pseudorandom number generators\" (2014)",
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

/// Elements with the same factor, each with a key of its own.
pub const BLOCK: usize = 512;

/// The keys of a block's elements: odd.
pub static KEYS: [u32; BLOCK] = {
    let mut keys = [0; BLOCK];
    let mut index = 0;
    while index < BLOCK {
        keys[index] = scramble(u64::MAX - index as u64) as u32 | 1;
        index += 1;
    }
    keys
};

/// The factor of a block: odd.
#[inline]
pub const fn factor(block: u64) -> u64 {
    scramble(block) | 1
}

/// The contribution of one element: its bits, zero-extended, and its row-major index. As its factors are odd, no two
/// values of one element have the same.
#[inline]
pub fn mix(bits: u32, index: u64) -> u64 {
    let key = KEYS[(index % BLOCK as u64) as usize];
    (u64::from(bits) * u64::from(key)).wrapping_mul(factor(index / BLOCK as u64))
}

/// SplitMix64's finalizer.
#[inline]
pub const fn scramble(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_odd_and_each_its_own() {
        let mut keys = KEYS.to_vec();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), BLOCK);
        assert!(keys.iter().all(|key| key % 2 == 1));
    }

    /// Two flipped bits, anywhere within some blocks, don't cancel.
    #[test]
    fn pairs_of_flips_are_seen() {
        let places = (0..4 * BLOCK as u64).step_by(7);
        let mut seen = std::collections::HashSet::new();
        for index in places {
            for bit in 0..32 {
                let change = mix(1 << bit, index);
                assert!(seen.insert(change), "the same as another flip: {index}, bit {bit}");
                assert!(!seen.contains(&change.wrapping_neg()), "cancels another flip: {index}, bit {bit}");
            }
        }
    }
}
