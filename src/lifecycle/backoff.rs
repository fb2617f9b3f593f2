//! How often what is tried again, and looked at: the device's own needs, and those of an MIS with a hundred thousand of them
//! (docs/fleet.md).

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

use super::types::{BundleFacts, Draw, Policy, SvidFacts};
use super::{BundleForChain, Lifecycle};
use crate::time::{Now, Timestamp};

/// Bounds on the refresh hint of the MIS: a slip of the pen there must neither hammer it nor freeze the anchors.
const SHORTEST_REFRESH: Duration = Duration::from_secs(5);
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// Between two successful looks at the discovery document, unless the lifetimes here are too short for that.
const SHORTEST_BETWEEN_READS: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// Bundles are polled, so a failure never makes the polls rarer than they are on a good day; nor, when the MIS is away
    /// for long, much more frequent.
    pub(super) fn bundle_retry(&self) -> Backoff {
        match (self.bundle, &self.answer) {
            (Some(bundle), None) => self.retry_within(bundle.refresh_every),
            _ => self.retry_of_what_is_waited_for(),
        }
    }

    /// A document that is held serves meanwhile, and the next request is what a new one is for: it need not be asked for more
    /// often. Where the device cannot go on under it, or not by its clock, it is waited for.
    pub(super) fn discovery_retry(&self, now: Now) -> Backoff {
        let waited_for = self.retry_of_what_is_waited_for();
        let serves = self.discovery.is_some() && self.bundle.is_some() && self.time.allows(now);
        if !serves || self.is_refused_for_good(now) {
            return waited_for;
        }
        let identity = self.identity_retry(now.wall);
        if identity.cap > waited_for.cap { identity } else { waited_for }
    }

    /// The clock cannot be believed, by the word of one server perhaps: the next one is soon asked, and others at the
    /// bundle's pace in the end.
    pub(super) fn until_the_next_look_for_the_time(&self, draw: Draw<'_>) -> Duration {
        self.retry_of_what_is_waited_for().interval(self.looks_for_the_time).mul_f64(1.0 - draw() / 2.0)
    }

    fn retry_of_what_is_waited_for(&self) -> Backoff {
        self.retry_within(self.policy.bundle_refresh)
    }

    fn retry_within(&self, longest: Duration) -> Backoff {
        let cap = self.policy.retry.cap.min(longest);
        Backoff { base: self.policy.retry.base.min(cap), cap }
    }

    /// Between this bundle and the next.
    pub(super) fn refresh_interval(&self, facts: &BundleFacts, now: Now) -> Duration {
        let agreed = self.policy.refresh_interval(facts.refresh_hint, facts.is_empty);
        // What waits for another bundle, or is soon going to, does not wait for a day.
        let answer_waits = self.answer.as_ref().is_some_and(|a| a.bundle == BundleForChain::AnotherWanted);
        let early = match facts.anchor_changes {
            _ if answer_waits => Duration::ZERO,
            Some(at) => at.until(now.wall).max(now.wall.until(at)) / 2, // rarely again long after it
            None => return agreed,
        };
        agreed.min(early.max(self.policy.bundle_refresh))
    }

    /// A document that was read just now is not read again on a mere doubt.
    pub(super) fn shortest_between_reads(&self, now: Timestamp) -> Duration {
        SHORTEST_BETWEEN_READS.min(self.retry_of_what_is_waited_for().cap).min(self.identity_retry(now).cap)
    }

    /// [`identity_pace`](Policy::identity_pace) under the SVID held.
    pub(super) fn identity_retry(&self, at: Timestamp) -> Backoff {
        self.policy.identity_pace(self.svid.as_ref().map(|svid| &svid.facts), at).retry
    }
}

impl Policy {
    /// Between two looks at a bundle on a good day.
    pub(super) fn refresh_interval(&self, hint: Option<Duration>, is_empty: bool) -> Duration {
        match hint.map(|hint| hint.clamp(SHORTEST_REFRESH, LONGEST_REFRESH)) {
            // Emptied by a slip, perhaps: that is not waited out for a day.
            Some(hint) if is_empty => hint.min(self.bundle_refresh),
            Some(hint) => hint,
            None => self.bundle_refresh,
        }
    }

    /// The pace of requests to an MIS that has nothing better to give, beginning with a fraction of the lifetime: SVIDs that
    /// live a minute do not wait for an hour at once.
    pub(super) fn pace_in_vain(&self, SvidFacts { not_before, not_after, .. }: &SvidFacts) -> Backoff {
        let twentieth = not_before.until(*not_after) / 20;
        let base = twentieth.min(self.bundle_refresh).max(self.retry.base).min(self.retry.cap);
        Backoff { base, cap: self.retry.cap }
    }

    /// The pace of requests for SVIDs at this moment. The cap is never above a twentieth of the lifetime, so that a
    /// short-lived SVID gets its tries too (miaf-v0 R7); nor, down to the base, above half of what is left of it, which must not
    /// expire because one draw was a long one (R2). When nothing is left there is nothing to lose: then a fleet that was told one
    /// wait comes back over as long a time as any.
    pub(super) fn identity_pace(&self, svid: Option<&SvidFacts>, at: Timestamp) -> BackoffPolicy {
        let Some(SvidFacts { not_before, not_after, .. }) = svid else { return self.retry.into() };
        let twentieth = (not_before.until(*not_after) / 20).max(Duration::from_secs(1));
        let cap = self.retry.cap.min(twentieth);
        let base = self.retry.base.min(cap);
        let left = at.until(*not_after);
        if left.is_zero() {
            return BackoffPolicy { retry: Backoff { base, cap }, spread: self.retry.cap };
        }
        Backoff { base, cap: cap.min((left / 2).max(base)) }.into()
    }
}

/// So many doublings of any base are more than any cap.
const SURELY_AT_THE_CAP: u32 = 64;

/// Full-jitter exponential backoff: from `base`, doubling, to `cap`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Upper end of the first pause.
    pub base: Duration,
    /// Upper end of every later one.
    pub cap: Duration,
}

impl Backoff {
    /// The upper end of the pause after this many failures in a row. The `backoff` crate does the arithmetic; its own
    /// randomness and its limit on elapsed time are off.
    pub(super) fn interval(&self, failures: u32) -> Duration {
        if failures >= SURELY_AT_THE_CAP {
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

/// When one kind of work is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackoffPolicy {
    pub(super) retry: Backoff,
    /// The most that is drawn on top of a wait that the MIS asked for.
    pub(super) spread: Duration,
}

impl BackoffPolicy {
    /// What may be drawn on top of this wait: a fleet that was told one number must not come back in one second (miaf-v0
    /// E8).
    pub(super) fn on_top_of(&self, asked: Duration) -> Duration {
        (asked / 2).min(self.spread)
    }
}

impl From<Backoff> for BackoffPolicy {
    fn from(retry: Backoff) -> Self {
        Self { retry, spread: retry.cap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_from_base_to_the_cap() {
        let retry = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(3600) };
        let secs = |n| retry.interval(n).as_secs();
        assert_eq!([secs(1), secs(2), secs(3), secs(4)], [5, 10, 20, 40]);
        assert_eq!([secs(11), secs(12), secs(1000), secs(u32::MAX)], [3600; 4]);
        let inverted = Backoff { base: Duration::from_secs(50), cap: Duration::from_secs(3) };
        assert_eq!(inverted.interval(1), Duration::from_secs(3));
    }
}
