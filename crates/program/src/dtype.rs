//! Element types and how wide each is stored.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16: the upper half of an f32, rounded to nearest even on store.
    Bf16,
    /// 32-bit two's complement.
    I32,
    /// 32-bit unsigned.
    U32,
}

/// How a device stores float values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Width {
    /// As declared: every value is rounded to its dtype.
    #[default]
    Native,
    /// The reference device's wide mode: every float value is an f64 and nothing is rounded between operators.
    Wide,
}

impl DType {
    /// All dtypes, in the order of the contract.
    pub const ALL: [DType; 4] = [DType::F32, DType::Bf16, DType::I32, DType::U32];

    /// Bytes of one stored element.
    pub fn size_bytes(self, width: Width) -> usize {
        match (self, width) {
            (DType::F32 | DType::Bf16, Width::Wide) => 8,
            (DType::F32 | DType::I32 | DType::U32, _) => 4,
            (DType::Bf16, Width::Native) => 2,
        }
    }

    /// Whether values of this type are real numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16)
    }

    /// The unit roundoff: the largest relative error of one rounding to nearest (0 for integers).
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => (2f64).powi(-24),
            DType::Bf16 => (2f64).powi(-8),
            DType::I32 | DType::U32 => 0.0,
        }
    }

    /// The name in the printed form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
