//! How numbers are stored, and what they are in f32.

use half::{bf16, f16};

/// How the elements of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the format of that name
pub enum Stored {
    F64,
    F32,
    F16,
    Bf16,
    F8E4m3,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
    /// A format that can be listed and not read: its name, the elements of a block and the block's bytes.
    Other(String, usize, usize),
}

/// Elements of a block of the K formats.
const SUPER: usize = 256;

impl Stored {
    /// Its name as published.
    pub fn name(&self) -> &str {
        match self {
            Stored::F64 => "F64",
            Stored::F32 => "F32",
            Stored::F16 => "F16",
            Stored::Bf16 => "BF16",
            Stored::F8E4m3 => "F8_E4M3",
            Stored::Q8_0 => "Q8_0",
            Stored::Q4_0 => "Q4_0",
            Stored::Q4_1 => "Q4_1",
            Stored::Q5_0 => "Q5_0",
            Stored::Q5_1 => "Q5_1",
            Stored::Q4K => "Q4_K",
            Stored::Q5K => "Q5_K",
            Stored::Q6K => "Q6_K",
            Stored::Other(name, ..) => name,
        }
    }

    /// Whether its elements can be read as f32.
    pub fn is_readable(&self) -> bool {
        !matches!(self, Stored::Other(..))
    }

    /// The formats that can be read, for messages.
    pub fn readable() -> String {
        "F64, F32, F16, BF16, F8_E4M3, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K".into()
    }

    /// Elements that are stored together, and their bytes.
    pub fn block(&self) -> (usize, usize) {
        match self {
            Stored::F64 => (1, 8),
            Stored::F32 => (1, 4),
            Stored::F16 | Stored::Bf16 => (1, 2),
            Stored::F8E4m3 => (1, 1),
            Stored::Q8_0 => (32, 34),
            Stored::Q4_0 => (32, 18),
            Stored::Q4_1 => (32, 20),
            Stored::Q5_0 => (32, 22),
            Stored::Q5_1 => (32, 24),
            Stored::Q4K => (SUPER, 144),
            Stored::Q5K => (SUPER, 176),
            Stored::Q6K => (SUPER, 210),
            Stored::Other(_, elements, bytes) => (*elements, *bytes),
        }
    }

    /// Appends the elements of whole blocks. The formats with blocks are ggml's: a scale (and a minimum, or scales of
    /// parts) in f16 for 32 or 256 small integers.
    pub(crate) fn decode(&self, bytes: &[u8], into: &mut Vec<f32>) {
        let (_, size) = self.block();
        for block in bytes.chunks_exact(size.max(1)) {
            match self {
                Stored::F64 => into.push(f64::from_le_bytes(array(block, 0)) as f32),
                Stored::F32 => into.push(f32::from_le_bytes(array(block, 0))),
                Stored::F16 => into.push(half(block, 0)),
                Stored::Bf16 => into.push(bf16::from_le_bytes(array(block, 0)).to_f32()),
                Stored::F8E4m3 => into.extend(block.iter().map(|byte| e4m3(*byte))),
                Stored::Q8_0 => {
                    let scale = half(block, 0);
                    into.extend(block[2..].iter().map(|byte| scale * f32::from(*byte as i8)));
                }
                Stored::Q4_0 => {
                    let scale = half(block, 0);
                    nibbles(&block[2..], into, |_, q| scale * (f32::from(q) - 8.0));
                }
                Stored::Q4_1 => {
                    let (scale, least) = (half(block, 0), half(block, 2));
                    nibbles(&block[4..], into, |_, q| scale * f32::from(q) + least);
                }
                Stored::Q5_0 => {
                    let (scale, fifth) = (half(block, 0), u32::from_le_bytes(array(block, 2)));
                    nibbles(&block[6..], into, |at, q| scale * (f32::from(with_fifth(q, fifth, at)) - 16.0));
                }
                Stored::Q5_1 => {
                    let (scale, least) = (half(block, 0), half(block, 2));
                    let fifth = u32::from_le_bytes(array(block, 4));
                    nibbles(&block[8..], into, |at, q| scale * f32::from(with_fifth(q, fifth, at)) + least);
                }
                Stored::Q4K => four_bits(block, &block[16..], None, into),
                Stored::Q5K => four_bits(block, &block[48..], Some(&block[16..48]), into),
                Stored::Q6K => six_bits(block, into),
                Stored::Other(..) => {}
            }
        }
    }
}

