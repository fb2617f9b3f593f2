//! Refusals on record: once a minute for each user and each kind of thing, however often they ask. To ask costs nothing, and
//! nobody is to fill the journal by it, or to push out of it who did use the key.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const BETWEEN: Duration = Duration::from_secs(60);
/// More are not told apart.
const MOST: usize = 256;

/// Which refusals are on record already.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<(Option<u32>, &'static str), Instant>>);

impl Refusals {
    /// Whether that `uid` was refused `what` is to go on record.
    pub(super) fn is_news(&self, uid: Option<u32>, what: &'static str, now: Instant) -> bool {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.retain(|_, at| now.saturating_duration_since(*at) < BETWEEN);
        if recorded.len() >= MOST || recorded.contains_key(&(uid, what)) {
            return false;
        }
        recorded.insert((uid, what), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_s_refusal_is_news_once_a_minute() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.is_news(Some(7), "key", now));
        assert!(!refusals.is_news(Some(7), "key", now + BETWEEN / 2));
        assert!(refusals.is_news(Some(7), "sign", now) && refusals.is_news(None, "key", now));
        assert!(refusals.is_news(Some(7), "key", now + BETWEEN));
        assert!((0..1000).filter(|uid| refusals.is_news(Some(*uid), "other", now + BETWEEN)).count() < MOST);
    }
}
