//! What a socket answers: HTTP/1.1 and JSON, errors as Problem Details. Reading is answered from the snapshot alone; an
//! order goes to the agent's loop.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Snapshot;
use super::order::{Accepted, Address, Asked, Orders, Refusal};
use super::status::{Status, SvidDocument};
use crate::lifecycle::State;
use crate::spiffe::TrustDomain;
use crate::system::clock;

/// No order is longer.
const MAX_BODY: usize = 4 * 1024;
/// A request's body must be complete within this time.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// What a socket is for: one socket a right, so that the kernel decides, and a container can be given exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Reading who the device is.
    Read,
    /// The same, and use of the key.
    Sign,
    /// The same, and commands to the agent.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Sign, Self::Admin];

    /// The name that the socket has in the configuration, and as `FileDescriptorName=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "agent",
            Self::Sign => "sign",
            Self::Admin => "admin",
        }
    }
}

/// What leads from the sockets to the agent.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What there is to tell.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What is to be done.
    pub orders: Orders,
}

/// Who asks, and what the socket lets them do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) right: Right,
    pub(super) uid: Option<u32>,
    pub(super) pid: Option<i32>,
}

type Answer = Response<Full<Bytes>>;

pub(super) async fn respond<B>(request: Request<B>, caller: Caller, lines: &Lines) -> Answer
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let snapshot = lines.snapshots.borrow().clone();
    match Address::of(request.uri().path()) {
        Some(address) => match order(address, request, caller, lines, &snapshot).await {
            Ok(answer) | Err(answer) => answer,
        },
        None => read(&request, &snapshot),
    }
}

fn read<B>(request: &Request<B>, snapshot: &Snapshot) -> Answer {
    let now = clock::now().wall;
    let known = ["/v1/status", "/v1/svid", "/v1/bundle", "/healthz", "/readyz"];
    let path = request.uri().path();
    if known.contains(&path) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_this_way("GET, HEAD", "This address can only be read: use GET.");
    }
    match path {
        "/v1/status" => json(StatusCode::OK, JSON, &Status::of(snapshot, now)),
        "/v1/svid" => match SvidDocument::of(snapshot) {
            Some(svid) => json(StatusCode::OK, JSON, &svid),
            None => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "This device has no SVID yet. GET /v1/status says what it is waiting for.",
            ),
        },
        "/v1/bundle" => match &snapshot.bundle {
            Some(held) => json(StatusCode::OK, JSON, &held.bundle.to_document()),
            None => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "This device has no trust bundle yet. GET /v1/status says what it is waiting for.",
            ),
        },
        "/healthz" => json(StatusCode::OK, JSON, &json!({ "live": true })),
        "/readyz" if snapshot.is_ready(now) => json(StatusCode::OK, JSON, &json!({ "ready": true })),
        "/readyz" => problem(StatusCode::SERVICE_UNAVAILABLE, not_ready(snapshot)),
        _ => problem(StatusCode::NOT_FOUND, "There is no such address. Try GET /v1/status."),
    }
}

async fn order<B>(
    address: Address,
    request: Request<B>,
    caller: Caller,
    lines: &Lines,
    snapshot: &Snapshot,
) -> Result<Answer, Answer>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if caller.right != Right::Admin {
        let detail = "Orders are taken on the administration socket only (admin.sock beside this one, where nothing \
                      else is configured), which root may use.";
        return Err(problem(StatusCode::FORBIDDEN, detail));
    }
    if request.method() != Method::POST {
        return Err(not_this_way("POST", "This address takes an order: use POST."));
    }
    let body = body_of(request).await?;
    let Asked { order, leaves } =
        address.read(&body).map_err(|detail| problem(StatusCode::BAD_REQUEST, &detail))?;
    let Caller { uid, pid, .. } = caller;
    tracing::info!(uid, pid, "an operator orders: {}", order.as_str());
    let taken = match leaves.map_or(Ok(()), |domain| is_held(&domain, snapshot)) {
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
    tracing::info!(uid, pid, why, "the order is not taken: {}", order.as_str());
    Err(problem(status, &why))
}

async fn body_of<B>(request: Request<B>) -> Result<Bytes, Answer>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(BODY_LIMIT, Limited::new(request.into_body(), MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "The body of an order has at most 4096 bytes."))
        }
        Ok(Err(_)) => Err(problem(StatusCode::BAD_REQUEST, "The body is not complete.")),
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

const JSON: &str = "application/json";

fn not_this_way(allowed: &'static str, detail: &str) -> Answer {
    let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, detail);
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}

fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    json(status, "application/problem+json", &body)
}

fn json(status: StatusCode, media_type: &'static str, body: &impl Serialize) -> Answer {
    let mut text = serde_json::to_vec(body).unwrap_or_default(); // these types always serialise
    text.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
