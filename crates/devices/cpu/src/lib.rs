//! The fast embedded device: AMX, AVX-512, AVX2 and portable kernels.

pub mod kernel;
mod lanes;
pub mod level;
pub mod pool;
