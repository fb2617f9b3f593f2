//! Someone who watches a device through any history, and remembers what it must not forget.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Action::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::*;
use super::histories::*;

/// When the agent was built. A wall clock that is off can be before that.
const BUILT: Timestamp = Timestamp::from_secs(1_800_000_000 - 3 * 3600);

/// A device, the disk beside it, and someone who remembers what it must not forget.
pub(super) struct Checker {
    pub(super) lifecycle: Lifecycle,
    pub(super) now: Now,
    pub(super) wall_off: i64,
    pub(super) luck: f64,
    pub(super) lifetime: Duration,
    pub(super) doing: Option<Action>,
    pub(super) wake_in: Option<Duration>,
    // What is on disk.
    pub(super) discovery: Option<DiscoveryFacts>,
    pub(super) bundle: Option<BundleFacts>,
    pub(super) svid: Option<SvidFacts>,
    pub(super) pending_key: bool,
    pub(super) answer: Option<KeyChoice>,
    /// An issuer of it has expired, and there has been no other bundle since.
    pub(super) answer_is_of_no_use: bool,
    // What must not be forgotten.
    pub(super) asked_until: BTreeMap<&'static str, BootTime>,
    pub(super) pending_refused: bool,
    pub(super) refused_for_good: Vec<Request>,
    pub(super) answered_401: bool,
    /// The chip that the key is in is away; whether the agent knows it, and whether another key may take its place.
    pub(super) chip_away: bool,
    pub(super) known_lost: bool,
    pub(super) may_replace: bool,
    /// Since the start it has been seen whether the key of the SVID held can be used.
    pub(super) key_was_tried: bool,
    /// It is at least this time, by the MIS's word or by the operator's.
    pub(super) floor: Timestamp,
    pub(super) vouched: bool,
    /// Times that the MIS showed in a row, that agree with one another and contradict this device's clock.
    pub(super) contradictions: Vec<(BootTime, Timestamp)>,
    pub(super) early: Option<Timestamp>,
    pub(super) at_this_moment: u32,
    pub(super) ever_asked_to_wait: bool,
    /// Where it stood after the last step, and every way from one state to another that was seen.
    pub(super) stood: Option<State>,
    pub(super) ways: BTreeSet<(&'static str, &'static str)>,
}

impl Checker {
    pub(super) fn new((held, pending_key, answer): (bool, bool, bool), lifetime: Duration) -> Self {
        let device = Device::fresh();
        let mut watch = Self {
            lifecycle: device.lifecycle,
            now: device.now,
            wall_off: 0,
            luck: 0.5,
            lifetime,
            doing: None,
            wake_in: None,
            discovery: held.then(document),
            bundle: held.then_some(facts(None)),
            svid: held.then(|| svid(START, lifetime, Current)),
            pending_key,
            answer: (answer && pending_key).then_some(Pending),
            answer_is_of_no_use: false,
            asked_until: BTreeMap::new(),
            pending_refused: false,
            refused_for_good: Vec::new(),
            answered_401: false,
            chip_away: false,
            known_lost: false,
            may_replace: false,
            key_was_tried: false,
            floor: BUILT,
            vouched: false,
            contradictions: Vec::new(),
            early: None,
            at_this_moment: 0,
            ever_asked_to_wait: false,
            stood: None,
            ways: BTreeSet::new(),
        };
        watch.restarts(Restart::OfTheAgent);
        watch
    }

