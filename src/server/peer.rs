//! The peer of a socket connection (`SO_PEERCRED`) and the role that its socket grants.

use tokio::net::UnixStream;
use tokio::sync::watch;

/// What a socket lets its peers do. Each role has a socket of its own, so that the kernel decides
/// who has it, and a container can be given exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Read who the device is.
    Read,
    /// The same, and use the device's key.
    Sign,
    /// The same, and send admin commands.
    Admin,
}

impl Role {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Sign, Self::Admin];

    /// The name of its socket in the configuration and in `FileDescriptorName=`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "agent",
            Self::Sign => "sign",
            Self::Admin => "admin",
        }
    }
}

/// The process at the other end of a connection, and the role that the socket grants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) role: Role,
    pub(super) uid: Option<u32>,
    pub(super) pid: Option<i32>,
}

impl Peer {
    /// Reads the peer credentials from the kernel (`SO_PEERCRED` in unix(7)).
    pub(super) fn of(stream: &UnixStream, role: Role) -> Self {
        let credentials = stream.peer_cred().ok();
        Self {
            role,
            uid: credentials.map(|credentials| credentials.uid()),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }
}

/// The shutdown of a socket: it is signalled when the sender is dropped.
pub(crate) type ShutdownSignal = watch::Receiver<()>;
