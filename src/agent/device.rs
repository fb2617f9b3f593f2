//! One device under one configuration: what it holds, and how each action of the lifecycle is carried out with the
//! other rooms. Whatever blocks (the chip, the disk) runs on tokio's blocking threads, so that the socket never waits.

use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::watch;

use crate::config::{Config, FactoryKey, KeyProvider};
use crate::deliver::files::Publisher;
use crate::deliver::{HeldBundle, Identity, Snapshot};
use crate::keys::tpm::{Tpm, TpmKey};
use crate::keys::{self, Key as _, KeyError};
use crate::lifecycle::{
    Action, BundleFacts, Discovered, Draw, Event, Failure, KeyChoice, Lifecycle, Meaning, NotAdopted, Policy,
    Report, Request, Restored, Retry, State, Step, SvidFacts, Waits,
};
use crate::mis::{self, CertificateRequest, Discovery, Fetched, Identified, Mis, MisError};
use crate::spiffe::svid::{self, Chain, Expectation, Rejection, X509Svid};
use crate::spiffe::{Bundle, SequenceVerdict, judge_sequence};
use crate::store::{self, Store};
use crate::system::{clock, files, notify};
use crate::time::{Now, Timestamp};

/// After a failure to publish the files, they are tried again this much later.
const PUBLISH_AGAIN: Duration = Duration::from_secs(30);

pub(super) struct Device {
    config: Config,
    store: Store,
    mis: Mis,
    tpm: Tpm,
    lifecycle: Lifecycle,
    discovery: Option<HeldDiscovery>,
    bundle: Option<KeptBundle>,
    identity: Option<Arc<Identity>>,
    pending: Option<store::Pending>,
    answer: Option<store::Answer>,
    stored_renew_at: Option<Timestamp>,
    stored_waits: Waits,
    bootstrap_not_after: Option<Timestamp>,
    publisher: Publisher,
    told: Option<State>,
}

struct HeldDiscovery {
    document: Discovery,
    cached: store::CachedDiscovery,
}

struct KeptBundle {
    bundle: Arc<Bundle>,
    cached: store::CachedBundle,
}

// ---- starting ----

impl Device {
    /// Takes up where the last process left off. Nothing is contacted, neither the MIS nor the chip.
    pub(super) async fn restore(config: Config, now: Now) -> Self {
        let store = Store::new(&config.state_dir);
        let tpm = Tpm::start(config.key.tcti.clone());
        let trust = config.mis.as_ref().map(|mis| mis.trust.clone()).unwrap_or_default();
        let discovery = load(&store).and_then(|cached| read_discovery(cached, &config));
        let identity =
            load(&store).and_then(|record| read_identity(&store, &record, &tpm).map(|i| (i, record)));
        let (identity, record) = identity.unzip();
        let bundle =
            load(&store).and_then(|cached| read_bundle(cached, discovery.as_ref(), identity.as_ref()));
        let (pending, answer) = load_unfinished(&store, record.as_ref());
        let waits = load(&store).map(|cached| read_waits(&cached, now)).unwrap_or_default();
        let renew_at = record.as_ref().and_then(|record| record.renew_at);
        let restored = Restored {
            discovery: discovery.as_ref().map(|held| discovered(&held.document, false)),
            bundle: bundle.as_ref().map(|kept| facts_of(&kept.bundle)),
            svid: identity.as_ref().map(|identity| svid_facts(&identity.svid, renew_at, KeyChoice::Current)),
            pending_key: pending.is_some(),
            answer: answer.is_some(),
            waits,
        };
        let lifecycle = Lifecycle::new(policy(&config), restored, now, &mut crate::system::random::unit);
        let mut device = Self {
            store,
            mis: Mis::new(trust),
            tpm,
            lifecycle,
            discovery,
            bundle,
            identity: identity.map(Arc::new),
            pending,
            answer,
            stored_renew_at: renew_at,
            stored_waits: waits,
            bootstrap_not_after: None,
            publisher: Publisher::new(&config.files),
            told: None,
            config,
        };
        match device.factory_credential().await {
            Ok(_) => {}
            Err(failure) => {
                tracing::warn!(problem = failure.report.detail, "no enrollment is possible for now")
            }
        }
        device
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        window: config.renewal_window,
        retry: Retry { base: config.retry_base, cap: config.retry_cap },
        bundle_refresh: config.bundle_refresh,
        rotate: config.key.rotate,
    }
}

