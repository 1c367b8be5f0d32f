//! Prints the emulator's C header.

use std::process::ExitCode;

fn main() -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(cann_emulator::header::text().as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write the header: {error}");
            ExitCode::FAILURE
        }
    }
}
