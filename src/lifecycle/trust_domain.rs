//! What exists once in a trust domain: discovery document, trust bundle, trust in the clock, and
//! their retry gates.

use std::time::Duration;

use super::backoff::Backoff;
use super::clock_trust::{Doubt, KnownTime, TimeVerdict};
use super::retry_gate::{OpeningLimit, RetryGate};
use super::types::{
    DiscoveryFacts, IdentityIndex, Jitter, Policy, Request, RestoredTrustDomain, TrustDomainMemory,
};
use crate::problem::Report;
use miaf_spiffe::time::{BootTime, Now, Timestamp};

/// State of the trust domain.
#[derive(Clone, Debug)]
pub(super) struct TrustDomain {
    pub(super) time: KnownTime,
    /// The MIS has shown a time that is not trusted yet.
    pub(super) doubt: Option<Doubt>,
    /// Responses since the wall clock lost trust. While there are few, the next request comes soon.
    pub(super) responses_without_clock: u32,
    pub(super) discovery: Option<Discovery>,
    pub(super) discovery_gate: RetryGate,
    pub(super) bundle: Option<Bundle>,
    pub(super) bundle_gate: RetryGate,
    opening: OpeningLimit,
}

/// The cached discovery document.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) facts: DiscoveryFacts,
    pub(super) read_at: Timestamp,
    /// From here on it is revalidated before the next request for an SVID.
    pub(super) stale_at: BootTime,
    /// Something suggests that it is out of date: it is fetched from this moment on.
    pub(super) refresh_at: Option<BootTime>,
    /// Since it was last fetched, the bundle could not be fetched, or is not the right one: the
    /// document may name another address by now.
    pub(super) bundle_failed: bool,
    /// Failures of the bundle since then.
    bundle_failures: u32,
    /// Consecutive failures to fetch the document for the sake of the bundle.
    failed_fetches: u32,
}

/// The document is fetched for the bundle's sake at least once in `2^MAX_DOUBLINGS` failures of that.
const MAX_DOUBLINGS: u32 = 3;

impl Discovery {
    pub(super) fn new(facts: DiscoveryFacts, read_at: Timestamp, stale_at: BootTime) -> Self {
        Self {
            facts,
            read_at,
            stale_at,
            refresh_at: None,
            bundle_failed: false,
            bundle_failures: 0,
            failed_fetches: 0,
        }
    }
}

/// The cached trust bundle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bundle {
    pub(super) refresh_at: BootTime,
    /// As agreed with the MIS.
    pub(super) refresh_every: Duration,
    pub(super) is_empty: bool,
}

impl TrustDomain {
    /// `first_poll` is when the cached documents are polled first.
    pub(super) fn new(
        restored: RestoredTrustDomain,
        first_poll: BootTime,
        policy: &Policy,
        now: Now,
        jitter: Jitter<'_>,
    ) -> Self {
        let TrustDomainMemory { discovery_retry_after, discovery_error, bundle_retry_after } =
            restored.memory;
        Self {
            time: restored.time,
            doubt: None,
            responses_without_clock: 0,
            // A document from before the restart serves while the MIS is unreachable, and is
            // revalidated when it is not.
            discovery: restored.discovery.map(|facts| Discovery {
                refresh_at: Some(first_poll),
                ..Discovery::new(facts, now.wall, now.boot)
            }),
            discovery_gate: RetryGate::restored(discovery_retry_after, policy.retry, now, jitter)
                .with_error(discovery_error),
            bundle: restored.bundle.map(|bundle| Bundle {
                refresh_at: first_poll,
                refresh_every: policy.refresh_interval(bundle.refresh_hint, bundle.is_empty),
                is_empty: bundle.is_empty,
            }),
            bundle_gate: RetryGate::restored(bundle_retry_after, policy.retry, now, jitter),
            opening: OpeningLimit::default(),
        }
    }

    /// Whether the wall clock is trusted.
    pub(super) fn trusts_clock(&self, now: Now) -> bool {
        self.time.allows(now)
    }

    /// Takes in the time that an authenticated response of the MIS shows.
    pub(super) fn observe_time(&mut self, time: Timestamp, now: Now) -> TimeVerdict {
        let trusted = self.trusts_clock(now);
        let verdict = self.time.observe(time, now, &mut self.doubt);
        if verdict == TimeVerdict::Doubted {
            self.discovery_gate.end_pause(); // the next request comes at once
        }
        if trusted && !self.trusts_clock(now) {
            self.discovery_gate.open_from(now.boot, now); // with the next document comes the time
        }
        verdict
    }

    /// Whether discovery is fetched only for the time that the response shows.
    pub(super) fn checks_time_again(&self) -> bool {
        self.doubt.is_some_and(|doubt| doubt.wants_request())
    }

