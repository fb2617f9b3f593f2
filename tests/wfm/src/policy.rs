//! The operator's decisions. Everything here can be changed while the server runs.

use std::collections::BTreeSet;
use std::time::Duration;

/// The operator's decisions.
#[derive(Debug, Clone)]
pub struct Policy {
    /// WFM Clients that may use the management interface, by exact SPIFFE ID.
    pub accepted: BTreeSet<String>,
    /// Adds a client to `accepted` when it is onboarded.
    pub accept_onboarded: bool,
    /// Whether there is an onboarding call; released Margo has none (N11).
    pub onboarding: bool,
    /// Devices that may onboard a client, by exact SPIFFE ID; `None` is every device of the trust
    /// domain.
    pub devices: Option<BTreeSet<String>>,
    /// From `iat` to `exp` of an assertion; at most five minutes (W5).
    pub assertion_lifetime: Duration,
    /// Assertions per device and time.
    pub onboarding_limit: Option<Limit>,
    /// Ids of the deployments of each client.
    pub deployments: Vec<String>,
    /// Refuses a client without a valid SVID in the TLS handshake and not with a `401`.
    pub refuse_in_handshake: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            accepted: BTreeSet::new(),
            accept_onboarded: true,
            onboarding: true,
            devices: None,
            assertion_lifetime: Duration::from_secs(300),
            onboarding_limit: None,
            deployments: vec!["a3e2f5dc-912e-494f-8395-52cf3769bc06".to_owned()],
            refuse_in_handshake: false,
        }
    }
}

/// A number of successes in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many.
    pub successes: usize,
    /// In how long.
    pub window: Duration,
}
