//! `POST /v1/identities/{name}/sign`: a signature by the key of an identity. `POST /v1/sign` is
//! that of the default identity.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::body::Incoming;
use hyper::header::RETRY_AFTER;
use hyper::{Method, Request, StatusCode};
use serde::{Deserialize, Deserializer};

use crate::hint::Reason;
use crate::keys::KeyError;
use crate::platform::log::AUDIT;
use crate::server::context::ServerContext;
use crate::server::peer::{Peer, Role};
use crate::server::rate::RateExceeded;
use crate::server::request_body;
use crate::server::response::{self, HttpResponse, JSON, method_not_allowed, no_svid, problem, refusal};
use crate::server::router;
use crate::server::signing_queue::SignError;
use miaf_client::api::{IdentityName, ProblemCode, SignResponse};
use miaf_spiffe::json;

/// Body of a request for a signature, parsed.
#[derive(Debug, PartialEq, Eq)]
struct SignRequest {
    digest: [u8; 32],
    /// Serial number of the SVID whose key is to sign: the current or the previous one.
    serial: Option<String>,
}

impl SignRequest {
    /// Parses a body.
    ///
    /// # Errors
    /// What is wrong with the body, and what to send.
    fn parse(body: &[u8]) -> Result<Self, Reason> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            algorithm: String,
            digest: String,
            #[serde(default, deserialize_with = "not_null")]
            serial: Option<String>,
        }
        fn not_null<'de, D: Deserializer<'de>>(serial: D) -> Result<Option<String>, D::Error> {
            String::deserialize(serial).map(Some)
        }
        const MUST: &str = "Send {\"algorithm\": \"ES256\", \"digest\": \"<Base64 of the SHA-256 of what is to be signed>\"}";
        let wrong = |what: String| Reason::from(what).with_hint_text(MUST);
        let Body { algorithm, digest, serial } =
            json::read(body).map_err(|e| wrong(format!("the body is no request for a signature: {e}")))?;
        if algorithm != "ES256" {
            let what = "the device's key signs by ES256 (ECDSA on P-256 with SHA-256) and by nothing else";
            return Err(wrong(what.to_owned()));
        }
        let digest = BASE64.decode(digest).ok().and_then(|bytes| bytes.try_into().ok());
        let digest =
            digest.ok_or_else(|| wrong("the digest is not 32 bytes in Base64 (44 characters)".to_owned()))?;
        Ok(Self { digest, serial })
    }
}

