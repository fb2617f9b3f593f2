//! Restores what the process before stored. Nothing is contacted, neither the MIS nor the TPM.

use std::sync::Arc;

use webpki::EndEntityCert;

use super::address;
use super::est::EstState;
use super::executor::Executor;
use super::identity::{Identity, algorithms, fits, svid_facts};
use super::operator::requested_before;
use super::persist::{Records, forget};
use super::provisioning::{Provisioned, Provisioning};
use super::removed::RemovedIdentity;
use super::reporting::{Reporter, cause, hint};
use super::retry_after::{self, StoredRetryAfter};
use super::trust_domain::{CachedBundle, CachedDiscovery, TrustDomain, discovery_facts, trust_domain};
use crate::config::{Config, Enrollment, EstConfig, IdentityConfig, MisConfig, Rotate, TrustDomainSource};
use crate::hint::Hint as _;
use crate::issuer::{Discovery, Issuer, Protocol};
use crate::keys::{Key, KeyError, KeyFloor, Providers};
use crate::lifecycle::{
    Backoff, IdentityIndex, IdentityMemory, IdentityPolicy, Issuance, KeyChoice, KeyUse, KnownTime,
    Lifecycle, Policy, Restored, RestoredBundle, RestoredIdentity, RestoredTrustDomain, Rotation,
    TrustDomainMemory,
};
use crate::platform::{clock, credentials, random};
use crate::problem::ProblemCode;
use crate::publish;
use crate::publish::files::{IdentityFiles, Publisher};
use crate::state::{self, Store, StoreError};
use crate::transport::Transport;
use miaf_client::api::IdentityName;
use miaf_spiffe::svid::X509Svid;
use miaf_spiffe::time::{Now, Timestamp};
use miaf_spiffe::{Bundle, MaybeNamedBundle};

/// Which identities are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those of the configuration. Others are retired.
    Configured,
    /// All that are stored, since the configuration cannot be used: only to be served.
    Stored,
}

