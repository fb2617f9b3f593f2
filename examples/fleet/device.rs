//! One device: the daemon's own [`Lifecycle`], and around it, in place of `src/agent`, the least
//! that executes its actions. Other than there, nothing is stored, no certificate is made (its
//! facts are enough), and neither key nor TPM fails.

use std::time::Duration;

use miaf_agent::lifecycle::{
    Action, Backoff, BundleFacts, DiscoveryFacts, Event, Failure, FailureKind, IdentityAction, IdentityEvent,
    IdentityIndex, IdentityPolicy, Issuance, KeyChoice, KeyUse, KnownTime, Lifecycle, Memory, NotAdopted,
    Policy, Request, Restored, RestoredBundle, RestoredIdentity, RestoredTrustDomain, Rotation, Supplied,
    SvidFacts, SvidTrust,
};
use miaf_agent::time::{BootTime, Now, Timestamp};

use crate::counts::{DAY, Ending, Kind};
use crate::mis::{Mis, failure};
use crate::world::Watcher;

/// Milliseconds since the simulation began.
pub(crate) type Moment = u64;

/// The zero of the simulation on the wall clock.
const BEGIN: Timestamp = Timestamp::from_secs(1_800_000_000);

/// A dead host is noticed after as long as `src/transport/http.rs` waits for a connection.
const CONNECT_LIMIT: u64 = 10_000;

/// The identity that is measured. Another one has to leave it alone, unless both are measured.
const FIRST: IdentityIndex = IdentityIndex(0);

pub(crate) struct Device {
    lifecycle: Lifecycle,
    in_flight: Option<Action>,
    identities: Vec<Identity>,
    /// When an operator brings a fresh token.
    token_comes_at: Option<Moment>,
    /// As the cached bundle says.
    refresh_hint: Option<Duration>,
    random: Random,
}

#[derive(Clone, Default)]
struct Identity {
    policy: IdentityPolicy,
    svid: Option<SvidFacts>,
    /// Issued, and not adopted yet.
    issued: Option<SvidFacts>,
    pending_key: bool,
    token: Option<Token>,
}

/// An enrollment token (src/agent/tokens.rs).
#[derive(Clone, Copy, Default)]
struct Token {
    is_fresh: bool,
    refusals: u32,
}

/// How often a token is sent that is refused.
const MOST_REFUSALS: u32 = 5;

impl Device {
    /// As it leaves the factory: with the packaged configuration, and without an SVID.
    pub(crate) fn new(mis: &Mis, random: Random) -> Self {
        let mut random = random;
        let mut identities = vec![Identity::default(); mis.identities()];
        if mis.counts_the_second() {
            for identity in identities.iter_mut().skip(1) {
                identity.policy.issuance = Issuance::With(FIRST);
            }
        }
        if mis.est.is_some() {
            identities[FIRST.0].policy =
                IdentityPolicy { rotate: Rotation::Never, issuance: Issuance::WithToken };
            identities[FIRST.0].token = Some(Token::default());
        }
        let fresh_from = mis.est.and_then(|est| est.fresh_from);
        let token_comes_at = fresh_from.map(|from| from + random.between(0, DAY));
        let restored = |identity: &Identity| RestoredIdentity {
            policy: identity.policy,
            has_token: identity.token.is_some(),
            token_refusal: None,
            ..Default::default()
        };
        let restored =
            Restored { identities: identities.iter().map(restored).collect(), ..Restored::default() };
        let lifecycle = Lifecycle::new(policy(), restored, clocks(0), &mut || random.unit());
        Self { lifecycle, in_flight: None, identities, token_comes_at, refresh_hint: None, random }
    }

