//! Against a real TLS peer that responds with given bytes, and against recorded ones.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::error::Cause;
use super::pkcs7::BodyError;
use super::*;
use crate::config::{self, InitialTrust};
use crate::hint::{Hint as _, assert_apart};
use crate::lifecycle::FailureKind;
use crate::problem::ProblemCode;
use crate::transport::{ServerTrust, Transport, TransportError};
use crate::x509::{OBJECT_IDENTIFIER, wrap};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{Bundle, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn oid(content: &[u8]) -> Vec<u8> {
    wrap(OBJECT_IDENTIFIER, content)
}

fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A certs-only message.
fn certs_only(certificates: &[&[u8]]) -> Vec<u8> {
    let signed_data = oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2]);
    let data = wrap(0x30, &oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1]));
    let fields = [&[2, 1, 1, 0x31, 0][..], &data, &wrap(0xa0, &certificates.concat()), &[0x31, 0]].concat();
    wrap(0x30, &[signed_data, wrap(0xa0, &wrap(0x30, &fields))].concat())
}

/// A key with its request, and what an EST server issues for it.
struct Device {
    key: KeyPair,
    csr: CertificateRequest,
    leaf: Vec<u8>,
    /// CA of its client certificates.
    authority: Authority,
}

impl Device {
    fn new() -> Self {
        let (key, authority) = (KeyPair::generate().unwrap(), authority());
        let params = CertificateParams::new([]).unwrap();
        let csr = CertificateRequest(params.serialize_request(&key).unwrap().der().to_vec());
        let leaf = params.signed_by(&key, &authority).unwrap().der().to_vec();
        Self { key, csr, leaf, authority }
    }

    fn spki(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.key)
    }

    fn client(&self) -> ClientIdentity {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([]).unwrap().signed_by(&key, &self.authority).unwrap();
        let signer = rustls::crypto::ring::sign::any_supported_type(&private(&key)).unwrap();
        let chain = vec![leaf.der().clone(), self.authority.der().clone()];
        ClientIdentity::new(CertifiedKey::new(chain, signer)).unwrap()
    }

    /// The response with its certificate.
    fn issued(&self) -> Vec<u8> {
        let body = BASE64.encode(certs_only(&[&self.leaf]));
        response("200 OK", "content-type: application/pkcs7-mime; smime-type=certs-only\r\n", body)
    }
}

fn response(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn token() -> EnrollmentToken {
    EnrollmentToken::parse(b"dev-7:Zx9-kQ2_vB7mNw4tYr81").unwrap()
}

/// Whether the server requests a client certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Requests {
    None,
    Optional,
    Required,
}

/// One request as the server saw it.
struct Seen {
    head: String,
    body: String,
    certificates: usize,
}

/// An EST server that has a response for each connection.
struct Peer {
    issuer: Issuer,
    endpoint: EstEndpoint,
    seen: Arc<Mutex<Vec<Seen>>>,
    _directory: tempfile::TempDir,
}

impl Peer {
    fn new(clients: &Authority, requests: Requests, responses: Vec<Vec<u8>>) -> Self {
        Self::with(clients, requests, &[&rustls::version::TLS13], responses)
    }

    fn with(
        clients: &Authority,
        requests: Requests,
        versions: &[&'static rustls::SupportedProtocolVersion],
        responses: Vec<Vec<u8>>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (key, issuer) = (KeyPair::generate().unwrap(), authority());
        let leaf = CertificateParams::new(["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, issuer.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(clients.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = match requests {
            Requests::None => WebPkiClientVerifier::no_client_auth(),
            Requests::Optional => verifier.allow_unauthenticated().build().unwrap(),
            Requests::Required => verifier.build().unwrap(),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf.der().clone()], private(&key))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/.well-known/est/a", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (config, log) = (Arc::new(config), seen.clone());
        thread::spawn(move || {
            for response in responses {
                let stream = listener.accept().unwrap().0;
                let tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
                serve(tls, &response, &log);
            }
        });
        let trust = InitialTrust { ca_file: Some(ca_file), ..InitialTrust::default() };
        let proxy =
            config::ProxyConfig { choice: config::ProxyChoice::None, ..config::ProxyConfig::default() };
        let transport = Transport::new(ServerTrust::new(trust), proxy);
        let url = EstUrl::parse(url.parse().unwrap()).unwrap();
        Self {
            issuer: Issuer::new(super::super::Protocol::default(), transport),
            endpoint: EstEndpoint { url, tls12: false },
            seen,
            _directory: directory,
        }
    }

    async fn enroll(
        &self,
        device: &Device,
        authorization: EstAuthorization,
    ) -> Result<CertificateDer<'static>, IssuerError> {
        self.issuer.est_enroll(&self.endpoint, &device.csr, &device.spki(), authorization).await
    }

