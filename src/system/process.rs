//! What the kernel is told of this process.

use nix::sys::prctl;

/// No core dump holds the agent's memory, and no other process of its user can look into it, whatever the system is set to:
/// a core limit of 0 does not count where dumps go to a program (core(5)).
pub fn keep_memory_private() {
    let _ = prctl::set_dumpable(false); // fails for impossible arguments only
}
