//! Types and numbers of the C interface.

use std::ffi::{c_int, c_void};

/// What every call answers; 0 is success.
pub(crate) type Code = c_int;

/// Any of CANN's opaque objects.
pub(crate) type Handle = *mut c_void;

/// Element types of tensors and scalars, with the vendor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub(crate) enum Element {
    F32 = 0,
    I32 = 3,
    I16 = 6,
    I64 = 9,
    Bool = 12,
    Bf16 = 27,
}

impl Element {
    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Element::Bool => 1,
            Element::I16 | Element::Bf16 => 2,
            Element::F32 | Element::I32 => 4,
            Element::I64 => 8,
        }
    }

    /// Whether it is a real number.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Element::F32 | Element::Bf16)
    }
}

/// Tensors without a layout of their own.
pub(crate) const FORMAT_ND: c_int = 2;

/// Directions of copies.
pub(crate) const HOST_TO_DEVICE: c_int = 1;
pub(crate) const DEVICE_TO_HOST: c_int = 2;

/// Success.
pub(crate) const SUCCESS: Code = 0;
/// A second `aclInit` of a process.
pub(crate) const REPEAT_INITIALIZE: Code = 100_002;
/// What was queued is dropped.
pub(crate) const DEVICE_TASK_ABORT: Code = 107_022;
/// A wait's time is over; the work may go on.
pub(crate) const STREAM_SYNC_TIMEOUT: Code = 507_046;
/// The driver failed; also what a device that is lost answers to every call.
pub(crate) const DRV_INTERNAL_ERROR: Code = 507_899;
/// An operator met an error of the runtime; the true code is the thread's last.
pub(crate) const ACLNN_RUNTIME_ERROR: Code = 361_001;
/// A null where there must be none; also what we answer where an object could not be made.
pub(crate) const ACLNN_PARAM_NULLPTR: Code = 161_001;
/// Arguments that an operator does not take.
pub(crate) const ACLNN_PARAM_INVALID: Code = 161_002;
