//! Signatures for local programs: one after the other, and fairly.
//!
//! A TPM makes one signature at a time. Each user has a queue, and the queues are served in turn,
//! so that a thousand signatures of one user delay another by one. The TPM gets the next only when
//! the one before is done: a signature of the agent itself comes next, however many callers wait.
//! Software keys have queues of their own: they never wait for a TPM.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::config::{self, Limits};
use crate::hint::Reason;
use crate::keys::{Key, KeyError, ProviderKind};
use crate::server::connection_limit::{LimitReached, admit};
use crate::server::rate::{RateExceeded, RateLimit};

/// Waiting signatures of one user.
const MAX_PER_USER: usize = 64;
/// Waiting signatures of all users, the last quarter of them for users who wait for no other.
const MAX_TOTAL: usize = 512;

/// The reason why there is no signature.
#[derive(Debug)]
pub(super) enum SignError {
    /// Too many signatures wait: of this user, or of all users.
    QueueFull(Reason),
    /// The user has had as many signatures as are allowed in a minute.
    RateExceeded(RateExceeded),
    /// The key cannot be used.
    Key(KeyError),
    /// The agent is shutting down.
    ShuttingDown,
}

/// Queue of signatures. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct SigningQueue {
    tpm: Arc<Mutex<Waiting>>,
    software: Arc<Mutex<Waiting>>,
    rate: Arc<Mutex<RateLimit>>,
}

impl Default for SigningQueue {
    fn default() -> Self {
        let rate = RateLimit::new(config::SIGNATURES_PER_MINUTE);
        Self { tpm: Arc::default(), software: Arc::default(), rate: Arc::new(Mutex::new(rate)) }
    }
}

impl SigningQueue {
    /// Sets the number of signatures that one user may have in a minute.
    pub(crate) fn set_rate(&self, per_minute: u32) {
        self.rate().set(per_minute);
    }

    /// Has a digest signed when its turn comes. Dropping the future withdraws a signature that has
    /// not begun.
    pub(super) async fn sign(
        &self,
        uid: Option<u32>,
        key: Arc<dyn Key>,
        digest: [u8; 32],
    ) -> Result<Vec<u8>, SignError> {
        let (reply, signed) = oneshot::channel();
        self.rate().take(uid, Instant::now()).map_err(SignError::RateExceeded)?;
        let provider = key.provider();
        let needs_worker = self.waiting(provider).push(uid, Job { key, digest, reply });
        let needs_worker = needs_worker.inspect_err(|_| self.rate().refund(uid))?;
        if needs_worker {
            let queue = self.clone();
            spawn_blocking(move || queue.sign_all(provider));
        }
        match signed.await {
            Ok(signed) => signed.map_err(SignError::Key),
            Err(_) => Err(SignError::ShuttingDown),
        }
    }

    /// Signs until no key of this provider waits. One thread at a time does this for each.
    fn sign_all(&self, provider: ProviderKind) {
        loop {
            // Its own statement: the lock is not held while the TPM works.
            let next = self.waiting(provider).pop();
            let Some(Job { key, digest, reply }) = next else { return };
            if !reply.is_closed() {
                let _ = reply.send(key.sign_digest(&digest)); // a caller that has left meanwhile does not need it
            }
        }
    }

    fn waiting(&self, provider: ProviderKind) -> MutexGuard<'_, Waiting> {
        let waiting = match provider {
            ProviderKind::Tpm => &self.tpm,
            ProviderKind::Software => &self.software,
        };
        waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rate(&self) -> MutexGuard<'_, RateLimit> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Waiting {
    by_user: BTreeMap<Option<u32>, VecDeque<Job>>,
    /// The users with a job, in the order in which they are served.
    order: VecDeque<Option<u32>>,
    all: usize,
    has_worker: bool,
}

#[derive(Debug)]
struct Job {
    key: Arc<dyn Key>,
    digest: [u8; 32],
    reply: oneshot::Sender<Result<Vec<u8>, KeyError>>,
}

