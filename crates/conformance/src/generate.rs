//! Makes programs to try devices with: one operator at a time over many shapes, and random ones from the whole table.

pub mod blocks; // attention and mixture-of-experts blocks, as models build them
pub mod cases; // programs of one operator
pub mod draft; // a program under construction with what it may read
pub mod emit; // adds any operator of the contract
pub mod exemplars; // one of each operator
pub mod programs; // random programs of many operators
pub mod special; // NaN, infinities, zeros, the largest numbers where a formula says what comes of them

use toprope_program::{BuildError, Defect};

/// Why a generator gave no program: a mistake in the generator, never in a device.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The builder refused an operator.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The validator refused the program.
    #[error("seed {seed}: {}", .defects.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// The seed that gives the program.
        seed: u64,
        /// What is wrong with it.
        defects: Vec<Defect>,
    },
}
