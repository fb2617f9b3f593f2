//! One device, and short words for what happens to it.

use std::collections::BTreeMap;

use super::super::Action::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;

pub(super) const START: Timestamp = Timestamp::from_secs(1_800_000_000);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(super) const ADOPT: Action = Action::Adopt { bundle_is_fresh: false };

pub(super) struct Device {
    pub(super) lifecycle: Lifecycle,
    pub(super) now: Now,
    pub(super) doing: Option<Action>,
    pub(super) wake_in: Option<Duration>,
    /// Every draw, unless there is a source of random numbers.
    pub(super) luck: f64,
    pub(super) random: Option<u64>,
    pub(super) asked_with: KeyChoice,
}

impl Device {
    pub(super) fn fresh() -> Self {
        let now = Now { wall: START, boot: BootTime::default(), synchronised: false };
        let lifecycle = Lifecycle::new(policy(), Restored::default(), now, &mut || 0.5);
        let asked_with = Pending;
        Self { lifecycle, now, doing: None, wake_in: None, luck: 0.5, random: None, asked_with }
    }

    /// The first request has just been sent.
    pub(super) fn enrolling() -> Self {
        let mut device = Self::fresh();
        device.starts();
        device.told(discovered());
        device.told(bundle());
        assert_eq!(device.told(key_created()), Some(Action::Request(Enroll, Pending)));
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
        device.waits_for(Action::Request(Renew, Pending));
        device
    }

    pub(super) fn becomes_active(&mut self, lifetime: Duration) {
        self.starts();
        self.told(discovered());
        self.told(bundle());
        self.told(key_created());
        self.told(answered());
        self.adopts_for(lifetime, Pending);
        assert_eq!(self.state(), State::Active);
    }

    pub(super) fn starts(&mut self) -> Option<Action> {
        self.told(Event::Wake)
    }

    pub(super) fn restarts(&mut self, restored: Restored) {
        let luck = self.luck;
        self.lifecycle = Lifecycle::new(policy(), restored, self.now, &mut || luck);
        self.doing = None;
        self.starts();
    }

    pub(super) fn told(&mut self, event: Event) -> Option<Action> {
        let (luck, random) = (self.luck, &mut self.random);
        let mut draw = || random.as_mut().map_or(luck, next_random);
        let under_way = self.doing.take().filter(|_| matches!(event, Event::Wake | Event::Command(_)));
        let step = self.lifecycle.step(event, self.now, &mut draw);
        self.wake_in = step.wake_in;
        if let Some(Action::Request(_, key)) = step.action {
            self.asked_with = key;
        }
        self.doing = under_way.or(step.action);
        self.doing.clone()
    }

    /// The answer is good: an SVID from now on.
    pub(super) fn adopts_for(&mut self, lifetime: Duration, key: KeyChoice) -> Option<Action> {
        assert!(matches!(self.doing, Some(Action::Adopt { .. })), "{:?}", self.doing);
        self.told(Event::Adopted(Ok(svid(self.now.wall, lifetime, key))))
    }

    /// A response of the MIS shows that it is this time.
    pub(super) fn is_shown(&mut self, time: Timestamp) -> TimeVerdict {
        self.lifecycle.time_is_shown(time, self.now)
    }

    /// So many responses show it that it counts, whatever this device's clock says.
    pub(super) fn is_convinced_of(&mut self, time: Timestamp) {
        for _ in 0..3 {
            self.is_shown(time);
        }
    }

    /// A revalidation, whenever it comes, finds this document.
    pub(super) fn knows(&mut self, facts: DiscoveryFacts) {
        self.lifecycle.discovery.as_mut().unwrap().facts = facts;
    }

    pub(super) fn passes(&mut self, time: Duration) {
        self.now = later(self.now, time);
        self.told(Event::Wake);
    }