/// Has the device's key sign a digest, for every peer of a socket with the role. `Err` is the
/// response without a signature.
pub(super) async fn respond(
    name: Option<&IdentityName>,
    request: &Request<()>,
    body: &mut Incoming,
    peer: Peer,
    context: &ServerContext,
) -> Result<HttpResponse, HttpResponse> {
    if request.method() != Method::POST {
        return Err(method_not_allowed("POST", "this path signs a digest", "Use POST"));
    }
    if !matches!(peer.role, Role::Sign | Role::Admin) {
        let hint = "Use the signing socket, as a member of its group: sign.sock in the directory of this one, where \
                    nothing else is configured";
        let detail = "this socket makes no signatures";
        return Err(problem(StatusCode::FORBIDDEN, ProblemCode::Forbidden, detail, Some(hint)));
    }
    let body = request_body::read(body).await?;
    let SignRequest { digest, serial } = SignRequest::parse(&body)
        .map_err(|reason| refusal(StatusCode::BAD_REQUEST, ProblemCode::InvalidRequest, &reason))?;
    let snapshot = context.snapshots.borrow().clone();
    let identity = router::find(&snapshot, name)?;
    let signer = match (&identity.current, serial) {
        (None, _) => return Err(no_svid()),
        (Some(current), None) => current,
        (Some(current), Some(serial)) => [current]
            .into_iter()
            .chain(&identity.previous)
            .find(|one| one.svid.serial() == serial)
            .ok_or_else(replaced)?,
    };
    signer.key.public_key().check_p256().map_err(|e| not_applicable(&e))?;
    let is_current = identity.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, signer));
    let signed = context.signing.sign(peer.uid, signer.key.clone(), digest).await;
    context.counters.signature(&identity.name, signed.is_ok());
    let (Peer { uid, pid, .. }, svid) = (peer, &signer.svid);
    let name = identity.name.as_str();
    let (spiffe_id, serial) = (svid.spiffe_id(), svid.serial());
    let (code, reason) = match signed {
        Ok(signature) => {
            context.signatures.record(peer, &identity.name, svid);
            let signed = SignResponse {
                signature: BASE64.encode(signature),
                serial: serial.to_owned(),
                // That of what is published now, which may be another SVID.
                generation: identity.generation.filter(|_| is_current),
            };
            return Ok(response::json(StatusCode::OK, JSON, &signed));
        }
        // Nothing was tried.
        Err(SignError::QueueFull(reason)) => return Err(too_many_requests(&reason, Duration::ZERO)),
        Err(SignError::RateExceeded(RateExceeded { per_minute, wait })) => {
            let reason = Reason::from(format!("your user has had {per_minute} signatures within a minute"))
                .with_hint_text(
                    "Try again later, or have an operator raise socket.signatures_per_minute in the agent's \
                     configuration",
                );
            if context.refusals.is_due(uid, "sign", Instant::now()) {
                tracing::info!(
                    target: AUDIT, audit = "sign", identity = name, uid, pid, %spiffe_id, serial, %reason,
                    hint = reason.hint, "signature refused: rate exceeded"
                );
            }
            return Err(too_many_requests(&reason, wait));
        }
        Err(SignError::Key(e)) => {
            let code = if e.is_of_a_lost_key() { ProblemCode::KeyLost } else { ProblemCode::Key };
            let Reason { what, hint } = Reason::of(&e);
            (code, Reason { what: format!("the key cannot be used: {what}"), hint })
        }
        Err(SignError::ShuttingDown) => {
            let reason = Reason::from("the agent is shutting down").with_hint_text("Try again later");
            (ProblemCode::Busy, reason)
        }
    };
    if context.refusals.is_due(uid, "sign", Instant::now()) {
        tracing::info!(
            target: AUDIT, audit = "sign", identity = name, uid, pid, %spiffe_id, serial, %reason,
            hint = reason.hint, "signature failed"
        );
    }
    Err(refusal(StatusCode::SERVICE_UNAVAILABLE, code, &reason))
}

/// Only keys on P-256 sign digests. An installed one may be of another algorithm.
fn not_applicable(e: &KeyError) -> HttpResponse {
    refusal(StatusCode::CONFLICT, ProblemCode::NotApplicable, &Reason::of(e))
}

fn replaced() -> HttpResponse {
    let detail = "the SVID with this serial number has been replaced, or never was this identity's";
    let hint = "Fetch the current SVID, and have it signed for that";
    problem(StatusCode::CONFLICT, ProblemCode::SvidReplaced, detail, Some(hint))
}

/// `Retry-After` is in whole seconds (RFC 9110, section 10.2.3), and at least one.
fn too_many_requests(reason: &Reason, wait: Duration) -> HttpResponse {
    let mut response = refusal(StatusCode::TOO_MANY_REQUESTS, ProblemCode::RateExceeded, reason);
    let seconds = wait.as_millis().div_ceil(1000).max(1);
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;
    use serde_json::json;

    #[test]
    fn sign_request_is_validated() {
        let parse = |body: serde_json::Value| SignRequest::parse(body.to_string().as_bytes());
        let digest = BASE64.encode([7; 32]);
        let request = parse(json!({ "algorithm": "ES256", "digest": digest, "serial": "01:02" })).unwrap();
        assert_eq!(request, SignRequest { digest: [7; 32], serial: Some("01:02".into()) });
        let marked = format!("\u{feff}{}", json!({ "algorithm": "ES256", "digest": digest }));
        assert!(SignRequest::parse(marked.as_bytes()).is_ok(), "RFC 8259 section 8.1");
        for body in [
            json!({}),
            json!([digest]),
            json!({ "algorithm": "ES256" }),
            json!({ "algorithm": "ES384", "digest": digest }),
            json!({ "algorithm": "ES256", "digest": BASE64.encode([7; 31]) }),
            json!({ "algorithm": "ES256", "digest": BASE64.encode([7; 48]) }),
            json!({ "algorithm": "ES256", "digest": "not Base64" }),
            json!({ "algorithm": "ES256", "digest": digest, "key": "other" }),
            json!({ "algorithm": "ES256", "digest": digest, "serial": null }),
        ] {
            let reason = parse(body.clone()).unwrap_err();
            assert!(reason.hint.as_ref().unwrap().contains("{\"algorithm\": \"ES256\""), "{body}: {reason}");
            assert_apart(&reason);
        }
    }
}
