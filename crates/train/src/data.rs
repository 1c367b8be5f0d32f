//! From files to batches: documents, the held-out part, packed tokens, and the batch of each step.
//!
//! The path is [`Corpus::load`] → [`Tokens::of_documents`] → [`Batches::new`] → [`Batches::micro_batch`]. The batch of
//! step *n* is a function of the seed, of *n* and of the documents alone: nothing here has a state that advances, so
//! any step can be drawn again, anywhere.
//!
//! This module knows nothing of models, programs, devices or runs.

mod batch; // what a step reads, and which tokens are in it
mod chat; // conversations, and whose turns are predicted
mod compression; // gzip and xz of the same bytes, to compare with
mod config; // the recipe's `[data]` table
mod corpus; // documents, split and hashed
mod error; // what can be wrong with data
mod jsonl; // one document a line
mod near_duplicate; // keeps what was trained on out of the held-out part
#[cfg(feature = "parquet")]
mod parquet; // one document a row
mod paths; // files, folders and patterns to a sorted list of files
mod permutation; // a shuffle that stores nothing
mod registry; // the default corpus: the sources of crates in Cargo's registry folder
mod split; // which documents are held out
mod text; // one document a file
mod tokens; // documents as one array of tokens

pub use batch::{Batch, BatchShape, Batches, NO_TOKEN, ValidationBatches};
pub use chat::{ChatConfig, Render};
pub use compression::{CompressedBytes, bits_per_byte, compressed_bytes};
pub use config::{DataConfig, Format, Source};
pub use corpus::{Corpus, CorpusCounts, Document, expected_bytes};
pub use error::DataError;
pub use permutation::Permutation;
pub use tokens::{TokenStore, Tokens};
