//! What to do next, and when. [`Lifecycle::step`] is a pure function of state, event, time and a random draw: it
//! returns at most one [`Action`] and the time of the next look. It does no I/O, reads no clock and knows no HTTP, so
//! the daemon, the property tests and a simulated fleet run the same code.
//!
//! The state is what is *held* (discovery, bundle, SVID, keys, an answer that waits to be adopted) and three
//! gates, one for each kind of work, that say when it may next be tried. From these, every step works out afresh
//! what is wanted, so no event can be lost and no wake-up forgotten: a lifecycle with nothing in flight always has
//! either work or a time to look again.

mod backoff;
mod clock_trust;
mod plan;
mod retry_gate;
mod state;
mod types;
mod update;

use std::time::Duration;

pub use backoff::Backoff;
pub use clock_trust::{KnownTime, TimeVerdict};
/// The name that `mis` still uses.
pub use retry_gate::FailureKind as Meaning;
pub use retry_gate::{
    Failure, FailureKind, LONGEST_RETRY_AFTER, LastError, MAX_DETAIL, MAX_INSTANCE, MAX_KIND, MAX_TITLE,
    Report,
};
pub use state::State;
pub use types::{
    Action, BundleFacts, Command, DiscoveryFacts, Draw, Event, KeyChoice, Memory, NotAdopted, Policy,
    Request, Restored, Step, SvidFacts, Waits,
};

use crate::time::{BootTime, Now, Timestamp};
use backoff::BackoffPolicy;
use clock_trust::Doubt;
use plan::Next;
use retry_gate::RetryGate;

/// A device that is switched on with an identity looks at discovery and bundle at a random moment within this time, and
/// within a tenth of the interval between two looks at the bundle.
const FIRST_LOOK_WITHIN: Duration = Duration::from_secs(30);

/// The state of one device's identity.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    policy: Policy,
    time: KnownTime,
    /// The MIS has shown a time that is not believed yet.
    doubt: Option<Doubt>,
    /// Responses since the clock cannot be believed: while there are few of them, the next is asked for soon.
    looks_for_the_time: u32,
    in_flight: Option<Action>,
    discovery: Option<Discovery>,
    discovery_gate: RetryGate,
    bundle: Option<HeldBundle>,
    bundle_gate: RetryGate,
    svid: Option<HeldSvid>,
    pending_key: Option<PendingKey>,
    answer: Option<IssuedChain>,
    /// The MIS refused to bind a new key: ask with the existing one from now on (miaf-v0 R4).
    rotation_refused: bool,
    /// The SVID held was answered `401`: only an enrollment helps (miaf-v0 R6).
    reauthenticate: bool,
    identity_gate: RetryGate,
    key_gate: RetryGate,
    issues_in_vain: IssuesInVain,
    blocked: Blocked,
    admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    replace_lost_key: bool,
    /// From when on gates were last opened from outside: by an order, or by a clock that was set.
    opened_from: Option<BootTime>,
    stepped_at: Option<Now>,
}

#[derive(Clone, Debug)]
struct Discovery {
    facts: DiscoveryFacts,
    /// When it was read.
    read_at: Timestamp,
    /// From here on it is revalidated before the next request for an SVID.
    stale_at: BootTime,
    /// Something suggests that it is out of date: look from this moment on.
    look_from: Option<BootTime>,
    /// The bundle could not be had, or is not the right one, since this was last asked for: it may name another
    /// address by now.
    bundle_failed: bool,
}

#[derive(Clone, Copy, Debug)]
struct HeldBundle {
    refresh_at: BootTime,
    /// As agreed with the MIS.
    refresh_every: Duration,
    is_empty: bool,
}

#[derive(Clone, Debug)]
struct HeldSvid {
    facts: SvidFacts,
    renew_at: Timestamp,
    key: CurrentKey,
    /// The moment that was drawn for it, if its renewal was brought forward because the bundle does not vouch for it any
    /// more.
    drawn_before: Option<Timestamp>,
}

/// What is known of the key of the SVID held.
#[derive(Clone, Debug)]
enum CurrentKey {
    /// Nothing yet.
    Unproven,
    /// It has signed.
    Works,
    /// Its chip does not know it any more: nothing can be renewed, and nobody can use the SVID.
    Lost(LastError),
}

