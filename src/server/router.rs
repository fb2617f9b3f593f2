//! Routes requests to their handlers, and handles those that only read: their responses are built
//! from the latest snapshot alone.

use std::sync::OnceLock;

use http_body_util::{Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Version};
use serde::Serialize;
use serde_json::json;

use crate::hint::{Hint as _, Reason};
use crate::platform::clock;
use crate::publish::status;
use crate::publish::{IdentitySnapshot, Snapshot};
use crate::server::admin::{self, CommandPath};
use crate::server::call_limit::CallLimit;
use crate::server::connection_limit::LimitReached;
use crate::server::context::ServerContext;
use crate::server::grpc::{self, Code, GrpcStatus};
use crate::server::health;
use crate::server::metrics;
use crate::server::peer::{Peer, ShutdownSignal};
use crate::server::response::{
    HttpResponse, JSON, SEE_STATUS, json, json_line, method_not_allowed, no_svid, problem, refusal, response,
    unknown_identity,
};
use crate::server::sign;
use crate::server::watch::events;
use crate::server::workload_api;
use miaf_client::api::{IdentityName, ProblemCode, State};
use miaf_spiffe::text::Excerpt;

/// Characters of a path that a response quotes.
const MAX_PATH: usize = 200;

/// Responds to a request. `calls` is the limit of its connection, where that is HTTP/2.
pub(super) async fn respond(
    request: &Request<()>,
    body: &mut Incoming,
    peer: Peer,
    calls: Option<&CallLimit>,
    context: &ServerContext,
    shutdown: &ShutdownSignal,
) -> HttpResponse {
    context.counters.request(peer);
    if let Some(calls) = calls
        && grpc::is_call(request)
    {
        let response = call(request, body, peer, calls, context, shutdown).await;
        return response.unwrap_or_else(|status| grpc::refusal(&status));
    }
    let path = request.uri().path();
    if path.starts_with(workload_api::PREFIX) {
        return workload_api::not_grpc();
    }
    if request.version() == Version::HTTP_2 {
        // One connection could have many large responses under way by it.
        let (status, code) = (StatusCode::HTTP_VERSION_NOT_SUPPORTED, ProblemCode::UnsupportedVersion);
        let detail = "over HTTP/2 there is the SPIFFE Workload API and nothing else";
        return problem(status, code, detail, Some("Use HTTP/1.1"));
    }
    match Resource::parse(path) {
        Some(Resource::Command(path)) => {
            admin::respond(path, request, body, peer, context).await.unwrap_or_else(|rejection| rejection)
        }
        Some(Resource::Sign(identity)) => sign::respond(identity.as_ref(), request, body, peer, context)
            .await
            .unwrap_or_else(|refusal| refusal),
        Some(Resource::Document(document)) => read(&document, request, context, shutdown),
        None => {
            let detail = format!("unknown path {}", Excerpt::of(path, MAX_PATH));
            let hint = "Try GET /v1/status; docs/agent-api.yaml has all paths";
            problem(StatusCode::NOT_FOUND, ProblemCode::UnknownPath, &detail, Some(hint))
        }
    }
}

/// What a path names. An identity that it does not name is the default identity.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    Command(CommandPath),
    Sign(Option<IdentityName>),
    Document(Document),
}

/// What can only be read.
#[derive(Debug, PartialEq, Eq)]
enum Document {
    Status,
    Svid(Option<IdentityName>),
    Bundle,
    Watch,
    Metrics,
    Liveness,
    Readiness(Option<IdentityName>),
}

