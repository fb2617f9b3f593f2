//! `files.dir` and `files.software_key_dir`: the directories in which identities are published. The
//! agent creates, replaces and removes directories in them, so none of these may be one of another
//! use.

use std::path::{Component, Path, PathBuf};

use toml::Spanned;

use super::reader::Reader;
use super::{ConfigError, IdentityConfig, MAX_PATH, raw};
use miaf_spiffe::text::Excerpt;

/// Directory in the state directory that the agent alone may read (`crate::state`).
const PRIVATE: &str = "private";
const HINT: &str = "Name a directory that has no other use";

/// The directories of `[files]`.
pub(super) struct Directories {
    /// `files.dir`, or its default.
    pub(super) files: PathBuf,
    /// `files.software_key_dir`
    pub(super) software_keys: Option<PathBuf>,
}

impl Directories {
    pub(super) fn of(files: &raw::Files, state_dir: &Path, reader: &Reader<'_>) -> Self {
        let read = |dir: &Option<Spanned<PathBuf>>| dir.as_ref().map(|dir| reader.path(dir.get_ref()));
        Self {
            files: read(&files.dir).unwrap_or_else(|| state_dir.join("svid")),
            software_keys: read(&files.software_key_dir),
        }
    }
}

impl Reader<'_> {
    /// Checks that no identity is published where the agent has its state, or another identity has
    /// its files.
    pub(super) fn check_directories(
        &self,
        raw: &raw::Files,
        directories: &Directories,
        state_dir: &Path,
        identities: &[IdentityConfig],
    ) -> Result<(), ConfigError> {
        let state = resolved(state_dir);
        let private = state.join(PRIVATE);
        let files = resolved(&directories.files);
        let keys = directories.software_keys.as_deref().map(resolved);
        let both = [
            ("files.dir", raw.dir.as_ref(), Some(&files)),
            ("files.software_key_dir", raw.software_key_dir.as_ref(), keys.as_ref()),
        ];
        for (key, written, dir) in both {
            let (Some(written), Some(dir)) = (written, dir) else { continue };
            let holds_state = |identity: &IdentityConfig| state.starts_with(dir.join(identity.name.as_str()));
            if *dir == state || dir.starts_with(&private) || identities.iter().any(holds_state) {
                let state = Excerpt::of(state.display(), MAX_PATH);
                let what = format!(
                    "identities would be published among the agent's own state: state_dir is {state}"
                );
                return Err(self.wrong(&written.span(), key, what).with_hint_text(HINT));
            }
        }
        let (Some(written), Some(keys)) = (&raw.software_key_dir, &keys) else { return Ok(()) };
        let within = |dir: &Path| -> Vec<PathBuf> {
            identities.iter().map(|identity| dir.join(identity.name.as_str())).collect()
        };
        let in_keys = within(keys);
        let collides = |published: &PathBuf| in_keys.iter().any(|other| overlap(published, other));
        if within(&files).iter().any(collides) {
            let files = Excerpt::of(files.display(), MAX_PATH);
            let what = format!("identities would be published twice in one directory: files.dir is {files}");
            return Err(self.wrong(&written.span(), "files.software_key_dir", what).with_hint_text(HINT));
        }
        Ok(())
    }
}

/// Whether one of two directories is the other, or is in it.
fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// A path without `.` and `..`. Links are not followed: the directories need not exist yet.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                resolved.pop();
            }
            part => resolved.push(part),
        }
    }
    resolved
}
