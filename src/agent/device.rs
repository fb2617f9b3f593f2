//! One device under one configuration: what it holds, and how that becomes durable and visible after every step.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::failures::{Spoken, cause, in_a_line};
use super::waits::{Change, KeptWaits};
use crate::bootstrap::{Bootstrap, Purpose};
use crate::config::Config;
use crate::issuer::{Discovery, Issuer};
use crate::keys::{Key, KeyError, Provider};
use crate::lifecycle::{
    Action, Draw, Event, KnownTime, LastError, Lifecycle, MAX_DETAIL, Report, State, Step,
};
use crate::platform::{clock, systemd};
use crate::publish::HeldBundle;
use crate::publish::Identity;
use crate::publish::Snapshot;
use crate::publish::broadcast::Publication;
use crate::publish::files::{PublishError, Publisher};
use crate::spiffe::Bundle;
use crate::spiffe::svid;
use crate::store::{self, Store};
use crate::text::Excerpt;
use crate::time::{BootTime, Now, ProvenTime, Timestamp};

/// After a failure to publish the files, they are tried again this much later.
const PUBLISH_AGAIN: Duration = Duration::from_secs(30);
/// A time on the disk that is this much too late is put right: well before it makes a right clock look wrong.
const TOO_LATE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Device {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) issuer: Issuer,
    pub(super) keys: Provider,
    pub(super) lifecycle: Lifecycle,
    pub(super) discovery: Option<HeldDiscovery>,
    pub(super) bundle: Option<KeptBundle>,
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) pending: Option<Arc<dyn Key>>,
    pub(super) answer: Option<store::Answer>,
    pub(super) stored_renew_at: Option<Timestamp>,
    pub(super) waits: KeptWaits,
    pub(super) proof: Option<ProvenTime>,
    pub(super) stored_time: store::CachedTime,
    /// The operator has said that a bundle with a lower sequence is meant to be (miaf-v0 B5).
    pub(super) accepts_regressed_bundle: bool,
    pub(super) bootstrap: Bootstrap,
    pub(super) look_again_at: BootTime,
    pub(super) look_for: Purpose,
    pub(super) publisher: Publisher,
    pub(super) told: Option<State>,
    pub(super) spoken: Spoken,
    /// Why the configuration that is there is not in use.
    pub(super) rejected: Option<LastError>,
    /// No other agent works on the same state while this is held.
    pub(super) _lock: Option<File>,
}

pub(super) struct HeldDiscovery {
    pub(super) document: Discovery,
    pub(super) cached: store::CachedDiscovery,
}

pub(super) struct KeptBundle {
    pub(super) bundle: Arc<Bundle>,
    pub(super) cached: store::CachedBundle,
}

impl Device {
    pub(super) fn step(&mut self, event: Event, now: Now, draw: Draw<'_>) -> Step {
        let latest = self.issuer.transport().proven_time();
        if latest != self.proof {
            self.proof = latest;
            // A bundle may come from a server that only keeps copies.
            if let Some(proof) = latest.filter(|_| !matches!(event, Event::Bundle(_))) {
                let time = proof.wall.after(proof.at.until(now.boot));
                let shown = self.lifecycle.time_is_shown(time, now);
                self.spoken.of_time(shown, time, now.wall);
            }
        }
        self.lifecycle.step(event, now, draw)
    }

    pub(super) async fn carry_out(&mut self, action: Action) -> Event {
        let event = match action {
            Action::FetchDiscovery => {
                Event::Discovery(self.fetch_discovery().await.map_err(|e| e.to_failure()))
            }
            Action::FetchBundle => Event::Bundle(self.fetch_bundle().await.map_err(|e| e.to_failure())),
            Action::ProveKey => Event::KeyProven(self.prove_key().await),
            Action::CreateKey => Event::KeyCreated(self.create_key().await),
            Action::Request(request, key) => Event::Answered(self.request(request, key).await),
            Action::Adopt { bundle_is_fresh } => Event::Adopted(self.adopt(bundle_is_fresh).await),
        };
        self.spoken.of(&event);
        event
    }

    /// Makes durable and visible what the last step changed. Returns when to try again to publish, if that failed.
    pub(super) async fn settle(&mut self, now: Now, publish: &Publication) -> Option<Duration> {
        self.store_memory(now).await;
        self.store_time().await;
        self.store_renewal_moment().await;
        let (generation, failure) = self.publish_files(now).await;
        self.spoken.of_files(failure.as_ref());
        let snapshot = self.snapshot(now, generation, failure.as_ref());
        self.spoken.of_wait(&snapshot);
        self.tell_service_manager(&snapshot);
        publish.tell(snapshot, now.wall);
        failure.map(|_| PUBLISH_AGAIN)
    }

