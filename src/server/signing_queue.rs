//! Signatures for local programs: one after the other, and fairly.
//!
//! A chip signs one thing at a time. Each user has a queue, and the users take turns, so that one who asks for a thousand
//! signatures delays another by one. The chip gets the next only when it has done the one before: whatever the agent itself
//! has to sign comes next, however many callers wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::config::{self, Limits};
use crate::json;
use crate::keys::{Key, KeyError};
use crate::server::connection_limit::{Full, admit};
use crate::server::rate::{OverLimit, RateLimit};

/// Signatures of one user that wait at once.
const MOST_OF_ONE_USER: usize = 64;
/// Signatures of all users that wait at once, the last quarter of them for users who wait for none.
const MOST_OF_ALL: usize = 512;

/// `POST /v1/sign`, as it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// ECDSA signature in DER, in Base64.
    pub signature: String,
    /// Serial number of the SVID whose key has signed.
    pub serial: String,
    /// The generation of published files with this SVID; none for the SVID before.
    pub generation: Option<u64>,
}

/// What is to be signed, as it is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ToSign {
    pub(super) digest: [u8; 32],
    /// Of the SVID whose key is to sign: the one that is held, or the one before it.
    pub(super) serial: Option<String>,
}

impl ToSign {
    /// Takes a body, or says in a sentence what it must be.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            algorithm: String,
            digest: String,
            #[serde(default, deserialize_with = "not_null")]
            serial: Option<String>,
        }
        fn not_null<'de, D: Deserializer<'de>>(serial: D) -> Result<Option<String>, D::Error> {
            String::deserialize(serial).map(Some)
        }
        let must =
            "{\"algorithm\": \"ES256\", \"digest\": \"<Base64 of the SHA-256 of what is to be signed>\"}";
        let Body { algorithm, digest, serial } =
            json::read(body).map_err(|e| format!("The body must be {must}. This one: {e}."))?;
        if algorithm != "ES256" {
            return Err(format!(
                "The device's key signs by ES256 (ECDSA on P-256 with SHA-256) and by nothing else: send {must}."
            ));
        }
        let digest = BASE64.decode(digest).ok().and_then(|octets| octets.try_into().ok());
        let digest = digest.ok_or_else(|| {
            format!("A digest is the SHA-256 of what is to be signed, 32 octets in Base64 (44 characters): send {must}.")
        })?;
        Ok(Self { digest, serial })
    }
}

/// Why there is no signature.
#[derive(Debug)]
pub(super) enum Unsigned {
    /// This user, or everybody together, waits for as many as may wait.
    Busy(&'static str),
    /// This user has had as many as are allowed in a minute.
    OverLimit(OverLimit),
    /// The key cannot be used.
    Key(KeyError),
    /// The agent ends.
    Ending,
}

/// Where signatures are asked for. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Signing {
    waiting: Arc<Mutex<Waiting>>,
    rate: Arc<Mutex<RateLimit>>,
}

impl Default for Signing {
    fn default() -> Self {
        let rate = RateLimit::new(config::SIGNATURES_PER_MINUTE);
        Self { waiting: Arc::default(), rate: Arc::new(Mutex::new(rate)) }
    }
}

impl Signing {
    /// Sets the number of signatures that one user may have in a minute.
    pub(crate) fn limit(&self, per_minute: u32) {
        self.rate().set(per_minute);
    }

    /// Has a digest signed when its turn comes. Nothing is signed for somebody who has stopped waiting.
    pub(super) async fn sign(
        &self,
        uid: Option<u32>,
        key: Arc<dyn Key>,
        digest: [u8; 32],
    ) -> Result<Vec<u8>, Unsigned> {
        let (answer, signed) = oneshot::channel();
        self.rate().take(uid, Instant::now()).map_err(Unsigned::OverLimit)?;
        let nobody_signs = self.waiting().put(uid, Job { key, digest, answer });
        let nobody_signs = nobody_signs.inspect_err(|_| self.rate().give_back(uid))?;
        if nobody_signs {
            let signing = self.clone();
            spawn_blocking(move || signing.sign_all());
        }
        match signed.await {
            Ok(signed) => signed.map_err(Unsigned::Key),
            Err(_) => Err(Unsigned::Ending),
        }
    }

