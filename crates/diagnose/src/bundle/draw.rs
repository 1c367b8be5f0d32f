//! Operands from a seed, the same numbers in Rust and in a few lines of Python: SplitMix64 (Steele, Lea and Flood, "Fast
//! splittable pseudorandom number generators", 2014), its upper 24 bits as a multiple of 2^-22 in [-2, 2): exact in f32.

/// Number `index` of operand `operand`; `positive` gives its size, and never less than 1/16.
pub fn draw(seed: u64, operand: u64, index: u64, positive: bool) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = seed.wrapping_add((operand << 40).wrapping_add(index).wrapping_add(1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let x = ((z >> 40) as f64 - 8_388_608.0) / 4_194_304.0;
    if positive { x.abs().max(0.0625) } else { x }
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn numbers_are_exact_in_f32_and_centred() {
        let numbers: Vec<f64> = (0..4096).map(|i| draw(7, 1, i, false)).collect();
        assert!(numbers.iter().all(|x| f64::from(*x as f32) == *x && (-2.0..2.0).contains(x)));
        assert!((numbers.iter().sum::<f64>() / 4096.0).abs() < 0.1);
        assert!((0..99).all(|i| draw(7, 0, i, true) >= 0.0625));
        assert_ne!(draw(7, 0, 0, false), draw(7, 1, 0, false));
    }
}
