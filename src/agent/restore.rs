//! Restores what the process before stored. Nothing is contacted, neither the MIS nor the TPM.

use std::sync::Arc;

use webpki::EndEntityCert;

use super::address;
use super::executor::Executor;
use super::identity::{DEVICE, Identity, fits, svid_facts};
use super::persist::{Records, forget};
use super::provisioning::{Provisioned, Provisioning};
use super::reporting::{Reporter, cause, hint};
use super::retry_after::{self, StoredRetryAfter};
use super::trust_domain::{CachedBundle, CachedDiscovery, TrustDomain, discovery_facts};
use crate::config::{Config, TrustDomainSource};
use crate::hint::Hint as _;
use crate::issuer::{Discovery, Issuer, Protocol};
use crate::keys::{Key, ProviderKind, Providers};
use crate::lifecycle::{
    Backoff, IdentityIndex, IdentityMemory, KeyChoice, KnownTime, Lifecycle, Policy, Restored,
    RestoredBundle, RestoredIdentity, RestoredTrustDomain, TrustDomainMemory,
};
use crate::platform::{clock, credentials, random};
use crate::publish;
use crate::publish::files::Publisher;
use crate::state::{self, Store, StoreError};
use crate::transport::Transport;
use miaf_client::api::IdentityName;
use miaf_spiffe::Bundle;
use miaf_spiffe::svid::X509Svid;
use miaf_spiffe::time::{Now, Timestamp};

impl Executor {
    /// Takes up where the last process left off. Nothing is contacted, neither the MIS nor the TPM.
    ///
    /// # Errors
    /// When the state may be there and cannot be read now, or another agent works on it: to go on
    /// without it would mean another key, and perhaps a device that its MIS does not know any more.
    pub(super) async fn restore(
        config: Config,
        provisioned: Provisioned,
        now: Now,
    ) -> Result<Self, StoreError> {
        let store = Store::new(&config.state_dir);
        let lock = store.lock()?;
        let keys = Providers::new(provisioned.tpm, store.private(), credentials::credentials().as_deref());
        let proxy = config.mis.as_ref().map(|mis| mis.proxy.clone()).unwrap_or_default();
        let discovery = read_discovery(&store, &config);
        let mut identity = restore_identity(DEVICE, &config, &store, &keys)?;
        let bundle = cached(&store).and_then(|record| read_bundle(record, discovery.as_ref(), &identity));
        if let Some(cached) = &bundle {
            identity.revalidate_under(&cached.bundle, now.wall);
        }
        // What another MIS asked for does not bind this one.
        let delays = cached(&store).filter(|delays: &state::RetryAfterDelays| delays.mis == address(&config));
        let delays = delays.unwrap_or_default();
        let time = cached::<state::StoredTime>(&store).unwrap_or_default();
        let boot_id = clock::boot_id();
        let memory = retry_after::remembered(&delays, boot_id.as_deref(), now);
        let own = memory.identities.into_iter().next().unwrap_or_default();
        let restored = Restored {
            trust_domain: trust_domain_state(discovery.as_ref(), bundle.as_ref(), time, memory.trust_domain),
            identities: vec![identity_state(&identity, config.key.provider, own)],
        };
        let lifecycle = Lifecycle::new(policy(&config), restored, now, &mut random::unit);
        let (memory, trusted) = (lifecycle.memory(), lifecycle.trusts_clock(now));
        let delays = StoredRetryAfter::restored(&delays, boot_id.as_deref(), memory, trusted);
        let issuer = Issuer::new(Protocol::default(), Transport::new(provisioned.trust, proxy));
        Ok(Self {
            lifecycle,
            trust_domain: TrustDomain::new(issuer, discovery, bundle, config.staleness),
            identities: vec![identity],
            keys,
            provisioning: Provisioning::new(&config, provisioned.bootstrap, provisioned.purpose, now),
            records: Records::new(store, delays, time),
            reporter: Reporter::default(),
            rejected: None,
            _lock: lock,
            config,
        })
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        window: config.renewal_window,
        retry: Backoff { base: config.retry_base, cap: config.retry_cap },
        bundle_refresh: config.bundle_refresh,
        rotate: config.key.rotate,
    }
}

fn trust_domain_state(
    discovery: Option<&CachedDiscovery>,
    bundle: Option<&CachedBundle>,
    time: state::StoredTime,
    memory: TrustDomainMemory,
) -> RestoredTrustDomain {
    RestoredTrustDomain {
        discovery: discovery.map(|cached| discovery_facts(&cached.document, false)),
        bundle: bundle.map(|cached| RestoredBundle {
            refresh_hint: cached.bundle.refresh_hint(), // the first poll comes soon, whatever it says
            is_empty: cached.bundle.anchors().is_empty(),
        }),
        memory,
        time: KnownTime { built: clock::built_at(), proven: time.proven, vouched: time.vouched },
    }
}

fn identity_state(identity: &Identity, provider: ProviderKind, memory: IdentityMemory) -> RestoredIdentity {
    let facts = |current: &Arc<publish::SvidAndKey>| {
        let fits = fits(provider, &current.key);
        svid_facts(&current.svid, identity.stored_renew_at, KeyChoice::Current, fits)
    };
    RestoredIdentity {
        svid: identity.current.as_ref().map(facts),
        pending_key: identity.pending_key.is_some(),
        issued_chain: identity.issued.is_some(),
        memory,
    }
}