fn load<R: store::Record>(store: &Store) -> Option<R> {
    store.load().unwrap_or_else(|e| {
        tracing::error!(error = %e, "a part of the agent's state cannot be read");
        None
    })
}

fn read_discovery(cached: store::CachedDiscovery, config: &Config) -> Option<HeldDiscovery> {
    let mis = config.mis.as_ref()?;
    let document = Discovery::from_json(&cached.body).ok()?;
    let wanted = cached.url == mis.discovery_url.as_str()
        && mis.trust_domain.as_ref().is_none_or(|domain| domain == document.trust_domain());
    wanted.then_some(HeldDiscovery { document, cached })
}

fn read_identity(store: &Store, record: &store::Identity, tpm: &Tpm) -> Option<Identity> {
    let unusable = |why: String| {
        store.set_aside::<store::Identity>(&why);
        None
    };
    let svid = match Chain::from_pem(&record.chain).and_then(X509Svid::from_stored) {
        Ok(svid) => svid,
        Err(why) => return unusable(why.to_string()),
    };
    match tpm.key_from_pem(&record.key) {
        Ok(key) => Some(identity(svid, &key, record.key.clone())),
        Err(why) => unusable(why.to_string()),
    }
}

fn identity(svid: X509Svid, key: &TpmKey, key_pem: String) -> Identity {
    Identity { svid, key_pem, protection: key.protection(), algorithm: key.public_key().algorithm() }
}

/// A bundle of another trust domain than the device is in, or is going to be in, is of no use.
fn read_bundle(
    cached: store::CachedBundle,
    discovery: Option<&HeldDiscovery>,
    identity: Option<&Identity>,
) -> Option<KeptBundle> {
    let ours = match (discovery, identity) {
        (Some(held), _) => held.document.trust_domain(),
        (None, Some(identity)) => identity.svid.spiffe_id().trust_domain(),
        (None, None) => return None,
    };
    let bundle = Bundle::from_served(cached.body.as_bytes(), &cached.trust_domain).ok()?;
    (cached.trust_domain == *ours).then(|| KeptBundle { bundle: Arc::new(bundle), cached })
}

/// What an interrupted process left between an answer and its adoption. If the identity was stored but the records
/// before it were not removed yet, they are now.
fn load_unfinished(
    store: &Store,
    identity: Option<&store::Identity>,
) -> (Option<store::Pending>, Option<store::Answer>) {
    let mut pending: Option<store::Pending> = load(store);
    let mut answer: Option<store::Answer> = load(store);
    if let Some(identity) = identity {
        if answer.as_ref().is_some_and(|answer| answer.chain == identity.chain) {
            forget::<store::Answer>(store);
            answer = None;
        }
        if pending.as_ref().is_some_and(|pending| pending.key == identity.key) {
            forget::<store::Pending>(store);
            pending = None;
        }
    }
    if answer
        .as_ref()
        .is_some_and(|answer| if answer.for_pending_key { pending.is_none() } else { identity.is_none() })
    {
        store.set_aside::<store::Answer>("the key that it was issued for is gone");
        answer = None;
    }
    (pending, answer)
}

/// Within the same boot a wait ends on the boot clock, whatever became of the wall clock; after a reboot the wall clock
/// is all there is.
fn read_waits(cached: &store::CachedWaits, now: Now) -> Waits {
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    let same_boot = cached.boot_id == clock::boot_id();
    let read = |wait: Option<store::Wait>| {
        wait.map(
            |wait| if same_boot { wait.boot } else { now.boot.after(now.wall.until(wait.wall).min(LONGEST)) },
        )
    };
    Waits { discovery: read(cached.discovery), bundle: read(cached.bundle), identity: read(cached.identity) }
}

// ---- stepping ----

impl Device {
    pub(super) fn step(&mut self, event: Event, now: Now, draw: Draw<'_>) -> Step {
        self.lifecycle.step(event, now, draw)
    }

