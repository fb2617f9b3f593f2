//! The agent's state at one moment, as values: every local response, file and metric is built from
//! one.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;

use crate::config::WhenStale;
use crate::factory_credential::CredentialFacts;
use crate::keys::{Key, ProviderKind};
use crate::problem::{LastError, ProblemCode};
use crate::transport::TrustFacts;
use miaf_client::api::{EstStatus, IdentityName, State};
use miaf_spiffe::svid::{self, X509Svid};
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{BundleDocument, MaybeNamedBundle, TrustDomain};

/// An error, and when the agent tries again, if it does without a correction.
pub(crate) type ShownError = (LastError, Option<Timestamp>);

/// Immutable snapshot of the agent's state; every local response is built from one.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Whether the stored state could be read. If not, an absent value says nothing.
    pub is_known: bool,
    /// The trust domain, once it is known.
    pub trust_domain: Option<TrustDomain>,
    /// The current trust bundle.
    pub bundle: Option<CurrentBundle>,
    /// The bootstrap credential, where it can be read.
    pub bootstrap: Option<CredentialFacts>,
    /// The initial trust, where it can be read.
    pub trust: Option<TrustFacts>,
    /// The error that concerns the device, and not one identity alone.
    pub last_error: Option<ShownError>,
    /// The default identity.
    pub default_identity: IdentitySnapshot,
    /// The others.
    pub other_identities: Vec<IdentitySnapshot>,
    /// Values that are computed from the snapshot at most once.
    pub cache: Arc<SnapshotCache>,
}

/// State of one identity.
#[derive(Clone, Debug)]
pub(crate) struct IdentitySnapshot {
    /// Its name.
    pub name: IdentityName,
    /// The way to its SVID (`enroll`), where that is known.
    pub enroll: Option<&'static str>,
    /// How it enrolls over EST, if it does.
    pub est: Option<EstStatus>,
    /// Its state.
    pub state: State,
    /// The current SVID, valid or not.
    pub current: Option<Arc<SvidAndKey>>,
    /// The one before it: programs that do not have the current one yet may use its key for a
    /// while.
    pub previous: Option<Arc<SvidAndKey>>,
    /// When it is renewed.
    pub renew_at: Option<Timestamp>,
    /// Renewal window: the interval from which that moment is drawn.
    pub renewal_window: Option<(Timestamp, Timestamp)>,
    /// Provider of the key, or of the next one.
    pub provider: ProviderKind,
    /// Whether the key is lost: the SVID cannot be used.
    pub key_is_lost: bool,
    /// When the first SVID for the key was adopted, if that is known.
    pub key_since: Option<Timestamp>,
    /// How many renewals have kept the key.
    pub key_renewals: u32,
    /// End of a retry-after delay of the MIS, if it is in the future.
    pub retry_after_until: Option<Timestamp>,
    /// Whether the SVID ends before that.
    pub ends_while_waiting: bool,
    /// What an operator does where a fresh enrollment token is needed, if one may be.
    pub fresh_token: Option<String>,
    /// The error that concerns this identity alone.
    pub last_error: Option<ShownError>,
    /// The error of an SVID that the trust bundle does not vouch for, whatever the last error is.
    pub untrusted: Option<ShownError>,
    /// Generation of the published files with this SVID and the bundle.
    pub generation: Option<u64>,
    /// Users, by name or number, who are given its software key over the Workload API.
    pub users: Arc<[String]>,
    /// Values that are computed from the snapshot at most once.
    pub cache: Arc<IdentityCache>,
}

/// Documents of a snapshot that are computed once, for all clients: neither the work nor the memory
/// is spent for each of them.
#[derive(Debug, Default)]
pub(crate) struct SnapshotCache {
    /// `GET /v1/bundle`.
    pub(crate) bundle: OnceLock<Bytes>,
    /// `FetchX509Bundles`.
    pub(crate) x509_bundles: OnceLock<Bytes>,
}

