//! Files that are either wholly there or not at all, also after a power cut: written under another
//! name with their final mode and group, synced, renamed, and the directory synced.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Group;
use zeroize::Zeroizing;

use miaf_spiffe::text::Excerpt;

/// Limit of bytes of a file that is read without another limit.
const MAX_READ: u64 = 4 * 1024 * 1024;
/// Limit of characters of a path in a log event.
const MAX_SHOWN: usize = 300;

/// Modes are given exactly where something is created, so nothing inherited may take bits away
/// beyond the usual.
pub(crate) fn set_umask() {
    umask(Mode::from_bits_truncate(0o022));
}

/// Numeric id of a group named in the configuration.
///
/// # Errors
/// There is no such group.
pub(crate) fn group_id(name: &str) -> io::Result<u32> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no group \"{name}\""))),
        Err(e) => Err(e.into()),
    }
}

/// Creates a directory with this mode, and its parents. One that exists is left as it is.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn make_dir(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        make_dir(parent, 0o755, None)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            if group.is_some() {
                give(&File::open(path)?, group)?;
            }
            path.parent().map_or(Ok(()), sync_dir)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Changes the group of a file or directory.
pub(super) fn give(file: &File, group: Option<u32>) -> io::Result<()> {
    fchown(file, None, group).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => io::Error::new(
            ErrorKind::PermissionDenied,
            "a file cannot be given to the configured group: the agent's user is not a member of it, or the file system \
             has no owners",
        ),
        _ => e,
    })
}

/// Writes a file that must not exist yet. Its group is set before its content is there.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    if group.is_some() {
        give(&file, group)?;
    }
    file.write_all(content)?;
    sync(&file, path)
}

/// Replaces the file at `path` atomically.
///
/// # Errors
/// Errors of the file system; what was at `path` is then unchanged.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    remove_if_there(&new)?; // left by a power cut
    let replaced = write_new(&new, content, mode, None).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        let _ = remove_if_there(&new); // a full disk needs the room
    }
    replaced?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file. One that is not there is fine.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes what was renamed or removed in a directory durable, where its file system can.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(dir) => sync(&dir, path),
        // It can be written to and passed through, and not be opened.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            warn_not_durable(path, &e);
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// Has the file system write a file or directory to its medium. A file system that has no such call
/// (some network and FUSE file systems, on directories above all) is used nevertheless, as
/// PostgreSQL and SQLite do: what was written there is whole, and may be missing after a power cut.
pub(super) fn sync(file: &File, path: &Path) -> io::Result<()> {
    match file.sync_all() {
        Err(e) if is_not_supported(&e) => {
            warn_not_durable(path, &e);
            Ok(())
        }
        synced => synced,
    }
}

/// Whether fsync(2) is unsupported: EINVAL by its man page. EBADF (a directory that is not open for
/// writing) is among those that PostgreSQL tolerates; no other cause is possible for a descriptor
/// that has just been opened.
fn is_not_supported(e: &io::Error) -> bool {
    let errno = e.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EBADF))
}

/// Logs a warning, once for each file system: it is not going to change.
fn warn_not_durable(path: &Path, e: &io::Error) {
    /// Limit of file systems that are told apart.
    const MOST: usize = 16;
    static SAID: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    let Ok(mut said) = SAID.lock() else { return };
    let Ok(device) = fs::metadata(path).map(|of| of.dev()) else { return };
    if said.len() < MOST && said.insert(device) {
        tracing::warn!(
            "file system cannot make changes durable (fsync of {}: {e}); they may be lost in a power cut. Move the agent's \
             state to a local file system (state_dir)",
            Excerpt::of(path.display(), MAX_SHOWN)
        );
    }
}

/// Reads a file of at most 4 MiB.
///
/// # Errors
/// Errors of the file system; it is no regular file, or it is larger than 4 MiB.
pub(crate) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, MAX_READ)
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// As for [`read_limited`].
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path)?.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(too_large(most));
    }
    Ok(content)
}

/// The error of content that has more than so many bytes.
pub(crate) fn too_large(most: u64) -> io::Error {
    let limit = match most >> 20 {
        0 => format!("{} KiB", most >> 10),
        mebibytes => format!("{mebibytes} MiB"),
    };
    io::Error::other(format!("it is larger than {limit}"))
}

/// Opens a regular file. To open a device may do anything, so its type is checked before; it may
/// be something else afterwards.
fn open_regular(path: &Path) -> io::Result<File> {
    regular(&fs::metadata(path)?)?;
    open_if_regular(path)
}

/// Opens a file, and checks the type of what it has opened. To open a pipe would wait for its other
/// end, but for the flag.
fn open_if_regular(path: &Path) -> io::Result<File> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

fn regular(file: &Metadata) -> io::Result<()> {
    if file.is_file() {
        return Ok(());
    }
    let what =
        if file.is_dir() { "it is a directory, and not a regular file" } else { "it is not a regular file" };
    Err(io::Error::new(ErrorKind::InvalidInput, what))
}

/// Reads a small file into memory that is wiped after use, and of which no copy stays behind.
///
/// # Errors
/// Errors of the file system; it is no regular file, or it has more than `most` bytes.
pub(crate) fn read_secret(path: &Path, most: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = open_regular(path)?;
    // With room to spare it never grows, and no copy of it stays behind.
    let mut content = Zeroizing::new(Vec::with_capacity(most + 64));
    file.take(most as u64 + 1).read_to_end(&mut content)?;
    if content.len() > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn file_is_replaced_whole_even_after_a_power_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        fs::write(directory.path().join("record.new"), "half").unwrap();
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(read_limited(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_replacement_leaves_no_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        fs::create_dir(&path).unwrap(); // a file cannot take the place of a directory
        replace(&path, b"one", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn pipe_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(read_limited(&pipe).unwrap_err().to_string().contains("not a regular file"));
        assert!(read_secret(&pipe, 100).is_err());
    }

    #[test]
    fn pipe_in_place_of_a_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let (opened, is_opened) = mpsc::channel();
        thread::spawn(move || opened.send(open_if_regular(&pipe).map(drop)));
        let refused = is_opened.recv_timeout(Duration::from_secs(100)).expect("it waits").unwrap_err();
        assert!(refused.to_string().contains("not a regular file"), "{refused}");
    }

    #[test]
    fn sync_errors_are_tolerated_only_where_unsupported() {
        let is_tolerated = |errno: Errno| is_not_supported(&io::Error::from_raw_os_error(errno as i32));
        for cannot in [Errno::EINVAL, Errno::ENOTSUP, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EBADF] {
            assert!(is_tolerated(cannot), "{cannot}");
        }
        for fails in [Errno::EIO, Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EINTR, Errno::ESTALE] {
            assert!(!is_tolerated(fails), "{fails}");
        }
        assert!(!is_not_supported(&io::Error::other("?")));
    }

    #[test]
    fn missing_group_is_named() {
        assert!(group_id("no-such-group-here").unwrap_err().to_string().contains("no-such-group-here"));
    }
}
