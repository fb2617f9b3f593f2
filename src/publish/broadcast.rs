//! The latest [`Snapshot`] for responses, and each change of it for subscribers.

use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::watch;

use miaf_client::api::{StateEvent, Status};

use super::status::{status, svid_document};
use super::{CurrentBundle, IdentitySnapshot, Snapshot, SvidAndKey};
use miaf_spiffe::time::Timestamp;

/// The event for a snapshot as of `now`.
fn state_event(snapshot: &Snapshot, now: Timestamp) -> StateEvent {
    let is_served = snapshot.withdrawn_since(now).is_none();
    let bundle = snapshot.bundle.as_ref().filter(|_| is_served);
    StateEvent {
        status: status(snapshot, now),
        svids: snapshot.identities().filter(|_| is_served).filter_map(svid_document).collect(),
        bundle: bundle.map(CurrentBundle::document),
    }
}

/// The event without the parts whose change is no news: that the bundle was refreshed and is
/// the same, or that something was tried once more and failed as before.
fn essence(event: &StateEvent) -> StateEvent {
    let mut essence = event.clone();
    let Status { last_error, identities, bundle, .. } = &mut essence.status;
    let of_identities = identities.iter_mut().filter_map(|identity| identity.last_error.as_mut());
    for error in last_error.iter_mut().chain(of_identities) {
        error.at = Timestamp::default();
        error.retry_at = None;
        error.waits_until = None;
    }
    if let Some(bundle) = bundle {
        bundle.fetched_at = Timestamp::default();
        bundle.refresh_at = None;
        bundle.stale_at = None;
    }
    essence
}

/// Sends snapshots to the server: every one for responses, and those with a change for subscribers.
#[derive(Debug)]
pub(crate) struct Broadcaster {
    latest: watch::Sender<Arc<Snapshot>>,
    changes: watch::Sender<Arc<StateChange>>,
}

/// One change, serialised once for all subscribers.
#[derive(Debug)]
pub(crate) struct StateChange {
    essence: StateEvent,
    /// The change as a server-sent event.
    pub(crate) event: Bytes,
    number: u64,
}

impl Broadcaster {
    /// A broadcaster with its first snapshot.
    pub(crate) fn new(snapshot: Snapshot, now: Timestamp) -> Self {
        let first = StateChange::new(&state_event(&snapshot, now), 1);
        Self { latest: watch::Sender::new(Arc::new(snapshot)), changes: watch::Sender::new(Arc::new(first)) }
    }

    /// Sends a snapshot, which is valid from `now` on.
    pub(crate) fn send(&self, mut snapshot: Snapshot, now: Timestamp) {
        let last = self.latest.borrow().clone();
        for identity in snapshot.identities_mut() {
            identity.previous = last.identity(&identity.name).and_then(|last| previous(identity, last));
        }
        let event = state_event(&snapshot, now);
        self.latest.send_replace(Arc::new(snapshot));
        self.changes.send_if_modified(|change| {
            let is_news = essence(&event) != change.essence;
            if is_news {
                *change = Arc::new(StateChange::new(&event, change.number + 1));
            }
            is_news
        });
    }

    /// The latest snapshot.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.latest.subscribe()
    }

    /// The latest change, and those that follow.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<StateChange>> {
        self.changes.subscribe()
    }
}

/// The SVID before that of `identity`, if this process has sent it.
fn previous(identity: &IdentitySnapshot, last: &IdentitySnapshot) -> Option<Arc<SvidAndKey>> {
    let (now, then) = (identity.current.as_ref()?, last.current.as_ref()?);
    let is_the_same = now.svid.chain().leaf() == then.svid.chain().leaf();
    if is_the_same { last.previous.clone() } else { Some(Arc::clone(then)) }
}