/// The same of one identity.
#[derive(Debug, Default)]
pub(crate) struct IdentityCache {
    /// When the SVID was last validated against the bundle, and the end of the anchor that vouches
    /// for it.
    validated: Mutex<Option<(Timestamp, Option<Timestamp>)>>,
    /// `GET /v1/identities/{name}/svid`.
    pub(crate) svid: OnceLock<Bytes>,
}

/// Interval at which the chain is validated at most: programs may send thousands of requests a
/// second.
const VALIDATION_INTERVAL: Duration = Duration::from_secs(1);

impl Snapshot {
    /// Snapshot without a configuration. The next key will be of this provider.
    pub(crate) fn unconfigured(provider: ProviderKind) -> Self {
        Self::empty(State::Unconfigured, provider)
    }

    /// Snapshot with nothing but an error.
    pub(crate) fn blocked(error: ShownError, provider: ProviderKind) -> Self {
        Self { is_known: false, last_error: Some(error), ..Self::empty(State::Blocked, provider) }
    }

    /// The snapshot, with an error that has to be corrected before anything is renewed.
    #[must_use]
    pub(crate) fn halted(self, error: LastError) -> Self {
        let halted = |identity| IdentitySnapshot {
            state: State::Blocked,
            renew_at: None,
            renewal_window: None,
            last_error: None, // nothing is tried
            untrusted: None,
            ..identity
        };
        Self {
            bundle: self.bundle.map(|current| CurrentBundle { refresh_at: None, ..current }),
            last_error: Some((error, None)),
            default_identity: halted(self.default_identity),
            other_identities: self.other_identities.into_iter().map(halted).collect(),
            ..self
        }
    }

    fn empty(state: State, provider: ProviderKind) -> Self {
        Self {
            is_known: true,
            trust_domain: None,
            bundle: None,
            bootstrap: None,
            trust: None,
            last_error: None,
            default_identity: IdentitySnapshot::empty(IdentityName::DEVICE, state, provider),
            other_identities: Vec::new(),
            cache: Arc::default(),
        }
    }

    /// All identities; the default identity is the first.
    pub(crate) fn identities(&self) -> impl Iterator<Item = &IdentitySnapshot> {
        std::iter::once(&self.default_identity).chain(&self.other_identities)
    }

    /// All identities, to be changed.
    pub(crate) fn identities_mut(&mut self) -> impl Iterator<Item = &mut IdentitySnapshot> {
        std::iter::once(&mut self.default_identity).chain(&mut self.other_identities)
    }

    /// The identity with this name.
    pub(crate) fn identity(&self, name: &IdentityName) -> Option<&IdentitySnapshot> {
        self.identities().find(|identity| identity.name == *name)
    }

    /// What commands in a hint call an identity: `None` where there is only one, which they need not
    /// name; "NAME" for an error that is about no identity alone.
    pub(crate) fn name_in_hints<'a>(&self, identity: Option<&'a IdentityName>) -> Option<&'a str> {
        let has_several = !self.other_identities.is_empty();
        has_several.then(|| identity.map_or("NAME", IdentityName::as_str))
    }

    /// Whether the configuration was rejected and is not in use.
    pub(crate) fn rejects_configuration(&self) -> bool {
        self.last_error.as_ref().is_some_and(|(error, _)| error.report.code == ProblemCode::Configuration)
    }

    /// Whether the snapshot reflects a configuration.
    pub(crate) fn is_configured(&self) -> bool {
        self.is_known && self.default_identity.state != State::Unconfigured
    }

    /// Since when the sockets hand out neither SVIDs nor the bundle, because the bundle is stale
    /// (`bundle.when_stale`). What was published as files stays, since programs have read it.
    pub(crate) fn withdrawn_since(&self, now: Timestamp) -> Option<Timestamp> {
        let bundle = self.bundle.as_ref().filter(|bundle| bundle.is_stale(now))?;
        bundle.stale_at.filter(|_| bundle.when_stale == WhenStale::Withdraw)
    }

    /// Whether a local program can prove this identity: its SVID is valid at `now`, its key is not
    /// lost, and the current bundle vouches for it. A TPM that is away for a moment does not count.
    /// Of what is withdrawn nothing is ready.
    pub(crate) fn is_ready(&self, identity: &IdentitySnapshot, now: Timestamp) -> bool {
        // By a clock that cannot be right, it cannot be validated.
        identity.state != State::WaitingForClock
            && self.withdrawn_since(now).is_none()
            && !identity.key_is_lost
            && identity.current.as_ref().is_some_and(|current| current.is_valid(now))
            && self.vouching_anchor_not_after(identity, now).is_some()
    }

    /// End of validity of the anchor that vouches for the SVID at `now`. `None`: there is none.
    pub(crate) fn vouching_anchor_not_after(
        &self,
        identity: &IdentitySnapshot,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let (current, bundle) = (identity.current.as_ref()?, self.bundle.as_ref()?);
        let mut validated = identity.cache.validated.lock().unwrap_or_else(PoisonError::into_inner);
        match *validated {
            Some((at, not_after)) if at <= now && now < at.after(VALIDATION_INTERVAL) => not_after,
            _ => {
                let vouching = svid::trust_path(&current.svid, &bundle.bundle, now);
                let not_after = vouching.map(|vouching| vouching.anchor.not_after);
                *validated = Some((now, not_after));
                not_after
            }
        }
    }
}

