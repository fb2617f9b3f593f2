//! What to do next, and when. [`Lifecycle::step`] is a pure function of state, event, time and a random draw: it
//! returns at most one [`Action`] and the time of the next look. It does no I/O, reads no clock and knows no HTTP, so
//! the daemon, the property tests and a simulated fleet run the same code.
//!
//! The state is what is *held* (discovery, bundle, SVID, keys, an answer that waits to be adopted) and three
//! gates, one for each kind of work, that say when it may next be tried. From these, every step works out afresh
//! what is wanted, so no event can be lost and no wake-up forgotten: a lifecycle with nothing in flight always has
//! either work or a time to look again.

mod clock;
mod gate;
mod status;

use std::time::Duration;

pub use clock::KnownTime;
pub use gate::{Failure, LONGEST_RETRY_AFTER, LastError, Meaning, Report, Retry};
pub use status::State;

use crate::time::{BootTime, Now, Timestamp};
use gate::{Gate, Verdict};

/// The parts of the configuration that decide when things happen.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Renewal moment, as fractions of the lifetime (miaf-v0 R2).
    pub window: (f64, f64),
    /// Backoff between attempts (miaf-v0 R7).
    pub retry: Retry,
    /// Longest time between two looks at the bundle where the MIS gives no hint (miaf-v0 B4).
    pub bundle_refresh: Duration,
    /// Whether to ask with a new key at every renewal (miaf-v0 R4).
    pub rotate: bool,
}

/// What to carry out. Exactly one is under way at a time; its outcome comes back as an [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch or revalidate the discovery document (miaf-v0 D1).
    FetchDiscovery,
    /// Fetch or revalidate the trust bundle (miaf-v0 B4).
    FetchBundle,
    /// Generate a key and make it durable, before any request is sent with it (miaf-v0 E6).
    CreateKey,
    /// Send a request for an SVID and make the answer durable.
    Request(Request, KeyChoice),
    /// See whether the key of the SVID held can be used: its chip may have been replaced or cleared while the device was
    /// off.
    ProveKey,
    /// Judge the durable answer, and publish it if it is good.
    Adopt {
        /// The bundle has been fetched since the answer came: an unknown issuer is now a refusal.
        bundle_is_fresh: bool,
    },
}

/// The two ways to an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// With the factory certificate (miaf-v0 E).
    Enroll,
    /// With the SVID that is held (miaf-v0 R).
    Renew,
}

/// The key that a request is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChoice {
    /// The one made for the next SVID.
    Pending,
    /// The one of the SVID that is held.
    Current,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time has passed, or the wall clock was set: nothing else is known.
    Wake,
    /// The operator wants something.
    Told(Order),
    /// [`Action::FetchDiscovery`] ended.
    Discovery(Result<Discovered, Failure>),
    /// [`Action::FetchBundle`] ended.
    Bundle(Result<BundleFacts, Failure>),
    /// [`Action::CreateKey`] ended.
    KeyCreated(Result<(), Failure>),
    /// [`Action::ProveKey`] ended.
    KeyProven(Result<(), Failure>),
    /// [`Action::Request`] ended. `Ok`: an answer is durable.
    Answered(Result<(), Failure>),
    /// [`Action::Adopt`] ended. `Ok`: the SVID is published, and the pending key, if it was its key, is now current.
    Adopted(Result<SvidFacts, NotAdopted>),
}

/// What an operator can have done at once. No order makes the agent ask an MIS that wants to be left alone (miaf-v0 E8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Everything that was refused, or is waited for, is tried again; the wall clock is right as it is.
    Retry,
    /// The SVID is renewed now.
    Renew,
    /// As [`Retry`](Self::Retry), and should the key of the SVID held be lost, another takes its place.
    ReplaceKey,
}

/// What the lifecycle needs to know of a discovery document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// It differs from the one held before: a correction in the sense of miaf-v0 P2.
    pub changed: bool,
    /// Why no enrollment is possible under it, if so (miaf-v0 D5).
    pub cannot_enroll: Option<Report>,
    /// Why no renewal is possible under it, if so.
    pub cannot_renew: Option<Report>,
}

