//! A device with three identities in any history, and a checker that holds every step against the
//! rules.

use std::collections::{BTreeMap, BTreeSet};

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::{self, DAY, START, later, policy, report, secs, svid};
use super::histories::*;
use crate::problem::ProblemCode;
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

/// When the agent was built. A wall clock that is off can be before that.
const BUILT: Timestamp = Timestamp::from_secs(1_800_000_000 - 3 * 3600);

/// A device, its disk, and a memory of what it must not forget.
pub(super) struct Checker {
    pub(super) lifecycle: Lifecycle,
    pub(super) now: Now,
    wall_off: i64,
    /// Since the last step. What was refused may have been refused by the wrong clock.
    wall_was_set: bool,
    luck: f64,
    lifetime: Duration,
    in_flight: Option<Action>,
    wake_in: Option<Duration>,
    // On disk, once.
    discovery: Option<DiscoveryFacts>,
    bundle: Option<BundleFacts>,
    pub(super) identities: Vec<Tracked>,
    // What must not be forgotten of the trust domain.
    retry_after: BTreeMap<&'static str, BootTime>,
    /// It is at least this time, by the MIS's word or by the operator's.
    floor: Timestamp,
    vouched: bool,
    /// Consecutive times that the MIS showed, that agree with one another and contradict this
    /// device's clock.
    contradictions: Vec<(BootTime, Timestamp)>,
    at_this_moment: u32,
    ever_asked_to_wait: bool,
}

/// One identity: its part of the disk, and what must not be forgotten of it.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    policy: IdentityPolicy,
    svid: Option<SvidFacts>,
    pending_key: bool,
    issued: Option<KeyChoice>,
    /// There is a token that may be used; how often it was refused, and the key that it was sent with.
    has_token: bool,
    token_refusals: u32,
    token_key: Option<KeyChoice>,
    /// A token was brought since the chain was issued that leads nowhere.
    token_since_chain: bool,
    /// Nothing is requested before, nor a chain validated, unless something was corrected.
    refused_until: Option<BootTime>,
    /// An issuer of the chain has expired, and the bundle has not changed since.
    chain_is_of_no_use: bool,
    /// Any bundle that is fetched is an occasion to look for one.
    chain_waits_for_a_path: bool,
    retry_after: Option<BootTime>,
    pending_refused: bool,
    refused_permanently: Vec<Request>,
    answered_401: bool,
    /// The TPM that the key is in is away; whether the agent knows it, and whether another key may
    /// take its place.
    tpm_away: bool,
    known_lost: bool,
    may_replace: bool,
    /// The current key has been proven since the start, or there is none.
    key_was_tried: bool,
    early: Option<Timestamp>,
    /// No anchor of the last bundle leads to the SVID.
    unvouched: bool,
    /// The last chain that an operator brought was refused, or is of no use.
    chain_was_refused: bool,
    /// A chain was brought after the action in flight was decided on.
    supplied_meanwhile: bool,
    /// State after the last step, and every transition that was seen.
    state: Option<State>,
    pub(super) transitions: BTreeSet<(&'static str, &'static str)>,
}

impl Checker {
    pub(super) fn new(begin: [Beginning; 3], lifetime: Duration) -> Self {
        let now = Now { wall: START, boot: BootTime::default(), synchronised: false };
        let has_documents = begin.iter().any(|identity| identity.svid);
        let identities =
            begin.map(|Beginning { issuance, rotate, has_token, svid: held, pending_key, issued }| Tracked {
                policy: IdentityPolicy { issuance, rotate },
                has_token: has_token && issuance == Issuance::WithToken,
                svid: held.then(|| svid(START, lifetime, Current)),
                pending_key,
                issued: (issued && pending_key).then_some(Pending),
                ..Tracked::default()
            });
        let bundle = BundleFacts { refresh_hint: None, is_empty: false, is_new: false, svids: Vec::new() };
        let mut checker = Self {
            lifecycle: Lifecycle::new(policy(), blank(), now, &mut || 0.5),
            now,
            wall_off: 0,
            wall_was_set: false,
            luck: 0.5,
            lifetime,
            in_flight: None,
            wake_in: None,
            discovery: has_documents.then(device::document),
            bundle: has_documents.then_some(bundle),
            identities: identities.into(),
            retry_after: BTreeMap::new(),
            floor: BUILT,
            vouched: false,
            contradictions: Vec::new(),
            at_this_moment: 0,
            ever_asked_to_wait: false,
        };
        checker.restart(Restart::OfTheAgent);
        checker
    }

