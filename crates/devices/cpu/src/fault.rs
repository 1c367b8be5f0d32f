//! This device's own failures as faults of the contract.

use std::any::Any;
use toprope_program::{DType, Fault, FaultKind, Instruction, Place, Range};

/// The name that opens this device.
pub(crate) const DEVICE: &str = "cpu";

/// The code of a kernel that panicked; there are no others.
const PANIC: i64 = 1;

/// A fault of this device.
pub(crate) fn fault(kind: FaultKind) -> Fault {
    Fault::new(DEVICE, kind)
}

/// Memory that could not be had.
pub(crate) fn out_of_memory(needed_bytes: usize, available_bytes: Option<u64>) -> Fault {
    fault(FaultKind::OutOfMemory { needed_bytes: needed_bytes as u64, available_bytes })
}

/// Something that this device lacks.
pub(crate) fn unsupported(
    operator: &str,
    dtype: Option<DType>,
    shape: Vec<usize>,
    reason: impl Into<String>,
) -> Fault {
    fault(FaultKind::Unsupported { operator: operator.into(), dtype, shape, reason: reason.into() })
}

/// Where an instruction stands.
pub(crate) fn place(range: Range, index: usize, instruction: &Instruction) -> Place {
    Place { range, index, operator: instruction.operator.name().into(), part: instruction.part.clone() }
}

/// A panic of a kernel as a driver's error.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = format!("a kernel panicked: {}", text.unwrap_or("without a message"));
    fault(FaultKind::Driver { code: PANIC, message })
}
