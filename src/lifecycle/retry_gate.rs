//! Retry gates: when one kind of work may next be tried, and the last failure of it (miaf-v0 E8,
//! R7, P).

use std::time::Duration;

use super::Jitter;
use super::backoff::BackoffPolicy;
use crate::problem::{LastError, Report};
use miaf_spiffe::time::{BootTime, Now};

/// Upper bound of Retry-After (miaf-v0 E8).
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Minimum retry delay, whatever the jitter.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// Upper end of the delay before the same token is sent again, and twice the lower end: five
/// attempts take an hour at least.
const TOKEN_REFUSED: Duration = Duration::from_secs(30 * 60);

/// Upper end of the retry delay after a failure on this device.
const MAX_LOCAL_DELAY: Duration = Duration::from_secs(30);

/// Kinds of failures, by what follows from them. The issuing protocol maps its own errors onto
/// these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No response, a broken one, or one that says "later".
    Transient,
    /// The operator of the MIS has yet to admit this device (miaf-v0 E7): for as long as it takes.
    Pending,
    /// The same request would be refused again (miaf-v0 P2).
    Permanent,
    /// The MIS binds no new key to this identity.
    KeyRotationRefused,
    /// The same request would be refused again today: it is looked at again once a day.
    RefusedForNow,
    /// The credential was not accepted.
    NotAuthenticated,
    /// The token was not accepted, and may be in a quarter of an hour: a replica of the MIS may not
    /// know it yet.
    TokenRefused,
    /// There is no token any more that may be used. No request was sent, or its response ended the
    /// last attempt.
    NoToken,
    /// The CA that would issue is none of the trust bundle, or may not issue: one of the two is not the
    /// right one, and may be soon. No request was sent.
    OtherAuthority,
    /// Not soon: policy says no, or what was issued must not be used. Either may change.
    Slow,
    /// The URL does not exist: the discovery document may be out of date.
    NotFound,
    /// Something on this device is missing or broken. No request was sent.
    Local,
    /// The device has no route: its cable is unplugged, or it has no address. No request was sent.
    Offline,
    /// The pending key can never be used again: the TPM does not know it, or its record is damaged.
    /// No request was sent, and the key has been quarantined.
    PendingKeyLost,
    /// The same of the key of the current SVID.
    CurrentKeyLost,
}

/// A failure, as the agent reports it to the lifecycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What follows from it.
    pub kind: FailureKind,
    /// The Retry-After delay of the MIS.
    pub retry_after: Option<Duration>,
    /// The error as people see it.
    pub report: Report,
}

impl Failure {
    /// Retry-After within its bound (miaf-v0 E8).
    pub(super) fn bounded_retry_after(&self) -> Option<Duration> {
        self.retry_after.map(|wait| wait.min(LONGEST_RETRY_AFTER))
    }
}

/// What a failure does to its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The gate opens again by itself.
    Waits,
    /// The gate opens when something is corrected.
    Blocked,
}

/// The retry gate of one kind of work.
#[derive(Clone, Debug, Default)]
pub(super) struct RetryGate {
    failures: u32,
    opens_at: Option<BootTime>,
    /// End of the Retry-After delay, without jitter.
    retry_after: Option<BootTime>,
    last_error: Option<LastError>,
    /// The last failure was a refusal for now.
    refused_for_now: bool,
    /// The last failure was for a CA that is none of the trust bundle.
    awaits_bundle: bool,
    /// Consecutive failures on this device. They are counted apart: after an hour without a TPM the
    /// first request must not be delayed as if the MIS had been away.
    local_failures: u32,
    /// Consecutive failures for lack of a network, counted apart for the same reason.
    offline_failures: u32,
}

impl RetryGate {
    /// Restores a Retry-After delay. Its jitter is drawn anew: a fleet that is restarted during the
    /// delay must not return in one second either (E8).
    pub(super) fn restored(
        retry_after: Option<BootTime>,
        backoff: impl Into<BackoffPolicy>,
        now: Now,
        jitter: Jitter<'_>,
    ) -> Self {
        let Some(until) = retry_after.filter(|until| *until > now.boot) else { return Self::default() };
        let policy = backoff.into();
        let spread = policy.backoff.base.max(policy.jitter_after(now.boot.until(until)));
        Self { opens_at: Some(until.after(spread.mul_f64(jitter()))), retry_after, ..Self::default() }
    }

