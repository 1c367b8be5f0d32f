//! The stable hash of a program: it goes into checkpoints and golden files.

use crate::program::Program;

/// BLAKE3 over the canonical printed form of the program without its checks, as hexadecimal.
pub fn program_hash(program: &Program) -> String {
    let unchecked = crate::check::without_checks(program);
    blake3::hash(crate::text::print(&unchecked).as_bytes()).to_hex().to_string()
}
