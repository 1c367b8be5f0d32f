//! The language of faults, and a device in which they happen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod device; // faults that happen
mod language; // schedules as text
mod refusals; // schedules that cannot happen
mod support; // a small training step
