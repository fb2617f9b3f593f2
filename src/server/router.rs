//! Routes requests to their handlers, and handles those that only read: their responses are built
//! from the latest snapshot alone.

use std::sync::OnceLock;

use http_body_util::{Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Version};
use serde::Serialize;
use serde_json::json;

use crate::lifecycle::State;
use crate::platform::clock;
use crate::publish::Snapshot;
use crate::publish::status;
use crate::server::admin::{self, CommandPath};
use crate::server::call_limit::CallLimit;
use crate::server::context::ServerContext;
use crate::server::grpc::{self, Code, GrpcStatus};
use crate::server::health;
use crate::server::metrics;
use crate::server::peer::{Peer, ShutdownSignal};
use crate::server::response::{
    HttpResponse, JSON, NO_SVID, json, json_line, method_not_allowed, problem, response,
};
use crate::server::sign;
use crate::server::watch::events;
use crate::server::workload_api;

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
        let detail = "Over HTTP/2 there is the SPIFFE Workload API and nothing else. Use HTTP/1.1.";
        return problem(StatusCode::HTTP_VERSION_NOT_SUPPORTED, detail);
    }
    if let Some(path) = CommandPath::parse(path) {
        return admin::respond(path, request, body, peer, context)
            .await
            .unwrap_or_else(|rejection| rejection);
    }
    if path == sign::PATH {
        return sign::respond(request, body, peer, context).await.unwrap_or_else(|refusal| refusal);
    }
    read(request, context, shutdown)
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
pub(super) fn overloaded<B>(request: &Request<B>, reason: &str) -> HttpResponse {
    if grpc::is_call(request) {
        return grpc::refusal(&GrpcStatus::new(Code::Unavailable, format!("{reason}.")));
    }
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}."));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
    response
}

fn read<B>(request: &Request<B>, context: &ServerContext, shutdown: &ShutdownSignal) -> HttpResponse {
    let now = clock::now().wall;
    let snapshot = context.snapshots.borrow().clone();
    let known = ["/v1/status", "/v1/svid", "/v1/bundle", "/v1/watch", "/healthz", "/readyz", "/metrics"];
    let path = request.uri().path();
    if known.contains(&path) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return method_not_allowed("GET, HEAD", "This path can only be read: use GET.");
    }
    match path {
        "/v1/status" => json(StatusCode::OK, JSON, &status::status(&snapshot, now)),
        "/v1/svid" => match &snapshot.identity {
            Some(_) => cached(&snapshot.cache.svid, || status::svid_document(&snapshot)),
            None => problem(StatusCode::SERVICE_UNAVAILABLE, NO_SVID),
        },
        "/v1/bundle" => match &snapshot.bundle {
            Some(current) => cached(&snapshot.cache.bundle, || current.bundle.to_document()),
            None => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "This device has no trust bundle yet. GET /v1/status says what it is waiting for.",
            ),
        },
        "/v1/watch" => {
            let events = StreamBody::new(events(context.changes.clone(), shutdown.clone()));
            response(StatusCode::OK, "text/event-stream", events)
        }
        "/metrics" => {
            let text = metrics::text(&snapshot, &context.counters, now);
            response(StatusCode::OK, metrics::MEDIA_TYPE, Full::new(Bytes::from(text)))
        }
        "/healthz" => json(StatusCode::OK, JSON, &json!({ "live": true })),
        "/readyz" if snapshot.is_ready(now) => json(StatusCode::OK, JSON, &json!({ "ready": true })),
        "/readyz" => problem(StatusCode::SERVICE_UNAVAILABLE, not_ready(&snapshot)),
        _ => problem(StatusCode::NOT_FOUND, "Unknown path. Try GET /v1/status."),
    }
}

/// Responds with a document that is serialised once per snapshot.
fn cached<T: Serialize>(cache: &OnceLock<Bytes>, document: impl FnOnce() -> T) -> HttpResponse {
    let text = cache.get_or_init(|| json_line(&document())).clone();
    response(StatusCode::OK, JSON, Full::new(text))
}

fn not_ready(snapshot: &Snapshot) -> &'static str {
    match snapshot.state {
        State::WaitingForClock => {
            "This device's clock cannot be right, so its SVID cannot be validated. GET /v1/status says more."
        }
        _ if snapshot.key_is_lost => "The key of this device's SVID is lost. GET /v1/status says more.",
        _ => "There is no valid SVID that the trust bundle vouches for. GET /v1/status says why.",
    }
}