    async fn store_memory(&mut self, now: Now) {
        let (memory, believed) = (self.lifecycle.memory(), self.lifecycle.believes(now));
        match self.waits.change(&memory, believed) {
            None => {}
            Some(Change::Remove) => {
                let store = self.store.clone();
                blocking(move || forget::<store::CachedWaits>(&store)).await;
                self.waits.changed(memory, believed);
            }
            Some(Change::Write) => {
                let (mis, boot_id) = (address(&self.config), clock::boot_id());
                let wall = believed.then_some(now.wall);
                let record = store::CachedWaits::new(&memory, mis, boot_id, wall, now.boot);
                if self.stores(record, "a wait that the MIS asked for would not survive a restart now").await
                {
                    self.waits.changed(memory, believed);
                }
            }
        }
    }

    /// Forwards, once a day is enough to tell a wrong clock by, and spares the flash.
    async fn store_time(&mut self) {
        let KnownTime { proven, vouched, .. } = self.lifecycle.known_time();
        let is_news = match (self.stored_time.proven, proven) {
            (Some(stored), Some(proven)) => stored.until(proven) >= DAY || proven.until(stored) >= TOO_LATE,
            (stored, proven) => stored != proven,
        };
        if !is_news && self.stored_time.vouched == vouched {
            return;
        }
        let record = store::CachedTime { proven, vouched };
        if self.stores(record, "the time that the MIS proves would be forgotten by a restart now").await {
            self.stored_time = record;
        }
    }

    async fn store_renewal_moment(&mut self) {
        let renew_at = self.lifecycle.renew_at();
        let Some(identity) = &self.identity else { return };
        if renew_at == self.stored_renew_at {
            return;
        }
        let Ok(record) = stored(identity, renew_at) else { return };
        if self.stores(record, "the renewal moment would be drawn anew after a restart now").await {
            self.stored_renew_at = renew_at;
        }
    }

