//! One device with one identity, and short names for what happens to it.

use crate::problem::{LastError, ProblemCode, Report};
use std::collections::BTreeMap;

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

/// The only identity of the device.
pub(super) const DEVICE: IdentityIndex = IdentityIndex(0);
pub(super) const RENEW_NOW: Command = Command::Renew(DEVICE);
pub(super) const REPLACE_KEY: Command = Command::ReplaceKey(DEVICE);

/// An [`Action`] of the trust domain or of its only identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    FetchDiscovery,
    FetchBundle,
    CreateKey,
    ProveKey,
    Request(Request, KeyChoice),
    Adopt { bundle_is_fresh: bool },
}

impl From<Action> for Work {
    fn from(action: Action) -> Self {
        match action {
            Action::FetchDiscovery => FetchDiscovery,
            Action::FetchBundle => FetchBundle,
            Action::Identity(_, action) => match action {
                IdentityAction::CreateKey => CreateKey,
                IdentityAction::ProveKey => ProveKey,
                IdentityAction::Request(request, key) => Self::Request(request, key),
                IdentityAction::Adopt { bundle_is_fresh } => Self::Adopt { bundle_is_fresh },
            },
        }
    }
}

/// What is found on disk of one identity and its trust domain.
#[derive(Clone, Debug, Default)]
pub(super) struct OnDisk {
    pub(super) discovery: Option<DiscoveryFacts>,
    pub(super) bundle: bool,
    pub(super) bundle_is_empty: bool,
    pub(super) bundle_refresh_hint: Option<Duration>,
    pub(super) svid: Option<SvidFacts>,
    pub(super) pending_key: bool,
    pub(super) issued_chain: bool,
    pub(super) memory: Memory,
    pub(super) time: KnownTime,
}

impl From<OnDisk> for Restored {
    fn from(disk: OnDisk) -> Self {
        let bundle =
            RestoredBundle { is_empty: disk.bundle_is_empty, refresh_hint: disk.bundle_refresh_hint };
        Self {
            trust_domain: RestoredTrustDomain {
                discovery: disk.discovery,
                bundle: disk.bundle.then_some(bundle),
                memory: disk.memory.trust_domain,
                time: disk.time,
            },
            identities: vec![RestoredIdentity {
                policy: IdentityPolicy::default(),
                svid: disk.svid,
                pending_key: disk.pending_key,
                issued_chain: disk.issued_chain,
                has_token: false,
                token_refusal: None,
                token_key: None,
                memory: disk.memory.identities.into_iter().next().unwrap_or_default(),
            }],
        }
    }
}

/// [`BundleFacts`] where there is one identity.
#[derive(Clone, Copy, Debug)]
pub(super) struct BundleForOne {
    pub(super) refresh_hint: Option<Duration>,
    pub(super) vouches: Option<bool>,
    pub(super) is_empty: bool,
    pub(super) is_new: bool,
    pub(super) svid_ends: Option<Timestamp>,
    pub(super) anchor_changes: Option<Timestamp>,
}

pub(super) fn fetched(bundle: BundleForOne) -> Event {
    let BundleForOne { refresh_hint, vouches, is_empty, is_new, svid_ends, anchor_changes } = bundle;
    let svids = vec![SvidTrust { vouches, svid_ends, anchor_changes }];
    Event::Bundle(Ok(BundleFacts { refresh_hint, is_empty, is_new, svids }))
}

pub(super) fn creation(outcome: Result<(), Failure>) -> Event {
    Event::Identity(DEVICE, IdentityEvent::KeyCreated(outcome))
}

pub(super) fn proof(outcome: Result<(), Failure>) -> Event {
    Event::Identity(DEVICE, IdentityEvent::KeyProven(outcome))
}

pub(super) fn issuance(outcome: Result<(), Failure>) -> Event {
    Event::Identity(DEVICE, IdentityEvent::Issued(outcome))
}

pub(super) fn adoption(outcome: Result<SvidFacts, NotAdopted>) -> Event {
    Event::Identity(DEVICE, IdentityEvent::Adopted(outcome))
}

pub(super) const START: Timestamp = Timestamp::from_secs(1_800_000_000);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(super) const ADOPT: Work = Work::Adopt { bundle_is_fresh: false };

pub(super) struct Device {
    pub(super) lifecycle: Lifecycle,
    pub(super) now: Now,
    pub(super) in_flight: Option<Work>,
    pub(super) wake_in: Option<Duration>,
    /// Every draw, unless there is a source of random numbers.
    pub(super) luck: f64,
    pub(super) random: Option<u64>,
    pub(super) asked_with: KeyChoice,
}

impl Device {
    pub(super) fn fresh() -> Self {
        let now = Now { wall: START, boot: BootTime::default(), synchronised: false };
        let lifecycle = Lifecycle::new(policy(), OnDisk::default().into(), now, &mut || 0.5);
        let asked_with = Pending;
        Self { lifecycle, now, in_flight: None, wake_in: None, luck: 0.5, random: None, asked_with }
    }

