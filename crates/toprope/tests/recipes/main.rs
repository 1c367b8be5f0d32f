//! The recipes' programs: hashes, forms, lockstep of `cpu` and `reference` operator by operator, curves side by side.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod checks; // nothing but their results changes; no alarm on a healthy device
mod curves; // losses of whole runs on two devices
mod hashes; // a refactor that changes a program shows
mod lockstep; // operator by operator, the same inputs
mod support; // recipes, batches and devices
