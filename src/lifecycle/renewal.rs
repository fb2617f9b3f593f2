//! The renewal moment of an SVID: a random moment of the renewal window (miaf-v0 R2).

use super::types::Policy;
use super::{Jitter, Lifecycle};
use miaf_spiffe::time::{Now, Timestamp};

impl Lifecycle {
    /// Draws the renewal moment of an SVID that is adopted now, so that it can be stored with it: a
    /// moment in the renewal window of its lifetime (miaf-v0 R2). For one that was issued late in
    /// its lifetime, a moment in the window of what is left: otherwise each renewal would lead to
    /// the next.
    pub fn draw_renewal(
        &self,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Now,
        jitter: Jitter<'_>,
    ) -> Timestamp {
        self.policy.draw_renewal_after(not_before, not_after, now.wall, jitter)
    }
}

impl Policy {
    /// A moment in the renewal window of the lifetime; of what is left of it, where that window is
    /// over at `now`.
    pub(super) fn draw_renewal_after(
        &self,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
        jitter: Jitter<'_>,
    ) -> Timestamp {
        let renew_at = self.draw_renewal(not_before, not_after, jitter);
        if renew_at <= now { self.draw_renewal(now, not_after, jitter) } else { renew_at }
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