    pub(super) fn takes(&mut self, turn: Turn) {
        self.luck = turn.luck;
        if let Some(off) = turn.reply.wall_off {
            self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() + (off - self.wall_off) * 1000);
            self.wall_off = off;
        }
        match (turn.passes, self.wake_in) {
            (Passes::Some(time), _) => self.passes(time),
            (Passes::UntilWakeUp, Some(wake_in)) if self.doing.is_none() => self.passes(wake_in),
            _ => {}
        }
        self.now.synchronised = turn.synchronised.unwrap_or(self.now.synchronised);
        if let Some(restart) = turn.restart {
            return self.restarts(restart);
        }
        self.chip_away = turn.chip.unwrap_or(self.chip_away);
        if let Some(off) = turn.proof {
            let true_time = self.now.wall.as_millis() - self.wall_off * 1000;
            self.is_proven(Timestamp::from_millis(true_time + off * 1000));
        }
        if let Some(order) = turn.order {
            self.orders(order);
        }
        let event = match self.doing.clone() {
            // Someone looks while it works: it must not begin a second thing.
            Some(_) if matches!(turn.passes, Passes::Some(_)) => Event::Wake,
            Some(action) => self.event(&action, &turn.reply),
            None => Event::Wake,
        };
        self.steps(event);
    }

    pub(super) fn is_proven(&mut self, time: Timestamp) {
        let (behind, ahead) = (time.until(self.now.wall), self.now.wall.until(time));
        let is_near = behind.max(ahead) <= secs(600);
        let believed = self.believes();
        let mut counts = is_near || (!believed && !ahead.is_zero());
        let is_news = is_near || !believed || !(ahead.is_zero() || self.now.synchronised || self.vouched);
        if is_news && !counts {
            // As if nobody had a boot clock: a repetition is one within the tolerance of where it should be by now.
            let agrees = |(at, before): &(BootTime, Timestamp)| {
                let due = before.after(at.until(self.now.boot));
                at.until(self.now.boot) < secs(600) && due.until(time).max(time.until(due)) <= secs(600)
            };
            if !self.contradictions.last().is_some_and(agrees) {
                self.contradictions.clear();
            }
            self.contradictions.push((self.now.boot, time));
            counts = self.contradictions.len() >= 3;
        } else {
            self.contradictions.clear();
        }
        if counts {
            self.contradictions.clear();
            let agrees = self.now.wall.after(secs(600)) >= BUILT.max(time);
            if agrees || !self.vouched {
                (self.floor, self.vouched) = (BUILT.max(time), false);
            }
        }
        let shown = self.lifecycle.time_is_shown(time, self.now);
        assert_eq!(
            shown == TimeVerdict::Counts,
            counts,
            "one response against this device's clock is not enough"
        );
        assert_eq!(self.lifecycle.believes(self.now), self.believes());
    }

    pub(super) fn orders(&mut self, order: Command) {
        self.refused_for_good.clear(); // a correction (P2)
        self.pending_refused = false;
        self.at_this_moment = 0;
        self.answered_401 &= self.known_lost;
        if order != Command::Renew && !self.believes() {
            (self.floor, self.vouched) = (self.now.wall, true);
        }
        self.may_replace |= order == Command::ReplaceKey && self.svid.is_some();
        self.steps(Event::Command(order));
    }

    pub(super) fn passes(&mut self, time: Duration) {
        if !time.is_zero() {
            self.at_this_moment = 0;
        }
        self.now = later(self.now, time);
    }

    pub(super) fn restarts(&mut self, restart: Restart) {
        let mut memory = self.lifecycle.memory();
        if let Restart::OfTheMachine = restart {
            self.reboots(&mut memory.waits);
        }
        let waits = memory.waits;
        for (kind, kept) in
            [("discovery", waits.discovery), ("bundle", waits.bundle), ("identity", waits.identity)]
        {
            if self.asked_until.get(kind).is_some_and(|until| *until > self.now.boot) {
                assert_eq!(kept.as_ref(), self.asked_until.get(kind), "the wait for {kind} is kept (E8)");
            }
        }
        let restored = Restored {
            discovery: self.discovery.clone().map(|facts| DiscoveryFacts { changed: false, ..facts }),
            bundle: self.bundle.is_some(),
            bundle_refresh_hint: self.bundle.and_then(|bundle| bundle.refresh_hint),
            bundle_is_empty: self.bundle.is_some_and(|bundle| bundle.is_empty),
            svid: self.svid.clone().map(|facts| SvidFacts {
                renew_at: self.lifecycle.renew_at(),
                key: Current,
                ..facts
            }),
            pending_key: self.pending_key,
            answer: self.answer.is_some(),
            memory,
            time: KnownTime { built: BUILT, ..self.lifecycle.known_time() },
        };
        (self.known_lost, self.key_was_tried) = (false, self.svid.is_none());
        // A restart is a correction (P2), and what only memory knew is asked anew.
        (self.pending_refused, self.answered_401, self.early) = (false, false, None);
        self.contradictions.clear();
        self.answer_is_of_no_use = false; // judged anew
        self.refused_for_good.clear();
        (self.doing, self.stood) = (None, None);
        let luck = self.luck;
        self.lifecycle = Lifecycle::new(policy(), restored, self.now, &mut || luck);
        self.steps(Event::Wake);
    }

    /// Waits end on the boot clock, which begins anew.
    pub(super) fn reboots(&mut self, waits: &mut Waits) {
        let booted = BootTime::from_millis(60_000);
        let before = std::mem::replace(&mut self.now.boot, booted);
        let anew = |until: &mut BootTime| *until = booted.after(before.until(*until));
        [&mut waits.discovery, &mut waits.bundle, &mut waits.identity].into_iter().flatten().for_each(anew);
        self.asked_until.values_mut().for_each(anew);
        self.now.synchronised = false;
    }

    pub(super) fn believes(&self) -> bool {
        self.now.synchronised || self.now.wall.after(secs(600)) >= self.floor
    }

    pub(super) fn event(&mut self, action: &Action, reply: &Reply) -> Event {
        let of_pending_key = matches!(action, Action::Request(_, Pending));
        let failed = match reply.kind {
            Kind::Fails(FailureKind::PendingKeyLost, _) if !of_pending_key => {
                Some(failure(FailureKind::Local, None))
            }
            Kind::Fails(kind, wait) => Some(failure(kind, wait.filter(|_| !asks_nobody(kind)))),
            _ => None,
        };
        match action {
            FetchDiscovery => Event::Discovery(match failed {
                Some(failure) => {
                    self.remember_wait("discovery", &failure);
                    Err(failure)
                }
                None => {
                    let changed = reply.changed || self.discovery.is_none();
                    let facts = match self.discovery.clone().filter(|_| !changed) {
                        Some(facts) => DiscoveryFacts { changed, ..facts },
                        None => DiscoveryFacts {
                            changed,
                            cannot_enroll: (reply.cannot_enroll || reply.cannot_renew).then(report),
                            cannot_renew: reply.cannot_renew.then(report),
                        },
                    };
                    if changed {
                        self.refused_for_good.clear();
                        self.pending_refused = false;
                    }
                    self.discovery = Some(facts.clone());
                    Ok(facts)
                }
            }),
            FetchBundle => Event::Bundle(match failed {
                Some(failure) => {
                    self.remember_wait("bundle", &failure);
                    Err(failure)
                }
                None => {
                    let lasts = if reply.ends_sooner { self.lifetime / 2 } else { self.lifetime };
                    if let Some(svid) = &mut self.svid {
                        svid.not_after = svid.not_before.after(lasts);
                    }
                    self.answer_is_of_no_use &= !reply.changed;
                    let facts = BundleFacts {
                        refresh_hint: reply.refresh_hint,
                        vouches: reply.vouches,
                        is_empty: reply.vouches.is_none(),
                        is_new: reply.changed,
                        svid_ends: self.svid.as_ref().map(|svid| svid.not_after),
                        anchor_changes: reply.vouches.map(|_| self.now.wall.after(self.lifetime)),
                    };
                    self.bundle = Some(facts);
                    Ok(facts)
                }
            }),
            CreateKey if failed.is_some() => Event::KeyCreated(Err(failure(FailureKind::Local, None))),
            CreateKey => {
                (self.pending_key, self.pending_refused) = (true, false);
                key_created()
            }
            ProveKey => Event::KeyProven(match failed {
                _ if self.chip_away => {
                    self.known_lost = true;
                    Err(failure(FailureKind::CurrentKeyLost, None))
                }
                Some(_) => Err(failure(FailureKind::Local, None)),
                None => {
                    (self.known_lost, self.may_replace) = (false, false);
                    Ok(())
                }
            }),
            Action::Request(Renew, _) | Action::Request(_, Current) if self.chip_away => {
                self.known_lost = true;
                Event::Issued(Err(failure(FailureKind::CurrentKeyLost, None)))
            }
            Action::Request(request, key) => Event::Issued(match failed {
                Some(failure) => {
                    if failure.kind == FailureKind::PendingKeyLost {
                        (self.pending_key, self.pending_refused) = (false, false);
                    }
                    self.remember_wait("identity", &failure);
                    self.remember_refusal(*request, *key, failure.kind);
                    Err(failure)
                }
                None => {
                    (self.answer, self.answer_is_of_no_use, self.early) = (Some(*key), false, None);
                    Ok(())
                }
            }),
            Action::Adopt { bundle_is_fresh } => Event::Adopted(match reply.kind {
                Kind::Early(wait) => {
                    let not_before = self.now.wall.after(secs(wait));
                    self.early = Some(not_before);
                    Err(NotAdopted::Early(not_before))
                }
                Kind::UnknownIssuer | Kind::IssuerExpired if !bundle_is_fresh => {
                    Err(NotAdopted::UnknownIssuer)
                }
                Kind::IssuerExpired => {
                    self.answer_is_of_no_use = true;
                    Err(NotAdopted::IssuerExpired(failure(FailureKind::Slow, None)))
                }
                Kind::UnknownIssuer | Kind::Refused => {
                    (self.answer, self.early) = (None, None);
                    Err(NotAdopted::Refused(failure(FailureKind::Slow, None)))
                }
                Kind::Fails(..) => Err(NotAdopted::Kept(failure(FailureKind::Local, None))),
                Kind::Good => Ok(self.adopts()),
            }),
        }
    }

    pub(super) fn adopts(&mut self) -> SvidFacts {
        let key = self.answer.take().unwrap();
        self.early = None;
        if key == Pending {
            self.pending_key = false;
        }
        self.answered_401 = false;
        self.chip_away &= key == Current;
        (self.known_lost, self.may_replace) = (false, false);
        self.refused_for_good.clear();
        let facts = svid(Timestamp::from_millis(self.now.wall.as_millis() - 30_000), self.lifetime, key);
        self.svid = Some(facts.clone());
        facts
    }

    pub(super) fn remember_wait(&mut self, kind: &'static str, failure: &Failure) {
        if let Some(wait) = failure.retry_after {
            self.asked_until.insert(kind, self.now.boot.after(wait.min(LONGEST_RETRY_AFTER)));
            self.ever_asked_to_wait |= !wait.is_zero();
        }
    }

    pub(super) fn remember_refusal(&mut self, request: Request, key: KeyChoice, kind: FailureKind) {
        let good = self.svid.as_ref().is_some_and(|svid| self.now.wall <= svid.not_after);
        let goes_on = matches!(
            kind,
            FailureKind::Pending
                | FailureKind::Offline
                | FailureKind::KeyRotationRefused
                | FailureKind::PendingKeyLost
        );
        if kind == FailureKind::NotAuthenticated && request == Renew && self.may_enroll() {
            self.answered_401 = true;
        } else if self.answered_401 && good && !goes_on && !self.known_lost {
            self.answered_401 = false; // neither way helps while the SVID is good: they are tried in turn (R7)
        }
        match kind {
            FailureKind::Permanent => self.refused_for_good.push(request),
            FailureKind::KeyRotationRefused => {
                self.pending_refused |= key == Pending;
                if key == Current || self.svid.is_none() {
                    self.refused_for_good.push(request);
                }
            }
            _ => {}
        }
    }

    pub(super) fn may_enroll(&self) -> bool {
        let listed = self.discovery.as_ref().is_none_or(|facts| facts.cannot_enroll.is_none());
        listed && !self.refused_for_good.contains(&Enroll)
    }

    pub(super) fn steps(&mut self, event: Event) {
        let was_doing = self.doing.take().filter(|_| matches!(event, Event::Wake | Event::Command(_)));
        let luck = self.luck;
        let step = self.lifecycle.step(event, self.now, &mut || luck);
        let stands = self.lifecycle.state(self.now);
        if let Some(stood) = self.stood.replace(stands).filter(|stood| *stood != stands) {
            self.ways.insert((stood.as_str(), stands.as_str()));
        }
        match (&was_doing, &step.action) {
            (Some(_), None) => self.doing = was_doing,
            (Some(doing), Some(action)) => panic!("{action:?} begins while {doing:?} is under way"),
            (None, Some(action)) => {
                self.judges(action);
                self.doing = Some(action.clone());
            }
            (None, None) => {
                let wake_in = step.wake_in.expect("without an action there is a time to look again");
                assert!(!wake_in.is_zero(), "a look that finds nothing to do is not repeated at once");
                assert!(wake_in <= DAY);
            }
        }
        self.wake_in = step.wake_in;
        let (state, error) = (self.lifecycle.state(self.now), self.lifecycle.last_error(self.now));
        if state == State::Blocked {
            let (error, _) = error.expect("what blocks is shown");
            assert!(error.permanent, "{error:?} does not block");
        } else if let Some((_, again)) = error {
            assert!(again.is_some(), "an error without another attempt is shown as such");
        }
    }

    pub(super) fn judges(&mut self, action: &Action) {
        let valid = self.svid.as_ref().is_some_and(|svid| self.now.wall <= svid.not_after);
        assert!(*action == FetchDiscovery || self.believes(), "{action:?} by a clock that cannot be right");
        let kind = match action {
            FetchDiscovery => "discovery",
            ProveKey => {
                self.key_was_tried = true;
                return;
            }
            FetchBundle => "bundle",
            Action::Request(..) => "identity",
            CreateKey => {
                assert!(!self.pending_key, "a pending key is never replaced (E6)");
                return;
            }
            Action::Adopt { .. } => {
                assert!(self.answer.is_some() && !self.answer_is_of_no_use, "judged as before");
                assert!(self.early.is_none_or(|at| at <= self.now.wall), "kept until its time (E4)");
                return;
            }
        };
        self.at_this_moment += 1;
        assert!(self.at_this_moment <= 12, "the MIS is asked in a circle");
        if let Some(until) = self.asked_until.get(kind) {
            assert!(*until <= self.now.boot, "{action:?} before Retry-After has elapsed (E8)");
        }
        let Action::Request(request, key) = action else { return };
        assert!(self.key_was_tried, "nothing is asked for before the key held was tried");
        assert!(
            self.answer.is_none() || self.answer_is_of_no_use,
            "an answer is judged before another is asked for"
        );
        assert!(
            !self.refused_for_good.contains(request),
            "{request:?} is repeated without a correction (P2)"
        );
        assert!(self.bundle.is_some_and(|bundle| !bundle.is_empty), "nothing to judge the answer by");
        let facts = self.discovery.as_ref().expect("nothing is asked for before discovery (D1)");
        match request {
            Enroll => {
                let may_be_renamed = !valid || self.answered_401;
                assert_eq!(self.lifecycle.may_be_renamed(self.now), may_be_renamed, "E9");
                let replaces_key = self.known_lost && self.may_replace;
                assert!(may_be_renamed || replaces_key, "a valid SVID is renewed (R2)");
                assert!(facts.cannot_enroll.is_none(), "not listed (D5)");
            }
            Renew => {
                let only_enrollment = self.answered_401 && self.may_enroll();
                assert!(valid && !only_enrollment, "only an enrollment helps (R6)");
                assert!(!self.known_lost, "there is no key to renew with");
                assert!(facts.cannot_renew.is_none(), "not listed (D5)");
                assert!(self.lifecycle.renew_at().unwrap() <= self.now.wall, "not due (R2)");
            }
        }
        match key {
            Pending => {
                let other = self.svid.is_some() && !self.known_lost;
                assert!(self.pending_key && !(self.pending_refused && other));
            }
            Current => {
                assert!(self.svid.is_some() && !self.known_lost);
                assert!(
                    !self.pending_key || self.pending_refused,
                    "the pending key may be the bound one (E6)"
                );
            }
        }
    }

    pub(super) fn cooperates(&mut self) {
        self.luck = 0.5;
        self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() - self.wall_off * 1000);
        // Two waits of seven days in a row at most, discovery's and then the request's; without any, the cap of the
        // backoff, and an early answer from before the wall clock was put right.
        let bound = if self.ever_asked_to_wait { 20 * DAY } else { secs(15 * 3600) };
        let begin = self.now.boot;
        let mut corrected = false;
        self.is_proven(self.now.wall);
        self.steps(Event::Wake);
        if self.known_lost {
            self.orders(Command::ReplaceKey);
        }
        self.chip_away = false;
        self.until_active(begin, bound, &mut corrected);
        if self.lifetime <= secs(3600) {
            // And it goes on so, also after a wait that was still outstanding: the next SVID comes.
            let (from, held) = (self.now.boot, self.svid.clone());
            while self.svid == held {
                assert!(from.until(self.now.boot) <= bound, "the next renewal does not come");
                self.goes_on_well(&mut corrected);
            }
        }
    }

    pub(super) fn until_active(&mut self, begin: BootTime, bound: Duration, corrected: &mut bool) {
        while self.lifecycle.state(self.now) != State::Active {
            assert!(
                begin.until(self.now.boot) <= bound,
                "{:?} {:?}",
                self.lifecycle.state(self.now),
                self.lifecycle.last_error(self.now)
            );
            self.goes_on_well(corrected);
        }
    }

    /// The MIS does what it should; what it refused for good it corrects once.
    pub(super) fn goes_on_well(&mut self, corrected: &mut bool) {
        match self.doing.clone() {
            None => {
                self.passes(self.wake_in.unwrap());
                self.steps(Event::Wake);
            }
            Some(action) => {
                let reply = Reply {
                    wall_off: None,
                    kind: Kind::Good,
                    changed: action == FetchDiscovery && !std::mem::replace(corrected, true),
                    cannot_enroll: false,
                    cannot_renew: false,
                    refresh_hint: None,
                    vouches: Some(true),
                    ends_sooner: false,
                };
                let event = self.event(&action, &reply);
                self.steps(event);
            }
        }
    }
}
