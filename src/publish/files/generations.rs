//! The generations in the directory of an identity: each is a directory of its own, and `current`
//! leads to one.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use super::content::{Content, Groups, readers};
use crate::platform::dir::{Attributes, Dir};

pub(super) const CURRENT: &str = "current";
/// The link that replaces [`CURRENT`].
pub(super) const NEXT: &str = ".current.new";

/// Makes `content` the current generation in `dir`, which is in `parent`. `path` is the path of
/// `dir`, for messages.
pub(super) fn make_current(
    parent: &Dir,
    dir: &Dir,
    path: &Path,
    content: &Content,
    groups: Groups,
) -> io::Result<u64> {
    let there = Generations::read(dir)?;
    if there.all.is_empty() {
        // The directory is durable before anything is in it, also where the attempt that created it
        // came no further.
        parent.sync()?;
    }
    if let Some(current) = there.current
        && matches(dir, current, content, groups)
    {
        there.remove_all_but(dir, path, current, there.previous(current), groups);
        return Ok(current);
    }
    let next = there.next()?;
    let (name, unnamed) = (next.to_string(), format!(".{next}.new"));
    let (name, unnamed) = (OsStr::new(&name), OsStr::new(&unnamed));
    let generation = dir.make_dir(unnamed, 0o750, groups.group)?;
    for (name, (bytes, readers)) in content {
        generation.write_new(OsStr::new(name), bytes, 0o640, groups.of(*readers))?;
    }
    generation.sync()?;
    dir.rename(unnamed, name)?;
    dir.sync()?; // the name is durable before anything points to it
    dir.remove_file(OsStr::new(NEXT))?;
    dir.symlink(name, OsStr::new(NEXT))?;
    dir.rename(OsStr::new(NEXT), OsStr::new(CURRENT))?;
    dir.sync()?;
    there.remove_all_but(dir, path, next, there.current, groups);
    Ok(next)
}

/// Parses the name of a generation's directory.
pub(super) fn generation(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// The generations in a directory.
pub(super) struct Generations {
    pub(super) all: Vec<u64>,
    pub(super) newest: u64,
    current: Option<u64>,
}

impl Generations {
    pub(super) fn read(dir: &Dir) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in dir.names()? {
            let Some(name) = entry.to_str() else { continue };
            if let Some(generation) = generation(name) {
                all.push(generation);
            } else if name.starts_with('.') && name.ends_with(".new") && name != NEXT {
                dir.remove_all(&entry)?; // begun before a power cut, and never renamed
            }
        }
        let current = dir.read_link(OsStr::new(CURRENT)).ok();
        let current = current.and_then(|to| generation(to.to_str()?)).filter(|current| all.contains(current));
        Ok(Self { newest: all.iter().copied().max().unwrap_or(0), all, current })
    }

    /// The number of the next generation.
    pub(super) fn next(&self) -> io::Result<u64> {
        let next = self.newest.checked_add(1);
        next.ok_or_else(|| io::Error::other("there is no higher number than that of a directory in it"))
    }

    fn previous(&self, generation: u64) -> Option<u64> {
        self.all.iter().copied().filter(|other| *other < generation).max()
    }

    /// Removes old generations. The previous one stays only for the same readers: or a group that may
    /// not read the key any more could still do so there. A failure does not matter to the
    /// publication: the next one tries again.
    fn remove_all_but(&self, dir: &Dir, path: &Path, current: u64, previous: Option<u64>, groups: Groups) {
        let previous = previous.filter(|previous| has_readers(dir, *previous, groups));
        for old in self.all.iter().filter(|old| **old != current && Some(**old) != previous) {
            if let Err(e) = dir.remove_all(OsStr::new(&old.to_string())) {
                let generation = path.join(old.to_string());
                tracing::warn!("old generation {} not removed: {e}", generation.display());
            }
        }
    }
}

/// Whether a generation has exactly this content.
fn matches(dir: &Dir, generation: u64, content: &Content, groups: Groups) -> bool {
    let Ok(generation) = dir.open_dir(OsStr::new(&generation.to_string())) else { return false };
    generation.attributes().is_ok_and(|found| is(found, 0o750, groups.group))
        && generation.names().is_ok_and(|names| names.len() == content.len())
        && content.iter().all(|(name, (bytes, readers))| {
            matches_file(&generation, OsStr::new(name), bytes, 0o640, groups.of(*readers))
        })
}

/// Whether a generation, of whatever content, is for exactly these readers.
fn has_readers(dir: &Dir, generation: u64, groups: Groups) -> bool {
    let Ok(generation) = dir.open_dir(OsStr::new(&generation.to_string())) else { return false };
    let is_for = |name: &OsStr| {
        let group = groups.of(readers(name.to_str().unwrap_or_default()));
        generation.attributes_of(name).is_ok_and(|found| is(found, 0o640, group))
    };
    generation.attributes().is_ok_and(|found| is(found, 0o750, groups.group))
        && generation.names().is_ok_and(|names| names.iter().all(|name| is_for(name)))
}

/// Whether a file is exactly this. One that has another hard link, or is a symbolic link, is not
/// the one that was published.
pub(super) fn matches_file(dir: &Dir, name: &OsStr, content: &[u8], mode: u32, group: Option<u32>) -> bool {
    dir.read_secret(name, content.len())
        .is_ok_and(|(found, there)| is(found, mode, group) && found.links == 1 && there.as_slice() == content)
}

fn is(found: Attributes, mode: u32, group: Option<u32>) -> bool {
    found.is_ours() && found.mode == mode && group.is_none_or(|group| found.gid == group)
}
