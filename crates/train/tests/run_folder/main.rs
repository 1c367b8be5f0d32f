//! A run's folder is made once, used by one process, and never overwritten; its logs outlive torn writes.

#![allow(clippy::unwrap_used)] // all of it is tests; clippy sees that only of the functions marked so

mod folder; // made, resumed, refused; the machine stops at every point in turn
mod lines; // torn, damaged and random logs
