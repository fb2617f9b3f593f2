//! An identity whose enrollment needs the SVID of the device (miaf-v0 W1).

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::{DAY, START, document, failure, later, policy, report, secs, svid};
use crate::problem::ProblemCode;
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

const DEVICE: IdentityIndex = IdentityIndex(0);
const CLIENT: IdentityIndex = IdentityIndex(1);
const ENROLL: Action = Action::Identity(CLIENT, IdentityAction::Request(Enroll, Pending));
const RENEW: Action = Action::Identity(CLIENT, IdentityAction::Request(Renew, Pending));

/// A device, and a WFM Client that is enrolled with its SVID. Everything but what a test decides
/// itself goes well, in no time.
struct Both {
    lifecycle: Lifecycle,
    now: Now,
    in_flight: Option<Action>,
    wake_in: Option<Duration>,
}

impl Both {
    fn new(svids: [Option<SvidFacts>; 2]) -> Self {
        let now = Now { wall: START, boot: BootTime::from_millis(60_000), synchronised: false };
        let issuance = [Issuance::Requested, Issuance::With(DEVICE)];
        let identities = issuance.into_iter().zip(svids).map(|(issuance, svid)| RestoredIdentity {
            policy: IdentityPolicy { issuance, ..IdentityPolicy::default() },
            svid,
            ..RestoredIdentity::default()
        });
        let restored = Restored {
            trust_domain: RestoredTrustDomain {
                discovery: Some(document()),
                bundle: Some(RestoredBundle::default()),
                ..RestoredTrustDomain::default()
            },
            identities: identities.collect(),
        };
        let lifecycle = Lifecycle::new(policy(), restored, now, &mut || 0.5);
        let mut both = Self { lifecycle, now, in_flight: None, wake_in: None };
        both.handles(Event::Wake);
        both
    }

    fn handles(&mut self, event: Event) {
        let step = self.lifecycle.step(event, self.now, &mut || 0.5);
        (self.in_flight, self.wake_in) = (step.action, step.wake_in);
    }

    fn goes_well(&mut self) {
        let event = match self.in_flight {
            None => {
                self.now = later(self.now, self.wake_in.unwrap());
                Event::Wake
            }
            Some(Action::FetchDiscovery) => Event::Discovery(Ok(document())),
            Some(Action::FetchBundle) => Event::Bundle(Ok(BundleFacts {
                refresh_hint: None,
                is_empty: false,
                is_new: false,
                svids: vec![SvidTrust { vouches: Some(true), ..SvidTrust::default() }; 2],
            })),
            Some(Action::Identity(index, action)) => Event::Identity(
                index,
                match action {
                    IdentityAction::CreateKey => IdentityEvent::KeyCreated(Ok(())),
                    IdentityAction::ProveKey => IdentityEvent::KeyProven(Ok(())),
                    IdentityAction::Request(..) => IdentityEvent::Issued(Ok(())),
                    IdentityAction::Adopt { .. } => {
                        IdentityEvent::Adopted(Ok(svid(self.now.wall, 10 * DAY, Pending)))
                    }
                },
            ),
        };
        self.handles(event);
    }

    /// What is in flight goes well until nothing is, or until this is.
    fn rests(&mut self, stop: Action) {
        while self.in_flight.is_some() && self.in_flight != Some(stop) {
            self.goes_well();
        }
    }

    fn fails(&mut self, index: IdentityIndex, kind: FailureKind) {
        self.handles(Event::Identity(index, IdentityEvent::Issued(Err(failure(kind, None)))));
    }

    fn loses_key(&mut self, index: IdentityIndex) {
        while self.in_flight != Some(Action::Identity(index, IdentityAction::ProveKey)) {
            self.goes_well();
        }
        let lost = failure(FailureKind::CurrentKeyLost, None);
        self.handles(Event::Identity(index, IdentityEvent::KeyProven(Err(lost))));
    }

    fn code(&self) -> Option<ProblemCode> {
        let (error, again) = self.lifecycle.identity(CLIENT).unwrap().last_error(self.now)?;
        assert_eq!(again.is_none(), error.report.code == ProblemCode::DeviceIdentityNeeded);
        error.report.code.known()
    }

    fn state(&self) -> State {
        self.lifecycle.identity(CLIENT).unwrap().state(self.now)
    }
}

fn until(end: Duration) -> Option<SvidFacts> {
    Some(svid(START, end, Current))
}

#[test]
fn client_enrolls_as_soon_as_the_device_has_an_svid() {
    let mut both = Both::new([None, None]);
    let device_asks = Action::Identity(DEVICE, IdentityAction::Request(Enroll, Pending));
    both.rests(device_asks);
    assert_eq!(both.in_flight, Some(device_asks));
    both.fails(DEVICE, FailureKind::Slow);
    both.rests(ENROLL);
    assert_eq!(both.in_flight, None, "it waits");
    assert_eq!((both.state(), both.code()), (State::Enrolling, Some(ProblemCode::DeviceIdentityNeeded)));
    while both.in_flight != Some(device_asks) {
        both.goes_well();
    }
    let asked_at = both.now.boot;
    both.rests(ENROLL);
    assert_eq!((both.in_flight, both.now.boot), (Some(ENROLL), asked_at), "and then no longer");
    both.rests(RENEW);
    assert_eq!((both.state(), both.code()), (State::Active, None));
}

