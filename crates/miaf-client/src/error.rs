//! Why there is no response, or none that can be used.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use miaf_spiffe::text::Excerpt;
use nix::unistd::{Gid, Group};

use super::api::{IdentityName, Open, ProblemCode};

/// Why there is no response of the agent, or none that can be used. Displays what failed;
/// [`hint`](Self::hint) says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// No process listens there, or the caller may not connect.
    Connect(PathBuf, io::Error),
    /// The caller may not send admin commands.
    NotRoot(PathBuf),
    /// The connection broke.
    Broken(String),
    /// A process listens, and there is no response in time.
    Silent(Duration),
    /// The agent refused the request.
    Refused {
        /// The HTTP status.
        status: u16,
        /// What kind of error it is. `None`: an older agent, or another program at its socket.
        code: Option<Open<ProblemCode>>,
        /// What failed, on what, and why.
        detail: String,
        /// What to do, where something is known to help.
        hint: Option<String>,
    },
    /// The response is not one that this client knows.
    Unintelligible(String),
}

/// Characters of what a message quotes of a response or of a library's error.
const MAX_REASON: usize = 200;
/// Characters of the detail of a refused request.
const MAX_DETAIL: usize = 2048;
/// Characters of its hint.
const MAX_HINT: usize = 512;

impl ClientError {
    /// Error of a response that this client does not know.
    pub(crate) fn unintelligible(why: &dyn fmt::Display) -> Self {
        Self::Unintelligible(Excerpt::of(why, MAX_REASON).into())
    }

    /// A request that is refused, by texts of a response.
    pub(crate) fn refused(
        status: u16,
        code: Option<Open<ProblemCode>>,
        detail: &dyn fmt::Display,
        hint: Option<&str>,
    ) -> Self {
        let detail = Excerpt::of(detail, MAX_DETAIL).into();
        Self::Refused { status, code, detail, hint: hint.map(|hint| Excerpt::of(hint, MAX_HINT).into()) }
    }

    /// The error that the agent has for a name that it does not know.
    pub(crate) fn unknown_identity(name: &IdentityName) -> Self {
        let (code, detail) = (ProblemCode::UnknownIdentity, format!("there is no identity \"{name}\""));
        Self::refused(404, Some(code.into()), &detail, Some("Use a name of the status"))
    }

    /// Whether the same request may succeed later by itself: the agent is about to start,
    /// or is busy.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect(_, e) => matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
            Self::Broken(_) | Self::Silent(_) => true,
            Self::Refused { code: Some(code), .. } => {
                use ProblemCode::{Busy, ConnectionLimit, NotAvailable, RateExceeded};
                matches!(code.known(), Some(Busy | ConnectionLimit | NotAvailable | RateExceeded))
            }
            // An agent from before the codes.
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

impl ClientError {
    /// What to do, as an imperative without a full stop at its end. `None`: nothing is known to
    /// help.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::NotRoot(_) => "Run the same as root, or with sudo before it",
            Self::Connect(socket, e) if e.kind() == ErrorKind::PermissionDenied => {
                return Some(join_group(socket).into());
            }
            Self::Connect(..) | Self::Silent(_) => "Check whether it is running: systemctl status miaf-agent",
            Self::Unintelligible(_) => "Check that this program and the agent are of the same version",
            Self::Refused { hint, .. } => return hint.as_deref().map(Cow::Borrowed),
            Self::Broken(_) => return None,
        };
        Some(fixed.into())
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot(socket) => {
                write!(f, "permission denied at {}: only root may send admin commands", socket.display())
            }
            Self::Connect(socket, e) if e.kind() == ErrorKind::PermissionDenied => write!(
                f,
                "permission denied at {}: only members of the group of that socket may connect",
                socket.display()
            ),
            Self::Connect(socket, e) => write!(f, "no agent answers at {} ({e})", socket.display()),
            Self::Silent(limit) => write!(
                f,
                "the agent did not answer within {}",
                humantime::format_duration(Duration::from_secs(limit.as_secs().max(1)))
            ),
            Self::Broken(why) => write!(f, "the agent did not answer: {why}"),
            Self::Refused { detail, .. } => f.write_str(detail),
            Self::Unintelligible(why) => write!(f, "the agent's answer cannot be read: {why}"),
        }
    }
}

/// How to become a member of the socket's group, by name where it is one for people.
fn join_group(socket: &Path) -> String {
    match fs::metadata(socket).map(|found| found.gid()) {
        Ok(gid) if gid != 0 => {
            let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
            let group = group.map_or_else(|| gid.to_string(), |group| group.name);
            format!(
                "Become a member of the group {group}, from the next login on: usermod --append \
                 --groups {group} USER, as root"
            )
        }
        _ => "Become a member of the group of that socket".into(),
    }
}

impl std::error::Error for ClientError {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hint_is_imperative_and_apart_from_the_message() {
        let connect = |kind: ErrorKind| ClientError::Connect("/run/agent.sock".into(), kind.into());
        for error in [
            connect(ErrorKind::NotFound),
            connect(ErrorKind::PermissionDenied),
            connect(ErrorKind::PermissionDenied).of_admin_command(),
            ClientError::Silent(Duration::from_secs(5)),
            ClientError::Unintelligible("it is HTML".into()),
            ClientError::Connect("/".into(), ErrorKind::PermissionDenied.into()),
        ] {
            let (message, hint) = (error.to_string(), error.hint().unwrap());
            assert!(hint.starts_with(char::is_uppercase) && !hint.ends_with('.'), "{hint}");
            assert!(!message.ends_with('.') && !message.contains('?'), "{message}");
            for remedy in [&*hint, "systemctl", "usermod", "sudo"] {
                assert!(!message.contains(remedy), "{message}");
            }
        }
        assert!(ClientError::Broken("it has ended".into()).hint().is_none());
    }

    #[test]
    fn refusal_passes_by_its_code() {
        let refused =
            |status, code: Option<&str>| ClientError::refused(status, code.map(Open::parse), &"no", None);
        for (status, code, passes) in [
            (503, Some("not-available"), true),
            (503, Some("busy"), true),
            (503, Some("connection-limit"), true),
            (429, Some("rate-exceeded"), true),
            (503, Some("key-lost"), false),
            (503, Some("of-a-newer-agent"), false),
            (404, Some("unknown-identity"), false),
            (503, None, true),
            (404, None, false),
        ] {
            assert_eq!(refused(status, code).may_pass(), passes, "{status} {code:?}");
        }
    }
}
