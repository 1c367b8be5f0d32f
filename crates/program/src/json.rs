//! The JSON form of a program, for other languages. It parses back to the same program.

use crate::program::Program;

/// Prints a program as JSON.
pub fn print(program: &Program) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(program)
}

/// Parses a program; not yet validated.
pub fn parse(text: &str) -> Result<Program, serde_json::Error> {
    serde_json::from_str(text)
}