/// What the lifecycle needs to know of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleFacts {
    /// The MIS's wish for the next look.
    pub refresh_hint: Option<Duration>,
    /// Whether an anchor of it leads to the SVID held. `None` where none is held, or where the bundle is empty: then no
    /// other SVID would be better.
    pub vouches: Option<bool>,
}

/// What the lifecycle needs to know of an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidFacts {
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// The renewal moment drawn for it, where one was stored.
    pub renew_at: Option<Timestamp>,
    /// Whether its key was the pending one.
    pub key: KeyChoice,
    /// The key is of the kind that would be made now: in the TPM, say, where the configuration wants it there.
    pub key_fits: bool,
}

/// Why an answer was not adopted.
#[derive(Clone, Debug)]
pub enum NotAdopted {
    /// It becomes valid at this moment; it is kept until then (miaf-v0 E4).
    Early(Timestamp),
    /// The bundle held does not vouch for it; it is kept until the bundle has been fetched once more (miaf-v0 E4).
    UnknownIssuer,
    /// It could not be judged or published now (disk full, say); it is kept.
    Kept(Failure),
    /// It is not acceptable, and has been discarded. What was held stays.
    Refused(Failure),
}

/// What was found on disk at start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// A cached discovery document.
    pub discovery: Option<Discovered>,
    /// Whether there is a cached bundle.
    pub bundle: bool,
    /// The SVID held.
    pub svid: Option<SvidFacts>,
    /// Whether a key is pending: it may already have been sent.
    pub pending_key: bool,
    /// Whether an answer waits to be adopted.
    pub answer: bool,
    /// What was to be remembered.
    pub memory: Memory,
    /// What is known of the time.
    pub time: KnownTime,
}

/// What a restart must not make the lifecycle forget, beside what is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Waits that the MIS asked for and that are not over (miaf-v0 E8).
    pub waits: Waits,
    /// Why enrollment or renewal has to wait.
    pub waits_because: Option<LastError>,
    /// The device waits for the operator of the MIS to admit it (miaf-v0 E7).
    pub admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    pub replace_lost_key: bool,
}

/// Until when the MIS asked not to be asked again, by kind of work. Survives a restart (miaf-v0 E8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Discovery.
    pub discovery: Option<BootTime>,
    /// Bundle.
    pub bundle: Option<BootTime>,
    /// Enrollment and renewal.
    pub identity: Option<BootTime>,
}

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// To carry out now.
    pub action: Option<Action>,
    /// When to look again if nothing happens before. `None` only while an action is under way.
    pub wake_in: Option<Duration>,
}

/// A source of random numbers, uniform in `0.0..1.0`.
pub type Draw<'a> = &'a mut dyn FnMut() -> f64;

/// The state of one device's identity.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    policy: Policy,
    time: KnownTime,
    in_flight: Option<Action>,
    discovery: Option<Discovery>,
    discovery_gate: Gate,
    bundle: Option<HeldBundle>,
    bundle_gate: Gate,
    svid: Option<HeldSvid>,
    pending_key: Option<PendingKey>,
    answer: Option<Answer>,
    /// The MIS refused to bind a new key: ask with the existing one from now on (miaf-v0 R4).
    rotation_refused: bool,
    /// The SVID held was answered `401`: only an enrollment helps (miaf-v0 R6).
    reauthenticate: bool,
    identity_gate: Gate,
    key_gate: Gate,
    blocked: Blocked,
    admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    replace_lost_key: bool,
    /// From when on the last order counts.
    ordered_at: Option<BootTime>,
}

#[derive(Clone, Debug)]
struct Discovery {
    facts: Discovered,
    /// When it was read.
    read_at: Timestamp,
    /// From here on it is revalidated before the next request for an SVID.
    stale_at: BootTime,
    /// Something suggests that it is out of date: look now.
    doubted: bool,
}

#[derive(Clone, Copy, Debug)]
struct HeldBundle {
    refresh_at: BootTime,
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
}

#[derive(Clone, Copy, Debug)]
struct PendingKey {
    refused: bool,
}