    /// One thread at a time does this, until nobody waits.
    fn sign_all(&self) {
        loop {
            // Its own statement: the lock is not held while the chip works.
            let next = self.waiting().take();
            let Some(Job { key, digest, answer }) = next else { return };
            if !answer.is_closed() {
                let _ = answer.send(key.sign_digest(&digest)); // who has left meanwhile does not need it
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rate(&self) -> MutexGuard<'_, RateLimit> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Waiting {
    by_user: BTreeMap<Option<u32>, VecDeque<Job>>,
    /// Those with something in their queue, whose turn it is first.
    turns: VecDeque<Option<u32>>,
    all: usize,
    somebody_signs: bool,
}

#[derive(Debug)]
struct Job {
    key: Arc<dyn Key>,
    digest: [u8; 32],
    answer: oneshot::Sender<Result<Vec<u8>, KeyError>>,
}

impl Waiting {
    /// Says whether somebody has to begin to sign.
    fn put(&mut self, uid: Option<u32>, job: Job) -> Result<bool, Unsigned> {
        if self.has_room(uid).is_err() {
            self.forget_who_left();
        }
        self.has_room(uid).map_err(|full| {
            Unsigned::Busy(match full {
                Full::User(_) => {
                    "Your user waits for 64 signatures already. Ask again when some of them are there."
                }
                Full::Holders(_) => {
                    "Many signatures are waited for on this device, and the rest is kept for users who wait for none. \
                     Ask again when yours are there."
                }
                Full::All(_) => "Too many signatures are waited for on this device. Try again later.",
            })
        })?;
        let queue = self.by_user.entry(uid).or_default();
        if queue.is_empty() {
            self.turns.push_back(uid);
        }
        queue.push_back(job);
        self.all += 1;
        Ok(!std::mem::replace(&mut self.somebody_signs, true))
    }

    fn has_room(&self, uid: Option<u32>) -> Result<(), Full> {
        let limits = Limits { connections: MOST_OF_ALL, of_one_user: MOST_OF_ONE_USER };
        admit(limits, uid, self.by_user.get(&uid).map_or(0, VecDeque::len), self.all)
    }

    /// Drops what nobody waits for any more: a key may not answer for long.
    fn forget_who_left(&mut self) {
        self.by_user.retain(|_, queue| {
            queue.retain(|job| !job.answer.is_closed());
            !queue.is_empty()
        });
        self.turns.retain(|uid| self.by_user.contains_key(uid));
        self.all = self.by_user.values().map(VecDeque::len).sum();
    }

    /// The first of whose turn it is. With `None`, whoever signs stops.
    fn take(&mut self) -> Option<Job> {
        while let Some(uid) = self.turns.pop_front() {
            let Some(queue) = self.by_user.get_mut(&uid) else { continue };
            let job = queue.pop_front();
            if queue.is_empty() {
                self.by_user.remove(&uid);
            } else {
                self.turns.push_back(uid);
            }
            if job.is_some() {
                self.all = self.all.saturating_sub(1);
                return job;
            }
        }
        self.somebody_signs = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyFile, Protection, ProviderKind, PublicKey};
    use serde_json::json;
    use std::sync::mpsc;

    /// Signs when it is let, and tells in which order.
    #[derive(Debug)]
    struct Slow {
        let_go: Mutex<mpsc::Receiver<()>>,
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
            self.let_go.lock().unwrap().recv().unwrap();
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

    struct Scene {
        signing: Signing,
        key: Arc<Slow>,
        let_go: mpsc::Sender<()>,
    }

    impl Scene {
        fn new() -> Self {
            let (let_go, wait) = mpsc::channel();
            let key =
                Slow { let_go: Mutex::new(wait), signed: Mutex::default(), is_signing: Mutex::default() };
            Self { signing: Signing::default(), key: Arc::new(key), let_go }
        }

        async fn ask(&self, uid: u32, mark: u8) -> tokio::task::JoinHandle<Result<Vec<u8>, Unsigned>> {
            let (signing, key) = (self.signing.clone(), self.key.clone());
            let asked = tokio::spawn(async move { signing.sign(Some(uid), key, [mark; 32]).await });
            tokio::task::yield_now().await;
            asked
        }

        fn order(&self) -> Vec<u8> {
            self.key.signed.lock().unwrap().clone()
        }
    }

    #[test]
    fn a_body_is_a_digest_or_is_refused_with_what_it_must_be() {
        let read = |body: serde_json::Value| ToSign::read(body.to_string().as_bytes());
        let digest = BASE64.encode([7; 32]);
        let asked = read(json!({ "algorithm": "ES256", "digest": digest, "serial": "01:02" })).unwrap();
        assert_eq!(asked, ToSign { digest: [7; 32], serial: Some("01:02".into()) });
        let marked = format!("\u{feff}{}", json!({ "algorithm": "ES256", "digest": digest }));
        assert!(ToSign::read(marked.as_bytes()).is_ok(), "RFC 8259 section 8.1");
        for body in [
            json!({}),
            json!([digest]),
            json!({ "algorithm": "ES256" }),
            json!({ "algorithm": "ES384", "digest": digest }),
            json!({ "algorithm": "ES256", "digest": BASE64.encode([7; 31]) }),
            json!({ "algorithm": "ES256", "digest": BASE64.encode([7; 48]) }),
            json!({ "algorithm": "ES256", "digest": "not Base64" }),
            json!({ "algorithm": "ES256", "digest": digest, "key": "other" }),
            json!({ "algorithm": "ES256", "digest": digest, "serial": null }),
        ] {
            let why = read(body.clone()).unwrap_err();
            assert!(why.contains("{\"algorithm\": \"ES256\""), "{body}: {why}");
        }
    }

    #[tokio::test]
    async fn the_key_is_asked_for_one_signature_at_a_time_and_the_users_take_turns() {
        let scene = Scene::new();
        let mut asked = Vec::new();
        for mark in 0..5 {
            asked.push(scene.ask(7, mark).await);
        }
        for (uid, mark) in [(8, 100), (9, 200), (8, 101)] {
            asked.push(scene.ask(uid, mark).await);
        }
        for _ in 0..8 {
            scene.let_go.send(()).unwrap();
        }
        for asked in asked {
            asked.await.unwrap().unwrap();
        }
        let order = scene.order();
        let place = |mark| order.iter().position(|other| *other == mark).unwrap();
        assert!(place(100) <= 3 && place(200) <= 3, "{order:?}");
        assert!(place(101) < place(4), "{order:?}");
        assert!(scene.signing.waiting().by_user.is_empty());
    }

    #[tokio::test]
    async fn who_stops_waiting_costs_no_signature_and_who_asks_for_too_many_is_told() {
        let scene = Scene::new();
        let first = scene.ask(7, 0).await;
        let leaves = scene.ask(7, 1).await;
        let stays = scene.ask(7, 2).await;
        leaves.abort();
        let _ = leaves.await;
        let mut more = Vec::new();
        for _ in 0..MOST_OF_ONE_USER {
            more.push(scene.ask(8, 50).await);
        }
        let too_many = scene.ask(8, 51).await.await.unwrap();
        assert!(matches!(too_many, Err(Unsigned::Busy(why)) if why.contains("Your user")));
        // Those who have left take no room.
        for left in more.drain(..10) {
            left.abort();
            let _ = left.await;
        }
        for _ in 0..10 {
            more.push(scene.ask(8, 52).await);
        }
        let too_many = scene.ask(8, 51).await.await.unwrap();
        assert!(matches!(too_many, Err(Unsigned::Busy(_))));
        for _ in 0..2 + MOST_OF_ONE_USER {
            scene.let_go.send(()).unwrap();
        }
        first.await.unwrap().unwrap();
        stays.await.unwrap().unwrap();
        for more in more {
            more.await.unwrap().unwrap();
        }
        assert!(!scene.order().contains(&1));
        assert_eq!(scene.order().iter().filter(|mark| [50, 52].contains(*mark)).count(), MOST_OF_ONE_USER);
    }

    #[tokio::test]
    async fn waiting_signatures_of_nine_users_leave_room_for_others_and_root() {
        let scene = Scene::new();
        let mut asked = Vec::new();
        for uid in 100_000..100_009 {
            for _ in 0..MOST_OF_ONE_USER {
                asked.push(scene.ask(uid, 1).await);
            }
        }
        for uid in [7, 8, 0, 0] {
            asked.push(scene.ask(uid, 2).await);
        }
        // And of a person who is many users.
        for uid in 200_000..200_200 {
            asked.push(scene.ask(uid, 3).await);
        }
        asked.push(scene.ask(0, 2).await);
        for _ in 0..asked.len() {
            scene.let_go.send(()).unwrap();
        }
        for asked in asked {
            let _ = asked.await.unwrap();
        }
        let signed = |mark| scene.order().iter().filter(|other| **other == mark).count();
        assert!((387..=390).contains(&signed(1)), "{}", signed(1));
        assert_eq!(signed(2), 5);
        assert!((120..=130).contains(&signed(3)), "{}", signed(3));
    }
}
