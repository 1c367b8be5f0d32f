//! What any device must satisfy: cases, random programs, oracles, mutants.