    pub(super) fn turn(&mut self, turn: Turn) {
        self.luck = turn.luck;
        if let Some(off) = turn.reply.wall_off {
            self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() + (off - self.wall_off) * 1000);
            self.wall_off = off;
            self.wall_was_set = true;
        }
        match (turn.passes, self.wake_in) {
            (Passes::Some(time), _) => self.pass(time),
            (Passes::UntilWakeUp, Some(wake_in)) if self.in_flight.is_none() => self.pass(wake_in),
            _ => {}
        }
        self.now.synchronised = turn.synchronised.unwrap_or(self.now.synchronised);
        if let Some(restart) = turn.restart {
            return self.restart(restart);
        }
        if let Some((of, away)) = turn.tpm {
            self.identities[of].tpm_away = away;
        }
        if let Some(off) = turn.proof {
            let true_time = self.now.wall.as_millis() - self.wall_off * 1000;
            self.observe(Timestamp::from_millis(true_time + off * 1000));
        }
        if let Some(command) = turn.command {
            self.command(command);
        }
        if let Some((of, what)) = turn.supplied {
            self.supply(of, what);
        }
        let event = match self.in_flight {
            // A step while an action is in flight must not begin a second one.
            Some(_) if matches!(turn.passes, Passes::Some(_)) => Event::Wake,
            Some(action) => self.event(action, &turn.reply),
            None => Event::Wake,
        };
        self.step(event);
    }

    fn observe(&mut self, time: Timestamp) {
        let (behind, ahead) = (time.until(self.now.wall), self.now.wall.until(time));
        let is_near = behind.max(ahead) <= secs(600);
        let trusted = self.trusts_clock();
        let mut counts = is_near || (!trusted && !ahead.is_zero());
        let is_news = is_near || !trusted || !(ahead.is_zero() || self.now.synchronised || self.vouched);
        if is_news && !counts {
            // A repetition is one within the tolerance of where the time should be by now, on the
            // boot clock.
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
        let verdict = self.lifecycle.observe_time(time, self.now);
        assert_eq!(
            verdict == TimeVerdict::Counts,
            counts,
            "one response against this device's clock is not enough"
        );
        assert_eq!(self.lifecycle.trusts_clock(self.now), self.trusts_clock());
    }

    /// An operator supplies a key, or a chain for a key that is there.
    fn supply(&mut self, of: usize, what: Supplied) {
        let identity = &mut self.identities[of];
        let is_by_token = identity.policy.issuance == Issuance::WithToken;
        if identity.is_by_operator() || (is_by_token && what == Supplied::Token) {
            match what {
                Supplied::Certificate => {}
                Supplied::Token if !is_by_token => {}
                Supplied::Token => {
                    (identity.has_token, identity.token_refusals, identity.token_key) = (true, 0, None);
                    (identity.token_since_chain, identity.refused_until) = (true, None);
                    identity.refused_permanently.retain(|request| *request != Enroll);
                    identity.may_replace |= identity.known_lost;
                }
                Supplied::Key => identity.pending_key = true,
                Supplied::Chain if !identity.pending_key && identity.svid.is_none() => return,
                Supplied::Chain => {
                    identity.issued = Some(if identity.pending_key { Pending } else { Current });
                    (identity.chain_is_of_no_use, identity.chain_was_refused) = (false, false);
                    (identity.early, identity.supplied_meanwhile) = (None, true);
                }
            }
        }
        self.step(Event::Supplied(IdentityIndex(of), what));
    }

    fn command(&mut self, command: Command) {
        self.at_this_moment = 0;
        for (nth, identity) in self.identities.iter_mut().enumerate() {
            // A renewal is a command to one identity, to none without an SVID, and to none whose SVIDs
            // an operator brings.
            let is_renewed = |index: IdentityIndex| {
                index.0 == nth && identity.svid.is_some() && !identity.is_by_operator()
            };
            if matches!(command, Command::Renew(index) if !is_renewed(index)) {
                continue;
            }
            identity.refused_permanently.clear(); // a correction (P2)
            (identity.pending_refused, identity.refused_until) = (false, None);
            identity.answered_401 &= identity.known_lost;
            let replaces = matches!(command, Command::ReplaceKey(index) if index.0 == nth);
            identity.may_replace |= replaces && identity.svid.is_some() && !identity.is_by_operator();
        }
        if !matches!(command, Command::Renew(_)) && !self.trusts_clock() {
            (self.floor, self.vouched) = (self.now.wall, true);
        }
        self.step(Event::Command(command));
    }

    fn pass(&mut self, time: Duration) {
        if !time.is_zero() {
            self.at_this_moment = 0;
        }
        self.now = later(self.now, time);
    }

    fn restart(&mut self, restart: Restart) {
        let mut memory = self.lifecycle.memory();
        if let Restart::OfTheMachine = restart {
            self.reboot(&mut memory);
        }
        let now = self.now.boot;
        let outstanding = |until: Option<BootTime>| until.filter(|until| *until > now);
        let TrustDomainMemory { discovery_retry_after, bundle_retry_after, .. } = memory.trust_domain;
        for (work, stored) in [("discovery", discovery_retry_after), ("bundle", bundle_retry_after)] {
            if let Some(until) = outstanding(self.retry_after.get(work).copied()) {
                assert_eq!(stored, Some(until), "the Retry-After delay of {work} is stored (E8)");
            }
        }
        for (identity, stored) in self.identities.iter().zip(&memory.identities) {
            if let Some(until) = outstanding(identity.retry_after) {
                assert_eq!(stored.retry_after, Some(until), "Retry-After is stored for each identity (E8)");
            }
        }
        let restored = self.on_disk(memory);
        for identity in &mut self.identities {
            identity.forget();
        }
        self.contradictions.clear();
        self.in_flight = None;
        let luck = self.luck;
        self.lifecycle = Lifecycle::new(policy(), restored, self.now, &mut || luck);
        self.step(Event::Wake);
    }

    fn on_disk(&self, memory: Memory) -> Restored {
        let renew_at = |nth| self.lifecycle.identity(IdentityIndex(nth)).and_then(|view| view.renew_at());
        let identities = self.identities.iter().zip(memory.identities).enumerate();
        Restored {
            trust_domain: RestoredTrustDomain {
                discovery: self.discovery.clone().map(|facts| DiscoveryFacts { changed: false, ..facts }),
                bundle: self.bundle.as_ref().map(|bundle| RestoredBundle {
                    is_empty: bundle.is_empty,
                    refresh_hint: bundle.refresh_hint,
                }),
                memory: memory.trust_domain,
                time: KnownTime { built: BUILT, ..self.lifecycle.known_time() },
            },
            identities: identities
                .map(|(nth, (identity, memory))| RestoredIdentity {
                    policy: identity.policy,
                    svid: identity.svid.clone().map(|facts| SvidFacts {
                        renew_at: renew_at(nth),
                        key: Current,
                        ..facts
                    }),
                    pending_key: identity.pending_key,
                    issued_chain: identity.issued.is_some(),
                    has_token: identity.has_token,
                    token_refusal: None,
                    token_key: identity.token_key,
                    memory,
                })
                .collect(),
        }
    }

    /// Delays end on the boot clock, which begins anew.
    fn reboot(&mut self, memory: &mut Memory) {
        let booted = BootTime::from_millis(60_000);
        let before = std::mem::replace(&mut self.now.boot, booted);
        let anew = |until: &mut BootTime| *until = booted.after(before.until(*until));
        let TrustDomainMemory { discovery_retry_after, bundle_retry_after, .. } = &mut memory.trust_domain;
        let stored = memory.identities.iter_mut().map(|identity| &mut identity.retry_after);
        stored.chain([discovery_retry_after, bundle_retry_after]).flatten().for_each(anew);
        let tracked = self.identities.iter_mut().filter_map(|identity| identity.retry_after.as_mut());
        tracked.chain(self.retry_after.values_mut()).for_each(anew);
        self.now.synchronised = false;
    }

    fn trusts_clock(&self) -> bool {
        self.now.synchronised || self.now.wall.after(secs(600)) >= self.floor
    }

    fn event(&mut self, action: Action, reply: &Reply) -> Event {
        let failed = match reply.kind {
            Kind::Fails(FailureKind::PendingKeyLost | FailureKind::NoToken, _) => {
                Some(device::failure(FailureKind::Local, None))
            }
            // A document is not refused like an enrollment.
            Kind::Fails(FailureKind::RefusedForNow | FailureKind::TokenRefused, wait) => {
                Some(device::failure(FailureKind::Slow, wait))
            }
            Kind::Fails(kind, wait) => Some(device::failure(kind, wait.filter(|_| !asks_nobody(kind)))),
            _ => None,
        };
        match action {
            Action::FetchDiscovery => Event::Discovery(match failed {
                Some(failure) => {
                    self.remember_delay("discovery", &failure);
                    Err(failure)
                }
                None => Ok(self.read_discovery(reply)),
            }),
            Action::FetchBundle => Event::Bundle(match failed {
                Some(failure) => {
                    self.remember_delay("bundle", &failure);
                    Err(failure)
                }
                None => Ok(self.read_bundle(reply)),
            }),
            Action::Identity(index, action) => {
                let may_enroll = self.may_enroll(index);
                let (now, lifetime) = (self.now, self.lifetime);
                let identity = &mut self.identities[index.0];
                let event = identity.event(action, reply, may_enroll, lifetime, now);
                if let IdentityEvent::Issued(Err(failure)) = &event {
                    self.ever_asked_to_wait |= failure.retry_after.is_some_and(|wait| !wait.is_zero());
                }
                Event::Identity(index, event)
            }
        }
    }

    fn read_discovery(&mut self, reply: &Reply) -> DiscoveryFacts {
        let changed = reply.changed || self.discovery.is_none();
        let facts = match self.discovery.clone().filter(|_| !changed) {
            Some(facts) => DiscoveryFacts { changed, ..facts },
            None => DiscoveryFacts {
                changed,
                identities: vec![
                    RuledOut {
                        enrollment: (reply.cannot_enroll || reply.cannot_renew).then(report),
                        renewal: reply.cannot_renew.then(report),
                    };
                    self.identities.len()
                ],
            },
        };
        if changed {
            for identity in &mut self.identities {
                identity.refused_permanently.clear();
                (identity.pending_refused, identity.refused_until) = (false, None);
            }
        }
        self.discovery = Some(facts.clone());
        facts
    }

    fn read_bundle(&mut self, reply: &Reply) -> BundleFacts {
        let lasts = if reply.ends_sooner { self.lifetime / 2 } else { self.lifetime };
        let anchor_changes = reply.vouches.map(|_| self.now.wall.after(self.lifetime));
        let svids = self.identities.iter_mut().map(|identity| {
            if let Some(svid) = &mut identity.svid {
                svid.not_after = svid.not_before.after(lasts);
                identity.unvouched = !reply.vouches.unwrap_or(!identity.unvouched);
            }
            identity.chain_is_of_no_use &= !(reply.changed || identity.chain_waits_for_a_path);
            identity.chain_waits_for_a_path &= identity.chain_is_of_no_use;
            let svid_ends = identity.svid.as_ref().map(|svid| svid.not_after);
            SvidTrust { vouches: reply.vouches, svid_ends, anchor_changes }
        });
        let facts = BundleFacts {
            refresh_hint: reply.refresh_hint,
            is_empty: reply.vouches.is_none(),
            is_new: reply.changed,
            svids: svids.collect(),
        };
        self.bundle = Some(facts.clone());
        facts
    }

    fn remember_delay(&mut self, work: &'static str, failure: &Failure) {
        if let Some(wait) = failure.retry_after {
            self.retry_after.insert(work, self.now.boot.after(wait.min(LONGEST_RETRY_AFTER)));
            self.ever_asked_to_wait |= !wait.is_zero();
        }
    }

    fn may_enroll(&self, index: IdentityIndex) -> bool {
        let listed = self.discovery.as_ref().is_none_or(|facts| ruled_out(facts, index).enrollment.is_none());
        listed
            && !self.identities[index.0].refused_permanently.contains(&Enroll)
            && self.has_prerequisite(index)
    }

    /// Whether the other identity, whose SVID the enrollment needs, has a valid one.
    fn has_prerequisite(&self, index: IdentityIndex) -> bool {
        let identity = &self.identities[index.0];
        let other = match identity.policy.issuance {
            Issuance::With(other) => other,
            Issuance::WithToken => return identity.has_token,
            Issuance::Requested | Issuance::ByOperator => return true,
        };
        let other = &self.identities[other.0];
        let is_valid = |svid: &SvidFacts| svid.not_before <= self.now.wall && self.now.wall <= svid.not_after;
        other.svid.as_ref().is_some_and(is_valid) && !other.known_lost
    }

    fn step(&mut self, event: Event) {
        let in_flight = self.in_flight.take().filter(|_| device::leaves_action_in_flight(&event));
        let luck = self.luck;
        let step = self.lifecycle.step(event, self.now, &mut || luck);
        if std::mem::take(&mut self.wall_was_set) {
            self.identities.iter_mut().for_each(|identity| identity.refused_until = None);
        }
        for (index, view) in self.lifecycle.identities() {
            let identity = &mut self.identities[index.0];
            let state = view.state(self.now);
            if let Some(before) = identity.state.replace(state).filter(|before| *before != state) {
                identity.transitions.insert((before.as_str(), state.as_str()));
            }
        }
        match (in_flight, step.action) {
            (Some(_), None) => self.in_flight = in_flight,
            (Some(first), Some(second)) => panic!("{second:?} begins while {first:?} is in flight"),
            (None, Some(action)) => {
                self.check(action);
                self.in_flight = Some(action);
            }
            (None, None) => {
                let wake_in = step.wake_in.expect("without an action there is a time for the next step");
                assert!(!wake_in.is_zero(), "a step without an action is not repeated at once");
                assert!(wake_in <= DAY);
            }
        }
        self.wake_in = step.wake_in;
        self.check_wake_up();
        for (index, view) in self.lifecycle.identities() {
            if self.identities[index.0].is_by_operator() {
                self.check_operator_is_asked(index, view);
            }
            self.check_token_is_asked_for(index, view);
            let state = view.state(self.now);
            let errors = [view.last_error(self.now), self.lifecycle.last_error(self.now)];
            if state == State::Blocked {
                let blocks = errors.iter().flatten().any(|(error, _)| error.permanent);
                assert!(blocks, "what blocks is shown: {errors:?}");
            } else if let [Some((error, again)), _] = &errors {
                let waits = self.identities[index.0].is_by_operator()
                    || error.report.code == ProblemCode::DeviceIdentityNeeded
                    || self.identities[index.0].needs_token();
                assert!(again.is_some() || waits, "an error without another attempt is shown as such");
            }
            let lacks = errors[0]
                .as_ref()
                .is_some_and(|(error, _)| error.report.code == ProblemCode::DeviceIdentityNeeded);
            assert!(!lacks || !self.has_prerequisite(index), "what is said to be missing is there");
        }
    }

    /// No moment at which a state changes, or another identity can go on, is slept through.
    fn check_wake_up(&self) {
        if !self.trusts_clock() {
            return;
        }
        for (index, view) in self.lifecycle.identities() {
            let identity = &self.identities[index.0];
            let Some(svid) = &identity.svid else { continue };
            let asked = view.renew_at().filter(|_| identity.is_by_operator());
            let moments =
                [Some(svid.not_before), asked, Some(svid.not_after.after(Duration::from_millis(1)))];
            let next = moments.into_iter().flatten().filter(|at| *at > self.now.wall).min();
            if let Some(next) = next {
                let wake_in = self.wake_in.expect("a moment is to come");
                assert!(wake_in <= self.now.wall.until(next), "slept through");
            }
        }
    }

    /// A token is asked for exactly where nothing else leads to the next SVID.
    fn check_token_is_asked_for(&self, index: IdentityIndex, view: IdentityView<'_>) {
        let identity = &self.identities[index.0];
        let (state, error) = (view.state(self.now), view.last_error(self.now));
        let is_asked_for = |code: &ProblemCode| *code == ProblemCode::TokenNeeded;
        let is_shown =
            error.iter().any(|(error, _)| error.report.code.known().as_ref().is_some_and(is_asked_for));
        if !identity.needs_token() {
            return assert!(state != State::WaitingForToken && !is_shown, "{state:?} {error:?}");
        }
        let may_request =
            self.discovery.is_some() && self.bundle.as_ref().is_some_and(|bundle| !bundle.is_empty);
        let valid = identity.has_valid_svid(self.now);
        let wants_enrollment = !valid || (identity.known_lost && identity.may_replace);
        let awaits_adoption = identity.issued.is_some() && !identity.chain_is_of_no_use;
        let waits = may_request && wants_enrollment && !awaits_adoption;
        let is_apart = matches!(state, State::WaitingForClock | State::Blocked | State::Expired);
        assert_eq!(state == State::WaitingForToken, waits && !is_apart, "{state:?} {identity:?}");
        if waits && !is_apart {
            let (error, again) = error.expect("it is said why nothing is requested");
            assert!(error.permanent && again.is_none(), "{error:?}");
        }
    }

    /// An operator is asked for exactly when one is needed, and the status says so.
    fn check_operator_is_asked(&self, index: IdentityIndex, view: IdentityView<'_>) {
        let identity = &self.identities[index.0];
        let state = view.state(self.now);
        let half = identity.svid.as_ref().map(|SvidFacts { not_before, not_after, .. }| {
            not_before.after(not_before.until(*not_after).mul_f64(0.5))
        });
        match identity.unvouched {
            true => assert!(view.renew_at() <= half),
            false => assert_eq!(view.renew_at(), half, "half of the lifetime, whatever happened before"),
        }
        if matches!(state, State::WaitingForClock | State::Blocked) {
            return;
        }
        let has_expired = identity.svid.is_some() && !identity.has_valid_svid(self.now);
        let is_due = view.renew_at().is_none_or(|at| at <= self.now.wall);
        let awaits_adoption = identity.issued.is_some() && !identity.chain_is_of_no_use;
        assert_eq!(state == State::Expired, has_expired);
        assert_eq!(
            state == State::WaitingForOperator,
            is_due && !has_expired && !awaits_adoption,
            "{state:?}"
        );
        if awaits_adoption {
            return;
        }
        match view.last_error(self.now) {
            None => assert!(!is_due && !identity.chain_was_refused),
            Some((error, again)) => {
                assert!(error.permanent && again.is_none(), "nothing is tried before an operator acts");
                let is_asked = error.report.code == ProblemCode::OperatorNeeded;
                assert_eq!(is_asked, !identity.chain_was_refused, "{error:?}");
                assert!(is_due || !is_asked);
            }
        }
    }

    fn check(&mut self, action: Action) {
        let trusted = self.trusts_clock();
        assert!(action == Action::FetchDiscovery || trusted, "{action:?} by a clock that cannot be right");
        match action {
            Action::FetchDiscovery => self.check_delay(self.retry_after.get("discovery").copied()),
            Action::FetchBundle => self.check_delay(self.retry_after.get("bundle").copied()),
            Action::Identity(index, action) => {
                let is_for_requests =
                    matches!(action, IdentityAction::Request(..) | IdentityAction::CreateKey);
                assert!(
                    !is_for_requests || !self.identities[index.0].is_by_operator(),
                    "an operator brings it"
                );
                if let IdentityAction::Request(request, key) = action {
                    self.check_delay(self.identities[index.0].retry_after);
                    self.check_request(index, request, key);
                } else {
                    self.identities[index.0].check(action, self.now);
                }
            }
        }
    }

    /// One more request to the MIS.
    fn check_delay(&mut self, retry_after: Option<BootTime>) {
        self.at_this_moment += 1;
        assert!(self.at_this_moment <= 36, "the MIS is asked in a circle");
        if let Some(until) = retry_after {
            assert!(until <= self.now.boot, "a request before Retry-After has elapsed (E8)");
        }
    }

    fn check_request(&self, index: IdentityIndex, request: Request, key: KeyChoice) {
        let identity = &self.identities[index.0];
        assert!(identity.refused_until.is_none_or(|until| until <= self.now.boot), "refused for now");
        if identity.policy.issuance == Issuance::WithToken && request == Enroll {
            assert!(
                identity.issued.is_none() || identity.token_since_chain,
                "the token is used up by the chain that is there"
            );
            let other = identity.token_key.filter(|sent_with| *sent_with != key);
            assert!(other.is_none() || identity.known_lost, "the token may be bound to another key (X48)");
        }
        let view = self.lifecycle.identity(index).expect("it is configured");
        let valid = identity.has_valid_svid(self.now);
        assert!(identity.key_was_tried, "no request before the current key was proven");
        assert!(
            identity.issued.is_none() || identity.chain_is_of_no_use,
            "a chain is validated before another is requested"
        );
        assert!(
            !identity.refused_permanently.contains(&request),
            "{request:?} is repeated without a correction (P2)"
        );
        assert!(self.bundle.as_ref().is_some_and(|bundle| !bundle.is_empty), "nothing to validate with");
        let facts = self.discovery.as_ref().expect("no request before discovery (D1)");
        match request {
            Enroll => {
                let may_be_renamed = !valid || identity.answered_401;
                assert_eq!(view.may_be_renamed(self.now), may_be_renamed, "E9");
                let replaces_key = identity.known_lost && identity.may_replace;
                assert!(may_be_renamed || replaces_key, "a valid SVID is renewed (R2)");
                assert!(ruled_out(facts, index).enrollment.is_none(), "not listed (D5)");
                assert!(self.has_prerequisite(index), "the device has no SVID to show (W1), or no token");
            }
            Renew => {
                let only_enrollment = identity.answered_401 && self.may_enroll(index);
                assert!(valid && !only_enrollment, "only an enrollment helps (R6)");
                assert!(!identity.known_lost, "there is no key to renew with");
                assert!(ruled_out(facts, index).renewal.is_none(), "not listed (D5)");
                assert!(view.renew_at().unwrap() <= self.now.wall, "not due (R2)");
            }
        }
        match key {
            Pending => {
                let other = identity.svid.is_some() && !identity.known_lost;
                let is_bound = request == Enroll && identity.token_key == Some(Pending);
                assert!(identity.pending_key && (is_bound || !(identity.pending_refused && other)));
            }
            Current => {
                assert!(identity.svid.is_some() && !identity.known_lost);
                assert!(
                    !identity.pending_key || identity.pending_refused || identity.token_key == Some(Current),
                    "the pending key may be the bound one (E6)"
                );
            }
        }
    }

    /// From now on the MIS does what it should: every identity becomes active in bounded time.
    pub(super) fn cooperate(&mut self) {
        self.luck = 0.5;
        self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() - self.wall_off * 1000);
        self.wall_was_set = true;
        // Two delays of seven days in a row at most, discovery's and then the request's; without
        // any, a day after a refusal for now, the cap of the backoff, and an early chain from before the wall clock was put right.
        let bound = if self.ever_asked_to_wait { 20 * DAY } else { DAY + secs(15 * 3600) };
        let begin = self.now.boot;
        let mut corrected = false;
        self.observe(self.now.wall);
        self.step(Event::Wake);
        for nth in 0..self.identities.len() {
            if self.identities[nth].known_lost {
                self.command(Command::ReplaceKey(IdentityIndex(nth)));
            }
            self.identities[nth].tpm_away = false;
        }
        while self.lifecycle.identities().any(|(_, view)| view.state(self.now) != State::Active) {
            assert!(begin.until(self.now.boot) <= bound, "{:?}", self.lifecycle);
            self.go_on_well(&mut corrected);
        }
        if self.lifetime <= secs(3600) {
            // And it goes on so, also after a delay that was still outstanding: the next SVIDs
            // come.
            let from = self.now.boot;
            let before: Vec<_> = self.identities.iter().map(|identity| identity.svid.clone()).collect();
            while self.identities.iter().zip(&before).any(|(identity, before)| identity.svid == *before) {
                assert!(from.until(self.now.boot) <= bound, "the next renewal does not come");
                self.go_on_well(&mut corrected);
            }
        }
    }

    fn identity_that_needs_a_token(&self) -> Option<usize> {
        let needs = |(index, view): (IdentityIndex, IdentityView<'_>)| {
            let (error, state) = (view.last_error(self.now), view.state(self.now));
            let is_asked = matches!(state, State::WaitingForToken | State::Expired | State::Blocked);
            let waits = is_asked && error.is_some_and(|(error, again)| error.permanent && again.is_none());
            (self.identities[index.0].needs_token() && waits).then_some(index.0)
        };
        self.lifecycle.identities().find_map(needs)
    }

    fn identity_that_needs_an_operator(&self) -> Option<usize> {
        let needs = |(index, view): (IdentityIndex, IdentityView<'_>)| {
            let identity = &self.identities[index.0];
            let is_asked = matches!(view.state(self.now), State::WaitingForOperator | State::Expired);
            let awaits_adoption = identity.issued.is_some() && !identity.chain_is_of_no_use;
            (identity.is_by_operator() && is_asked && !awaits_adoption).then_some(index.0)
        };
        // Last of all: meanwhile no other waits for a day, and it is asked every minute.
        let (operated, others): (Vec<_>, Vec<_>) =
            self.lifecycle.identities().partition(|(index, _)| self.identities[index.0].is_by_operator());
        let others_are_active = others.iter().all(|(_, view)| view.state(self.now) == State::Active);
        operated.into_iter().filter(|_| others_are_active).find_map(needs)
    }

    /// The MIS does what it should; what it refused permanently it corrects once.
    fn go_on_well(&mut self, corrected: &mut bool) {
        let Some(action) = self.in_flight else {
            if let Some(nth) = self.identity_that_needs_a_token() {
                self.at_this_moment = 0;
                return self.supply(nth, Supplied::Token);
            }
            if let Some(nth) = self.identity_that_needs_an_operator() {
                self.at_this_moment = 0;
                self.supply(nth, Supplied::Key);
                return self.supply(nth, Supplied::Chain);
            }
            self.pass(self.wake_in.unwrap());
            return self.step(Event::Wake);
        };
        let reply = Reply {
            wall_off: None,
            kind: Kind::Good,
            changed: action == Action::FetchDiscovery && !std::mem::replace(corrected, true),
            cannot_enroll: false,
            cannot_renew: false,
            refresh_hint: None,
            vouches: Some(true),
            ends_sooner: false,
        };
        let event = self.event(action, &reply);
        self.step(event);
    }
}

