//! Delays between attempts, and intervals between polls: what the device needs, and what an MIS
//! with a hundred thousand devices can bear (docs/fleet.md).

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

use super::Lifecycle;
use super::identity::Identity;
use super::types::{BundleFacts, Jitter, Policy, SvidFacts};
use miaf_spiffe::time::{Now, Timestamp};

/// Bounds of the MIS's refresh hint: a slip of the pen there must neither hammer it nor freeze the
/// anchors.
const MIN_REFRESH: Duration = Duration::from_secs(5);
const MAX_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// Minimum interval between two successful reads of the discovery document, unless the lifetimes
/// are too short for that.
const MIN_BETWEEN_READS: Duration = Duration::from_secs(60);

/// Upper end of the delay before a request that was refused for now.
const REFUSED_FOR_NOW: Duration = Duration::from_secs(24 * 3600);

/// After this many doublings of any base the cap is reached.
const CERTAINLY_AT_THE_CAP: u32 = 64;

/// Full-jitter exponential backoff: from `base`, doubling, to `cap`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Upper end of the first delay.
    pub base: Duration,
    /// Upper end of the longest delay.
    pub cap: Duration,
}

impl Backoff {
    /// Upper end of the delay after this many consecutive failures. The `backoff` crate does the
    /// arithmetic; its own randomness and its limit on elapsed time are off.
    pub(super) fn interval(&self, failures: u32) -> Duration {
        if failures >= CERTAINLY_AT_THE_CAP {
            return self.cap;
        }
        let mut series: ExponentialBackoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(self.base.min(self.cap))
            .with_max_interval(self.cap)
            .with_multiplier(2.0)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        for _ in 1..failures {
            if series.current_interval >= self.cap {
                break; // it stays there
            }
            series.next_backoff();
        }
        series.current_interval.min(self.cap)
    }
}

/// Backoff of one kind of work, and the jitter on top of Retry-After.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackoffPolicy {
    pub(super) backoff: Backoff,
    /// Upper end of the jitter on top of a Retry-After delay.
    pub(super) spread: Duration,
    /// Upper end of the delay before a request that was refused for now.
    pub(super) refused_for_now: Duration,
}

impl BackoffPolicy {
    /// Upper end of the jitter on top of this delay: a fleet that was given one number must not
    /// return in one second (miaf-v0 E8).
    pub(super) fn jitter_after(&self, delay: Duration) -> Duration {
        (delay / 2).min(self.spread)
    }
}

impl From<Backoff> for BackoffPolicy {
    fn from(backoff: Backoff) -> Self {
        Self { backoff, spread: backoff.cap, refused_for_now: REFUSED_FOR_NOW }
    }
}

impl Lifecycle {
    /// Bundles are polled, so a failure never makes the polls rarer than they are on a good day;
    /// nor, when the MIS is away for long, much more frequent.
    pub(super) fn bundle_backoff(&self) -> Backoff {
        let chain_waits = self.identities.iter().any(Identity::hurries_bundle);
        match self.trust_domain.bundle {
            Some(bundle) if !chain_waits => self.policy.backoff_within(bundle.refresh_every),
            _ => self.trust_domain.urgent_backoff(&self.policy),
        }
    }

    /// A cached document serves meanwhile. It is fetched for the sake of the next request, so it
    /// need not be fetched more often than requests are sent. Where the device cannot go on under
    /// it, or not by its clock, it is urgent.
    pub(super) fn discovery_backoff(&self, now: Now) -> Backoff {
        let urgent = self.trust_domain.urgent_backoff(&self.policy);
        let trust_domain = &self.trust_domain;
        let serves =
            trust_domain.discovery.is_some() && trust_domain.bundle.is_some() && self.trusts_clock(now);
        if !serves || self.identities().any(|(_, view)| view.is_refused_permanently(now)) {
            return urgent;
        }
        let fastest = self.fastest_backoff(now.wall);
        if fastest.cap > urgent.cap { fastest } else { urgent }
    }

    /// Delay until the next request for the time, while the clock is not trusted. By the word of
    /// one server, perhaps: the next one is asked soon, and others at the pace of the bundle in the
    /// end.
    pub(super) fn time_check_delay(&self, jitter: Jitter<'_>) -> Duration {
        let backoff = self.trust_domain.urgent_backoff(&self.policy);
        backoff.interval(self.trust_domain.responses_without_clock).mul_f64(1.0 - jitter() / 2.0)
    }