/// An SVID that came and is not published yet.
#[derive(Clone, Copy, Debug)]
struct Answer {
    not_before: Option<Timestamp>,
    bundle: AnswerBundle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerBundle {
    /// Judge with the bundle held.
    AsHeld,
    /// Unknown issuer: fetch first.
    Wanted,
    /// Fetched since.
    Fetched,
}

impl Lifecycle {
    /// From what survived. Nothing happens before the first [`step`](Self::step).
    pub fn new(policy: Policy, restored: Restored, now: Now, draw: Draw<'_>) -> Self {
        let mut restored_gate = |wait| Gate::waiting_until(wait, &policy.retry, now, draw);
        let Memory { waits, waits_because, admission_pending, replace_lost_key } = restored.memory;
        let discovery_gate = restored_gate(waits.discovery);
        let bundle_gate = restored_gate(waits.bundle);
        let identity_gate = restored_gate(waits.identity).because_of(waits_because);
        let mut lifecycle = Self {
            policy,
            time: restored.time,
            in_flight: None,
            // A document from before the restart serves when the MIS cannot be reached, and is revalidated when it can.
            discovery: restored.discovery.map(|facts| Discovery {
                facts,
                read_at: now.wall,
                stale_at: now.boot,
                doubted: true,
            }),
            discovery_gate,
            bundle: restored.bundle.then_some(HeldBundle { refresh_at: now.boot }),
            bundle_gate,
            svid: None,
            pending_key: restored.pending_key.then_some(PendingKey { refused: false }),
            answer: restored.answer.then_some(Answer { not_before: None, bundle: AnswerBundle::AsHeld }),
            rotation_refused: false,
            reauthenticate: false,
            identity_gate,
            key_gate: Gate::default(),
            blocked: Blocked::default(),
            admission_pending,
            replace_lost_key,
            ordered_at: None,
        };
        lifecycle.svid = restored.svid.map(|facts| {
            // A moment that passed while the device was off means: at once (R2).
            let renew_at =
                facts.renew_at.unwrap_or_else(|| lifecycle.draw_renewal(facts.not_before, &facts, draw));
            HeldSvid { facts, renew_at, key: CurrentKey::Unproven, drawn_before: None }
        });
        lifecycle
    }

    /// An authenticated answer of the MIS has shown that it is this time.
    pub fn time_is_proven(&mut self, time: Timestamp, now: Now) {
        self.time.is_proven(time, now);
    }

    /// What is known of the time besides the wall clock: to be stored.
    pub fn known_time(&self) -> KnownTime {
        self.time
    }