    /// Makes durable and visible what the last step changed. Returns when to try again to publish, if that failed.
    pub(super) async fn settle(
        &mut self,
        now: Now,
        publish: &watch::Sender<Arc<Snapshot>>,
    ) -> Option<Duration> {
        self.store_waits(now).await;
        self.store_renewal_moment().await;
        let (generation, failure) = self.publish_files(now).await;
        let mut snapshot = self.snapshot(now, generation);
        if let (Some(failure), None) = (&failure, &snapshot.last_error) {
            let error =
                crate::lifecycle::LastError { report: failure.clone(), at: now.wall, permanent: true };
            snapshot.last_error = Some((error, Some(now.wall.after(PUBLISH_AGAIN))));
        }
        self.tell_service_manager(&snapshot);
        publish.send_replace(Arc::new(snapshot));
        failure.map(|_| PUBLISH_AGAIN)
    }

    async fn store_waits(&mut self, now: Now) {
        let waits = self.lifecycle.waits();
        if waits == self.stored_waits {
            return;
        }
        self.stored_waits = waits;
        if waits == Waits::default() {
            let store = self.store.clone();
            return blocking(move || forget::<store::CachedWaits>(&store)).await;
        }
        let write = |until: Option<_>| {
            until.map(|boot| store::Wait { boot, wall: now.wall.after(now.boot.until(boot)) })
        };
        self.save(store::CachedWaits {
            boot_id: clock::boot_id(),
            discovery: write(waits.discovery),
            bundle: write(waits.bundle),
            identity: write(waits.identity),
        })
        .await
        .unwrap_or_else(
            |e| tracing::warn!(error = %e, "a wait that the MIS asked for will not survive a restart"),
        );
    }

    async fn store_renewal_moment(&mut self) {
        let renew_at = self.lifecycle.renew_at();
        let Some(identity) = &self.identity else { return };
        if renew_at == self.stored_renew_at {
            return;
        }
        self.stored_renew_at = renew_at;
        let record = stored(identity, renew_at);
        self.save(record).await.unwrap_or_else(
            |e| tracing::warn!(error = %e, "the renewal moment will be drawn anew after a restart"),
        );
    }

    async fn publish_files(&mut self, now: Now) -> (Option<u64>, Option<Report>) {
        let (mut publisher, identity) = (self.publisher.clone(), self.identity.clone());
        let bundle = self.bundle.as_ref().map(|kept| kept.bundle.clone());
        let (publisher, outcome) = blocking(move || {
            let outcome = publisher.publish(identity.as_deref(), bundle.as_deref(), now.wall);
            (publisher, outcome)
        })
        .await;
        self.publisher = publisher;
        match outcome {
            Ok(generation) => (generation, None),
            Err(e) => {
                tracing::error!(error = %e, "the identity could not be published; those published before are untouched");
                (None, Some(Report::of_agent("not-published", "The identity files could not be written", &e)))
            }
        }
    }

    fn snapshot(&self, now: Now, generation: Option<u64>) -> Snapshot {
        let trust_domain = self.discovery.as_ref().map(|held| held.document.trust_domain().clone());
        let of_identity = || self.identity.as_ref().map(|i| i.svid.spiffe_id().trust_domain().clone());
        Snapshot {
            state: self.lifecycle.state(now),
            trust_domain: trust_domain.or_else(of_identity),
            identity: self.identity.clone(),
            renew_at: self.lifecycle.renew_at(),
            provider: match self.config.key.provider {
                KeyProvider::Tpm => "tpm",
                KeyProvider::Software => "software",
            },
            bundle: self.bundle.as_ref().map(|kept| HeldBundle {
                bundle: kept.bundle.clone(),
                fetched_at: kept.cached.fetched_at,
                refresh_at: self.lifecycle.bundle_refresh_in(now).map(|wait| now.wall.after(wait)),
            }),
            bootstrap_not_after: self.bootstrap_not_after,
            last_error: self
                .lifecycle
                .last_error(now)
                .map(|(error, wait)| (error, wait.map(|wait| now.wall.after(wait)))),
            generation,
        }
    }

    fn tell_service_manager(&mut self, snapshot: &Snapshot) {
        if self.told == Some(snapshot.state) {
            return;
        }
        self.told = Some(snapshot.state);
        let who = snapshot.identity.as_ref().map(|identity| format!(": {}", identity.svid.spiffe_id()));
        notify::status(&format!("{}{}", snapshot.state, who.unwrap_or_default()));
        let why = snapshot.last_error.as_ref().and_then(|(error, _)| error.report.detail.clone());
        match snapshot.state {
            State::Blocked => tracing::error!(state = "blocked", why, "somebody has to correct something"),
            State::Expired => {
                tracing::error!(state = "expired", why, "the identity has expired; a new one is asked for")
            }
            state => tracing::info!(state = state.as_str(), "state"),
        }
    }

