//! A directory that is opened once. What it is is read from its descriptor, and so is everything in
//! it reached: another directory or a symbolic link in its place, or in the place of a file in it,
//! is not used instead (openat(2), "Rationale for openat()").

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, geteuid, symlinkat, unlinkat};
use zeroize::Zeroizing;

use super::files::{give, sync};

/// File system type of ramfs (`linux/magic.h`).
const RAMFS_MAGIC: u32 = 0x8584_58f6;
/// Limit of nested directories that are removed. The agent makes one level.
const MAX_DEPTH: usize = 16;
const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    /// The path by which it was opened, for messages.
    path: PathBuf,
}

/// Owner and mode of a file, for comparison with what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u64,
}

impl Attributes {
    /// Whether it belongs to the user of this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.uid == geteuid().as_raw()
    }
}

impl Dir {
    /// Opens a directory. A symbolic link to one is followed.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::at(open(path, OPEN, Mode::empty())?, path.to_owned()))
    }

    /// Opens a directory, and not by a symbolic link. Those on the way to it are followed.
    ///
    /// # Errors
    /// Errors of the file system; for a symbolic link, [`io::ErrorKind::NotADirectory`].
    pub(crate) fn open_itself(path: &Path) -> io::Result<Self> {
        match open(path, OPEN | OFlag::O_NOFOLLOW, Mode::empty()) {
            // Which of the two it is depends on the kernel.
            Err(Errno::ELOOP) => Err(Errno::ENOTDIR.into()),
            opened => Ok(Self::at(opened?, path.to_owned())),
        }
    }

    fn at(opened: OwnedFd, path: PathBuf) -> Self {
        Self { file: opened.into(), path }
    }

    /// Owner and mode of the directory.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn attributes(&self) -> io::Result<Attributes> {
        attributes(&self.file)
    }

    /// Owner and mode of a file in it, or of a symbolic link.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn attributes_of(&self, name: &OsStr) -> io::Result<Attributes> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        attributes(&File::from(openat(&self.file, name, flags, Mode::empty())?))
    }

    /// Whether what is written in it is gone after a power cut.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn is_volatile(&self) -> io::Result<bool> {
        // A magic number has 32 bits; the field that holds it is a signed word of 32 or 64.
        let magic = |of: FsType| of.0 as u32;
        let found = magic(fstatfs(&self.file)?.filesystem_type());
        Ok(found == magic(TMPFS_MAGIC) || found == RAMFS_MAGIC)
    }

    /// Whether only this user (and root) can change what is in it.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn is_ours_alone_to_write(&self) -> io::Result<bool> {
        let is = self.attributes()?;
        Ok(is.is_ours() && is.mode & 0o022 == 0)
    }

    /// Gives it to a group, if it is not the group's already.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn give_to_group(&self, group: Option<u32>) -> io::Result<()> {
        match group {
            Some(group) if self.attributes()?.gid != group => give(&self.file, Some(group)),
            _ => Ok(()),
        }
    }

    /// Sets its permission bits.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Makes what was created, renamed or removed in it durable, where its file system can.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync(&self.file, &self.path)
    }

    /// The names in it.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in dir::Dir::openat(&self.file, ".", OPEN, Mode::empty())? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Opens a directory in it.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn open_dir(&self, name: &OsStr) -> io::Result<Self> {
        let opened = openat(&self.file, name, OPEN | OFlag::O_NOFOLLOW, Mode::empty())?;
        Ok(Self::at(opened, self.path.join(name)))
    }

    /// Makes a directory that must not exist yet.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn make_dir(&self, name: &OsStr, mode: u32, group: Option<u32>) -> io::Result<Self> {
        mkdirat(&self.file, name, Mode::from_bits_truncate(mode))?;
        let made = self.open_dir(name)?;
        made.give_to_group(group)?;
        if made.attributes()?.mode != mode {
            made.set_mode(mode)?; // it has inherited the set-group-ID bit
        }
        Ok(made)
    }

    /// Writes a file that must not exist yet. Its group is set before its content is there.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn write_new(
        &self,
        name: &OsStr,
        content: &[u8],
        mode: u32,
        group: Option<u32>,
    ) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.file, name, flags, Mode::from_bits_truncate(mode))?);
        if group.is_some() {
            give(&file, group)?;
        }
        file.write_all(content)?;
        sync(&file, &self.path)
    }

    /// Reads a small regular file into memory that is wiped after use, with what it is.
    ///
    /// # Errors
    /// Errors of the file system; it is no regular file, or it has more than `most`
    /// bytes.
    pub(crate) fn read_secret(
        &self,
        name: &OsStr,
        most: usize,
    ) -> io::Result<(Attributes, Zeroizing<Vec<u8>>)> {
        // To open a pipe would wait for its other end.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.file, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let attributes = attributes(&file)?;
        // With room to spare it never grows, and no copy of it stays behind.
        let mut content = Zeroizing::new(Vec::with_capacity(most.saturating_add(64)));
        file.take(most as u64 + 1).read_to_end(&mut content)?;
        if content.len() > most {
            return Err(io::Error::other(format!("it is larger than {most} bytes")));
        }
        Ok((attributes, content))
    }

    /// Reads the target of a symbolic link in it.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        Ok(readlinkat(&self.file, name)?)
    }

    /// Makes a symbolic link that must not exist yet.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn symlink(&self, to: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(symlinkat(to, &self.file, name)?)
    }

    /// Renames an entry, which replaces another.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.file, from, &self.file, to)?)
    }

    /// Removes a file or a symbolic link. One that is not there is fine.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Removes a directory with all that is in it, or a file. One that is not there is fine. No
    /// symbolic link is followed.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn remove_all(&self, name: &OsStr) -> io::Result<()> {
        self.remove_to(name, MAX_DEPTH)
    }

    fn remove_to(&self, name: &OsStr, depth: usize) -> io::Result<()> {
        let below = match openat(&self.file, name, OPEN | OFlag::O_NOFOLLOW, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return self.remove_file(name),
            opened => Self::at(opened?, self.path.join(name)),
        };
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("it has too many directories below each other"))?;
        for name in below.names()? {
            below.remove_to(&name, depth)?;
        }
        match unlinkat(&self.file, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }
}

