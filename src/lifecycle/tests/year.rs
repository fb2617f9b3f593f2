//! Ten identities of all kinds side by side through a year, with outages, kills and clock jumps of
//! the device. What becomes of one of them never moves an action of another by more than the
//! actions that happen to be in flight: the same year, once with the trouble of one identity and
//! once without, has the others do the same at the same time.

use super::super::KeyChoice::{Current, Pending};
use super::super::*;
use super::device::{
    DAY, START, document, failure, leaves_action_in_flight, next_random, policy, secs, svid,
};
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

const DEVICE: IdentityIndex = IdentityIndex(0);

/// Every action takes this long.
const ACTION: u64 = 1;

/// So far apart may the times of an action be, in milliseconds: each time that two actions meet,
/// one of them waits for the other, and what follows from it comes later by as much.
const APART: u64 = 200;

const HOUR: u64 = 3_600_000;
const YEAR: u64 = 365 * 24 * HOUR;

/// Ways and lifetimes in days.
const IDENTITIES: [(Issuance, u32); 10] = [
    (Issuance::Requested, 90),
    (Issuance::With(DEVICE), 30),
    (Issuance::With(DEVICE), 7),
    (Issuance::With(DEVICE), 2),
    (Issuance::ByOperator, 90),
    (Issuance::ByOperator, 60),
    (Issuance::ByOperator, 30),
    (Issuance::ByOperator, 20),
    (Issuance::ByOperator, 10),
    (Issuance::Requested, 14),
];

fn lifetime(nth: usize) -> Duration {
    IDENTITIES[nth].1 * DAY
}

/// What happens to all identities.
#[derive(Clone, Copy, Debug)]
enum Shared {
    OutageBegins,
    OutageEnds,
    Kill,
    /// In seconds.
    Jump(i64),
    Retry,
}

/// What becomes of one identity for some time.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Requests(FailureKind, Option<Duration>),
    CreateKey,
    LostKey,
    EarlyChain,
    UnknownIssuer,
    ExpiredIssuer,
    RefusedChain,
    UnstoredChain,
    NotVouchedFor,
    /// No operator comes.
    Neglected,
    /// An operator's script brings a chain every hour, and calls for a renewal.
    Pestered,
}

#[derive(Clone, Debug)]
struct History {
    shared: Vec<(u64, Shared)>,
    trouble: Vec<(std::ops::Range<u64>, Trouble)>,
    luck: f64,
    operator_comes_after: [u64; 10],
}

impl History {
    fn of(seed: u64) -> Self {
        let mut seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |below: u64| (next_random(&mut seed) * below as f64) as u64;
        let mut shared = Vec::new();
        for _ in 0..12 {
            let (begins, lasts) = (draw(YEAR), HOUR + draw(5 * 24 * HOUR));
            shared.extend([(begins, Shared::OutageBegins), (begins + lasts, Shared::OutageEnds)]);
        }
        for _ in 0..20 {
            shared.push((draw(YEAR), Shared::Kill));
            let (begins, off) = (draw(YEAR), draw(6 * 86_400) as i64 - 3 * 86_400);
            shared
                .extend([(begins, Shared::Jump(off)), (begins + HOUR + draw(48 * HOUR), Shared::Jump(-off))]);
        }
        shared.extend((0..6).map(|_| (draw(YEAR), Shared::Retry)));
        shared.sort_by_key(|(at, _)| *at);
        let trouble = (0..25).map(|_| {
            let waits = [None, Some(secs(draw(100_000))), Some(Duration::MAX)][draw(3) as usize];
            let (trouble, longest) = match draw(15) {
                0 => (Trouble::CreateKey, 2),
                1 => (Trouble::LostKey, 20),
                2 => (Trouble::EarlyChain, 10),
                3 => (Trouble::UnknownIssuer, 20),
                4 => (Trouble::ExpiredIssuer, 20),
                5 => (Trouble::RefusedChain, 20),
                6 => (Trouble::UnstoredChain, 2),
                7 => (Trouble::NotVouchedFor, 20),
                8 => (Trouble::Neglected, 100),
                9 => (Trouble::Pestered, 20),
                10 => (Trouble::Requests(FailureKind::Transient, waits), 20),
                11 => (Trouble::Requests(FailureKind::Permanent, waits), 40),
                12 => (Trouble::Requests(FailureKind::NotAuthenticated, waits), 20),
                13 => (Trouble::Requests(FailureKind::NotFound, waits), 20),
                _ => (Trouble::Requests(FailureKind::KeyRotationRefused, waits), 40),
            };
            let begins = draw(YEAR);
            (begins..begins + HOUR + draw(longest * 24 * HOUR), trouble)
        });
        let trouble = trouble.collect();
        let operator_comes_after = std::array::from_fn(|nth| {
            // Late, sometimes, but before the end; what the clock does meanwhile is another matter.
            draw(lifetime(nth).as_millis() as u64 * 4 / 10)
        });
        Self { shared, trouble, luck: draw(1000) as f64 / 1000.0, operator_comes_after }
    }
}

