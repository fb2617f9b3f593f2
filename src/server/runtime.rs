//! Threads of the sockets: one per role, with a tokio runtime of its own, so that the clients of
//! one socket delay neither the event loop nor the other sockets.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::server::peer::Role;

/// Stack of such a thread, in bytes. The kernel provides what is used of it.
const STACK: usize = 1024 * 1024;
/// Threads for work that blocks: one that signs for each provider, two that read keys.
const MAX_BLOCKING: usize = 4;
/// A thread that does not run a task within this time hangs.
const HANG_LIMIT: Duration = Duration::from_secs(300);

/// Runs the tasks of one role's sockets. Dropping it ends them and the thread.
#[derive(Debug)]
pub(crate) struct SocketRuntime {
    handle: Handle,
    _open: oneshot::Sender<()>,
}

impl SocketRuntime {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system refuses a thread, or an event queue.
    pub(crate) fn start(role: Role) -> io::Result<Self> {
        let name = format!("{}.sock", role.as_str());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name(name.clone())
            .thread_stack_size(STACK)
            .max_blocking_threads(MAX_BLOCKING)
            .build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = oneshot::channel();
        thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let _ = runtime.block_on(closed);
            runtime.shutdown_background(); // a key that hangs must not keep the agent from ending
        })?;
        Ok(Self { handle, _open: open })
    }

    /// Runs a task on the thread. It ends with this runtime.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle.spawn(task)
    }

    /// Calls `make` on the current thread; sockets that it creates belong to this runtime.
    pub(crate) fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        let _within = self.handle.enter();
        make()
    }

    /// A check whether the thread runs its tasks.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse { handle: self.handle.clone(), beat: None }
    }
}

/// Check whether a thread of the sockets is alive, for the watchdog. It may be busy for long.
#[derive(Debug)]
pub(crate) struct Pulse {
    handle: Handle,
    beat: Option<(Instant, JoinHandle<()>)>,
}

impl Pulse {
    /// Whether the thread has run a task since the last check, or that check is recent.
    pub(crate) fn is_alive(&mut self) -> bool {
        match &self.beat {
            Some((since, beat)) if !beat.is_finished() => since.elapsed() < HANG_LIMIT,
            _ => {
                self.beat = Some((Instant::now(), self.handle.spawn(async {})));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn pulse_is_missed_when_the_thread_hangs() {
        let runtime = SocketRuntime::start(Role::Read).unwrap();
        let mut pulse = runtime.pulse();
        assert!(pulse.is_alive());
        let (go_on, wait) = mpsc::channel::<()>();
        let (hanging, hangs) = oneshot::channel();
        runtime.spawn(async move {
            let _ = hanging.send(());
            let _ = wait.recv(); // blocks the thread
        });
        hangs.await.unwrap();
        assert!(pulse.is_alive(), "the task before was run, and this one may be");
        tokio::time::pause();
        tokio::time::advance(HANG_LIMIT).await;
        assert!(!pulse.is_alive());
        drop(go_on);
        while !pulse.is_alive() {
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn tasks_end_with_the_runtime() {
        let runtime = SocketRuntime::start(Role::Admin).unwrap();
        let task = runtime.spawn(std::future::pending::<()>());
        drop(runtime);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