    async fn save<R: store::Record + Send + 'static>(&self, record: R) -> Result<(), store::StoreError> {
        let store = self.store.clone();
        blocking(move || store.save(&record)).await
    }
}

// ---- carrying out ----

impl Device {
    pub(super) async fn carry_out(&mut self, action: Action) -> Event {
        match action {
            Action::FetchDiscovery => Event::Discovery(self.fetch_discovery().await.map_err(report_mis)),
            Action::FetchBundle => Event::Bundle(self.fetch_bundle().await.map_err(report_mis)),
            Action::CreateKey => Event::KeyCreated(self.create_key().await.map_err(report)),
            Action::Request(request, key) => {
                Event::Answered(self.request(request, key).await.map_err(report))
            }
            Action::Adopt { bundle_is_fresh } => Event::Adopted(self.adopt(bundle_is_fresh).await),
        }
    }

    async fn fetch_discovery(&mut self) -> Result<Discovered, MisError> {
        let Some(config) = &self.config.mis else { return Err(MisError::NoTrust) };
        let url = &config.discovery_url;
        let validators = self.discovery.as_ref().map(|held| &held.cached.validators);
        let (document, body, validators) = match (self.mis.discovery(url, validators).await?, &self.discovery)
        {
            (Fetched::New { document, body, validators }, _) => (document, body, validators),
            (Fetched::NotModified, Some(held)) => return Ok(discovered(&held.document, false)),
            (Fetched::NotModified, None) => return Err(MisError::NoTrust), // nothing was held to revalidate
        };
        let domains = [
            (config.trust_domain.as_ref(), "the configuration says"),
            (
                self.identity.as_ref().map(|i| i.svid.spiffe_id().trust_domain()),
                "this device's identity is in",
            ),
        ];
        for (want, because) in domains {
            if let Some(want) = want.filter(|want| *want != document.trust_domain()) {
                let (url, got, want) = (url.clone(), document.trust_domain().clone(), want.clone());
                return Err(MisError::OtherTrustDomain { url, got, want, because });
            }
        }
        let changed = self.discovery.as_ref().is_none_or(|held| held.document != document);
        let cached = store::CachedDiscovery { url: url.to_string(), body, validators };
        if self.discovery.as_ref().is_none_or(|held| held.cached != cached) {
            let saved = self.save(cached.clone()).await;
            saved
                .unwrap_or_else(|e| tracing::warn!(error = %e, "the discovery document could not be cached"));
        }
        if changed {
            tracing::info!(trust_domain = %document.trust_domain(), url = %url, "discovered");
        }
        let facts = discovered(&document, changed);
        self.discovery = Some(HeldDiscovery { document, cached });
        Ok(facts)
    }

    async fn fetch_bundle(&mut self) -> Result<BundleFacts, MisError> {
        let Some(discovery) = &self.discovery else { return Err(MisError::NoTrust) };
        let (url, domain) =
            (discovery.document.trust_bundle_uri().clone(), discovery.document.trust_domain().clone());
        let held =
            self.bundle.as_mut().filter(|k| k.cached.url == url.as_str() && k.cached.trust_domain == domain);
        let validators = held.as_ref().map(|kept| kept.cached.validators.clone());
        let fetched = self.mis.bundle(&url, &domain, validators.as_ref()).await?;
        let now = clock::now().wall;
        match (fetched, held) {
            (Fetched::NotModified, Some(kept)) => {
                kept.cached.fetched_at = now;
                let facts = facts_of(&kept.bundle);
                if kept.cached.regressed_since.take().is_some() {
                    self.cache_bundle().await;
                }
                Ok(facts)
            }
            (Fetched::NotModified, None) => Err(MisError::NoTrust), // nothing was held to revalidate
            (Fetched::New { document, body, validators }, held) => {
                let (before, since) =
                    held.as_ref().map_or((None, None), |k| (k.bundle.sequence(), k.cached.regressed_since));
                if let SequenceVerdict::Regressed { since: from } =
                    judge_sequence(before, document.sequence(), since, now)
                {
                    if let Some(kept) = held {
                        kept.cached.regressed_since = Some(from);
                    }
                    if since != Some(from) {
                        self.cache_bundle().await;
                    }
                    let (served, held) = (document.sequence().unwrap_or(0), before.unwrap_or(0));
                    return Err(MisError::BundleRegressed { url, served, held });
                }
                let facts = facts_of(&document);
                let cached = store::CachedBundle {
                    url: url.to_string(),
                    trust_domain: domain,
                    body,
                    validators,
                    fetched_at: now,
                    regressed_since: None,
                };
                let same = held.is_some_and(|kept| {
                    kept.cached.body == cached.body
                        && kept.cached.validators == cached.validators
                        && since.is_none()
                });
                self.take_bundle(document, cached, same).await;
                Ok(facts)
            }
        }
    }

