//! mTLS as this device, with rustls and without any access to its key: fetches a page from a server
//! of the trust domain.
//!
//!     mtls-client /run/miaf-agent/sign.sock wfm.factory.example:8443 spiffe://factory.example/wfm
//!
//! The server is identified by its SPIFFE ID, and not by a host name: the trust bundle
//! vouches for identities.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use miaf_client::Client;
use miaf_spiffe::SpiffeId;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, server, id] = arguments.as_slice() else {
        return Err("usage: mtls-client SOCKET HOST:PORT SPIFFE-ID-OF-THE-SERVER".into());
    };
    print!("{}", fetch(Path::new(socket), server, id)?);
    Ok(())
}

/// Returns the server's response to `GET /`.
pub fn fetch(socket: &Path, server: &str, id: &str) -> Result<String, Box<dyn Error>> {
    let agent = Client::new(socket);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Both are fetched again for every connection, so that rotations need nothing more.
    let known = agent.server_verifier(&SpiffeId::parse(id)?)?;
    let this_device = SingleCertAndKey::from(agent.certified_key()?);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // for a verifier that checks a SPIFFE ID, not a name
        .with_custom_certificate_verifier(known)
        .with_client_cert_resolver(Arc::new(this_device));
    config.resumption = Resumption::disabled(); // a resumed session would keep an old identity

    let tcp = TcpStream::connect(server)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let tls = ClientConnection::new(Arc::new(config), ServerName::try_from(host)?.to_owned())?;
    let mut connection = StreamOwned::new(tls, tcp);
    connection.write_all(format!("GET / HTTP/1.0\r\nhost: {host}\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    Ok(response)
}