/// The device, through that year.
struct Year<'a> {
    history: &'a History,
    /// The identity that has the trouble of the history.
    troubled: Option<usize>,
    lifecycle: Lifecycle,
    /// Milliseconds since the start, which is the boot clock.
    at: u64,
    wall_off: i64,
    outages: u32,
    in_flight: Option<Action>,
    /// When the action in flight ends, or the lifecycle is to be woken.
    goes_on_at: u64,
    on_disk: [OnDisk; 10],
    /// What each identity did, and when.
    log: [Vec<(u64, String)>; 10],
    pestered_at: u64,
}

#[derive(Clone, Debug, Default)]
struct OnDisk {
    svid: Option<SvidFacts>,
    pending_key: bool,
    issued: bool,
    operator_comes_at: Option<u64>,
}

impl<'a> Year<'a> {
    fn lived(history: &'a History, troubled: Option<usize>) -> Self {
        let mut year = Self {
            history,
            troubled,
            lifecycle: Lifecycle::new(policy(), Restored::default(), now_at(0, 0), &mut || 0.5),
            at: 0,
            wall_off: 0,
            outages: 0,
            in_flight: None,
            goes_on_at: 0,
            on_disk: Default::default(),
            log: Default::default(),
            pestered_at: 0,
        };
        year.restart(Memory::default());
        let mut shared = history.shared.iter().peekable();
        while year.at < YEAR {
            let next = year.next_at();
            match shared.next_if(|(at, _)| *at <= next) {
                Some((at, what)) => {
                    year.at = year.at.max(*at);
                    year.undergo(*what);
                }
                None => {
                    year.at = next;
                    year.go_on();
                }
            }
        }
        year
    }

    fn now(&self) -> Now {
        now_at(self.at, self.wall_off)
    }

    /// When something happens of itself.
    fn next_at(&self) -> u64 {
        let operator = self.on_disk.iter().filter_map(|identity| identity.operator_comes_at).min();
        let pest = self.has(Trouble::Pestered).then_some(self.pestered_at + HOUR);
        [operator, pest].into_iter().flatten().fold(self.goes_on_at, u64::min).max(self.at)
    }

    fn step(&mut self, event: Event) {
        let in_flight = self.in_flight.take().filter(|_| leaves_action_in_flight(&event));
        let (luck, now) = (self.history.luck, self.now());
        let step = self.lifecycle.step(event, now, &mut || luck);
        if let Some(action) = step.action {
            assert!(in_flight.is_none(), "one action at a time");
            if let Action::Identity(index, action) = action {
                self.log[index.0].push((self.at, format!("{action:?}")));
            }
        }
        if in_flight.is_none() {
            let rest = step.wake_in.map_or(u64::MAX, |wait| wait.as_nanos().div_ceil(1_000_000) as u64);
            self.goes_on_at = self.at + if step.action.is_some() { ACTION } else { rest };
        }
        self.in_flight = in_flight.or(step.action);
        self.see_who_needs_an_operator();
    }

    fn see_who_needs_an_operator(&mut self) {
        let now = self.now();
        for (index, view) in self.lifecycle.identities() {
            let nth = index.0;
            let is_asked = matches!(view.state(now), State::WaitingForOperator | State::Expired);
            let is_neglected = self.troubled == Some(nth) && self.has(Trouble::Neglected);
            let identity = &mut self.on_disk[nth];
            if IDENTITIES[nth].0 != Issuance::ByOperator || !is_asked || is_neglected {
                identity.operator_comes_at = None;
            } else if identity.operator_comes_at.is_none() {
                identity.operator_comes_at = Some(self.at + 1 + self.history.operator_comes_after[nth]);
            }
        }
    }

    /// Whether the troubled identity has this trouble now.
    fn has(&self, wanted: Trouble) -> bool {
        let is_it = |trouble: &Trouble| std::mem::discriminant(trouble) == std::mem::discriminant(&wanted);
        self.troubled.is_some() && self.troubles().any(|trouble| is_it(&trouble))
    }

    fn troubles(&self) -> impl Iterator<Item = Trouble> {
        self.history.trouble.iter().filter(|(time, _)| time.contains(&self.at)).map(|(_, trouble)| *trouble)
    }

