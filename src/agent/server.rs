//! The sockets that are served beside everything else: those that the service manager passed, and where it passed none
//! for a right, one that the agent binds itself.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config;
use crate::deliver::Snapshot;
use crate::deliver::socket::{BindError, Right, Socket};
use crate::system::service::PassedSocket;

type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// All sockets. They are gone with it, those apart that the service manager keeps.
pub(super) struct Server {
    passed: Vec<(Right, JoinHandle<()>)>,
    bound: Vec<Bound>,
}

struct Bound {
    right: Right,
    at: config::Socket,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) fn start(
        passed: Vec<PassedSocket>,
        at: &config::Socket,
        snapshots: &Snapshots,
    ) -> Result<Self, BindError> {
        let mut server = Self { passed: Vec::new(), bound: Vec::new() };
        for PassedSocket { name, listener } in passed {
            let path =
                listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
            let path = path.unwrap_or_default();
            let Some(right) = Right::ALL.into_iter().find(|right| right.as_str() == name) else {
                tracing::error!(
                    socket = %path.display(),
                    "a socket called {name:?} was passed to the agent, which knows agent, sign and admin only: \
                     correct FileDescriptorName= in its unit"
                );
                continue;
            };
            let socket = Socket::adopt(listener, right).map_err(|source| BindError::new(&path, source))?;
            tracing::info!(socket = %path.display(), right = right.as_str(), "local programs are served");
            server.passed.push((right, tokio::spawn(socket.serve(snapshots.clone()))));
        }
        for right in Right::ALL {
            if !server.is_passed(right) {
                server.bound.push(Bound::start(right, at, snapshots)?);
            }
        }
        Ok(server)
    }

    fn is_passed(&self, right: Right) -> bool {
        self.passed.iter().any(|(passed, _)| *passed == right)
    }

    /// Moves to other places, if the configuration names such that can be had. What the service manager passed stays
    /// where its unit has it.
    pub(super) async fn follow(&mut self, to: &config::Socket, snapshots: &Snapshots) {
        for bound in &mut self.bound {
            if place(to, bound.right) == place(&bound.at, bound.right) {
                continue;
            }
            match Bound::start(bound.right, to, snapshots) {
                Ok(moved) => std::mem::replace(bound, moved).stop().await,
                Err(e) => tracing::error!(
                    "{e}. The socket stays at {}",
                    place(&bound.at, bound.right).path.display()
                ),
            }
        }
    }

    pub(super) async fn stop(self) {
        for (_, task) in self.passed {
            task.abort();
        }
        for bound in self.bound {
            bound.stop().await;
        }
    }
}

impl Bound {
    fn start(right: Right, at: &config::Socket, snapshots: &Snapshots) -> Result<Self, BindError> {
        let Place { path, group } = place(at, right);
        let socket = Socket::bind(path, right, group)?;
        tracing::info!(socket = %path.display(), right = right.as_str(), "local programs are served");
        Ok(Self { right, at: at.clone(), task: tokio::spawn(socket.serve(snapshots.clone())) })
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await; // the socket's file goes with it
    }
}

#[derive(PartialEq, Eq)]
struct Place<'a> {
    path: &'a Path,
    group: Option<&'a str>,
}

fn place(at: &config::Socket, right: Right) -> Place<'_> {
    match right {
        Right::Read => Place { path: &at.path, group: at.group.as_deref() },
        Right::Sign => Place { path: &at.sign_path, group: at.sign_group.as_deref() },
        Right::Admin => Place { path: &at.admin_path, group: None },
    }
}
