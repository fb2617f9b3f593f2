//! The status document and the SVID document of a snapshot.

use miaf_client::api::{
    BootstrapKeyStatus, BootstrapStatus, BundleStatus, ErrorStatus, KeyStatus, Status, SvidDocument,
    SvidStatus, TrustStatus, WindowStatus,
};
use miaf_spiffe::time::Timestamp;

use super::Snapshot;
use crate::lifecycle::State;

/// What to do about an error that the agent retries, and that a retry does not end.
fn hint(kind: &str, status: Option<u16>) -> Option<&'static str> {
    let of_agent = kind.strip_prefix("urn:miaf-agent:error:");
    let of_margo = kind.strip_prefix("https://margo.org/docs/errors/");
    Some(match (of_agent, of_margo, status) {
        (Some("key-lost"), ..) => {
            "restore what the key is bound to, its TPM or its key-encryption key; or replace the key with: miaf-agent \
             retry --new-key"
        }
        (Some("clock"), ..) => {
            "set the clock, or let a time service do it; if it is right, declare it so with: miaf-agent retry"
        }
        (Some("certificate-refused"), ..)
        | (_, Some("invalid-bootstrap-proof"), _)
        | (None, None, Some(401)) => {
            "give the operator of the MIS the SHA-256 of the factory certificate, and ask why it is refused"
        }
        (Some("server-not-trusted"), ..) => {
            "correct what the last error names: the CA or pin under [mis.trust], the name in mis.discovery_url, or the \
             certificate of the MIS"
        }
        (Some("redirected"), ..) => {
            "set mis.discovery_url to the address itself, or have the MIS's documents corrected"
        }
        (Some("proxy"), ..) => {
            "correct the proxy, or what names it: mis.proxy, or HTTPS_PROXY in the environment of the service"
        }
        (Some("offline"), ..) => "if it lasts, see to the network connection of this device",
        (Some("name-not-resolved"), ..) => {
            "if it lasts, correct that name in the configuration, or the name servers of this device"
        }
        (Some("unreachable"), ..) => {
            "if it lasts, compare mis.discovery_url with what the operator of the MIS says, and see to firewalls and \
             proxies on the way"
        }
        (Some("discovery-refused"), ..) => {
            "compare mis.discovery_url with what the operator of the MIS says, and have the document corrected"
        }
        (Some("bundle-refused"), ..) => "have the operator of the MIS correct its trust bundle",
        (Some("malformed-answer"), ..) => {
            "see that mis.discovery_url leads to the MIS and to nothing in between, and tell its operator"
        }
        (
            Some("svid-refused" | "issuer-expired" | "issued-in-vain" | "svid-not-trusted" | "bundle-empty"),
            ..,
        ) => "show this to the operator of the MIS: what it issues cannot be used",
        (None, _, Some(403)) => "ask the operator of the MIS whether this device may have an identity",
        (None, _, Some(404)) => "compare mis.discovery_url with what the operator of the MIS says",
        (_, Some("too-many-requests"), _) => "if it lasts, ask the operator of the MIS to raise its limit",
        _ => return None,
    })
}

/// The status of a snapshot as of `now`: an SVID that has expired since then is not called
/// active.
pub(crate) fn status(snapshot: &Snapshot, now: Timestamp) -> Status {
    let identity = snapshot.identity.as_deref();
    let expired = identity.is_some_and(|identity| now > identity.svid.until());
    let state = match snapshot.state {
        State::Active | State::Renewing if expired => State::Expired,
        state => state,
    };
    Status {
        state: state.to_string(),
        trust_domain: snapshot.trust_domain.as_ref().map(ToString::to_string),
        spiffe_id: identity.map(|identity| identity.svid.spiffe_id().to_string()),
        svid: identity.map(|identity| SvidStatus {
            serial: identity.svid.serial().to_owned(),
            not_before: identity.svid.not_before().to_string(),
            not_after: identity.svid.until().to_string(),
            leaf_not_after: Some(identity.svid.not_after())
                .filter(|end| *end > identity.svid.until())
                .map(|end| end.to_string()),
            ends_while_waiting: snapshot.ends_while_waiting,
            renew_at: snapshot.renew_at.map(|at| at.to_string()),
            renewal_window: snapshot
                .renewal_window
                .map(|(from, to)| WindowStatus { from: from.to_string(), to: to.to_string() }),
        }),
        key: KeyStatus {
            provider: snapshot.provider.to_owned(),
            protection: identity.map(|identity| identity.key.protection().to_string()),
            algorithm: identity.map(|identity| identity.key.public_key().algorithm().to_owned()),
            lost: snapshot.key_is_lost,
        },
        bundle: snapshot.bundle.as_ref().map(|current| BundleStatus {
            sequence: current.bundle.sequence(),
            fetched_at: current.fetched_at.to_string(),
            refresh_at: current.refresh_at.map(|at| at.to_string()),
        }),
        bootstrap: snapshot.bootstrap.as_ref().map(|facts| BootstrapStatus {
            not_before: facts.not_before.to_string(),
            not_after: facts.not_after.to_string(),
            sha256: facts.sha256.clone(),
            key: BootstrapKeyStatus { algorithm: facts.algorithm.to_owned(), in_tpm: facts.in_tpm },
        }),
        initial_trust: snapshot.trust.as_ref().map(|facts| TrustStatus {
            ca_file: facts.ca_file.as_ref().map(|path| path.display().to_string()),
            anchors: facts.anchors,
            pins: facts.pins,
            system_roots: facts.system_roots,
        }),
        last_error: snapshot.last_error.as_ref().map(|(error, retry_at)| ErrorStatus {
            kind: error.report.kind.clone(),
            title: error.report.title.clone(),
            status: error.report.status,
            detail: error.report.detail.clone(),
            instance: error.report.instance.clone(),
            at: error.at.to_string(),
            retry_at: retry_at.map(|at| at.to_string()),
            waits_until: snapshot.retry_after_until.map(|until| until.to_string()),
            hint: hint(&error.report.kind, error.report.status).map(str::to_owned),
            permanent: error.permanent,
        }),
    }
}

/// The document of a snapshot. `None` before the first enrollment.
pub(crate) fn svid_document(snapshot: &Snapshot) -> Option<SvidDocument> {
    let identity = snapshot.identity.as_deref()?;
    Some(SvidDocument {
        spiffe_id: identity.svid.spiffe_id().to_string(),
        serial: identity.svid.serial().to_owned(),
        certificate_chain_pem: identity.svid.chain().to_pems(),
        not_before: identity.svid.not_before().to_string(),
        not_after: identity.svid.until().to_string(),
        generation: snapshot.generation,
    })
}
