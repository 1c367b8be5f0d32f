//! The oracle: plain loops, f64 accumulation.