impl Waiting {
    /// Adds a job. Returns whether a worker has to be started.
    fn push(&mut self, uid: Option<u32>, job: Job) -> Result<bool, SignError> {
        if self.check_limits(uid).is_err() {
            self.remove_abandoned();
        }
        self.check_limits(uid).map_err(|limit| {
            let (why, hint) = match limit {
                LimitReached::User(_) => {
                    ("your user waits for 64 signatures already", "Try again when some of them are made")
                }
                LimitReached::Shared(_) => (
                    "many signatures wait on this device, and the rest is reserved for users who wait for none",
                    "Try again when those of your user are made",
                ),
                LimitReached::Total(_) => ("too many signatures wait on this device", "Try again later"),
            };
            SignError::QueueFull(Reason::from(why).with_hint_text(hint))
        })?;
        let queue = self.by_user.entry(uid).or_default();
        if queue.is_empty() {
            self.order.push_back(uid);
        }
        queue.push_back(job);
        self.all += 1;
        Ok(!std::mem::replace(&mut self.has_worker, true))
    }

    fn check_limits(&self, uid: Option<u32>) -> Result<(), LimitReached> {
        let limits = Limits { connections: MAX_TOTAL, of_one_user: MAX_PER_USER };
        admit(limits, uid, self.by_user.get(&uid).map_or(0, VecDeque::len), self.all)
    }

    /// Removes the jobs whose callers have left: a key may not respond for long.
    fn remove_abandoned(&mut self) {
        self.by_user.retain(|_, queue| {
            queue.retain(|job| !job.reply.is_closed());
            !queue.is_empty()
        });
        self.order.retain(|uid| self.by_user.contains_key(uid));
        self.all = self.by_user.values().map(VecDeque::len).sum();
    }

    /// Takes the next job of the user whose turn it is. With `None`, the worker ends.
    fn pop(&mut self) -> Option<Job> {
        while let Some(uid) = self.order.pop_front() {
            let Some(queue) = self.by_user.get_mut(&uid) else { continue };
            let job = queue.pop_front();
            if queue.is_empty() {
                self.by_user.remove(&uid);
            } else {
                self.order.push_back(uid);
            }
            if job.is_some() {
                self.all = self.all.saturating_sub(1);
                return job;
            }
        }
        self.has_worker = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyFile, Protection, PublicKey};
    use std::sync::mpsc;

    /// A key that signs when it is released, and records the order.
    #[derive(Debug)]
    struct Slow {
        release: Mutex<mpsc::Receiver<()>>,
        signed: Mutex<Vec<u8>>,
        is_signing: Mutex<()>,
    }

