//! The binary with the emulator's libraries, which cargo builds beside the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// A folder of CANN's libraries to test instead.
const LIBRARY: &str = "TOPROPE_CANN_LIBRARY";

/// Where the libraries lie.
pub fn library() -> PathBuf {
    if let Some(named) = std::env::var_os(LIBRARY) {
        return named.into();
    }
    let test = std::env::current_exe().expect("a test knows its file");
    test.parent().expect("a file lies in a folder").to_path_buf()
}

/// `ascend:0` with variants such as `+cube=hf32`.
pub fn device(variants: &str) -> String {
    format!("ascend:0{variants}+library={}", library().display())
}

/// What is measured within a time is measured alone.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The binary in a folder, with these defects of the emulator.
pub fn toprope(folder: &Path, defects: &str, arguments: &[&str]) -> Output {
    toprope_on(1, folder, defects, arguments)
}

/// The same where there are so many emulated chips.
pub fn toprope_on(chips: u32, folder: &Path, defects: &str, arguments: &[&str]) -> Output {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(env!("CARGO_BIN_EXE_toprope"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for name in ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "CANN_EMULATOR_DEFECTS"] {
        command.env_remove(name);
    }
    // Where no device is named the loader is asked, and an older build may lie beside the binary.
    command.env("LD_LIBRARY_PATH", library());
    command.env("CANN_EMULATOR_DEVICES", chips.to_string());
    if !defects.is_empty() {
        command.env("CANN_EMULATOR_DEFECTS", defects);
    }
    command.output().expect("the binary starts")
}

/// What it printed for people, without line breaks.
pub fn told(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The last line, as JSON.
#[track_caller]
pub fn json(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}
