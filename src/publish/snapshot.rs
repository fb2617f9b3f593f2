//! The agent's state at one moment, as values: every local response, file and metric is built from
//! one.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;

use crate::factory_credential::CredentialFacts;
use crate::keys::{Key, ProviderKind};
use crate::lifecycle::State;
use crate::problem::LastError;
use crate::transport::TrustFacts;
use miaf_spiffe::svid::{self, X509Svid};
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{Bundle, TrustDomain};

/// Code of errors of the configuration: the end of their type.
pub(crate) const CONFIGURATION: &str = "configuration";

/// Immutable snapshot of the agent's state; every local response is built from one.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Whether the stored state could be read. If not, an absent value says nothing.
    pub is_known: bool,
    /// State of the device.
    pub state: State,
    /// The trust domain, once it is known.
    pub trust_domain: Option<TrustDomain>,
    /// The current identity, valid or not.
    pub identity: Option<Arc<Identity>>,
    /// The identity before it: programs that do not have the current one yet may use its key for a
    /// while.
    pub previous_identity: Option<Arc<Identity>>,
    /// When the identity is renewed.
    pub renew_at: Option<Timestamp>,
    /// Renewal window: the interval from which that moment is drawn.
    pub renewal_window: Option<(Timestamp, Timestamp)>,
    /// Provider of the key, or of the next one.
    pub provider: &'static str,
    /// The current trust bundle.
    pub bundle: Option<CurrentBundle>,
    /// The bootstrap credential, where it can be read.
    pub bootstrap: Option<CredentialFacts>,
    /// The initial trust, where it can be read.
    pub trust: Option<TrustFacts>,
    /// Whether the key is lost with its TPM: the SVID cannot be used.
    pub key_is_lost: bool,
    /// End of a retry-after delay of the MIS, if it is in the future.
    pub retry_after_until: Option<Timestamp>,
    /// Whether the SVID ends before that.
    pub ends_while_waiting: bool,
    /// The last error, and when the next attempt is made.
    pub last_error: Option<(LastError, Option<Timestamp>)>,
    /// Generation of the published files with this identity and bundle.
    pub generation: Option<u64>,
    /// Users, by name or number, who are given a software key over the Workload API.
    pub key_users: Arc<[String]>,
    /// Values that are computed from the snapshot at most once.
    pub cache: Arc<SnapshotCache>,
}

/// Values that are computed from a snapshot once, for all clients: neither the work nor the memory
/// is spent for each of them.
#[derive(Debug, Default)]
pub(crate) struct SnapshotCache {
    /// When the SVID was last validated against the bundle, and the end of the anchor that vouches
    /// for it.
    validated: Mutex<Option<(Timestamp, Option<Timestamp>)>>,
    /// `GET /v1/svid`.
    pub(crate) svid: OnceLock<Bytes>,
    /// `GET /v1/bundle`.
    pub(crate) bundle: OnceLock<Bytes>,
    /// `FetchX509Bundles`.
    pub(crate) x509_bundles: OnceLock<Bytes>,
}

/// Interval at which the chain is validated at most: programs may send thousands of requests a
/// second.
const VALIDATION_INTERVAL: Duration = Duration::from_secs(1);

impl Snapshot {
    /// Snapshot without a configuration.
    pub(crate) fn unconfigured() -> Self {
        Self::empty(State::Unconfigured)
    }

    /// Snapshot with nothing but an error, and when the next attempt is made.
    pub(crate) fn blocked(error: LastError, retry_at: Option<Timestamp>) -> Self {
        Self { is_known: false, last_error: Some((error, retry_at)), ..Self::empty(State::Blocked) }
    }

    /// The snapshot, with an error that has to be corrected before anything is renewed.
    #[must_use]
    pub(crate) fn halted(self, error: LastError) -> Self {
        Self {
            state: State::Blocked,
            renew_at: None,
            renewal_window: None,
            bundle: self.bundle.map(|current| CurrentBundle { refresh_at: None, ..current }),
            last_error: Some((error, None)),
            ..self
        }
    }

    /// Whether the configuration was rejected and is not in use.
    pub(crate) fn rejects_configuration(&self) -> bool {
        let kind = self.last_error.as_ref().map(|(error, _)| error.report.kind.as_str());
        kind.and_then(|kind| kind.strip_prefix("urn:miaf-agent:error:")) == Some(CONFIGURATION)
    }

    /// The snapshot with the provider of keys that the configuration names.
    #[must_use]
    pub(crate) fn with_provider(self, provider: ProviderKind) -> Self {
        Self { provider: provider.as_str(), ..self }
    }

    fn empty(state: State) -> Self {
        Self {
            is_known: true,
            state,
            trust_domain: None,
            identity: None,
            previous_identity: None,
            renew_at: None,
            renewal_window: None,
            provider: "tpm",
            bundle: None,
            bootstrap: None,
            trust: None,
            key_is_lost: false,
            retry_after_until: None,
            ends_while_waiting: false,
            last_error: None,
            generation: None,
            key_users: Arc::default(),
            cache: Arc::default(),
        }
    }

    /// Whether the snapshot reflects a configuration.
    pub(crate) fn is_configured(&self) -> bool {
        self.is_known && self.state != State::Unconfigured
    }

    /// Whether a local program can prove the device's identity: the SVID is valid at `now`, and the
    /// current bundle vouches for it.
    pub(crate) fn is_ready(&self, now: Timestamp) -> bool {
        // By a clock that cannot be right, it cannot be validated.
        if self.state == State::WaitingForClock || self.key_is_lost {
            return false;
        }
        match (&self.identity, &self.bundle) {
            (Some(identity), Some(_)) => {
                identity.is_valid(now) && self.vouching_anchor_not_after(now).is_some()
            }
            _ => false,
        }
    }

    /// End of validity of the anchor that vouches for the SVID at `now`. `None`: there is none.
    pub(crate) fn vouching_anchor_not_after(&self, now: Timestamp) -> Option<Timestamp> {
        let (identity, current) = (self.identity.as_ref()?, self.bundle.as_ref()?);
        let mut validated = self.cache.validated.lock().unwrap_or_else(PoisonError::into_inner);
        match *validated {
            Some((at, not_after)) if at <= now && now < at.after(VALIDATION_INTERVAL) => not_after,
            _ => {
                let vouching = svid::trust_path(&identity.svid, &current.bundle, now);
                let not_after = vouching.map(|vouching| vouching.anchor.not_after);
                *validated = Some((now, not_after));
                not_after
            }
        }
    }
}

/// An SVID, and what is published with it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The SVID.
    pub svid: X509Svid,
    /// Its key.
    pub key: Arc<dyn Key>,
    /// SHA-256 of the factory certificate that the device was enrolled with, in hex, where that is
    /// known.
    pub credential: Option<String>,
}

impl Identity {
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
    pub bundle: Arc<Bundle>,
    /// When it was last known to be current.
    pub fetched_at: Timestamp,
    /// When it is refreshed.
    pub refresh_at: Option<Timestamp>,
}
