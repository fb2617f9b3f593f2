//! The model of an MIS: always right, sometimes away, and with a limit on what it does in a second.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use miaf_agent::lifecycle::{Failure, FailureKind};
use miaf_agent::problem::{ProblemCode, Report};

use crate::counts::Kind;
use crate::device::Moment;

const DAY: Moment = 24 * 3_600_000;

/// `notBefore` lies this much before the moment of issue.
const BACKDATED: Moment = 30_000;

pub(crate) struct Mis {
    /// Of the SVIDs that it issues, from `notBefore` to `notAfter`.
    pub(crate) lifetime: Duration,
    pub(crate) refresh_hint: Option<Duration>,
    /// Nobody answers: connections time out.
    pub(crate) down: Range<Moment>,
    pub(crate) limit: Option<Limit>,
    /// Successes that one identity may have in 24 hours (miaf-v0 R5).
    pub(crate) a_day: Option<usize>,
    /// From and until when the certificate that it issues with has expired.
    pub(crate) issuer_expired: Range<Moment>,
    /// What it does about the second identity of each device. `None`: each device has one.
    pub(crate) second: Option<Second>,
    /// From and until when the WFM refuses the binding of a second identity.
    pub(crate) wfm_refuses: Range<Moment>,
    /// How it enrolls over EST. `None`: over v0.
    pub(crate) est: Option<Est>,
    window: Moment,
    admitted: u32,
    issued: Vec<VecDeque<Moment>>,
}

/// Enrollment over EST, by tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Est {
    /// Enrollments are held for review until this moment (`202`), with this Retry-After.
    pub(crate) held_until: Moment,
    pub(crate) retry_after: Option<Duration>,
    /// When the tokens expire that the devices are switched on with.
    pub(crate) tokens_until: Moment,
    /// From when on operators bring fresh tokens, in the course of a day.
    pub(crate) fresh_from: Option<Moment>,
}

impl Default for Est {
    fn default() -> Self {
        Self { held_until: 0, retry_after: None, tokens_until: Moment::MAX, fresh_from: None }
    }
}

/// What becomes of a second identity.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Second {
    /// It gets its SVIDs.
    Served,
    /// It waits for admission, and is asked to come back every minute.
    Pending,
    /// It is refused permanently.
    Refused,
    /// Something on the device fails whenever it makes a request.
    Failing,
    /// It is enrolled with the SVID of the first and a binding of the WFM (miaf-v0 W), and then like
    /// the first: its requests count.
    Bound,
}

/// So many requests are admitted in each window of time; the others are answered `429` with one and
/// the same `Retry-After`.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) requests: u32,
    pub(crate) window: Moment,
    pub(crate) counts: fn(Kind) -> bool,
    pub(crate) retry_after: Duration,
}

impl Limit {
    pub(crate) fn a_second(&self) -> f64 {
        f64::from(self.requests) * 1000.0 / self.window as f64
    }
}

impl Mis {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            refresh_hint: None,
            down: 0..0,
            limit: None,
            a_day: None,
            issuer_expired: 0..0,
            second: None,
            wfm_refuses: 0..0,
            est: None,
            window: 0,
            admitted: 0,
            issued: Vec::new(),
        }
    }

    pub(crate) fn is_down(&self, at: Moment) -> bool {
        self.down.contains(&at)
    }

    /// The failures are those that `MisError::to_failure` makes of a timeout and of a `429`. The
    /// reports are empty, to save memory: they are not read, and nothing is decided by them.
    pub(crate) fn answers(&mut self, kind: Kind, id: usize, at: Moment) -> Result<(), Failure> {
        if self.is_down(at) {
            return Err(failure(FailureKind::Transient, None));
        }
        if let Some(limit) = self.limit.filter(|limit| (limit.counts)(kind)) {
            if at / limit.window != self.window {
                (self.window, self.admitted) = (at / limit.window, 0);
            }
            if self.admitted >= limit.requests {
                return Err(failure(FailureKind::Transient, Some(limit.retry_after)));
            }
            self.admitted += 1;
        }
        match self.a_day {
            Some(most) if kind.is_for_an_svid() => self.admits_today(most, id, at),
            _ => Ok(()),
        }
    }

    /// The response to a token, which is fresh or one that the device was switched on with.
    pub(crate) fn answers_token(&self, is_fresh: bool, at: Moment) -> Result<(), Failure> {
        match self.est {
            Some(est) if !is_fresh && at >= est.tokens_until => Err(failure(FailureKind::TokenRefused, None)),
            Some(est) if at < est.held_until => Err(failure(FailureKind::Pending, est.retry_after)),
            _ => Ok(()),
        }
    }

    /// The wait is told exactly: until the oldest of the successes that count is a day old.
    fn admits_today(&mut self, most: usize, id: usize, at: Moment) -> Result<(), Failure> {
        if self.issued.len() <= id {
            self.issued.resize_with(id + 1, VecDeque::new);
        }
        let issued = &mut self.issued[id];
        issued.retain(|then| at - then < DAY);
        match issued.front() {
            Some(oldest) if issued.len() >= most => {
                let seconds = (oldest + DAY - at).div_ceil(1000);
                Err(failure(FailureKind::Transient, Some(Duration::from_secs(seconds))))
            }
            _ => {
                issued.push_back(at);
                Ok(())
            }
        }
    }

    /// Whether the second identity of each device is measured like the first.
    pub(crate) fn counts_the_second(&self) -> bool {
        matches!(self.second, Some(Second::Bound))
    }

    /// The WFM is asked first. It is another server, and there when the MIS is away.
    pub(crate) fn wfm_answers(&self, at: Moment) -> Result<(), Failure> {
        if self.wfm_refuses.contains(&at) { Err(failure(FailureKind::Slow, None)) } else { Ok(()) }
    }

    /// Identities of each device.
    pub(crate) fn identities(&self) -> usize {
        if self.second.is_some() { 2 } else { 1 }
    }

    pub(crate) fn answers_the_second(&self) -> Result<(), Failure> {
        match self.second {
            Some(Second::Pending) => Err(failure(FailureKind::Pending, Some(Duration::from_secs(60)))),
            Some(Second::Refused) => Err(failure(FailureKind::Permanent, None)),
            Some(Second::Failing) => Err(failure(FailureKind::Local, None)),
            Some(Second::Served | Second::Bound) | None => Ok(()),
        }
    }

    /// From when until when an SVID can be used that is issued now: not longer than its issuer.
    pub(crate) fn validity(&self, at: Moment) -> (Moment, Moment) {
        let not_before = at.saturating_sub(BACKDATED);
        let not_after = not_before + u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX);
        let is_replaced = self.issuer_expired.is_empty() || at >= self.issuer_expired.end;
        (not_before, if is_replaced { not_after } else { not_after.min(self.issuer_expired.start) })
    }
}

pub(crate) fn failure(kind: FailureKind, retry_after: Option<Duration>) -> Failure {
    // The lifecycle decides by `kind` alone; nothing is allocated.
    let code = ProblemCode::ServerError.into();
    let report = Report { code, title: String::new(), detail: None, hint: None, response: None };
    Failure { kind, retry_after, report }
}
