//! Fuzz target: responses on a socket, of an older or newer agent or another program.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::api::{Status, SvidDocument};
use super::connection::{Response, Timed};
use super::events::Watch;
use super::read;
use miaf_spiffe::testing::check_error;

/// A response; the first byte chooses the request.
pub fn client(data: &[u8]) -> bool {
    let [choice, data @ ..] = data else { return false };
    let Ok((mut agent, stream)) = UnixStream::pair() else { return false };
    // What does not fit into the socket's buffer is no other case.
    let _ = agent.set_nonblocking(true);
    let _ = agent.write(data);
    let _ = agent.shutdown(Shutdown::Both);
    let response = match Response::read(Timed { stream, until: None }, Duration::from_secs(10)) {
        Ok(response) => response,
        Err(e) => return check_error(e),
    };
    let outcome = match choice % 3 {
        0 => response.body().and_then(|body| read::<Status>(&body)).map(drop),
        1 => response.body().and_then(|body| read::<SvidDocument>(&body)).map(drop),
        _ => Watch::of(response).try_for_each(|state| state.map(drop)),
    };
    match outcome {
        Ok(()) => true,
        Err(e) => check_error(e),
    }
}
