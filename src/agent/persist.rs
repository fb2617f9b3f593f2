//! What is stored and published after every step of the lifecycle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::executor::Executor;
use super::identity::{Identity, record};
use super::reporting::{Reporter, cause, hint};
use super::retry_after::{Change, StoredRetryAfter};
use super::{address, blocking};
use crate::config::Config;
use crate::lifecycle::{IdentityMemory, KnownTime, Lifecycle, Memory};
use crate::platform::clock;
use crate::problem::{ProblemCode, Report};
use crate::publish::broadcast::Broadcaster;
use crate::publish::files::{BundleToPublish, PublishError};
use crate::state::{self, Store};
use miaf_client::api::IdentityName;
use miaf_spiffe::Bundle;
use miaf_spiffe::time::Now;

/// Interval between attempts to publish the files, after a failure.
pub(super) const PUBLISH_RETRY: Duration = Duration::from_secs(30);
/// A stored time that is this much too late is corrected: well before it makes a right clock look
/// wrong.
const TOO_LATE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The store, and how the state of the lifecycle stands in it.
pub(super) struct Records {
    pub(super) store: Store,
    retry_after: StoredRetryAfter,
    time: state::StoredTime,
    /// Names of the identities, and of those that are not configured any more and whose delays last.
    names: Vec<IdentityName>,
    /// What is remembered of the latter.
    removed: Vec<IdentityMemory>,
    /// The WFMs that asked for the delays of identities.
    wfms: BTreeMap<IdentityName, String>,
}

impl Records {
    /// `names` are those of the identities, then those of `removed`.
    pub(super) fn new(
        store: Store,
        retry_after: StoredRetryAfter,
        time: state::StoredTime,
        names: Vec<IdentityName>,
        removed: Vec<IdentityMemory>,
        wfms: BTreeMap<IdentityName, String>,
    ) -> Self {
        Self { store, retry_after, time, names, removed, wfms }
    }

    /// What has to survive a restart.
    fn memory(&self, lifecycle: &Lifecycle) -> Memory {
        let mut memory = lifecycle.memory();
        memory.identities.extend(self.removed.iter().cloned());
        memory
    }

    /// Saves a record on a thread that may wait for the disk.
    pub(super) async fn save<R: state::Record + Send + 'static>(
        &self,
        record: R,
    ) -> Result<(), state::StoreError> {
        save(&self.store, record).await
    }

    async fn store_memory(
        &mut self,
        lifecycle: &Lifecycle,
        config: &Config,
        identities: &[Identity],
        reporter: &mut Reporter,
        now: Now,
    ) {
        for identity in identities {
            match &identity.delayed_by_wfm {
                Some(wfm) => drop(self.wfms.insert(identity.name.clone(), wfm.clone())),
                None => drop(self.wfms.remove(&identity.name)),
            }
        }
        let (memory, trusted) = (self.memory(lifecycle), lifecycle.trusts_clock(now));
        match self.retry_after.change(&memory, trusted) {
            None => {}
            Some(Change::Remove) => {
                let store = self.store.clone();
                blocking(move || forget::<state::RetryAfterDelays>(&store)).await;
                self.retry_after.changed(memory, trusted);
            }
            Some(Change::Write) => {
                let (mis, boot_id) = (address(config), clock::boot_id());
                let wall = trusted.then_some(now.wall);
                let mut record =
                    state::RetryAfterDelays::new(&memory, &self.names, mis, boot_id, wall, now.boot);
                for delay in &mut record.identities {
                    delay.wfm = self.wfms.get(&delay.name).cloned();
                }
                let consequence = "a Retry-After delay could not be stored; it would be lost on a restart";
                if try_save(&self.store, None, record, consequence, reporter).await {
                    self.retry_after.changed(memory, trusted);
                }
            }
        }
    }

    /// Forwards, once a day is enough to tell a wrong clock by, and spares the flash.
    async fn store_time(&mut self, lifecycle: &Lifecycle, reporter: &mut Reporter) {
        let KnownTime { proven, vouched, .. } = lifecycle.known_time();
        let is_news = match (self.time.proven, proven) {
            (Some(stored), Some(proven)) => stored.until(proven) >= DAY || proven.until(stored) >= TOO_LATE,
            (stored, proven) => stored != proven,
        };
        if !is_news && self.time.vouched == vouched {
            return;
        }
        let record = state::StoredTime { proven, vouched };
        let consequence = "the time that the MIS proves could not be stored; it would be lost on a restart";
        if try_save(&self.store, None, record, consequence, reporter).await {
            self.time = record;
        }
    }

    /// Whether the clock has been set, and tells how much is left of the Retry-After delays of
    /// another boot (miaf-v0 E8): the state is then restored anew.
    pub(super) fn has_delays_to_restore(&mut self, lifecycle: &Lifecycle, now: Now) -> bool {
        // By what the next start finds on the disk: or the clock would be in doubt again, and so
        // on.
        let state::StoredTime { proven, vouched } = self.time;
        let trusted = KnownTime { proven, vouched, ..lifecycle.known_time() }.allows(now);
        let memory = self.memory(lifecycle);
        let anew = self.retry_after.are_to_be_restored(trusted, &memory);
        if anew {
            tracing::info!(
                "the clock shows now what is left of the Retry-After delays from before the reboot"
            );
        }
        anew
    }
}