    async fn take_bundle(&mut self, bundle: Bundle, cached: store::CachedBundle, same: bool) {
        if !same {
            let (anchors, sequence) = (bundle.anchors().len(), bundle.sequence());
            tracing::info!(anchors, sequence, trust_domain = %bundle.trust_domain(), "new trust bundle");
            if anchors == 0 {
                tracing::error!(
                    "the trust bundle holds no anchor: no SVID of the trust domain is trusted now"
                );
            }
        }
        self.bundle = Some(KeptBundle { bundle: Arc::new(bundle), cached });
        if !same {
            self.cache_bundle().await;
        }
    }

    async fn cache_bundle(&self) {
        let Some(kept) = &self.bundle else { return };
        let saved = self.save(kept.cached.clone()).await;
        saved.unwrap_or_else(|e| tracing::warn!(error = %e, "the trust bundle could not be cached"));
    }

    async fn create_key(&mut self) -> Result<(), Failure> {
        let tpm = self.tpm()?;
        let (key, pem) = blocking(move || {
            let key = tpm.create_key()?;
            let pem = key.to_pem()?;
            Ok((key, pem.to_string()))
        })
        .await
        .map_err(|e| key_failure(&e))?;
        tracing::info!(tpm = %self.config.key.tcti, attributes = %key.attributes(), "a new key was made in the TPM");
        let pending = store::Pending { key: pem };
        self.save(pending.clone())
            .await
            .map_err(|e| local("state", "The agent's state cannot be written", &e))?;
        self.pending = Some(pending);
        Ok(())
    }

    async fn request(&mut self, request: Request, choice: KeyChoice) -> Result<(), Failure> {
        let Some(discovery) = &self.discovery else { return Err(MisError::NoTrust.to_failure()) };
        let document = discovery.document.clone();
        let key = self.key(choice)?;
        let csr =
            blocking(move || keys::csr::certification_request(&key)).await.map_err(|e| key_failure(&e))?;
        let csr = CertificateRequest(csr);
        let answer = match (request, self.identity.clone()) {
            (Request::Renew, Some(identity)) => {
                let client = self.as_device(&identity)?;
                self.mis.renew(&document, identity.svid.spiffe_id(), &csr, client).await
            }
            _ => {
                let client = self.factory_credential().await?;
                self.mis.enroll(&document, &csr, client).await
            }
        };
        let answer = store::Answer {
            renewal: request == Request::Renew,
            for_pending_key: choice == KeyChoice::Pending,
            chain: answer.map_err(|e| report_quietly(&e))?,
        };
        // If the disk is full the answer still counts, as long as this process lives.
        let saved = self.save(answer.clone()).await;
        saved.unwrap_or_else(|e| tracing::error!(error = %e, "the answer of the MIS could not be stored"));
        self.answer = Some(answer);
        Ok(())
    }

    async fn adopt(&mut self, bundle_is_fresh: bool) -> Result<SvidFacts, NotAdopted> {
        let (Some(answer), Some(kept)) = (self.answer.clone(), &self.bundle) else {
            return Err(NotAdopted::Refused(local(
                "state",
                "The answer of the MIS is gone",
                &"it is asked for again",
            )));
        };
        let choice = if answer.for_pending_key { KeyChoice::Pending } else { KeyChoice::Current };
        let key = self.key(choice).map_err(NotAdopted::Kept)?;
        let held = self.identity.as_ref().map(|identity| identity.svid.spiffe_id().clone());
        let expected = Expectation {
            trust_domain: kept.bundle.trust_domain(),
            spiffe_id: held.as_ref().filter(|_| answer.renewal),
            spki_der: &key.public_key().spki_der(),
        };
        let now = clock::now().wall;
        let judged = Chain::from_pem(&answer.chain)
            .and_then(|chain| svid::judge(&chain, &expected, &kept.bundle, now));
        let svid = match judged {
            Ok(svid) => svid,
            Err(Rejection::NotYetValid { not_before }) => {
                tracing::info!(%not_before, "the new SVID is kept until it becomes valid");
                return Err(NotAdopted::Early(not_before));
            }
            Err(Rejection::UnknownIssuer) if !bundle_is_fresh => return Err(NotAdopted::UnknownIssuer),
            Err(why) => {
                self.answer = None;
                let store = self.store.clone();
                blocking(move || forget::<store::Answer>(&store)).await;
                let title = "The SVID that the MIS issued is refused";
                let failure = Failure {
                    meaning: Meaning::Transient,
                    retry_after: None,
                    report: Report::of_agent("svid-refused", title, &why),
                };
                return Err(NotAdopted::Refused(report(failure)));
            }
        };
        self.hold(svid, &key, choice).await
    }

