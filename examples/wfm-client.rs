//! A WFM Client: fetches its deployments from its WFM over mTLS, without any access to its key.
//!
//!     wfm-client --identity wfm-client https://wfm.factory.example:8443
//!
//! The WFM is the one of the client's own SVID, whatever the address: another one, a device, or an
//! ordinary web server is refused before the request is sent. `--wfm SPIFFE-ID` expects another
//! peer, as a client does whose own SVID names none; `--socket PATH` is the agent's signing socket.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use miaf_client::Client;
use miaf_client::api::IdentityName;
use miaf_client::wfm::{ConnectError, Connector};
use miaf_spiffe::SpiffeId;
use miaf_spiffe::text::printable;

const USAGE: &str =
    "usage: wfm-client [--socket PATH] [--wfm SPIFFE-ID] --identity NAME https://HOST[:PORT][/PATH]";
const SOCKET: &str = "/run/miaf-agent/sign.sock";
/// Limit of a response, in bytes.
const MAX_RESPONSE: u64 = 16 * 1024 * 1024;

fn main() -> ExitCode {
    let fetched = arguments(std::env::args().skip(1)).and_then(|(connector, url)| fetch(&connector, &url));
    match fetched {
        Ok(response) => {
            println!("{}", printable(&response));
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("wfm-client: {}", printable(&e.to_string()));
            if let Some(hint) = e.downcast_ref::<ConnectError>().and_then(ConnectError::hint) {
                eprintln!("  Hint: {}", printable(&hint));
            }
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<(Connector, String), Box<dyn Error>> {
    let (mut socket, mut identity, mut wfm, mut url) = (SOCKET.to_owned(), None, None, None);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or(USAGE);
        match argument.as_str() {
            "--socket" => socket = value()?,
            "--identity" => identity = Some(IdentityName::parse(&value()?)?),
            "--wfm" => wfm = Some(SpiffeId::parse(&value()?)?),
            _ if argument.starts_with("https://") && url.is_none() => url = Some(argument),
            _ => return Err(USAGE.into()),
        }
    }
    let agent = Client::new(socket).with_identity(identity.ok_or(USAGE)?);
    let connector = Connector::new(agent);
    let connector = match wfm {
        Some(wfm) => connector.with_peer(wfm),
        None => connector,
    };
    Ok((connector, url.ok_or(USAGE)?))
}

/// Returns the body of the WFM's response to `GET /api/v1/deployments` below this URL.
pub fn fetch(connector: &Connector, url: &str) -> Result<String, Box<dyn Error>> {
    let rest = url.strip_prefix("https://").ok_or("the URL does not begin with https://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse()?),
        _ => (authority, 443), // margo-now N11
    };
    let mut wfm = connector.connect(host, port)?;
    let path = format!("{}/api/v1/deployments", path.trim_end_matches('/'));
    // HTTP/1.0: the body ends with the connection, and is not in chunks. In one write: the peer may
    // respond, and close, before the last of several.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {authority}\r\naccept: application/json\r\n\r\n");
    wfm.write_all(request.as_bytes())?;
    wfm.flush()?;
    let mut response = Vec::new();
    (&mut wfm).take(MAX_RESPONSE).read_to_end(&mut response)?;
    let response = String::from_utf8(response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("the response is not HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    match status.starts_with('2') {
        true => Ok(body.to_owned()),
        false => Err(format!("{} responds with {status}: {body}", wfm.peer().spiffe_id).into()),
    }
}
