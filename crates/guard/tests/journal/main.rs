//! Journals: schema, reading, ledger, accounts.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod bad_input; // what is no journal of this run
mod ledger; // random runs, cut off at any byte
mod run; // a whole run's folder, read back
mod schema; // the page and the entries agree
mod support; // journals by hand
