//! The guard's decisions over a simulated run: ranks, workers, devices, memory, disk and clock, from one seed.
//!
//! A seed draws a [`schedule::Schedule`]: the run and all that goes wrong in it. [`run::run`] drives the real state machine
//! of `toprope-guard` through it in virtual time, and [`checker::Checker`] looks at every action. In the first phase faults
//! come as scheduled; in the second there are no new ones and one trusted device is sound, and the run must end. What is
//! simulated of a state is the chain of its digests: each is a mixture of the last one, the step and the rank, so that a
//! batch that is skipped, doubled or wrong shows in all that follow.

pub mod checker; // what must hold at every action
pub mod goodput; // a day of faults, with measured costs
pub mod parts; // what happens, processes, memory, files
pub mod random; // numbers from a seed
pub mod run; // the loop: events to the guard, its actions to the world
pub mod schedule; // what is drawn from a seed
pub mod shrink; // the fewest faults that still fail
pub mod world; // workers, devices, memory and disk
