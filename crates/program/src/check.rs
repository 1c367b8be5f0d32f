//! Checks: operators put into a program by a pass, and what the host makes of their results.
//!
//! A pass ([`insert`]) puts them in, once; a mask among the bindings ([`mask`]) says which fire in a step; the host reads
//! the results of those that fired and judges them ([`judge`]). The hash is of the unchecked program, and no check
//! changes a bit of any other value. docs/checks.md says what each kind catches and how its limit was derived.

mod insert;
mod judge;
mod mask;
mod plain;
mod site;

pub use insert::insert;
pub use judge::{Mismatch, judge};
pub use mask::{STEPS_MAX, mask};
pub use plain::without_checks;
pub use site::{CheckKind, CheckLevel, CheckPlan, CheckSite, Checked};
