//! Threads of the sockets: one for each right, with a tokio runtime of its own. Whatever the clients of
//! one socket bring about, it delays neither the agent's loop nor the other sockets.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::server::peer::Right;

/// Stack of such a thread, in bytes: the kernel gives what is used of it.
const STACK: usize = 1024 * 1024;
/// Threads for work that blocks: one that signs, two that read keys.
const MAX_BLOCKING: usize = 4;
/// A thread that does not get to a task within this time hangs.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);

/// Runs the tasks of one right's sockets. Dropping it ends them and the thread.
#[derive(Debug)]
pub struct SocketRuntime {
    handle: Handle,
    _open: oneshot::Sender<()>,
}

impl SocketRuntime {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system refuses a thread, or an event queue.
    pub fn start(right: Right) -> io::Result<Self> {
        let name = format!("{}.sock", right.as_str());
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
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(task)
    }

    /// Calls `make` on the caller's thread; sockets that it makes belong to this runtime.
    pub fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        let _within = self.handle.enter();
        make()
    }

    /// Observes whether the thread gets to its tasks.
    pub fn pulse(&self) -> Pulse {
        Pulse { handle: self.handle.clone(), beat: None }
    }
}

/// Whether a thread of the sockets is alive, for the watchdog. It may be busy for long.
#[derive(Debug)]
pub struct Pulse {
    handle: Handle,
    beat: Option<(Instant, JoinHandle<()>)>,
}

impl Pulse {
    /// Whether the thread has run a task since it was last asked, or was asked not long ago.
    pub fn is_there(&mut self) -> bool {
        match &self.beat {
            Some((asked, beat)) if !beat.is_finished() => asked.elapsed() < LONGEST_SILENCE,
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
        let runtime = SocketRuntime::start(Right::Read).unwrap();
        let mut pulse = runtime.pulse();
        assert!(pulse.is_there());
        let (go_on, wait) = mpsc::channel::<()>();
        let (hanging, hangs) = oneshot::channel();
        runtime.spawn(async move {
            let _ = hanging.send(());
            let _ = wait.recv(); // blocks the thread
        });
        hangs.await.unwrap();
        assert!(pulse.is_there(), "the task before was run, and this one may be");
        tokio::time::pause();
        tokio::time::advance(LONGEST_SILENCE).await;
        assert!(!pulse.is_there());
        drop(go_on);
        while !pulse.is_there() {
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn tasks_end_with_the_runtime() {
        let runtime = SocketRuntime::start(Right::Admin).unwrap();
        let task = runtime.spawn(std::future::pending::<()>());
        drop(runtime);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