    /// Takes in what happened and says what to do next.
    pub fn step(&mut self, event: Event, now: Now, draw: Draw<'_>) -> Step {
        self.take_in(event, now, draw);
        if self.in_flight.is_some() {
            return Step { action: None, wake_in: self.until_validity_changes(now) };
        }
        match self.next(now) {
            Next::Do(action) => {
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

    // ---- taking in what happened ----

    fn take_in(&mut self, event: Event, now: Now, draw: Draw<'_>) {
        let ended = match event {
            Event::Wake | Event::Told(_) => None,
            _ => self.in_flight.take(),
        };
        match event {
            Event::Wake => {}
            Event::Told(order) => self.told(order, now),
            Event::Discovery(outcome) => self.discovery_ended(outcome, now, draw),
            Event::Bundle(outcome) => self.bundle_ended(outcome, now, draw),
            Event::KeyCreated(Ok(())) => {
                self.pending_key = Some(PendingKey { refused: false });
                self.identity_gate.passed();
            }
            Event::KeyCreated(Err(failure)) => self.identity_failed(failure, now, draw),
            Event::KeyProven(outcome) => self.key_proven(outcome, now, draw),
            Event::Answered(Ok(())) => {
                self.admission_pending = false;
                self.identity_gate.passed();
                self.answer = Some(Answer { not_before: None, bundle: AnswerBundle::AsHeld });
            }
            Event::Answered(Err(failure)) => match ended {
                Some(Action::Request(request, key)) => self.refused(request, key, failure, now, draw),
                _ => self.identity_failed(failure, now, draw),
            },
            Event::Adopted(outcome) => self.adopt_ended(outcome, now, draw),
        }
    }

    fn told(&mut self, order: Order, now: Now) {
        // However often it is ordered: the MIS is not asked at the pace of a script.
        let from = match self.ordered_at {
            Some(last) if now.boot <= last => last,
            Some(last) => last.after(SHORTEST_BETWEEN_ORDERS).max(now.boot),
            None => now.boot,
        };
        self.ordered_at = Some(from);
        for gate in
            [&mut self.discovery_gate, &mut self.bundle_gate, &mut self.identity_gate, &mut self.key_gate]
        {
            gate.forgive(from, now);
        }
        self.is_corrected();
        self.reauthenticate = false; // both ways are open again
        if order == Order::Renew {
            if let Some(svid) = &mut self.svid {
                svid.renew_at = svid.renew_at.min(now.wall.after(now.boot.until(from)));
            }
            return;
        }
        self.time.is_vouched_for(now);
        if let (Order::ReplaceKey, Some(svid)) = (order, &mut self.svid) {
            self.replace_lost_key = true;
            if matches!(svid.key, CurrentKey::Works) {
                svid.key = CurrentKey::Unproven; // it did when it was last used
            }
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.doubted = true;
        }
        if let Some(bundle) = &mut self.bundle {
            bundle.refresh_at = bundle.refresh_at.min(from);
        }
    }

    /// What was refused for good may be asked once more (miaf-v0 P2).
    fn is_corrected(&mut self) {
        self.blocked = Blocked::default();
        self.rotation_refused = false;
        if let Some(pending) = &mut self.pending_key {
            pending.refused = false;
        }
    }

    fn key_proven(&mut self, outcome: Result<(), Failure>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(()) => {
                self.key_gate.succeeded();
                self.replace_lost_key = false; // there is nothing to replace any more
                if let Some(svid) = &mut self.svid {
                    svid.key = CurrentKey::Works;
                }
            }
            Err(failure) if failure.meaning == Meaning::CurrentKeyLost => self.current_key_lost(failure, now),
            Err(failure) => {
                let retry = self.identity_retry();
                self.key_gate.failed(failure, &retry, now, draw);
            }
        }
    }

    fn current_key_lost(&mut self, failure: Failure, now: Now) {
        self.key_gate.succeeded();
        self.key_gate.pause(BETWEEN_LOOKS_FOR_A_LOST_KEY, now); // the old chip may be put back
        if let Some(svid) = &mut self.svid {
            svid.key = CurrentKey::Lost(LastError { report: failure.report, at: now.wall, permanent: true });
        }
    }

    fn discovery_ended(&mut self, outcome: Result<Discovered, Failure>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(facts) => {
                self.discovery_gate.succeeded();
                // An MIS that answers in turn with two documents, and with 404 under both, is not asked in a circle.
                self.discovery_gate.pause(self.shortest_between_reads(), now);
                if facts.changed {
                    self.is_corrected(); // perhaps the MIS was
                    self.identity_gate.forgive(now.boot, now);
                    self.bundle_gate.forgive(now.boot, now);
                    if let Some(bundle) = &mut self.bundle {
                        bundle.refresh_at = now.boot; // it may name another address
                    }
                }
                let stale_at = now.boot.after(spread(self.policy.bundle_refresh, draw));
                self.discovery = Some(Discovery { facts, read_at: now.wall, stale_at, doubted: false });
            }
            Err(failure) => {
                let retry = self.poll_retry();
                self.discovery_gate.failed(failure, &retry, now, draw);
                // The last good document stays in use (miaf-v0 D4), and is asked after until the MIS answers.
                if let Some(discovery) = &mut self.discovery {
                    discovery.doubted = true;
                }
            }
        }
    }

    fn bundle_ended(&mut self, outcome: Result<BundleFacts, Failure>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(facts) => {
                self.bundle_gate.succeeded();
                let interval = spread(self.refresh_interval(facts), draw);
                self.bundle = Some(HeldBundle { refresh_at: now.boot.after(interval) });
                self.hasten_renewal(facts, now, draw);
                if let Some(Answer { bundle: wanted @ AnswerBundle::Wanted, .. }) = &mut self.answer {
                    *wanted = AnswerBundle::Fetched;
                }
            }
            Err(failure) => {
                if failure.meaning == Meaning::NotFound
                    && let Some(discovery) = &mut self.discovery
                {
                    discovery.doubted = true;
                }
                let retry = self.poll_retry();
                self.bundle_gate.failed(failure, &retry, now, draw);
            }
        }
    }

