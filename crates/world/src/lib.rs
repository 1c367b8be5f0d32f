//! The seam to clock, processes, shared memory and files.
