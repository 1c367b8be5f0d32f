//! What any device must satisfy: cases, random programs, oracles, mutants and shrinking, over `dyn Device`. Knows nothing
//! but the contract: the oracle is handed in.

pub mod generate; // one-operator cases and random programs
pub mod judge; // one instruction's outputs against the oracle's
pub mod lockstep; // operator by operator, each fed the oracle's values
pub mod oracle; // what subjects are judged by
pub mod random; // choices from a seed
pub mod replay; // bits that must repeat
pub mod session; // one program on one device
pub mod values; // what values are filled with
pub mod verdict; // agree, differ, incomparable; the report

pub use oracle::Oracle;
pub use verdict::{Floor, Report, Verdict};
