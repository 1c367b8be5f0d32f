//! The command line: parse, verb, exit code.

mod command; // what can be asked for
mod exit; // what the exit codes mean
mod memory; // of the run and its workers
mod metrics; // answers Prometheus
mod progress; // what a person sees while it runs
mod report; // report.html
mod verb; // one file a verb

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = command::Command::parse();
    match verb::run(command) {
        Ok(code) => code.into(),
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.code().into()
        }
    }
}