impl StateChange {
    fn new(event: &StateEvent, number: u64) -> Self {
        let data = serde_json::to_string(event).unwrap_or_default(); // these types always serialise, on one line
        let text = format!("event: state\nid: {number}\ndata: {data}\n\n");
        Self { essence: essence(event), event: text.into(), number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ProviderKind;
    use crate::problem::{LastError, ProblemCode, Report};
    use miaf_client::api::{IdentityName, State};
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn blocked(detail: &str, at: Timestamp) -> Snapshot {
        let report = Report::new(ProblemCode::State, "It cannot be read", &detail);
        let error = LastError { report, at, permanent: true };
        Snapshot::blocked((error, Some(at.after(Duration::from_secs(5)))), ProviderKind::Tpm)
    }

    #[test]
    fn same_error_again_is_no_change() {
        let broadcaster = Broadcaster::new(blocked("disk", NOW), NOW);
        let mut changes = broadcaster.changes();
        changes.mark_unchanged();
        let later = NOW.after(Duration::from_secs(60));
        broadcaster.send(blocked("disk", later), later);
        assert!(!changes.has_changed().unwrap());
        assert_ne!(
            broadcaster.snapshots().borrow().last_error.as_ref().unwrap().0.at,
            NOW,
            "responses have the time of the last"
        );
        broadcaster.send(blocked("another disk", later), later);
        assert!(changes.has_changed().unwrap());
    }

    fn svid_and_key() -> Arc<SvidAndKey> {
        let mut params = rcgen::CertificateParams::default();
        let id = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        params.serial_number = Some(vec![7].into());
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let chain = miaf_spiffe::svid::Chain::from_pem(&[certificate.pem()]).unwrap();
        let svid = miaf_spiffe::svid::X509Svid::from_stored(chain).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let keys = crate::keys::software::Software::new(None, dir.path().join("kek"));
        Arc::new(SvidAndKey { svid, key: Arc::new(keys.create_key().unwrap()), credential: None })
    }

    /// An MIS may give all of its SVIDs the same serial number.
    #[test]
    fn previous_svid_is_identified_by_its_certificate() {
        let (first, second) = (svid_and_key(), svid_and_key());
        let with = |current: &Arc<SvidAndKey>| {
            let mut snapshot = Snapshot::unconfigured(ProviderKind::Tpm);
            snapshot.default_identity.current = Some(current.clone());
            snapshot
        };
        let broadcaster = Broadcaster::new(with(&first), NOW);
        let before = || broadcaster.snapshots().borrow().default_identity.previous.clone();
        broadcaster.send(with(&Arc::new(SvidAndKey::clone(&first))), NOW);
        assert!(before().is_none(), "the same, read once more");
        broadcaster.send(with(&second), NOW);
        assert!(before().is_some_and(|before| Arc::ptr_eq(&before, &first) || before.svid == first.svid));
    }

    #[test]
    fn previous_svid_of_one_identity_is_no_other_ones() {
        let named = |name: &str, current: &Arc<SvidAndKey>| {
            let name = IdentityName::parse(name).unwrap();
            let identity = IdentitySnapshot::empty(name, State::Active, ProviderKind::Tpm);
            IdentitySnapshot { current: Some(current.clone()), ..identity }
        };
        let (device, first, second) = (svid_and_key(), svid_and_key(), svid_and_key());
        let with = |other: &Arc<SvidAndKey>| Snapshot {
            default_identity: named("device", &device),
            other_identities: vec![named("wfm", other)],
            ..Snapshot::unconfigured(ProviderKind::Tpm)
        };
        let broadcaster = Broadcaster::new(with(&first), NOW);
        let mut changes = broadcaster.changes();
        changes.mark_unchanged();
        broadcaster.send(with(&second), NOW);
        assert!(changes.has_changed().unwrap(), "of any identity");
        let snapshot = broadcaster.snapshots().borrow().clone();
        assert!(snapshot.default_identity.previous.is_none());
        assert!(snapshot.other_identities[0].previous.as_ref().is_some_and(|it| it.svid == first.svid));
    }
}