    pub(super) fn wall_jumps(&mut self, seconds: i64) {
        self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() + seconds * 1000);
        self.told(Event::Wake);
    }

    /// Sleeps until this is wanted, and says how long that took. What comes up on the way goes well, but no request is
    /// expected there.
    pub(super) fn waits_for(&mut self, wanted: Action) -> Duration {
        let begin = self.now.boot;
        for _ in 0..200_000 {
            match &self.doing {
                Some(action) if *action == wanted => return begin.until(self.now.boot),
                Some(Action::Request(..) | Action::Adopt { .. }) => break,
                _ => self.goes_on(good),
            }
        }
        panic!("{:?} comes and not {wanted:?}", self.doing);
    }

    /// Until the next request of any kind.
    pub(super) fn waits_to_ask(&mut self) -> Duration {
        let begin = self.now.boot;
        while !matches!(self.doing, Some(Action::Request(..))) {
            self.goes_on(good);
        }
        begin.until(self.now.boot)
    }

    pub(super) fn goes_on(&mut self, answer: impl Fn(&Action) -> Event) {
        match self.doing.clone() {
            Some(action) => self.told(answer(&action)),
            None => {
                let wake_in = self.wake_in.expect("without an action there is a time to look again");
                assert!(!wake_in.is_zero(), "a look that finds nothing to do is not repeated at once");
                self.now = later(self.now, wake_in);
                self.told(Event::Wake)
            }
        };
    }

    /// How often each kind of work is done in this time.
    pub(super) fn lives_through(
        &mut self,
        time: Duration,
        answer: impl Fn(&Action) -> Event,
    ) -> BTreeMap<&'static str, u32> {
        let end = self.now.boot.after(time);
        let mut looks = BTreeMap::new();
        while self.now.boot < end {
            if let Some(action) = &self.doing {
                let times = looks.entry(kind(action)).or_insert(0);
                *times += 1;
                assert!(*times < 10_000, "{action:?} in a circle");
            }
            self.goes_on(&answer);
        }
        looks
    }

    pub(super) fn state(&self) -> State {
        self.lifecycle.state(self.now)
    }

    pub(super) fn error(&self) -> Option<(LastError, Option<Duration>)> {
        self.lifecycle.last_error(self.now)
    }
}

pub(super) fn good(action: &Action) -> Event {
    match action {
        FetchDiscovery => discovered(),
        FetchBundle => bundle(),
        CreateKey => key_created(),
        ProveKey => key_proven(),
        Action::Request(..) => answered(),
        Action::Adopt { .. } => panic!("what is adopted is for the story to say"),
    }
}

pub(super) fn kind(action: &Action) -> &'static str {
    match action {
        FetchDiscovery => "discovery",
        FetchBundle => "bundle",
        CreateKey => "key",
        ProveKey => "proof",
        Action::Request(..) => "request",
        Action::Adopt { .. } => "adopt",
    }
}

pub(super) fn policy() -> Policy {
    Policy {
        window: (0.4, 0.6),
        retry: Backoff { base: secs(5), cap: secs(3600) },
        bundle_refresh: secs(300),
        rotate: true,
    }
}

pub(super) fn document() -> DiscoveryFacts {
    DiscoveryFacts { changed: false, cannot_enroll: None, cannot_renew: None }
}

/// What is found on disk at a start.
pub(super) fn an_identity() -> Restored {
    let svid = Some(svid(START, 100 * DAY, Current));
    Restored { discovery: Some(document()), bundle: true, svid, ..Restored::default() }
}

pub(super) fn discovered() -> Event {
    Event::Discovery(Ok(document()))
}

pub(super) fn discovered_anew() -> Event {
    Event::Discovery(Ok(DiscoveryFacts { changed: true, ..document() }))
}

pub(super) fn bundle() -> Event {
    Event::Bundle(Ok(facts(None)))
}

pub(super) fn facts(refresh_hint: Option<Duration>) -> BundleFacts {
    BundleFacts {
        refresh_hint,
        vouches: Some(true),
        is_empty: false,
        is_new: false,
        svid_ends: None,
        anchor_changes: None,
    }
}

pub(super) fn empty_bundle() -> Event {
    Event::Bundle(Ok(BundleFacts { vouches: None, is_empty: true, ..facts(None) }))
}

pub(super) fn bundle_without_its_anchor() -> Event {
    Event::Bundle(Ok(BundleFacts { vouches: Some(false), ..facts(None) }))
}

pub(super) fn key_proven() -> Event {
    Event::KeyProven(Ok(()))
}

pub(super) fn key_lost() -> Event {
    Event::KeyProven(Err(failure(FailureKind::CurrentKeyLost, None)))
}

pub(super) fn key_created() -> Event {
    Event::KeyCreated(Ok(()))
}

pub(super) fn answered() -> Event {
    Event::Issued(Ok(()))
}

pub(super) fn refusal(kind: FailureKind, retry_after: Option<u64>) -> Event {
    Event::Issued(Err(failure(kind, retry_after.map(secs))))
}

pub(super) fn not_adopted() -> Event {
    Event::Adopted(Err(NotAdopted::Refused(failure(FailureKind::Slow, None))))
}

pub(super) fn failure(kind: FailureKind, retry_after: Option<Duration>) -> Failure {
    Failure { kind, retry_after, report: Report { title: format!("{kind:?}"), ..report() } }
}

pub(super) fn report() -> Report {
    Report::of_agent("story", "Something went wrong", &"as the story wants it")
}

pub(super) fn svid(not_before: Timestamp, lifetime: Duration, key: KeyChoice) -> SvidFacts {
    SvidFacts { not_before, not_after: not_before.after(lifetime), key_fits: true, renew_at: None, key }
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