    /// The first request has just been sent.
    pub(super) fn enrolling() -> Self {
        let mut device = Self::fresh();
        device.starts();
        device.handles(discovered());
        device.handles(bundle());
        assert_eq!(device.handles(key_created()), Some(Work::Request(Enroll, Pending)));
        device
    }

    pub(super) fn active(lifetime: Duration) -> Self {
        let mut device = Self::fresh();
        device.becomes_active(lifetime);
        device
    }

    /// The request for the second SVID has just been sent, with a new key.
    pub(super) fn renewing(lifetime: Duration) -> Self {
        let mut device = Self::active(lifetime);
        device.waits_for(Work::Request(Renew, Pending));
        device
    }

    pub(super) fn becomes_active(&mut self, lifetime: Duration) {
        self.starts();
        self.handles(discovered());
        self.handles(bundle());
        self.handles(key_created());
        self.handles(answered());
        self.adopts_for(lifetime, Pending);
        assert_eq!(self.state(), State::Active);
    }

    pub(super) fn starts(&mut self) -> Option<Work> {
        self.handles(Event::Wake)
    }

    pub(super) fn restarts(&mut self, disk: OnDisk) {
        let luck = self.luck;
        self.lifecycle = Lifecycle::new(policy(), disk.into(), self.now, &mut || luck);
        self.in_flight = None;
        self.starts();
    }

    pub(super) fn handles(&mut self, event: Event) -> Option<Work> {
        let (luck, random) = (self.luck, &mut self.random);
        let mut draw = || random.as_mut().map_or(luck, next_random);
        let in_flight = self.in_flight.take().filter(|_| leaves_action_in_flight(&event));
        let step = self.lifecycle.step(event, self.now, &mut draw);
        self.wake_in = step.wake_in;
        let action = step.action.map(Work::from);
        if let Some(Work::Request(_, key)) = action {
            self.asked_with = key;
        }
        self.in_flight = in_flight.or(action);
        self.in_flight
    }

    /// The answer is good: an SVID from now on.
    pub(super) fn adopts_for(&mut self, lifetime: Duration, key: KeyChoice) -> Option<Work> {
        assert!(matches!(self.in_flight, Some(Work::Adopt { .. })), "{:?}", self.in_flight);
        self.handles(adoption(Ok(svid(self.now.wall, lifetime, key))))
    }

    /// A response of the MIS shows that it is this time.
    pub(super) fn is_shown(&mut self, time: Timestamp) -> TimeVerdict {
        self.lifecycle.observe_time(time, self.now)
    }

    /// So many responses show it that it counts, whatever this device's clock says.
    pub(super) fn is_convinced_of(&mut self, time: Timestamp) {
        for _ in 0..3 {
            self.is_shown(time);
        }
    }

    /// A revalidation, whenever it comes, finds this document.
    pub(super) fn knows(&mut self, facts: DiscoveryFacts) {
        self.lifecycle.trust_domain.discovery.as_mut().unwrap().facts = facts;
    }

    pub(super) fn passes(&mut self, time: Duration) {
        self.now = later(self.now, time);
        self.handles(Event::Wake);
    }

    pub(super) fn wall_jumps(&mut self, seconds: i64) {
        self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() + seconds * 1000);
        self.handles(Event::Wake);
    }

    /// Sleeps until this is wanted, and says how long that took. What comes up on the way goes
    /// well, but no request is expected there.
    pub(super) fn waits_for(&mut self, wanted: Work) -> Duration {
        let begin = self.now.boot;
        for _ in 0..200_000 {
            match &self.in_flight {
                Some(action) if *action == wanted => return begin.until(self.now.boot),
                Some(Work::Request(..) | Work::Adopt { .. }) => break,
                _ => self.goes_on(good),
            }
        }
        panic!("{:?} comes and not {wanted:?}", self.in_flight);
    }

    /// Until the next request of any kind.
    pub(super) fn waits_to_ask(&mut self) -> Duration {
        let begin = self.now.boot;
        while !matches!(self.in_flight, Some(Work::Request(..))) {
            self.goes_on(good);
        }
        begin.until(self.now.boot)
    }

    pub(super) fn goes_on(&mut self, answer: impl Fn(&Work) -> Event) {
        match self.in_flight {
            Some(action) => self.handles(answer(&action)),
            None => {
                let wake_in = self.wake_in.expect("without an action there is a time to look again");
                assert!(!wake_in.is_zero(), "a look that finds nothing to do is not repeated at once");
                self.now = later(self.now, wake_in);
                self.handles(Event::Wake)
            }
        };
    }

    /// How often each kind of work is done in this time.
    pub(super) fn lives_through(
        &mut self,
        time: Duration,
        answer: impl Fn(&Work) -> Event,
    ) -> BTreeMap<&'static str, u32> {
        let end = self.now.boot.after(time);
        let mut looks = BTreeMap::new();
        while self.now.boot < end {
            if let Some(action) = &self.in_flight {
                let times = looks.entry(kind(action)).or_insert(0);
                *times += 1;
                assert!(*times < 10_000, "{action:?} in a circle");
            }
            self.goes_on(&answer);
        }
        looks
    }

    pub(super) fn view(&self) -> IdentityView<'_> {
        self.lifecycle.identity(DEVICE).unwrap()
    }

    pub(super) fn state(&self) -> State {
        self.view().state(self.now)
    }

    /// The error of the identity, or the one that it shares with others where only that one blocks.
    pub(super) fn error(&self) -> Option<(LastError, Option<Duration>)> {
        let (own, shared) = (self.view().last_error(self.now), self.lifecycle.last_error(self.now));
        let blocks = |error: &(LastError, Option<Duration>)| error.0.permanent;
        own.clone().filter(blocks).or(shared.clone().filter(blocks)).or(own).or(shared)
    }
}

