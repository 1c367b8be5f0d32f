//! What every C function goes through: refused settings, injected faults, panics, and what the thread is told.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Instant;

use crate::calls;
use crate::code;
use crate::defect;
use crate::fault::{Fault, tell};
use crate::settings;

/// When this process first asked.
pub fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Runs a C function's body: 0, or the code that the thread is then told about.
pub fn call(name: &'static str, body: impl FnOnce() -> Result<(), Fault>) -> i32 {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        settings::check()?;
        calls::list(name)?;
        defect::at_runtime_call(name)?;
        body()
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(fault)) => tell(name, &fault),
        Err(_) => tell(name, &Fault::new(code::INTERNAL, "the emulator failed: its panic stands on stderr")),
    }
}

/// Writes an answer to the place that the caller gave.
///
/// # Safety
/// `place` is null or may be written to.
pub unsafe fn write_out<T>(name: &str, place: *mut T, value: T) -> Result<(), Fault> {
    if place.is_null() {
        return Err(Fault::new(
            code::PARAM_INVALID,
            format!("{name}: null, a place for the answer is needed"),
        ));
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { place.write(value) };
    Ok(())
}

/// The C string behind a pointer; none where it is null.
///
/// # Safety
/// `text` is null or ends in a NUL.
pub unsafe fn text(text: *const std::ffi::c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller's promise.
    Some(unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
