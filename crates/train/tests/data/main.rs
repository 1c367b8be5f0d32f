//! Data: what is read from files and Cargo's registry, what is held out, what a batch holds, what is refused.

#![allow(clippy::unwrap_used)] // all of it is tests; clippy sees that only of the functions marked so

mod bad_input; // each wrong file or key gives one error with file, place and mend
mod batches; // each sequence once an epoch, each token a target once, borders
mod corpus; // formats, limits, split, hash
#[cfg(feature = "parquet")]
mod parquet; // rows, null, damage
mod registry; // the default corpus
mod support; // folders with files