/// The permanent refusal of each request that got one: the request is not repeated before something is corrected
/// (miaf-v0 P2). One for each, since a wall clock that jumps over the expiry and back changes which one is wanted.
#[derive(Clone, Debug, Default)]
struct Blocked {
    enroll: Option<LastError>,
    renew: Option<LastError>,
    /// The enrollment was refused for its new key alone, while the key of the SVID was lost: with
    /// that one it is open (R4).
    enroll_without_current_key: bool,
}

#[derive(Clone, Copy, Debug)]
struct PendingKey {
    refused: bool,
}

/// An SVID that came and is not published yet.
#[derive(Clone, Debug)]
struct IssuedChain {
    not_before: Option<Timestamp>,
    bundle: BundleForChain,
    /// An issuer of it had expired when it was judged: another is asked for from this moment on.
    asks_anew_at: Option<BootTime>,
    /// What is known of the key that it is for: it has signed the request, unless that was before a restart.
    key: CurrentKey,
}

/// SVIDs in a row that ended no later than the one before them, because an issuer ends then: the MIS has nothing better
/// yet, and each costs the device one of its few renewals a day.
#[derive(Clone, Copy, Debug, Default)]
struct IssuesInVain {
    count: u32,
    pace: Option<Backoff>,
    /// When the last of them came.
    since: Option<Timestamp>,
    /// Until when the MIS is left alone because of it.
    pause_until: Option<BootTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BundleForChain {
    /// Judge with the bundle held.
    AsHeld,
    /// Unknown issuer: fetch first.
    Wanted,
    /// Fetched since.
    Fetched,
    /// An issuer has expired: another bundle may hold another way, and until there is one the answer is of no use.
    AnotherWanted,
}

impl Lifecycle {
    /// From what survived. Nothing happens before the first [`step`](Self::step).
    pub fn new(policy: Policy, restored: Restored, now: Now, draw: Draw<'_>) -> Self {
        let Memory { waits, discovery_waits_because, waits_because, admission_pending, replace_lost_key } =
            restored.memory;
        let mut gate = |wait, pace: BackoffPolicy| RetryGate::waiting_until(wait, pace, now, draw);
        let discovery_gate = gate(waits.discovery, policy.retry.into()).because_of(discovery_waits_because);
        let bundle_gate = gate(waits.bundle, policy.retry.into());
        let asked = waits.identity.map_or(Duration::ZERO, |until| now.boot.until(until));
        let pace = policy.identity_pace(restored.svid.as_ref(), now.wall.after(asked));
        let identity_gate = gate(waits.identity, pace).because_of(waits_because);
        // A fleet whose power comes back does not look around in one second (B4). Who has no identity yet, or no clock that can
        // be believed, is waited for.
        let at_leisure = restored.svid.is_some() && !restored.bundle_is_empty && restored.time.allows(now);
        let first_look = now.boot.after(if at_leisure {
            FIRST_LOOK_WITHIN.min(policy.bundle_refresh / 10).mul_f64(draw())
        } else {
            Duration::ZERO
        });
        let mut lifecycle = Self {
            time: restored.time,
            doubt: None,
            looks_for_the_time: 0,
            in_flight: None,
            // A document from before the restart serves when the MIS cannot be reached, and is revalidated when it can.
            discovery: restored.discovery.map(|facts| Discovery {
                facts,
                read_at: now.wall,
                stale_at: now.boot,
                look_from: Some(first_look),
                bundle_failed: false,
            }),
            discovery_gate,
            bundle: restored.bundle.then_some(HeldBundle {
                refresh_at: first_look,
                refresh_every: policy
                    .refresh_interval(restored.bundle_refresh_hint, restored.bundle_is_empty),
                is_empty: restored.bundle_is_empty,
            }),
            bundle_gate,
            svid: None,
            pending_key: restored.pending_key.then_some(PendingKey { refused: false }),
            answer: restored.answer.then_some(IssuedChain {
                not_before: None,
                bundle: BundleForChain::AsHeld,
                asks_anew_at: None,
                key: CurrentKey::Unproven,
            }),
            rotation_refused: false,
            reauthenticate: false,
            identity_gate,
            key_gate: RetryGate::default(),
            issues_in_vain: IssuesInVain::default(),
            blocked: Blocked::default(),
            admission_pending,
            replace_lost_key,
            opened_from: None,
            stepped_at: None,
            policy,
        };
        lifecycle.svid = restored.svid.map(|facts| {
            // A moment that passed while the device was off means: at once (R2).
            let renew_at =
                facts.renew_at.unwrap_or_else(|| lifecycle.draw_renewal(facts.not_before, &facts, draw));
            HeldSvid { facts, renew_at, key: CurrentKey::Unproven, drawn_before: None }
        });
        lifecycle
    }

