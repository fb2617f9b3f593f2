//! Temporary directories in which sockets can be and that other users can reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The path of a Unix socket has 107 bytes; this leaves some for what is made below.
const MAX_PARENT: usize = 50;

/// A directory that is removed when dropped. In `TMPDIR` if that has a short path that every user
/// can pass, or in `/tmp`: a checkout, and with it a `TMPDIR`, may lie below a home, which is
/// closed to other users.
pub(crate) fn directory() -> TempDir {
    let parent = std::env::temp_dir();
    let parent = if is_short(&parent) && is_open(&parent) { parent } else { PathBuf::from("/tmp") };
    tempfile::tempdir_in(parent).expect("a temporary directory")
}

/// Lets every user pass through a directory or read a file, whatever the umask.
pub(crate) fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a path of one's own");
}

fn is_short(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_PARENT
}

fn is_open(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    path.ancestors().all(|directory| {
        fs::metadata(directory).is_ok_and(|directory| directory.permissions().mode() & 0o001 != 0)
    })
}
