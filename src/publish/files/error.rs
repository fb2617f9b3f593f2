//! Error of a publication.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use crate::hint::Hint;
use crate::keys::KeyError;
use crate::platform::access::unwritable;

/// Error of a publication. What was published before is unchanged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum PublishError {
    /// A file operation failed.
    #[error("could not change the identity files under {}: {}", dir.display(), unwritable(dir, *is_own, source))]
    Files { dir: PathBuf, is_own: bool, source: io::Error },
    /// The key cannot be read.
    #[error("could not publish the key under {}: {why}", dir.display())]
    Key { dir: PathBuf, why: KeyError },
    /// A software key is never written in the clear where it would outlive a power cut (miaf-v0
    /// K2).
    #[error(
        "the software key is not published as software_key_dir says: {} is not on a tmpfs, and a software key is never \
         written in the clear to persistent storage",
        dir.display()
    )]
    Persistent { dir: PathBuf },
    /// The configured directory, or the identity's in it, is a symbolic link: its owner could lead
    /// readers to other files.
    #[error("nothing is published under {}: it is a symbolic link, which is not followed", dir.display())]
    Link { dir: PathBuf },
    /// Another user could replace the files.
    #[error("nothing is published under {}: it belongs to another user, or others may write in it", dir.display())]
    Exposed { dir: PathBuf },
}

impl Hint for PublishError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::Files { dir, is_own, source } => {
                return unwritable(dir, *is_own, source).hint().map(|hint| hint.into_owned().into());
            }
            Self::Key { why, .. } => return why.hint(),
            Self::Persistent { .. } => "Name a directory under /run in software_key_dir",
            Self::Link { .. } => {
                "Remove the link, and the agent creates the directory as it should be; or configure the directory that it \
                 leads to"
            }
            Self::Exposed { .. } => "Remove it with what is in it, and the agent creates it as it should be",
        };
        Some(fixed.into())
    }
}