impl Tracked {
    /// It cannot enroll before an operator brings a token.
    fn needs_token(&self) -> bool {
        self.policy.issuance == Issuance::WithToken && !self.has_token
    }

    /// The key of the next SVID may be another than that of the current one.
    fn may_rotate(&self, now: Now) -> bool {
        self.svid.as_ref().is_none_or(|svid| match self.policy.rotate {
            Rotation::Never => false,
            Rotation::Always => true,
            Rotation::AfterRenewals(most) => svid.key_use.renewals >= most,
            Rotation::AfterAge(age) => svid.key_use.since.is_none_or(|since| since.until(now.wall) >= age),
        })
    }

    fn is_by_operator(&self) -> bool {
        self.policy.issuance == Issuance::ByOperator
    }

    fn has_valid_svid(&self, now: Now) -> bool {
        self.svid.as_ref().is_some_and(|svid| now.wall <= svid.not_after)
    }

    /// A restart is a correction (P2), and what only memory knew is found out anew.
    fn forget(&mut self) {
        (self.known_lost, self.key_was_tried) = (false, self.svid.is_none());
        (self.pending_refused, self.answered_401, self.early) = (false, false, None);
        (self.chain_is_of_no_use, self.chain_was_refused, self.supplied_meanwhile) = (false, false, false);
        self.chain_waits_for_a_path = false;
        (self.unvouched, self.refused_until) = (false, None);
        // One that was not sent yet was brought after the chain.
        self.token_since_chain = self.has_token && self.token_key.is_none();
        self.refused_permanently.clear();
        self.state = None;
    }

