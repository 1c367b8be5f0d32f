//! The oracle against what is not itself: records made by PyTorch, finite differences, arithmetic by hand.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod device; // buffers, spans, checks, progress, refusals
mod golden; // records of single operators made by PyTorch
mod gradient; // finite differences of every operator that has a gradient
mod numbers; // deterministic numbers
mod rounding; // each result is rounded once
mod session; // a program on the device, with values by name
mod values; // views, parts, caches, sums, digests