    /// An SVID that no anchor leads to any more is of no use: it is renewed soon, and not by the whole fleet at once.
    fn hasten_renewal(&mut self, facts: BundleFacts, now: Now, draw: Draw<'_>) {
        let within = self.identity_retry().cap;
        let Some(svid) = &mut self.svid else { return };
        match (facts.vouches, svid.drawn_before) {
            (Some(false), None) => {
                svid.drawn_before = Some(svid.renew_at);
                svid.renew_at = svid.renew_at.min(now.wall.after(within.mul_f64(draw())));
            }
            // Servers that do not agree yet, most likely: there is no hurry after all.
            (Some(true), Some(drawn)) => {
                svid.renew_at = drawn;
                svid.drawn_before = None;
            }
            _ => {}
        }
    }

    /// A request for an SVID did not get one: the table of miaf-v0 P.
    fn refused(&mut self, request: Request, key: KeyChoice, failure: Failure, now: Now, draw: Draw<'_>) {
        match failure.meaning {
            Meaning::Pending => self.admission_pending = true,
            // The MIS has said nothing of it.
            Meaning::Transient | Meaning::Offline | Meaning::Local => {}
            _ => self.admission_pending = false,
        }
        match failure.meaning {
            Meaning::KeyRotationRefused => {
                if key == KeyChoice::Pending {
                    self.rotation_refused = true;
                    if let Some(pending) = &mut self.pending_key {
                        pending.refused = true;
                    }
                }
                // The existing key, if there is one that was not refused itself, is tried without delay (R4).
                if key == KeyChoice::Pending && self.svid.is_some() && !self.key_is_lost() {
                    self.identity_gate.noted(failure, now, draw);
                } else {
                    self.identity_failed_for(Some(request), failure, now, draw);
                }
            }
            Meaning::NotAuthenticated if request == Request::Renew && self.may_enroll() => {
                self.reauthenticate = true; // R6: enroll again, now
                self.identity_gate.noted(failure, now, draw);
            }
            // The factory certificate does not help: perhaps the 401 at renewal was not the MIS's. While the SVID is
            // good, renewal and enrollment are tried in turn, slowly (R7).
            Meaning::NotAuthenticated
            | Meaning::Slow
            | Meaning::Permanent
            | Meaning::NotFound
            | Meaning::Transient
                if self.reauthenticates_early(now) =>
            {
                self.reauthenticate = false;
                self.identity_failed_for(Some(request), failure, now, draw);
            }
            Meaning::Local if self.reauthenticates_early(now) => {
                self.reauthenticate = false;
                let slowly = Failure { meaning: Meaning::Slow, ..failure };
                self.identity_failed_for(Some(request), slowly, now, draw);
            }
            Meaning::CurrentKeyLost => {
                self.identity_gate.passed(); // the MIS was not asked
                self.current_key_lost(failure, now);
            }
            Meaning::PendingKeyLost => {
                self.pending_key = None; // whatever was certified for it, no one can use
                self.identity_failed(failure, now, draw);
            }
            Meaning::NotFound => {
                if let Some(discovery) = &mut self.discovery {
                    discovery.doubted = true;
                }
                self.identity_failed_for(Some(request), failure, now, draw);
            }
            _ => self.identity_failed_for(Some(request), failure, now, draw),
        }
    }

    fn identity_failed(&mut self, failure: Failure, now: Now, draw: Draw<'_>) {
        self.identity_failed_for(None, failure, now, draw);
    }

