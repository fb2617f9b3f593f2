//! Listeners: the sockets that the service manager passed or, where it passed none, one for each
//! role that the agent binds itself; and the metrics file, if one is configured. The sockets are
//! served by threads of their own, the file by the agent's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::reporting::hint;
use crate::config::{self, Limits};
use crate::platform::process;
use crate::platform::systemd::PassedSocket;
use crate::server::call_limit::CallLimits;
use crate::server::connection_limit::ConnectionLimit;
use crate::server::context::ServerContext;
use crate::server::listener::{BindError, Listener};
use crate::server::peer::Role;
use crate::server::runtime::{Pulse, SocketRuntime};
use crate::server::textfile::Textfile;
use miaf_spiffe::text::Excerpt;

/// Files that the agent itself may need at once, and more.
const OWN_FILES: usize = 128;
/// Time limit for closing a socket: more than its clients have. Its thread may be busy, or hang.
/// Characters of the path of a socket in the log.
const MAX_PATH: usize = 256;
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The threads of the sockets, and the channel that reports failed ones.
pub(super) struct Threads {
    read: SocketRuntime,
    sign: SocketRuntime,
    admin: SocketRuntime,
    failures: mpsc::UnboundedSender<Role>,
}

impl Threads {
    /// Starts them. The receiver yields the role of each socket that is not served any more
    /// although it was not closed: its task panicked, or its thread is gone.
    pub(super) fn start() -> io::Result<(Self, mpsc::UnboundedReceiver<Role>)> {
        let (failures, failed) = mpsc::unbounded_channel();
        let start = SocketRuntime::start;
        let (read, sign, admin) = (start(Role::Read)?, start(Role::Sign)?, start(Role::Admin)?);
        Ok((Self { read, sign, admin, failures }, failed))
    }

    /// Observes all of them, for the watchdog.
    pub(super) fn pulses(&self) -> Vec<Pulse> {
        Role::ALL.map(|role| self.of(role).pulse()).into()
    }

    fn of(&self, role: Role) -> &SocketRuntime {
        match role {
            Role::Read => &self.read,
            Role::Sign => &self.sign,
            Role::Admin => &self.admin,
        }
    }
}

/// All sockets, and the metrics file. Dropping it closes those that the service manager does not
/// keep.
pub(super) struct Listeners {
    threads: Threads,
    passed: Vec<Served>,
    bound: Vec<(Role, config::SocketConfig, Served)>,
    textfile: Option<Textfile>,
    /// Returns memory after many connections, and logs what is counted.
    upkeep: JoinHandle<((), (), ())>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.upkeep.abort();
    }
}

impl Listeners {
    pub(super) fn start(
        threads: Threads,
        passed: Vec<PassedSocket>,
        at: &config::SocketConfig,
        textfile: Option<&Path>,
        context: &ServerContext,
    ) -> Result<Self, BindError> {
        let (heap, signatures) = (Arc::clone(&context.heap), Arc::clone(&context.signatures));
        let keys_sent = Arc::clone(&context.keys_sent);
        let upkeep = tokio::spawn(async move { tokio::join!(heap.run(), signatures.run(), keys_sent.run()) });
        let mut listeners = Self { threads, passed: Vec::new(), bound: Vec::new(), textfile: None, upkeep };
        for socket in passed {
            listeners.passed.extend(adopt(&listeners.threads, socket, at, context)?);
        }
        // Where some are passed, one that is not was removed: its role is not granted by another
        // way.
        if listeners.passed.is_empty() {
            // All are bound before one is served: a client that gets a response from one may use
            // another at once.
            let bind = |role| Ok((role, bind(&listeners.threads, role, at)?));
            let bound = Role::ALL.into_iter().map(bind).collect::<Result<Vec<_>, BindError>>()?;
            for (role, socket) in bound {
                let served = Served::new(&listeners.threads, role, socket, at, context);
                log_served(role, address_of(at, role).path);
                listeners.bound.push((role, at.clone(), served));
            }
        }
        listeners.textfile = textfile.map(|path| Textfile::start(path, context));
        listeners.limit(at.limits);
        context.signing.set_rate(at.signatures_per_minute);
        Ok(listeners)
    }

    /// Moves to the paths of another configuration, where they can be bound. What the service
    /// manager passed stays where its unit has it.
    pub(super) async fn follow(
        &mut self,
        to: &config::SocketConfig,
        textfile: Option<&Path>,
        context: &ServerContext,
    ) {
        if textfile != self.textfile.as_ref().map(Textfile::path) {
            if let Some(before) = self.textfile.take() {
                before.stop().await;
            }
            self.textfile = textfile.map(|path| Textfile::start(path, context));
        }
        for (role, at, served) in &mut self.bound {
            // Another group of the same socket counts from the next start.
            if address_of(to, *role).path == address_of(at, *role).path {
                continue;
            }
            match bind(&self.threads, *role, to) {
                Ok(socket) => {
                    let moved = Served::new(&self.threads, *role, socket, to, context);
                    log_served(*role, address_of(to, *role).path);
                    *at = to.clone();
                    std::mem::replace(served, moved).stop().await;
                }
                Err(e) => tracing::error!(
                    hint = hint(&e),
                    "{e}. The socket stays at {}",
                    address_of(at, *role).path.display()
                ),
            }
        }
        self.limit(to.limits);
        context.signing.set_rate(to.signatures_per_minute);
    }