/// Whether an event is no outcome of the action in flight.
pub(super) fn leaves_action_in_flight(event: &Event) -> bool {
    matches!(event, Event::Wake | Event::Command(_) | Event::Supplied(..) | Event::BundleFileChanged)
}

pub(super) fn good(action: &Work) -> Event {
    match action {
        FetchDiscovery => discovered(),
        FetchBundle => bundle(),
        CreateKey => key_created(),
        ProveKey => key_proven(),
        Work::Request(..) => answered(),
        Work::Adopt { .. } => panic!("what is adopted is for the story to say"),
    }
}

pub(super) fn kind(action: &Work) -> &'static str {
    match action {
        FetchDiscovery => "discovery",
        FetchBundle => "bundle",
        CreateKey => "key",
        ProveKey => "proof",
        Work::Request(..) => "request",
        Work::Adopt { .. } => "adopt",
    }
}

pub(super) fn policy() -> Policy {
    Policy {
        window: (0.4, 0.6),
        retry: Backoff { base: secs(5), cap: secs(3600) },
        bundle_refresh: secs(300),
    }
}

pub(super) fn document() -> DiscoveryFacts {
    DiscoveryFacts { changed: false, identities: Vec::new() }
}

/// What is found on disk at a start.
pub(super) fn an_identity() -> OnDisk {
    let svid = Some(svid(START, 100 * DAY, Current));
    OnDisk { discovery: Some(document()), bundle: true, svid, ..OnDisk::default() }
}

pub(super) fn discovered() -> Event {
    Event::Discovery(Ok(document()))
}

pub(super) fn discovered_anew() -> Event {
    Event::Discovery(Ok(DiscoveryFacts { changed: true, ..document() }))
}

pub(super) fn bundle() -> Event {
    fetched(facts(None))
}

pub(super) fn facts(refresh_hint: Option<Duration>) -> BundleForOne {
    BundleForOne {
        refresh_hint,
        vouches: Some(true),
        is_empty: false,
        is_new: false,
        svid_ends: None,
        anchor_changes: None,
    }
}

pub(super) fn empty_bundle() -> Event {
    fetched(BundleForOne { vouches: None, is_empty: true, ..facts(None) })
}

pub(super) fn bundle_without_its_anchor() -> Event {
    fetched(BundleForOne { vouches: Some(false), ..facts(None) })
}

pub(super) fn key_proven() -> Event {
    proof(Ok(()))
}

pub(super) fn key_lost() -> Event {
    proof(Err(failure(FailureKind::CurrentKeyLost, None)))
}

pub(super) fn key_created() -> Event {
    creation(Ok(()))
}

pub(super) fn answered() -> Event {
    issuance(Ok(()))
}

pub(super) fn refusal(kind: FailureKind, retry_after: Option<u64>) -> Event {
    issuance(Err(failure(kind, retry_after.map(secs))))
}

pub(super) fn not_adopted() -> Event {
    adoption(Err(NotAdopted::Refused(failure(FailureKind::Slow, None))))
}

pub(super) fn failure(kind: FailureKind, retry_after: Option<Duration>) -> Failure {
    Failure { kind, retry_after, report: Report { title: format!("{kind:?}"), ..report() } }
}

pub(super) fn report() -> Report {
    Report::new(ProblemCode::ServerError, "Something went wrong", &"as the story wants it")
}

pub(super) fn svid(not_before: Timestamp, lifetime: Duration, key: KeyChoice) -> SvidFacts {
    SvidFacts {
        not_before,
        not_after: not_before.after(lifetime),
        key_fits: true,
        key_use: KeyUse::default(),
        renew_at: None,
        key,
    }
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn later(now: Now, time: Duration) -> Now {
    // A sleeper wakes at the full millisecond, never before.
    let time = Duration::from_millis(u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap());
    Now { wall: now.wall.after(time), boot: now.boot.after(time), ..now }
}

/// xorshift64*: good enough for draws, and the same for everyone.
pub(super) fn next_random(seed: &mut u64) -> f64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
}