#[test]
fn client_enrolls_when_the_svid_of_the_device_begins() {
    let begins = START.after(secs(1000));
    let mut both = Both::new([Some(svid(begins, DAY, Current)), None]);
    let mut slept = false;
    while both.in_flight != Some(ENROLL) {
        slept |= both.in_flight.is_none();
        both.goes_well();
    }
    assert!(slept);
    assert_eq!(both.now.wall, begins, "it is not slept through");
}

#[test]
fn client_renews_without_the_device() {
    let mut both = Both::new([None, until(10 * DAY)]);
    while both.in_flight != Some(RENEW) {
        match both.in_flight {
            Some(Action::Identity(DEVICE, IdentityAction::Request(..))) => {
                both.fails(DEVICE, FailureKind::Permanent);
            }
            _ => both.goes_well(),
        }
    }
    assert!(both.now.wall < START.after(7 * DAY));
}

#[test]
fn refused_credential_leads_to_renewal_while_the_device_is_away() {
    let mut both = Both::new([None, until(10 * DAY)]);
    let mut renewals = 0;
    while renewals < 5 {
        match both.in_flight {
            Some(Action::Identity(DEVICE, IdentityAction::Request(..))) => {
                both.fails(DEVICE, FailureKind::Permanent);
            }
            Some(RENEW) => {
                renewals += 1;
                both.fails(CLIENT, FailureKind::NotAuthenticated);
            }
            _ => both.goes_well(),
        }
        assert!(both.now.wall < START.after(10 * DAY), "it expires without another attempt");
    }
    // With the device's SVID an enrollment is what helps (R6).
    both.handles(Event::Command(Command::Retry));
    let mut refused = false;
    while both.in_flight != Some(ENROLL) {
        match both.in_flight {
            Some(RENEW) => {
                refused = true;
                both.fails(CLIENT, FailureKind::NotAuthenticated);
            }
            _ => both.goes_well(),
        }
        assert!(both.now.wall < START.after(10 * DAY), "it does not enroll");
    }
    assert!(refused);
}

#[test]
fn reauthentication_that_lost_its_device_renews_further() {
    let mut both = Both::new([until(5 * DAY), until(10 * DAY)]);
    while both.in_flight != Some(RENEW) {
        match both.in_flight {
            Some(Action::Identity(DEVICE, IdentityAction::Request(..))) => {
                both.fails(DEVICE, FailureKind::Permanent);
            }
            _ => both.goes_well(),
        }
    }
    both.fails(CLIENT, FailureKind::NotAuthenticated);
    both.rests(ENROLL);
    assert_eq!(both.in_flight, Some(ENROLL));
    both.fails(CLIENT, FailureKind::Transient);
    both.now = later(both.now, 2 * DAY); // past the end of the device's SVID
    both.handles(Event::Wake);
    both.rests(RENEW);
    assert_eq!(both.in_flight, Some(RENEW));
}

#[test]
fn lost_key_of_the_device_is_no_prerequisite() {
    let mut both = Both::new([until(10 * DAY), None]);
    both.loses_key(DEVICE);
    both.rests(ENROLL);
    assert_eq!((both.in_flight, both.code()), (None, Some(ProblemCode::DeviceIdentityNeeded)));
    // Its TPM is back: it is proven again, at the latest after an hour.
    let waits_from = both.now.boot;
    while both.in_flight != Some(ENROLL) {
        both.goes_well();
    }
    assert!(waits_from.until(both.now.boot) <= secs(3600));
}

#[test]
fn missing_device_identity_outweighs_an_older_error() {
    let mut both = Both::new([until(DAY), None]);
    both.rests(ENROLL);
    both.fails(CLIENT, FailureKind::Transient);
    assert_eq!(both.code(), Some(ProblemCode::ServerError));
    both.now = later(both.now, 2 * DAY);
    both.handles(Event::Wake);
    while let Some(action) = both.in_flight {
        match action {
            Action::Identity(DEVICE, IdentityAction::Request(..)) => {
                both.fails(DEVICE, FailureKind::Permanent)
            }
            _ => both.goes_well(),
        }
    }
    assert_eq!(both.code(), Some(ProblemCode::DeviceIdentityNeeded), "it is not tried in no time");
    // A permanent refusal is not forgotten for it.
    let ruled_out = RuledOut { enrollment: Some(report()), renewal: None };
    let identities = vec![RuledOut::default(), ruled_out];
    both.lifecycle.trust_domain.discovery.as_mut().unwrap().facts.identities = identities;
    assert_eq!(both.state(), State::Blocked);
}
