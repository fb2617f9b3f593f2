//! What a socket answers: HTTP/1.1 and JSON, errors as Problem Details. Reading is answered from the snapshot alone; an
//! order goes to the agent's loop.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Version};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use crate::lifecycle::State;
use crate::platform::clock;
use crate::platform::log::AUDIT;
use crate::publish::Snapshot;
use crate::publish::status::{Status, SvidDocument};
use crate::server::admin::{Accepted, Address, Asked, Refusal};
use crate::server::calls::CallLimit;
use crate::server::connection::MAX_PIECES;
use crate::server::context::Lines;
use crate::server::grpc::{self, Code};
use crate::server::health;
use crate::server::metrics;
use crate::server::peer::{Caller, Closing, Right};
use crate::server::rate::OverLimit;
use crate::server::response::{Answer, answer, json, not_this_way, problem, text};
use crate::server::signing_queue::{Signed, ToSign, Unsigned};
use crate::server::watch::events;
use crate::server::workload_api;
use crate::spiffe::TrustDomain;

/// No order is longer, and nothing that is to be signed.
const MAX_BODY: usize = 4 * 1024;
/// A request's body must be complete within this time.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// `calls` is there in HTTP/2.
pub(super) async fn respond(
    request: &Request<()>,
    body: &mut Incoming,
    caller: Caller,
    calls: Option<&CallLimit>,
    lines: &Lines,
    closing: &Closing,
) -> Answer {
    lines.counters.asked(caller);
    if let Some(calls) = calls
        && grpc::is_call(request)
    {
        let response = call(request, body, caller, calls, lines, closing).await;
        return response.unwrap_or_else(|status| grpc::refusal(&status));
    }
    let path = request.uri().path();
    if path.starts_with(workload_api::PREFIX) {
        return workload_api::not_grpc();
    }
    if request.version() == Version::HTTP_2 {
        // One connection could have many large answers under way by it.
        let detail = "Over HTTP/2 there is the SPIFFE Workload API and nothing else. Use HTTP/1.1.";
        return problem(StatusCode::HTTP_VERSION_NOT_SUPPORTED, detail);
    }
    if let Some(address) = Address::of(path) {
        return order(address, request, body, caller, lines).await.unwrap_or_else(|refusal| refusal);
    }
    if path == SIGN {
        return sign(request, body, caller, lines).await.unwrap_or_else(|refusal| refusal);
    }
    read(request, lines, closing)
}

/// A gRPC call of any service.
async fn call(
    request: &Request<()>,
    body: &mut Incoming,
    caller: Caller,
    calls: &CallLimit,
    lines: &Lines,
    closing: &Closing,
) -> Result<Answer, grpc::Status> {
    // Clients come back after UNAVAILABLE (SPIFFE Workload Endpoint, section 6).
    let permit = calls.acquire().map_err(|limit| grpc::Status::new(Code::Unavailable, limit.to_string()))?;
    grpc::require_protobuf(request)?;
    let path = request.uri().path();
    if path.starts_with(workload_api::PREFIX) {
        workload_api::respond(request, body, caller, permit, lines, closing).await
    } else if path.starts_with(health::PREFIX) {
        health::respond(request, body, permit, lines, closing).await
    } else {
        let why = "Unknown service. This socket has SpiffeWorkloadAPI and grpc.health.v1.Health.";
        Err(grpc::Status::new(Code::Unimplemented, why))
    }
}

/// Somebody for whom there is no place.
pub(super) fn overloaded<B>(request: &Request<B>, why: &str) -> Answer {
    if grpc::is_call(request) {
        return grpc::refusal(&grpc::Status::new(Code::Unavailable, format!("{why}.")));
    }
    let mut refusal = problem(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}."));
    refusal.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
    refusal
}

