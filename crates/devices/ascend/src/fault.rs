//! The vendor's codes as faults: number, name, text, and what they call for.

use crate::code::{Remedy, lookup};
use crate::ffi::abi::Code;
use toprope_program::{Fault, FaultKind};

/// A failed call as a fault of a device. `during` says what was asked for, `text` is the vendor's own.
pub(crate) fn fault(device: &str, code: Code, during: &str, text: &str) -> Fault {
    let record = lookup(code);
    let vendor = if text.trim().is_empty() { String::new() } else { format!("; CANN says: {}", text.trim()) };
    let message = format!("ACL_ERROR {record}, {during}; {}{vendor}", record.remedy.words());
    let kind = match record.remedy {
        Remedy::Replace => FaultKind::Lost { reason: message, for_good: true },
        _ => FaultKind::Driver { code: i64::from(code), message },
    };
    Fault::new(device, kind)
}

/// The same where memory was asked for.
pub(crate) fn allocation(
    device: &str,
    code: Code,
    bytes: usize,
    available: Option<u64>,
    text: &str,
) -> Fault {
    if matches!(code, 200_000 | 207_001 | 207_018) {
        let kind = FaultKind::OutOfMemory { needed_bytes: bytes as u64, available_bytes: available };
        return Fault::new(device, kind);
    }
    fault(device, code, &format!("asked for {bytes} bytes"), text)
}

/// What is lacking, said before a run.
pub(crate) fn unsupported(device: &str, operator: &str, reason: String) -> Fault {
    let kind = FaultKind::Unsupported { operator: operator.into(), dtype: None, shape: Vec::new(), reason };
    Fault::new(device, kind)
}
