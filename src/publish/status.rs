//! The status document and the SVID documents of a snapshot.

use std::borrow::Cow;

use crate::factory_credential::CredentialFacts;
use miaf_client::api::{
    BootstrapKeyStatus, BootstrapStatus, BundleStatus, ErrorStatus, IdentityStatus, KeyStatus, State, Status,
    SvidDocument, SvidStatus, TrustStatus, WindowStatus,
};
use miaf_spiffe::time::Timestamp;

use super::{IdentitySnapshot, ShownError, Snapshot, SvidAndKey};

/// The status of a snapshot as of `now`: an SVID that has expired since then is not called active.
pub(crate) fn status(snapshot: &Snapshot, now: Timestamp) -> Status {
    Status {
        trust_domain: snapshot.trust_domain.as_ref().map(ToString::to_string),
        bundle: snapshot.bundle.as_ref().map(|current| BundleStatus {
            sequence: current.bundle.sequence(),
            fetched_at: current.fetched_at,
            refresh_at: current.refresh_at,
            stale: current.is_stale(now),
            stale_at: current.stale_at,
        }),
        bootstrap: snapshot.bootstrap.as_ref().map(credential_status),
        initial_trust: snapshot.trust.as_ref().map(|facts| TrustStatus {
            ca_file: facts.ca_file.as_ref().map(|path| path.display().to_string()),
            anchors: facts.anchors,
            pins: facts.pins,
            system_roots: facts.system_roots,
        }),
        last_error: snapshot
            .last_error
            .as_ref()
            .map(|shown| error_status(shown, snapshot.name_in_hints(None), None)),
        identities: snapshot.identities().map(|identity| identity_status(identity, snapshot, now)).collect(),
    }
}

/// The status of a certificate that authorizes enrollments.
pub(crate) fn credential_status(facts: &CredentialFacts) -> BootstrapStatus {
    BootstrapStatus {
        not_before: facts.not_before,
        not_after: facts.not_after,
        sha256: facts.sha256.clone(),
        key: BootstrapKeyStatus { algorithm: facts.algorithm.to_owned(), in_tpm: facts.in_tpm },
    }
}

fn identity_status(identity: &IdentitySnapshot, snapshot: &Snapshot, now: Timestamp) -> IdentityStatus {
    let current = identity.current.as_deref();
    let expired = current.is_some_and(|current| now > current.svid.until());
    let state = match identity.state {
        State::Active | State::Renewing if expired => State::Expired,
        state => state,
    };
    IdentityStatus {
        name: identity.name.clone(),
        state: state.into(),
        ready: snapshot.is_ready(identity, now),
        spiffe_id: current.map(|current| current.svid.spiffe_id().to_string()),
        svid: current.map(|current| {
            // Without a bundle nothing is known of it.
            let untrusted = current.is_valid(now)
                && snapshot.bundle.is_some()
                && snapshot.vouching_anchor_not_after(identity, now).is_none();
            svid_status(current, identity, !untrusted)
        }),
        key: KeyStatus {
            provider: identity.provider.as_str().to_owned(),
            protection: current.map(|current| current.key.protection().into()),
            algorithm: current.map(|current| current.key.public_key().algorithm_name().to_owned()),
            lost: identity.key_is_lost,
            since: identity.key_since.filter(|_| current.is_some()),
            renewals: identity.key_renewals,
        },
        enroll: identity.enroll.map(str::to_owned),
        est: identity.est.clone(),
        last_error: identity.last_error.as_ref().map(|shown| {
            error_status(shown, snapshot.name_in_hints(Some(&identity.name)), identity.retry_after_until)
        }),
    }
}

fn svid_status(
    SvidAndKey { svid, .. }: &SvidAndKey,
    identity: &IdentitySnapshot,
    trusted: bool,
) -> SvidStatus {
    SvidStatus {
        serial: svid.serial().to_owned(),
        not_before: svid.not_before(),
        not_after: svid.until(),
        trusted,
        leaf_not_after: Some(svid.not_after()).filter(|end| *end > svid.until()),
        ends_while_waiting: identity.ends_while_waiting,
        renew_at: identity.renew_at,
        renewal_window: identity.renewal_window.map(|(from, to)| WindowStatus { from, to }),
    }
}

/// `identity` is what commands in the hint are about.
fn error_status(
    (error, retry_at): &ShownError,
    identity: Option<&str>,
    waits_until: Option<Timestamp>,
) -> ErrorStatus {
    let report = &error.report;
    let response = report.response.as_ref();
    ErrorStatus {
        code: report.code.clone(),
        title: report.title.clone(),
        detail: report.detail.clone(),
        hint: report.hint_about(identity).map(Cow::into_owned),
        status: response.map(|response| response.status),
        kind: response.and_then(|response| response.kind.clone()),
        instance: response.and_then(|response| response.instance.clone()),
        at: error.at,
        retry_at: *retry_at,
        waits_until,
        permanent: error.permanent,
    }
}

/// The SVID document of an identity. `None` before it is first issued.
pub(crate) fn svid_document(identity: &IdentitySnapshot) -> Option<SvidDocument> {
    let SvidAndKey { svid, .. } = identity.current.as_deref()?;
    Some(SvidDocument {
        identity: identity.name.clone(),
        spiffe_id: svid.spiffe_id().to_string(),
        serial: svid.serial().to_owned(),
        certificate_chain_pem: svid.chain().to_pems(),
        not_before: svid.not_before(),
        not_after: svid.until(),
        generation: identity.generation,
    })
}