    fn identity_failed_for(&mut self, request: Option<Request>, failure: Failure, now: Now, draw: Draw<'_>) {
        let retry = self.identity_retry();
        let verdict = self.identity_gate.failed(failure, &retry, now, draw);
        if let (Verdict::Blocked, Some(request)) = (verdict, request) {
            self.blocked.put(request, self.identity_gate.last_error().cloned());
        }
    }

    fn adopt_ended(&mut self, outcome: Result<SvidFacts, NotAdopted>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(facts) => {
                if facts.key == KeyChoice::Pending {
                    self.pending_key = None;
                }
                self.answer = None;
                self.reauthenticate = false;
                self.blocked = Blocked::default();
                self.identity_gate.succeeded();
                self.identity_gate.pause(SHORTEST_BETWEEN_ISSUES, now);
                self.key_gate.succeeded();
                self.replace_lost_key = false;
                let mut renew_at = self.draw_renewal(facts.not_before, &facts, draw);
                if renew_at <= now.wall {
                    // Issued late in its own lifetime: what is left counts, or each renewal would ask for the next.
                    renew_at = self.draw_renewal(now.wall, &facts, draw);
                }
                self.svid = Some(HeldSvid { facts, renew_at, key: CurrentKey::Works, drawn_before: None });
            }
            Err(NotAdopted::Early(not_before)) => {
                if let Some(answer) = &mut self.answer {
                    answer.not_before = Some(not_before);
                }
            }
            Err(NotAdopted::UnknownIssuer) => {
                if let Some(answer) = &mut self.answer {
                    answer.bundle = AnswerBundle::Wanted;
                }
            }
            Err(NotAdopted::Kept(failure)) => self.identity_failed(failure, now, draw),
            Err(NotAdopted::Refused(failure)) => {
                self.answer = None;
                self.identity_failed(failure, now, draw);
            }
        }
    }

    /// A moment in the window of the time from `from` to the end of the SVID (miaf-v0 R2).
    fn draw_renewal(&self, from: Timestamp, facts: &SvidFacts, draw: Draw<'_>) -> Timestamp {
        let (opens, closes) = self.policy.window;
        from.after(from.until(facts.not_after).mul_f64(opens + (closes - opens) * draw()))
    }

    // ---- working out what is wanted ----

    fn next(&self, now: Now) -> Next {
        if !self.time.allows(now) {
            return Next::In(BETWEEN_LOOKS_AT_THE_CLOCK).or_first(Some(self.look_for_the_time(now)));
        }
        let identity = self.identity_work(now);
        let work = [
            self.discovery_work(&identity, now),
            self.bundle_work(now),
            self.key_work(now),
            // An SVID is asked for only under a discovery document and a bundle to judge it by (D1, E4).
            (self.discovery.is_some() && self.bundle.is_some()).then_some(identity).flatten(),
        ];
        work.into_iter().fold(Next::In(LONGEST_SLEEP), Next::or_first)
    }

    fn discovery_work(&self, identity: &Option<(Duration, Action)>, now: Now) -> Option<(Duration, Action)> {
        let due_in = match &self.discovery {
            None => Duration::ZERO,
            Some(discovery) if discovery.doubted => Duration::ZERO,
            Some(discovery) => {
                let stale_in = now.boot.until(discovery.stale_at);
                let about_to_ask = matches!(identity, Some((Duration::ZERO, Action::Request(..))));
                // While something is refused for good, a changed document is the way out (P2).
                let waits_for_change = self.is_refused_for_good(now);
                if about_to_ask || waits_for_change { stale_in } else { return None }
            }
        };
        Some((due_in.max(self.discovery_gate.opens_in(now)), Action::FetchDiscovery))
    }

    /// While the wall clock cannot be believed, only the MIS is asked: the time comes with every answer.
    fn look_for_the_time(&self, now: Now) -> (Duration, Action) {
        let due_in = match &self.discovery {
            Some(discovery) if !discovery.doubted => now.boot.until(discovery.stale_at),
            _ => Duration::ZERO,
        };
        (due_in.max(self.discovery_gate.opens_in(now)), Action::FetchDiscovery)
    }