impl Resource {
    fn parse(path: &str) -> Option<Self> {
        if let Some(rest) = path.strip_prefix("/v1/identities/") {
            let (name, resource) = rest.split_once('/')?;
            let name = IdentityName::parse(name).ok()?;
            return Some(match resource {
                "svid" => Self::Document(Document::Svid(Some(name))),
                "readyz" => Self::Document(Document::Readiness(Some(name))),
                "sign" => Self::Sign(Some(name)),
                "renew" => Self::Command(CommandPath::Renew(name)),
                "retire" => Self::Command(CommandPath::Retire(name)),
                "csr" => Self::Command(CommandPath::Csr(name)),
                "enroll" => Self::Command(CommandPath::Enroll(name)),
                "install" => Self::Command(CommandPath::Install(name)),
                _ => return None,
            });
        }
        Some(match path {
            "/v1/sign" => Self::Sign(None),
            "/v1/retry" => Self::Command(CommandPath::Retry),
            "/v1/status" => Self::Document(Document::Status),
            "/v1/svid" => Self::Document(Document::Svid(None)),
            "/v1/bundle" => Self::Document(Document::Bundle),
            "/v1/watch" => Self::Document(Document::Watch),
            "/metrics" => Self::Document(Document::Metrics),
            "/healthz" => Self::Document(Document::Liveness),
            "/readyz" => Self::Document(Document::Readiness(None)),
            _ => return None,
        })
    }
}

/// Responds to a gRPC call of any service.
async fn call(
    request: &Request<()>,
    body: &mut Incoming,
    peer: Peer,
    calls: &CallLimit,
    context: &ServerContext,
    shutdown: &ShutdownSignal,
) -> Result<HttpResponse, GrpcStatus> {
    // Clients retry after UNAVAILABLE (SPIFFE Workload Endpoint, section 6).
    let permit = calls.acquire().map_err(|limit| GrpcStatus::new(Code::Unavailable, limit.to_string()))?;
    grpc::require_protobuf(request)?;
    let path = request.uri().path();
    if path.starts_with(workload_api::PREFIX) {
        workload_api::respond(request, body, peer, permit, context, shutdown).await
    } else if path.starts_with(health::PREFIX) {
        health::respond(request, body, permit, context, shutdown).await
    } else {
        let message = "Unknown service. This socket has SpiffeWorkloadAPI and grpc.health.v1.Health.";
        Err(GrpcStatus::new(Code::Unimplemented, message))
    }
}

/// Response to a connection over the limit (503, or gRPC UNAVAILABLE).
pub(super) fn overloaded<B>(request: &Request<B>, limit: LimitReached) -> HttpResponse {
    if grpc::is_call(request) {
        return grpc::refusal(&GrpcStatus::new(Code::Unavailable, format!("{}.", limit.with_hint())));
    }
    let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, ProblemCode::ConnectionLimit);
    let mut response = refusal(status, code, &Reason::of(&limit));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
    response
}

fn read<B>(
    document: &Document,
    request: &Request<B>,
    context: &ServerContext,
    shutdown: &ShutdownSignal,
) -> HttpResponse {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return method_not_allowed("GET, HEAD", "this path can only be read", "Use GET");
    }
    let now = clock::now().wall;
    let snapshot = context.snapshots.borrow().clone();
    match document {
        Document::Status => json(StatusCode::OK, JSON, &status::status(&snapshot, now)),
        Document::Svid(_) | Document::Bundle if snapshot.withdrawn_since(now).is_some() => withdrawn(),
        Document::Svid(name) => match find(&snapshot, name.as_ref()) {
            Err(unknown) => unknown,
            Ok(identity) if identity.current.is_some() => {
                cached(&identity.cache.svid, || status::svid_document(identity))
            }
            Ok(_) => no_svid(),
        },
        Document::Bundle => match &snapshot.bundle {
            Some(current) => cached(&snapshot.cache.bundle, || current.document()),
            None => not_available("this device has no trust bundle yet"),
        },
        Document::Watch => {
            let events = StreamBody::new(events(context.changes.clone(), shutdown.clone()));
            response(StatusCode::OK, "text/event-stream", events)
        }
        Document::Metrics => {
            let text = metrics::text(&snapshot, &context.counters, now);
            response(StatusCode::OK, metrics::MEDIA_TYPE, Full::new(Bytes::from(text)))
        }
        Document::Liveness => json(StatusCode::OK, JSON, &json!({ "live": true })),
        Document::Readiness(name) => match find(&snapshot, name.as_ref()) {
            Err(unknown) => unknown,
            Ok(identity) if snapshot.is_ready(identity, now) => {
                json(StatusCode::OK, JSON, &json!({ "ready": true }))
            }
            Ok(_) if snapshot.withdrawn_since(now).is_some() => withdrawn(),
            Ok(identity) => not_available(not_ready(identity)),
        },
    }
}

