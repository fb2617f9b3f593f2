//! Attributes of this process: dumpability and resource limits.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Makes the process undumpable: no core dump contains the agent's memory, and no other process of
/// its user can read it, whatever the system is set to. A core limit of 0 does not count where
/// dumps go to a program (core(5)).
pub(crate) fn keep_memory_private() {
    let _ = prctl::set_dumpable(false); // fails for impossible arguments only
}

/// Raises the limit of open files as far as the system allows: each connection to the sockets is
/// one. (The customary limit, 1024, is for programs that use select(2).)
pub fn allow_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(now, most)| {
        let wanted = most.min(MOST_FILES);
        if wanted > now { setrlimit(Resource::RLIMIT_NOFILE, wanted, most) } else { Ok(()) }
    });
    if let Err(e) = raised {
        tracing::debug!(error = %e, "limit of open files could not be raised");
    }
}

/// The limit of open files.
pub(crate) fn open_files() -> rlim_t {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(now, _)| now)
}

/// Limit of files: more than all sockets together can be configured to serve.
const MOST_FILES: rlim_t = 262_144;
