//! Numbers that are none: NaN and infinities, counted on the bits as they are stored.

use crate::chunks::in_chunks;
use crate::error::FormatError;
use crate::stored::Stored;
use crate::tensors::{TensorRecord, Tensors};
use toprope_world::{FileError, FileReader};

/// How many numbers of a tensor are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// NaN.
    pub nan: u64,
    /// Infinities of either sign.
    pub infinite: u64,
}

impl NonFinite {
    /// Whether there is any.
    pub fn any(self) -> bool {
        self.nan > 0 || self.infinite > 0
    }

    pub(crate) fn add(&mut self, other: NonFinite) {
        self.nan += other.nan;
        self.infinite += other.infinite;
    }

    /// Counts numbers by the bits of exponent and mantissa: all exponent bits set is an infinity where no other is.
    fn count<const N: usize>(bytes: &[u8], exponent: u64, mantissa: u64) -> NonFinite {
        let mut counted = NonFinite::default();
        for number in bytes.chunks_exact(N) {
            let mut word = [0; 8];
            word[..N].copy_from_slice(number);
            let bits = u64::from_le_bytes(word);
            if bits & exponent == exponent {
                if bits & mantissa == 0 {
                    counted.infinite += 1;
                } else {
                    counted.nan += 1;
                }
            }
        }
        counted
    }

    fn nan(count: usize) -> NonFinite {
        NonFinite { nan: count as u64, infinite: 0 }
    }

    /// Those among whole blocks of a format; integers have none.
    fn of(stored: &Stored, bytes: &[u8]) -> NonFinite {
        let nan = |is: fn(u8) -> bool| NonFinite::nan(bytes.iter().filter(|byte| is(**byte)).count());
        match stored {
            Stored::F64 => NonFinite::count::<8>(bytes, 0x7ff0_0000_0000_0000, 0x000f_ffff_ffff_ffff),
            Stored::F32 => NonFinite::count::<4>(bytes, 0x7f80_0000, 0x007f_ffff),
            Stored::F16 => NonFinite::count::<2>(bytes, 0x7c00, 0x03ff),
            Stored::Bf16 => NonFinite::count::<2>(bytes, 0x7f80, 0x007f),
            Stored::F8E4m3 => nan(|byte| byte & 0x7f == 0x7f),
            Stored::Other(name, ..) => match name.as_str() {
                "C64" => NonFinite::count::<4>(bytes, 0x7f80_0000, 0x007f_ffff),
                "C128" => NonFinite::count::<8>(bytes, 0x7ff0_0000_0000_0000, 0x000f_ffff_ffff_ffff),
                "F8_E5M2" => NonFinite::count::<1>(bytes, 0x7c, 0x03),
                "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => nan(|byte| byte == 0x80),
                "F8_E8M0" => nan(|byte| byte == 0xff),
                _ => NonFinite::default(),
            },
            blocks => {
                let mut numbers = Vec::new();
                blocks.decode(bytes, &mut numbers);
                let infinite = numbers.iter().filter(|x| x.is_infinite()).count() as u64;
                NonFinite { nan: numbers.iter().filter(|x| x.is_nan()).count() as u64, infinite }
            }
        }
    }
}

impl TensorRecord {
    /// Counts the numbers of this tensor that are none in the file that it lies in.
    pub(crate) fn non_finite(&self, reader: &dyn FileReader) -> Result<NonFinite, FileError> {
        let mut counted = NonFinite::default();
        in_chunks(reader, self.offset, self.bytes, self.stored.block().1 as u64, |bytes| {
            counted.add(NonFinite::of(&self.stored, bytes));
        })?;
        Ok(counted)
    }
}

impl Tensors {
    /// Counts the numbers of a tensor that are none.
    ///
    /// # Errors
    /// There is no such tensor, or the file cannot be read.
    pub fn non_finite(&self, name: &str) -> Result<NonFinite, FormatError> {
        let (record, reader) = self.place(name)?;
        Ok(record.non_finite(reader)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_format_of_floats_is_counted() {
        let f32s = [1.0, f32::NAN, -f32::INFINITY, f32::MAX, 0.0, f32::NAN];
        let want = NonFinite { nan: 2, infinite: 1 };
        let bytes = |each: fn(f32) -> Vec<u8>| f32s.iter().flat_map(|x| each(*x)).collect::<Vec<u8>>();
        assert_eq!(NonFinite::of(&Stored::F32, &bytes(|x| x.to_le_bytes().to_vec())), want);
        assert_eq!(NonFinite::of(&Stored::F64, &bytes(|x| f64::from(x).to_le_bytes().to_vec())), want);
        let rounded = NonFinite { nan: 2, infinite: 2 };
        assert_eq!(NonFinite::of(&Stored::F16, &bytes(|x| f16::from_f32(x).to_le_bytes().to_vec())), rounded);
        assert_eq!(
            NonFinite::of(&Stored::Bf16, &bytes(|x| bf16::from_f32(x).to_le_bytes().to_vec())),
            rounded
        );
        let other = |name: &str, bytes: &[u8]| NonFinite::of(&Stored::Other(name.into(), 1, 1), bytes);
        assert_eq!(NonFinite::of(&Stored::F8E4m3, &[0x7f, 0xff, 0x7e, 0]), NonFinite::nan(2));
        assert_eq!(other("F8_E5M2", &[0x7c, 0xfc, 0x7d, 0x7b]), NonFinite { nan: 1, infinite: 2 });
        assert_eq!(other("F8_E4M3FNUZ", &[0x80, 0x7f]), NonFinite::nan(1));
        assert_eq!(other("I32", &[0xff; 8]), NonFinite::default());
        // A scale that is infinite makes its whole block infinite or NaN.
        let mut block = vec![0u8; 34];
        block[..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        block[2] = 1;
        assert_eq!(NonFinite::of(&Stored::Q8_0, &block), NonFinite { nan: 31, infinite: 1 });
    }
}
