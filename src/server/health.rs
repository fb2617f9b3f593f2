//! The gRPC health service, `grpc.health.v1.Health`, by which SPIRE's commands, Kubernetes and
//! service meshes check an endpoint. SERVING is what `GET /readyz` calls ready.

use futures_util::stream::try_unfold;
use hyper::Request;
use hyper::body::{Bytes, Incoming};

use crate::platform::clock;
use crate::server::call_limit::CallPermit;
use crate::server::context::ServerContext;
use crate::server::grpc::{self, Code, GrpcStatus};
use crate::server::peer::ShutdownSignal;
use crate::server::protobuf::string_field;
use crate::server::response::HttpResponse;

/// Prefix of the paths of its methods.
pub(super) const PREFIX: &str = "/grpc.health.v1.Health/";
/// The services whose health is known: the agent as a whole, and the Workload API. They share it.
const SERVICES: [&str; 2] = ["", "SpiffeWorkloadAPI"];

/// `HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl Health {
    /// `HealthCheckResponse`: one field, an enumeration.
    fn message(self) -> Result<Bytes, GrpcStatus> {
        grpc::framed(&[1 << 3, self as u8])
    }
}

pub(super) async fn respond(
    request: &Request<()>,
    body: &mut Incoming,
    permit: CallPermit,
    context: &ServerContext,
    shutdown: &ShutdownSignal,
) -> Result<HttpResponse, GrpcStatus> {
    match request.uri().path().strip_prefix(PREFIX) {
        Some("Check") => {
            if !is_known(body).await? {
                let message = "Health is known of the service \"\" and of \"SpiffeWorkloadAPI\".";
                return Err(GrpcStatus::new(Code::NotFound, message));
            }
            Ok(grpc::unary(health(context).message()?))
        }
        Some("Watch") => {
            let is_known = is_known(body).await?;
            let watch = Watch {
                is_known,
                last: None,
                context: context.clone(),
                shutdown: shutdown.clone(),
                _permit: permit,
            };
            Ok(grpc::stream(try_unfold(watch, |mut watch| async move {
                let message = watch.next().await?;
                Ok(Some((message, watch)))
            })))
        }
        _ => Err(GrpcStatus::new(
            Code::Unimplemented,
            "grpc.health.v1.Health has the methods Check and Watch here.",
        )),
    }
}

/// Reads a `HealthCheckRequest`, and returns whether the service that it names is known.
async fn is_known(body: &mut Incoming) -> Result<bool, GrpcStatus> {
    let message = grpc::read_message(body).await?;
    let service = string_field(&message, 1)
        .ok_or_else(|| GrpcStatus::new(Code::InvalidArgument, "The message is not a HealthCheckRequest."))?;
    Ok(SERVICES.contains(&service))
}

fn health(context: &ServerContext) -> Health {
    let snapshot = context.snapshots.borrow().clone();
    let is_ready = snapshot.is_ready(&snapshot.default_identity, clock::now().wall);
    if is_ready { Health::Serving } else { Health::NotServing }
}

/// An open call of `Watch`.
struct Watch {
    is_known: bool,
    last: Option<Health>,
    context: ServerContext,
    shutdown: ShutdownSignal,
    _permit: CallPermit,
}

impl Watch {
    /// Waits for the next message: the health at once, then each time that it changes.
    async fn next(&mut self) -> Result<Bytes, GrpcStatus> {
        loop {
            self.context.snapshots.mark_unchanged();
            let health = if self.is_known { health(&self.context) } else { Health::ServiceUnknown };
            if self.last.replace(health) != Some(health) {
                return health.message();
            }
            tokio::select! {
                biased;
                _ = self.shutdown.changed() => return Err(grpc::shutting_down()),
                changed = self.context.snapshots.changed() => changed.map_err(|_| grpc::shutting_down())?,
            }
        }
    }
}
