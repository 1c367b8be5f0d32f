//! The fast embedded device: AMX, AVX-512, AVX2 and portable kernels.
