//! Reads request bodies within limits of size, pieces and time.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Bytes, Incoming};
use tokio::time::{Instant, timeout};

use crate::server::response::{HttpResponse, problem};
use miaf_client::api::ProblemCode::InvalidRequest;

/// Bytes of a body that is used: no request for a signature is longer, and of the admin commands only
/// that which brings a chain.
pub(super) const MAX_BODY: usize = 4 * 1024;
/// Time for a body that is used.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// Pieces of a body: each costs time, however small it is.
const MAX_PIECES: usize = 512;

/// Bytes that are read of a request that is refused. Some clients take a response for an error that
/// comes before they have sent their request.
const MAX_DISCARDED: usize = 256 * 1024;
/// Time for all of that.
const DISCARD_LIMIT: Duration = Duration::from_secs(2);
/// Time for the next piece of it: a client may be waiting for the response before it sends more.
const DISCARD_PAUSE: Duration = Duration::from_secs(1);

/// Reads a body to its end.
///
/// # Errors
/// The response to a body that exceeds a limit, or that is not complete.
pub(super) async fn read(body: &mut Incoming) -> Result<Vec<u8>, HttpResponse> {
    read_up_to(MAX_BODY, body).await
}

/// Reads a body of at most `limit` bytes to its end.
///
/// # Errors
/// As [`read`].
pub(super) async fn read_up_to(limit: usize, body: &mut Incoming) -> Result<Vec<u8>, HttpResponse> {
    let (mut read, mut pieces) = (Vec::new(), 0);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                let detail = "the body ended before it was complete";
                problem(StatusCode::BAD_REQUEST, InvalidRequest, detail, Some("Send the whole body"))
            })?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            if read.len() + data.len() > limit {
                let (detail, hint) = (format!("the body has more than {limit} bytes"), "Send a shorter one");
                return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, InvalidRequest, &detail, Some(hint)));
            }
            pieces += 1;
            if pieces > MAX_PIECES {
                let (detail, hint) = ("the body came in more than 512 pieces", "Send it in larger ones");
                return Err(problem(StatusCode::BAD_REQUEST, InvalidRequest, detail, Some(hint)));
            }
            read.extend_from_slice(data);
        }
        Ok(())
    };
    match timeout(BODY_LIMIT, reading).await {
        Ok(read_to_end) => read_to_end.map(|()| read),
        Err(_) => {
            let detail = "the body was not complete within 10 seconds";
            let hint = "Send the body right after the head of the request";
            Err(problem(StatusCode::REQUEST_TIMEOUT, InvalidRequest, detail, Some(hint)))
        }
    }
}

/// Reads and drops the rest of a body, for as long as it keeps coming. Returns whether its end was
/// reached.
pub(super) async fn discard(body: &mut Incoming) -> bool {
    let deadline = Instant::now() + DISCARD_LIMIT;
    let (mut length, mut pieces) = (0, 0);
    while !body.is_end_stream() {
        let pause = DISCARD_PAUSE.min(deadline.saturating_duration_since(Instant::now()));
        match timeout(pause, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => length += frame.data_ref().map_or(0, Bytes::len),
            Ok(Some(Err(_))) | Err(_) => return false,
        }
        pieces += 1;
        if length > MAX_DISCARDED || pieces > MAX_PIECES {
            return false;
        }
    }
    true
}
