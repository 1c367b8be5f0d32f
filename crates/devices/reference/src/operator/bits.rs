//! Random bits and digests.

use super::tensor;
use half::bf16;
use toprope_program::operator::{Compare, Digest, RandomBits, digest_mix};
use toprope_program::tensor::round;
use toprope_program::{DType, Tensor, philox, shape};

pub(crate) fn random_bits(attributes: &RandomBits, operands: &[Tensor], sizes: &[usize]) -> Vec<Tensor> {
    let key = [operands[0].data[0] as u32, operands[0].data[1] as u32];
    let counter = operands[1].data[0] as u32;
    let count = shape::elements(sizes);
    let mut y = Vec::with_capacity(count + 3);
    let mut block = 0u32;
    while y.len() < count {
        y.extend(philox::block([block, 0, counter, attributes.stream], key).map(f64::from));
        block = block.wrapping_add(1);
    }
    y.truncate(count);
    vec![tensor(DType::U32, sizes, y)]
}

pub(crate) fn digest(_: &Digest, operands: &[Tensor]) -> Vec<Tensor> {
    vec![words(operands.iter().map(digest_words).fold(0, u64::wrapping_add))]
}

/// The digest of a tensor's elements, each rounded to its dtype.
pub(crate) fn digest_words(x: &Tensor) -> u64 {
    let bits = |x_i: f64| match x.dtype {
        DType::F32 => (x_i as f32).to_bits(),
        DType::Bf16 => u32::from(bf16::from_f64(round(DType::Bf16, x_i)).to_bits()),
        DType::I32 => x_i as i64 as i32 as u32,
        DType::U32 => x_i as i64 as u32,
    };
    x.data.iter().enumerate().fold(0, |sum, (i, x)| sum.wrapping_add(digest_mix(bits(*x), i as u64)))
}

/// A 64-bit number as two words, low word first.
pub(crate) fn words(sum: u64) -> Tensor {
    tensor(DType::U32, &[2], vec![f64::from(sum as u32), f64::from((sum >> 32) as u32)])
}

pub(crate) fn compare(_: &Compare, operands: &[Tensor]) -> Vec<Tensor> {
    let (first, second) = operands.split_at(operands.len() / 2);
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    let differing =
        |a: &Tensor, b: &Tensor| a.data.iter().zip(&b.data).filter(|(a, b)| !same(**a, **b)).count();
    let count: usize = first.iter().zip(second).map(|(a, b)| differing(a, b)).sum();
    vec![tensor(DType::F32, &[1], vec![count as f64])]
}