impl Executor {
    /// Stores and publishes what the last step changed. Returns when to try again to publish or to
    /// withdraw, if that failed.
    pub(super) async fn persist_and_publish(
        &mut self,
        now: Now,
        publication: &Broadcaster,
    ) -> Option<Duration> {
        let Self { records, lifecycle, config, identities, reporter, .. } = &mut *self;
        records.store_memory(lifecycle, config, identities, reporter, now).await;
        self.records.store_time(&self.lifecycle, &mut self.reporter).await;
        self.store_renewal_moments().await;
        self.retire_removed().await;
        let published = self.publish_files(now).await;
        let snapshot = self.snapshot(now, &published);
        self.reporter.report_snapshot(&snapshot, now.wall);
        publication.send(snapshot, now.wall);
        let has_failed = published.iter().any(|published| published.failure.is_some());
        (has_failed || !self.removed.is_empty()).then_some(PUBLISH_RETRY)
    }

    /// Stores renewal moments that have been brought forward since their SVIDs were stored.
    async fn store_renewal_moments(&mut self) {
        for identity in &mut self.identities {
            let renew_at = self.lifecycle.identity(identity.index).and_then(|view| view.renew_at());
            let Some(current) = identity.current.as_ref().filter(|_| renew_at != identity.stored_renew_at)
            else {
                continue;
            };
            let Ok(record) = record(current, renew_at, identity.key_use) else { continue };
            let consequence = "the renewal moment could not be stored; a restart would not know it";
            let name = Some(&identity.name);
            if try_save(&identity.store, name, record, consequence, &mut self.reporter).await {
                identity.stored_renew_at = renew_at;
            }
        }
    }

    async fn publish_files(&mut self, now: Now) -> Vec<Published> {
        let trusts_clock = self.lifecycle.trusts_clock(now);
        let bundle = self.trust_domain.named_bundle().cloned();
        let mut published = Vec::new();
        let (has_several, refresh_interval) = (self.identities.len() > 1, self.config.bundle_refresh);
        for identity in &mut self.identities {
            let outcome = identity.publish_files(bundle.clone(), refresh_interval, trusts_clock, now).await;
            self.reporter.report_files(identity.index, &identity.name, has_several, outcome.failure.as_ref());
            published.push(outcome);
        }
        published
    }

    /// Withdraws secrets that the next configuration publishes at another place, or at none.
    pub(super) async fn withdraw_secrets_before(&mut self, next: &Config) {
        if next.files.software_key_dir == self.config.files.software_key_dir {
            return;
        }
        for identity in &self.identities {
            let publisher = identity.publisher.clone();
            if let Err(e) = blocking(move || publisher.withdraw_secrets()).await {
                let (identity, code) = (identity.name.as_str(), ProblemCode::NotPublished.as_str());
                tracing::error!(
                    identity,
                    code,
                    hint = hint(&e),
                    "the software key could not be withdrawn, and is still published: {}",
                    cause(&e)
                );
            }
        }
    }
}

impl Identity {
    async fn publish_files(
        &mut self,
        bundle: Option<Arc<Bundle>>,
        refresh_interval: Duration,
        trusts_clock: bool,
        now: Now,
    ) -> Published {
        let mut publisher = self.publisher.clone();
        let current = self.current.clone();
        // A boot without a clock does not write files that say so, and others when it has been set.
        let in_doubt = current.as_ref().filter(|_| !trusts_clock);
        let time = in_doubt
            .map_or(now.wall, |current| current.svid.not_before().max(now.wall).min(current.svid.until()));
        let (publisher, outcome) = blocking(move || {
            let bundle = bundle.as_deref().map(|bundle| BundleToPublish { bundle, refresh_interval });
            let outcome = publisher.publish(current.as_deref(), bundle, time);
            (publisher, outcome)
        })
        .await;
        self.publisher = publisher;
        match outcome {
            Ok(generation) => Published { generation, failure: None },
            Err(e) => {
                let title = match e {
                    PublishError::Files { .. } => "The identity files could not be written",
                    _ => "The software key could not be published",
                };
                Published {
                    generation: None,
                    failure: Some(Report::of(ProblemCode::NotPublished, title, &e)),
                }
            }
        }
    }
}

/// What came of publishing the files of one identity.
pub(super) struct Published {
    pub(super) generation: Option<u64>,
    pub(super) failure: Option<Report>,
}

/// Saves a record on a thread that may wait for the disk.
pub(super) async fn save<R: state::Record + Send + 'static>(
    store: &Store,
    record: R,
) -> Result<(), state::StoreError> {
    let store = store.clone();
    blocking(move || store.save(&record)).await
}

/// Returns whether a record, of this identity or of all, could be saved. If not, the next step tries
/// again, and `consequence` is logged once.
async fn try_save<R: state::Record + Send + 'static>(
    store: &Store,
    identity: Option<&IdentityName>,
    record: R,
    consequence: &str,
    reporter: &mut Reporter,
) -> bool {
    let failure = save(store, record).await.err();
    reporter.report_record(identity, R::NAME, failure.as_ref(), consequence);
    failure.is_none()
}

/// Removes a record that is not needed any more.
pub(super) fn forget<R: state::Record>(store: &Store) {
    if let Err(e) = store.remove::<R>() {
        tracing::warn!(
            hint = hint(&e),
            "a record of the agent's state that is not needed any more could not be removed: {}",
            cause(&e)
        );
    }
}
