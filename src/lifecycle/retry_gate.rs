//! When one kind of work may next be tried, and what the last failure means (miaf-v0 E8, R7, P).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Draw;
use super::backoff::BackoffPolicy;
use crate::text::{self, Excerpt};
use crate::time::{BootTime, Now, Timestamp};

/// Longest `Retry-After` that is believed (miaf-v0 E8).
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Even the luckiest draw leaves the MIS this long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// What is missing on this device is looked for at least this often.
const LONGEST_LOCAL_PAUSE: Duration = Duration::from_secs(30);

/// What a failure means for what to do next. The protocol's reasons are mapped onto these at the door (`mis`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No answer, a broken one, or one that says "later".
    Transient,
    /// The operator of the MIS has yet to admit this device (miaf-v0 E7): for as long as it takes.
    Pending,
    /// The same request would be refused again (miaf-v0 P2).
    Permanent,
    /// The MIS does not bind a new key to this identity.
    KeyRotationRefused,
    /// The credential was not accepted.
    NotAuthenticated,
    /// Not soon: policy says no, or what came must not be used. Either may change.
    Slow,
    /// The address leads nowhere: the discovery document may be out of date.
    NotFound,
    /// Something on this device is missing or broken. No request was made.
    Local,
    /// The device has no way out: its cable is unplugged, it has no address. No request was made.
    Offline,
    /// The pending key can never be used again: the chip does not know it, or its record is damaged. No request was
    /// made, and it has been set aside.
    PendingKeyLost,
    /// The same of the key of the SVID that is held.
    CurrentKeyLost,
}

/// A failure, as the shell reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to make of it.
    pub kind: FailureKind,
    /// How long the MIS asked to be left alone.
    pub retry_after: Option<Duration>,
    /// What to tell people.
    pub report: Report,
}

impl Failure {
    /// The wait that the MIS asked for, as far as it is believed (miaf-v0 E8).
    pub(super) fn asked(&self) -> Option<Duration> {
        self.retry_after.map(|wait| wait.min(LONGEST_RETRY_AFTER))
    }
}

/// Characters of a [`Report`]'s `type`.
pub const MAX_KIND: usize = 256;
/// Characters of its `title`.
pub const MAX_TITLE: usize = 256;
/// Characters of its `detail`.
pub const MAX_DETAIL: usize = 2048;
/// Characters of its `instance`.
pub const MAX_INSTANCE: usize = 256;

/// An error as people see it: the members of Problem Details (RFC 9457), also for errors of this device's own. Its texts
/// are each on one line, and have limits: it is logged, stored, and part of every status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// A URI that names the kind.
    #[serde(deserialize_with = "text::short::<_, MAX_KIND>")]
    pub kind: String,
    /// One line.
    #[serde(deserialize_with = "text::short::<_, MAX_TITLE>")]
    pub title: String,
    /// The HTTP status, where there was one.
    pub status: Option<u16>,
    /// What failed, on what, why, and what to do.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_DETAIL>")]
    pub detail: Option<String>,
    /// The occurrence, as the MIS names it: quote it to its operator.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_INSTANCE>")]
    pub instance: Option<String>,
}

impl Report {
    /// An error that this device finds by itself.
    pub fn of_agent(code: &str, title: &str, detail: &dyn std::fmt::Display) -> Self {
        Self {
            kind: format!("urn:miaf-agent:error:{code}"),
            title: Excerpt::of(title, MAX_TITLE).into(),
            status: None,
            detail: Some(Excerpt::of(detail, MAX_DETAIL).into()),
            instance: None,
        }
    }
}

/// The last error, with what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The error.
    pub report: Report,
    /// When it was seen.
    pub at: Timestamp,
    /// Nothing will change it but a correction: on this device, in its configuration, or at the MIS.
    pub permanent: bool,
}

/// What a failure did to its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It opens again by itself.
    Waits,
    /// It opens when something is corrected.
    Blocked,
}

#[derive(Clone, Debug, Default)]
pub(super) struct RetryGate {
    failures: u32,
    opens_at: Option<BootTime>,
    /// The part of the wait that the MIS asked for.
    asked_until: Option<BootTime>,
    last_error: Option<LastError>,
    /// Failures of this device's own in a row. They are counted apart: a chip that was away for an hour must not
    /// make the first request after that wait as if the MIS had been away.
    local_failures: u32,
    /// The same, of a network that is not there.
    offline_failures: u32,
}

impl RetryGate {
    /// The wait of before the restart. What was drawn on top of it then is drawn anew: a fleet that is restarted while the
    /// MIS asks it to wait must not come back in one second either (E8).
    pub(super) fn waiting_until(
        asked_until: Option<BootTime>,
        pace: impl Into<BackoffPolicy>,
        now: Now,
        draw: Draw<'_>,
    ) -> Self {
        let Some(until) = asked_until.filter(|until| *until > now.boot) else { return Self::default() };
        let pace = pace.into();
        let spread = pace.retry.base.max(pace.on_top_of(now.boot.until(until)));
        Self { opens_at: Some(until.after(spread.mul_f64(draw()))), asked_until, ..Self::default() }
    }

