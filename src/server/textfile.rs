//! The figures of `/metrics` in a file, for the textfile collector of Prometheus's node exporter.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::platform::{clock, files};
use crate::server::context::Lines;
use crate::server::metrics;

/// However much happens, it is not written more often.
const BETWEEN: Duration = Duration::from_secs(1);
/// A disk that hangs does not keep the agent from ending.
const LONGEST_WRITE: Duration = Duration::from_secs(2);

/// A file that is written anew whenever the agent has done something: at every look at the trust bundle at least. It is gone
/// when the agent has ended, so that nobody takes old figures for those of a device that is well.
#[derive(Debug)]
pub struct Textfile {
    path: PathBuf,
    writing: JoinHandle<()>,
    wanted: oneshot::Sender<()>,
}

impl Textfile {
    /// Writes it from now on.
    pub fn keep(path: &Path, lines: &Lines) -> Self {
        let (path, (wanted, unwanted)) = (path.to_owned(), oneshot::channel());
        Self { writing: tokio::spawn(write(path.clone(), lines.clone(), unwanted)), path, wanted }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it no longer, and removes it.
    pub async fn stop(self) {
        drop(self.wanted);
        let _ = timeout(LONGEST_WRITE, self.writing).await; // what is just being written would be back after its removal
        if let Err(e) = files::remove_if_there(&self.path) {
            tracing::warn!("the file with the figures, {}, could not be removed: {e}", self.path.display());
        }
    }
}

async fn write(path: PathBuf, mut lines: Lines, mut unwanted: oneshot::Receiver<()>) {
    let mut has_failed = false;
    loop {
        let text = metrics::text(&lines.snapshots.borrow_and_update(), &lines.counters, clock::now().wall);
        let to = path.clone();
        let written = spawn_blocking(move || files::replace(&to, text.as_bytes(), 0o644)).await;
        let written = written.unwrap_or_else(|e| Err(io::Error::other(e)));
        if let Err(e) = &written
            && !has_failed
        {
            tracing::warn!(
                "the figures for the node exporter cannot be written to {}: {e}. Check metrics.textfile in the configuration, and \
                 ReadWritePaths= in the agent's unit",
                path.display()
            );
        }
        has_failed = written.is_err();
        let next = async {
            sleep(BETWEEN).await;
            lines.snapshots.changed().await
        };
        tokio::select! {
            there_is_more = next => if there_is_more.is_err() { return },
            _ = &mut unwanted => return,
        }
    }
}