fn attributes(file: &File) -> io::Result<Attributes> {
    let metadata = file.metadata()?;
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    Ok(Attributes { mode, uid, gid, links: metadata.nlink() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    #[test]
    fn directory_in_its_place_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved, other) =
            (directory.path().join("keys"), directory.path().join("moved"), directory.path().join("other"));
        fs::create_dir(&path).unwrap();
        fs::create_dir(&other).unwrap();
        let dir = Dir::open_itself(&path).unwrap();
        fs::rename(&path, &moved).unwrap();
        symlink(&other, &path).unwrap();
        dir.make_dir(name("1"), 0o750, None).unwrap().write_new(name("key"), b"secret", 0o640, None).unwrap();
        dir.symlink(name("1"), name("new")).unwrap();
        dir.rename(name("new"), name("current")).unwrap();
        assert_eq!(fs::read(moved.join("current/key")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
        assert_eq!(Dir::open_itself(&path).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert!(Dir::open(&path).is_ok());
    }

    #[test]
    fn file_is_not_read_or_written_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        fs::write(directory.path().join("file"), "secret").unwrap();
        symlink("file", directory.path().join("link")).unwrap();
        symlink("nowhere", directory.path().join("dangling")).unwrap();
        nix::unistd::mkfifo(&directory.path().join("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let (attributes, content) = dir.read_secret(name("file"), 6).unwrap();
        assert_eq!((attributes.links, content.as_slice()), (1, &b"secret"[..]));
        assert!(dir.read_secret(name("file"), 5).unwrap_err().to_string().contains("larger than 5"));
        for other in ["link", "dangling", "pipe", "."] {
            assert!(dir.read_secret(name(other), 100).is_err(), "{other}");
            assert!(dir.write_new(name(other), b"x", 0o600, None).is_err(), "{other}");
        }
        assert!(!directory.path().join("nowhere").exists());
        fs::hard_link(directory.path().join("file"), directory.path().join("second")).unwrap();
        assert_eq!(dir.read_secret(name("file"), 6).unwrap().0.links, 2);
    }

    #[test]
    fn removing_stops_at_links_and_needs_nothing_there() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("inside"), directory.path().join("outside"));
        fs::create_dir_all(inside.join("1/deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "stays").unwrap();
        symlink(&outside, inside.join("1/link")).unwrap();
        symlink(&outside, inside.join("2")).unwrap();
        fs::write(inside.join("3"), "").unwrap();
        let dir = Dir::open_itself(&inside).unwrap();
        for entry in ["1", "2", "3", "4"] {
            dir.remove_all(name(entry)).unwrap();
        }
        assert!(dir.names().unwrap().is_empty() && outside.join("file").exists());
        let mut deep = inside.join("deep");
        deep.extend(std::iter::repeat_n("x", MAX_DEPTH + 1));
        fs::create_dir_all(&deep).unwrap();
        assert!(dir.remove_all(name("deep")).is_err());
    }
}
