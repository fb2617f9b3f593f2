//! Rate limit per uid: a token bucket for each, stored as the moment at which it is full again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time in which an empty bucket fills up.
const FILL_TIME: Duration = Duration::from_secs(60);
/// Buckets that are stored. Full ones are not.
const MAX_BUCKETS: usize = 4096;

/// Token buckets of one size, one for each uid.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_minute: u32,
    full_at: BTreeMap<Option<u32>, Instant>,
}

/// The limit is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateExceeded {
    pub(super) per_minute: u32,
    /// Time until there is a token again.
    pub(super) wait: Duration,
}

impl RateLimit {
    /// Buckets with `per_minute` tokens, at least one.
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.max(1), full_at: BTreeMap::new() }
    }

    /// Changes the size of the buckets. What is missing in them is the same part as before.
    pub(super) fn set(&mut self, per_minute: u32) {
        self.per_minute = per_minute.max(1);
    }

    /// Takes a token.
    pub(super) fn take(&mut self, uid: Option<u32>, now: Instant) -> Result<(), RateExceeded> {
        let before = self.full_at.get(&uid).map_or(now, |at| now.max(*at));
        let full_at = before + self.cost();
        let wait = full_at.saturating_duration_since(now).saturating_sub(FILL_TIME);
        if !wait.is_zero() {
            return Err(RateExceeded { per_minute: self.per_minute, wait });
        }
        if self.full_at.len() >= MAX_BUCKETS && !self.full_at.contains_key(&uid) {
            self.make_room(now);
        }
        self.full_at.insert(uid, full_at);
        Ok(())
    }

    /// Returns the last token, which was not used.
    pub(super) fn refund(&mut self, uid: Option<u32>) {
        let cost = self.cost();
        if let Some(at) = self.full_at.get_mut(&uid) {
            *at = at.checked_sub(cost).unwrap_or(*at);
        }
    }

    /// Time in which a bucket gains one token.
    fn cost(&self) -> Duration {
        FILL_TIME / self.per_minute
    }

    /// Forgets full buckets and, where there is none, the fullest: its uid gains the least by it.
    fn make_room(&mut self, now: Instant) {
        self.full_at.retain(|_, at| *at > now);
        if self.full_at.len() >= MAX_BUCKETS
            && let Some(fullest) = self.full_at.iter().min_by_key(|(_, at)| **at).map(|(uid, _)| *uid)
        {
            self.full_at.remove(&fullest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_spent_at_once_and_then_at_the_rate() {
        let (mut limit, now) = (RateLimit::new(60), Instant::now());
        let take = |limit: &mut RateLimit, at| (0..1000).filter(|_| limit.take(Some(7), at).is_ok()).count();
        assert_eq!(take(&mut limit, now), 60);
        let RateExceeded { per_minute, wait } = limit.take(Some(7), now).unwrap_err();
        assert_eq!((per_minute, wait), (60, Duration::from_secs(1)));
        assert!(limit.take(Some(8), now).is_ok() && limit.take(None, now).is_ok(), "others have their own");
        assert_eq!(take(&mut limit, now + wait), 1);
        assert_eq!(take(&mut limit, now + Duration::from_secs(11)), 10);
        assert_eq!(take(&mut limit, now + Duration::from_secs(3600)), 60, "no more is saved up");
    }

    #[test]
    fn token_that_is_refunded_counts_again() {
        let (mut limit, now) = (RateLimit::new(1), Instant::now());
        limit.take(Some(7), now).unwrap();
        limit.refund(Some(7));
        limit.take(Some(7), now).unwrap();
        assert!(limit.take(Some(7), now).is_err());
    }

    #[test]
    fn new_limit_counts_at_once() {
        let (mut limit, now) = (RateLimit::new(2), Instant::now());
        assert!(limit.take(Some(7), now).is_ok() && limit.take(Some(7), now).is_ok());
        limit.set(0);
        assert_eq!(limit.take(Some(7), now).unwrap_err().per_minute, 1);
        limit.set(120);
        assert!(limit.take(Some(7), now + Duration::from_millis(500)).is_ok());
    }

    #[test]
    fn many_uids_fill_a_bounded_table_and_refuse_no_other() {
        let (mut limit, now) = (RateLimit::new(2), Instant::now());
        assert!(limit.take(Some(0), now).is_ok() && limit.take(Some(0), now).is_ok());
        for uid in 1..70_000 {
            assert!(limit.take(Some(uid), now).is_ok());
        }
        assert!(limit.full_at.len() <= MAX_BUCKETS);
        assert!(limit.take(Some(0), now).is_err(), "the emptiest bucket is not forgotten");
        let later = now + FILL_TIME;
        assert!(
            limit.take(Some(70_000), later).is_ok() && limit.full_at.len() == 1,
            "full buckets are not stored"
        );
    }
}
