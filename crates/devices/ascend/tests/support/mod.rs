//! An emulated NPU for the tests: cargo builds the emulator's libraries beside them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;
use toprope_ascend::{AscendDevice, Options};
use toprope_conformance::Oracle;
use toprope_program::Width;
use toprope_reference::{ReferenceDevice, magnitudes};

/// A folder of CANN's libraries to test instead: a real one, or an emulator elsewhere.
const LIBRARY: &str = "TOPROPE_CANN_LIBRARY";

/// Where the libraries lie: where cargo puts what tests depend on.
fn folder() -> PathBuf {
    if let Some(named) = std::env::var_os(LIBRARY) {
        return named.into();
    }
    let test = std::env::current_exe().expect("a test knows its file");
    test.parent().expect("a file lies in a folder").to_path_buf()
}

/// The name of device 0 with variants such as `+fused=off`.
pub fn name(variants: &str) -> String {
    format!("ascend:0{variants}+library={}", folder().display())
}

/// Device 0 with variants.
pub fn ascend(variants: &str) -> AscendDevice {
    let name = name(variants);
    match AscendDevice::open(&name, Options::default()) {
        Ok(device) => device,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// The oracle in wide mode.
pub fn oracle() -> Oracle {
    let options = toprope_reference::Options { width: Width::Wide, ..Default::default() };
    Oracle::new(Box::new(ReferenceDevice::new(options)), magnitudes)
}