    fn check(&mut self, action: IdentityAction, now: Now) {
        match action {
            IdentityAction::ProveKey => self.key_was_tried = true,
            IdentityAction::CreateKey => {
                assert!(!self.pending_key, "a pending key is never replaced (E6)");
                assert!(self.known_lost || self.may_rotate(now), "the key stays (X66)");
                assert!(
                    !self.needs_token() || self.has_valid_svid(now),
                    "a key that nothing is requested for"
                );
            }
            IdentityAction::Adopt { .. } => {
                assert!(self.issued.is_some() && !self.chain_is_of_no_use, "validated as before");
                assert!(self.early.is_none_or(|at| at <= now.wall), "kept until its time (E4)");
                assert!(self.refused_until.is_none_or(|until| until <= now.boot), "refused for now");
            }
            IdentityAction::Request(..) => {}
        }
    }

    fn event(
        &mut self,
        action: IdentityAction,
        reply: &Reply,
        may_enroll: bool,
        lifetime: Duration,
        now: Now,
    ) -> IdentityEvent {
        let of_pending_key = matches!(action, IdentityAction::Request(_, Pending));
        let of_enrollment = matches!(action, IdentityAction::Request(Enroll, _));
        let by_token = of_enrollment && self.policy.issuance == Issuance::WithToken;
        let failed = match reply.kind {
            Kind::Fails(FailureKind::PendingKeyLost, _) if !of_pending_key => {
                Some(device::failure(FailureKind::Local, None))
            }
            Kind::Fails(FailureKind::TokenRefused, _) if by_token && self.token_refusals == 4 => {
                Some(device::failure(FailureKind::NoToken, None))
            }
            Kind::Fails(FailureKind::TokenRefused, wait) if !by_token => {
                Some(device::failure(FailureKind::NotAuthenticated, wait))
            }
            // Of a check before a token is sent.
            Kind::Fails(FailureKind::Slow, _) if by_token && reply.changed => {
                Some(device::failure(FailureKind::OtherAuthority, None))
            }
            Kind::Fails(FailureKind::NoToken, _) if !by_token => {
                Some(device::failure(FailureKind::Local, None))
            }
            Kind::Fails(FailureKind::RefusedForNow, wait) if !of_enrollment => {
                Some(device::failure(FailureKind::Transient, wait))
            }
            Kind::Fails(kind, wait) => Some(device::failure(kind, wait.filter(|_| !asks_nobody(kind)))),
            _ => None,
        };
        let lost = || device::failure(FailureKind::CurrentKeyLost, None);
        match action {
            IdentityAction::CreateKey if failed.is_some() => {
                IdentityEvent::KeyCreated(Err(device::failure(FailureKind::Local, None)))
            }
            IdentityAction::CreateKey => {
                (self.pending_key, self.pending_refused) = (true, false);
                IdentityEvent::KeyCreated(Ok(()))
            }
            IdentityAction::ProveKey => IdentityEvent::KeyProven(match failed {
                _ if self.tpm_away => {
                    self.known_lost = true;
                    Err(lost())
                }
                Some(_) => Err(device::failure(FailureKind::Local, None)),
                None => {
                    (self.known_lost, self.may_replace) = (false, false);
                    Ok(())
                }
            }),
            IdentityAction::Request(Renew, _) | IdentityAction::Request(_, Current) if self.tpm_away => {
                self.known_lost = true;
                IdentityEvent::Issued(Err(lost()))
            }
            IdentityAction::Request(request, key) => IdentityEvent::Issued(match failed {
                Some(failure) => {
                    if failure.kind == FailureKind::PendingKeyLost {
                        (self.pending_key, self.pending_refused) = (false, false);
                        self.token_key = None;
                    }
                    if by_token && !asks_nobody(failure.kind) {
                        let is_refused = failure.kind == FailureKind::KeyRotationRefused;
                        self.token_key = Some(key).filter(|_| !is_refused);
                    }
                    match failure.kind {
                        FailureKind::NoToken => (self.has_token, self.token_key) = (false, None),
                        FailureKind::TokenRefused => {
                            self.token_refusals += 1;
                            self.refused_until = Some(now.boot.after(secs(899)));
                        }
                        FailureKind::RefusedForNow => self.refused_for_now(now),
                        _ => {}
                    }
                    if let Some(wait) = failure.retry_after {
                        self.retry_after = Some(now.boot.after(wait.min(LONGEST_RETRY_AFTER)));
                    }
                    self.remember_refusal(request, key, failure.kind, may_enroll, now);
                    Err(failure)
                }
                None => {
                    (self.issued, self.chain_is_of_no_use, self.early) = (Some(key), false, None);
                    (self.token_since_chain, self.refused_until) = (false, None);
                    if by_token {
                        self.token_key = Some(key);
                    }
                    Ok(())
                }
            }),
            IdentityAction::Adopt { bundle_is_fresh } => {
                IdentityEvent::Adopted(self.adoption(reply, bundle_is_fresh, lifetime, now))
            }
        }
    }

