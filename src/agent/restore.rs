//! Starting: what the process before left behind, read back. Nothing is contacted, neither the MIS nor the chip.

use std::sync::Arc;

use webpki::EndEntityCert;

use super::device::{Device, HeldDiscovery, KeptBundle, address, forget};
use super::failures::{Spoken, cause};
use super::identity::{fits, svid_facts};
use super::provisioned::Provisioned;
use super::trust::discovered;
use super::waits::{self, KeptWaits};
use crate::config::Config;
use crate::hint::Hint as _;
use crate::issuer::{Discovery, Issuer, Protocol};
use crate::keys::{Key, Provider};
use crate::lifecycle::{KeyChoice, KnownTime, Lifecycle, Policy, Restored, Retry};
use crate::platform::{clock, credentials, random};
use crate::publish::Identity;
use crate::publish::files::Publisher;
use crate::spiffe::Bundle;
use crate::spiffe::svid::X509Svid;
use crate::state::{self, Store, StoreError};
use crate::time::Now;
use crate::transport::Transport;

impl Device {
    /// Takes up where the last process left off. Nothing is contacted, neither the MIS nor the chip.
    ///
    /// # Errors
    /// When the state may be there and cannot be read now, or another agent works on it: to go on without would mean
    /// another key, and perhaps a device that its MIS does not know any more.
    pub(super) async fn restore(
        config: Config,
        provisioned: Provisioned,
        now: Now,
    ) -> Result<Self, StoreError> {
        let store = Store::new(&config.state_dir);
        let lock = store.lock()?;
        let keys = Provider::new(
            config.key.provider,
            provisioned.tpm,
            store.private(),
            credentials::credentials().as_deref(),
        );
        let proxy = config.mis.as_ref().map(|mis| mis.proxy.clone()).unwrap_or_default();
        let discovery = cached(&store).and_then(|cached| read_discovery(cached, &config));
        let identity = store.load()?.and_then(|record| match read_identity(&record, &keys) {
            Ok(identity) => Some((identity, record)),
            Err(why) => {
                store.quarantine::<state::StoredIdentity>(&why);
                None
            }
        });
        // Perhaps what was in its way is put right: a key-encryption key that is the right one again.
        let identity = identity.or_else(|| store.recover(|record| read_identity(record, &keys)));
        let (mut identity, record) = identity.unzip();
        let bundle =
            cached(&store).and_then(|cached| read_bundle(cached, discovery.as_ref(), identity.as_ref()));
        if let (Some(identity), Some(kept)) = (&mut identity, &bundle) {
            identity.svid = identity.svid.under(&kept.bundle, now.wall);
        }
        let (pending, answer) = load_unfinished(&store, record.as_ref(), &keys)?;
        // What another MIS asked for does not bind this one.
        let waiting =
            cached(&store).filter(|waiting: &state::RetryAfterDelays| waiting.mis == address(&config));
        let waiting = waiting.unwrap_or_default();
        let stored_time = cached::<state::StoredTime>(&store).unwrap_or_default();
        let boot_id = clock::boot_id();
        let renew_at = record.as_ref().and_then(|record| record.renew_at);
        let restored = Restored {
            discovery: discovery.as_ref().map(|held| discovered(&held.document, false)),
            bundle: bundle.is_some(),
            bundle_refresh_hint: bundle.as_ref().and_then(|kept| kept.bundle.refresh_hint()),
            bundle_is_empty: bundle.as_ref().is_some_and(|kept| kept.bundle.anchors().is_empty()),
            svid: identity.as_ref().map(|identity| {
                svid_facts(&identity.svid, renew_at, KeyChoice::Current, fits(&keys, &identity.key))
            }),
            pending_key: pending.is_some(),
            answer: answer.is_some(),
            memory: waits::remembered(&waiting, boot_id.as_deref(), now),
            time: KnownTime {
                built: clock::built_at(),
                proven: stored_time.proven,
                vouched: stored_time.vouched,
            },
        };
        let lifecycle = Lifecycle::new(policy(&config), restored, now, &mut random::unit);
        let (memory, believed) = (lifecycle.memory(), lifecycle.believes(now));
        Ok(Self {
            store,
            issuer: Issuer::new(Protocol::default(), Transport::new(provisioned.trust, proxy)),
            keys,
            lifecycle,
            discovery,
            bundle,
            identity: identity.map(Arc::new),
            pending,
            answer,
            stored_renew_at: renew_at,
            waits: KeptWaits::restored(&waiting, boot_id.as_deref(), memory, believed),
            proof: None,
            stored_time,
            accepts_regressed_bundle: false,
            bootstrap: provisioned.bootstrap,
            look_again_at: now.boot,
            look_for: provisioned.look_for,
            publisher: Publisher::new(&config.files),
            told: None,
            spoken: Spoken::default(),
            rejected: None,
            _lock: lock,
            config,
        })
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

/// A record that can be had again from the MIS.
fn cached<R: state::Record>(store: &Store) -> Option<R> {
    store.load().unwrap_or_else(|e| {
        tracing::warn!("a cached document cannot be read: {}", cause(&e.with_hint()));
        None
    })
}

fn read_discovery(cached: state::CachedDiscovery, config: &Config) -> Option<HeldDiscovery> {
    let mis = config.mis.as_ref()?;
    let document = Discovery::from_json(&cached.body).ok()?;
    let wanted = cached.url == mis.discovery_url.as_str()
        && mis.trust_domain.as_ref().is_none_or(|domain| domain == document.trust_domain());
    // It may have come under a trust that was more than the public store's (D7). The next fetch says so.
    let led_elsewhere = mis.trust.is_public_only() && document.check_origin(&mis.discovery_url).is_err();
    (wanted && !led_elsewhere).then_some(HeldDiscovery { document, cached })
}

fn read_identity(record: &state::StoredIdentity, keys: &Provider) -> Result<Identity, String> {
    let svid = X509Svid::from_stored(record.chain.clone()).map_err(|e| e.to_string())?;
    let key = keys.key_from_pem(&record.key).map_err(|e| e.to_string())?;
    let leaf = svid.chain().certificates().first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
    if leaf.is_none_or(|leaf| leaf.subject_public_key_info().as_ref() != key.public_key().spki_der()) {
        return Err("its key is another than its certificate's".into());
    }
    Ok(Identity { svid, key, credential: record.credential.clone() })
}

/// A bundle of another trust domain than the device is in, or is going to be in, is of no use.
fn read_bundle(
    cached: state::CachedBundle,
    discovery: Option<&HeldDiscovery>,
    identity: Option<&Identity>,
) -> Option<KeptBundle> {
    let ours = match (discovery, identity) {
        (Some(held), _) => held.document.trust_domain(),
        (None, Some(identity)) => identity.svid.spiffe_id().trust_domain(),
        (None, None) => return None,
    };
    if cached.trust_domain != *ours {
        return None;
    }
    let bundle = Bundle::from_held(cached.body.as_bytes(), &cached.trust_domain)
        .map_err(|e| tracing::warn!("the cached trust bundle cannot be used: {e}"))
        .ok()?;
    Some(KeptBundle { bundle: Arc::new(bundle), cached })
}

/// The key that was made for the next SVID, and the answer that is not adopted yet.
type Unfinished = (Option<Arc<dyn Key>>, Option<state::IssuedChain>);

/// What an interrupted process left between an answer and its adoption. If the identity was stored but the records
/// before it were not removed yet, they are now.
fn load_unfinished(
    store: &Store,
    identity: Option<&state::StoredIdentity>,
    keys: &Provider,
) -> Result<Unfinished, StoreError> {
    let record: Option<state::PendingKey> = store.load()?;
    let mut answer: Option<state::IssuedChain> = store.load()?;
    let open = |record: &state::PendingKey| keys.key_from_pem(&record.key).map_err(|e| e.to_string());
    let pending = record.and_then(|record| match open(&record) {
        Ok(key) => Some((key, record)),
        Err(why) => {
            store.quarantine::<state::PendingKey>(&why);
            None
        }
    });
    let pending = pending.or_else(|| identity.is_none().then(|| store.recover(open)).flatten());
    let (mut pending, record) = pending.unzip();
    if let Some(identity) = identity {
        let same = |answer: &state::IssuedChain| answer.chain == identity.chain;
        if answer.as_ref().is_some_and(same) {
            forget::<state::IssuedChain>(store);
            answer = None;
        }
        if pending.is_some() && record.is_some_and(|record| record.key == identity.key) {
            forget::<state::PendingKey>(store);
            pending = None;
        }
    }
    if answer
        .as_ref()
        .is_some_and(|answer| if answer.for_pending_key { pending.is_none() } else { identity.is_none() })
    {
        store.quarantine::<state::IssuedChain>("the key that it was issued for is gone");
        answer = None;
    }
    Ok((pending, answer))
}
