//! The connector of a WFM Client, against a real TLS server and a socket that speaks as the agent
//! does, with a software key.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use miaf_client::Client;
use miaf_client::api::IdentityName;
use miaf_client::wfm::{ConnectError, Connection, Connector, Ended, PeerVerifier};
use miaf_spiffe::peer::{ExpectedPeer, PeerError};
use miaf_spiffe::{Bundle, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose as Purpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose as Usage, SanType, SigningKey as _,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-4";
const WFM: &str = "spiffe://factory.example/margo/wfm/wfm-1";
const DEVICE: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
/// A request that must not be read by another server.
const REQUEST: &[u8] = b"GET /secret HTTP/1.0\r\n\r\n";
/// Longer than any step takes under load.
const PATIENCE: Duration = Duration::from_secs(120);

struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let params = Self::params(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn below(&self, name: &str) -> Self {
        let params = Self::params(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
        params
    }

    fn jwk(&self) -> Value {
        json!({ "kty": "EC", "use": "x509-svid", "x5c": [BASE64.encode(self.certificate.der())] })
    }
}

/// A certificate with its key, and the chain that is sent.
struct Issued {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Issued {
    fn svid(id: &str, by: &Authority) -> Self {
        Self::bent(id, by, |_| {})
    }

    fn bent(id: &str, by: &Authority, bend: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new(); // rcgen makes the names critical then
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![Usage::DigitalSignature];
        params.extended_key_usages = vec![Purpose::ServerAuth, Purpose::ClientAuth];
        bend(&mut params);
        let key = KeyPair::generate().unwrap();
        Self { chain: vec![params.signed_by(&key, &by.issuer).unwrap().der().clone()], key }
    }
}

/// The agent, as far as a connector needs it.
struct Agent {
    directory: TempDir,
    state: Arc<Mutex<State>>,
}

struct State {
    own: Option<Issued>,
    bundle: Value,
    /// Paths of the requests.
    requests: Vec<String>,
}

impl Agent {
    fn start(own: Issued, bundle: Value) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("sign.sock")).unwrap();
        let state = Arc::new(Mutex::new(State { own: Some(own), bundle, requests: Vec::new() }));
        let of_thread = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                respond(stream.unwrap(), &of_thread);
            }
        });
        Self { directory, state }
    }

    fn connector(&self) -> Connector {
        let agent = Client::new(self.directory.path().join("sign.sock"));
        Connector::new(agent.with_identity(IdentityName::parse("line-4").unwrap())).with_limit(PATIENCE)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}

/// Responds to one request as docs/agent-api.yaml says. Identities: a device, whose SVID is in the
/// state too, and the WFM Client.
fn respond(stream: UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap() == 0 {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let mut state = state.lock().unwrap();
    state.requests.push(path.clone());
    let response = match path.as_str() {
        "/v1/watch" => format!("event: state\ndata: {}\n\n", event(&state)),
        "/v1/identities/line-4/sign" => signature(&state, &serde_json::from_slice(&body).unwrap()).to_string(),
        other => panic!("{other}"),
    };
    let _ = write!(reader.get_mut(), "HTTP/1.0 200 OK\r\n\r\n{response}"); // it may be gone
}

fn event(state: &State) -> Value {
    let identity = |name: &str| {
        json!({
            "name": name, "state": "active", "ready": true, "spiffeId": null, "svid": null, "lastError": null,
            "key": { "provider": "software", "protection": null, "algorithm": null }
        })
    };
    let svids: Vec<_> = state.own.iter().map(|own| {
        let pem = |der: &CertificateDer<'_>| miaf_spiffe::svid::certificate_pem(der);
        let leaf = &own.chain[0];
        let id = if leaf.windows(DEVICE.len()).any(|part| part == DEVICE.as_bytes()) { DEVICE } else { CLIENT };
        json!({
            "identity": "line-4", "spiffeId": id, "serial": "0a", "generation": 1,
            "certificateChainPem": own.chain.iter().map(pem).collect::<Vec<_>>(),
            "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2199-01-01T00:00:00Z"
        })
    }).collect();
    json!({
        "status": {
            "trustDomain": "factory.example", "bundle": null, "bootstrap": null, "initialTrust": null, "lastError": null,
            "identities": [identity("device"), identity("line-4")]
        },
        "svids": svids,
        "bundle": state.bundle
    })
}

fn signature(state: &State, request: &Value) -> Value {
    assert_eq!(request["serial"], "0a");
    // rcgen signs messages, and the API is asked to sign a digest: the key is used with ring.
    let digest = BASE64.decode(request["digest"].as_str().unwrap()).unwrap();
    let der = sign_digest(&state.own.as_ref().unwrap().key, &digest);
    json!({ "signature": BASE64.encode(der), "serial": "0a", "generation": 1 })
}