fn read<B>(request: &Request<B>, lines: &Lines, closing: &Closing) -> Answer {
    let now = clock::now().wall;
    let snapshot = lines.snapshots.borrow().clone();
    let known = ["/v1/status", "/v1/svid", "/v1/bundle", "/v1/watch", "/healthz", "/readyz", "/metrics"];
    let path = request.uri().path();
    if known.contains(&path) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_this_way("GET, HEAD", "This address can only be read: use GET.");
    }
    match path {
        "/v1/status" => json(StatusCode::OK, JSON, &Status::of(&snapshot, now)),
        "/v1/svid" => match &snapshot.identity {
            Some(_) => shared(&snapshot.kept.svid, || SvidDocument::of(&snapshot)),
            None => problem(StatusCode::SERVICE_UNAVAILABLE, NO_SVID),
        },
        "/v1/bundle" => match &snapshot.bundle {
            Some(held) => shared(&snapshot.kept.bundle, || held.bundle.to_document()),
            None => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "This device has no trust bundle yet. GET /v1/status says what it is waiting for.",
            ),
        },
        "/v1/watch" => {
            let events = StreamBody::new(events(lines.changes.clone(), closing.clone()));
            answer(StatusCode::OK, "text/event-stream", events)
        }
        "/metrics" => {
            let text = metrics::text(&snapshot, &lines.counters, now);
            answer(StatusCode::OK, metrics::MEDIA_TYPE, Full::new(Bytes::from(text)))
        }
        "/healthz" => json(StatusCode::OK, JSON, &json!({ "live": true })),
        "/readyz" if snapshot.is_ready(now) => json(StatusCode::OK, JSON, &json!({ "ready": true })),
        "/readyz" => problem(StatusCode::SERVICE_UNAVAILABLE, not_ready(&snapshot)),
        _ => problem(StatusCode::NOT_FOUND, "There is no such address. Try GET /v1/status."),
    }
}

/// Written once for all who ask.
fn shared<T: Serialize>(kept: &OnceLock<Bytes>, document: impl FnOnce() -> T) -> Answer {
    let text = kept.get_or_init(|| text(&document())).clone();
    answer(StatusCode::OK, JSON, Full::new(text))
}

/// Has the device's key sign a digest. Whoever may connect to the socket for it may.
async fn sign(
    request: &Request<()>,
    body: &mut Incoming,
    caller: Caller,
    lines: &Lines,
) -> Result<Answer, Answer> {
    if request.method() != Method::POST {
        return Err(not_this_way("POST", "This address signs a digest: use POST."));
    }
    if !matches!(caller.right, Right::Sign | Right::Admin) {
        let detail = "Signatures are made on the signing socket (sign.sock beside this one, where nothing else is \
                      configured), which members of its group may use.";
        return Err(problem(StatusCode::FORBIDDEN, detail));
    }
    let body = read_body(body).await?;
    let ToSign { digest, serial } =
        ToSign::read(&body).map_err(|detail| problem(StatusCode::BAD_REQUEST, &detail))?;
    let snapshot = lines.snapshots.borrow().clone();
    let identity = match (&snapshot.identity, serial) {
        (None, _) => return Err(problem(StatusCode::SERVICE_UNAVAILABLE, NO_SVID)),
        (Some(identity), None) => identity,
        (Some(identity), Some(serial)) => [identity]
            .into_iter()
            .chain(&snapshot.identity_before)
            .find(|identity| identity.svid.serial() == serial)
            .ok_or_else(|| problem(StatusCode::CONFLICT, REPLACED))?,
    };
    let is_current = snapshot.identity.as_ref().is_some_and(|current| Arc::ptr_eq(current, identity));
    let signed = lines.signing.sign(caller.uid, identity.key.clone(), digest).await;
    lines.counters.signed(signed.is_ok());
    let (Caller { uid, pid, .. }, svid) = (caller, &identity.svid);
    let (spiffe_id, serial) = (svid.spiffe_id(), svid.serial());
    let (status, why) = match signed {
        Ok(signature) => {
            lines.signatures.record(caller, svid);
            let signed = Signed {
                signature: BASE64.encode(signature),
                serial: serial.to_owned(),
                // Of what is published now, which may be another SVID.
                generation: snapshot.generation.filter(|_| is_current),
            };
            return Ok(json(StatusCode::OK, JSON, &signed));
        }
        // Nothing was tried.
        Err(Unsigned::Busy(why)) => return Err(too_many(why, Duration::ZERO)),
        Err(Unsigned::OverLimit(OverLimit { per_minute, wait })) => {
            let why = format!(
                "Your user has had {per_minute} signatures within a minute. Try again later, or have an operator raise \
                 socket.signatures_per_minute in the agent's configuration."
            );
            if lines.refusals.is_news(uid, "sign", Instant::now()) {
                tracing::info!(
                    target: AUDIT, audit = "sign", uid, pid, %spiffe_id, serial, why,
                    "the device's key does not sign more often for this user"
                );
            }
            return Err(too_many(&why, wait));
        }
        Err(Unsigned::Key(why)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("The key cannot be used: {why}."))
        }
        Err(Unsigned::Ending) => {
            (StatusCode::SERVICE_UNAVAILABLE, "The agent is about to end. Try again.".to_owned())
        }
    };
    if lines.refusals.is_news(uid, "sign", Instant::now()) {
        tracing::info!(
            target: AUDIT, audit = "sign", uid, pid, %spiffe_id, serial, why,
            "the device's key has not signed for a local program"
        );
    }
    Err(problem(status, &why))
}

