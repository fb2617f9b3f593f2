//! What is served beside everything else: the sockets that the service manager passed or, where it passed none, one for each
//! right that the agent binds itself; and the file with the figures, if there is to be one. The sockets are served by threads
//! of their own, the file by the agent's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::{self, Limits};
use crate::platform::process;
use crate::platform::systemd::PassedSocket;
use crate::server::calls::CallLimits;
use crate::server::connection_limit::Places;
use crate::server::context::Lines;
use crate::server::listener::{BindError, Socket};
use crate::server::peer::Right;
use crate::server::runtime::{Pulse, SocketRuntime};
use crate::server::textfile::Textfile;

/// What the agent itself may need at once, and more.
const OWN_FILES: usize = 128;
/// Time for a socket to close: more than its callers have. Its thread may be busy, or hang.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The threads of the sockets, and word of those that fail.
pub(super) struct Threads {
    read: SocketRuntime,
    sign: SocketRuntime,
    admin: SocketRuntime,
    failures: mpsc::UnboundedSender<Right>,
}

impl Threads {
    /// Starts them. What is received is the right of a socket that is not served any more although
    /// nobody closed it: its task panicked, or its thread is gone.
    pub(super) fn start() -> io::Result<(Self, mpsc::UnboundedReceiver<Right>)> {
        let (failures, failed) = mpsc::unbounded_channel();
        let start = SocketRuntime::start;
        let (read, sign, admin) = (start(Right::Read)?, start(Right::Sign)?, start(Right::Admin)?);
        Ok((Self { read, sign, admin, failures }, failed))
    }

    /// Observes all of them, for the watchdog.
    pub(super) fn pulses(&self) -> Vec<Pulse> {
        Right::ALL.map(|right| self.of(right).pulse()).into()
    }

    fn of(&self, right: Right) -> &SocketRuntime {
        match right {
            Right::Read => &self.read,
            Right::Sign => &self.sign,
            Right::Admin => &self.admin,
        }
    }
}

/// All sockets, and the file. They are gone with it, those apart that the service manager keeps.
pub(super) struct Server {
    threads: Threads,
    passed: Vec<Served>,
    bound: Vec<(Right, config::SocketConfig, Served)>,
    textfile: Option<Textfile>,
    /// Returns memory after a crowd, and records what is counted.
    upkeep: JoinHandle<((), (), ())>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.upkeep.abort();
    }
}

impl Server {
    pub(super) fn start(
        threads: Threads,
        passed: Vec<PassedSocket>,
        at: &config::SocketConfig,
        textfile: Option<&Path>,
        lines: &Lines,
    ) -> Result<Self, BindError> {
        let (heap, signatures) = (Arc::clone(&lines.heap), Arc::clone(&lines.signatures));
        let keys_given = Arc::clone(&lines.keys_given);
        let upkeep =
            tokio::spawn(async move { tokio::join!(heap.run(), signatures.run(), keys_given.run()) });
        let mut server = Self { threads, passed: Vec::new(), bound: Vec::new(), textfile: None, upkeep };
        for socket in passed {
            server.passed.extend(adopt(&server.threads, socket, at, lines)?);
        }
        // Where some are passed, one that is not was taken away: its right is not given by another way.
        if server.passed.is_empty() {
            for right in Right::ALL {
                let served = bind(&server.threads, right, at, lines)?;
                server.bound.push((right, at.clone(), served));
            }
        }
        server.textfile = textfile.map(|path| Textfile::keep(path, lines));
        server.limit(at.limits);
        lines.signing.limit(at.signatures_per_minute);
        Ok(server)
    }

    /// Moves to other places, if the configuration names such that can be had. What the service manager passed stays
    /// where its unit has it.
    pub(super) async fn follow(&mut self, to: &config::SocketConfig, textfile: Option<&Path>, lines: &Lines) {
        if textfile != self.textfile.as_ref().map(Textfile::path) {
            if let Some(before) = self.textfile.take() {
                before.stop().await;
            }
            self.textfile = textfile.map(|path| Textfile::keep(path, lines));
        }
        for (right, at, served) in &mut self.bound {
            // Another group of the same socket counts from the next start.
            if place(to, *right).path == place(at, *right).path {
                continue;
            }
            match bind(&self.threads, *right, to, lines) {
                Ok(moved) => {
                    *at = to.clone();
                    std::mem::replace(served, moved).stop().await;
                }
                Err(e) => tracing::error!("{e}. The socket stays at {}", place(at, *right).path.display()),
            }
        }
        self.limit(to.limits);
        lines.signing.limit(to.signatures_per_minute);
    }

