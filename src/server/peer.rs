//! Who asks, and what they may.

use tokio::net::UnixStream;
use tokio::sync::watch;

/// What a socket is for: one socket a right, so that the kernel decides, and a container can be given exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Reading who the device is.
    Read,
    /// The same, and use of the key.
    Sign,
    /// The same, and commands to the agent.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Sign, Self::Admin];

    /// The name that the socket has in the configuration, and as `FileDescriptorName=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "agent",
            Self::Sign => "sign",
            Self::Admin => "admin",
        }
    }
}

/// Who asks, and what the socket lets them do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) right: Right,
    pub(super) uid: Option<u32>,
    pub(super) pid: Option<i32>,
}

impl Caller {
    /// As the kernel has it (`SO_PEERCRED`).
    pub(super) fn of(stream: &UnixStream, right: Right) -> Self {
        let peer = stream.peer_cred().ok();
        Self { right, uid: peer.map(|peer| peer.uid()), pid: peer.and_then(|peer| peer.pid()) }
    }
}

/// Tells, by having no sender any more, that a socket is to be closed.
pub type Closing = watch::Receiver<()>;
