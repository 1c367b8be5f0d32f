//! A failed call: CANN's number and a text that names the place. What a thread was told last is kept for
//! `aclGetRecentErrMsg`, `aclrtPeekAtLastError` and `aclrtGetLastError`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CString, c_char};

use crate::code::{self, After};

/// A failed call or task.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// CANN's number.
    pub code: i32,
    /// What happened, where, and what would mend it.
    pub text: String,
    /// What it leaves behind.
    pub after: After,
}

impl Fault {
    /// A fault with the weight that its code usually has.
    pub fn new(code: i32, text: impl Into<String>) -> Self {
        let after = code::find(code).map_or(After::Passing, |code| code.after);
        Fault { code, text: text.into(), after }
    }
}

struct Told {
    /// The latest last. Some earlier ones are kept: clients print one after further failed calls.
    texts: VecDeque<CString>,
    asynchronous: i32,
}

const KEPT: usize = 16;

thread_local! {
    static TOLD: RefCell<Told> =
        const { RefCell::new(Told { texts: VecDeque::new(), asynchronous: 0 }) };
}

/// Keeps what this thread was told; answers the code.
pub fn tell(function: &str, fault: &Fault) -> i32 {
    let name = code::find(fault.code).map_or("unknown code", |code| code.name);
    let text = format!("{function}: {} ({name}): {}", fault.code, fault.text).replace('\0', " ");
    TOLD.with_borrow_mut(|told| {
        if told.texts.len() == KEPT {
            told.texts.pop_front();
        }
        told.texts.push_back(CString::new(text).unwrap_or_default());
        if code::is_of_device(fault.code) {
            told.asynchronous = fault.code;
        }
    });
    fault.code
}

/// Keeps the code of a runtime call that failed inside an operator's launch, for `aclrtPeekAtLastError`.
pub fn keep(fault: &Fault) {
    TOLD.with_borrow_mut(|told| told.asynchronous = fault.code);
}

/// The text that this thread was told last: valid until some more calls failed.
pub extern "C" fn recent_message() -> *const c_char {
    TOLD.with_borrow(|told| told.texts.back().map_or(c"".as_ptr(), |text| text.as_ptr()))
}

/// The last fault of a device that this thread was told.
pub extern "C" fn peek(_level: i32) -> i32 {
    TOLD.with_borrow(|told| told.asynchronous)
}

/// The same, and forgets it.
pub extern "C" fn take(_level: i32) -> i32 {
    TOLD.with_borrow_mut(|told| std::mem::take(&mut told.asynchronous))
}
