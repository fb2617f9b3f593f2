//! The pauses between attempts: the arithmetic of the backoff.

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// So many doublings of any base are more than any cap.
const SURELY_AT_THE_CAP: u32 = 64;

/// Full-jitter exponential backoff: from `base`, doubling, to `cap`.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Upper end of the first pause.
    pub base: Duration,
    /// Upper end of every later one.
    pub cap: Duration,
}

impl Retry {
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
pub(super) struct Pace {
    pub(super) retry: Retry,
    /// The most that is drawn on top of a wait that the MIS asked for.
    pub(super) spread: Duration,
}

impl Pace {
    /// What may be drawn on top of this wait: a fleet that was told one number must not come back in one second (miaf-v0
    /// E8).
    pub(super) fn on_top_of(&self, asked: Duration) -> Duration {
        (asked / 2).min(self.spread)
    }
}

impl From<Retry> for Pace {
    fn from(retry: Retry) -> Self {
        Self { retry, spread: retry.cap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_from_base_and_stay_at_the_cap() {
        let retry = Retry { base: Duration::from_secs(5), cap: Duration::from_secs(3600) };
        let secs = |n| retry.interval(n).as_secs();
        assert_eq!([secs(1), secs(2), secs(3), secs(4)], [5, 10, 20, 40]);
        assert_eq!([secs(11), secs(12), secs(1000), secs(u32::MAX)], [3600; 4]);
        let inverted = Retry { base: Duration::from_secs(50), cap: Duration::from_secs(3) };
        assert_eq!(inverted.interval(1), Duration::from_secs(3));
    }
}