    /// The error that the wait is for.
    pub(super) fn because_of(mut self, error: Option<LastError>) -> Self {
        self.last_error = error.map(|error| LastError { permanent: false, ..error });
        self
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// The same by an answer of before the MIS asked to wait: that stays.
    pub(super) fn succeeded_late(&mut self, now: Now) {
        let outstanding = self.outstanding_wait(now);
        let opens_at = self.opens_at.filter(|_| outstanding.is_some());
        *self = Self { opens_at, asked_until: outstanding, ..Self::default() };
    }

    /// Stays shut for this long at least, without a failure.
    pub(super) fn pause(&mut self, pause: Duration, now: Now) {
        self.opens_at = self.opens_at.max(Some(now.boot.after(pause)));
    }

    /// Ends a [`pause`](Self::pause). What waits after a failure, or because the MIS asked for it, waits on.
    pub(super) fn end_pause(&mut self) {
        if self.last_error.is_none() && self.asked_until.is_none() {
            self.opens_at = None;
        }
    }

    /// A part of the work is done: what was missing on this device is there, and the MIS does not ask to wait any more.
    /// How often it was missing counts on: a chip that forgets each key that it makes is not asked for one all the time.
    pub(super) fn passed(&mut self) {
        self.asked_until = None;
        if self.is_local() {
            self.last_error = None;
        }
    }

    /// Lets the next attempt be made from this moment on, if the MIS does not ask to wait; the last error stays visible
    /// until it succeeds, and if it does not, the backoff goes on where it was: documents that change all the time must not
    /// keep it short. A pause after a success is not a failure's.
    pub(super) fn forgive(&mut self, from: BootTime, now: Now) {
        let local = self.is_local();
        match &mut self.last_error {
            Some(error) => error.permanent = local,
            None if self.asked_until.is_none() => return,
            None => {} // a wait of before the restart
        }
        // While the MIS asks to wait, what was drawn on top of that stays too (E8).
        if self.asked_until.is_none_or(|until| until <= now.boot) {
            self.opens_at = self.opens_at.map(|at| at.min(from));
        }
    }

    /// An error that is followed by another attempt of another kind, at once if the MIS does not ask to wait (E8).
    pub(super) fn noted(&mut self, failure: Failure, pace: &BackoffPolicy, now: Now, draw: Draw<'_>) {
        let asked = failure.asked();
        self.opens_at = asked.map(|asked| now.boot.after(asked + pace.on_top_of(asked).mul_f64(draw())));
        self.asked_until = asked.map(|asked| now.boot.after(asked));
        self.local_failures = 0;
        self.remember(failure, now, false);
    }

    pub(super) fn failed(
        &mut self,
        failure: Failure,
        pace: impl Into<BackoffPolicy>,
        now: Now,
        draw: Draw<'_>,
    ) -> Verdict {
        let pace = pace.into();
        let retry = &pace.retry;
        let offline = failure.kind == FailureKind::Offline;
        let local = matches!(failure.kind, FailureKind::Local | FailureKind::PendingKeyLost);
        let count = match (local, offline) {
            (true, _) => &mut self.local_failures,
            (_, true) => &mut self.offline_failures,
            _ => &mut self.failures,
        };
        *count = count.saturating_add(1);
        let backoff = retry.interval(*count);
        let asked = failure.asked();
        let pause = match (failure.kind, asked) {
            // The pace of the MIS, for as long as it takes; "at once" is no pace to keep for days.
            (FailureKind::Pending, Some(asked)) if !asked.is_zero() => {
                asked + retry.base.max(asked / 4).mul_f64(draw())
            }
            (_, Some(asked)) => asked + backoff.max(pace.on_top_of(asked)).mul_f64(draw()),
            (
                FailureKind::NotAuthenticated
                | FailureKind::Slow
                | FailureKind::NotFound
                | FailureKind::KeyRotationRefused,
                None,
            ) => retry.cap.mul_f64(1.0 - draw() / 2.0), // slow, and still spread
            // No one is asked, so no one is spared: somebody on a ladder waits for it to go on, and a link that is back is
            // used at once (B4).
            (FailureKind::Local | FailureKind::Offline | FailureKind::PendingKeyLost, None) => {
                backoff.min(LONGEST_LOCAL_PAUSE).mul_f64(1.0 - draw() / 2.0)
            }
            (_, None) => backoff.mul_f64(draw()),
        };
        // An answer that is judged once more may fail while the MIS asks to wait with another.
        let outstanding = self.outstanding_wait(now);
        self.opens_at = Some(now.boot.after(pause.max(SHORTEST_PAUSE))).max(outstanding);
        self.asked_until = asked.map(|asked| now.boot.after(asked)).max(outstanding);
        if !local {
            self.local_failures = 0;
        }
        if !offline {
            self.offline_failures = 0;
        }
        let blocked = matches!(failure.kind, FailureKind::Permanent | FailureKind::KeyRotationRefused);
        self.remember(failure, now, blocked || local);
        if blocked { Verdict::Blocked } else { Verdict::Waits }
    }

    /// The same failure once more, which is no reason to wait longer than until the moment given.
    pub(super) fn failed_as_before(&mut self, failure: Failure, until: BootTime, now: Now) {
        (self.opens_at, self.local_failures) = (Some(until).max(self.outstanding_wait(now)), 0);
        self.remember(failure, now, false);
    }

    fn outstanding_wait(&self, now: Now) -> Option<BootTime> {
        self.asked_until.filter(|until| *until > now.boot)
    }

    pub(super) fn opens_in(&self, now: Now) -> Duration {
        self.opens_at.map_or(Duration::ZERO, |at| now.boot.until(at))
    }

    pub(super) fn asked_to_wait_until(&self) -> Option<BootTime> {
        self.asked_until
    }

    pub(super) fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_ref()
    }

    /// Whether something on this device stands in the way.
    pub(super) fn is_local(&self) -> bool {
        self.local_failures > 0 && self.last_error.is_some()
    }

    fn remember(&mut self, failure: Failure, now: Now, permanent: bool) {
        self.last_error = Some(LastError { report: failure.report, at: now.wall, permanent });
    }
}
