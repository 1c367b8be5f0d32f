//! A shuffle that stores nothing: a bijection of 0..n drawn by a seed and an epoch.

/// A pseudorandom bijection of `0..len`: a Feistel network (Luby and Rackoff, 1988) over the next power of four, walked
/// until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), in under four walks on
/// average.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: u64,
}

/// Four make a Feistel network indistinguishable from random for its size; the rest is for the tiny ones.
const ROUNDS: u64 = 8;

impl Permutation {
    /// The bijection of `0..len` for a seed and an epoch.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), key: mix(mix(seed) ^ epoch) }
    }

    /// Where `index` goes; both are below `len`.
    ///
    /// # Panics
    /// Where `index` is not below `len`, which is a mistake of the caller.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "index {index} of a permutation of {}", self.len);
        let mut value = self.round_trip(index);
        while value >= self.len {
            value = self.round_trip(value);
        }
        value
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let drawn = mix(self.key ^ mix((round << 40) ^ right)) & mask;
            (left, right) = (right, left ^ drawn);
        }
        (left << self.half_bits) | right
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::Permutation;

    #[test]
    fn each_value_once_for_every_small_length() {
        for len in 1..=300_u64 {
            for epoch in 0..3 {
                let permutation = Permutation::new(len, 7, epoch);
                let mut seen = vec![false; len as usize];
                for index in 0..len {
                    let value = permutation.at(index) as usize;
                    assert!(!seen[value], "{value} twice of {len}");
                    seen[value] = true;
                }
            }
        }
    }

    #[test]
    fn each_value_once_of_a_length_that_is_no_power() {
        let len = 100_003_u64;
        let permutation = Permutation::new(len, 1, 2);
        let mut seen = vec![false; len as usize];
        (0..len).for_each(|index| seen[permutation.at(index) as usize] = true);
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn the_largest_lengths_work() {
        for len in [u64::MAX >> 1, (1 << 62) + 1, 1 << 62] {
            assert!(Permutation::new(len, 3, 4).at(len - 1) < len);
        }
    }

    #[test]
    fn seeds_and_epochs_give_other_orders_that_look_random() {
        let order = |seed, epoch| -> Vec<u64> {
            let permutation = Permutation::new(1000, seed, epoch);
            (0..1000).map(|index| permutation.at(index)).collect()
        };
        assert_eq!(order(5, 0), order(5, 0));
        assert_ne!(order(5, 0), order(5, 1));
        assert_ne!(order(5, 0), order(6, 0));
        // Of a random order few values stay in place (1 expected) and neighbours are rarely neighbours (2 expected).
        let values = order(5, 0);
        assert!(values.iter().enumerate().filter(|(index, value)| *index as u64 == **value).count() < 10);
        assert!(values.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count() < 15);
        // Of two values each order comes about as often.
        let swapped = (0..400).filter(|epoch| Permutation::new(2, 9, *epoch).at(0) == 1).count();
        assert!((120..280).contains(&swapped), "{swapped} of 400");
    }
}
