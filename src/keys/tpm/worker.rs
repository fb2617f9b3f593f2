//! The thread that talks to the TPM, and its job queue.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tss_esapi::Context;

use super::connection::Connection;
use super::error::TpmError;
use super::response_code::Failure;
use super::tcti::Tcti;

/// Owns the thread: starts it with the first job, and another should it ever end. The thread ends
/// by itself once this is dropped and the queue is empty.
pub(super) struct Worker {
    tcti: Tcti,
    queue: Mutex<Option<SyncSender<Job>>>,
}

struct Job {
    /// When the caller stops waiting.
    expires: Instant,
    work: Box<dyn FnOnce(&mut Connection) + Send>,
}

/// Jobs that wait at most; more are refused as busy.
const QUEUE: usize = 64;

impl Worker {
    pub(super) fn new(tcti: Tcti) -> Self {
        Self { tcti, queue: Mutex::new(None) }
    }

    /// Runs `operation` on the thread, up to twice, and waits for the outcome for `deadline` at
    /// most.
    pub(super) fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        operation: impl Fn(&mut Context) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (result, outcome) = mpsc::sync_channel(1);
        let work = Box::new(move |connection: &mut Connection| {
            // The caller may have given up in the meantime.
            let _ = result.send(connection.run(&operation));
        });
        self.enqueue(Job { expires: Instant::now() + deadline, work })?;
        match outcome.recv_timeout(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                Err(TpmError::NoAnswer { tcti: self.tcti.to_string(), after: deadline })
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(TpmError::WorkerStopped { why: "it ended in the middle of the operation".into() })
            }
        }
    }

    /// The connection as configured, for error messages.
    pub(super) fn tcti(&self) -> String {
        self.tcti.to_string()
    }

    /// The error for a failure.
    pub(super) fn to_error(&self, failure: Failure) -> TpmError {
        failure.into_error(&self.tcti)
    }

    fn enqueue(&self, job: Job) -> Result<(), TpmError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let job = match queue.as_ref() {
            None => job,
            Some(sender) => match sender.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(job)) => job,
                Err(TrySendError::Full(_)) => {
                    let why = format!("{QUEUE} operations wait for it already");
                    return Err(TpmError::Busy { tcti: self.tcti.to_string(), why });
                }
            },
        };
        let sender = self.spawn()?;
        let sent = sender.try_send(job);
        *queue = Some(sender);
        sent.map_err(|_| TpmError::WorkerStopped { why: "it ended at once".into() })
    }

    fn spawn(&self) -> Result<SyncSender<Job>, TpmError> {
        let (sender, jobs) = mpsc::sync_channel(QUEUE);
        let connection = Connection::new(self.tcti.clone());
        thread::Builder::new().name("tpm".into()).spawn(move || serve(connection, &jobs)).map_err(
            |error| TpmError::WorkerStopped { why: format!("its thread cannot be started: {error}") },
        )?;
        Ok(sender)
    }
}

fn serve(mut connection: Connection, jobs: &Receiver<Job>) {
    for job in jobs {
        // After a standstill the queue is full of jobs whose callers have stopped waiting.
        if Instant::now() < job.expires {
            (job.work)(&mut connection);
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.tcti)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.trim() == "tpm")
            .count()
    }

    #[test]
    fn worker_thread_lives_from_first_job_to_last_handle() {
        let worker = Worker::new("device:/nonexistent/tpmrm0".parse().unwrap());
        assert_eq!(threads(), 0);
        for _ in 0..2 {
            let outcome = worker.run(Duration::from_secs(10), |_| Ok(()));
            assert!(matches!(outcome, Err(TpmError::Unreachable { .. })), "{outcome:?}");
            assert_eq!(threads(), 1);
        }
        drop(worker);
        let waited = Instant::now();
        while threads() > 0 {
            assert!(waited.elapsed() < Duration::from_secs(10), "the worker thread does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}