fn restore_identity(
    index: IdentityIndex,
    config: &Config,
    store: &Store,
    keys: &Providers,
) -> Result<Identity, StoreError> {
    let current = store.load()?.and_then(|record| match read_identity(&record, keys) {
        Ok(identity) => Some((identity, record)),
        Err(why) => {
            store.quarantine::<state::StoredIdentity>(&why);
            None
        }
    });
    // Perhaps what made it unusable has been corrected: the right key-encryption key is back.
    let current = current.or_else(|| store.recover(|record| read_identity(record, keys)));
    let (identity, record) = current.unzip();
    let (pending_key, issued) = load_unfinished(store, record.as_ref(), keys)?;
    let stored_renew_at: Option<Timestamp> = record.and_then(|record| record.renew_at);
    Ok(Identity {
        index,
        name: IdentityName::DEVICE,
        current: identity.map(Arc::new),
        previous_key: None,
        pending_key,
        issued,
        stored_renew_at,
        publisher: Publisher::new(&config.files, &IdentityName::DEVICE),
    })
}

/// A record whose content can be fetched again from the MIS.
fn cached<R: state::Record>(store: &Store) -> Option<R> {
    store.load().unwrap_or_else(|e| {
        tracing::warn!(hint = hint(&e), "a cached document cannot be read: {}", cause(&e));
        None
    })
}

/// The document that the configuration describes itself, or the cached one, if it is that of the
/// configured URL.
fn read_discovery(store: &Store, config: &Config) -> Option<CachedDiscovery> {
    let mis = config.mis.as_ref()?;
    let (url, bundle_origins) = match &mis.source {
        TrustDomainSource::Discovery { url, bundle_origins } => (url, bundle_origins),
        source => return CachedDiscovery::configured(source),
    };
    let record: state::StoredDiscovery = cached(store)?;
    let document = Discovery::from_json(&record.body).ok()?;
    let wanted = record.url == url.as_str()
        && mis.trust_domain.as_ref().is_none_or(|domain| domain == document.trust_domain());
    // It may have come under a trust that was more than the public store's (D7). The next fetch
    // says so.
    let led_elsewhere = mis.trust.is_public_only() && document.check_origin(url).is_err()
        || document.check_bundle_origin(url, bundle_origins).is_err();
    (wanted && !led_elsewhere).then_some(CachedDiscovery { document, record: Some(record) })
}

fn read_identity(record: &state::StoredIdentity, keys: &Providers) -> Result<publish::SvidAndKey, String> {
    let svid = X509Svid::from_stored(record.chain.clone()).map_err(|e| e.to_string())?;
    let key = keys.open(&record.key).map_err(|e| e.with_hint().to_string())?;
    let leaf = svid.chain().certificates().first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
    if leaf.is_none_or(|leaf| leaf.subject_public_key_info().as_ref() != key.public_key().spki_der()) {
        return Err("its key is another than its certificate's".into());
    }
    Ok(publish::SvidAndKey { svid, key, credential: record.credential.clone() })
}

/// The cached bundle, if it is of the discovered trust domain, or of that of the current SVID.
fn read_bundle(
    record: state::StoredBundle,
    discovery: Option<&CachedDiscovery>,
    identity: &Identity,
) -> Option<CachedBundle> {
    let discovered = discovery.map(|cached| cached.document.trust_domain());
    let ours = discovered.or_else(|| identity.trust_domain())?;
    if record.trust_domain != *ours {
        return None;
    }
    let bundle = Bundle::from_stored(record.body.as_bytes(), &record.trust_domain)
        .map_err(|e| tracing::warn!("the cached trust bundle cannot be used: {e}"))
        .ok()?;
    Some(CachedBundle { bundle: Arc::new(bundle), record })
}

/// The pending key, and the issued chain that is not adopted yet.
type Unfinished = (Option<Arc<dyn Key>>, Option<state::StoredIssuedChain>);

/// Loads what an interrupted process left between the issue of an SVID and its adoption. If the
/// identity was stored and the records before it were not removed yet, they are now.
fn load_unfinished(
    store: &Store,
    identity: Option<&state::StoredIdentity>,
    keys: &Providers,
) -> Result<Unfinished, StoreError> {
    let record: Option<state::StoredPendingKey> = store.load()?;
    let mut issued: Option<state::StoredIssuedChain> = store.load()?;
    let open =
        |record: &state::StoredPendingKey| keys.open(&record.key).map_err(|e| e.with_hint().to_string());
    let pending = record.and_then(|record| match open(&record) {
        Ok(key) => Some((key, record)),
        Err(why) => {
            store.quarantine::<state::StoredPendingKey>(&why);
            None
        }
    });
    let pending = pending.or_else(|| identity.is_none().then(|| store.recover(open)).flatten());
    let (mut pending, record) = pending.unzip();
    if let Some(identity) = identity {
        let same = |issued: &state::StoredIssuedChain| issued.chain == identity.chain;
        if issued.as_ref().is_some_and(same) {
            forget::<state::StoredIssuedChain>(store);
            issued = None;
        }
        if pending.is_some() && record.is_some_and(|record| record.key == identity.key) {
            forget::<state::StoredPendingKey>(store);
            pending = None;
        }
    }
    if issued
        .as_ref()
        .is_some_and(|issued| if issued.for_pending_key { pending.is_none() } else { identity.is_none() })
    {
        store.quarantine::<state::StoredIssuedChain>("the key that it was issued for is gone");
        issued = None;
    }
    Ok((pending, issued))
}
