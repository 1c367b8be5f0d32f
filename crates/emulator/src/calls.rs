//! A list of what a program calls, in the order in which the calls begin: `CANN_EMULATOR_CALLS` names the file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

use crate::code;
use crate::fault::Fault;

const SETTING: &str = "CANN_EMULATOR_CALLS";

fn file() -> &'static Result<Option<File>, String> {
    static FILE: OnceLock<Result<Option<File>, String>> = OnceLock::new();
    FILE.get_or_init(|| {
        let Some(path) = std::env::var_os(SETTING) else { return Ok(None) };
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        opened.map(Some).map_err(|error| {
            let path = path.display();
            format!("{SETTING}: {path}: {error}; name a file that can be written, or unset it")
        })
    })
}

/// Adds a call's name as a line. One write each, so that lines of several threads and processes stay whole, and are there
/// however the process ends.
pub fn list(name: &str) -> Result<(), Fault> {
    let refused = |why: String| Fault::new(code::INVALID_PARAM, why);
    match file() {
        Ok(None) => Ok(()),
        Ok(Some(file)) => {
            let mut file: &File = file;
            file.write_all(format!("{name}\n").as_bytes())
                .map_err(|error| refused(format!("{SETTING}: {error}; make room, or unset it")))
        }
        Err(why) => Err(refused(why.clone())),
    }
}
