//! One taxonomy of what goes wrong on a device, everywhere: device, guard, journal, reports, metrics.

use crate::dtype::DType;
use crate::program::Range;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where in a program something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The range.
    pub range: Range,
    /// Index of the instruction in its range.
    pub index: usize,
    /// The operator's name.
    pub operator: String,
    /// The part of the model.
    pub part: String,
}

/// The nine classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum FaultKind {
    /// The device or its process is gone.
    Lost {
        /// What was seen: an exit status, a signal, a closed pipe.
        reason: String,
        /// Whether its own software says that it is to be replaced: no new process mends that.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        for_good: bool,
    },
    /// A deadline passed.
    Hang {
        /// How long was waited.
        waited_ms: u64,
    },
    /// A typed error of the vendor's software.
    Driver {
        /// The vendor's code.
        code: i64,
        /// The vendor's text.
        message: String,
    },
    /// Memory did not suffice.
    OutOfMemory {
        /// Bytes asked for; 0 where that is not known.
        needed_bytes: u64,
        /// Bytes that were there, where known.
        available_bytes: Option<u64>,
    },
    /// The device lacks an operator, a dtype or a shape; said before a run starts.
    Unsupported {
        /// The operator's name.
        operator: String,
        /// The dtype in question.
        dtype: Option<DType>,
        /// The shape in question.
        shape: Vec<usize>,
        /// What is missing, in words.
        reason: String,
    },
    /// A NaN or infinity where there must be none.
    NonFinite {
        /// The value's name.
        value: String,
    },
    /// An invariant or a shadow check failed: silent data corruption.
    Mismatch {
        /// The operator's name.
        operator: String,
        /// The distance seen.
        error: f64,
        /// The distance allowed.
        tolerance: f64,
    },
    /// Loss or gradient norm jumped.
    Spike {
        /// The metric's name.
        metric: String,
        /// Its value.
        value: f64,
        /// What its history allows.
        limit: f64,
    },
    /// Throughput under its own history.
    Slow {
        /// Time of the step over its median.
        factor: f64,
    },
}

impl FaultKind {
    /// The class.
    pub fn class(&self) -> FaultClass {
        match self {
            FaultKind::Lost { .. } => FaultClass::Lost,
            FaultKind::Hang { .. } => FaultClass::Hang,
            FaultKind::Driver { .. } => FaultClass::Driver,
            FaultKind::OutOfMemory { .. } => FaultClass::OutOfMemory,
            FaultKind::Unsupported { .. } => FaultClass::Unsupported,
            FaultKind::NonFinite { .. } => FaultClass::NonFinite,
            FaultKind::Mismatch { .. } => FaultClass::Mismatch,
            FaultKind::Spike { .. } => FaultClass::Spike,
            FaultKind::Slow { .. } => FaultClass::Slow,
        }
    }
}

/// The classes without their particulars: what policies, journals and metrics are keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultClass {
    /// The device or its process is gone.
    Lost,
    /// A deadline passed.
    Hang,
    /// A typed error of the vendor's software.
    Driver,
    /// Memory did not suffice.
    OutOfMemory,
    /// The device lacks something.
    Unsupported,
    /// A NaN or infinity.
    NonFinite,
    /// Silent data corruption.
    Mismatch,
    /// Loss or gradient norm jumped.
    Spike,
    /// Throughput under its own history.
    Slow,
}

impl FaultClass {
    /// All of them.
    pub const ALL: [FaultClass; 9] = [
        FaultClass::Lost,
        FaultClass::Hang,
        FaultClass::Driver,
        FaultClass::OutOfMemory,
        FaultClass::Unsupported,
        FaultClass::NonFinite,
        FaultClass::Mismatch,
        FaultClass::Spike,
        FaultClass::Slow,
    ];

    /// The name in recipes, journals and metrics.
    pub fn name(self) -> &'static str {
        match self {
            FaultClass::Lost => "lost",
            FaultClass::Hang => "hang",
            FaultClass::Driver => "driver",
            FaultClass::OutOfMemory => "out_of_memory",
            FaultClass::Unsupported => "unsupported",
            FaultClass::NonFinite => "non_finite",
            FaultClass::Mismatch => "mismatch",
            FaultClass::Spike => "spike",
            FaultClass::Slow => "slow",
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::Lost { reason, .. } => write!(f, "lost: {reason}"),
            FaultKind::Hang { waited_ms } => write!(f, "hang: no answer within {waited_ms} ms"),
            FaultKind::Driver { code, message } => write!(f, "driver error {code}: {message}"),
            FaultKind::OutOfMemory { needed_bytes, available_bytes } => {
                match needed_bytes {
                    0 => f.write_str("out of memory: an unknown number of bytes needed")?,
                    bytes => write!(f, "out of memory: {bytes} bytes needed")?,
                }
                available_bytes.map_or(Ok(()), |there| write!(f, ", {there} there"))
            }
            FaultKind::Unsupported { operator, dtype, shape, reason } => {
                write!(f, "unsupported: `{operator}`")?;
                if let Some(dtype) = dtype {
                    write!(f, " {dtype}")?;
                }
                if !shape.is_empty() {
                    write!(f, " {shape:?}")?;
                }
                write!(f, ": {reason}")
            }
            FaultKind::NonFinite { value } => write!(f, "`{value}` is not finite"),
            FaultKind::Mismatch { operator, error, tolerance } => {
                write!(f, "mismatch in `{operator}`: error {error:.3e}, tolerance {tolerance:.3e}")
            }
            FaultKind::Spike { metric, value, limit } => {
                write!(f, "spike: {metric} {value:.6} above {limit:.6}")
            }
            FaultKind::Slow { factor } => write!(f, "slow: {factor:.2} times its median"),
        }
    }
}

/// What went wrong, on which device, in which step, at which operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub struct Fault {
    /// The class with its particulars.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// The device's name.
    pub device: String,
    /// The step, where one was under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The operator, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

impl Fault {
    /// A fault of a device, with no step or place yet.
    pub fn new(device: impl Into<String>, kind: FaultKind) -> Fault {
        Fault { kind, device: device.into(), step: None, place: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.kind)?;
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(place) = &self.place {
            write!(f, ", {} {} `{}`", place.range.name(), place.index, place.operator)?;
            if !place.part.is_empty() {
                write!(f, " in {}", place.part)?;
            }
        }
        Ok(())
    }
}