    /// The moment at which the device's identity changes: one record, certificate and key together.
    async fn hold(
        &mut self,
        svid: X509Svid,
        key: &TpmKey,
        choice: KeyChoice,
    ) -> Result<SvidFacts, NotAdopted> {
        let kept = |failure| NotAdopted::Kept(report(failure));
        let pem = key.to_pem().map_err(|e| kept(key_failure(&e)))?.to_string();
        let facts = svid_facts(&svid, None, choice);
        let identity = Arc::new(identity(svid, key, pem));
        self.save(stored(&identity, None))
            .await
            .map_err(|e| kept(local("state", "The agent's state cannot be written", &e)))?;
        let store = self.store.clone();
        blocking(move || {
            forget::<store::Answer>(&store);
            if choice == KeyChoice::Pending {
                forget::<store::Pending>(&store);
            }
        })
        .await;
        self.answer = None;
        if choice == KeyChoice::Pending {
            self.pending = None;
        }
        self.announce(&identity);
        self.stored_renew_at = None;
        self.identity = Some(identity);
        Ok(facts)
    }

    fn announce(&self, identity: &Identity) {
        let (svid, id) = (&identity.svid, identity.svid.spiffe_id());
        if let Some(before) =
            self.identity.as_ref().map(|held| held.svid.spiffe_id()).filter(|before| *before != id)
        {
            // Only an enrollment can come here, after expiry or a 401 (miaf-v0 E9).
            tracing::error!(before = %before, now = %id, "the MIS gave this device another identity than it had");
        }
        if !id.device_uuid_is_v4() {
            tracing::warn!(spiffe_id = %id, "the UUID in the identity is not of version 4, which the MIS should see to");
        }
        tracing::info!(
            spiffe_id = %id, serial = svid.serial(), not_before = %svid.not_before(), not_after = %svid.not_after(),
            "new SVID"
        );
    }

    fn tpm(&self) -> Result<Tpm, Failure> {
        match self.config.key.provider {
            KeyProvider::Tpm => Ok(self.tpm.clone()),
            KeyProvider::Software => {
                let why = "software keys are not supported by this version of the agent: set provider = \"tpm\" under [key]";
                Err(local("key", "The key provider is not supported", &why))
            }
        }
    }

    fn key(&self, choice: KeyChoice) -> Result<TpmKey, Failure> {
        let pem = match choice {
            KeyChoice::Pending => self.pending.as_ref().map(|pending| &pending.key),
            KeyChoice::Current => self.identity.as_ref().map(|identity| &identity.key_pem),
        };
        let pem =
            pem.ok_or_else(|| local("state", "The key is gone", &"the agent's state was changed under it"))?;
        self.tpm()?.key_from_pem(pem).map_err(|e| key_failure(&e))
    }

    /// The device as itself: its SVID, with the complete chain (miaf-v0 E3, R1).
    fn as_device(&self, identity: &Identity) -> Result<Identified, Failure> {
        let key = keys::tls::signing_key(Arc::new(self.key(KeyChoice::Current)?));
        let chain = identity.svid.chain().certificates().to_vec();
        Identified::new(CertifiedKey::new(chain, key))
            .map_err(|e| local("key", "The key that is held is not the one of the SVID that is held", &e))
    }