    /// Restores the delay after the refusal of a token, as much of it as is left.
    pub(super) fn after_token_refusal(mut self, refusal: LastError, now: Now, jitter: Jitter<'_>) -> Self {
        let left = token_refused_delay(jitter).saturating_sub(refusal.at.until(now.wall));
        self.opens_at = self.opens_at.max(Some(now.boot.after(left)));
        self.last_error = Some(LastError { permanent: false, ..refusal });
        self
    }

    /// Adds the error that the restored delay follows.
    pub(super) fn with_error(mut self, error: Option<LastError>) -> Self {
        self.last_error = error.map(|error| LastError { permanent: false, ..error });
        self
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Success with a response from before the MIS sent Retry-After: that delay stays.
    pub(super) fn succeeded_late(&mut self, now: Now) {
        let retry_after = self.outstanding_retry_after(now);
        let opens_at = self.opens_at.filter(|_| retry_after.is_some());
        *self = Self { opens_at, retry_after, ..Self::default() };
    }

    /// Closes the gate for this long at least, without a failure.
    pub(super) fn pause(&mut self, pause: Duration, now: Now) {
        self.opens_at = self.opens_at.max(Some(now.boot.after(pause)));
    }

    /// Ends a [`pause`](Self::pause). The delay after a failure and a Retry-After delay stay.
    pub(super) fn end_pause(&mut self) {
        if self.last_error.is_none() && self.retry_after.is_none() {
            self.opens_at = None;
        }
    }

    /// A part of the work is done: what was missing on this device is there, and no Retry-After
    /// delay is left. The count of local failures goes on: a TPM that forgets each key that it
    /// creates is not asked for one all the time.
    pub(super) fn progressed(&mut self) {
        self.retry_after = None;
        if self.is_local() {
            self.last_error = None;
        }
    }

    /// Allows the next attempt from this moment on, unless a Retry-After delay is outstanding. The
    /// last error stays visible until an attempt succeeds, and the backoff goes on if it fails:
    /// documents that change all the time must not keep the delay short. A pause after a success is
    /// not a failure's, and stays.
    pub(super) fn open_from(&mut self, from: BootTime, now: Now) {
        let local = self.is_local();
        self.refused_for_now = false;
        match &mut self.last_error {
            Some(error) => error.permanent = local,
            None if self.retry_after.is_none() => return,
            None => {} // a delay from before the restart
        }
        // The jitter on top of an outstanding Retry-After delay stays too (E8).
        if self.outstanding_retry_after(now).is_none() {
            self.opens_at = self.opens_at.map(|at| at.min(from));
        }
    }

    /// A failure that is followed by a request of another kind: at once, or when Retry-After has
    /// elapsed (E8).
    pub(super) fn failed_over(
        &mut self,
        failure: Failure,
        policy: &BackoffPolicy,
        now: Now,
        jitter: Jitter<'_>,
    ) {
        let delay = failure.bounded_retry_after();
        self.opens_at =
            delay.map(|delay| now.boot.after(delay + policy.jitter_after(delay).mul_f64(jitter())));
        self.retry_after = delay.map(|delay| now.boot.after(delay));
        self.local_failures = 0;
        self.set_error(failure, now, false);
    }

    pub(super) fn failed(
        &mut self,
        failure: Failure,
        backoff: impl Into<BackoffPolicy>,
        now: Now,
        jitter: Jitter<'_>,
    ) -> Verdict {
        let policy = backoff.into();
        let backoff = &policy.backoff;
        let offline = failure.kind == FailureKind::Offline;
        let local = matches!(failure.kind, FailureKind::Local | FailureKind::PendingKeyLost);
        let count = match (local, offline) {
            (true, _) => &mut self.local_failures,
            (_, true) => &mut self.offline_failures,
            _ => &mut self.failures,
        };
        *count = count.saturating_add(1);
        let interval = backoff.interval(*count);
        let retry_after = failure.bounded_retry_after();
        let delay = match (failure.kind, retry_after) {
            // Retry-After makes a refusal no answer that may be asked for sooner.
            (FailureKind::RefusedForNow, least) => {
                policy.refused_for_now.mul_f64(1.0 - jitter() / 4.0).max(least.unwrap_or_default())
            }
            (FailureKind::TokenRefused, least) => token_refused_delay(jitter).max(least.unwrap_or_default()),
            // The pace of the MIS, for as long as it takes; "at once" is no pace to keep for days.
            (FailureKind::Pending, Some(delay)) if !delay.is_zero() => {
                delay + backoff.base.max(delay / 4).mul_f64(jitter())
            }
            (_, Some(delay)) => delay + interval.max(policy.jitter_after(delay)).mul_f64(jitter()),
            (
                FailureKind::NotAuthenticated
                | FailureKind::Slow
                | FailureKind::NotFound
                | FailureKind::KeyRotationRefused,
                None,
            ) => backoff.cap.mul_f64(1.0 - jitter() / 2.0), // slow, and still spread
            // No request is sent, so the MIS is not spared by a delay: the device goes on soon
            // after a person has mended it, or after the link is back (B4).
            (FailureKind::Local | FailureKind::Offline | FailureKind::PendingKeyLost, None) => {
                interval.min(MAX_LOCAL_DELAY).mul_f64(1.0 - jitter() / 2.0)
            }
            (_, None) => interval.mul_f64(jitter()),
        };
        // A chain that is validated once more may fail while another response's Retry-After is
        // outstanding.
        let outstanding = self.outstanding_retry_after(now);
        self.opens_at = Some(now.boot.after(delay.max(MIN_DELAY))).max(outstanding);
        self.retry_after = retry_after.map(|delay| now.boot.after(delay)).max(outstanding);
        if !local {
            self.local_failures = 0;
        }
        if !offline {
            self.offline_failures = 0;
        }
        let blocked = matches!(failure.kind, FailureKind::Permanent | FailureKind::KeyRotationRefused);
        let permanent = blocked || local || failure.kind == FailureKind::RefusedForNow;
        self.set_error(failure, now, permanent);
        if blocked { Verdict::Blocked } else { Verdict::Waits }
    }

    /// The same failure once more, which is no reason to wait beyond the moment given.
    pub(super) fn failed_as_before(&mut self, failure: Failure, until: BootTime, now: Now) {
        (self.opens_at, self.local_failures) = (Some(until).max(self.outstanding_retry_after(now)), 0);
        self.set_error(failure, now, false);
    }

    fn outstanding_retry_after(&self, now: Now) -> Option<BootTime> {
        self.retry_after.filter(|until| *until > now.boot)
    }

    pub(super) fn opens_in(&self, now: Now) -> Duration {
        self.opens_at.map_or(Duration::ZERO, |at| now.boot.until(at))
    }

    /// End of the Retry-After delay.
    pub(super) fn retry_after(&self) -> Option<BootTime> {
        self.retry_after
    }

    pub(super) fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_ref()
    }