    fn bundle_work(&self, now: Now) -> Option<(Duration, Action)> {
        self.discovery.as_ref()?;
        let wanted_now = matches!(&self.answer, Some(a) if a.bundle == AnswerBundle::Wanted);
        let due_in = match self.bundle {
            Some(bundle) if !wanted_now => now.boot.until(bundle.refresh_at),
            _ => Duration::ZERO,
        };
        Some((due_in.max(self.bundle_gate.opens_in(now)), Action::FetchBundle))
    }

    fn identity_work(&self, now: Now) -> Option<(Duration, Action)> {
        if let Some(answer) = self.answer {
            let early = answer.not_before.map_or(Duration::ZERO, |at| now.wall.until(at));
            let adopt = Action::Adopt { bundle_is_fresh: answer.bundle == AnswerBundle::Fetched };
            return (answer.bundle != AnswerBundle::Wanted)
                .then(|| (early.max(self.identity_gate.opens_in(now)), adopt));
        }
        if self.is_refused_for_good(now) || self.has_no_key(now) {
            return None;
        }
        let request = self.wanted_request(now);
        let due_in = self.request_due_in(now);
        let action = match self.key_choice(request) {
            Some(key) => Action::Request(request, key),
            None => Action::CreateKey,
        };
        Some((due_in.max(self.identity_gate.opens_in(now)), action))
    }

    /// How long until the next SVID is asked for, if nothing stands in the way.
    fn request_due_in(&self, now: Now) -> Duration {
        match (&self.svid, self.wanted_request(now)) {
            // A key that is not where the configuration wants it is not kept for years (K1).
            (Some(svid), Request::Renew) if !self.key_is_to_go(svid) => now.wall.until(svid.renew_at),
            _ => Duration::ZERO,
        }
    }

    /// At start, and from time to time while it is lost.
    fn key_work(&self, now: Now) -> Option<(Duration, Action)> {
        let svid = self.svid.as_ref()?;
        let known = matches!(svid.key, CurrentKey::Works);
        (!known).then(|| (self.key_gate.opens_in(now), Action::ProveKey))
    }

    fn wanted_request(&self, now: Now) -> Request {
        let replaces_key = self.replace_lost_key && self.key_is_lost();
        let reauthenticates = self.reauthenticate && self.may_enroll();
        if self.holds_valid_svid(now) && !reauthenticates && !replaces_key {
            Request::Renew
        } else {
            Request::Enroll
        }
    }

    /// An enrollment is wanted although the SVID is still good.
    fn reauthenticates_early(&self, now: Now) -> bool {
        self.reauthenticate && self.holds_valid_svid(now)
    }

    fn may_enroll(&self) -> bool {
        self.blocked.enroll.is_none() && self.ruled_out(Request::Enroll).is_none()
    }

    fn holds_valid_svid(&self, now: Now) -> bool {
        self.svid.as_ref().is_some_and(|svid| now.wall <= svid.facts.not_after)
    }

    fn key_is_lost(&self) -> bool {
        self.svid.as_ref().is_some_and(|svid| matches!(svid.key, CurrentKey::Lost(_)))
    }

    /// A renewal is all that is allowed, and there is no key for it. The operator may allow another; and when the SVID
    /// has expired, an enrollment is due anyway (miaf-v0 R6).
    fn has_no_key(&self, now: Now) -> bool {
        self.key_is_lost() && self.wanted_request(now) == Request::Renew
    }

    /// `None`: a new one has to be made first.
    fn key_choice(&self, request: Request) -> Option<KeyChoice> {
        match (self.pending_key, &self.svid) {
            // It may have been certified by an answer that was lost: asked for again before anything else (E6).
            (Some(PendingKey { refused: false }), _) => Some(KeyChoice::Pending),
            (_, Some(svid)) if !self.key_is_lost() => {
                let keep = svid.facts.key_fits && (!self.policy.rotate || request == Request::Enroll);
                (keep || self.rotation_refused).then_some(KeyChoice::Current)
            }
            (Some(_), _) => Some(KeyChoice::Pending),
            (None, _) => None,
        }
    }

    fn key_is_to_go(&self, svid: &HeldSvid) -> bool {
        !svid.facts.key_fits && !self.rotation_refused
    }

