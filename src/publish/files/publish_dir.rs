//! The directory of one identity in a configured one: what it must be before anything is published
//! in it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::authorized::{self, Authorized};
use super::content::{Content, Groups, add_key};
use super::error::PublishError;
use super::generations::{CURRENT, Generations, NEXT, make_current};
use crate::keys::Key;
use crate::platform::dir::Dir;
use crate::platform::files;
use miaf_client::api::IdentityName;

/// The directory of one identity in a configured one.
#[derive(Clone, Debug)]
pub(super) struct PublishDir {
    /// The configured directory. All identities have theirs in it.
    pub(super) parent: PathBuf,
    /// The name of the identity.
    pub(super) name: IdentityName,
    /// No file of others is in the configured directory.
    pub(super) is_own: bool,
    /// Group of the configured directory.
    pub(super) parent_group: Option<String>,
    /// Group of the identity's directory and files.
    pub(super) group: Option<String>,
    pub(super) key_group: Option<String>,
    /// It must be gone after a power cut (miaf-v0 K2).
    pub(super) volatile: bool,
    /// What was published last, without the key: its SVID identifies it, and `authorized.json` too.
    pub(super) published: Option<(Content, u64)>,
}

impl PublishDir {
    /// Publishes a generation, and `authorized.json` before it: a client that reads it anew for the
    /// SVID finds what belongs to that.
    pub(super) fn publish(
        &mut self,
        content: Content,
        key: Option<&dyn Key>,
        authorized: Option<&Authorized>,
    ) -> Result<u64, PublishError> {
        if let Some((published, generation)) = &self.published
            && *published == content
        {
            return Ok(*generation);
        }
        let mut whole = content.clone();
        if let Some(key) = key {
            let key = key.to_key_file().map_err(|why| PublishError::Key { dir: self.path(), why })?;
            add_key(&mut whole, &key);
        }
        let groups = self.groups().map_err(|e| self.failed(&self.parent, e))?;
        let (parent, dir) = self.make(groups)?;
        let path = self.path();
        authorized::put(&dir, authorized, groups.group).map_err(|e| self.failed(&path, e))?;
        let generation =
            make_current(&parent, &dir, &path, &whole, groups).map_err(|e| self.failed(&path, e))?;
        self.published = Some((content, generation));
        Ok(generation)
    }

    fn path(&self) -> PathBuf {
        self.parent.join(self.name.as_str())
    }

    /// An error in the configured directory, or in the identity's.
    pub(super) fn failed(&self, dir: &Path, source: io::Error) -> PublishError {
        // What the sandbox of the service is to permit is the configured directory, which has all.
        let is_read_only = source.raw_os_error() == Some(Errno::EROFS as i32);
        let dir = if is_read_only { &self.parent } else { dir };
        PublishError::Files { dir: dir.to_owned(), is_own: self.is_own, source }
    }

    fn groups(&self) -> io::Result<Groups> {
        let group = self.group.as_deref().map(files::group_id).transpose()?;
        let key_group = self.key_group.as_deref().map(files::group_id).transpose()?;
        Ok(Groups { group, key_group })
    }

    /// Opens the configured directory and the identity's in it, each once: what is checked is what
    /// is used. Those that are missing are created, with the mode 0750; both are given to the
    /// group.
    fn make(&self, groups: Groups) -> Result<(Dir, Dir), PublishError> {
        let (path, in_parent) = (self.path(), |e| self.failed(&self.parent, e));
        files::make_dir(&self.parent, 0o750, None).map_err(in_parent)?;
        let parent = self.open_parent()?;
        self.check(&parent, &self.parent)?;
        self.open_to_readers(&parent, groups).map_err(in_parent)?;
        let dir = match self.open_in(&parent)? {
            Some(dir) => dir,
            None => parent.make_dir(OsStr::new(self.name.as_str()), 0o750, None).map_err(in_parent)?,
        };
        self.check(&dir, &path)?;
        // Its owner could replace what is in it; the configured directory is the operator's.
        if !dir.is_ours_alone_to_write().map_err(|e| self.failed(&path, e))? {
            return Err(PublishError::Exposed { dir: path });
        }
        // They may have been created under another configuration.
        dir.give_to_group(groups.group).map_err(|e| self.failed(&path, e))?;
        Ok((parent, dir))
    }

