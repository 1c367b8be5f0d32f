//! `qualify`, `diagnose` and `report` through the binary on `ascend:0`, which here is the emulator of CANN's interface.

#![allow(clippy::unwrap_used, reason = "a failed test may say so this way")]

mod report; // the program for the vendor
mod support;
mod table; // the emulator's arithmetic defects: found, named, guessed
mod verdicts; // each verdict, and the chip's settings
