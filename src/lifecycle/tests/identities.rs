//! Two identities in one trust domain: what they share, and what one never costs the other.

use proptest::prelude::*;

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::{
    DAY, START, document, failure, later, leaves_action_in_flight, next_random, policy, secs, svid,
};
use super::histories::{asks_nobody, failure_kind, retry_after};
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

const FIRST: IdentityIndex = IdentityIndex(0);
const SECOND: IdentityIndex = IdentityIndex(1);

/// A device with two identities. Every action takes a second.
struct Pair {
    lifecycle: Lifecycle,
    now: Now,
    luck: f64,
    random: Option<u64>,
    in_flight: Option<Action>,
    wake_in: Option<Duration>,
}

impl Pair {
    /// Both have SVIDs, and keys that are proven at the start.
    fn active(lifetime: Duration) -> Self {
        Self::new([Some(lifetime), Some(lifetime)])
    }

    /// An identity without a lifetime has no SVID yet.
    fn new(lifetimes: [Option<Duration>; 2]) -> Self {
        let now = Now { wall: START, boot: BootTime::default(), synchronised: false };
        let identity = |lifetime: Option<Duration>| RestoredIdentity {
            svid: lifetime.map(|lifetime| svid(START, lifetime, Current)),
            ..RestoredIdentity::default()
        };
        let restored = Restored {
            trust_domain: RestoredTrustDomain {
                discovery: Some(document()),
                bundle: Some(RestoredBundle::default()),
                ..RestoredTrustDomain::default()
            },
            identities: lifetimes.map(identity).into(),
        };
        let lifecycle = Lifecycle::new(policy(), restored, now, &mut || 0.5);
        let mut pair = Self { lifecycle, now, luck: 0.5, random: None, in_flight: None, wake_in: None };
        pair.handle(Event::Wake);
        pair
    }

    fn handle(&mut self, event: Event) {
        let in_flight = self.in_flight.take().filter(|_| leaves_action_in_flight(&event));
        let (luck, random) = (self.luck, &mut self.random);
        let mut jitter = || random.as_mut().map_or(luck, next_random);
        let step = self.lifecycle.step(event, self.now, &mut jitter);
        self.wake_in = step.wake_in;
        self.in_flight = in_flight.or(step.action);
    }

    /// Executes what is in flight, or sleeps. Returns the action.
    fn go_on(
        &mut self,
        outcome: impl FnOnce(IdentityIndex, IdentityAction) -> IdentityEvent,
    ) -> Option<Action> {
        let action = self.in_flight;
        self.now = later(self.now, if action.is_some() { secs(1) } else { self.wake_in.unwrap() });
        let event = match action {
            None => Event::Wake,
            Some(Action::FetchDiscovery) => Event::Discovery(Ok(document())),
            Some(Action::FetchBundle) => Event::Bundle(Ok(self.bundle())),
            Some(Action::Identity(index, action)) => Event::Identity(index, outcome(index, action)),
        };
        self.handle(event);
        action
    }

    fn bundle(&self) -> BundleFacts {
        let svids = vec![SvidTrust { vouches: Some(true), ..SvidTrust::default() }; 2];
        BundleFacts { refresh_hint: None, is_empty: false, is_new: false, svids }
    }

    /// Everything goes well until this action is in flight. Returns the time until then.
    fn wait_for(&mut self, index: IdentityIndex, wanted: IdentityAction) -> Duration {
        let begin = self.now.boot;
        for _ in 0..100_000 {
            if self.in_flight == Some(Action::Identity(index, wanted)) {
                return begin.until(self.now.boot);
            }
            let now = self.now;
            self.go_on(|_, action| good(action, secs(3600), now));
        }
        panic!("{wanted:?} does not come");
    }

    fn fail(&mut self, index: IdentityIndex, kind: FailureKind, retry_after: Option<Duration>) {
        self.handle(Event::Identity(index, IdentityEvent::Issued(Err(failure(kind, retry_after)))));
    }

    fn view(&self, index: IdentityIndex) -> IdentityView<'_> {
        self.lifecycle.identity(index).unwrap()
    }

    fn state(&self, index: IdentityIndex) -> State {
        self.view(index).state(self.now)
    }
}

