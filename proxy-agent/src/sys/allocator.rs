//! The allocator.

/// Keeps all memory in one arena, for all threads. To be called before there are other
/// threads. The memory that one thread frees after reading all objects can then be
/// used for the tables of another, and threads are too few to wait for each other.
pub fn share_memory_among_threads() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator. Where that should fail, threads
    // have memory of their own, as usual.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is free back to the system. Reading all objects or whole
/// tables takes several times the memory of what is kept of them, and the
/// allocator would hold on to it.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator takes its own locks, and gives up free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