    /// Time until discovery is fetched while the wall clock is not trusted. Nothing else is
    /// requested then: the time comes with every response.
    pub(super) fn time_check_in(&self, now: Now) -> Duration {
        let is_first = self.responses_without_clock == 0 && !self.checks_time_again();
        let due_in = match &self.discovery {
            Some(discovery) if is_first => now.boot.until(discovery.refresh_at.unwrap_or(discovery.stale_at)),
            _ => Duration::ZERO, // the gate decides
        };
        due_in.max(self.discovery_gate.opens_in(now))
    }

    /// Whether there is a discovery document to request under, and a bundle to validate the issued
    /// chain with (D1, E4). Under an empty bundle every chain would be invalid, and each costs the
    /// device one of its few renewals a day.
    pub(super) fn allows_requests(&self) -> bool {
        self.discovery.is_some() && self.allows_validation()
    }

    /// Whether there is a bundle to validate an issued chain with.
    pub(super) fn allows_validation(&self) -> bool {
        self.bundle.is_some_and(|bundle| !bundle.is_empty)
    }

    /// Why the discovery document rules a request of an identity out (miaf-v0 D5).
    pub(super) fn ruled_out(&self, index: IdentityIndex, request: Request) -> Option<&Report> {
        let ruled_out = self.discovery.as_ref()?.facts.identities.get(index.0)?;
        match request {
            Request::Enroll => ruled_out.enrollment.as_ref(),
            Request::Renew => ruled_out.renewal.as_ref(),
        }
    }

    /// Time until the bundle is polled again.
    pub(super) fn bundle_refresh_in(&self, now: Now) -> Option<Duration> {
        let bundle = self.bundle?;
        Some(now.boot.until(bundle.refresh_at).max(self.bundle_gate.opens_in(now)))
    }

    /// The discovery document names the address of the bundle: it is fetched for a response, or lack
    /// of one, that makes the address doubtful. While that fails as well, it is fetched for every
    /// second of them, fourth, and so on: an MIS that comes back has enough to do.
    pub(super) fn doubt_bundle_address(&mut self, doubtful: bool) {
        let Some(discovery) = &mut self.discovery else { return };
        if !doubtful {
            (discovery.bundle_failures, discovery.failed_fetches) = (0, 0);
            return;
        }
        discovery.bundle_failures += 1;
        let due_at = 1 << discovery.failed_fetches.min(MAX_DOUBLINGS);
        discovery.bundle_failed |= discovery.bundle_failures >= due_at;
    }

    /// Whether the discovery document, which could not be fetched, was wanted for the bundle alone.
    pub(super) fn wanted_discovery_for_the_bundle(&self) -> bool {
        let discovery = self.discovery.as_ref();
        discovery.is_some_and(|discovery| discovery.failed_fetches > 0 && discovery.refresh_at.is_none())
    }

    /// The discovery document could not be fetched. Returns whether that was for the bundle's sake.
    pub(super) fn discovery_failed(&mut self) -> bool {
        let Some(discovery) = &mut self.discovery else { return false };
        let for_the_bundle = std::mem::take(&mut discovery.bundle_failed);
        if for_the_bundle {
            discovery.bundle_failures = 0;
            discovery.failed_fetches = discovery.failed_fetches.saturating_add(1);
        }
        for_the_bundle
    }

    /// Has the bundle fetched, as far as its gate is open.
    pub(super) fn refresh_bundle(&mut self, now: Now) {
        if let Some(bundle) = &mut self.bundle {
            bundle.refresh_at = bundle.refresh_at.min(now.boot);
        }
    }

    /// Has the file with the bundle read now, whatever was wrong with it before: no server is spared by
    /// a delay.
    pub(super) fn read_bundle_file(&mut self, now: Now) {
        self.bundle_gate.open_from(now.boot, now);
        self.refresh_bundle(now);
    }

    /// Has the discovery document fetched, as far as its gate is open.
    pub(super) fn refresh_discovery(&mut self, now: Now) {
        if let Some(discovery) = &mut self.discovery {
            discovery.refresh_at = Some(now.boot);
        }
    }

    /// Opens what is closed after a failure. Returns from when on.
    pub(super) fn open_gates(&mut self, now: Now) -> BootTime {
        let from = self.opening.next(now);
        for gate in [&mut self.discovery_gate, &mut self.bundle_gate] {
            gate.open_from(from, now);
        }
        from
    }

    /// Backoff of documents that the device cannot go on without.
    pub(super) fn urgent_backoff(&self, policy: &Policy) -> Backoff {
        policy.backoff_within(policy.bundle_refresh)
    }

    pub(super) fn memory(&self) -> TrustDomainMemory {
        let discovery_retry_after = self.discovery_gate.retry_after();
        TrustDomainMemory {
            discovery_retry_after,
            discovery_error: discovery_retry_after.and_then(|_| self.discovery_gate.last_error().cloned()),
            bundle_retry_after: self.bundle_gate.retry_after(),
        }
    }
}