    /// Whether a record could be stored. If not, that is tried again after the next step, and `so` is what follows.
    async fn stores<R: store::Record + Send + 'static>(&mut self, record: R, so: &str) -> bool {
        let failure = self.save(record).await.err();
        self.spoken.of_record(R::NAME, failure.as_ref(), so);
        failure.is_none()
    }

    async fn publish_files(&mut self, now: Now) -> (Option<u64>, Option<Report>) {
        let (mut publisher, identity) = (self.publisher.clone(), self.identity.clone());
        // A boot without a clock does not make files that say so, and others when it has been set.
        let in_doubt = identity.as_ref().filter(|_| !self.lifecycle.believes(now));
        let time =
            in_doubt.map_or(now.wall, |held| held.svid.not_before().max(now.wall).min(held.svid.until()));
        let bundle = self.bundle.as_ref().map(|kept| kept.bundle.clone());
        let (publisher, outcome) = blocking(move || {
            let outcome = publisher.publish(identity.as_deref(), bundle.as_deref(), time);
            (publisher, outcome)
        })
        .await;
        self.publisher = publisher;
        match outcome {
            Ok(generation) => (generation, None),
            Err(e) => {
                let title = match e {
                    PublishError::Files { .. } => "The identity files could not be written",
                    _ => "The software key could not be published",
                };
                (None, Some(Report::of_agent("not-published", title, &e)))
            }
        }
    }

    /// A secret that the next configuration publishes elsewhere, or nowhere, does not stay where it is.
    pub(super) fn leave_for(&mut self, next: &Config) {
        if next.files.software_key_dir != self.config.files.software_key_dir
            && let Err(e) = self.publisher.withdraw_secrets()
        {
            tracing::error!("{e}. Remove the software key there by hand");
        }
    }

    pub(super) fn snapshot(
        &self,
        now: Now,
        generation: Option<u64>,
        not_published: Option<&Report>,
    ) -> Snapshot {
        let trust_domain = self.discovery.as_ref().map(|held| held.document.trust_domain().clone());
        let of_identity = || self.identity.as_ref().map(|i| i.svid.spiffe_id().trust_domain().clone());
        Snapshot {
            is_known: true,
            state: self.lifecycle.state(now),
            trust_domain: trust_domain.or_else(of_identity),
            identity: self.identity.clone(),
            identity_before: None, // whoever tells it knows what was told before
            renew_at: self.lifecycle.renew_at(),
            renewal_window: self.lifecycle.renewal_window(),
            provider: self.identity.as_ref().map_or(self.config.key.provider, |i| i.key.provider()).as_str(),
            bundle: self.bundle.as_ref().map(|kept| HeldBundle {
                bundle: kept.bundle.clone(),
                fetched_at: kept.cached.fetched_at,
                refresh_at: self.bundle_refresh_at(now),
            }),
            bootstrap: self.bootstrap.facts().cloned(),
            trust: self.issuer.transport().trust().facts(),
            key_is_lost: self.lifecycle.key_is_lost(),
            asked_to_wait_until: self.lifecycle.asked_to_wait_until(now),
            ends_while_waiting: self.lifecycle.svid_ends_while_waiting(now),
            last_error: self.last_error(now, not_published),
            generation,
            key_users: self.config.key_users.clone(),
            kept: Arc::default(),
        }
    }

    /// What matters most of what is wrong, and when the agent will look at it again.
    fn last_error(&self, now: Now, not_published: Option<&Report>) -> Option<(LastError, Option<Timestamp>)> {
        let in_lifecycle = || {
            let (error, wait) = self.lifecycle.last_error(now)?;
            Some((error, wait.map(|wait| now.wall.after(wait))))
        };
        let in_publishing = || {
            let error = LastError { report: not_published?.clone(), at: now.wall, permanent: true };
            Some((error, Some(now.wall.after(PUBLISH_AGAIN))))
        };
        let other = in_lifecycle()
            .or_else(in_publishing)
            .or_else(|| Some((self.untrusted(now)?, self.bundle_refresh_at(now))))
            .or_else(|| Some((self.provisioned_problem()?, Some(self.next_look(now)))));
        // What somebody has just done comes first: perhaps it was to mend the other.
        let Some(mut rejected) = self.rejected.clone() else { return other };
        if let (Some(detail), Some((LastError { report, .. }, _))) = (&mut rejected.report.detail, other) {
            let besides = report.detail.as_deref().unwrap_or("no more is known");
            let both = format_args!("{detail}. Besides: {}: {besides}", report.title);
            *detail = Excerpt::of(both, MAX_DETAIL).into();
        }
        Some((rejected, None))
    }

    fn bundle_refresh_at(&self, now: Now) -> Option<Timestamp> {
        self.lifecycle.bundle_refresh_in(now).map(|wait| now.wall.after(wait))
    }

    /// The SVID held is valid by the clock, and the trust bundle does not vouch for it (any more): nothing that checks
    /// it will accept it (miaf-v0 B3).
    fn untrusted(&self, now: Now) -> Option<LastError> {
        let (identity, kept) = (self.identity.as_ref()?, self.bundle.as_ref()?);
        let untrusted =
            identity.is_valid(now.wall) && !svid::is_trusted(&identity.svid, &kept.bundle, now.wall);
        let why = "no anchor of the trust bundle leads to this device's SVID, so others refuse it. \
                   Ask the operator of the MIS whether the bundle is as it should be";
        let report =
            Report::of_agent("svid-not-trusted", "The trust bundle does not vouch for the SVID", &why);
        untrusted.then_some(LastError { report, at: kept.cached.fetched_at, permanent: false })
    }

    /// The clock has been set, and tells how much is left of the waits of another boot (miaf-v0 E8): to be restored anew.
    pub(super) fn has_waits_to_restore(&mut self, now: Now) -> bool {
        // By what the next restoring will find on the disk: or it would doubt again, and so on.
        let store::CachedTime { proven, vouched } = self.stored_time;
        let came_right = KnownTime { proven, vouched, ..self.lifecycle.known_time() }.allows(now);
        let anew = self.waits.are_to_be_restored(came_right, self.lifecycle.memory().waits);
        if anew {
            tracing::info!("the clock tells now what is left of the waits of before the reboot");
        }
        anew
    }

    /// Whether the device has been given an identity, valid or not.
    pub(super) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    fn tell_service_manager(&mut self, snapshot: &Snapshot) {
        if self.told == Some(snapshot.state) {
            return;
        }
        self.told = Some(snapshot.state);
        let state = snapshot.state;
        let who = snapshot.identity.as_ref().map(|identity| format!(": {}", identity.svid.spiffe_id()));
        systemd::status(&format!("{state}{}", who.unwrap_or_default()));
        match state {
            State::Blocked | State::Expired => {
                let why =
                    snapshot.last_error.as_ref().map(|(error, _)| format!(": {}", in_a_line(&error.report)));
                let why = why.unwrap_or_default();
                tracing::error!(state = state.as_str(), "{state}: {}{why}", state.meaning());
            }
            _ => tracing::info!(state = state.as_str(), "{state}: {}", state.meaning()),
        }
    }

    pub(super) async fn save<R: store::Record + Send + 'static>(
        &self,
        record: R,
    ) -> Result<(), store::StoreError> {
        let store = self.store.clone();
        blocking(move || store.save(&record)).await
    }
}

/// Where the MIS is found.
pub(super) fn address(config: &Config) -> Option<String> {
    config.mis.as_ref().map(|mis| mis.discovery_url.to_string())
}

/// The identity as it is stored, with the renewal moment drawn for it.
pub(super) fn stored(identity: &Identity, renew_at: Option<Timestamp>) -> Result<store::Identity, KeyError> {
    Ok(store::Identity {
        chain: identity.svid.chain().to_pems(),
        key: identity.key.to_pem()?,
        renew_at,
        credential: identity.credential.clone(),
    })
}

pub(super) fn forget<R: store::Record>(store: &Store) {
    if let Err(e) = store.remove::<R>() {
        let e = cause(&e);
        tracing::warn!("a part of the agent's state that is no longer needed could not be removed: {e}");
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => std::panic::resume_unwind(e.into_panic()), // a bug in `work` is a bug here
    }
}
