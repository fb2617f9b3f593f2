//! Why there is no response, or none that can be used.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use miaf_spiffe::text::Excerpt;
use nix::unistd::{Gid, Group};

/// Why the agent gave no answer, or not the one that was asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens, or the caller may not connect.
    Connect(PathBuf, io::Error),
    /// The caller may not give orders.
    NotRoot(PathBuf),
    /// The connection broke.
    Broken(String),
    /// A process listens, and there is no response in time.
    Silent(Duration),
    /// The agent said no.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why, in a sentence.
        detail: String,
    },
    /// The answer is not one that this client knows.
    Unintelligible(String),
}

/// Characters of what a message quotes of a response or of a library's error.
const MAX_REASON: usize = 200;

impl ClientError {
    /// A response that is not one that this client knows, and why.
    pub(crate) fn unintelligible(why: &dyn fmt::Display) -> Self {
        Self::Unintelligible(Excerpt::of(why, MAX_REASON).into())
    }

    /// Whether the same may be answered later without anybody's doing: the agent is about to start,
    /// or is busy.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect(_, e) => matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
            Self::Broken(_) | Self::Silent(_) => true,
            Self::Refused { status, .. } => matches!(status, 429 | 503),
            Self::NotRoot(_) | Self::Unintelligible(_) => false,
        }
    }

    /// The error of a request on the admin socket: a refused connection means that it is root's.
    pub fn of_admin_command(self) -> Self {
        match self {
            Self::Connect(socket, e) if e.kind() == ErrorKind::PermissionDenied => Self::NotRoot(socket),
            other => other,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot(socket) => write!(
                f,
                "you may not give the agent orders at {}: only root may. Try the same with sudo before it",
                socket.display()
            ),
            Self::Connect(socket, e) if e.kind() == ErrorKind::PermissionDenied => write!(
                f,
                "you may not ask the agent at {}: become a member of the group of that socket{}",
                socket.display(),
                group_of(socket)
            ),
            Self::Connect(socket, e) => write!(
                f,
                "no agent answers at {} ({e}). Is it running? Try: systemctl status miaf-agent",
                socket.display()
            ),
            Self::Silent(limit) => write!(
                f,
                "the agent did not answer within {}. Is it running? Try: systemctl status miaf-agent",
                humantime::format_duration(Duration::from_secs(limit.as_secs().max(1)))
            ),
            Self::Broken(why) => write!(f, "the agent did not answer: {why}"),
            Self::Refused { detail, .. } => f.write_str(detail),
            Self::Unintelligible(why) => write!(
                f,
                "the agent's answer cannot be read: {why}. Are this program and the agent of the same version?"
            ),
        }
    }
}

/// Which group that is and what to type, where it is one for people.
fn group_of(socket: &Path) -> String {
    match fs::metadata(socket).map(|found| found.gid()) {
        Ok(gid) if gid != 0 => {
            let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
            let group = group.map_or_else(|| gid.to_string(), |group| group.name);
            format!(
                " ({group}): usermod --append --groups {group} USER, as root; it counts from the next login"
            )
        }
        _ => String::new(),
    }
}

impl std::error::Error for ClientError {}
