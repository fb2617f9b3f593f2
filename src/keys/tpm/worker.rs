//! The one thread that talks to the TPM, and the queue before it.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tss_esapi::Context;

use super::chip::Chip;
use super::failure::Failure;
use super::tcti::Tcti;
use crate::keys::KeyError;

/// Starts the thread when there is work for the first time, and another should it ever end. The thread ends by itself
/// once this is dropped and the queue is empty.
pub(super) struct Worker {
    tcti: Tcti,
    queue: Mutex<Option<SyncSender<Job>>>,
}

struct Job {
    /// Nobody waits any longer after this.
    expires: Instant,
    work: Box<dyn FnOnce(&mut Chip) + Send>,
}

/// More callers than this at once are turned away.
const QUEUE: usize = 64;

impl Worker {
    pub(super) fn new(tcti: Tcti) -> Self {
        Self { tcti, queue: Mutex::new(None) }
    }

    /// Has the thread carry out `operation`, which may be run twice, and waits for the outcome.
    pub(super) fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        operation: impl Fn(&mut Context) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, KeyError> {
        let (answer, outcome) = mpsc::sync_channel(1);
        let work = Box::new(move |chip: &mut Chip| {
            // The caller may have given up in the meantime.
            let _ = answer.send(chip.run(&operation));
        });
        self.enqueue(Job { expires: Instant::now() + deadline, work })?;
        match outcome.recv_timeout(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                Err(KeyError::NoAnswer { tcti: self.tcti.to_string(), after: deadline })
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(KeyError::WorkerStopped { why: "it ended in the middle of the operation".into() })
            }
        }
    }

    /// How the TPM is reached, for error messages.
    pub(super) fn tcti(&self) -> String {
        self.tcti.to_string()
    }

    /// A failure in the caller's terms.
    pub(super) fn explain(&self, failure: Failure) -> KeyError {
        failure.explain(&self.tcti)
    }

    fn enqueue(&self, job: Job) -> Result<(), KeyError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let job = match queue.as_ref() {
            None => job,
            Some(sender) => match sender.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(job)) => job,
                Err(TrySendError::Full(_)) => {
                    let why = format!("{QUEUE} operations are waiting for it already");
                    return Err(KeyError::Busy { tcti: self.tcti.to_string(), why });
                }
            },
        };
        let sender = self.spawn()?;
        let sent = sender.try_send(job);
        *queue = Some(sender);
        sent.map_err(|_| KeyError::WorkerStopped { why: "it ended at once".into() })
    }

    fn spawn(&self) -> Result<SyncSender<Job>, KeyError> {
        let (sender, jobs) = mpsc::sync_channel(QUEUE);
        let chip = Chip::new(self.tcti.clone());
        thread::Builder::new().name("tpm".into()).spawn(move || serve(chip, &jobs)).map_err(|error| {
            KeyError::WorkerStopped { why: format!("its thread cannot be started: {error}") }
        })?;
        Ok(sender)
    }
}

fn serve(mut chip: Chip, jobs: &Receiver<Job>) {
    for job in jobs {
        // After a standstill the queue is full of questions nobody waits for.
        if Instant::now() < job.expires {
            (job.work)(&mut chip);
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
    fn starts_with_the_first_job_and_ends_with_the_last_handle() {
        let worker = Worker::new("device:/nonexistent/tpmrm0".parse().unwrap());
        assert_eq!(threads(), 0);
        for _ in 0..2 {
            let outcome = worker.run(Duration::from_secs(10), |_| Ok(()));
            assert!(matches!(outcome, Err(KeyError::Unreachable { .. })), "{outcome:?}");
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
