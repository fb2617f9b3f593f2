//! A safe call of glibc's `malloc_trim`.

/// Returns the free pages of all heaps to the operating system (malloc_trim(3)). Blocks allocations
/// of other threads while it works: about a millisecond for each 10 MB. Does nothing where the C
/// library is not glibc.
///
/// glibc by itself returns only what is free at the end of a heap, so that after many short-lived
/// allocations one that is still in use keeps all the memory below it.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: malloc_trim takes a number, is thread-safe (MT-Safe in malloc_trim(3)), and touches
    // free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