    /// An authenticated response of the MIS shows that it is this time. Says what follows from that.
    pub fn time_is_shown(&mut self, time: Timestamp, now: Now) -> TimeVerdict {
        let believed = self.believes(now);
        let shown = self.time.is_shown(time, now, &mut self.doubt);
        if shown == TimeVerdict::Doubted {
            self.discovery_gate.end_pause(); // it is asked for again at once
        }
        if believed && !self.believes(now) {
            self.discovery_gate.forgive(now.boot, now); // with the next document comes the time
        }
        shown
    }

    /// Whether discovery is read only to see what time it is.
    fn asks_for_the_time_again(&self) -> bool {
        self.doubt.is_some_and(|doubt| doubt.asks())
    }

    /// What is known of the time besides the wall clock: to be stored.
    pub fn known_time(&self) -> KnownTime {
        self.time
    }

    /// Takes in what happened and says what to do next.
    pub fn step(&mut self, event: Event, now: Now, draw: Draw<'_>) -> Step {
        let last = self.stepped_at.replace(now);
        self.update(event, now, draw);
        if last.is_some_and(|last| clock_trust::has_jumped(last, now)) {
            // What failed may have failed by the wrong clock: a server's certificate that had not begun yet, say.
            self.open_gates(now);
        }
        if self.in_flight.is_some() {
            return Step { action: None, wake_in: self.until_validity_changes(now) };
        }
        match self.next(now) {
            Next::Do(action) => {
                if let (Action::FetchDiscovery, Some(doubt)) = (&action, &mut self.doubt) {
                    doubt.asked();
                }
                self.in_flight = Some(action.clone());
                Step { action: Some(action), wake_in: self.until_validity_changes(now) }
            }
            Next::In(wait) => Step {
                action: None,
                wake_in: Some(self.until_validity_changes(now).map_or(wait, |expiry| wait.min(expiry))),
            },
        }
    }

    /// Whether the wall clock can be believed.
    pub fn believes(&self, now: Now) -> bool {
        self.time.allows(now)
    }

    /// The wall clock where it can be believed, else the time that it is at least.
    pub fn likely_time(&self, now: Now) -> Timestamp {
        if self.believes(now) { now.wall } else { self.time.at_least() }
    }

    /// When the SVID held is to be renewed.
    pub fn renew_at(&self) -> Option<Timestamp> {
        self.svid.as_ref().map(|svid| svid.renew_at)
    }

    /// How long until the bundle is looked at again.
    pub fn bundle_refresh_in(&self, now: Now) -> Option<Duration> {
        let bundle = self.bundle?;
        Some(now.boot.until(bundle.refresh_at).max(self.bundle_gate.opens_in(now)))
    }

    /// What a restart must not make it forget: to be stored.
    pub fn memory(&self) -> Memory {
        let waits = Waits {
            discovery: self.discovery_gate.asked_to_wait_until(),
            bundle: self.bundle_gate.asked_to_wait_until(),
            identity: self.identity_gate.asked_to_wait_until(),
        };
        Memory {
            waits,
            discovery_waits_because: waits.discovery.and_then(|_| self.discovery_gate.last_error().cloned()),
            waits_because: waits.identity.and_then(|_| self.identity_gate.last_error().cloned()),
            admission_pending: self.admission_pending,
            replace_lost_key: self.replace_lost_key,
        }
    }

    /// Whether an enrollment that is sent now may be answered with another identity than the one held: that has expired,
    /// or was answered `401` (miaf-v0 E9).
    pub fn may_be_renamed(&self, now: Now) -> bool {
        self.reauthenticate || !self.holds_valid_svid(now)
    }
}

impl Blocked {
    fn by(&self, request: Request) -> Option<&LastError> {
        match request {
            Request::Enroll => self.enroll.as_ref(),
            Request::Renew => self.renew.as_ref(),
        }
    }

    fn put(&mut self, request: Request, error: Option<LastError>) {
        match request {
            Request::Enroll => self.enroll = error,
            Request::Renew => self.renew = error,
        }
    }

    fn current_key_is_back(&mut self) {
        if std::mem::take(&mut self.enroll_without_current_key) {
            self.enroll = None;
        }
    }
}

#[cfg(test)]
mod tests;
