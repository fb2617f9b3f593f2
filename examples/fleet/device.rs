//! One device: the daemon's own [`Lifecycle`], and around it, in place of `src/agent`, the least that carries out its
//! actions. Other than there, nothing is stored, no certificate is made (its facts are enough), and key and chip never fail.

use std::time::Duration;

use miaf_agent::lifecycle::{
    Action, Backoff, BundleFacts, DiscoveryFacts, Event, Failure, FailureKind, KeyChoice, KnownTime,
    Lifecycle, NotAdopted, Policy, Request, Restored, SvidFacts,
};
use miaf_agent::time::{BootTime, Now, Timestamp};

use crate::counts::{Ending, Kind};
use crate::mis::{Mis, failure};
use crate::world::Watcher;

/// Milliseconds since the simulation began.
pub(crate) type Moment = u64;

/// The zero of the simulation on the wall clock.
const BEGIN: Timestamp = Timestamp::from_secs(1_800_000_000);

/// A dead host is noticed after as long as `src/transport/http.rs` waits for a connection.
const CONNECT_LIMIT: u64 = 10_000;

pub(crate) struct Device {
    lifecycle: Lifecycle,
    doing: Option<Action>,
    svid: Option<SvidFacts>,
    /// Issued, and not adopted yet.
    answer: Option<SvidFacts>,
    pending_key: bool,
    /// As the bundle held says.
    refresh_hint: Option<Duration>,
    random: Random,
}

impl Device {
    /// As it leaves the factory: with the packaged configuration, and no identity.
    pub(crate) fn new(random: Random) -> Self {
        let mut random = random;
        let lifecycle = Lifecycle::new(policy(), Restored::default(), clocks(0), &mut || random.unit());
        Self {
            lifecycle,
            doing: None,
            svid: None,
            answer: None,
            pending_key: false,
            refresh_hint: None,
            random,
        }
    }

    /// What happens at this moment, and when something happens next.
    pub(crate) fn turn(&mut self, id: usize, at: Moment, mis: &mut Mis, watcher: &mut Watcher) -> Moment {
        let event = match self.doing.take() {
            Some(action) => self.outcome(&action, id, at, mis, watcher),
            None => Event::Wake,
        };
        let random = &mut self.random;
        let step = self.lifecycle.step(event, clocks(at), &mut || random.unit());
        let next_in = match &step.action {
            Some(action) => self.duration(action, at, mis),
            None => step.wake_in.map_or(1, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        };
        self.doing = step.action;
        at + next_in.max(1)
    }

    /// Power is gone, and back at this moment: what is stored is restored, as in `src/agent/restore.rs`.
    pub(crate) fn restart(&mut self, at: Moment) {
        let restored = Restored {
            discovery: self.svid.is_some().then(|| document(false)),
            bundle: self.svid.is_some(),
            bundle_is_empty: false,
            bundle_refresh_hint: self.refresh_hint,
            svid: self.svid.clone().map(|facts| SvidFacts {
                renew_at: self.lifecycle.renew_at(),
                key: KeyChoice::Current,
                ..facts
            }),
            pending_key: self.pending_key,
            answer: self.answer.is_some(),
            memory: self.lifecycle.memory(),
            time: KnownTime::default(),
        };
        let random = &mut self.random;
        self.lifecycle = Lifecycle::new(policy(), restored, clocks(at), &mut || random.unit());
        self.doing = None;
    }

    /// The end of the validity of the SVID held.
    pub(crate) fn valid_until(&self) -> Option<Moment> {
        let not_after = self.svid.as_ref()?.not_after;
        Some(u64::try_from(BEGIN.until(not_after).as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// How long it takes to carry out: chip, disk, and the round trip.
    fn duration(&mut self, action: &Action, at: Moment, mis: &Mis) -> u64 {
        let round_trip = if mis.is_down(at) { CONNECT_LIMIT } else { self.random.between(40, 160) };
        match action {
            Action::FetchDiscovery | Action::FetchBundle => round_trip,
            Action::CreateKey => self.random.between(100, 500),
            Action::ProveKey => self.random.between(50, 250),
            Action::Request(..) => self.random.between(100, 500) + round_trip,
            Action::Adopt { .. } => 20,
        }
    }

    /// The MIS is asked at the moment at which its answer is there.
    fn outcome(
        &mut self,
        action: &Action,
        id: usize,
        at: Moment,
        mis: &mut Mis,
        watcher: &mut Watcher,
    ) -> Event {
        let mut ask = |kind| -> Result<(), Failure> {
            let answer = mis.answers(kind, id, at);
            watcher.counts.add(kind, Ending::of(&answer), at);
            answer
        };
        match action {
            Action::FetchDiscovery => {
                Event::Discovery(ask(Kind::Discovery).map(|()| document(self.svid.is_none())))
            }
            Action::FetchBundle => Event::Bundle(ask(Kind::Bundle).map(|()| {
                self.refresh_hint = mis.refresh_hint;
                BundleFacts {
                    refresh_hint: mis.refresh_hint,
                    vouches: self.svid.is_some().then_some(true),
                    is_empty: false,
                    is_new: false,
                    svid_ends: None,
                    anchor_changes: None,
                }
            })),
            Action::CreateKey => {
                self.pending_key = true;
                Event::KeyCreated(Ok(()))
            }
            Action::ProveKey => Event::KeyProven(Ok(())),
            Action::Request(request, key) => {
                let kind = if *request == Request::Enroll { Kind::Enrollment } else { Kind::Renewal };
                Event::Issued(ask(kind).map(|()| {
                    let (not_before, not_after) = mis.validity(at);
                    self.answer = Some(SvidFacts {
                        not_before: BEGIN.after(Duration::from_millis(not_before)),
                        not_after: BEGIN.after(Duration::from_millis(not_after)),
                        renew_at: None,
                        key: *key,
                        key_fits: true,
                    });
                }))
            }
            // Its issuer has expired (src/agent/identity.rs): another bundle might help.
            Action::Adopt { bundle_is_fresh }
                if self.answer.as_ref().is_some_and(|facts| facts.not_after < clocks(at).wall) =>
            {
                Event::Adopted(Err(if *bundle_is_fresh {
                    NotAdopted::IssuerExpired(failure(FailureKind::Slow, None))
                } else {
                    NotAdopted::UnknownIssuer
                }))
            }
            Action::Adopt { .. } => match self.answer.take() {
                Some(facts) => {
                    watcher.adopted(self.valid_until(), at);
                    self.pending_key &= facts.key != KeyChoice::Pending;
                    self.svid = Some(facts.clone());
                    Event::Adopted(Ok(facts))
                }
                None => unreachable!("an answer is adopted that never came"),
            },
        }
    }
}

/// The defaults of `src/config`.
fn policy() -> Policy {
    Policy {
        window: (0.4, 0.6),
        retry: Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(3600) },
        bundle_refresh: Duration::from_secs(300),
        rotate: true,
    }
}

fn document(changed: bool) -> DiscoveryFacts {
    DiscoveryFacts { changed, cannot_enroll: None, cannot_renew: None }
}

/// Clocks that are right.
fn clocks(at: Moment) -> Now {
    Now { wall: BEGIN.after(Duration::from_millis(at)), boot: BootTime::from_millis(at), synchronised: true }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one generator a device, so that what one draws never depends on the others.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, stream: usize) -> Self {
        let mut random = Self(
            seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (stream as u64).wrapping_mul(0xD1B5_4A32_D192_ED03),
        );
        random.next();
        random
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, least: u64, end: u64) -> u64 {
        least + (self.unit() * (end - least) as f64) as u64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