impl Executor {
    /// Takes up where the last process left off. Nothing is contacted, neither the MIS nor the TPM.
    ///
    /// # Errors
    /// When the state may be there and cannot be read now, or another agent works on it: to go on
    /// without it would mean another key, and perhaps a device that its MIS does not know any more.
    pub(super) async fn restore(
        config: Config,
        provisioned: Provisioned,
        scope: Scope,
        now: Now,
    ) -> Result<Self, StoreError> {
        let store = Store::new(&config.state_dir);
        let lock = store.lock()?;
        let keys = Providers::new(provisioned.tpm, store.private(), credentials::credentials().as_deref());
        let proxy = config.mis.as_ref().map(|mis| mis.proxy.clone()).unwrap_or_default();
        let discovery = config.mis.as_ref().and_then(|mis| read_discovery(&store, mis));
        let stored = store.identities()?;
        let is_configured = |name: &IdentityName| config.identities.iter().any(|known| known.name == *name);
        let mut configs = config.identities.clone();
        let removed_identities = match scope {
            Scope::Configured => RemovedIdentity::all(&config, &stored, provisioned.former_files),
            Scope::Stored => {
                let others = stored.iter().filter(|name| !is_configured(name));
                configs.extend(others.cloned().map(IdentityConfig::stored));
                Vec::new()
            }
        };
        let reader = SvidReader { config: &config, store: &store, keys: &keys, scope };
        let svids = reader.all(&configs)?;
        let identities = configs.into_iter().zip(svids).enumerate().map(|(nth, (identity, svid))| {
            restore_identity(IdentityIndex(nth), identity, svid, &config, &store, &keys)
        });
        let mut identities = identities.collect::<Result<Vec<_>, _>>()?;
        let discovery = discovery.filter(|cached| cached.may_be_of(&identities));
        let bundle = cached(&store).and_then(|record| read_bundle(record, discovery.as_ref(), &identities));
        if let Some(cached) = &bundle {
            for identity in &mut identities {
                identity.revalidate_under(&cached.bundle, now.wall);
            }
        }
        // What another MIS asked for does not bind this one.
        let delays = cached(&store).filter(|delays: &state::RetryAfterDelays| delays.mis == address(&config));
        let mut delays = delays.unwrap_or_default();
        retry_after::forget_other_wfms(&mut delays, &config.identities);
        for identity in &mut identities {
            let delay = delays.identities.iter().find(|delay| delay.name == identity.name);
            identity.delayed_by_wfm = delay.and_then(|delay| delay.wfm.clone());
        }
        let time = cached::<state::StoredTime>(&store).unwrap_or_default();
        let boot_id = clock::boot_id();
        let names: Vec<_> = identities.iter().map(|identity| identity.name.clone()).collect();
        let (mut memory, names) = retry_after::remembered(&delays, &names, boot_id.as_deref(), now);
        let removed = memory.identities.split_off(identities.len().min(memory.identities.len()));
        let restored = Restored {
            trust_domain: trust_domain_state(
                discovery.as_ref(),
                bundle.as_ref(),
                &identities,
                time,
                memory.trust_domain,
            ),
            identities: identities
                .iter()
                .zip(memory.identities)
                .map(|(identity, memory)| identity_state(identity, &identities, memory))
                .collect(),
        };
        let lifecycle = Lifecycle::new(policy(&config), restored, now, &mut random::unit);
        let (mut memory, trusted) = (lifecycle.memory(), lifecycle.trusts_clock(now));
        memory.identities.extend(removed.iter().cloned());
        let wfms =
            delays.identities.iter().filter_map(|delay| Some((delay.name.clone(), delay.wfm.clone()?)));
        let wfms = wfms.collect();
        let delays = StoredRetryAfter::restored(&delays, boot_id.as_deref(), memory, trusted);
        let issuer = Issuer::new(Protocol::default(), Transport::new(provisioned.trust, proxy));
        Ok(Self {
            lifecycle,
            trust_domain: TrustDomain::new(issuer, discovery, bundle, config.staleness),
            identities,
            removed: removed_identities,
            keys,
            provisioning: Provisioning::new(
                &config,
                provisioned.bootstrap,
                provisioned.est,
                provisioned.purpose,
                now,
            ),
            records: Records::new(store, delays, time, names, removed, wfms),
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
    }
}

/// What the configuration says of an identity's files.
pub(super) fn identity_files(identity: &IdentityConfig) -> IdentityFiles {
    IdentityFiles {
        name: identity.name.clone(),
        group: identity.group.clone(),
        key_group: identity.key_group.clone(),
        publish_intermediates: identity.publish_intermediates,
    }
}

fn trust_domain_state(
    discovery: Option<&CachedDiscovery>,
    bundle: Option<&CachedBundle>,
    identities: &[Identity],
    time: state::StoredTime,
    memory: TrustDomainMemory,
) -> RestoredTrustDomain {
    RestoredTrustDomain {
        discovery: discovery.map(|cached| discovery_facts(&cached.document, identities, false)),
        bundle: bundle.map(|cached| RestoredBundle {
            refresh_hint: cached.bundle.refresh_hint(), // the first poll comes soon, whatever it says
            is_empty: cached.bundle.anchors().is_empty(),
        }),
        memory,
        time: KnownTime { built: clock::built_at(), proven: time.proven, vouched: time.vouched },
    }
}

fn identity_state(identity: &Identity, all: &[Identity], memory: IdentityMemory) -> RestoredIdentity {
    let facts = |current: &Arc<publish::SvidAndKey>| {
        let fits = fits(&identity.config, &current.key);
        svid_facts(&current.svid, identity.stored_renew_at, KeyChoice::Current, fits, identity.key_use)
    };
    let is_device = |other: &&Identity| other.config.enroll == Enrollment::FactoryCert;
    let device = || all.iter().find(is_device).map(|device| device.index);
    let issuance = match &identity.config.enroll {
        Enrollment::FactoryCert => Issuance::Requested,
        Enrollment::Manual { .. } | Enrollment::Installed { .. } => Issuance::ByOperator,
        Enrollment::Est(est) if est.certificate().is_some() => Issuance::Requested,
        Enrollment::Est(_) => Issuance::WithToken,
        Enrollment::WfmBinding(_) => device().map_or(Issuance::Requested, Issuance::With),
    };
    RestoredIdentity {
        policy: IdentityPolicy { rotate: rotation(identity.config.key.rotate), issuance },
        svid: identity.current.as_ref().map(facts),
        pending_key: identity.pending_key.is_some(),
        issued_chain: identity.issued.is_some(),
        has_token: identity.est.has_token(),
        token_refusal: identity.est.token_refusal(),
        token_key: identity.est.token_key(),
        memory,
    }
}

fn rotation(rotate: Rotate) -> Rotation {
    match rotate {
        Rotate::Never => Rotation::Never,
        Rotate::Always => Rotation::Always,
        Rotate::AfterRenewals(most) => Rotation::AfterRenewals(most),
        Rotate::AfterAge(age) => Rotation::AfterAge(age),
    }
}

/// The SVID and key of an identity as they were stored, if they can be used, and what publishes them.
struct StoredSvid {
    current: Option<(publish::SvidAndKey, state::StoredIdentity)>,
    publisher: Publisher,
}

/// Reads the stored SVIDs and keys.
struct SvidReader<'a> {
    config: &'a Config,
    store: &'a Store,
    keys: &'a Providers,
    scope: Scope,
}

impl SvidReader<'_> {
    fn all(&self, identities: &[IdentityConfig]) -> Result<Vec<StoredSvid>, StoreError> {
        let mut all = identities.iter().map(|one| self.load(one)).collect::<Result<Vec<_>, _>>()?;
        self.recover(identities, &mut all);
        Ok(all)
    }