    /// Sets the connection limits. Each connection is an open file, and the agent needs some
    /// itself.
    fn limit(&self, configured: Limits) {
        let sockets: Vec<&Served> =
            self.passed.iter().chain(self.bound.iter().map(|(_, _, served)| served)).collect();
        let files = usize::try_from(process::open_files()).unwrap_or(usize::MAX);
        let of_each = files.saturating_sub(OWN_FILES) / sockets.len().max(1);
        let connections = configured.connections.min(of_each.max(1));
        if connections < configured.connections {
            tracing::warn!(
                files,
                "no more than {connections} connections are served on each socket, and not {} as configured: the \
                 limit of open files does not allow more (LimitNOFILE= in the agent's unit)",
                configured.connections
            );
        }
        let limits = if connections < configured.connections {
            // Fewer in all are fewer for each user.
            let half = (connections / 2).max(1);
            Limits { connections, of_one_user: configured.of_one_user.min(half) }
        } else {
            configured
        };
        for served in sockets {
            served.connection_limit.set_limits(limits);
            served.calls.set(limits);
        }
    }

    pub(super) async fn stop(mut self) {
        if let Some(textfile) = self.textfile.take() {
            textfile.stop().await;
        }
        let bound = std::mem::take(&mut self.bound).into_iter().map(|(_, _, served)| served);
        let all = std::mem::take(&mut self.passed).into_iter().chain(bound);
        let stopping: Vec<_> = all.map(|served| tokio::spawn(served.stop())).collect();
        for stopped in stopping {
            let _ = stopped.await;
        }
    }
}

/// A socket and the task that serves it.
struct Served {
    task: JoinHandle<()>,
    open: watch::Sender<()>,
    connection_limit: ConnectionLimit,
    calls: CallLimits,
}

impl Served {
    fn new(
        threads: &Threads,
        role: Role,
        socket: Listener,
        at: &config::SocketConfig,
        context: &ServerContext,
    ) -> Self {
        let (open, closing) = watch::channel(());
        let connection_limit = ConnectionLimit::new(at.limits); // as far as there are files for them: see limit
        let calls = CallLimits::default();
        let serving = socket.serve(context.clone(), connection_limit.clone(), calls.clone(), closing);
        let serving = threads.of(role).spawn(serving);
        let failures = threads.failures.clone();
        let task = tokio::spawn(async move {
            if serving.await.is_err() {
                let _ = failures.send(role);
            }
        });
        Self { task, open, connection_limit, calls }
    }

    async fn stop(self) {
        drop(self.open);
        let _ = timeout(STOP_LIMIT, self.task).await; // the socket's file goes with it
    }
}

/// `None` for a socket whose role is unknown: it is not served.
fn adopt(
    threads: &Threads,
    passed: PassedSocket,
    at: &config::SocketConfig,
    context: &ServerContext,
) -> Result<Option<Served>, BindError> {
    let PassedSocket { name, listener } = passed;
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(Path::new("")).to_owned();
    let Some(role) = Role::ALL.into_iter().find(|role| role.as_str() == name) else {
        tracing::error!(
            socket = %path.display(),
            "a socket called {name:?} was passed to the agent, which knows agent, sign and admin only: correct \
             FileDescriptorName= in its unit"
        );
        return Ok(None);
    };
    let socket = threads.of(role).within(|| Listener::adopt(listener, role));
    let socket = socket.map_err(|e| BindError::new(&path, &e))?;
    log_served(role, &path);
    Ok(Some(Served::new(threads, role, socket, at, context)))
}

fn log_served(role: Role, path: &Path) {
    tracing::info!(socket = role.as_str(), path = %Excerpt::of(path.display(), MAX_PATH), "local programs are served");
}

fn bind(threads: &Threads, role: Role, at: &config::SocketConfig) -> Result<Listener, BindError> {
    let SocketAddress { path, group } = address_of(at, role);
    threads.of(role).within(|| Listener::bind(path, role, group))
}

struct SocketAddress<'a> {
    path: &'a Path,
    group: Option<&'a str>,
}

fn address_of(at: &config::SocketConfig, role: Role) -> SocketAddress<'_> {
    match role {
        Role::Read => SocketAddress { path: &at.path, group: at.group.as_deref() },
        Role::Sign => SocketAddress { path: &at.sign_path, group: at.sign_group.as_deref() },
        Role::Admin => SocketAddress { path: &at.admin_path, group: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ProviderKind;
    use crate::publish::Snapshot;
    use crate::publish::broadcast::Broadcaster;
    use crate::server::command_queue::CommandQueue;
    use miaf_spiffe::time::Timestamp;

    fn sockets_in(dir: &Path) -> config::SocketConfig {
        config::SocketConfig {
            path: dir.join("agent.sock"),
            group: None,
            sign_path: dir.join("sign.sock"),
            sign_group: None,
            admin_path: dir.join("admin.sock"),
            limits: Limits { connections: 4, of_one_user: 2 },
            signatures_per_minute: 1,
        }
    }

    fn context() -> (Broadcaster, ServerContext) {
        let snapshot = Snapshot::unconfigured(ProviderKind::Tpm);
        let publication = Broadcaster::new(snapshot, Timestamp::from_secs(0));
        let context = ServerContext::new(&publication, CommandQueue::new().0);
        (publication, context)
    }

    #[tokio::test]
    async fn lost_sockets_are_reported_and_closed_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = sockets_in(dir.path());
        let (_publication, context) = context();
        let (threads, mut lost) = Threads::start().unwrap();
        let serve = |role| {
            let socket = bind(&threads, role, &at).unwrap();
            Served::new(&threads, role, socket, &at, &context)
        };
        serve(Role::Read).stop().await;
        assert!(!at.path.exists() && lost.try_recv().is_err());
        let _served = serve(Role::Sign);
        drop(threads); // as a thread that panics drops its runtime
        assert!(matches!(lost.recv().await, Some(Role::Sign)));
    }
}
