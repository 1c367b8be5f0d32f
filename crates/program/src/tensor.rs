//! A value on the host, in f64: what oracles compute with and comparisons look at.

use crate::dtype::{DType, Width};
use crate::operator::Operator;
use crate::shape::elements;
use half::bf16;

/// A dense, row-major tensor whose elements are exact in f64, whatever their dtype.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The dtype that it is stored in on a device.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub sizes: Vec<usize>,
    /// The elements.
    pub data: Vec<f64>,
}

/// Computes, for each output of an operator on these operands, the magnitude of each element that its tolerance is
/// relative to (see [`crate::Tolerance`]). Arguments: operator, operands, exact outputs.
pub type MagnitudeFunction = fn(&Operator, &[Tensor], &[Tensor]) -> Vec<Vec<f64>>;

impl Tensor {
    /// All zero.
    pub fn zeros(dtype: DType, sizes: &[usize]) -> Tensor {
        Tensor { dtype, sizes: sizes.to_vec(), data: vec![0.0; elements(sizes)] }
    }

    /// A tensor of these elements, each rounded to the dtype.
    pub fn rounded(dtype: DType, sizes: &[usize], data: impl IntoIterator<Item = f64>) -> Tensor {
        let data: Vec<f64> = data.into_iter().map(|x| round(dtype, x)).collect();
        debug_assert_eq!(data.len(), elements(sizes));
        Tensor { dtype, sizes: sizes.to_vec(), data }
    }

    /// The stored bytes, little-endian.
    pub fn to_bytes(&self, width: Width) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.data.len() * self.dtype.size_bytes(width));
        for &x in &self.data {
            match (self.dtype, width) {
                (DType::F32 | DType::Bf16, Width::Wide) => bytes.extend(x.to_le_bytes()),
                (DType::F32, Width::Native) => bytes.extend((x as f32).to_le_bytes()),
                (DType::Bf16, Width::Native) => bytes.extend(bf16_nearest(x).to_le_bytes()),
                (DType::I32, _) => bytes.extend((x as i64 as i32).to_le_bytes()),
                (DType::U32, _) => bytes.extend((x as i64 as u32).to_le_bytes()),
            }
        }
        bytes
    }

    /// Reads stored bytes; `None` where their number does not fit.
    pub fn from_bytes(dtype: DType, sizes: &[usize], width: Width, bytes: &[u8]) -> Option<Tensor> {
        let size = dtype.size_bytes(width);
        if bytes.len() != elements(sizes).checked_mul(size)? {
            return None;
        }
        let data = bytes
            .chunks_exact(size)
            .map(|chunk| match *chunk {
                [a, b] => bf16::from_le_bytes([a, b]).to_f64(),
                [a, b, c, d] => {
                    let word = [a, b, c, d];
                    match dtype {
                        DType::I32 => f64::from(i32::from_le_bytes(word)),
                        DType::U32 => f64::from(u32::from_le_bytes(word)),
                        DType::F32 | DType::Bf16 => f64::from(f32::from_le_bytes(word)),
                    }
                }
                [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => 0.0,
            })
            .collect();
        Some(Tensor { dtype, sizes: sizes.to_vec(), data })
    }
}

/// The stored bytes of f32 numbers, each rounded to the dtype: as [`Tensor::rounded`] and [`Tensor::to_bytes`] have them,
/// without a detour by f64 where there is a shorter way.
pub fn stored(dtype: DType, width: Width, numbers: &[f32]) -> Vec<u8> {
    match (dtype, width) {
        (DType::F32, Width::Native) => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        (DType::Bf16, Width::Native) => {
            numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
        }
        _ => {
            let numbers_f64 = numbers.iter().map(|x| f64::from(*x));
            Tensor::rounded(dtype, &[numbers.len()], numbers_f64).to_bytes(width)
        }
    }
}

/// A number rounded to nearest even in a dtype; integers are truncated as a store does.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::Bf16 => bf16_nearest(x).to_f64(),
        DType::I32 => f64::from(x as i64 as i32),
        DType::U32 => f64::from(x as i64 as u32),
    }
}

/// The nearest bf16, ties to even. By way of an f32 rounded to odd, so that the second rounding decides alone (Boldo and
/// Melquiond, "Emulation of FMA and correctly rounded sums", 2008, theorem 1): `half`'s own conversion looks at the upper 32
/// bits of an f64 only and takes what lies just above a tie for the tie.
fn bf16_nearest(x: f64) -> bf16 {
    let nearest = x as f32;
    if x.is_nan() || f64::from(nearest) == x {
        return bf16::from_f32(nearest);
    }
    let towards_zero = nearest.to_bits() - u32::from(f64::from(nearest).abs() > x.abs());
    bf16::from_f32(f32::from_bits(towards_zero | 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Halfway between 1 and its successor, the worst case of one rounding to nearest.
    #[test]
    fn the_unit_roundoff_is_half_the_distance_of_one_and_its_successor() {
        for dtype in [DType::F32, DType::Bf16] {
            let unit = dtype.unit_roundoff();
            assert_eq!(round(dtype, 1.0 + unit), 1.0);
            assert_eq!(round(dtype, 1.0 + unit * 1.01), 1.0 + 2.0 * unit);
        }
    }

    #[test]
    fn f32_numbers_are_stored_as_tensors_are() {
        let specials =
            [0.0, -0.0, f32::NAN, f32::INFINITY, f32::MIN, f32::MIN_POSITIVE, 1e-45, 1.0 + 2f32.powi(-8)];
        let numbers: Vec<f32> =
            (0..0x1_0000u32).map(|x| f32::from_bits(x * 0xFFF1)).chain(specials).collect();
        for dtype in [DType::F32, DType::Bf16] {
            for width in [Width::Native, Width::Wide] {
                let tensor = Tensor::rounded(dtype, &[numbers.len()], numbers.iter().map(|x| f64::from(*x)));
                let (have, want) = (stored(dtype, width, &numbers), tensor.to_bytes(width));
                let have = Tensor::from_bytes(dtype, &[numbers.len()], width, &have).unwrap();
                let want = Tensor::from_bytes(dtype, &[numbers.len()], width, &want).unwrap();
                for ((have, want), x) in have.data.iter().zip(&want.data).zip(&numbers) {
                    assert!(
                        have.to_bits() == want.to_bits() || have.is_nan() && want.is_nan(),
                        "{dtype} of {x:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn bf16_is_rounded_once_to_nearest_even() {
        let step = 2f64.powi(-7);
        for (x, want) in [
            (1.0 + step / 2.0, 1.0),
            (1.0 + step * 1.5, 1.0 + 2.0 * step),
            (1.0 + step / 2.0 + 2f64.powi(-23), 1.0 + step),
            (1.0 + step / 2.0 + 2f64.powi(-50), 1.0 + step),
            (1.0 + step * 1.5 - 2f64.powi(-50), 1.0 + step),
            (-1.0 - step / 2.0 - 2f64.powi(-50), -1.0 - step),
            (2f64.powi(-134), 0.0),
            (2f64.powi(-134) * (1.0 + 2f64.powi(-40)), 2f64.powi(-133)),
            (1e-300, 0.0),
            (1e300, f64::INFINITY),
            (f64::from(f32::MAX), f64::INFINITY),
            (f64::NEG_INFINITY, f64::NEG_INFINITY),
        ] {
            assert_eq!(round(DType::Bf16, x), want, "{x:e}");
        }
        assert!(round(DType::Bf16, f64::NAN).is_nan());
        assert!(round(DType::Bf16, -1e-300).is_sign_negative());
    }
}
