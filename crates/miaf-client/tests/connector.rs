//! The connector of a WFM Client, against a real TLS server and a socket that speaks as the agent
//! does, with a software key.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use miaf_client::Client;
use miaf_client::api::IdentityName;
use miaf_client::wfm::{ConnectError, Connection, Connector, Ended, PeerVerifier};
use miaf_spiffe::peer::{ExpectedPeer, PeerError};
use miaf_spiffe::{Bundle, SpiffeId, TrustDomain};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey as _;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose as Purpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose as Usage, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "../../../examples/wfm-client.rs"]
#[allow(dead_code, unreachable_pub)]
mod example;

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
        "/v1/identities/line-4/sign" => {
            signature(&state, &serde_json::from_slice(&body).unwrap()).to_string()
        }
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
    let svids: Vec<_> = state
        .own
        .iter()
        .map(|own| {
            let pem = |der: &CertificateDer<'_>| miaf_spiffe::svid::certificate_pem(der);
            let leaf = &own.chain[0];
            let id = if leaf.windows(DEVICE.len()).any(|part| part == DEVICE.as_bytes()) {
                DEVICE
            } else {
                CLIENT
            };
            json!({
                "identity": "line-4", "spiffeId": id, "serial": "0a", "generation": 1,
                "certificateChainPem": own.chain.iter().map(pem).collect::<Vec<_>>(),
                "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2199-01-01T00:00:00Z"
            })
        })
        .collect();
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
    let digest = BASE64.decode(request["digest"].as_str().unwrap()).unwrap();
    let key = SigningKey::from_pkcs8_der(&state.own.as_ref().unwrap().key.serialize_der()).unwrap();
    let signature: Signature = key.sign_prehash(&digest).unwrap();
    json!({ "signature": BASE64.encode(signature.to_der()), "serial": "0a", "generation": 1 })
}

/// A TLS server with tickets, which demands an SVID of a WFM Client where it has a bundle for that.
/// It serves one connection after the other.
struct Server {
    port: u16,
    seen: Arc<Seen>,
}

/// What the server saw of its clients.
#[derive(Default)]
struct Seen {
    /// Bytes of requests, of all connections.
    bytes: AtomicUsize,
    /// Certificates of clients, whether accepted or not.
    certificates: AtomicUsize,
    /// The handshakes that were completed.
    handshakes: Mutex<Vec<HandshakeKind>>,
    /// The connections that have ended, with or without an error.
    ended: AtomicUsize,
}

impl Server {
    fn start(own: Issued, clients: Option<Bundle>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let config = match clients {
            Some(bundle) => {
                let expected = ExpectedPeer::WfmClientOf(SpiffeId::parse(WFM).unwrap());
                config.with_client_cert_verifier(Arc::new(PeerVerifier::new(expected, bundle)))
            }
            None => config.with_no_client_auth(),
        };
        let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
        let mut config = config.with_single_cert(own.chain, key).unwrap();
        config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
        config.max_early_data_size = 1024;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, config) = (Arc::new(Seen::default()), Arc::new(config));
        let of_thread = Arc::clone(&seen);
        thread::spawn(move || {
            for tcp in listener.incoming() {
                let (seen, config) = (Arc::clone(&of_thread), Arc::clone(&config));
                thread::spawn(move || {
                    let tls = ServerConnection::new(config).unwrap();
                    seen.serve(StreamOwned::new(tls, tcp.unwrap()));
                });
            }
        });
        Self { port, seen }
    }

    fn connect(&self, agent: &Agent) -> Result<Connection, ConnectError> {
        agent.connector().connect("127.0.0.1", self.port)
    }

    /// Waits until so many connections have ended, and returns the bytes of requests.
    fn bytes_after(&self, connections: usize) -> usize {
        while self.seen.ended.load(Ordering::SeqCst) < connections {
            thread::sleep(Duration::from_millis(10));
        }
        self.seen.bytes.load(Ordering::SeqCst)
    }
}

