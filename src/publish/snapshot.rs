//! The agent's state at one moment, as values: every local response, file and metric is made from one.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;

use crate::bootstrap;
use crate::keys::{Key, ProviderKind};
use crate::lifecycle::{LastError, State};
use crate::spiffe::svid::{self, X509Svid};
use crate::spiffe::{Bundle, TrustDomain};
use crate::time::Timestamp;
use crate::transport::TrustFacts;

/// The code of errors of the configuration, the end of their type.
pub const CONFIGURATION: &str = "configuration";

/// Everything there is to tell at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What the device holds could be read. Where it could not, that there is nothing here tells nothing.
    pub is_known: bool,
    /// Where the device stands.
    pub state: State,
    /// The trust domain, once it is known.
    pub trust_domain: Option<TrustDomain>,
    /// The identity that is held, valid or not.
    pub identity: Option<Arc<Identity>>,
    /// The one before it: whoever has not taken the new one yet may use its key for a while.
    pub identity_before: Option<Arc<Identity>>,
    /// When the identity is renewed.
    pub renew_at: Option<Timestamp>,
    /// Between which moments that is drawn.
    pub renewal_window: Option<(Timestamp, Timestamp)>,
    /// Where the key was made, or will be.
    pub provider: &'static str,
    /// The trust bundle that is held.
    pub bundle: Option<HeldBundle>,
    /// The bootstrap credential, where it can be read.
    pub bootstrap: Option<bootstrap::Facts>,
    /// What authenticates the MIS, where it can be read.
    pub trust: Option<TrustFacts>,
    /// The key is lost with its TPM: nobody can use the SVID.
    pub key_is_lost: bool,
    /// Until when the MIS asked not to be asked for an SVID, if it is not over.
    pub asked_to_wait_until: Option<Timestamp>,
    /// The SVID ends before that.
    pub ends_while_waiting: bool,
    /// The last error, and when the next attempt is made by itself.
    pub last_error: Option<(LastError, Option<Timestamp>)>,
    /// The generation of published files that holds this identity and bundle.
    pub generation: Option<u64>,
    /// Users, by name or number, who are given a software key over the Workload API.
    pub key_users: Arc<[String]>,
    /// What was worked out of all this, for whoever asks first.
    pub kept: Arc<Kept>,
}

/// What is worked out of a snapshot once, for all who ask: neither the work nor the memory is spent for each of them.
#[derive(Debug, Default)]
pub struct Kept {
    /// When it was judged last whether the bundle vouches for the SVID, and the end of the anchor that does.
    judged: Mutex<Option<(Timestamp, Option<Timestamp>)>>,
    /// `GET /v1/svid`.
    pub(crate) svid: OnceLock<Bytes>,
    /// `GET /v1/bundle`.
    pub(crate) bundle: OnceLock<Bytes>,
    /// `FetchX509Bundles`.
    pub(crate) x509_bundles: OnceLock<Bytes>,
}

/// Chains are validated anew no more often than this: there are programs that ask thousands of times a second.
const JUDGED_FOR: Duration = Duration::from_secs(1);

impl Snapshot {
    /// There is no configuration.
    pub fn unconfigured() -> Self {
        Self::empty(State::Unconfigured)
    }

    /// Nothing can be told but why, and when that is looked at again by itself.
    pub fn blocked(error: LastError, retry_at: Option<Timestamp>) -> Self {
        Self { is_known: false, last_error: Some((error, retry_at)), ..Self::empty(State::Blocked) }
    }

    /// What is held, of which nothing is renewed before an error is corrected.
    #[must_use]
    pub fn standing_still(self, error: LastError) -> Self {
        Self {
            state: State::Blocked,
            renew_at: None,
            renewal_window: None,
            bundle: self.bundle.map(|held| HeldBundle { refresh_at: None, ..held }),
            last_error: Some((error, None)),
            ..self
        }
    }

    /// The configuration that is there is not in use.
    pub fn rejects_configuration(&self) -> bool {
        let kind = self.last_error.as_ref().map(|(error, _)| error.report.kind.as_str());
        kind.and_then(|kind| kind.strip_prefix("urn:miaf-agent:error:")) == Some(CONFIGURATION)
    }

    /// The same where the configuration, which says where keys are made, could be read.
    #[must_use]
    pub fn with_provider(self, provider: ProviderKind) -> Self {
        Self { provider: provider.as_str(), ..self }
    }

    fn empty(state: State) -> Self {
        Self {
            is_known: true,
            state,
            trust_domain: None,
            identity: None,
            identity_before: None,
            renew_at: None,
            renewal_window: None,
            provider: "tpm",
            bundle: None,
            bootstrap: None,
            trust: None,
            key_is_lost: false,
            asked_to_wait_until: None,
            ends_while_waiting: false,
            last_error: None,
            generation: None,
            key_users: Arc::default(),
            kept: Arc::default(),
        }
    }

    /// Whether a configuration could be read, so that this tells what it says.
    pub fn is_configured(&self) -> bool {
        self.is_known && self.state != State::Unconfigured
    }

    /// Whether a local program can prove who the device is now: an SVID that is valid at `now` and that the bundle held
    /// vouches for.
    pub fn is_ready(&self, now: Timestamp) -> bool {
        // By a clock that cannot be right nobody can tell whether it is valid.
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
    pub fn vouching_anchor_not_after(&self, now: Timestamp) -> Option<Timestamp> {
        let (identity, held) = (self.identity.as_ref()?, self.bundle.as_ref()?);
        let mut judged = self.kept.judged.lock().unwrap_or_else(PoisonError::into_inner);
        match *judged {
            Some((at, not_after)) if at <= now && now < at.after(JUDGED_FOR) => not_after,
            _ => {
                let vouching = svid::trust_path(&identity.svid, &held.bundle, now);
                let not_after = vouching.map(|vouching| vouching.anchor.not_after);
                *judged = Some((now, not_after));
                not_after
            }
        }
    }
}

/// An SVID and what is handed out with it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The SVID.
    pub svid: X509Svid,
    /// Its key.
    pub key: Arc<dyn Key>,
    /// SHA-256 of the factory certificate that the device was enrolled with, in hex, where that is known.
    pub credential: Option<String>,
}

impl Identity {
    /// Whether the SVID can be used at this time: it is within its validity, and so are the issuers that it needs.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.svid.not_before() <= now && now <= self.svid.until()
    }
}

/// A bundle and how fresh it is.
#[derive(Clone, Debug)]
pub struct HeldBundle {
    /// The bundle.
    pub bundle: Arc<Bundle>,
    /// When it was last known to be current.
    pub fetched_at: Timestamp,
    /// When it is looked at again.
    pub refresh_at: Option<Timestamp>,
}