    /// Whether the last failure was on this device.
    pub(super) fn is_local(&self) -> bool {
        self.local_failures > 0 && self.last_error.is_some()
    }

    /// Whether only a correction ends the last failure.
    pub(super) fn is_permanent(&self) -> bool {
        self.last_error().is_some_and(|error| error.permanent)
    }

    /// Whether the last failure was a refusal for now, and nothing was corrected since.
    pub(super) fn is_refused_for_now(&self) -> bool {
        self.refused_for_now && self.last_error.is_some()
    }

    /// Whether another trust bundle may end the last failure.
    pub(super) fn awaits_bundle(&self) -> bool {
        self.awaits_bundle && self.last_error.is_some()
    }

    fn set_error(&mut self, failure: Failure, now: Now, permanent: bool) {
        self.refused_for_now = failure.kind == FailureKind::RefusedForNow;
        self.awaits_bundle = failure.kind == FailureKind::OtherAuthority;
        self.last_error = Some(LastError { report: failure.report, at: now.wall, permanent });
    }
}

fn token_refused_delay(jitter: Jitter<'_>) -> Duration {
    TOKEN_REFUSED.mul_f64(1.0 - jitter() / 2.0)
}

/// Minimum interval between two openings of gates by commands, tokens or clock jumps.
const MIN_BETWEEN_OPENINGS: Duration = Duration::from_secs(5);

/// Rate limit of openings by commands, tokens and clock jumps: requests do not follow the pace of a
/// script, or of a clock that is set every second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OpeningLimit {
    last: Option<BootTime>,
}

impl OpeningLimit {
    /// The moment from which on gates may be opened now.
    pub(super) fn next(&mut self, now: Now) -> BootTime {
        let from = match self.last {
            Some(last) if now.boot <= last => last,
            Some(last) => last.after(MIN_BETWEEN_OPENINGS).max(now.boot),
            None => now.boot,
        };
        self.last = Some(from);
        from
    }
}