impl Seen {
    fn serve(&self, mut stream: StreamOwned<ServerConnection, std::net::TcpStream>) {
        const DEPLOYMENTS: &[u8] = b"GET /plant/api/v1/deployments HTTP/1.0\r\n";
        let (mut buffer, mut request) = ([0; 1024], Vec::new());
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if let Some(kind) = stream.conn.handshake_kind() {
                self.handshakes.lock().unwrap().push(kind);
            }
            self.bytes.fetch_add(length, Ordering::SeqCst);
            // It may come in pieces: a connection that closes before the last of them is reset.
            request.extend_from_slice(&buffer[..length]);
            if DEPLOYMENTS.starts_with(&request[..request.len().min(DEPLOYMENTS.len())])
                && !request.ends_with(b"\r\n\r\n")
            {
                continue;
            }
            if request.starts_with(DEPLOYMENTS) {
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n[\"a deployment\"]");
                stream.conn.send_close_notify();
                let _ = stream.flush();
                break;
            }
            if buffer[..length].starts_with(b"GET") && stream.write_all(b"hello").is_err() {
                break;
            }
        }
        let certificates = usize::from(stream.conn.peer_certificates().is_some());
        self.certificates.fetch_add(certificates, Ordering::SeqCst);
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

fn bundle(anchors: &[&Authority]) -> Value {
    json!({ "keys": anchors.iter().map(|anchor| anchor.jwk()).collect::<Vec<_>>(), "spiffe_sequence": 1 })
}

fn own_bundle(anchors: &[&Authority]) -> Bundle {
    let domain = TrustDomain::parse("factory.example").unwrap();
    Bundle::from_served(bundle(anchors).to_string().as_bytes(), &domain).unwrap()
}

fn exchange(connection: &mut Connection) -> String {
    connection.write_all(REQUEST).unwrap();
    let mut response = [0; 5];
    connection.read_exact(&mut response).unwrap();
    String::from_utf8(response.to_vec()).unwrap()
}

/// A WFM below an intermediate, with a DNS name and an empty subject.
fn wfm(root: &Authority) -> Issued {
    let intermediate = root.below("Intermediate");
    let mut wfm = Issued::bent(WFM, &intermediate, |params| {
        params.subject_alt_names.push(SanType::DnsName("elsewhere.example".try_into().unwrap()));
    });
    wfm.chain.push(intermediate.certificate.der().clone());
    wfm
}

#[test]
fn wfm_of_the_own_svid_is_accepted_and_never_resumed() {
    let root = Authority::new("Root");
    let server = Server::start(wfm(&root), Some(own_bundle(&[&root])));
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    let connector = agent.connector();
    for turn in 1..=3 {
        let mut connection = connector.connect("127.0.0.1", server.port).unwrap();
        assert_eq!(connection.peer().spiffe_id.to_string(), WFM);
        assert_eq!(exchange(&mut connection), "hello");
        assert!(connection.is_current());
        drop(connection);
        assert_eq!(server.bytes_after(turn), turn * REQUEST.len());
    }
    let handshakes = server.seen.handshakes.lock().unwrap();
    assert!(
        handshakes.len() == 3 && handshakes.iter().all(|kind| *kind == HandshakeKind::Full),
        "{handshakes:?}"
    );
    let signs = |state: &State| state.requests.iter().filter(|path| path.contains("/sign")).count();
    assert_eq!(signs(&agent.state.lock().unwrap()), 3);
}

#[test]
fn other_peers_are_refused_before_a_byte_is_sent() {
    let (root, foreign) = (Authority::new("Root"), Authority::new("Foreign"));
    let day = Duration::from_secs(24 * 3600);
    let at = |time: SystemTime| {
        rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(SystemTime::UNIX_EPOCH).unwrap()
    };
    let now = SystemTime::now();
    let expected = |why: &PeerError| matches!(why, PeerError::NotExpected { .. });
    let no_svid = |why: &PeerError| matches!(why, PeerError::NoSvid(_));
    type Why<'a> = &'a dyn Fn(&PeerError) -> bool;
    let cases: Vec<(&str, Issued, Why<'_>)> = vec![
        ("another WFM", Issued::svid("spiffe://factory.example/margo/wfm/wfm-2", &root), &expected),
        ("a WFM Client of the same WFM", Issued::svid(CLIENT, &root), &expected),
        ("a device", Issued::svid(DEVICE, &root), &expected),
        (
            "the same WFM of another domain",
            Issued::svid("spiffe://other.example/margo/wfm/wfm-1", &root),
            &expected,
        ),
        (
            "its name with another case",
            Issued::svid("spiffe://factory.example/margo/wfm/WFM-1", &root),
            &expected,
        ),
        (
            "a Web PKI certificate",
            Issued::bent(WFM, &foreign, |params| {
                params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
            }),
            &no_svid,
        ),
        (
            "two names",
            Issued::bent(WFM, &root, |params| {
                params.subject_alt_names.push(SanType::URI(DEVICE.try_into().unwrap()));
            }),
            &no_svid,
        ),
        (
            "an authority",
            Issued::bent(WFM, &root, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            &no_svid,
        ),
        (
            "a signer of certificates",
            Issued::bent(WFM, &root, |params| params.key_usages.push(Usage::KeyCertSign)),
            &no_svid,
        ),
        ("of another issuer", Issued::svid(WFM, &foreign), &|why| {
            matches!(why, PeerError::NotTrusted { .. })
        }),
        (
            "expired",
            Issued::bent(WFM, &root, |params| {
                (params.not_before, params.not_after) = (at(now - 2 * day), at(now - day));
            }),
            &|why| matches!(why, PeerError::Expired { .. }),
        ),
        (
            "not yet valid",
            Issued::bent(WFM, &root, |params| {
                (params.not_before, params.not_after) = (at(now + day), at(now + 2 * day))
            }),
            &|why| matches!(why, PeerError::NotYetValid { .. }),
        ),
    ];
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    for (case, own, is_expected) in cases {
        // It takes any client, or none: what is sent does not depend on the server.
        let server = Server::start(own, None);
        let error = server.connect(&agent).unwrap_err();
        assert!(matches!(&error, ConnectError::Peer(_, why) if is_expected(why)), "{case}: {error:?}");
        assert_eq!(server.bytes_after(1), 0, "{case}");
        assert_eq!(server.seen.certificates.load(Ordering::SeqCst), 0, "{case}");
    }
    let requests = &agent.state.lock().unwrap().requests;
    assert!(!requests.iter().any(|path| path.contains("/sign")), "nothing was signed for them: {requests:?}");
}

#[test]
fn peer_that_is_given_replaces_the_wfm() {
    let root = Authority::new("Root");
    let other = "spiffe://factory.example/line/plc";
    let server = Server::start(Issued::svid(other, &root), None);
    // A device has no WFM of its own.
    let agent = Agent::start(Issued::svid(DEVICE, &root), bundle(&[&root]));
    assert!(matches!(server.connect(&agent).unwrap_err(), ConnectError::NotAWfmClient(_)));
    let connect = |id: &str| {
        agent.connector().with_peer(SpiffeId::parse(id).unwrap()).connect("127.0.0.1", server.port)
    };
    assert_eq!(exchange(&mut connect(other).unwrap()), "hello");
    let error = connect(WFM).unwrap_err();
    assert!(matches!(error, ConnectError::Peer(_, PeerError::NotExpected { .. })), "{error}");
    // The bundle vouches for one trust domain only.
    let error = connect("spiffe://other.example/line/plc").unwrap_err();
    assert!(matches!(error, ConnectError::Peer(_, PeerError::NoBundle { .. })), "{error}");
}

#[test]
fn connection_ends_at_own_renewal_and_with_another_bundle() {
    let (root, next) = (Authority::new("Root"), Authority::new("Next"));
    let server = Server::start(wfm(&root), Some(own_bundle(&[&root])));
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    let ends = |why: Ended, change: &dyn Fn(&mut State)| {
        let mut connection = server.connect(&agent).unwrap();
        assert_eq!(exchange(&mut connection), "hello");
        agent.change(|state| change(state));
        // The server says nothing more: it is a read that waits.
        let error = connection.read(&mut [0]).unwrap_err();
        assert_eq!((error.kind(), connection.ended()), (ErrorKind::ConnectionAborted, Some(why)), "{error}");
        assert!(!connection.is_current());
        assert_eq!(connection.write(REQUEST).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    };
    ends(Ended::OwnRenewal, &|state| state.own = Some(Issued::svid(CLIENT, &root)));
    ends(Ended::BundleChange, &|state| state.bundle = bundle(&[&root, &next]));
    ends(Ended::OwnWithdrawal, &|state| state.own = None);
    assert!(matches!(server.connect(&agent).unwrap_err(), ConnectError::NoSvid(_)));
}

#[test]
fn agent_that_is_away_ends_no_connection() {
    let root = Authority::new("Root");
    let server = Server::start(wfm(&root), Some(own_bundle(&[&root])));
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    let mut connection = server.connect(&agent).unwrap();
    std::fs::remove_file(agent.directory.path().join("sign.sock")).unwrap();
    assert!(connection.is_current());
    assert_eq!(exchange(&mut connection), "hello");
    assert!(matches!(server.connect(&agent).unwrap_err(), ConnectError::Agent(_)));
}

#[test]
fn refusal_by_the_peer_is_told_by_the_first_read() {
    let (root, foreign) = (Authority::new("Root"), Authority::new("Foreign"));
    let server = Server::start(wfm(&root), Some(own_bundle(&[&foreign])));
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    match server.connect(&agent) {
        Ok(mut connection) => {
            let error = connection.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
        Err(error) => assert!(matches!(error, ConnectError::Refused(..)), "{error}"),
    }
}

#[test]
fn server_without_tls_is_told_from_a_wrong_one() {
    let root = Authority::new("Root");
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        tcp.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").unwrap();
        let _ = tcp.read(&mut [0]);
        let _silent = listener.accept();
        thread::sleep(PATIENCE);
    });
    let connector = agent.connector();
    assert!(matches!(connector.connect("127.0.0.1", port).unwrap_err(), ConnectError::Tls(..)));
    let quick = connector.clone().with_limit(Duration::from_secs(5));
    let error = quick.connect("127.0.0.1", port).unwrap_err();
    assert!(matches!(error, ConnectError::Silent(..)), "{error}");
    assert!(matches!(connector.connect("a b", port).unwrap_err(), ConnectError::NotAHost(_)));
}

#[test]
fn example_fetches_deployments_from_the_wfm_alone() {
    let root = Authority::new("Root");
    let server = Server::start(wfm(&root), Some(own_bundle(&[&root])));
    let agent = Agent::start(Issued::svid(CLIENT, &root), bundle(&[&root]));
    let url = |server: &Server| format!("https://127.0.0.1:{}/plant/", server.port);
    assert_eq!(example::fetch(&agent.connector(), &url(&server)).unwrap(), "[\"a deployment\"]");
    let other = Server::start(Issued::svid("spiffe://factory.example/margo/wfm/wfm-2", &root), None);
    let error = example::fetch(&agent.connector(), &url(&other)).unwrap_err();
    assert!(
        error.to_string().ends_with(&format!("the peer is {WFM}, not {WFM}").replacen("wfm-1", "wfm-2", 1)),
        "{error}"
    );
    assert_eq!(other.bytes_after(1), 0);
    // The WFM takes its own clients only.
    agent.change(|state| state.own = Some(Issued::svid(DEVICE, &root)));
    let as_device = agent.connector().with_peer(SpiffeId::parse(WFM).unwrap());
    let error = example::fetch(&as_device, &url(&server)).unwrap_err();
    assert!(error.to_string().contains("refuses this identity's certificate"), "{error}");
}

/// In TLS 1.3 a refusal comes after the handshake, and closes the connection: a write may notice
/// that before a read has seen why.
#[test]
fn refused_certificate_is_told_by_a_write_too() {
    let root = Authority::new("Root");
    let server = Server::start(wfm(&root), Some(own_bundle(&[&root])));
    let agent = Agent::start(Issued::svid(DEVICE, &root), bundle(&[&root]));
    let connector = agent.connector().with_peer(SpiffeId::parse(WFM).unwrap());
    let mut connection = connector.connect("127.0.0.1", server.port).unwrap();
    let until = Instant::now() + PATIENCE;
    let error = loop {
        match connection.write_all(b"x").and_then(|()| connection.flush()) {
            Err(e) => break e,
            Ok(()) => assert!(Instant::now() < until, "the server takes the certificate of a device"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    assert!(error.to_string().contains("refuses this identity's certificate"), "{error}");
}
