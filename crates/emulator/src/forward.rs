//! What the three libraries with CANN's names are made of: an exported symbol for each function, which jumps through a
//! slot to the function of that name in `libcann_emulator.so`. Included by each of them; no part of the emulator itself.
//!
//! A jump leaves registers and stack as they are, so a forwarder need not know its function's arguments. The slots are
//! filled when the library is loaded, from the file `libcann_emulator.so` beside it (or where the loader finds it).

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What a slot holds until the emulator was found.
extern "C" fn absent() -> i32 {
    eprintln!(
        "cann-emulator: libcann_emulator.so was not found beside this library: build the package cann-emulator"
    );
    std::process::abort()
}

/// One slot per exported function.
pub struct Slot(AtomicPtr<c_void>);

impl Slot {
    /// A slot that says what is missing.
    pub const fn new() -> Self {
        Slot(AtomicPtr::new(absent as *mut c_void))
    }
}

/// Where this library lies.
fn own_folder() -> Option<PathBuf> {
    // SAFETY: an all-zero Dl_info is valid, and dladdr only writes to it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is that of a function of this library.
    if unsafe { libc::dladdr(absent as *const c_void, &mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gave a C string that lives as long as the library.
    let file = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(file.to_str().ok()?).parent()?.to_path_buf())
}

fn open() -> Option<extern "C" fn(*const c_char) -> *mut c_void> {
    let beside = own_folder().map(|folder| folder.join("libcann_emulator.so"));
    for file in [beside, Some(PathBuf::from("libcann_emulator.so"))].into_iter().flatten() {
        let Ok(name) = std::ffi::CString::new(file.to_string_lossy().as_bytes()) else { continue };
        // SAFETY: loading runs the emulator's initialisers, which do nothing but set up the Rust runtime.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            continue;
        }
        // SAFETY: the handle is valid and the name a C string.
        let entry = unsafe { libc::dlsym(handle, c"cann_emulator_entry".as_ptr()) };
        if !entry.is_null() {
            // SAFETY: this is the one function that the emulator exports, and this is its signature.
            return Some(unsafe {
                std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> *mut c_void>(entry)
            });
        }
    }
    None
}

/// Fills the slots from the emulator.
pub fn fill(slots: &[(&CStr, &Slot)]) {
    let Some(entry) = open() else {
        // The first call says it and aborts.
        return;
    };
    for (name, slot) in slots {
        let function = entry(name.as_ptr());
        if function.is_null() {
            eprintln!(
                "cann-emulator: {name:?} is not in libcann_emulator.so: the libraries are of different builds"
            );
        } else {
            slot.0.store(function, Ordering::Release);
        }
    }
}

macro_rules! forward {
    ($($name:ident)*) => {
        mod slot {
            #![allow(non_upper_case_globals, reason = "a slot is named as its function")]
            $(pub static $name: crate::forward::Slot = crate::forward::Slot::new();)*
        }
        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "CANN's name")]
            extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                std::arch::naked_asm!("jmp qword ptr [rip + {slot}]", slot = sym slot::$name);
                #[cfg(target_arch = "aarch64")]
                std::arch::naked_asm!(
                    "adrp x16, {slot}", "ldr x16, [x16, :lo12:{slot}]", "br x16", slot = sym slot::$name
                );
            }
        )*
        const SLOTS: &[(&std::ffi::CStr, &crate::forward::Slot)] = &[$(
            // SAFETY: the name ends in the one NUL that was put there.
            (unsafe { std::ffi::CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) }, &slot::$name),
        )*];
        extern "C" fn initialise() {
            crate::forward::fill(SLOTS);
        }
        #[used]
        #[unsafe(link_section = ".init_array")]
        static INITIALISE: extern "C" fn() = initialise;
    };
}