    fn load(&self, identity: &IdentityConfig) -> Result<StoredSvid, StoreError> {
        let store = self.store.of(&identity.name);
        let mut publisher = Publisher::new(&self.config.files, &identity_files(identity));
        let current = store.load()?.and_then(|record| match self.read(identity, &record) {
            Ok(current) => Some((current, record)),
            Err(why) => {
                if let Unusable::Forbidden(_) = why {
                    withdraw_forbidden(&identity.name, &mut publisher);
                }
                store.quarantine::<state::StoredIdentity>(&why.to_string());
                None
            }
        });
        Ok(StoredSvid { current, publisher })
    }

    /// Recovers those that were quarantined: perhaps what made them unusable has been corrected, the
    /// right key-encryption key is back. One of another trust domain than that in which the device is
    /// by now stays where it is: all SVIDs of a device are in one (miaf-est X22).
    fn recover(&self, identities: &[IdentityConfig], all: &mut [StoredSvid]) {
        let of = |stored: &StoredSvid| {
            let (current, _) = stored.current.as_ref()?;
            Some(current.svid.spiffe_id().trust_domain().clone())
        };
        let mut ours = all.iter().find_map(of);
        for (identity, stored) in identities.iter().zip(all) {
            if stored.current.is_none() {
                stored.current = self.store.of(&identity.name).recover(|record| {
                    let current = self.read(identity, record).map_err(|e| e.to_string())?;
                    let name = current.svid.spiffe_id().trust_domain();
                    if ours.as_ref().is_some_and(|ours| ours != name) {
                        return Err(format!("it is of the trust domain \"{name}\""));
                    }
                    Ok(current)
                });
                ours = ours.or_else(|| of(stored));
            }
        }
    }

    fn read(
        &self,
        identity: &IdentityConfig,
        record: &state::StoredIdentity,
    ) -> Result<publish::SvidAndKey, Unusable> {
        // What is only served is served as it was stored: the way to it may have been misread.
        let allowed = (self.scope == Scope::Configured).then_some(identity);
        let named = self.config.mis.as_ref().and_then(MisConfig::trust_domain_of_bundle);
        let open = |record: &str| open_key(record, self.keys, self.config.key.require);
        read_identity(record, allowed, named, open)
    }
}

