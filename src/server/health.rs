//! The gRPC health service, `grpc.health.v1.Health`: how SPIRE's commands, Kubernetes and service
//! meshes check an endpoint. SERVING is what `GET /readyz` calls ready.

use futures_util::stream::try_unfold;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};

use crate::platform::clock;
use crate::server::calls::CallPermit;
use crate::server::context::Lines;
use crate::server::grpc::{self, Code, Status};
use crate::server::peer::Closing;
use crate::server::protobuf::string_field;
use crate::server::response::Body;

/// What the paths of its methods begin with.
pub(super) const PREFIX: &str = "/grpc.health.v1.Health/";
/// The services whose health is known: the agent as a whole, and the Workload API, which are one.
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
    fn message(self) -> Result<Bytes, Status> {
        grpc::framed(&[1 << 3, self as u8])
    }
}

pub(super) async fn respond(
    request: &Request<()>,
    body: &mut Incoming,
    permit: CallPermit,
    lines: &Lines,
    closing: &Closing,
) -> Result<Response<Body>, Status> {
    match request.uri().path().strip_prefix(PREFIX) {
        Some("Check") => {
            if !is_known(body).await? {
                let why = "Health is known of the service \"\" and of \"SpiffeWorkloadAPI\".";
                return Err(Status::new(Code::NotFound, why));
            }
            Ok(grpc::unary(health(lines).message()?))
        }
        Some("Watch") => {
            let is_known = is_known(body).await?;
            let watch = Watch {
                is_known,
                last: None,
                lines: lines.clone(),
                closing: closing.clone(),
                _permit: permit,
            };
            Ok(grpc::stream(try_unfold(watch, |mut watch| async move {
                let message = watch.next().await?;
                Ok(Some((message, watch)))
            })))
        }
        _ => Err(Status::new(
            Code::Unimplemented,
            "grpc.health.v1.Health has the methods Check and Watch here.",
        )),
    }
}

/// Reads a `HealthCheckRequest`, and returns whether the service that it names is known.
async fn is_known(body: &mut Incoming) -> Result<bool, Status> {
    let message = grpc::read_message(body).await?;
    let service = string_field(&message, 1)
        .ok_or_else(|| Status::new(Code::InvalidArgument, "The message is not a HealthCheckRequest."))?;
    Ok(SERVICES.contains(&service))
}

fn health(lines: &Lines) -> Health {
    let is_ready = lines.snapshots.borrow().is_ready(clock::now().wall);
    if is_ready { Health::Serving } else { Health::NotServing }
}

/// A call of `Watch`.
struct Watch {
    is_known: bool,
    last: Option<Health>,
    lines: Lines,
    closing: Closing,
    _permit: CallPermit,
}

impl Watch {
    /// The health at once, then each time that it is another.
    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            self.lines.snapshots.mark_unchanged();
            let health = if self.is_known { health(&self.lines) } else { Health::ServiceUnknown };
            if self.last.replace(health) != Some(health) {
                return health.message();
            }
            tokio::select! {
                biased;
                _ = self.closing.changed() => return Err(grpc::closing()),
                changed = self.lines.snapshots.changed() => changed.map_err(|_| grpc::closing())?,
            }
        }
    }
}