    /// Each connection is an open file, and the agent needs some itself.
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
            // Fewer in all are fewer for each.
            let half = (connections / 2).max(1);
            Limits { connections, of_one_user: configured.of_one_user.min(half) }
        } else {
            configured
        };
        for served in sockets {
            served.places.limit(limits);
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

/// A socket that is served.
struct Served {
    task: JoinHandle<()>,
    open: watch::Sender<()>,
    places: Places,
    calls: CallLimits,
}

impl Served {
    fn new(
        threads: &Threads,
        right: Right,
        socket: Socket,
        at: &config::SocketConfig,
        lines: &Lines,
    ) -> Self {
        let (open, closing) = watch::channel(());
        let places = Places::new(at.limits); // as far as there are files for them: see limit
        let calls = CallLimits::default();
        let serving = socket.serve(lines.clone(), places.clone(), calls.clone(), closing);
        let serving = threads.of(right).spawn(serving);
        let failures = threads.failures.clone();
        let task = tokio::spawn(async move {
            if serving.await.is_err() {
                let _ = failures.send(right);
            }
        });
        Self { task, open, places, calls }
    }

    async fn stop(self) {
        drop(self.open);
        let _ = timeout(STOP_LIMIT, self.task).await; // the socket's file goes with it
    }
}

/// `None` for one whose right is unknown: it is not served.
fn adopt(
    threads: &Threads,
    passed: PassedSocket,
    at: &config::SocketConfig,
    lines: &Lines,
) -> Result<Option<Served>, BindError> {
    let PassedSocket { name, listener } = passed;
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(Path::new("")).to_owned();
    let Some(right) = Right::ALL.into_iter().find(|right| right.as_str() == name) else {
        tracing::error!(
            socket = %path.display(),
            "a socket called {name:?} was passed to the agent, which knows agent, sign and admin only: correct \
             FileDescriptorName= in its unit"
        );
        return Ok(None);
    };
    let socket = threads.of(right).within(|| Socket::adopt(listener, right));
    let socket = socket.map_err(|source| BindError::new(&path, source))?;
    tracing::info!(socket = %path.display(), right = right.as_str(), "local programs are served");
    Ok(Some(Served::new(threads, right, socket, at, lines)))
}

fn bind(
    threads: &Threads,
    right: Right,
    at: &config::SocketConfig,
    lines: &Lines,
) -> Result<Served, BindError> {
    let Place { path, group } = place(at, right);
    let socket = threads.of(right).within(|| Socket::bind(path, right, group))?;
    tracing::info!(socket = %path.display(), right = right.as_str(), "local programs are served");
    Ok(Served::new(threads, right, socket, at, lines))
}

struct Place<'a> {
    path: &'a Path,
    group: Option<&'a str>,
}

fn place(at: &config::SocketConfig, right: Right) -> Place<'_> {
    match right {
        Right::Read => Place { path: &at.path, group: at.group.as_deref() },
        Right::Sign => Place { path: &at.sign_path, group: at.sign_group.as_deref() },
        Right::Admin => Place { path: &at.admin_path, group: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Snapshot;
    use crate::publish::broadcast::Publication;
    use crate::server::admin::Orders;
    use crate::time::Timestamp;

    #[tokio::test]
    async fn lost_sockets_are_told_and_closed_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = config::SocketConfig {
            path: folder.path().join("agent.sock"),
            group: None,
            sign_path: folder.path().join("sign.sock"),
            sign_group: None,
            admin_path: folder.path().join("admin.sock"),
            limits: Limits { connections: 4, of_one_user: 2 },
            signatures_per_minute: 1,
        };
        let publication = Publication::new(Snapshot::unconfigured(), Timestamp::from_secs(0));
        let lines = Lines::new(&publication, Orders::channel().0);
        let (threads, mut lost) = Threads::start().unwrap();
        bind(&threads, Right::Read, &at, &lines).unwrap().stop().await;
        assert!(!at.path.exists() && lost.try_recv().is_err());
        let _served = bind(&threads, Right::Sign, &at, &lines).unwrap();
        drop(threads); // as a thread that panics drops its runtime
        assert!(matches!(lost.recv().await, Some(Right::Sign)));
    }
}