    fn undergo(&mut self, what: Shared) {
        match what {
            Shared::OutageBegins => self.outages += 1,
            Shared::OutageEnds => self.outages -= 1,
            Shared::Kill => self.restart(self.lifecycle.memory()),
            Shared::Jump(seconds) => {
                self.wall_off += seconds;
                self.step(Event::Wake);
            }
            Shared::Retry => self.step(Event::Command(Command::Retry)),
        }
    }

    fn restart(&mut self, memory: Memory) {
        let has_documents = self.at > 0;
        let renew_at: Vec<_> = self.lifecycle.identities().map(|(_, view)| view.renew_at()).collect();
        let stored = self.on_disk.iter().zip(IDENTITIES).enumerate();
        let restored = Restored {
            trust_domain: RestoredTrustDomain {
                discovery: has_documents.then(document),
                bundle: has_documents.then_some(RestoredBundle { is_empty: false, refresh_hint: Some(DAY) }),
                memory: memory.trust_domain,
                time: self.lifecycle.known_time(),
            },
            identities: stored
                .map(|(nth, (identity, (issuance, _)))| RestoredIdentity {
                    policy: IdentityPolicy {
                        rotate: if nth == 3 { Rotation::Never } else { Rotation::Always },
                        issuance,
                    },
                    svid: identity.svid.clone().map(|facts| SvidFacts {
                        renew_at: renew_at[nth],
                        key: Current,
                        ..facts
                    }),
                    pending_key: identity.pending_key,
                    issued_chain: identity.issued,
                    has_token: false,
                    token_refusal: None,
                    token_key: None,
                    memory: memory.identities.get(nth).cloned().unwrap_or_default(),
                })
                .collect(),
        };
        let luck = self.history.luck;
        self.lifecycle = Lifecycle::new(policy(), restored, self.now(), &mut || luck);
        self.in_flight = None;
        self.step(Event::Wake);
    }

    fn go_on(&mut self) {
        let comes = |identity: &OnDisk| identity.operator_comes_at.is_some_and(|at| at <= self.at);
        if let Some(nth) = self.on_disk.iter().position(comes) {
            return self.operator_brings_a_chain(nth);
        }
        if let Some(nth) = self.troubled.filter(|_| self.has(Trouble::Pestered))
            && self.pestered_at + HOUR <= self.at
        {
            self.pestered_at = self.at;
            self.step(Event::Command(Command::Renew(IdentityIndex(nth))));
            return self.operator_brings_a_chain(nth);
        }
        let Some(action) = self.in_flight else { return self.step(Event::Wake) };
        let event = match action {
            Action::FetchDiscovery => Event::Discovery(self.response().map(|()| document())),
            Action::FetchBundle => Event::Bundle(self.response().map(|()| self.bundle())),
            Action::Identity(index, action) => Event::Identity(index, self.outcome(index.0, action)),
        };
        self.step(event);
    }

    fn operator_brings_a_chain(&mut self, nth: usize) {
        let identity = &mut self.on_disk[nth];
        identity.operator_comes_at = None;
        if IDENTITIES[nth].0 == Issuance::ByOperator {
            (identity.pending_key, identity.issued) = (true, true);
        }
        self.step(Event::Supplied(IdentityIndex(nth), Supplied::Key));
        self.step(Event::Supplied(IdentityIndex(nth), Supplied::Chain));
    }

    /// The MIS is there or away, for all.
    fn response(&self) -> Result<(), Failure> {
        if self.outages > 0 { Err(failure(FailureKind::Transient, None)) } else { Ok(()) }
    }

    fn bundle(&self) -> BundleFacts {
        let svids = self.on_disk.iter().enumerate().map(|(nth, identity)| {
            let doubted = self.troubled == Some(nth) && self.has(Trouble::NotVouchedFor);
            SvidTrust { vouches: identity.svid.is_some().then_some(!doubted), ..SvidTrust::default() }
        });
        BundleFacts { refresh_hint: Some(DAY), is_empty: false, is_new: false, svids: svids.collect() }
    }

