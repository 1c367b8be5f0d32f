//! Checkpoints are whole or not there, whatever fails and wherever; damaged ones are named and passed over.

#![allow(clippy::unwrap_used)] // all of it is tests; clippy sees that only of the functions marked so

mod background; // writing behind the run
mod damage; // flipped, cut, lying, foreign and random bytes
mod durability; // the machine stops, an operation fails, the disk fills up, at every point in turn
mod round_trip; // what is written is what is read, also by others
mod support; // a small state and a folder of checkpoints in memory