    /// The device as its maker knows it. Read at every use, so that a replaced file counts at once.
    async fn factory_credential(&mut self) -> Result<Identified, Failure> {
        const TITLE: &str = "The factory credential cannot be used";
        let cannot = |why: &dyn std::fmt::Display| local("factory-credential", TITLE, why);
        let Some(config) = self.config.bootstrap.clone() else {
            return Err(cannot(&"none is configured: set cert_file and key under [bootstrap]"));
        };
        let FactoryKey::File(key_file) = config.key else {
            return Err(cannot(
                &"a factory key in the TPM is not supported by this version of the agent: use key = \"file:…\"",
            ));
        };
        let (chain, key) = blocking(move || {
            let chain = read_chain(&config.cert_file)?;
            let key = keys::file::from_pem_file(&key_file).map_err(|e| e.to_string())?;
            Ok::<_, String>((chain, key))
        })
        .await
        .map_err(|why| cannot(&why))?;
        self.bootstrap_not_after = chain.first().and_then(not_after);
        Identified::new(CertifiedKey::new(chain, key)).map_err(|_| {
            cannot(&"cert_file and key do not belong together: the key is another than the certificate's")
        })
    }
}

// ---- small translations ----

fn discovered(document: &Discovery, changed: bool) -> Discovered {
    let lacks = |what: &str, wanted: &str, listed: &[String]| {
        let detail = format!(
            "the discovery document of \"{}\" lists {listed:?} and not {wanted}",
            document.trust_domain()
        );
        Report::of_agent("unsupported-by-mis", what, &detail)
    };
    let cannot_renew = (!document.issues_x509_svids()).then(|| {
        lacks(
            "The MIS does not issue the kind of identity this device needs",
            mis::X509_SVID_V1,
            document.profiles(),
        )
    });
    let no_method = (!document.accepts_factory_certificate()).then(|| {
        lacks("The MIS does not accept factory certificates", mis::FACTORY_CERT_MTLS, document.methods())
    });
    Discovered { changed, cannot_enroll: cannot_renew.clone().or(no_method), cannot_renew }
}

fn facts_of(bundle: &Bundle) -> BundleFacts {
    BundleFacts { refresh_hint: bundle.refresh_hint() }
}

fn svid_facts(svid: &X509Svid, renew_at: Option<Timestamp>, key: KeyChoice) -> SvidFacts {
    SvidFacts {
        spiffe_id: svid.spiffe_id().clone(),
        not_before: svid.not_before(),
        not_after: svid.not_after(),
        renew_at,
        key,
    }
}

fn stored(identity: &Identity, renew_at: Option<Timestamp>) -> store::Identity {
    store::Identity { chain: identity.svid.chain().to_pems(), key: identity.key_pem.clone(), renew_at }
}

fn read_chain(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = files::read_limited(path)
        .map_err(|e| format!("the certificate {} cannot be read: {e}", path.display()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(format!("{} holds no PEM certificate", path.display())),
        Err(e) => Err(format!("{} is damaged: {e}", path.display())),
    }
}

fn not_after(certificate: &CertificateDer<'static>) -> Option<Timestamp> {
    use x509_parser::prelude::FromDer as _;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    Some(Timestamp::from_secs(certificate.validity().not_after.timestamp()))
}

fn local(code: &str, title: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure { meaning: Meaning::Local, retry_after: None, report: Report::of_agent(code, title, why) }
}

fn key_failure(e: &KeyError) -> Failure {
    local("key", "The key in the TPM cannot be used", e)
}

fn report_mis(e: MisError) -> Failure {
    report(report_quietly(&e))
}

fn report_quietly(e: &MisError) -> Failure {
    if let MisError::Refused { retry_after: Some(wait), .. } = e
        && *wait > crate::lifecycle::LONGEST_RETRY_AFTER
    {
        tracing::warn!(asked = ?wait, "the MIS asked for a wait of more than 7 days; the agent asks again after 7 days");
    }
    e.to_failure()
}

/// The whole of it goes to the log, `instance` included (miaf-v0 P3).
fn report(failure: Failure) -> Failure {
    let Report { kind, title, status, detail, instance } = &failure.report;
    tracing::warn!(
        problem_type = kind, status, detail, instance, retry_after = ?failure.retry_after, "{title}"
    );
    failure
}

fn forget<R: store::Record>(store: &Store) {
    if let Err(e) = store.remove::<R>() {
        tracing::warn!(error = %e, "a part of the agent's state that is no longer needed could not be removed");
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => std::panic::resume_unwind(e.into_panic()), // a bug in `work` is a bug here
    }
}