    /// Interval until the bundle is polled again.
    pub(super) fn refresh_interval(&self, facts: &BundleFacts, now: Now) -> Duration {
        let agreed = self.policy.refresh_interval(facts.refresh_hint, facts.is_empty);
        // A chain that waits for another bundle, or an SVID that soon will, does not wait for a
        // day.
        if self.identities.iter().any(|one| one.waits_for_another_bundle() && one.hurries_bundle()) {
            return agreed.min(self.policy.bundle_refresh);
        }
        let changes = facts.svids.iter().filter_map(|svid| svid.anchor_changes);
        // Rarely again long after the change.
        let early = changes.map(|at| at.until(now.wall).max(now.wall.until(at)) / 2).min();
        early.map_or(agreed, |early| agreed.min(early.max(self.policy.bundle_refresh)))
    }

    /// A document that has just been read is not read again on a mere doubt.
    pub(super) fn min_between_reads(&self, at: Timestamp) -> Duration {
        let urgent = self.trust_domain.urgent_backoff(&self.policy).cap;
        MIN_BETWEEN_READS.min(urgent).min(self.fastest_backoff(at).cap)
    }

    /// Backoff of the identity whose requests are the most frequent. An SVID that an operator
    /// brings leads to none, however near its end is.
    fn fastest_backoff(&self, at: Timestamp) -> Backoff {
        let requesting = self.identities.iter().filter(|identity| !identity.is_by_operator());
        let backoffs = requesting.map(|identity| identity.backoff(&self.policy, at));
        backoffs.min_by_key(|backoff| backoff.cap).unwrap_or(self.policy.retry)
    }
}

impl Policy {
    /// Poll interval of the bundle on a good day.
    pub(super) fn refresh_interval(&self, hint: Option<Duration>, is_empty: bool) -> Duration {
        match hint.map(|hint| hint.clamp(MIN_REFRESH, MAX_REFRESH)) {
            // Emptied by a slip, perhaps: that is not waited out for a day.
            Some(hint) if is_empty => hint.min(self.bundle_refresh),
            Some(hint) => hint,
            None => self.bundle_refresh,
        }
    }

    pub(super) fn backoff_within(&self, longest: Duration) -> Backoff {
        let cap = self.retry.cap.min(longest);
        Backoff { base: self.retry.base.min(cap), cap }
    }

    /// Backoff of requests to an MIS that has nothing better to issue. It begins with a fraction of
    /// the lifetime: SVIDs that live a minute do not wait for an hour at once.
    pub(super) fn stalled_backoff(&self, SvidFacts { not_before, not_after, .. }: &SvidFacts) -> Backoff {
        let twentieth = not_before.until(*not_after) / 20;
        let base = twentieth.min(self.bundle_refresh).max(self.retry.base).min(self.retry.cap);
        Backoff { base, cap: self.retry.cap }
    }

    /// Backoff of requests for SVIDs at this moment. The cap is never above a twentieth of the
    /// lifetime, so that a short-lived SVID gets its attempts too (miaf-v0 R7); nor, down to the
    /// base, above half of what is left of it, so that it does not expire because of one long delay
    /// (R2). When nothing is left there is nothing to lose: then a fleet that was given one
    /// Retry-After returns spread over as long a time as any.
    pub(super) fn identity_backoff(&self, svid: Option<&SvidFacts>, at: Timestamp) -> BackoffPolicy {
        let Some(SvidFacts { not_before, not_after, .. }) = svid else { return self.retry.into() };
        let twentieth = (not_before.until(*not_after) / 20).max(Duration::from_secs(1));
        let cap = self.retry.cap.min(twentieth);
        let base = self.retry.base.min(cap);
        let left = at.until(*not_after);
        if left.is_zero() {
            let backoff = Backoff { base, cap };
            return BackoffPolicy { spread: self.retry.cap, ..backoff.into() };
        }
        let within_what_is_left = |delay: Duration| delay.min((left / 2).max(base));
        let backoff = Backoff { base, cap: within_what_is_left(cap) };
        // A day is too long for an SVID that ends before: what was refused may be granted again.
        let refused_for_now = within_what_is_left(REFUSED_FOR_NOW.min(twentieth));
        BackoffPolicy { refused_for_now, ..backoff.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_from_base_to_the_cap() {
        let backoff = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(3600) };
        let secs = |n| backoff.interval(n).as_secs();
        assert_eq!([secs(1), secs(2), secs(3), secs(4)], [5, 10, 20, 40]);
        assert_eq!([secs(11), secs(12), secs(1000), secs(u32::MAX)], [3600; 4]);
        let inverted = Backoff { base: Duration::from_secs(50), cap: Duration::from_secs(3) };
        assert_eq!(inverted.interval(1), Duration::from_secs(3));
    }
}
