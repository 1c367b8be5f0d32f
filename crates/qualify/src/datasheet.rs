//! What the vendor promises of a chip, as it is given.

use serde::Serialize;
use std::str::FromStr;
use toprope_program::DType;

/// Peaks of a chip; what was not given is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Datasheet {
    /// Operations a second in f32.
    pub f32_flops_per_second: Option<f64>,
    /// Operations a second in bf16.
    pub bf16_flops_per_second: Option<f64>,
    /// Bytes a second to and from memory.
    pub bytes_per_second: Option<f64>,
}

/// What is wrong with a datasheet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatasheetError {
    /// A part without a number.
    #[error("`{0}` is no `name=number`: bf16=400e12,f32=67e12,bandwidth=3.3e12 is a datasheet")]
    Form(String),
    /// A name that means nothing.
    #[error(
        "`{0}` is in no datasheet: there is f32 and bf16 (operations a second) and bandwidth (bytes a second)"
    )]
    Name(String),
    /// A number that no chip has.
    #[error("`{0}`: a number above 0 is wanted, in operations or bytes a second, such as 400e12")]
    Number(String),
}

impl FromStr for Datasheet {
    type Err = DatasheetError;

    fn from_str(text: &str) -> Result<Datasheet, DatasheetError> {
        let mut datasheet = Datasheet::default();
        for part in text.split(',') {
            let (name, number) =
                part.split_once('=').ok_or_else(|| DatasheetError::Form(part.trim().to_string()))?;
            let number = number.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
            let number = number.ok_or_else(|| DatasheetError::Number(part.trim().to_string()))?;
            match name.trim() {
                "f32" => datasheet.f32_flops_per_second = Some(number),
                "bf16" => datasheet.bf16_flops_per_second = Some(number),
                "bandwidth" => datasheet.bytes_per_second = Some(number),
                other => return Err(DatasheetError::Name(other.to_string())),
            }
        }
        Ok(datasheet)
    }
}

impl Datasheet {
    /// Seconds that so much work takes at these peaks, as far as they are given: the longer of arithmetic and memory.
    pub fn seconds(&self, dtype: Option<DType>, flops: u64, bytes: u64) -> Option<f64> {
        let peak = match dtype {
            Some(DType::Bf16) => self.bf16_flops_per_second,
            _ => self.f32_flops_per_second,
        };
        let arithmetic = peak.map(|peak| flops as f64 / peak);
        let memory = self.bytes_per_second.map(|peak| bytes as f64 / peak);
        match (arithmetic, memory) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datasheet_is_read_and_what_is_none_is_said() {
        let read: Datasheet = "bf16=400e12, bandwidth=1.6e12".parse().unwrap();
        assert_eq!((read.bf16_flops_per_second, read.f32_flops_per_second), (Some(4e14), None));
        // Bound by memory: 1.6 MB at 1.6 TB/s.
        assert_eq!(read.seconds(Some(DType::Bf16), 4_000_000, 1_600_000), Some(1e-6));
        assert_eq!(Datasheet::default().seconds(Some(DType::F32), 1, 1), None);
        let error = |text: &str| text.parse::<Datasheet>().unwrap_err();
        assert!(matches!(error("bf16"), DatasheetError::Form(_)));
        assert!(matches!(error("fp8=1"), DatasheetError::Name(_)));
        for text in ["f32=-1", "f32=nan", "f32=x", "f32=inf", "f32="] {
            assert!(matches!(error(text), DatasheetError::Number(_)), "{text}");
        }
    }
}