fn restore_identity(
    index: IdentityIndex,
    identity_config: IdentityConfig,
    StoredSvid { current, publisher }: StoredSvid,
    config: &Config,
    store: &Store,
    keys: &Providers,
) -> Result<Identity, StoreError> {
    let store = &store.of(&identity_config.name);
    let (svid_and_key, record) = current.unzip();
    let open = |record: &str| open_key(record, keys, config.key.require).map_err(|why| why.to_string());
    let Unfinished { pending_key, issued, adopted } = load_unfinished(store, record.as_ref(), open)?;
    let key_use = record.as_ref().map_or_else(KeyUse::default, |record| KeyUse {
        renewals: record.key_renewals,
        since: record.key_since,
    });
    let stored_renew_at: Option<Timestamp> = record.and_then(|record| record.renew_at);
    let est_url = config.mis.as_ref().and_then(|mis| mis.est_url.as_ref());
    let est = match &identity_config.enroll {
        Enrollment::Est(est) => {
            let (request, used) = (load_est_request(store, est)?, store.load()?.unwrap_or_default());
            EstState::restored(est_url, request, used, adopted.map(|adopted| adopted.renewal))
        }
        _ => {
            if adopted.is_some() {
                forget::<state::StoredIssuedChain>(store);
            }
            forget::<state::StoredEstRequest>(store); // of another way, with a token perhaps
            EstState::default()
        }
    };
    Ok(Identity {
        index,
        name: identity_config.name.clone(),
        store: store.clone(),
        current: svid_and_key.map(Arc::new),
        previous_key: None,
        imported_key: None,
        delayed_by_wfm: None,
        requested_at: requested_before(store, &identity_config, pending_key.is_some()),
        pending_key,
        issued,
        issued_is_new: false,
        stored_renew_at,
        key_use,
        est,
        operator_problem: None,
        publisher,
        config: identity_config,
    })
}

/// Why a stored identity is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// The configuration does not allow it any more: programs must not find it either.
    #[error("{0}")]
    Forbidden(String),
    /// It cannot be used now. What programs have of it may still be of use to them.
    #[error("{0}")]
    Broken(String),
}

