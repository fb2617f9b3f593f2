//! The SPIFFE Workload API.

use hyper::body::Incoming;
use hyper::{Request, Response};

use super::answers::{Body, Caller, Lines};
use super::socket::Closing;

/// What its paths begin with.
pub(super) const PREFIX: &str = "/SpiffeWorkloadAPI/";

pub(super) async fn answer(
    _request: Request<Incoming>,
    _caller: Caller,
    _lines: &Lines,
    _closing: &Closing,
) -> Response<Body> {
    super::answers::problem(hyper::StatusCode::NOT_IMPLEMENTED, "not there yet")
}

pub(super) fn overloaded(why: &str) -> Response<Body> {
    super::answers::problem(hyper::StatusCode::SERVICE_UNAVAILABLE, why)
}