/// The identity that a path names, or the default identity. `Err` is the response where it names an
/// unknown one.
pub(super) fn find<'a>(
    snapshot: &'a Snapshot,
    name: Option<&IdentityName>,
) -> Result<&'a IdentitySnapshot, HttpResponse> {
    let Some(name) = name else { return Ok(&snapshot.default_identity) };
    snapshot
        .identity(name)
        .ok_or_else(|| refusal(StatusCode::NOT_FOUND, ProblemCode::UnknownIdentity, &unknown_identity(name)))
}

fn not_available(detail: &str) -> HttpResponse {
    problem(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::NotAvailable, detail, Some(SEE_STATUS))
}

/// Response where SVIDs and bundle are withdrawn, since the bundle is stale.
fn withdrawn() -> HttpResponse {
    let detail = "the trust bundle is older than bundle.max_age in the agent's configuration, and bundle.when_stale \
                  withdraws SVIDs and bundle until it is refreshed";
    problem(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::BundleStale, detail, Some(SEE_STATUS))
}

/// Responds with a document that is serialised once per snapshot.
fn cached<T: Serialize>(cache: &OnceLock<Bytes>, document: impl FnOnce() -> T) -> HttpResponse {
    let text = cache.get_or_init(|| json_line(&document())).clone();
    response(StatusCode::OK, JSON, Full::new(text))
}

fn not_ready(identity: &IdentitySnapshot) -> &'static str {
    match identity.state {
        State::WaitingForClock => "this device's clock cannot be right, so the SVID cannot be validated",
        _ if identity.key_is_lost => "the key of this identity's SVID is lost",
        _ => "there is no valid SVID that the trust bundle vouches for",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_names_a_resource_and_perhaps_an_identity() {
        let name = || IdentityName::parse("wfm-client").unwrap();
        for (path, expected) in [
            ("/v1/svid", Resource::Document(Document::Svid(None))),
            ("/v1/identities/wfm-client/svid", Resource::Document(Document::Svid(Some(name())))),
            ("/readyz", Resource::Document(Document::Readiness(None))),
            ("/v1/identities/wfm-client/readyz", Resource::Document(Document::Readiness(Some(name())))),
            ("/v1/sign", Resource::Sign(None)),
            ("/v1/identities/wfm-client/sign", Resource::Sign(Some(name()))),
            ("/v1/retry", Resource::Command(CommandPath::Retry)),
            ("/v1/identities/wfm-client/renew", Resource::Command(CommandPath::Renew(name()))),
            ("/v1/identities/wfm-client/retire", Resource::Command(CommandPath::Retire(name()))),
        ] {
            assert_eq!(Resource::parse(path), Some(expected));
        }
        for path in [
            "/v1/renew",
            "/v1/identities",
            "/v1/identities/",
            "/v1/identities/wfm-client",
            "/v1/identities/wfm-client/",
            "/v1/identities/wfm-client/svid/",
            "/v1/identities/wfm-client/status",
            "/v1/identities/wfm-client/healthz",
            "/v1/identities//svid",
            "/v1/identities/../svid",
            "/v1/identities/WFM/svid",
            "/v1/identities/wfm%2Dclient/svid",
            "/v1/status/",
        ] {
            assert_eq!(Resource::parse(path), None, "{path}");
        }
    }
}