/// Withdraws what is published of an identity that the configuration does not allow any more.
fn withdraw_forbidden(name: &IdentityName, publisher: &mut Publisher) {
    if let Err(e) = publisher.withdraw() {
        let (identity, code) = (name.as_str(), ProblemCode::NotPublished.as_str());
        tracing::error!(
            identity,
            code,
            hint = hint(&e),
            "the configuration does not allow the stored SVID, and its files could not be withdrawn: {}",
            cause(&e)
        );
    }
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
fn read_discovery(store: &Store, mis: &MisConfig) -> Option<CachedDiscovery> {
    let TrustDomainSource::Discovery { url, bundle_origins } = &mis.source else {
        return CachedDiscovery::configured(mis);
    };
    let record: state::StoredDiscovery = cached(store)?;
    let mut document = Discovery::from_json(&record.body).ok()?;
    let wanted = record.url == url.as_str()
        && mis.trust_domain.as_ref().is_none_or(|name| document.trust_domain() == Some(name));
    if mis.trust.is_public_only() {
        document.refuse_est_elsewhere(url, &record.body); // X18; the next fetch says so
    }
    // It may have come under a trust that was more than the public store's (D7). The next fetch
    // says so.
    let led_elsewhere = mis.trust.is_public_only() && document.check_origin(url).is_err()
        || document.check_bundle_origin(url, bundle_origins).is_err();
    (wanted && !led_elsewhere).then_some(CachedDiscovery { document, record: Some(record) })
}

/// Opens a key from its record, unless it has less protection than the configuration demands by now.
fn open_key(record: &str, keys: &Providers, require: Option<KeyFloor>) -> Result<Arc<dyn Key>, Unusable> {
    let key = keys.open(record).map_err(|e: KeyError| Unusable::Broken(e.with_hint().to_string()))?;
    let checked = require.map_or(Ok(()), |floor| floor.check(key.protection()));
    checked.map(|()| key).map_err(|e| Unusable::Forbidden(e.with_hint().to_string()))
}

/// Reads a stored identity. `config` says which SPIFFE IDs it may have. `trust_domain`: the one that the
/// configuration says the device is in.
fn read_identity(
    record: &state::StoredIdentity,
    config: Option<&IdentityConfig>,
    trust_domain: Option<&miaf_spiffe::TrustDomain>,
    open: impl Fn(&str) -> Result<Arc<dyn Key>, Unusable>,
) -> Result<publish::SvidAndKey, Unusable> {
    use Unusable::{Broken, Forbidden};
    let svid = X509Svid::from_stored(record.chain.clone()).map_err(|e| Broken(e.to_string()))?;
    let svid = match config {
        Some(config) => svid.by(algorithms(&config.enroll)),
        None => svid,
    };
    let id = svid.spiffe_id();
    // A later configuration may say something else under the same name (N2).
    if let Some(config) = config.filter(|config| !config.enroll.name_kind().includes(id)) {
        let way = config.enroll.as_str();
        return Err(Forbidden(format!("{id} is not a SPIFFE ID to which enroll = \"{way}\" leads")));
    }
    if let Some(Enrollment::WfmBinding(wfm)) = config.map(|config| &config.enroll)
        && !wfm.has_client(id)
    {
        let wfm_id = &wfm.wfm_id;
        return Err(Forbidden(format!(
            "its SPIFFE ID is {id}, and the configuration allows another client only, of the WFM \"{wfm_id}\""
        )));
    }
    // A guard that is of another trust domain, too, is refused as a whole: the device stays in its own.
    let is_in_another = trust_domain.is_some_and(|name| name != id.trust_domain());
    let guard = config.and_then(|config| config.spiffe_id.as_ref()).filter(|_| !is_in_another);
    if let Some(guard) = guard.filter(|guard| *guard != id) {
        return Err(Forbidden(format!("its SPIFFE ID is {id}, and the configuration allows {guard} only")));
    }
    let key = open(&record.key)?;
    let leaf = svid.chain().certificates().first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
    if leaf.is_none_or(|leaf| leaf.subject_public_key_info().as_ref() != key.public_key().spki_der()) {
        return Err(Broken("its key is another than its certificate's".into()));
    }
    Ok(publish::SvidAndKey { svid, key, credential: record.credential.clone() })
}

/// The cached bundle, if it is of the trust domain of this device. One whose trust domain was not known
/// when it was stored counts only at the location that it came from, and has the name that was learnt
/// meanwhile (miaf-est X22).
fn read_bundle(
    record: state::StoredBundle,
    discovery: Option<&CachedDiscovery>,
    identities: &[Identity],
) -> Option<CachedBundle> {
    let ours = trust_domain(discovery, identities);
    let body = record.body.as_bytes();
    let read = match (&record.trust_domain, ours) {
        (Some(name), Some(ours)) if name == ours => {
            Bundle::from_stored(body, name).map(|bundle| MaybeNamedBundle::Named(Arc::new(bundle)))
        }
        (None, _) if discovery.is_some_and(|cached| cached.document.bundle().in_full() == record.url) => {
            MaybeNamedBundle::from_stored_without_name(body).map(|bundle| match ours {
                Some(ours) => MaybeNamedBundle::Named(bundle.with_name(ours)),
                None => bundle,
            })
        }
        _ => return None,
    };
    let bundle = read.map_err(|e| tracing::warn!("the cached trust bundle cannot be used: {e}")).ok()?;
    let record = state::StoredBundle { trust_domain: bundle.trust_domain().cloned(), ..record };
    Some(CachedBundle { bundle, record })
}

/// What an enrollment or renewal over EST repeats. A token of the time before a certificate was
/// configured is wiped with it (X43): that form sends none.
fn load_est_request(store: &Store, est: &EstConfig) -> Result<state::StoredEstRequest, StoreError> {
    let request: state::StoredEstRequest = store.load()?.unwrap_or_default();
    if est.certificate().is_some() && request.token.is_some() {
        forget::<state::StoredEstRequest>(store);
        return Ok(state::StoredEstRequest::default());
    }
    Ok(request)
}

/// What an interrupted process left.
struct Unfinished {
    pending_key: Option<Arc<dyn Key>>,
    /// The issued chain that is not adopted yet.
    issued: Option<state::StoredIssuedChain>,
    /// The one that is: what it was requested with may be there still.
    adopted: Option<state::StoredIssuedChain>,
}

/// Loads what an interrupted process left between the issue of an SVID and its adoption. If the
/// identity was stored and the records before it were not removed yet, they are now.
fn load_unfinished(
    store: &Store,
    identity: Option<&state::StoredIdentity>,
    open: impl Fn(&str) -> Result<Arc<dyn Key>, String>,
) -> Result<Unfinished, StoreError> {
    let record: Option<state::StoredPendingKey> = store.load()?;
    let mut issued: Option<state::StoredIssuedChain> = store.load()?;
    let open = |record: &state::StoredPendingKey| open(&record.key);
    let pending = record.and_then(|record| match open(&record) {
        Ok(key) => Some((key, record)),
        Err(why) => {
            store.quarantine::<state::StoredPendingKey>(&why);
            None
        }
    });
    let pending = pending.or_else(|| identity.is_none().then(|| store.recover(open)).flatten());
    let (mut pending, record) = pending.unzip();
    let mut adopted = None;
    if let Some(identity) = identity {
        // It was stored without its issuers, perhaps.
        let same = |issued: &mut state::StoredIssuedChain| match issued.lacks_issuers {
            true => issued.chain.leaf() == identity.chain.leaf(),
            false => issued.chain == identity.chain,
        };
        // Its record is the last that is removed.
        adopted = issued.take_if(same);
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
    Ok(Unfinished { pending_key: pending, issued, adopted })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before there is an SVID, nothing says that what was stored is of the trust domain of this device.
    #[test]
    fn bundle_without_a_name_counts_where_it_came_from() {
        let configured = |lines: &str| {
            let text = format!("[mis]\nbundle_file = \"/b.json\"\n{lines}");
            let config = Config::parse(&text, std::path::Path::new("/etc/miaf-agent/config.toml"), None);
            CachedDiscovery::configured(&config.unwrap().mis.unwrap())
        };
        let anchor = rcgen::CertificateParams::default()
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect::<String>();
        let stored = |url: &str, name: Option<&str>| state::StoredBundle {
            url: url.into(),
            trust_domain: name.map(|name| miaf_spiffe::TrustDomain::parse(name).unwrap()),
            body: format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{anchor}"]}}]}}"#),
            validators: crate::transport::Validators::default(),
            fetched_at: Timestamp::default(),
            regressed_since: None,
        };
        let named = "trust_domain = \"factory.example\"";
        for (lines, url, name, read) in [
            ("", "/b.json", None, Some(None)),
            ("", "/other.json", None, None),
            ("", "/b.json", Some("factory.example"), None), // which the configuration said before
            (named, "/b.json", None, Some(Some("factory.example"))),
            (named, "/other.json", None, None),
            (named, "/other.json", Some("factory.example"), Some(Some("factory.example"))),
            (named, "/b.json", Some("other.example"), None),
        ] {
            let cached = read_bundle(stored(url, name), configured(lines).as_ref(), &[]);
            let of = cached.as_ref().map(|cached| cached.bundle.trust_domain().map(|name| name.as_str()));
            assert_eq!(of, read, "{lines} {url} {name:?}");
            assert!(
                cached
                    .is_none_or(|cached| cached.record.trust_domain.as_ref() == cached.bundle.trust_domain())
            );
        }
    }

    #[test]
    fn token_is_wiped_once_a_certificate_takes_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path()).of(&IdentityName::parse("line").unwrap());
        let est = |lines: &str| {
            let text = format!(
                "[mis]\ndiscovery_url = \"https://mis.example/d\"\nest_url = \"https://mis.example/est\"\n\
                 [mis.trust]\nsystem_roots = true\n\
                 [[identity]]\nname = \"line\"\nenroll = \"est\"\n[identity.est]\n{lines}"
            );
            let config = Config::parse(&text, std::path::Path::new("/etc/miaf-agent/config.toml"), None);
            match config.unwrap().identities.remove(0).enroll {
                Enrollment::Est(est) => est,
                other => panic!("{other:?}"),
            }
        };
        let request = state::StoredEstRequest {
            csr: Some("AA==".into()),
            token: Some("line-7:secret".into()),
            token_for_pending_key: Some(true),
        };
        store.save(&request).unwrap();
        let by_token = est("token = \"file:/etc/token\"\n");
        assert_eq!(load_est_request(&store, &by_token).unwrap(), request);
        let by_certificate = est("cert_file = \"/etc/cert.pem\"\nkey = \"file:/etc/key.pem\"\n");
        assert!(load_est_request(&store, &by_certificate).unwrap().token.is_none());
        assert_eq!(store.load::<state::StoredEstRequest>().unwrap(), None);
    }
}
