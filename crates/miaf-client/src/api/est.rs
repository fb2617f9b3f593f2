//! How an identity enrolls over EST (RFC 7030).

use serde::{Deserialize, Serialize};

use super::BootstrapStatus;
use super::open::{Open, words};
use miaf_spiffe::time::{Timestamp, rfc3339};

words! {
    /// What authorizes an enrollment over EST. A renewal is authorized by the SVID itself.
    pub enum EstAuthorization {
        /// An enrollment token that an operator brings.
        Token = "token",
        /// A certificate of the device that the MIS accepts.
        Certificate = "certificate",
    }
}

words! {
    /// Where the URL of the EST endpoint is from.
    pub enum EstUrlSource {
        /// `mis.est_url`.
        Configuration = "configuration",
        /// `estBaseUri` of the discovery document.
        Discovery = "discovery",
    }
}

/// How an identity enrolls over EST, and what its next enrollment needs. Of an enrollment token it says
/// whether there is one, and nothing of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct EstStatus {
    /// URL of the EST endpoint. `None`: the discovery document, which is to name it, does not yet.
    pub url: Option<String>,
    pub url_source: Option<Open<EstUrlSource>>,
    pub authorization: Open<EstAuthorization>,
    /// The file or credential in which an enrollment token is expected. `None`: it comes by admin
    /// command only, or none is used.
    pub token_source: Option<String>,
    /// There is an enrollment token that may be used.
    pub has_token: bool,
    /// Only an enrollment token leads to the next SVID, and there is none that may be used.
    pub token_needed: bool,
    /// End of an SVID whose renewal fails, from 80 % of its lifetime on: what follows it needs a fresh
    /// enrollment token.
    #[serde(default, with = "rfc3339::option")]
    pub token_needed_after: Option<Timestamp>,
    /// The certificate that authorizes an enrollment, where it can be read.
    pub certificate: Option<BootstrapStatus>,
    /// TLS 1.2 is allowed at this endpoint, though 1.3 is the standard's.
    pub tls12_allowed: bool,
    /// The identity is one that Margo defines over EST. A device's is not.
    pub standardized: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::api::{IdentityStatus, KeyStatus};

    #[test]
    fn status_of_an_older_or_a_newer_agent_is_read() {
        let older: KeyStatus =
            serde_json::from_str(r#"{"provider":"tpm","protection":null,"algorithm":null}"#).unwrap();
        assert_eq!((older.since, older.renewals), (None, 0));
        let identity = r#"{"name":"wfm-client","state":"active","ready":true,"spiffeId":null,"svid":null,
            "key":{"provider":"tpm","protection":null,"algorithm":null},"enroll":"est","lastError":null EST}"#;
        let older: IdentityStatus = serde_json::from_str(&identity.replace("EST", "")).unwrap();
        assert!(older.est.is_none() && !older.is_by_token());
        let newer = r#","est":{"url":null,"urlSource":"dns","authorization":"attestation","tokenSource":null,
            "hasToken":false,"tokenNeeded":false,"tokenNeededAfter":null,"certificate":null,
            "tls12Allowed":false,"standardized":true,"more":1}"#;
        let newer: IdentityStatus = serde_json::from_str(&identity.replace("EST", newer)).unwrap();
        let est = newer.est.as_ref().unwrap();
        assert_eq!((est.authorization.known(), est.authorization.as_str()), (None, "attestation"));
        assert!(!newer.is_by_token());
    }
}
