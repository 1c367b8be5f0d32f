//! Fault injection: a readable schedule of failures, and a device that carries them out.
//!
//! A [`Schedule`] says what fails, when and where (`docs/faults.md` has the language). [`check`] refuses what cannot
//! happen in a program, [`Injected`] wraps a device and lets its share of the schedule happen, and [`Handle`] is the
//! worker's and the supervisor's side of it. Each injected fault leaves an [`InjectedFault`] behind, so that nobody takes
//! it for a real one.

mod change; // what a wrong number looks like
mod check; // schedules that cannot happen
mod device; // a device in which faults happen
mod disk; // a disk that fills up
mod draw; // random schedules
mod firings; // what has fired already, in memory that outlives the worker
mod handle; // the worker's side of the injector
mod parse; // the language, read
mod select; // which elements
mod spec; // the language, as data and as text
mod target; // where in a program

pub use change::change_number;
pub use check::{Impossible, check};
pub use device::{Hooks, Injected, NoHooks};
pub use disk::FillingDisk;
pub use draw::{DrawError, expand};
pub use firings::{Firings, OwnFirings, SharedFirings};
pub use handle::{Handle, InjectedFault, Point};
pub use parse::{SpecError, parse};
pub use spec::{
    At, Change, Corruption, Entry, Home, Moment, RandomClass, RandomFaults, Schedule, Scheduled, Target, What,
};