    async fn renew(&self, device: &Device) -> Result<CertificateDer<'static>, IssuerError> {
        let client = device.client();
        self.issuer.est_renew(&self.endpoint, &device.csr, &device.spki(), client, false).await
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// Reads a request and writes the response; the connection stays open until the client leaves.
/// `log` has the request before the client has the response.
fn serve(tls: StreamOwned<ServerConnection, std::net::TcpStream>, response: &[u8], log: &Mutex<Vec<Seen>>) {
    let (mut tls, mut head) = (BufReader::new(tls), String::new());
    while !head.ends_with("\r\n\r\n") {
        if tls.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    tls.read_exact(&mut body).unwrap();
    let certificates = tls.get_ref().conn.peer_certificates().map_or(0, <[_]>::len);
    log.lock().unwrap().push(Seen { head, body: String::from_utf8(body).unwrap(), certificates });
    let mut tls = tls.into_inner();
    let _ = tls.write_all(response).and_then(|()| tls.flush()); // the client may have seen enough
    let _ = std::io::copy(&mut tls, &mut std::io::sink());
}

/// What the lifecycle gets to know of an error; its texts are as they must be.
fn failure(error: &IssuerError) -> crate::lifecycle::Failure {
    assert_apart(error);
    let failure = error.to_failure();
    assert!(failure.report.hint().is_some(), "{error}");
    failure
}

#[tokio::test]
async fn est_token_goes_with_the_first_request_alone() {
    let device = Device::new();
    for requests in [Requests::None, Requests::Optional] {
        let peer = Peer::new(&device.authority, requests, vec![device.issued()]);
        let leaf = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap();
        assert_eq!(leaf.as_ref(), device.leaf);
        let seen = peer.seen();
        let [Seen { head, body, certificates: 0 }] = &seen[..] else { panic!("{}", seen.len()) };
        assert!(head.starts_with("POST /.well-known/est/a/simpleenroll HTTP/1.1\r\n"), "{head}");
        for line in [
            "content-type: application/pkcs10",
            "accept: application/pkcs7-mime",
            "authorization: Basic ZGV2LTc6Wng5LWtRMl92QjdtTnc0dFlyODE=",
        ] {
            assert!(head.lines().any(|there| there == line), "{head}");
        }
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert!(body.lines().all(|line| line.len() <= 64) && body.ends_with('\n'), "{body}");
        assert_eq!(BASE64.decode(body.replace('\n', "")).unwrap(), device.csr.0);
    }
}

#[tokio::test]
async fn est_ca_certificates_are_asked_for_without_credentials() {
    let device = Device::new();
    let bag = BASE64.encode(certs_only(&[&device.leaf, device.authority.der()]));
    let bag = response("200 OK", "content-type: Application/PKCS7-Mime\r\n", bag);
    let peer = Peer::new(&device.authority, Requests::Optional, vec![bag]);
    let certificates = peer.issuer.est_ca_certificates(&peer.endpoint).await.unwrap();
    assert_eq!(certificates, CaCertificates::new(&[device.authority.der(), &device.leaf]));
    let seen = peer.seen();
    assert_eq!((seen.len(), seen[0].certificates), (1, 0));
    assert!(seen[0].head.starts_with("GET /.well-known/est/a/cacerts HTTP/1.1\r\n"), "{}", seen[0].head);
    assert!(!seen[0].head.contains("authorization"), "{}", seen[0].head);
}

#[tokio::test]
async fn est_certificate_is_sent_with_its_chain_and_no_token() {
    let device = Device::new();
    for versions in [[&rustls::version::TLS13], [&rustls::version::TLS12]] {
        let responses = vec![device.issued(), device.issued()];
        let mut peer = Peer::with(&device.authority, Requests::Optional, &versions, responses);
        peer.endpoint.tls12 = versions == [&rustls::version::TLS12];
        peer.enroll(&device, EstAuthorization::Certificate(device.client())).await.unwrap();
        peer.renew(&device).await.unwrap();
        let seen = peer.seen();
        assert_eq!(seen.iter().map(|seen| seen.certificates).collect::<Vec<_>>(), [2, 2]);
        for (seen, path) in seen.iter().zip(["simpleenroll", "simplereenroll"]) {
            assert!(seen.head.starts_with(&format!("POST /.well-known/est/a/{path} HTTP")), "{}", seen.head);
            assert!(!seen.head.contains("authorization"), "{}", seen.head);
        }
    }
}

#[tokio::test]
async fn est_request_is_withheld_where_no_certificate_is_requested() {
    let device = Device::new();
    for versions in [[&rustls::version::TLS13], [&rustls::version::TLS12]] {
        let responses = vec![device.issued(), device.issued()];
        let mut peer = Peer::with(&device.authority, Requests::None, &versions, responses);
        peer.endpoint.tls12 = true;
        let enrollment = peer.enroll(&device, EstAuthorization::Certificate(device.client())).await;
        let renewal = peer.renew(&device).await;
        for (result, title) in [
            (enrollment, "The MIS does not take the certificate form"),
            (renewal, "The MIS takes no SVID for a renewal"),
        ] {
            let failure = failure(&result.unwrap_err());
            assert_eq!(failure.kind, FailureKind::Slow);
            assert_eq!(
                (failure.report.title.as_str(), failure.report.code),
                (title, ProblemCode::UnsupportedByMis.into())
            );
            let detail = failure.report.detail.unwrap();
            assert!(detail.starts_with("no request was sent to https://127.0.0.1:"), "{detail}");
        }
        assert!(peer.seen().is_empty());
    }
}

#[tokio::test]
async fn est_certificates_that_tls_refuses_are_told_apart() {
    let (device, stranger) = (Device::new(), authority());
    let peer = Peer::new(&stranger, Requests::Required, vec![Vec::new(); 2]);
    let refused = peer.enroll(&device, EstAuthorization::Certificate(device.client())).await.unwrap_err();
    let refused = failure(&refused);
    assert_eq!(refused.kind, FailureKind::NotAuthenticated);
    assert!(refused.report.hint().unwrap().contains("cert_file under [identity.est]"));
    let required = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
    let required = failure(&required);
    assert_eq!(required.kind, FailureKind::Slow);
    assert_eq!(required.report.title, "The EST server wants a client certificate of everyone");
    assert!(required.report.hint().unwrap().contains("optional"), "{required:?}");
}

#[tokio::test]
async fn est_server_without_tls_1_3_is_reached_with_the_switch() {
    let device = Device::new();
    let responses = vec![Vec::new(), device.issued()];
    let mut peer = Peer::with(&device.authority, Requests::None, &[&rustls::version::TLS12], responses);
    let error = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
    let failed = failure(&error);
    assert_eq!(failed.kind, FailureKind::Transient);
    assert!(failed.report.detail.as_deref().unwrap().contains("TLS 1.3 is required"), "{failed:?}");
    assert!(failed.report.hint().unwrap().contains("tls12 = true under [identity.est]"), "{failed:?}");
    peer.endpoint.tls12 = true;
    peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap();
    assert_eq!(peer.seen().len(), 1);
}

#[tokio::test]
async fn est_request_is_repeated_once_in_the_other_form() {
    let device = Device::new();
    let refused = || {
        response("400 Bad Request", "content-type: text/plain\r\n", "illegal base64 in certificate request")
    };
    let responses =
        vec![refused(), device.issued(), device.issued(), refused(), device.issued(), device.issued()];
    let peer = Peer::new(&device.authority, Requests::None, responses);
    for _ in 0..4 {
        peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap();
    }
    let seen = peer.seen();
    let forms: Vec<_> = seen.iter().map(|seen| seen.body.lines().count() > 1).collect();
    // The form that worked is kept, until it works no longer.
    assert_eq!(forms, [true, false, false, false, true, true]);
    assert!(!seen[1].body.contains('\n'));
    let csrs = seen.iter().map(|seen| BASE64.decode(seen.body.replace('\n', "")).unwrap());
    assert!(csrs.into_iter().all(|csr| csr == device.csr.0));
}

#[tokio::test]
async fn est_request_that_is_refused_is_not_repeated_for_ever() {
    let device = Device::new();
    let text = |text: &str| response("400 Bad Request", "content-type: text/plain\r\n", text);
    let page = response(
        "400 Bad Request",
        "content-type: text/html\r\n",
        "<html><head><title>400 The SSL certificate error</title></head></html>",
    );
    let slow = response("503 Service Unavailable", "retry-after: 7\r\n", "");
    for (responses, requests, kind, says) in [
        (vec![text("first"), text("second")], 2, FailureKind::RefusedForNow, "first"),
        (vec![text("first"), slow], 2, FailureKind::Transient, "503"),
        (vec![page.clone()], 1, FailureKind::Slow, "wants a client certificate of everyone"),
        (vec![text("No client certificate")], 1, FailureKind::Slow, "No client certificate"),
        (vec![response("415 Unsupported Media Type", "", "")], 1, FailureKind::RefusedForNow, "415"),
    ] {
        let peer = Peer::new(&device.authority, Requests::None, responses);
        let error = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
        let failure = failure(&error);
        assert_eq!(failure.kind, kind, "{error}");
        assert!(failure.report.message().contains(says), "{:?}", failure.report);
        assert_eq!(peer.seen().len(), requests);
    }
    // With a certificate, the same page is about that.
    let peer = Peer::new(&device.authority, Requests::Optional, vec![page]);
    let failure = failure(&peer.renew(&device).await.unwrap_err());
    assert_eq!(failure.kind, FailureKind::NotAuthenticated);
}

#[tokio::test]
async fn est_body_that_is_not_used_is_not_waited_for() {
    let device = Device::new();
    for (response, kind, says) in [
        // Without length, type or body, on a connection that stays open.
        ("HTTP/1.1 202 Accepted\r\nretry-after: 60\r\n\r\n", FailureKind::Pending, "issued nothing yet"),
        ("HTTP/1.1 202 Accepted\r\ncontent-length: 500\r\n\r\n", FailureKind::Pending, "issued nothing yet"),
        (
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 500000\r\n\r\nwho?",
            FailureKind::NotAuthenticated,
            "who?",
        ),
        ("HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbad\r\n", FailureKind::Transient, "bad"),
        ("HTTP/1.1 204 No Content\r\n\r\n", FailureKind::Transient, "204, which is not an EST response"),
        ("HTTP/1.1 201 Created\r\n\r\n", FailureKind::Transient, "201, which is not an EST response"),
    ] {
        let peer = Peer::new(&device.authority, Requests::None, vec![response.into()]);
        let error = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
        let failure = failure(&error);
        assert_eq!(failure.kind, kind, "{error}");
        assert!(failure.report.message().contains(says), "{:?}", failure.report);
        assert_eq!(failure.retry_after.is_some(), response.contains("retry-after"), "{response}");
    }
}

#[tokio::test]
async fn est_responses_are_bounded() {
    let device = Device::new();
    let kind = "content-type: application/pkcs7-mime\r\n";
    let body = |length: usize| response("200 OK", kind, vec![b'A'; length]);
    let peer = Peer::new(
        &device.authority,
        Requests::None,
        vec![body(MAX_ISSUED + 4), body(MAX_CA_CERTIFICATES + 4)],
    );
    let issued = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
    let bag = peer.issuer.est_ca_certificates(&peer.endpoint).await.unwrap_err();
    for (error, kind, says) in [
        (issued, FailureKind::Slow, "larger than 65536"),
        (bag, FailureKind::Transient, "larger than 262144"),
    ] {
        let failure = failure(&error);
        assert_eq!(failure.kind, kind);
        assert!(failure.report.message().contains(says), "{:?}", failure.report);
    }
}

#[tokio::test]
async fn est_response_that_cannot_be_used_says_why() {
    let device = Device::new();
    let another = Device::new();
    let pkcs7 = |certificates: &[&[u8]]| BASE64.encode(certs_only(certificates));
    let twin = CertificateParams::new([]).unwrap().signed_by(&device.key, &another.authority).unwrap();
    let (kind, text) = ("content-type: application/pkcs7-mime\r\n", "content-type: text/html; x\r\n");
    for (response, says) in [
        (
            response("200 OK", kind, pkcs7(&[&another.leaf])),
            "none of its 1 certificates is for the public key",
        ),
        (response("200 OK", kind, pkcs7(&[&device.leaf, twin.der()])), "two different certificates"),
        (response("200 OK", text, pkcs7(&[&device.leaf])), "Content-Type is \"text/html\""),
        (response("200 OK", "", pkcs7(&[&device.leaf])), "no Content-Type"),
        (response("200 OK", kind, "<html>"), "a web page"),
        (response("200 OK", "content-type: text/plain\r\n", "-----BEGIN PKCS7-----"), "its body is PEM"),
        (response("200 OK", kind, ""), "its body is empty"),
        (response("200 OK", &format!("{kind}content-encoding: gzip\r\n"), "x"), "encoded as \"gzip\""),
        (response("200 OK", kind, BASE64.encode(&device.leaf)), "a bare certificate"),
    ] {
        let peer = Peer::new(&device.authority, Requests::None, vec![response]);
        let error = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
        let failure = failure(&error);
        assert_eq!(failure.kind, FailureKind::Slow, "{error}");
        assert!(failure.report.message().contains(says), "{:?}", failure.report);
        assert_eq!(failure.report.code, ProblemCode::MalformedResponse);
    }
    let good = [&another.leaf[..], &device.leaf, &[0x30, 0], &device.leaf];
    let peer = Peer::new(&device.authority, Requests::None, vec![response("200 OK", kind, pkcs7(&good))]);
    assert_eq!(peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap().as_ref(), device.leaf);
}

#[tokio::test]
async fn est_token_that_a_server_echoes_is_not_shown() {
    let device = Device::new();
    let header = "Basic ZGV2LTc6Wng5LWtRMl92QjdtTnc0dFlyODE=";
    let secret = "Zx9-kQ2_vB7mNw4tYr81";
    let problem = |detail: &str| {
        let body = format!(
            r#"{{"type":"urn:{secret}","title":"{secret}","status":401,"detail":"{detail}","instance":"urn:{secret}"}}"#
        );
        response("401 Unauthorized", "content-type: application/problem+json\r\n", body)
    };
    let escaped: String = secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    for response in [
        response("500 Internal Server Error", "", format!("{{\"authorization\": \"{header}\"}}")),
        response(
            "401 Unauthorized",
            "content-type: text/html\r\n",
            format!("<title>no dev-7:{secret}</title>"),
        ),
        response("403 Forbidden", "", format!("{}{header}", "x ".repeat(99))),
        response(
            "302 Found",
            &format!("location: https://dev-7:{secret}@elsewhere.example/{secret}\r\n"),
            "",
        ),
        response("200 OK", &format!("content-type: {secret}\r\n"), header),
        response("200 OK", &format!("content-encoding: {secret}\r\n"), header),
        problem(header),
        problem(&escaped),
    ] {
        let peer = Peer::new(&device.authority, Requests::None, vec![response.clone()]);
        let error = peer.enroll(&device, EstAuthorization::Token(token())).await.unwrap_err();
        let all = format!("{error} {error:?} {:?} {:?}", error.hint(), failure(&error));
        let (sent, all) = (String::from_utf8(response).unwrap(), all.to_ascii_lowercase());
        for part in ["zx9-kq2", "mnw4tyr", "zgv2ltc6", "wng5lwtr", "\\u005a"] {
            assert!(!all.contains(part), "{sent}: {all}");
        }
        assert_eq!(peer.seen().len(), 1, "{sent}");
    }
}

const ROWS: [EstRequest; 5] = [
    EstRequest::CaCertificates,
    EstRequest::EnrollWithToken,
    EstRequest::EnrollWithCertificate,
    EstRequest::Renew { rekey: false },
    EstRequest::Renew { rekey: true },
];

fn of_response(request: EstRequest, status: u16, headers: &[(&str, &str)], body: &str) -> EstError {
    let url = EstUrl::parse("https://est.example/.well-known/est".parse().unwrap()).unwrap();
    let endpoint = EstEndpoint { url, tls12: false };
    let response = Response::example(status, headers, body.as_bytes());
    let url = endpoint.url.operation(request.operation().segment());
    EstError::new(request, &endpoint, Cause::of_response(response, &url, None))
}

#[test]
fn est_responses_have_the_meanings_of_the_table() {
    use FailureKind::{
        KeyRotationRefused as Rotation, NotAuthenticated as Not, NotFound, Pending, RefusedForNow as Refused,
        Slow, Transient as Later,
    };
    let html: &[_] = &[("content-type", "text/html; charset=x")];
    let text: &[_] = &[("content-type", "text/plain")];
    let nginx = "<html><head><title>400 No required SSL certificate was sent</title></head></html>";
    let apache = "<html><body>Cannot perform Post-Handshake Authentication.</body></html>";
    // By /cacerts, enrollment by token, by certificate, renewal, renewal with another key.
    type Row<'a> = (u16, &'a [(&'a str, &'a str)], &'a str, [FailureKind; 5]);
    let rows: &[Row<'_>] = &[
        (202, &[("retry-after", "300")], "", [Later, Pending, Pending, Pending, Pending]),
        (201, &[], "", [Later; 5]),
        (204, &[], "", [Later; 5]),
        (206, &[], "", [Later; 5]),
        (301, &[("location", "/x")], "", [Later; 5]),
        (304, &[], "", [Later; 5]),
        (307, &[], "", [Later; 5]),
        (400, text, "bad base64", [Later, Refused, Refused, Later, Rotation]),
        (400, &[], "", [Later, Refused, Refused, Later, Rotation]),
        (400, text, "invalid certificate request", [Later, Refused, Refused, Later, Rotation]),
        (400, text, "certificate signing request: bad", [Later, Refused, Refused, Later, Rotation]),
        (400, html, nginx, [Later, Slow, Not, Not, Not]),
        (400, html, "<html>Bad Request</html>", [Later, Slow, Not, Not, Not]),
        (400, text, "The SSL certificate error", [Later, Slow, Not, Not, Not]),
        (400, text, "client CERTIFICATE has expired", [Later, Slow, Not, Not, Not]),
        (495, html, "", [Later, Slow, Not, Not, Not]),
        (496, &[], "", [Later, Slow, Not, Not, Not]),
        (401, &[], "", [Refused, Not, Not, Not, Not]),
        (401, &[("www-authenticate", "Basic realm=\"x\"")], "", [Refused, Not, Not, Not, Not]),
        (403, text, "subject differs", [Refused, Not, Not, Not, Rotation]),
        (403, html, apache, [Refused, Slow, Not, Not, Rotation]),
        (404, &[], "", [NotFound; 5]),
        (405, &[], "", [NotFound; 5]),
        (501, &[], "", [NotFound; 5]),
        (409, &[], "", [Later; 5]),
        (408, &[], "", [Later; 5]),
        (413, &[], "", [Later, Refused, Refused, Later, Rotation]),
        (415, &[], "", [Later, Refused, Refused, Later, Rotation]),
        (422, &[], "", [Later, Refused, Refused, Later, Rotation]),
        (429, &[("retry-after", "9")], "", [Later; 5]),
        (429, &[], "", [Later; 5]),
        (500, &[], "", [Later; 5]),
        (502, html, "<html>certificate</html>", [Later; 5]),
        (503, &[("retry-after", "9")], "", [Later; 5]),
        (599, &[], "", [Later; 5]),
    ];
    for (status, headers, body, kinds) in rows {
        for (request, kind) in ROWS.into_iter().zip(kinds) {
            let error = IssuerError::from(of_response(request, *status, headers, body));
            let failure = failure(&error);
            assert_eq!(failure.kind, *kind, "{request:?} {status} {body}");
            let retry_after = headers.iter().find(|(name, _)| *name == "retry-after");
            let retry_after = retry_after.map(|(_, value)| Duration::from_secs(value.parse().unwrap()));
            assert_eq!(failure.retry_after, retry_after, "{request:?} {status}");
            let message = failure.report.message();
            assert!(message.contains("https://est.example/.well-known/est/"), "{message}");
            for of_v0 in ["factory", "discovery_url"] {
                assert!(!failure.report.hint().unwrap().contains(of_v0), "{request:?} {status}");
            }
        }
    }
}

#[test]
fn est_responses_are_explained() {
    use EstRequest as R;
    let html: &[_] = &[("content-type", "text/html")];
    let digest: &[_] = &[("www-authenticate", "Digest realm=\"x\"")];
    for (request, status, headers, body, says, hint) in [
        (
            R::Renew { rekey: false },
            401,
            digest,
            "",
            "by certificate alone is not offered",
            "without a password",
        ),
        (R::EnrollWithToken, 401, digest, "", "401", "miaf-agent enroll --token-file FILE"),
        (R::EnrollWithToken, 500, html, "<p>x", "500", "common_name under [identity.est]"),
        (R::EnrollWithToken, 400, &[], "policy", "policy", "common_name under [identity.est]"),
        (R::EnrollWithToken, 404, &[], "", "404", "/.well-known/est/LABEL"),
        (
            R::EnrollWithToken,
            403,
            html,
            "<html>Post-Handshake Authentication",
            "too late in TLS 1.3",
            "optional",
        ),
        (R::EnrollWithToken, 202, &[], "", "has yet to approve", "approve"),
        (R::Renew { rekey: false }, 202, &[], "", "has yet to process", "needs no approval"),
        (R::CaCertificates, 202, &[], "", "not one of an EST server", "/.well-known/est/LABEL"),
        (R::Renew { rekey: true }, 403, &[], "no", "no", "rotate = false under [identity.key]"),
        (R::CaCertificates, 403, &[], "no", "no", "serve /cacerts to everyone"),
        (
            R::EnrollWithCertificate,
            400,
            html,
            "<html>x",
            "whose chain is incomplete",
            "cert_file under [identity.est]",
        ),
    ] {
        let report = of_response(request, status, headers, body).report();
        assert!(report.message().contains(says), "{report:?}");
        assert!(report.hint().unwrap().contains(hint), "{report:?}");
    }
    let long = "<x>\u{1b}".repeat(500);
    let report = of_response(R::EnrollWithToken, 401, &[], &long).report();
    let detail = report.detail.unwrap();
    assert!(detail.chars().count() < 320 && !detail.contains('\u{1b}'), "{detail}");
    let problem = r#"{"type":"about:blank","title":"Token unknown","status":403,"detail":"ask again"}"#;
    let report =
        of_response(R::EnrollWithToken, 403, &[("content-type", "application/problem+json")], problem)
            .report();
    assert!(report.message().starts_with("Token unknown: ask again"), "{report:?}");
}

#[test]
fn est_url_that_lacks_a_path_is_hinted_at() {
    for (url, says) in [
        ("https://est.example/", "names a host alone"),
        ("https://est.example/x/simpleenroll", "Remove the operation"),
        ("https://est.example/x", "it ends in /.well-known/est or"),
    ] {
        let url = EstUrl::parse(url.parse().unwrap()).unwrap();
        let endpoint = EstEndpoint { url: url.clone(), tls12: false };
        let cause = Cause::of_response(Response::example(404, &[], b""), url.as_url(), None);
        let error = EstError::new(EstRequest::CaCertificates, &endpoint, cause);
        assert!(error.hint().unwrap().contains(says), "{:?}", error.hint());
    }
}

#[test]
fn est_failures_without_a_response_are_explained() {
    use TransportError as E;
    let url = || Url::parse("https://est.example/x/cacerts").unwrap();
    let endpoint = EstEndpoint { url: EstUrl::parse(url()).unwrap(), tls12: true };
    let why = || "x".to_owned();
    for (transport, kind, hint) in [
        (
            E::ServerNotTrusted { url: url(), why: why(), hint: None },
            FailureKind::Transient,
            "does not send its intermediates",
        ),
        (E::TlsVersion { url: url(), why: why() }, FailureKind::Transient, "mis.est_url"),
        (E::Unreachable { url: url(), why: why() }, FailureKind::Transient, "mis.est_url"),
        (E::TimedOut { url: url(), limit: Duration::from_secs(30) }, FailureKind::Transient, "mis.est_url"),
        (E::ClientCertificateRefused { url: url(), why: why() }, FailureKind::NotAuthenticated, "SVID"),
        (E::NoTrust, FailureKind::Local, "[mis.trust]"),
    ] {
        let error = EstError::new(EstRequest::Renew { rekey: true }, &endpoint, Cause::Transport(transport));
        let failure = failure(&error.into());
        assert_eq!(failure.kind, kind);
        assert!(failure.report.hint().unwrap().contains(hint), "{failure:?}");
    }
}

#[test]
fn recorded_messages_of_other_programs_are_read() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/est-peer/recorded");
    let certificate = |name: &str| {
        let pem = std::fs::read(directory.join(name)).unwrap();
        miaf_spiffe::svid::Chain::from_pem_text(&pem).unwrap().leaf().to_vec()
    };
    let [own, intermediate, root] = ["leaf.pem", "intermediate.pem", "root.pem"].map(certificate);
    let (_, parsed) = X509Certificate::from_der(&own).unwrap();
    let spki = parsed.public_key().raw;
    let mut read = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let content = std::fs::read(&path).unwrap();
        let body = match path.extension().and_then(|extension| extension.to_str()) {
            Some("p7") if !content.starts_with(b"-") => BASE64.encode(content).into_bytes(),
            Some("p7" | "body") => content,
            _ => continue,
        };
        let message = pkcs7::decode(&body);
        let found = message.as_deref().map_err(Clone::clone).and_then(pkcs7::certificates);
        let found = found.map(|found| found.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
        let leaf = found
            .clone()
            .map_err(Unusable::Body)
            .and_then(|found| leaf(&found.iter().map(Vec::as_slice).collect::<Vec<_>>(), spki));
        read += 1;
        use BodyError as E;
        let refusal = match name {
            "openssl-pem.p7" | "est-peer-pem.body" => Some(E::Pem),
            "est-peer-raw-der.body" => Some(E::RawDer),
            "est-peer-bare-certificate.p7" => Some(E::BareCertificate),
            "est-peer-enveloped.p7" => Some(E::NotSignedData),
            "est-peer-trailing-nul.p7" => Some(E::TrailingBytes),
            "est-peer-cut-short.p7" => Some(E::NotPkcs7("it is no ASN.1")),
            "est-peer-no-certificates.p7" | "bouncycastle-ber-empty.p7" => Some(E::NoCertificates),
            "est-peer-no-padding.body" => Some(E::Padding),
            "est-peer-url-alphabet.body" => Some(E::UrlAlphabet),
            "est-peer-nul-after-base64.body" => Some(E::OtherCharacter(Excerpt::of("0x00", 8))),
            _ => None,
        };
        match name {
            _ if refusal.is_some() => assert_eq!(found.err(), refusal, "{name}"),
            "est-peer-text-after-base64.body" => assert!(found.is_err(), "{name}"),
            "est-peer-only-chain.p7" | "bouncycastle-ber-cacerts.p7" | "openssl-cacerts.p7" => {
                assert_eq!(found.unwrap(), [intermediate.clone(), root.clone()], "{name}");
                assert_eq!(leaf, Err(Unusable::NoLeaf { certificates: 2 }), "{name}");
            }
            _ => assert_eq!(leaf.unwrap().as_ref(), own, "{name}"),
        }
    }
    assert!(read > 40, "{read}");
    assert_eq!(
        CaCertificates::new(&[&root[..], &intermediate]),
        CaCertificates::new(&[&intermediate, &root])
    );
}

#[test]
fn ca_of_an_est_server_is_named_with_what_is_wrong() {
    let [right, other] = [authority(), authority()];
    let no_ca = CertificateParams::new([]).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
    let bundle = |anchors: &[&[u8]]| {
        let key = |anchor: &&[u8]| serde_json::json!({ "kty": "EC", "use": "x509-svid", "x5c": [BASE64.encode(anchor)] });
        let keys = serde_json::json!({ "keys": anchors.iter().map(key).collect::<Vec<_>>() });
        Bundle::from_served(keys.to_string().as_bytes(), &TrustDomain::parse("factory.example").unwrap())
            .unwrap()
    };
    let now = crate::platform::clock::now().wall;
    let check = |served: &[u8], anchor: &[u8]| {
        CaCertificates::new(&[served]).check_before_issuance(&bundle(&[anchor]), now)
    };
    check(right.der(), right.der()).unwrap();
    let unknown = check(other.der(), right.der()).unwrap_err();
    assert_apart(&unknown);
    assert!(unknown.to_string().contains("leads to a CA of the trust bundle, which has 1: \""), "{unknown}");
    // The one of the server is named, and the one to compare it with.
    assert_eq!(unknown.to_string().matches("CN=").count(), 2, "{unknown}");
    let several = bundle(&[right.der(), no_ca.der()]);
    let unknown_to_several =
        CaCertificates::new(&[&other.der()[..]]).check_before_issuance(&several, now).unwrap_err();
    assert!(
        unknown_to_several.to_string().contains("which has 2, the first of them \"CN="),
        "{unknown_to_several}"
    );
    assert!(!unknown.is_known() && unknown.hint().is_none());
    // It is in the bundle: to compare the two, or to correct either, is of no use.
    let refused = check(no_ca.der(), no_ca.der()).unwrap_err();
    assert_apart(&refused);
    assert!(
        refused.to_string().ends_with(
            "is refused: an issuer of the chain is no certificate authority (its basicConstraints lack cA)"
        ),
        "{refused}"
    );
    assert!(refused.hint().unwrap().contains("by another CA"));
}
