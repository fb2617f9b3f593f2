//! The metrics of `/metrics` in a file, for the textfile collector of Prometheus's node exporter.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::platform::{clock, files};
use crate::server::context::ServerContext;
use crate::server::metrics;

/// Minimum time between two writes, however much changes.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Time for a write when the agent is shutting down: a disk that hangs does not keep it from
/// ending.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// A file that is rewritten whenever the state changes: at every refresh of the trust bundle at
/// least. It is removed when the agent ends, so that old metrics are not taken for those of a
/// running agent.
#[derive(Debug)]
pub(crate) struct Textfile {
    path: PathBuf,
    writing: JoinHandle<()>,
    running: oneshot::Sender<()>,
}

impl Textfile {
    /// Starts to write the file.
    pub(crate) fn start(path: &Path, context: &ServerContext) -> Self {
        let (path, (running, stopped)) = (path.to_owned(), oneshot::channel());
        Self { writing: tokio::spawn(write(path.clone(), context.clone(), stopped)), path, running }
    }

    /// Path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Stops to write the file, and removes it.
    pub(crate) async fn stop(self) {
        drop(self.running);
        let _ = timeout(WRITE_LIMIT, self.writing).await; // a write under way would restore the file
        if let Err(e) = files::remove_if_there(&self.path) {
            tracing::warn!("metrics file {} not removed: {e}", self.path.display());
        }
    }
}

async fn write(path: PathBuf, mut context: ServerContext, mut stopped: oneshot::Receiver<()>) {
    let mut has_failed = false;
    loop {
        let text =
            metrics::text(&context.snapshots.borrow_and_update(), &context.counters, clock::now().wall);
        let to = path.clone();
        let written = spawn_blocking(move || files::replace(&to, text.as_bytes(), 0o644)).await;
        let written = written.unwrap_or_else(|e| Err(io::Error::other(e)));
        if let Err(e) = &written
            && !has_failed
        {
            tracing::warn!(
                "metrics file {} not written: {e}. Check metrics.textfile in the configuration, and ReadWritePaths= in the agent's unit",
                path.display()
            );
        }
        has_failed = written.is_err();
        let next = async {
            sleep(MIN_INTERVAL).await;
            context.snapshots.changed().await
        };
        tokio::select! {
            changed = next => if changed.is_err() { return },
            _ = &mut stopped => return,
        }
    }
}