    /// Gives the configured directory to its group, which all identities share. The readers of an
    /// identity with another group are not in it: then every user may traverse the directory, and
    /// only its group may list it. That of the identity decides who reads its files.
    fn open_to_readers(&self, parent: &Dir, groups: Groups) -> io::Result<()> {
        const TRAVERSE: u32 = 0o001;
        let parent_group = self.parent_group.as_deref().map(files::group_id).transpose()?;
        parent.give_to_group(parent_group)?;
        let found = parent.attributes()?;
        let is_of_another = groups.group.is_some_and(|group| group != found.gid);
        if is_of_another && found.mode & TRAVERSE == 0 {
            parent.set_mode(found.mode | TRAVERSE)?;
        }
        Ok(())
    }

    /// Checks that a directory, `path`, may have secrets in it, where they are published: also that
    /// of the identity, which may be a mount point.
    fn check(&self, dir: &Dir, path: &Path) -> Result<(), PublishError> {
        if !self.volatile {
            return Ok(());
        }
        let failed = |e| self.failed(path, e);
        if !dir.is_volatile().map_err(failed)? {
            return Err(PublishError::Persistent { dir: path.to_owned() });
        }
        if !dir.is_ours_alone_to_write().map_err(failed)? {
            return Err(PublishError::Exposed { dir: path.to_owned() });
        }
        Ok(())
    }

    /// Opens the configured directory. For secrets it must not be a symbolic link, which another
    /// process could change.
    fn open_parent(&self) -> Result<Dir, PublishError> {
        let open = if self.volatile { Dir::open_itself } else { Dir::open };
        open(&self.parent).map_err(|e| {
            if self.volatile && self.parent.is_symlink() {
                PublishError::Link { dir: self.parent.clone() }
            } else {
                self.failed(&self.parent, e)
            }
        })
    }

    /// Opens the identity's directory in the configured one; a symbolic link is never followed.
    /// `None`: it does not exist.
    fn open_in(&self, parent: &Dir) -> Result<Option<Dir>, PublishError> {
        let (name, path) = (OsStr::new(self.name.as_str()), self.path());
        match parent.open_dir(name) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(_) if parent.read_link(name).is_ok() => Err(PublishError::Link { dir: path }),
            Err(e) => Err(self.failed(&path, e)),
        }
    }

    /// Opens the identity's directory to remove from it. `None`: there is nothing of this agent.
    fn find(&self) -> Result<Option<Dir>, PublishError> {
        // Of secrets whatever the mode is by now. A directory of another user was never this
        // agent's, unless there is something published in it: then its owner was changed.
        let may_have = |dir: &Dir| -> Result<bool, PublishError> {
            let failed = |e| self.failed(&self.path(), e);
            if !self.volatile || dir.attributes().map_err(failed)?.is_ours() {
                return Ok(true);
            }
            let published = dir.read_link(OsStr::new(CURRENT)).is_ok();
            if published { Err(PublishError::Exposed { dir: self.path() }) } else { Ok(false) }
        };
        let find = || -> Result<Option<Dir>, PublishError> {
            let parent = self.open_parent()?;
            let dir = if may_have(&parent)? { self.open_in(&parent)? } else { None };
            Ok(match dir {
                Some(dir) if may_have(&dir)? => Some(dir),
                _ => None,
            })
        };
        match find() {
            Err(PublishError::Files { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            found => found,
        }
    }

    /// Removes all generations, and what a power cut left of earlier ones; `current` first, so that
    /// no program reads half a generation. With `keeps_number`, an empty directory keeps the
    /// number.
    pub(super) fn withdraw(&self, keeps_number: bool) -> Result<(), PublishError> {
        let Some(dir) = self.find()? else { return Ok(()) };
        let remove = || {
            let there = Generations::read(&dir)?;
            if keeps_number && there.newest > 0 {
                dir.make_dir(OsStr::new(&there.next()?.to_string()), 0o700, None)?;
            }
            dir.remove_file(OsStr::new(NEXT))?;
            dir.remove_file(OsStr::new(CURRENT))?;
            authorized::remove(&dir)?;
            dir.sync()?; // a power cut does not restore it
            for old in there.all {
                dir.remove_all(OsStr::new(&old.to_string()))?;
            }
            dir.sync()
        };
        remove().map_err(|e| self.failed(&self.path(), e))
    }
}
