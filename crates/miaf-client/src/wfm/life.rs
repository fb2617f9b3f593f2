//! When a connection ends: pure, values in, values out.

use std::fmt;
use std::time::Duration;

use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{BundleDocument, BundleKey};

use crate::api::{IdentityName, StateEvent, SvidDocument};

/// Limit of the life of a connection (margo-now N12).
pub const MAX_LIFE: Duration = Duration::from_secs(3600);

/// Why a connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The identity has a new SVID.
    OwnRenewal,
    /// The SVID that the connection was opened with has expired.
    OwnExpiry,
    /// The agent hands out no SVID of the identity any more: it is retired, say.
    OwnWithdrawal,
    /// The peer's SVID has expired.
    PeerExpiry,
    /// The trust bundle has other anchors, or there is none.
    BundleChange,
    /// It has lasted for [`MAX_LIFE`].
    MaxLife,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::OwnRenewal => "the identity was renewed",
            Self::OwnExpiry => "the identity's SVID has expired",
            Self::OwnWithdrawal => "the identity was withdrawn",
            Self::PeerExpiry => "the peer's SVID has expired",
            Self::BundleChange => "the trust bundle has changed",
            Self::MaxLife => "it has lasted for an hour",
        };
        write!(f, "the connection was ended: {why}; open another one")
    }
}

impl std::error::Error for Ended {}

/// What a connection was opened with.
#[derive(Clone, Debug)]
pub(super) struct Life {
    identity: IdentityName,
    /// The own certificates, as PEM.
    own: Vec<String>,
    own_not_after: Timestamp,
    /// The anchors of the trust bundle, in Base64, sorted.
    anchors: Vec<String>,
    /// End of the peer's SVID. The far future before it is known.
    peer_not_after: Timestamp,
}

impl Life {
    pub(super) fn of(own: &SvidDocument, bundle: &BundleDocument) -> Self {
        Self {
            identity: own.identity.clone(),
            own: own.certificate_chain_pem.clone(),
            own_not_after: own.not_after,
            anchors: anchors(bundle),
            peer_not_after: Timestamp::from_millis(i64::MAX),
        }
    }

    pub(super) fn with_peer(self, peer_not_after: Timestamp) -> Self {
        Self { peer_not_after, ..self }
    }

    /// Why it is over at `now`, after so long, by what does not change.
    pub(super) fn end_at(&self, now: Timestamp, open_for: Duration) -> Option<Ended> {
        if now > self.own_not_after {
            Some(Ended::OwnExpiry)
        } else if now > self.peer_not_after {
            Some(Ended::PeerExpiry)
        } else {
            (open_for >= MAX_LIFE).then_some(Ended::MaxLife)
        }
    }

    /// Why it is over by the agent's state.
    pub(super) fn end_in(&self, state: &StateEvent) -> Option<Ended> {
        let Some(own) = state.svids.iter().find(|svid| svid.identity == self.identity) else {
            return Some(Ended::OwnWithdrawal);
        };
        if own.certificate_chain_pem != self.own {
            return Some(Ended::OwnRenewal);
        }
        let is_same = state.bundle.as_ref().is_some_and(|bundle| anchors(bundle) == self.anchors);
        (!is_same).then_some(Ended::BundleChange)
    }
}

/// The anchors alone: another sequence number or refresh hint changes no one's trust.
fn anchors(bundle: &BundleDocument) -> Vec<String> {
    let mut anchors: Vec<_> =
        bundle.keys.iter().map(|BundleKey { x5c: [anchor], .. }| anchor.clone()).collect();
    anchors.sort_unstable();
    anchors
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wfm::tests::{state, svid};

    fn anchored(anchors: &[&str]) -> BundleDocument {
        let key = |anchor: &&str| BundleKey {
            kty: "EC",
            usage: "x509-svid",
            x5c: [(*anchor).to_owned()],
            ..BundleKey::default()
        };
        BundleDocument { keys: anchors.iter().map(key).collect(), ..BundleDocument::default() }
    }

    #[test]
    fn life_ends_with_the_first_of_its_ends() {
        let at = Timestamp::from_secs;
        let own = SvidDocument { not_after: at(1000), ..svid("a", &["leaf"]) };
        let life = Life::of(&own, &anchored(&["x"]));
        let minute = Duration::from_secs(60);
        assert_eq!(life.end_at(at(1000), minute), None);
        assert_eq!(life.end_at(at(1001), minute), Some(Ended::OwnExpiry));
        assert_eq!(life.end_at(at(0), MAX_LIFE), Some(Ended::MaxLife));
        assert_eq!(life.end_at(at(0), MAX_LIFE - Duration::from_millis(1)), None);
        let life = life.with_peer(at(900));
        assert_eq!(life.end_at(at(900), minute), None);
        assert_eq!(life.end_at(at(901), minute), Some(Ended::PeerExpiry));
    }

    #[test]
    fn life_ends_with_another_svid_or_other_anchors() {
        let life = Life::of(&svid("a", &["leaf", "ca"]), &anchored(&["x", "y"]));
        let end = |svids: &[SvidDocument], bundle| life.end_in(&state(svids, bundle));
        let same = svid("a", &["leaf", "ca"]);
        let renewed = BundleDocument {
            spiffe_sequence: Some(9),
            spiffe_refresh_hint: Some(5),
            ..anchored(&["y", "x"])
        };
        assert_eq!(end(std::slice::from_ref(&same), Some(renewed)), None, "the same anchors");
        assert_eq!(end(&[svid("b", &["other"]), same.clone()], Some(anchored(&["x", "y"]))), None);
        assert_eq!(end(&[svid("a", &["new", "ca"])], Some(anchored(&["x", "y"]))), Some(Ended::OwnRenewal));
        assert_eq!(end(&[svid("a", &["leaf"])], Some(anchored(&["x", "y"]))), Some(Ended::OwnRenewal));
        assert_eq!(
            end(&[svid("b", &["leaf", "ca"])], Some(anchored(&["x", "y"]))),
            Some(Ended::OwnWithdrawal)
        );
        for bundle in [None, Some(anchored(&[])), Some(anchored(&["x"])), Some(anchored(&["x", "y", "z"]))] {
            assert_eq!(end(std::slice::from_ref(&same), bundle), Some(Ended::BundleChange));
        }
    }
}
