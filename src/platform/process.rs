//! What the kernel is told of this process.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// No core dump holds the agent's memory, and no other process of its user can look into it, whatever the system is set to:
/// a core limit of 0 does not count where dumps go to a program (core(5)).
pub fn keep_memory_private() {
    let _ = prctl::set_dumpable(false); // fails for impossible arguments only
}

/// As many files may be open as the system lets the agent have: each connection to its sockets is one. (The customary limit,
/// 1024, is for programs that use select(2).)
pub fn allow_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(now, most)| {
        let wanted = most.min(MOST_FILES);
        if wanted > now { setrlimit(Resource::RLIMIT_NOFILE, wanted, most) } else { Ok(()) }
    });
    if let Err(e) = raised {
        tracing::debug!(error = %e, "the limit of open files stays as it is");
    }
}

/// How many files may be open at once.
pub fn open_files() -> rlim_t {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(now, _)| now)
}

/// More than all sockets together can be configured to serve.
const MOST_FILES: rlim_t = 262_144;
