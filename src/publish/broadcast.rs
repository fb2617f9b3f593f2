//! The latest [`Snapshot`] for those who ask, and each change of it for those who subscribe.

use std::sync::Arc;

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::status::{Status, SvidDocument};
use super::{Identity, Snapshot};
use crate::spiffe::BundleDocument;
use crate::time::Timestamp;

/// The data of an event called `state`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// As `GET /v1/status` has it.
    pub status: Status,
    /// As `GET /v1/svid` has it. `None` before the first enrollment.
    pub svid: Option<SvidDocument>,
    /// As `GET /v1/bundle` has it. `None` while there is none.
    pub bundle: Option<BundleDocument>,
}

impl Watched {
    /// The snapshot as of `now`.
    pub fn of(snapshot: &Snapshot, now: Timestamp) -> Self {
        Self {
            status: Status::of(snapshot, now),
            svid: SvidDocument::of(snapshot),
            bundle: snapshot.bundle.as_ref().map(|held| held.bundle.to_document()),
        }
    }

    /// Without what changes when nothing has: that the bundle was looked at and found to be the same, or that something
    /// was tried once more and is wrong as before.
    fn essence(&self) -> Self {
        let mut essence = self.clone();
        if let Some(error) = &mut essence.status.last_error {
            error.at.clear();
            error.retry_at = None;
            error.waits_until = None;
        }
        if let Some(bundle) = &mut essence.status.bundle {
            bundle.fetched_at.clear();
            bundle.refresh_at = None;
        }
        essence
    }
}

/// Where the agent tells what there is: to those who ask, and, if it has changed, to those who watch.
#[derive(Debug)]
pub struct Publication {
    latest: watch::Sender<Arc<Snapshot>>,
    changes: watch::Sender<Arc<Change>>,
}

/// One change, written once for all who watch.
#[derive(Debug)]
pub struct Change {
    essence: Watched,
    /// As a server-sent event.
    pub(crate) event: Bytes,
    number: u64,
}

impl Publication {
    /// Begins with this.
    pub fn new(snapshot: Snapshot, now: Timestamp) -> Self {
        let first = Change::new(&Watched::of(&snapshot, now), 1);
        Self { latest: watch::Sender::new(Arc::new(snapshot)), changes: watch::Sender::new(Arc::new(first)) }
    }

    /// What is to be told from `now` on.
    pub fn tell(&self, mut snapshot: Snapshot, now: Timestamp) {
        snapshot.identity_before = before(&snapshot, &self.latest.borrow());
        let watched = Watched::of(&snapshot, now);
        self.latest.send_replace(Arc::new(snapshot));
        self.changes.send_if_modified(|change| {
            let is_news = watched.essence() != change.essence;
            if is_news {
                *change = Arc::new(Change::new(&watched, change.number + 1));
            }
            is_news
        });
    }

    /// What there is, whenever it is asked for.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.latest.subscribe()
    }

    /// What has changed last, and what will.
    pub fn changes(&self) -> watch::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }
}

/// The identity that came before the one in `snapshot`, as far as this process has told of it.
fn before(snapshot: &Snapshot, last: &Snapshot) -> Option<Arc<Identity>> {
    let (now, then) = (snapshot.identity.as_ref()?, last.identity.as_ref()?);
    let is_the_same = now.svid.chain().leaf() == then.svid.chain().leaf();
    if is_the_same { last.identity_before.clone() } else { Some(Arc::clone(then)) }
}

impl Change {
    fn new(watched: &Watched, number: u64) -> Self {
        let data = serde_json::to_string(watched).unwrap_or_default(); // these types always serialise, on one line
        let event = format!("event: state\nid: {number}\ndata: {data}\n\n");
        Self { essence: watched.essence(), event: event.into(), number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{LastError, Report};
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn blocked(detail: &str, at: Timestamp) -> Snapshot {
        let report = Report::of_agent("state", "It cannot be read", &detail);
        Snapshot::blocked(LastError { report, at, permanent: true }, Some(at.after(Duration::from_secs(5))))
    }

    #[test]
    fn the_same_error_once_more_is_no_change_and_another_is() {
        let publication = Publication::new(blocked("disk", NOW), NOW);
        let mut changes = publication.changes();
        changes.mark_unchanged();
        let later = NOW.after(Duration::from_secs(60));
        publication.tell(blocked("disk", later), later);
        assert!(!changes.has_changed().unwrap());
        assert_ne!(
            publication.snapshots().borrow().last_error.as_ref().unwrap().0.at,
            NOW,
            "who asks is told"
        );
        publication.tell(blocked("another disk", later), later);
        assert!(changes.has_changed().unwrap());
    }

    fn identity() -> Arc<Identity> {
        let mut params = rcgen::CertificateParams::default();
        let id = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        params.serial_number = Some(vec![7].into());
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let chain = crate::spiffe::svid::Chain::from_pem(&[certificate.pem()]).unwrap();
        let svid = crate::spiffe::svid::X509Svid::from_stored(chain).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let keys = crate::keys::software::Software::new(None, folder.path().join("kek"));
        Arc::new(Identity { svid, key: Arc::new(keys.create_key().unwrap()), credential: None })
    }

    /// An MIS may number all of its SVIDs the same.
    #[test]
    fn the_identity_before_is_told_by_its_certificate() {
        let (first, second) = (identity(), identity());
        let holding = |identity: &Arc<Identity>| Snapshot {
            identity: Some(identity.clone()),
            ..Snapshot::unconfigured()
        };
        let publication = Publication::new(holding(&first), NOW);
        let before = || publication.snapshots().borrow().identity_before.clone();
        publication.tell(holding(&Arc::new(Identity::clone(&first))), NOW);
        assert!(before().is_none(), "the same, read once more");
        publication.tell(holding(&second), NOW);
        assert!(before().is_some_and(|before| Arc::ptr_eq(&before, &first) || before.svid == first.svid));
    }
}