    fn adoption(
        &mut self,
        reply: &Reply,
        bundle_is_fresh: bool,
        lifetime: Duration,
        now: Now,
    ) -> Result<SvidFacts, NotAdopted> {
        // As in the shell: the bundle was fetched for the chain before.
        let bundle_is_fresh = bundle_is_fresh && !std::mem::take(&mut self.supplied_meanwhile);
        match reply.kind {
            Kind::Early(wait) => {
                let not_before = now.wall.after(secs(wait));
                self.early = Some(not_before);
                Err(NotAdopted::Early(not_before))
            }
            Kind::UnknownIssuer | Kind::IssuerExpired | Kind::NoPath if !bundle_is_fresh => {
                Err(NotAdopted::UnknownIssuer)
            }
            // What an operator brought is judged by its own chain.
            Kind::NoPath if self.is_by_operator() => {
                (self.chain_is_of_no_use, self.chain_was_refused) = (true, true);
                Err(NotAdopted::IssuerExpired(device::failure(FailureKind::Slow, None)))
            }
            Kind::NoPath => {
                (self.chain_is_of_no_use, self.chain_was_refused) = (true, true);
                self.chain_waits_for_a_path = true;
                Err(NotAdopted::NoPath(device::failure(FailureKind::Slow, None)))
            }
            Kind::IssuerExpired => {
                (self.chain_is_of_no_use, self.chain_was_refused) = (true, true);
                self.chain_waits_for_a_path = self.policy.issuance == Issuance::WithToken;
                Err(NotAdopted::IssuerExpired(device::failure(FailureKind::Slow, None)))
            }
            Kind::UnknownIssuer | Kind::Refused => {
                (self.issued, self.early, self.chain_was_refused) = (None, None, true);
                Err(NotAdopted::Refused(device::failure(FailureKind::Slow, None)))
            }
            // Its issuers cannot be fetched.
            Kind::Fails(FailureKind::RefusedForNow, wait) if self.policy.issuance == Issuance::WithToken => {
                self.refused_for_now(now);
                Err(NotAdopted::Kept(device::failure(FailureKind::RefusedForNow, wait)))
            }
            Kind::Fails(FailureKind::Transient, _) if self.policy.issuance == Issuance::WithToken => {
                Err(NotAdopted::Kept(device::failure(FailureKind::Transient, None)))
            }
            Kind::Fails(..) => Err(NotAdopted::Kept(device::failure(FailureKind::Local, None))),
            Kind::Good => Ok(self.adopt(lifetime, now)),
        }
    }