    /// Why the request that is wanted now cannot be made before something is corrected.
    fn is_refused_for_good(&self, now: Now) -> bool {
        let request = self.wanted_request(now);
        self.blocked.by(request).is_some() || self.ruled_out(request).is_some()
    }

    /// Why the discovery document rules the request out (miaf-v0 D5).
    fn ruled_out(&self, request: Request) -> Option<&Report> {
        let facts = &self.discovery.as_ref()?.facts;
        match request {
            Request::Enroll => facts.cannot_enroll.as_ref(),
            Request::Renew => facts.cannot_renew.as_ref(),
        }
    }

    /// When the SVID held becomes valid, or expires: people and programs are told of both.
    fn until_validity_changes(&self, now: Now) -> Option<Duration> {
        let svid = self.svid.as_ref().filter(|_| self.time.allows(now))?;
        let SvidFacts { not_before, not_after, .. } = svid.facts;
        let changes = [not_before, not_after.after(Duration::from_millis(1))];
        changes.into_iter().map(|at| now.wall.until(at)).find(|rest| !rest.is_zero())
    }

    fn refresh_interval(&self, facts: BundleFacts) -> Duration {
        match facts.refresh_hint {
            Some(hint) => hint.clamp(SHORTEST_REFRESH, LONGEST_REFRESH),
            None => self.policy.bundle_refresh,
        }
    }

    /// Discovery and bundle are polled, so a failure never makes the polls rarer than they are on a good day.
    fn poll_retry(&self) -> Retry {
        let cap = self.policy.retry.cap.min(self.policy.bundle_refresh);
        Retry { base: self.policy.retry.base.min(cap), cap }
    }

    /// A document that was read just now is not read again on a mere doubt.
    fn shortest_between_reads(&self) -> Duration {
        SHORTEST_BETWEEN_READS.min(self.poll_retry().cap).min(self.identity_retry().cap)
    }

    /// Never above a twentieth of the lifetime, so that a short-lived SVID gets its tries too (miaf-v0 R7).
    fn identity_retry(&self) -> Retry {
        let Some(svid) = &self.svid else { return self.policy.retry };
        let twentieth = svid.facts.not_before.until(svid.facts.not_after) / 20;
        let cap = self.policy.retry.cap.min(twentieth.max(Duration::from_secs(1)));
        Retry { base: self.policy.retry.base.min(cap), cap }
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
}

/// Up to a fifth earlier than agreed, at random: a fleet that was switched on in one second drifts apart.
fn spread(interval: Duration, draw: Draw<'_>) -> Duration {
    interval.mul_f64(1.0 - draw() / 5.0)
}

/// Bounds on the refresh hint of the MIS: a slip of the pen there must neither hammer it nor freeze the anchors.
const SHORTEST_REFRESH: Duration = Duration::from_secs(5);
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// Between two successful looks at the discovery document, unless the lifetimes here are too short for that.
const SHORTEST_BETWEEN_READS: Duration = Duration::from_secs(60);

/// However short-lived the SVIDs of an MIS are, it is left alone this long after each.
const SHORTEST_BETWEEN_ISSUES: Duration = Duration::from_secs(5);

/// Between two orders of the operator's: a script may give them.
const SHORTEST_BETWEEN_ORDERS: Duration = Duration::from_secs(10);

/// The old chip may have been put back.
const BETWEEN_LOOKS_FOR_A_LOST_KEY: Duration = Duration::from_secs(3600);

/// Somebody may have set the clock without a jump, or said that it is right.
const BETWEEN_LOOKS_AT_THE_CLOCK: Duration = Duration::from_secs(60);

/// Nothing sleeps longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);

enum Next {
    Do(Action),
    In(Duration),
}

impl Next {
    fn or_first(self, work: Option<(Duration, Action)>) -> Self {
        match (self, work) {
            (Self::In(_), Some((Duration::ZERO, action))) => Self::Do(action),
            (Self::In(wait), Some((sooner, _))) => Self::In(wait.min(sooner)),
            (chosen, _) => chosen,
        }
    }
}

#[cfg(test)]
mod tests;
