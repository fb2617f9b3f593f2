//! What a WFM Client needs to be right with its WFM (margo-now N10, N12): a verifier that accepts
//! the WFM of one's own SVID and no other, and connections that end when they should.
//!
//! ```no_run
//! use std::io::{Read as _, Write as _};
//!
//! use miaf_client::Client;
//! use miaf_client::api::IdentityName;
//! use miaf_client::wfm::Connector;
//!
//! let agent = Client::new("/run/miaf-agent/sign.sock");
//! let connector = Connector::new(agent.with_identity(IdentityName::parse("wfm-client")?));
//! let mut wfm = connector.connect("wfm.factory.example", 443)?; // not the expected WFM: an error
//! wfm.write_all(b"GET /api/v1/deployments HTTP/1.0\r\n\r\n")?;
//! let mut response = String::new();
//! wfm.read_to_string(&mut response)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod connection;
mod connector;
mod error;
mod life;
mod verifier;

pub use connection::Connection;
pub use connector::Connector;
pub use error::{ConnectError, NotAWfmClient};
pub use life::{Ended, MAX_LIFE};
pub use verifier::{PeerVerifier, peer_error};

use miaf_spiffe::SpiffeId;

use crate::api::SvidDocument;

/// The WFM that an identity trusts, by its SVID: the one of the same trust domain and the same
/// `wfm-id` (margo-now N10).
///
/// # Errors
/// [`NotAWfmClient`]: it is a device, say.
pub fn wfm_of(svid: &SvidDocument) -> Result<SpiffeId, NotAWfmClient> {
    let wfm = SpiffeId::parse(&svid.spiffe_id).ok().and_then(|id| id.wfm_of_client());
    wfm.ok_or_else(|| NotAWfmClient::of(svid))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use miaf_spiffe::BundleDocument;
    use miaf_spiffe::time::Timestamp;

    use super::*;
    use crate::api::{IdentityName, StateEvent, Status};

    /// The document of an SVID with these certificates.
    pub(super) fn svid(identity: &str, chain: &[&str]) -> SvidDocument {
        SvidDocument {
            identity: IdentityName::parse(identity).unwrap(),
            spiffe_id: "spiffe://factory.example/margo/wfm/w/client/c".into(),
            serial: "01".into(),
            certificate_chain_pem: chain.iter().map(|pem| (*pem).to_owned()).collect(),
            not_before: Timestamp::from_secs(0),
            not_after: Timestamp::from_secs(4_000_000_000),
            generation: None,
        }
    }

    /// A state with these SVIDs and this bundle.
    pub(super) fn state(svids: &[SvidDocument], bundle: Option<BundleDocument>) -> StateEvent {
        let status = Status {
            trust_domain: None,
            bundle: None,
            bootstrap: None,
            initial_trust: None,
            last_error: None,
            identities: Vec::new(),
        };
        StateEvent { status, svids: svids.to_vec(), bundle }
    }

    #[test]
    fn wfm_is_that_of_the_own_svid() {
        assert_eq!(wfm_of(&svid("a", &[])).unwrap().to_string(), "spiffe://factory.example/margo/wfm/w");
        for other in [
            "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000",
            "spiffe://factory.example/margo/wfm/w",
            "spiffe://factory.example/margo/wfm/w/client/c/d",
            "https://factory.example/margo/wfm/w/client/c",
            "a\u{1b}[2J",
        ] {
            let error = wfm_of(&SvidDocument { spiffe_id: other.into(), ..svid("a", &[]) }).unwrap_err();
            assert!(error.to_string().starts_with("the identity \"a\" is "), "{error}");
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
    }
}