    fn adopt(&mut self, lifetime: Duration, now: Now) -> SvidFacts {
        let key = self.issued.take().unwrap();
        (self.early, self.unvouched, self.chain_was_refused) = (None, false, false);
        if key == Pending {
            self.pending_key = false;
        }
        (self.has_token, self.token_key, self.token_refusals, self.refused_until) = (false, None, 0, None);
        self.answered_401 = false;
        self.tpm_away &= key == Current;
        (self.known_lost, self.may_replace) = (false, false);
        self.refused_permanently.clear();
        // What an operator brings has more than half of its time to come.
        let backdated = if self.is_by_operator() { secs(30).min(lifetime / 10) } else { secs(30) };
        let not_before = now.wall.as_millis() - i64::try_from(backdated.as_millis()).unwrap();
        let mut facts = svid(Timestamp::from_millis(not_before), lifetime, key);
        facts.key_use = match (key, &self.svid) {
            (Current, Some(before)) => KeyUse { renewals: before.key_use.renewals + 1, ..before.key_use },
            _ => KeyUse { renewals: 0, since: Some(now.wall) },
        };
        self.svid = Some(facts.clone());
        facts
    }

    /// For a day; while there is an SVID that ends sooner, not as long.
    fn refused_for_now(&mut self, now: Now) {
        if !self.has_valid_svid(now) {
            self.refused_until = Some(now.boot.after(secs(18 * 3600 - 1)));
        }
    }