/// `Retry-After` is in whole seconds (RFC 9110, section 10.2.3), and at least one.
fn too_many(why: &str, wait: Duration) -> Answer {
    let mut refusal = problem(StatusCode::TOO_MANY_REQUESTS, why);
    let seconds = wait.as_millis().div_ceil(1000).max(1);
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    refusal.headers_mut().insert(RETRY_AFTER, seconds.into());
    refusal
}

async fn order(
    address: Address,
    request: &Request<()>,
    body: &mut Incoming,
    caller: Caller,
    lines: &Lines,
) -> Result<Answer, Answer> {
    if request.method() != Method::POST {
        return Err(not_this_way("POST", "This address takes an order: use POST."));
    }
    if caller.right != Right::Admin {
        let detail = "Orders are taken on the administration socket only (admin.sock beside this one, where nothing \
                      else is configured), which root may use.";
        return Err(problem(StatusCode::FORBIDDEN, detail));
    }
    let Caller { uid, pid, .. } = caller;
    let audit = address.order();
    let body = read_body(body).await.inspect_err(|refusal| {
        let status = refusal.status().as_u16();
        tracing::info!(target: AUDIT, audit, uid, pid, status, "an order that did not come whole is not taken");
    })?;
    let Asked { order, leaves } = address.read(&body).map_err(|why| {
        tracing::info!(target: AUDIT, audit, uid, pid, why, "an order that makes no sense is not taken");
        problem(StatusCode::BAD_REQUEST, &why)
    })?;
    let audit = order.as_str();
    tracing::info!(target: AUDIT, audit, uid, pid, "an operator orders: {audit}");
    lines.counters.ordered();
    let taken = match leaves.map_or(Ok(()), |domain| is_held(&domain, &lines.snapshots.borrow())) {
        Ok(()) => lines.orders.give(order).await,
        Err(why) => Err(Refusal::Senseless(why)),
    };
    let (status, why) = match taken {
        Ok(detail) => return Ok(json(StatusCode::ACCEPTED, JSON, &Accepted { accepted: true, detail })),
        Err(Refusal::Senseless(why)) => (StatusCode::CONFLICT, why),
        Err(Refusal::Busy) => {
            let why =
                "The agent cannot take the order now: others wait already, or it is about to end. Try again.";
            (StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
        }
    };
    tracing::info!(target: AUDIT, audit, uid, pid, why, "the order is not taken: {audit}");
    Err(problem(status, &why))
}

async fn read_body(body: &mut Incoming) -> Result<Vec<u8>, Answer> {
    let (mut read, mut pieces) = (Vec::new(), 0);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| problem(StatusCode::BAD_REQUEST, "The body is not complete."))?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            if read.len() + data.len() > MAX_BODY {
                let why = "The body has at most 4096 bytes here.";
                return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, why));
            }
            pieces += 1;
            if pieces > MAX_PIECES {
                let why = "The body came in more than 512 pieces: send it in larger ones.";
                return Err(problem(StatusCode::BAD_REQUEST, why));
            }
            read.extend_from_slice(data);
        }
        Ok(())
    };
    match timeout(BODY_LIMIT, reading).await {
        Ok(read_to_end) => read_to_end.map(|()| read),
        Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "The body was not complete within 10 seconds.")),
    }
}

/// Whether the identity is in the trust domain that is to be left, or a sentence for whoever thinks so.
fn is_held(domain: &TrustDomain, snapshot: &Snapshot) -> Result<(), String> {
    match snapshot.identity.as_ref().map(|identity| identity.svid.spiffe_id().trust_domain()) {
        Some(held) if held != domain => Err(format!(
            "This device has its identity in the trust domain \"{held}\", not in \"{domain}\": nothing is left."
        )),
        _ => Ok(()), // without one the loop says what to do
    }
}

fn not_ready(snapshot: &Snapshot) -> &'static str {
    match snapshot.state {
        State::WaitingForClock => {
            "This device's clock cannot be right, so nobody can tell whether its SVID is valid. GET /v1/status says more."
        }
        _ if snapshot.key_is_lost => "The key of this device's SVID is lost. GET /v1/status says more.",
        _ => "There is no valid SVID that the trust bundle vouches for. GET /v1/status says why.",
    }
}

const SIGN: &str = "/v1/sign";
const JSON: &str = "application/json";
const NO_SVID: &str = "This device has no SVID yet. GET /v1/status says what it is waiting for.";
const REPLACED: &str = "The SVID with this serial number has been replaced, or never was this device's: GET /v1/svid has the one to \
                        sign for.";
