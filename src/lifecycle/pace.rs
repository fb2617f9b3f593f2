//! How often what is tried again, and looked at: the device's own needs, and those of an MIS with a hundred thousand of them
//! (docs/fleet.md).

use std::time::Duration;

use super::retry::{Pace, Retry};
use super::words::{BundleFacts, Draw, Policy, SvidFacts};
use super::{AnswerBundle, Lifecycle};
use crate::time::{Now, Timestamp};

/// Bounds on the refresh hint of the MIS: a slip of the pen there must neither hammer it nor freeze the anchors.
const SHORTEST_REFRESH: Duration = Duration::from_secs(5);
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// Between two successful looks at the discovery document, unless the lifetimes here are too short for that.
const SHORTEST_BETWEEN_READS: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// Bundles are polled, so a failure never makes the polls rarer than they are on a good day; nor, when the MIS is away
    /// for long, much more frequent.
    pub(super) fn bundle_retry(&self) -> Retry {
        match (self.bundle, &self.answer) {
            (Some(bundle), None) => self.retry_within(bundle.refresh_every),
            _ => self.retry_of_what_is_waited_for(),
        }
    }

    /// A document that is held serves meanwhile, and the next request is what a new one is for: it need not be asked for more
    /// often. Where the device cannot go on under it, or not by its clock, it is waited for.
    pub(super) fn discovery_retry(&self, now: Now) -> Retry {
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

    fn retry_of_what_is_waited_for(&self) -> Retry {
        self.retry_within(self.policy.bundle_refresh)
    }

    fn retry_within(&self, longest: Duration) -> Retry {
        let cap = self.policy.retry.cap.min(longest);
        Retry { base: self.policy.retry.base.min(cap), cap }
    }

    /// Between this bundle and the next.
    pub(super) fn refresh_interval(&self, facts: &BundleFacts, now: Now) -> Duration {
        let agreed = self.policy.refresh_interval(facts.refresh_hint, facts.is_empty);
        // What waits for another bundle, or is soon going to, does not wait for a day.
        let answer_waits = self.answer.as_ref().is_some_and(|a| a.bundle == AnswerBundle::AnotherWanted);
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
    pub(super) fn identity_retry(&self, at: Timestamp) -> Retry {
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
    pub(super) fn pace_in_vain(&self, SvidFacts { not_before, not_after, .. }: &SvidFacts) -> Retry {
        let twentieth = not_before.until(*not_after) / 20;
        let base = twentieth.min(self.bundle_refresh).max(self.retry.base).min(self.retry.cap);
        Retry { base, cap: self.retry.cap }
    }

    /// The pace of requests for SVIDs at this moment. The cap is never above a twentieth of the lifetime, so that a
    /// short-lived SVID gets its tries too (miaf-v0 R7); nor, down to the base, above half of what is left of it, which must not
    /// expire because one draw was a long one (R2). When nothing is left there is nothing to lose: then a fleet that was told one
    /// wait comes back over as long a time as any.
    pub(super) fn identity_pace(&self, svid: Option<&SvidFacts>, at: Timestamp) -> Pace {
        let Some(SvidFacts { not_before, not_after, .. }) = svid else { return self.retry.into() };
        let twentieth = (not_before.until(*not_after) / 20).max(Duration::from_secs(1));
        let cap = self.retry.cap.min(twentieth);
        let base = self.retry.base.min(cap);
        let left = at.until(*not_after);
        if left.is_zero() {
            return Pace { retry: Retry { base, cap }, spread: self.retry.cap };
        }
        Retry { base, cap: cap.min((left / 2).max(base)) }.into()
    }
}