    impl Key for Slow {
        fn public_key(&self) -> &PublicKey {
            unimplemented!()
        }
        fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
            let _alone =
                self.is_signing.try_lock().expect("one at a time: the agent's own comes between any two");
            self.release.lock().unwrap().recv().unwrap();
            self.signed.lock().unwrap().push(digest[0]);
            Ok(digest.to_vec())
        }
        fn protection(&self) -> Protection {
            Protection::Hardware
        }
        fn provider(&self) -> ProviderKind {
            ProviderKind::Tpm
        }
        fn to_pem(&self) -> Result<String, KeyError> {
            unimplemented!()
        }
        fn to_key_file(&self) -> Result<KeyFile, KeyError> {
            unimplemented!()
        }
    }

    /// Waits for no TPM, however many signatures wait for one that does not respond.
    #[tokio::test]
    async fn software_key_signs_while_the_tpm_hangs() {
        let scene = Scene::new(); // nothing releases its key, which stands for the TPM's
        let mut waiting = Vec::new();
        for uid in 0..3 {
            for mark in 0..20 {
                waiting.push(scene.request(uid, mark).await);
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let software = crate::keys::software::Software::new(None, directory.path().join("kek"));
        let key: Arc<dyn Key> = Arc::new(software.create_key().unwrap());
        for uid in 0..3 {
            assert!(scene.queue.sign(Some(uid), key.clone(), [7; 32]).await.is_ok());
        }
        assert!(waiting.iter().all(|request| !request.is_finished()));
        for _ in &waiting {
            scene.release.send(()).unwrap();
        }
        for request in waiting {
            request.await.unwrap().unwrap();
        }
    }

    struct Scene {
        queue: SigningQueue,
        key: Arc<Slow>,
        release: mpsc::Sender<()>,
    }

    impl Scene {
        fn new() -> Self {
            let (release, wait) = mpsc::channel();
            let key =
                Slow { release: Mutex::new(wait), signed: Mutex::default(), is_signing: Mutex::default() };
            Self { queue: SigningQueue::default(), key: Arc::new(key), release }
        }

        async fn request(&self, uid: u32, mark: u8) -> tokio::task::JoinHandle<Result<Vec<u8>, SignError>> {
            let (queue, key) = (self.queue.clone(), self.key.clone());
            let signing = tokio::spawn(async move { queue.sign(Some(uid), key, [mark; 32]).await });
            tokio::task::yield_now().await;
            signing
        }

        fn order(&self) -> Vec<u8> {
            self.key.signed.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn users_are_served_in_turn_one_signature_at_a_time() {
        let scene = Scene::new();
        let mut requests = Vec::new();
        for mark in 0..5 {
            requests.push(scene.request(7, mark).await);
        }
        for (uid, mark) in [(8, 100), (9, 200), (8, 101)] {
            requests.push(scene.request(uid, mark).await);
        }
        for _ in 0..8 {
            scene.release.send(()).unwrap();
        }
        for request in requests {
            request.await.unwrap().unwrap();
        }
        let order = scene.order();
        let position = |mark| order.iter().position(|other| *other == mark).unwrap();
        assert!(position(100) <= 3 && position(200) <= 3, "{order:?}");
        assert!(position(101) < position(4), "{order:?}");
        assert!(scene.queue.waiting(ProviderKind::Tpm).by_user.is_empty());
    }

    #[tokio::test]
    async fn abandoned_signatures_are_not_made_and_take_no_room() {
        let scene = Scene::new();
        let first = scene.request(7, 0).await;
        let leaves = scene.request(7, 1).await;
        let stays = scene.request(7, 2).await;
        leaves.abort();
        let _ = leaves.await;
        let mut more = Vec::new();
        for _ in 0..MAX_PER_USER {
            more.push(scene.request(8, 50).await);
        }
        let too_many = scene.request(8, 51).await.await.unwrap();
        assert!(matches!(too_many, Err(SignError::QueueFull(why)) if why.what.contains("your user")));
        // Those whose caller has left take no room.
        for left in more.drain(..10) {
            left.abort();
            let _ = left.await;
        }
        for _ in 0..10 {
            more.push(scene.request(8, 52).await);
        }
        let too_many = scene.request(8, 51).await.await.unwrap();
        assert!(matches!(too_many, Err(SignError::QueueFull(_))));
        for _ in 0..2 + MAX_PER_USER {
            scene.release.send(()).unwrap();
        }
        first.await.unwrap().unwrap();
        stays.await.unwrap().unwrap();
        for more in more {
            more.await.unwrap().unwrap();
        }
        assert!(!scene.order().contains(&1));
        assert_eq!(scene.order().iter().filter(|mark| [50, 52].contains(*mark)).count(), MAX_PER_USER);
    }

    #[tokio::test]
    async fn signatures_of_nine_users_leave_room_for_others() {
        let scene = Scene::new();
        let mut requests = Vec::new();
        for uid in 100_000..100_009 {
            for _ in 0..MAX_PER_USER {
                requests.push(scene.request(uid, 1).await);
            }
        }
        for uid in [7, 8, 0, 0] {
            requests.push(scene.request(uid, 2).await);
        }
        // Those of a person who is many users.
        for uid in 200_000..200_200 {
            requests.push(scene.request(uid, 3).await);
        }
        requests.push(scene.request(0, 2).await);
        for _ in 0..requests.len() {
            scene.release.send(()).unwrap();
        }
        for request in requests {
            let _ = request.await.unwrap();
        }
        let signed = |mark| scene.order().iter().filter(|other| **other == mark).count();
        assert!((387..=390).contains(&signed(1)), "{}", signed(1));
        assert_eq!(signed(2), 5);
        assert!((120..=130).contains(&signed(3)), "{}", signed(3));
    }
}