    fn outcome(&mut self, nth: usize, action: IdentityAction) -> IdentityEvent {
        let (now, response) = (self.now(), self.response());
        let of_itself = self.troubled == Some(nth);
        for trouble in self.troubles().filter(|_| of_itself).collect::<Vec<_>>() {
            if let Some(event) = self.troubled_outcome(nth, trouble, action, now) {
                return event;
            }
        }
        let renew_at = self.lifecycle.identity(IdentityIndex(nth)).and_then(|view| view.renew_at());
        let identity = &mut self.on_disk[nth];
        match action {
            IdentityAction::CreateKey => {
                identity.pending_key = true;
                IdentityEvent::KeyCreated(Ok(()))
            }
            IdentityAction::ProveKey => IdentityEvent::KeyProven(Ok(())),
            IdentityAction::Request(..) => {
                identity.issued |= response.is_ok();
                IdentityEvent::Issued(response)
            }
            IdentityAction::Adopt { .. } => {
                // Validity begins when it was due, not when the renewal came: no delay adds up.
                let is_close = |at: &Timestamp| {
                    *at <= now.wall && at.until(now.wall) < lifetime(nth) / 5 && identity.svid.is_some()
                };
                let not_before = renew_at.filter(is_close).unwrap_or(now.wall);
                let key = if std::mem::take(&mut identity.pending_key) { Pending } else { Current };
                let facts = svid(not_before, lifetime(nth), key);
                (identity.issued, identity.svid) = (false, Some(facts.clone()));
                IdentityEvent::Adopted(Ok(facts))
            }
        }
    }

    fn troubled_outcome(
        &mut self,
        nth: usize,
        trouble: Trouble,
        action: IdentityAction,
        now: Now,
    ) -> Option<IdentityEvent> {
        let slow = || failure(FailureKind::Slow, None);
        let local = || failure(FailureKind::Local, None);
        Some(match (trouble, action) {
            (Trouble::Requests(kind, wait), IdentityAction::Request(..)) => {
                IdentityEvent::Issued(Err(failure(kind, wait)))
            }
            (Trouble::CreateKey, IdentityAction::CreateKey) => IdentityEvent::KeyCreated(Err(local())),
            (Trouble::LostKey, IdentityAction::ProveKey) => {
                IdentityEvent::KeyProven(Err(failure(FailureKind::CurrentKeyLost, None)))
            }
            (_, IdentityAction::Adopt { bundle_is_fresh }) => IdentityEvent::Adopted(Err(match trouble {
                Trouble::EarlyChain => NotAdopted::Early(now.wall.after(secs(7000))),
                Trouble::UnknownIssuer | Trouble::ExpiredIssuer if !bundle_is_fresh => {
                    NotAdopted::UnknownIssuer
                }
                Trouble::ExpiredIssuer => NotAdopted::IssuerExpired(slow()),
                Trouble::UnstoredChain => NotAdopted::Kept(local()),
                Trouble::UnknownIssuer | Trouble::RefusedChain => {
                    self.on_disk[nth].issued = false;
                    NotAdopted::Refused(slow())
                }
                _ => return None,
            })),
            _ => return None,
        })
    }
}

fn now_at(at: u64, wall_off: i64) -> Now {
    let wall = START.as_millis() + i64::try_from(at).unwrap() + wall_off * 1000;
    Now { wall: Timestamp::from_millis(wall), boot: BootTime::from_millis(60_000 + at), synchronised: false }
}

#[test]
fn year_of_ten_identities_is_not_touched_by_the_trouble_of_one() {
    let (mut compared, mut misbehaved) = (0, 0);
    for seed in 1..=4 {
        let history = History::of(seed);
        let well = Year::lived(&history, None);
        for nth in 0..IDENTITIES.len() {
            let renewals = well.log[nth].iter().filter(|(_, action)| action.starts_with("Adopt")).count();
            assert!(renewals >= 4, "identity {nth} of year {seed} is renewed {renewals} times");
        }
        for troubled in (seed as usize % 2..IDENTITIES.len()).step_by(2) {
            let year = Year::lived(&history, Some(troubled));
            misbehaved += usize::from(year.log[troubled] != well.log[troubled]);
            for (nth, (issuance, _)) in IDENTITIES.into_iter().enumerate() {
                // An enrollment with the SVID of the device waits for that, and should.
                if nth == troubled || issuance == Issuance::With(IdentityIndex(troubled)) {
                    continue;
                }
                let (other, usual) = (&year.log[nth], &well.log[nth]);
                let first = other.iter().zip(usual).position(|((at, action), (usually_at, usually))| {
                    action != usually || at.abs_diff(*usually_at) > APART
                });
                assert!(
                    first.is_none() && other.len() == usual.len(),
                    "trouble of {troubled} in year {seed} touches {nth}: {:?} in place of {:?}",
                    first.map(|at| &other[at.saturating_sub(3)..(at + 3).min(other.len())]),
                    first.map(|at| &usual[at.saturating_sub(3)..(at + 3).min(usual.len())]),
                );
                compared += usual.len();
            }
        }
    }
    assert!(compared > 12_000 && misbehaved >= 16, "{compared} actions compared, {misbehaved} misbehaved");
}
