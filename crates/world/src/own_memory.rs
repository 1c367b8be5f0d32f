//! The memory of this process: what it freed, and the most that it held.

/// Gives pages that were freed back to the system. Freed memory is otherwise kept for the next allocation, which in a process
/// that read much text once never comes. Does nothing where the C library cannot.
pub fn give_back_freed_memory() {
    // SAFETY: frees nothing that is in use, and may be called at any time from any thread.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// From now on what is allocated in one piece of a mebibyte or more is a mapping of its own, and goes back when it is freed. By
/// itself the C library lets that size grow to 32 MiB, and keeps what is below.
pub fn map_large_allocations() {
    // SAFETY: changes where later allocations come from, and nothing else.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Lets the system measure the most that this process holds anew, from now on. Gives false where it does not: then the most
/// since the process began is what it goes on to tell.
pub fn measure_peak_anew() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}