    fn remember_refusal(
        &mut self,
        request: Request,
        key: KeyChoice,
        kind: FailureKind,
        may_enroll: bool,
        now: Now,
    ) {
        let goes_on = matches!(
            kind,
            FailureKind::Pending
                | FailureKind::Offline
                | FailureKind::NoToken
                | FailureKind::KeyRotationRefused
                | FailureKind::PendingKeyLost
        );
        if kind == FailureKind::NotAuthenticated && request == Renew && may_enroll {
            self.answered_401 = true;
        } else if self.answered_401 && self.has_valid_svid(now) && !goes_on && !self.known_lost {
            self.answered_401 = false; // neither way helps while the SVID is valid: they are tried in turn (R7)
        }
        match kind {
            FailureKind::Permanent => self.refused_permanently.push(request),
            FailureKind::KeyRotationRefused => {
                self.pending_refused |= key == Pending;
                if key == Current || self.svid.is_none() {
                    self.refused_permanently.push(request);
                }
            }
            _ => {}
        }
    }
}

fn blank() -> Restored {
    Restored { identities: vec![RestoredIdentity::default(); 3], ..Restored::default() }
}

/// What a document rules out for an identity: nothing, where it says nothing of it.
fn ruled_out(facts: &DiscoveryFacts, index: IdentityIndex) -> RuledOut {
    facts.identities.get(index.0).cloned().unwrap_or_default()
}