/// Bytes from `at` on.
fn array<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(array(block, at)).to_f32()
}

/// 16 bytes hold 32 elements: the low halves are the first 16, the high halves the others.
fn nibbles(bytes: &[u8], into: &mut Vec<f32>, element: impl Fn(usize, u8) -> f32) {
    into.extend(bytes.iter().enumerate().map(|(at, byte)| element(at, byte & 15)));
    into.extend(bytes.iter().enumerate().map(|(at, byte)| element(at + 16, byte >> 4)));
}

fn with_fifth(q: u8, fifth: u32, at: usize) -> u8 {
    q | (((fifth >> at) & 1) as u8) << 4
}

/// Scale and minimum of part `j` of 8 in a K block, six bits each, packed into 12 bytes.
fn scale_and_least(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, least) = match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4),
    };
    (f32::from(scale), f32::from(least))
}

/// Q4_K and Q5_K: eight parts of 32 elements, each with a scale and a minimum; 32 bytes hold two parts. Q5_K's fifth bits
/// lie apart, a bit a part in each of 32 bytes.
fn four_bits(block: &[u8], low: &[u8], high: Option<&[u8]>, into: &mut Vec<f32>) {
    let (scales, leasts, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for part in 0..8 {
        let (scale, least) = scale_and_least(packed, part);
        let (scale, least) = (scales * scale, leasts * least);
        let bytes = &low[part / 2 * 32..part / 2 * 32 + 32];
        into.extend(bytes.iter().enumerate().map(|(at, byte)| {
            let low = if part % 2 == 0 { byte & 15 } else { byte >> 4 };
            let fifth = high.map_or(0, |high| (high[at] >> part & 1) << 4);
            scale * f32::from(low | fifth) - least
        }));
    }
}

/// Q6_K: 16 parts of 16 elements, each with a signed scale; four low bits and two high ones lie apart.
fn six_bits(block: &[u8], into: &mut Vec<f32>) {
    let scale = half(block, 208);
    for element in 0..SUPER {
        let (side, within) = (element / 128, element % 128);
        let (quarter, at) = (within / 32, within % 32);
        let low = block[side * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
        let high = block[128 + side * 32 + at] >> (2 * quarter) & 3;
        let part = f32::from(block[192 + element / 16] as i8);
        into.push(scale * part * (f32::from(low | high << 4) - 32.0));
    }
}

/// The 8-bit float with 4 bits of exponent, no infinities, and NaN where all other bits are set (arXiv 2209.05433).
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 128 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(stored: &Stored, bytes: &[u8]) -> Vec<f32> {
        let mut numbers = Vec::new();
        stored.decode(bytes, &mut numbers);
        numbers
    }

    #[test]
    fn eight_bit_floats() {
        for (byte, want) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xc0, -2.0),
        ] {
            assert_eq!(decoded(&Stored::F8E4m3, &[byte]), [want], "{byte:#x}");
        }
        assert!(decoded(&Stored::F8E4m3, &[0xff])[0].is_nan());
    }

    #[test]
    fn every_block_gives_its_elements() {
        use Stored::*;
        for stored in [F64, F32, F16, Bf16, F8E4m3, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K] {
            let (elements, bytes) = stored.block();
            let numbers = decoded(&stored, &vec![0; 3 * bytes]);
            assert_eq!(numbers.len(), 3 * elements, "{}", stored.name());
            assert!(numbers.iter().all(|x| *x == 0.0), "{}", stored.name());
        }
    }
}
