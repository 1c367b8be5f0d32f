//! What any device must satisfy: cases, random programs, oracles, mutants and shrinking, over `dyn Device`. Knows nothing
//! but the contract: the oracle is handed in.

pub mod generate; // one-operator cases and random programs
pub mod isolate; // one instruction alone, at other sizes
pub mod judge; // one instruction's outputs against the oracle's
pub mod lockstep; // operator by operator, each fed the oracle's values
pub mod memory; // adopted regions, copies, state in place
pub mod mutant; // devices that are wrong on purpose
pub mod oracle; // what subjects are judged by
pub mod random; // choices from a seed
pub mod replay; // bits that must repeat
pub mod reproducer; // a program with its values, as text
pub mod session; // one program on one device
pub mod shrink; // makes what fails small
pub mod suite; // all of it in one call
pub mod values; // what values are filled with
pub mod verdict; // agree, differ, incomparable; the report

pub use oracle::Oracle;
pub use reproducer::Reproducer;
pub use suite::{Options, run_suite};
pub use verdict::{Floor, Report, Verdict};