fn good(action: IdentityAction, lifetime: Duration, now: Now) -> IdentityEvent {
    match action {
        IdentityAction::CreateKey => IdentityEvent::KeyCreated(Ok(())),
        IdentityAction::ProveKey => IdentityEvent::KeyProven(Ok(())),
        IdentityAction::Request(..) => IdentityEvent::Issued(Ok(())),
        IdentityAction::Adopt { .. } => IdentityEvent::Adopted(Ok(svid(now.wall, lifetime, Pending))),
    }
}

const RENEW: IdentityAction = IdentityAction::Request(Renew, Pending);
const ENROLL: IdentityAction = IdentityAction::Request(Enroll, Pending);

#[test]
fn retry_after_of_one_identity_does_not_bind_the_other() {
    let mut pair = Pair::active(secs(3600));
    pair.wait_for(SECOND, RENEW);
    pair.fail(SECOND, FailureKind::Transient, Some(DAY));
    pair.wait_for(FIRST, IdentityAction::Adopt { bundle_is_fresh: false });
    assert_eq!(pair.view(FIRST).retry_after_until(pair.now), None);
    assert!(pair.view(SECOND).svid_ends_before_retry_after(pair.now));
    assert!(!pair.view(FIRST).svid_ends_before_retry_after(pair.now));
    let memory = pair.lifecycle.memory();
    let stored: Vec<_> = memory.identities.iter().map(|identity| identity.retry_after.is_some()).collect();
    assert_eq!(stored, [false, true], "and it is stored for the one");
}

#[test]
fn state_and_error_are_those_of_the_identity() {
    let mut pair = Pair::new([Some(secs(36_000)), None]);
    pair.wait_for(SECOND, ENROLL);
    assert_eq!((pair.state(FIRST), pair.state(SECOND)), (State::Active, State::Enrolling));
    pair.fail(SECOND, FailureKind::Permanent, None);
    assert_eq!((pair.state(FIRST), pair.state(SECOND)), (State::Active, State::Blocked));
    assert_eq!(pair.view(FIRST).last_error(pair.now), None);
    assert!(pair.view(SECOND).last_error(pair.now).unwrap().0.permanent);
}

#[test]
fn renew_command_reaches_one_identity_only() {
    let mut pair = Pair::active(secs(36_000));
    pair.wait_for(FIRST, RENEW);
    pair.fail(FIRST, FailureKind::Permanent, None);
    let due = pair.view(FIRST).renew_at();
    pair.handle(Event::Command(Command::Renew(SECOND)));
    assert_eq!(pair.state(FIRST), State::Blocked, "what was refused to the first stays refused (P2)");
    assert_eq!(pair.view(FIRST).renew_at(), due);
    pair.wait_for(SECOND, RENEW);
    pair.handle(Event::Command(Command::Renew(FIRST)));
    assert_ne!(pair.state(FIRST), State::Blocked);
}

#[test]
fn renew_command_without_an_svid_changes_nothing() {
    let mut pair = Pair::new([Some(secs(36_000)), None]);
    pair.wait_for(SECOND, ENROLL);
    pair.fail(SECOND, FailureKind::Permanent, None);
    pair.handle(Event::Command(Command::Renew(SECOND)));
    pair.handle(Event::Command(Command::Renew(IdentityIndex(7))));
    assert_eq!(pair.state(SECOND), State::Blocked, "a renewal is no enrollment");
    pair.handle(Event::Command(Command::Retry));
    pair.wait_for(SECOND, ENROLL);
}

#[test]
fn lost_key_of_one_identity_leaves_the_other_alone() {
    let mut pair = Pair::active(secs(3600));
    pair.wait_for(SECOND, IdentityAction::ProveKey);
    let lost = failure(FailureKind::CurrentKeyLost, None);
    pair.handle(Event::Identity(SECOND, IdentityEvent::KeyProven(Err(lost))));
    assert!(pair.view(SECOND).key_is_lost() && !pair.view(FIRST).key_is_lost());
    let renew_in = pair.now.wall.until(pair.view(FIRST).renew_at().unwrap());
    pair.luck = 0.0;
    pair.handle(Event::Command(Command::ReplaceKey(FIRST)));
    assert_eq!(pair.state(SECOND), State::Blocked, "the permission is for the first");
    assert!(pair.wait_for(FIRST, RENEW) <= renew_in + secs(10));
}

