//! The renewal moment of an SVID: a random moment of the renewal window (miaf-v0 R2). For an SVID that
//! an operator brings, half of its lifetime: from then on the operator is asked for the next.

use super::types::{IdentityIndex, IdentityPolicy, Issuance, Policy, SvidFacts};
use super::{Jitter, Lifecycle};
use miaf_spiffe::time::{Now, Timestamp};

impl Lifecycle {
    /// Draws the renewal moment of an SVID that is adopted now, so that it can be stored with it: a
    /// moment in the renewal window of its lifetime (miaf-v0 R2). For one that was issued late in
    /// its lifetime, a moment in the window of what is left: otherwise each renewal would lead to
    /// the next.
    pub fn draw_renewal(
        &self,
        index: IdentityIndex,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Now,
        jitter: Jitter<'_>,
    ) -> Timestamp {
        let of_identity = self.identities.get(index.0).map(|identity| identity.policy).unwrap_or_default();
        self.policy.draw_renewal_after(of_identity, not_before, not_after, now.wall, jitter)
    }
}

/// From this part of the lifetime on an operator is asked for the next SVID.
const OPERATOR_FROM: f64 = 0.5;

impl Policy {
    /// A moment in the renewal window of the lifetime; of what is left of it, where that window is
    /// over at `now`.
    pub(super) fn draw_renewal_after(
        &self,
        of_identity: IdentityPolicy,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
        jitter: Jitter<'_>,
    ) -> Timestamp {
        if of_identity.issuance == Issuance::ByOperator {
            return part_way(not_before, not_after, OPERATOR_FROM);
        }
        let renew_at = self.draw_renewal(not_before, not_after, jitter);
        if renew_at <= now { self.draw_renewal(now, not_after, jitter) } else { renew_at }
    }

    /// The renewal moment of an SVID that was stored without one.
    pub(super) fn draw_first_renewal(
        &self,
        of_identity: IdentityPolicy,
        svid: &SvidFacts,
        jitter: Jitter<'_>,
    ) -> Timestamp {
        let SvidFacts { not_before, not_after, .. } = *svid;
        match of_identity.issuance {
            Issuance::ByOperator => part_way(not_before, not_after, OPERATOR_FROM),
            Issuance::Requested | Issuance::With(_) | Issuance::WithToken => {
                self.draw_renewal(not_before, not_after, jitter)
            }
        }
    }

    /// A moment in the renewal window of the time from `from` to `to` (miaf-v0 R2).
    pub(super) fn draw_renewal(&self, from: Timestamp, to: Timestamp, jitter: Jitter<'_>) -> Timestamp {
        let (opens, closes) = self.window;
        part_way(from, to, opens + (closes - opens) * jitter())
    }

    /// First and last moment of the renewal window.
    pub(super) fn renewal_window(
        &self,
        not_before: Timestamp,
        not_after: Timestamp,
    ) -> (Timestamp, Timestamp) {
        let (opens, closes) = self.window;
        (part_way(not_before, not_after, opens), part_way(not_before, not_after, closes))
    }
}

fn part_way(from: Timestamp, to: Timestamp, fraction: f64) -> Timestamp {
    from.after(from.until(to).mul_f64(fraction))
}
