//! What the agent does next, and when. [`Lifecycle::step`] is a pure function of state, event, time
//! and jitter: it returns at most one [`Action`] and the time of the next step. It does no I/O,
//! reads no clock and knows no HTTP, path or command line, so the daemon, the property tests and a
//! simulated fleet run the same code.
//!
//! The state is what the device *has*: once, discovery document and bundle (`trust_domain`); once
//! for each identity, SVID, keys and issued chain (`identity`); and a retry gate for each kind of
//! work. Every step works out from these what is wanted (`plan`), and picks one of it
//! (`scheduler`). No event can be lost and no timer forgotten: without an action in flight there is
//! always either work or a time for the next step.

mod backoff;
mod clock_trust;
mod identity;
mod plan;
mod renewal;
mod retry_gate;
mod scheduler;
mod state;
mod trust_domain;
mod types;
mod update;

use std::time::Duration;

pub use backoff::Backoff;
pub use clock_trust::{KnownTime, TimeVerdict};
pub use identity::IdentityView;
pub use retry_gate::{Failure, FailureKind, LONGEST_RETRY_AFTER};
pub use types::{
    Action, BundleFacts, Command, DiscoveryFacts, Event, IdentityAction, IdentityEvent, IdentityIndex,
    IdentityMemory, IdentityPolicy, Issuance, Jitter, KeyChoice, KeyUse, Memory, NotAdopted, Policy, Request,
    Restored, RestoredBundle, RestoredIdentity, RestoredTrustDomain, Rotation, RuledOut, Step, Supplied,
    SvidFacts, SvidTrust, TrustDomainMemory,
};

use identity::{Identity, Prerequisite};
use miaf_spiffe::time::{Now, Timestamp};
use scheduler::{Next, Scheduler};
use trust_domain::TrustDomain;

/// A device that is switched on with its identities polls discovery and bundle at a random moment
/// within this time, and within a tenth of the poll interval of the bundle.
const FIRST_POLL_WITHIN: Duration = Duration::from_secs(30);

/// State of one agent: a trust domain, and the identities in it.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    policy: Policy,
    trust_domain: TrustDomain,
    identities: Vec<Identity>,
    scheduler: Scheduler,
    in_flight: Option<Action>,
    stepped_at: Option<Now>,
}

impl Lifecycle {
    /// Starts from what survived. Nothing happens before the first [`step`](Self::step).
    pub fn new(policy: Policy, restored: Restored, now: Now, jitter: Jitter<'_>) -> Self {
        let Restored { trust_domain, identities } = restored;
        // A fleet whose power comes back does not poll in one second (B4). A device that lacks an
        // identity, an anchor or a trusted clock polls at once.
        let has_all = trust_domain.bundle.is_none_or(|bundle| !bundle.is_empty)
            && identities
                .iter()
                .all(|identity| identity.svid.is_some() || identity.policy.issuance == Issuance::ByOperator);
        let within = FIRST_POLL_WITHIN.min(policy.bundle_refresh / 10);
        let first_poll = if has_all && trust_domain.time.allows(now) {
            now.boot.after(within.mul_f64(jitter()))
        } else {
            now.boot
        };
        Self {
            trust_domain: TrustDomain::new(trust_domain, first_poll, &policy, now, jitter),
            identities: identities
                .into_iter()
                .map(|identity| Identity::new(identity, &policy, now, jitter))
                .collect(),
            scheduler: Scheduler::default(),
            in_flight: None,
            stepped_at: None,
            policy,
        }
    }

    /// Applies an event and returns what to do next.
    pub fn step(&mut self, event: Event, now: Now, jitter: Jitter<'_>) -> Step {
        let last = self.stepped_at.replace(now);
        self.update(event, now, jitter);
        if last.is_some_and(|last| clock_trust::has_jumped(last, now)) {
            // What failed may have failed by the wrong clock: a server certificate that was not
            // valid yet, for instance.
            self.open_gates(now);
        }
        let validity_changes_in = self.validity_changes_in(now);
        if self.in_flight.is_some() {
            return Step { action: None, wake_in: validity_changes_in };
        }
        match self.next(now) {
            Next::Execute(action) => {
                if let (Action::FetchDiscovery, Some(doubt)) = (action, &mut self.trust_domain.doubt) {
                    doubt.note_request();
                }
                self.scheduler.started(action);
                self.in_flight = Some(action);
                Step { action: Some(action), wake_in: validity_changes_in }
            }
            Next::Sleep(sleep) => Step {
                action: None,
                wake_in: Some(validity_changes_in.map_or(sleep, |change| sleep.min(change))),
            },
        }
    }

    /// Takes in the time that an authenticated response of the MIS shows, and returns what follows
    /// from it.
    pub fn observe_time(&mut self, time: Timestamp, now: Now) -> TimeVerdict {
        self.trust_domain.observe_time(time, now)
    }

    /// What is known of the time in addition to the wall clock: to be stored.
    pub fn known_time(&self) -> KnownTime {
        self.trust_domain.time
    }

    /// Whether the wall clock is trusted.
    pub fn trusts_clock(&self, now: Now) -> bool {
        self.trust_domain.trusts_clock(now)
    }

    /// The wall clock where it is trusted, else the earliest time that it can be.
    pub fn likely_time(&self, now: Now) -> Timestamp {
        if self.trusts_clock(now) { now.wall } else { self.trust_domain.time.at_least() }
    }

    /// Time until the bundle is polled again.
    pub fn bundle_refresh_in(&self, now: Now) -> Option<Duration> {
        self.trust_domain.bundle_refresh_in(now)
    }

    /// State that must survive a restart: to be stored.
    pub fn memory(&self) -> Memory {
        Memory {
            trust_domain: self.trust_domain.memory(),
            identities: self.identities.iter().map(Identity::memory).collect(),
        }
    }

    /// One identity. `None`: no identity is configured at this position.
    pub fn identity(&self, index: IdentityIndex) -> Option<IdentityView<'_>> {
        self.identities.get(index.0).map(|identity| self.view(index, identity))
    }

    /// All identities, in the order of their indexes.
    pub fn identities(&self) -> impl Iterator<Item = (IdentityIndex, IdentityView<'_>)> {
        let indexed = self.identities.iter().enumerate();
        indexed.map(|(nth, identity)| (IdentityIndex(nth), self.view(IdentityIndex(nth), identity)))
    }

    fn view<'a>(&'a self, index: IdentityIndex, identity: &'a Identity) -> IdentityView<'a> {
        let in_flight = match self.in_flight {
            Some(Action::Identity(of, action)) if of == index => Some(action),
            _ => None,
        };
        IdentityView {
            policy: &self.policy,
            index,
            prerequisite: Prerequisite::of(identity, &self.identities),
            trust_domain: &self.trust_domain,
            identity,
            in_flight,
        }
    }
}

#[cfg(test)]
mod tests;