#[test]
fn changed_document_is_a_correction_for_every_identity() {
    let mut pair = Pair::new([None, None]);
    for index in [FIRST, SECOND] {
        pair.wait_for(index, ENROLL);
        pair.fail(index, FailureKind::Permanent, None);
    }
    assert_eq!((pair.state(FIRST), pair.state(SECOND)), (State::Blocked, State::Blocked));
    while pair.in_flight != Some(Action::FetchDiscovery) {
        pair.go_on(|_, action| panic!("{action:?} although both are refused"));
    }
    pair.handle(Event::Discovery(Ok(DiscoveryFacts { changed: true, ..document() })));
    pair.wait_for(FIRST, ENROLL);
    pair.wait_for(SECOND, ENROLL);
}

/// What becomes of an identity, whatever it tries.
#[derive(Clone, Debug)]
enum Trouble {
    Request(FailureKind, Option<Duration>),
    CreateKey,
    LostKey,
    EarlyChain(u64),
    UnknownIssuer,
    ExpiredIssuer,
    RefusedChain,
    UnstoredChain,
}

impl Trouble {
    fn outcome(&self, action: IdentityAction, now: Now) -> IdentityEvent {
        let slow = || failure(FailureKind::Slow, None);
        match (self, action) {
            (Self::Request(kind, wait), IdentityAction::Request(..)) => {
                let wait = wait.filter(|_| !asks_nobody(*kind));
                IdentityEvent::Issued(Err(failure(*kind, wait)))
            }
            (Self::CreateKey, IdentityAction::CreateKey) => {
                IdentityEvent::KeyCreated(Err(failure(FailureKind::Local, None)))
            }
            (Self::LostKey, IdentityAction::ProveKey) => {
                IdentityEvent::KeyProven(Err(failure(FailureKind::CurrentKeyLost, None)))
            }
            (_, IdentityAction::Adopt { bundle_is_fresh }) => IdentityEvent::Adopted(Err(match self {
                Self::EarlyChain(wait) => NotAdopted::Early(now.wall.after(secs(*wait))),
                Self::UnknownIssuer | Self::ExpiredIssuer if !bundle_is_fresh => NotAdopted::UnknownIssuer,
                Self::ExpiredIssuer => NotAdopted::IssuerExpired(slow()),
                Self::UnstoredChain => NotAdopted::Kept(failure(FailureKind::Local, None)),
                _ => NotAdopted::Refused(slow()),
            })),
            (_, action) => good(action, secs(600), now),
        }
    }
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        6 => (failure_kind(), retry_after()).prop_map(|(kind, wait)| Trouble::Request(kind, wait)),
        1 => Just(Trouble::CreateKey),
        1 => Just(Trouble::LostKey),
        1 => (0..600_u64).prop_map(Trouble::EarlyChain),
        1 => Just(Trouble::UnknownIssuer),
        1 => Just(Trouble::ExpiredIssuer),
        1 => Just(Trouble::RefusedChain),
        1 => Just(Trouble::UnstoredChain),
    ]
}

proptest! {
    #![proptest_config(miaf_spiffe::testing::cases(64))]

    /// An identity that is refused, blocked, pending or broken does not delay the renewal of the
    /// other, whichever of them comes first: it is adopted within what its own actions take, and
    /// those of the other that come in between.
    #[test]
    fn troubled_identity_never_delays_the_other(
        trouble in trouble(),
        has_svid in any::<bool>(),
        lifetime in 600..20_000_u64,
        commands in any::<bool>(),
        comes_last in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let lifetime = secs(lifetime);
        let lifetimes = [Some(lifetime), has_svid.then_some(lifetime)];
        let (healthy, other, lifetimes) = match comes_last {
            true => (SECOND, FIRST, [lifetimes[1], lifetimes[0]]),
            false => (FIRST, SECOND, lifetimes),
        };
        let mut pair = Pair::new(lifetimes);
        pair.random = Some(seed | 1);
        let (mut renewals, mut turns) = (0, 0);
        while renewals < 4 {
            turns += 1;
            prop_assert!(turns < 100_000, "it is not renewed");
            if commands && turns % 50 == 0 {
                pair.handle(Event::Command(Command::Renew(other)));
            }
            let (now, due) = (pair.now, pair.view(healthy).renew_at().unwrap());
            let action = pair.go_on(|index, action| {
                if index == healthy { good(action, lifetime, now) } else { trouble.outcome(action, now) }
            });
            if matches!(action, Some(Action::Identity(index, IdentityAction::Adopt { .. })) if index == healthy) {
                renewals += 1;
                let delay = due.until(pair.now.wall);
                prop_assert!(delay <= secs(12), "renewed {delay:?} late");
            }
        }
    }
}
