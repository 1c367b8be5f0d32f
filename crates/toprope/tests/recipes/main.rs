//! The recipes' programs: hashes, forms, lockstep of `cpu` and `reference` operator by operator, curves side by side.

mod curves; // losses of whole runs on two devices
mod hashes; // a refactor that changes a program shows
mod lockstep; // operator by operator, the same inputs
mod support; // recipes, batches and devices