impl IdentitySnapshot {
    /// The end of the SVID, near, while its renewal fails and only a fresh enrollment token leads to the
    /// next one (X69).
    pub(crate) fn needs_token_after(&self) -> Option<Timestamp> {
        self.est.as_ref()?.token_needed_after
    }

    /// An identity without an SVID.
    pub(crate) fn empty(name: IdentityName, state: State, provider: ProviderKind) -> Self {
        Self {
            name,
            enroll: None,
            est: None,
            state,
            current: None,
            previous: None,
            renew_at: None,
            renewal_window: None,
            provider,
            key_is_lost: false,
            key_since: None,
            key_renewals: 0,
            retry_after_until: None,
            ends_while_waiting: false,
            fresh_token: None,
            last_error: None,
            untrusted: None,
            generation: None,
            users: Arc::default(),
            cache: Arc::default(),
        }
    }
}

/// An SVID with its key, and what is published with them.
#[derive(Clone, Debug)]
pub(crate) struct SvidAndKey {
    /// The SVID.
    pub svid: X509Svid,
    /// Its key.
    pub key: Arc<dyn Key>,
    /// SHA-256 of the factory certificate that the device was enrolled with, in hex, where that is
    /// known.
    pub credential: Option<String>,
}

impl SvidAndKey {
    /// Whether the SVID can be used at `now`: it is within its validity, and so are the issuers
    /// that it needs.
    pub(crate) fn is_valid(&self, now: Timestamp) -> bool {
        self.svid.not_before() <= now && now <= self.svid.until()
    }
}

/// The current trust bundle, and how fresh it is.
#[derive(Clone, Debug)]
pub(crate) struct CurrentBundle {
    /// The bundle.
    pub bundle: MaybeNamedBundle,
    /// When it was last known to be current.
    pub fetched_at: Timestamp,
    /// When it is refreshed.
    pub refresh_at: Option<Timestamp>,
    /// How often the agent polls it where the MIS gives no refresh hint.
    pub refresh_interval: Duration,
    /// When it becomes or became stale. `None`: never, as far as is known.
    pub stale_at: Option<Timestamp>,
    /// What happens while it is stale.
    pub when_stale: WhenStale,
}

impl CurrentBundle {
    /// The bundle as a SPIFFE bundle for local programs, with a refresh hint.
    pub(crate) fn document(&self) -> BundleDocument {
        self.bundle.document(self.refresh_interval, &[])
    }

    /// Whether it is older than it may be (`bundle.max_age`).
    pub(crate) fn is_stale(&self, now: Timestamp) -> bool {
        self.stale_at.is_some_and(|stale_at| stale_at <= now)
    }
}