    /// What happens at this moment, and when something happens next.
    pub(crate) fn turn(&mut self, id: usize, at: Moment, mis: &mut Mis, watcher: &mut Watcher) -> Moment {
        let event = match self.in_flight.take() {
            Some(action) => self.outcome(action, id, at, mis, watcher),
            None if self.token_comes_at.is_some_and(|comes_at| comes_at <= at) => {
                self.token_comes_at = None;
                self.identities[FIRST.0].token = Some(Token { is_fresh: true, refusals: 0 });
                Event::Supplied(FIRST, Supplied::Token)
            }
            None => Event::Wake,
        };
        let random = &mut self.random;
        let step = self.lifecycle.step(event, clocks(at), &mut || random.unit());
        let next_in = match step.action {
            Some(action) => self.duration(action, at, mis),
            None => step.wake_in.map_or(1, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        };
        self.in_flight = step.action;
        let next = at + next_in.max(1);
        match self.token_comes_at {
            Some(comes_at) if step.action.is_none() => next.min(comes_at.max(at + 1)),
            _ => next,
        }
    }

    /// Power is gone, and back at this moment: what is stored is restored, as in
    /// `src/agent/restore.rs`.
    pub(crate) fn restart(&mut self, at: Moment) {
        let Memory { trust_domain, identities } = self.lifecycle.memory();
        let renew_at = self.lifecycle.identities().map(|(_, view)| view.renew_at());
        let stored = self.identities.iter().zip(renew_at).zip(identities);
        let has_documents = self.has_svid();
        let restored = Restored {
            trust_domain: RestoredTrustDomain {
                discovery: has_documents.then(|| document(false)),
                bundle: has_documents
                    .then_some(RestoredBundle { is_empty: false, refresh_hint: self.refresh_hint }),
                memory: trust_domain,
                time: KnownTime::default(),
            },
            identities: stored
                .map(|((identity, renew_at), memory)| RestoredIdentity {
                    policy: identity.policy,
                    svid: identity.svid.clone().map(|facts| SvidFacts {
                        renew_at,
                        key: KeyChoice::Current,
                        ..facts
                    }),
                    pending_key: identity.pending_key,
                    issued_chain: identity.issued.is_some(),
                    has_token: identity.token.is_some(),
                    token_refusal: None,
                    token_key: None,
                    memory,
                })
                .collect(),
        };
        let random = &mut self.random;
        self.lifecycle = Lifecycle::new(policy(), restored, clocks(at), &mut || random.unit());
        self.in_flight = None;
    }

    /// End of validity of the first identity's SVID.
    pub(crate) fn valid_until(&self) -> Option<Moment> {
        self.validity_of(FIRST)
    }

    /// The first end of validity, where all identities have SVIDs.
    pub(crate) fn all_valid_until(&self) -> Option<Moment> {
        let ends = (0..self.identities.len()).map(|nth| self.validity_of(IdentityIndex(nth)));
        ends.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    fn validity_of(&self, index: IdentityIndex) -> Option<Moment> {
        let not_after = self.identities[index.0].svid.as_ref()?.not_after;
        Some(since_begin(not_after))
    }

    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn has_svid(&self) -> bool {
        self.identities[FIRST.0].svid.is_some()
    }

    /// How long the execution takes: TPM, disk, and the round trip.
    fn duration(&mut self, action: Action, at: Moment, mis: &Mis) -> u64 {
        let round_trip = if mis.is_down(at) { CONNECT_LIMIT } else { self.random.between(40, 160) };
        match action {
            Action::FetchDiscovery | Action::FetchBundle => round_trip,
            Action::Identity(_, action) => match action {
                IdentityAction::CreateKey => self.random.between(100, 500),
                IdentityAction::ProveKey => self.random.between(50, 250),
                IdentityAction::Request(..) => self.random.between(100, 500) + round_trip,
                IdentityAction::Adopt { .. } => 20,
            },
        }
    }

    /// The MIS is asked at the moment at which its response is there.
    fn outcome(
        &mut self,
        action: Action,
        id: usize,
        at: Moment,
        mis: &mut Mis,
        watcher: &mut Watcher,
    ) -> Event {
        let mut ask = |kind| -> Result<(), Failure> {
            let response = mis.answers(kind, id, at);
            watcher.counts.add(kind, Ending::of(&response), at);
            response
        };
        match action {
            Action::FetchDiscovery => {
                Event::Discovery(ask(Kind::Discovery).map(|()| document(!self.has_svid())))
            }
            Action::FetchBundle => Event::Bundle(ask(Kind::Bundle).map(|()| {
                self.refresh_hint = mis.refresh_hint;
                let trust = |identity: &Identity| SvidTrust {
                    vouches: identity.svid.is_some().then_some(true),
                    ..SvidTrust::default()
                };
                BundleFacts {
                    refresh_hint: mis.refresh_hint,
                    is_empty: false,
                    is_new: false,
                    svids: self.identities.iter().map(trust).collect(),
                }
            })),
            Action::Identity(index, action) => {
                Event::Identity(index, self.outcome_for(index, action, id, at, mis, watcher))
            }
        }
    }

    fn outcome_for(
        &mut self,
        index: IdentityIndex,
        action: IdentityAction,
        id: usize,
        at: Moment,
        mis: &mut Mis,
        watcher: &mut Watcher,
    ) -> IdentityEvent {
        let (valid_until, device_until) = (self.validity_of(index), self.valid_until());
        let counts = index == FIRST || mis.counts_the_second();
        let identity = &mut self.identities[index.0];
        match action {
            IdentityAction::CreateKey => {
                identity.pending_key = true;
                IdentityEvent::KeyCreated(Ok(()))
            }
            IdentityAction::ProveKey => IdentityEvent::KeyProven(Ok(())),
            IdentityAction::Request(request, key) => {
                let kind = if request == Request::Enroll { Kind::Enrollment } else { Kind::Renewal };
                if index != FIRST && request == Request::Enroll && mis.counts_the_second() {
                    // It may end while the response is on its way.
                    let sent_after = at.saturating_sub(CONNECT_LIMIT + 1000);
                    assert!(
                        device_until.is_some_and(|until| sent_after <= until),
                        "bound without a valid SVID"
                    );
                    watcher.bindings += 1;
                    if let Err(refused) = mis.wfm_answers(at) {
                        return IdentityEvent::Issued(Err(refused));
                    }
                }
                let response = if counts {
                    let mut response = mis.answers(kind, id, at);
                    if mis.est.is_some() && request == Request::Enroll {
                        let token = identity.token.as_mut().expect("nothing is enrolled without a token");
                        response = response.and_then(|()| mis.answers_token(token.is_fresh, at));
                        if let Err(refused) = &mut response
                            && refused.kind == FailureKind::TokenRefused
                        {
                            token.refusals += 1;
                            if token.refusals == MOST_REFUSALS {
                                identity.token = None;
                                refused.kind = FailureKind::NoToken;
                            }
                        }
                    }
                    watcher.counts.add(kind, Ending::of(&response), at);
                    response
                } else {
                    watcher.requests_of_the_second += 1;
                    mis.answers_the_second()
                };
                IdentityEvent::Issued(response.map(|()| {
                    let (not_before, not_after) = mis.validity(at);
                    identity.issued = Some(SvidFacts {
                        not_before: BEGIN.after(Duration::from_millis(not_before)),
                        not_after: BEGIN.after(Duration::from_millis(not_after)),
                        renew_at: None,
                        key,
                        key_fits: true,
                        key_use: KeyUse::default(),
                    });
                }))
            }
            // Its issuer has expired (src/agent/identity.rs): another bundle might help.
            IdentityAction::Adopt { bundle_is_fresh }
                if identity.issued.as_ref().is_some_and(|facts| facts.not_after < clocks(at).wall) =>
            {
                IdentityEvent::Adopted(Err(if bundle_is_fresh {
                    NotAdopted::IssuerExpired(failure(FailureKind::Slow, None))
                } else {
                    NotAdopted::UnknownIssuer
                }))
            }
            IdentityAction::Adopt { .. } => match identity.issued.take() {
                Some(facts) => {
                    if counts {
                        let renew_at = self.lifecycle.identity(index).and_then(|view| view.renew_at());
                        watcher.adopted(valid_until, renew_at.map(since_begin), at);
                    }
                    identity.pending_key &= facts.key != KeyChoice::Pending;
                    identity.svid = Some(facts.clone());
                    identity.token = None;
                    IdentityEvent::Adopted(Ok(facts))
                }
                None => unreachable!("a chain is adopted that was never issued"),
            },
        }
    }
}

fn since_begin(time: Timestamp) -> Moment {
    u64::try_from(BEGIN.until(time).as_millis()).unwrap_or(u64::MAX)
}

/// The defaults of `src/config`.
fn policy() -> Policy {
    Policy {
        window: (0.4, 0.6),
        retry: Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(3600) },
        bundle_refresh: Duration::from_secs(300),
    }
}

fn document(changed: bool) -> DiscoveryFacts {
    DiscoveryFacts { changed, identities: Vec::new() }
}

/// Clocks that are right.
fn clocks(at: Moment) -> Now {
    Now { wall: BEGIN.after(Duration::from_millis(at)), boot: BootTime::from_millis(at), synchronised: true }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one generator a device, so that what one draws never
/// depends on the others.
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
