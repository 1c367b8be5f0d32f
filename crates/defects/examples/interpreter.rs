//! Prints an interpreter with a defect in it, to rehearse a verdict on a device that is known to be bad:
//!
//! ```text
//! cargo run --release -p toprope-defects --example interpreter -- mask_corner > bad-python && chmod +x bad-python
//! toprope qualify --device pytorch:cpu --python ./bad-python
//! ```
//!
//! Without a name it lists the defects. `TOPROPE_PYTHON` or a second argument names the interpreter that has torch.

use std::path::PathBuf;
use std::process::ExitCode;
use toprope_defects::{find, known};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        for defect in known() {
            println!("{:<30} {:<30} {}", defect.name, defect.operator, defect.kinds.join(" or "));
        }
        return ExitCode::SUCCESS;
    };
    let python = arguments.next().map(PathBuf::from);
    let text = match find(&name) {
        None => Err(format!("there is no defect `{name}`; without a name they are listed")),
        Some(defect) => defect.interpreter(python.as_deref()).map_err(|error| error.to_string()),
    };
    match text {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
