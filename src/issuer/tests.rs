//! Against real TLS peers: the development MIS, and a server that sends arbitrary bytes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::error::NOT_A_BUNDLE_HINT;
use super::*;
use crate::config::{self, InitialTrust};
use crate::platform::clock;
use crate::transport::{ServerTrust, TransportError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use development_mis::{Endpoint, Fault, Settings};
use miaf_spiffe::BundleError;
use miaf_spiffe::time::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

const DOCUMENT: &str = r#"{"trustDomain":"factory.example","trustBundleUri":"https://mis.example/b",
    "margoIdentityServiceBaseUri":"https://mis.example","supportedBootstrapMethods":[],"svidProfilesSupported":[]}"#;

/// The origin of the bundle in [`DOCUMENT`].
fn bundles() -> [Url; 1] {
    ["https://mis.example".parse().unwrap()]
}

/// How a connection is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    CloseNotify,
    Cut,
}

/// Sends these bytes as the response to one request over TLS. Returns the client's result and the
/// head of its request.
async fn raw(response: impl Into<Vec<u8>>, end: End) -> (Result<Fetched<Discovery>, IssuerError>, String) {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".into()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, issuer.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let response = response.into();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        serve(stream, config, &response, end)
    });
    let trust = InitialTrust { ca_file: Some(ca_file), ..InitialTrust::default() };
    let client = direct(trust);
    let url = format!("https://127.0.0.1:{port}/.well-known/margo");
    let read = client.discover(&url.parse().unwrap(), None, &bundles()).await;
    (read, server.join().unwrap())
}

fn serve(stream: TcpStream, config: ServerConfig, response: &[u8], end: End) -> String {
    let tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
    let (mut tls, mut head) = (BufReader::new(tls), String::new());
    while !head.ends_with("\r\n\r\n") {
        assert!(tls.read_line(&mut head).unwrap() > 0, "the client left");
    }
    let mut tls = tls.into_inner();
    let _ = tls.write_all(response).and_then(|()| tls.flush()); // the client may have seen enough
    if end == End::CloseNotify {
        tls.conn.send_close_notify();
        let _ = tls.conn.complete_io(&mut tls.sock);
    }
    let _ = tls.sock.shutdown(std::net::Shutdown::Write);
    // Closing with something unread would reset the connection.
    let _ = std::io::copy(&mut tls.sock, &mut std::io::sink());
    head
}

fn with_head(head: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body.as_ref()].concat()
}

fn direct(trust: InitialTrust) -> Issuer {
    Issuer::new(
        Protocol::default(),
        Transport::new(
            ServerTrust::new(trust),
            config::ProxyConfig { choice: config::ProxyChoice::None, ..config::ProxyConfig::default() },
        ),
    )
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

#[tokio::test]
async fn documents_are_read_with_every_http_framing() {
    let length = DOCUMENT.len();
    let marked = format!("\u{feff}{DOCUMENT}");
    let many: String = (0..240).map(|n| format!("x-{n}: y\r\n")).collect();
    for (story, response, end) in [
        ("a length", with_head(&format!("200 OK\r\ncontent-length: {length}"), DOCUMENT), End::CloseNotify),
        ("a length, and cut", with_head(&format!("200 OK\r\ncontent-length: {length}"), DOCUMENT), End::Cut),
        ("until the end", with_head("200 OK", DOCUMENT), End::CloseNotify),
        ("until the end, without close_notify", with_head("200 OK", DOCUMENT), End::Cut),
        ("HTTP/1.0", format!("HTTP/1.0 200 OK\r\n\r\n{DOCUMENT}\n").into_bytes(), End::Cut),
        ("chunks", with_head("200 OK\r\ntransfer-encoding: chunked", chunked(DOCUMENT)), End::Cut),
        (
            "chunks and a length",
            with_head("200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5", chunked(DOCUMENT)),
            End::CloseNotify,
        ),
        (
            "a length twice",
            with_head(&format!("200 OK\r\ncontent-length: {length}\r\ncontent-length: {length}"), DOCUMENT),
            End::CloseNotify,
        ),
        ("a byte order mark", with_head("200 OK", &marked), End::CloseNotify),
        ("identity", with_head("200 OK\r\ncontent-encoding: identity", DOCUMENT), End::CloseNotify),
        ("240 headers", with_head(&format!("200 OK\r\n{}", many.trim_end()), DOCUMENT), End::CloseNotify),
    ] {
        let (read, head) = raw(response, end).await;
        match read {
            Ok(Fetched::New { body, .. }) => assert!(body.trim_end().ends_with('}'), "{story}"),
            other => panic!("{story}: {other:?}"),
        }
        assert!(head.to_ascii_lowercase().contains("accept-encoding: identity\r\n"), "{head}");
    }
}

#[tokio::test]
async fn body_that_is_no_document_is_described() {
    let half = &DOCUMENT[..DOCUMENT.len() / 2];
    let many: String = (0..300).map(|n| format!("x-{n}: y\r\n")).collect();
    let utf16: Vec<u8> = DOCUMENT.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let page = "<!DOCTYPE html>\n<html><head><TITLE lang=en>Welcome to\n nginx!</TITLE></head></html>";
    for (story, response, says) in [
        ("half of it", with_head("200 OK", half), "ended the connection before its response was complete"),
        (
            "less than its length",
            with_head("200 OK\r\ncontent-length: 5000", DOCUMENT),
            "ended the connection before its response was complete",
        ),
        (
            "half of its chunks",
            with_head("200 OK\r\ntransfer-encoding: chunked", format!("ffff\r\n{DOCUMENT}")),
            "ended the connection before its response was complete",
        ),
        ("gzip", with_head("200 OK\r\ncontent-encoding: gzip", "\x1f"), "encoded as \"gzip\""),
        (
            "gzip among others",
            with_head("200 OK\r\ncontent-encoding: identity, br", "x"),
            "encoded as \"br\"",
        ),
        ("unnamed gzip", with_head("200 OK", b"\x1f\x8b\x08\x00"), "is gzip data"),
        ("gzip on the way", with_head("200 OK\r\ntransfer-encoding: gzip", "x"), "encoded as \"gzip\""),
        ("UTF-16", with_head("200 OK", &utf16), "UTF-16"),
        ("UTF-16 with a mark", with_head("200 OK", [&[0xff, 0xfe], &utf16[..]].concat()), "UTF-16"),
        ("nothing", with_head("200 OK\r\ncontent-length: 0", ""), "its body is empty"),
        ("blanks", with_head("200 OK", " \r\n"), "its body is empty"),
        ("a page", with_head("200 OK\r\ncontent-type: text/html", page), "a web page, \"Welcome to nginx!\""),
        ("a text", with_head("200 OK", "soon\n"), "is soon, and no JSON object"),
        (
            "300 headers",
            with_head(&format!("200 OK\r\n{}", many.trim_end()), DOCUMENT),
            "more than 256 header lines",
        ),
        (
            "two lengths",
            with_head("200 OK\r\ncontent-length: 5\r\ncontent-length: 6", DOCUMENT),
            "Content-Length",
        ),
        (
            "chunks in HTTP/1.0",
            format!("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", chunked(DOCUMENT))
                .into_bytes(),
            "Transfer-Encoding",
        ),
        (
            "a chunk without end",
            with_head("200 OK\r\ntransfer-encoding: chunked", "fffffffffffffffff\r\n"),
            "chunks of its response are not well-formed",
        ),
        (
            "a chunk without a size",
            with_head("200 OK\r\ntransfer-encoding: chunked", "size\r\n"),
            "chunks of its response are not well-formed",
        ),
        (
            "many trailers",
            with_head("200 OK\r\ntransfer-encoding: chunked", format!("0\r\n{}", "a: b\r\n".repeat(20_000))),
            "trailers than are read",
        ),
        ("a header of no form", with_head("200 OK\r\nno header", DOCUMENT), "header line"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), "is not HTTP/1.1"),
        ("no word", Vec::new(), "ended the connection before its response was complete"),
        ("204", with_head("204 No Content", ""), "204 is not a response"),
    ] {
        let (read, _) = raw(response, End::Cut).await;
        let detail = read.unwrap_err().to_failure().report.detail.unwrap();
        assert!(detail.contains(says) && detail.contains("https://127.0.0.1:"), "{story}: {detail}");
        assert!(!detail.contains("docs.rs"), "{story}: {detail}");
    }
}

#[tokio::test]
async fn endless_tls_message_of_tiny_records_is_described() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let record = |byte| [0x16, 3, 3, 0, 1, byte];
        let hello = [2, 0, 0xff, 0xff].map(record).concat();
        // The client has seen enough before the end.
        let _ = stream.write_all(&hello).and_then(|()| stream.write_all(&record(0).repeat(0xffff)));
    });
    let directory = tempfile::tempdir().unwrap();
    let issuer = CertificateParams::new([]).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, issuer.pem()).unwrap();
    let client = direct(InitialTrust { ca_file: Some(ca_file), ..InitialTrust::default() });
    let url = format!("https://127.0.0.1:{port}/.well-known/margo").parse().unwrap();
    let detail = client.discover(&url, None, &[]).await.unwrap_err().to_string();
    server.join().unwrap();
    assert!(detail.contains("larger than any that TLS has"), "{detail}");
}

#[tokio::test]
async fn error_response_has_its_source_and_a_short_quotation() {
    let gzip = "content-type: application/problem+json\r\ncontent-encoding: gzip";
    let problem = r#"{"type":"about:blank","title":"Not Found","status":404}"#;
    for (response, title, says) in [
        (
            with_head("404 Not Found", "not found\n"),
            "The server responded with 404 Not Found",
            "margo responded: not found",
        ),
        (
            with_head("404 Not Found", ""),
            "The server responded with 404 Not Found",
            "margo responded without a body",
        ),
        (
            with_head("404 Not Found\r\ncontent-type: application/problem+json", problem),
            "Not Found",
            "response of https://127.0.0.1:",
        ),
        (
            with_head("502 Bad Gateway", "<html>\n<head><title>502 Bad Gateway</title></head>"),
            "The server responded with 502 Bad Gateway",
            "a web page, \"502 Bad Gateway\"",
        ),
        (
            with_head(&format!("503 No\r\n{gzip}"), "\x1f"),
            "The server responded with 503",
            "encoded as \"gzip\"",
        ),
        (
            // The status and the wait count, although the body broke off.
            with_head("503 No\r\nretry-after: 77\r\ncontent-length: 500", "later \x1b[2J\u{202e}"),
            "The server responded with 503",
            "responded: later \u{fffd}[2J\u{fffd}",
        ),
        (with_head("500 No", "x".repeat(60_000)), "The server responded with 500", "xxx…"),
    ] {
        let has_wait = response.windows(15).any(|found| found == b"retry-after: 77");
        let (read, _) = raw(response, End::Cut).await;
        let failure = read.unwrap_err().to_failure();
        assert_eq!(failure.retry_after, has_wait.then_some(Duration::from_secs(77)));
        let (actual_title, detail) = (failure.report.title, failure.report.detail.unwrap());
        assert!(actual_title.starts_with(title) && detail.contains(says), "{actual_title}: {detail}");
        assert!(detail.contains("https://127.0.0.1:") && detail.len() < 1000, "{detail}");
    }
}

/// The extension of Margo's problems (N13) stands in for a header, and for nothing more.
#[tokio::test]
async fn delay_in_a_problem_counts_where_the_header_is_missing() {
    let secs = |secs| Some(Duration::from_secs(secs));
    for (status, header, in_body, want) in [
        (503, "", "30", secs(30)),
        (429, "", "30.0", secs(30)),
        (503, "retry-after: 7\r\n", "30", secs(7)),
        (503, "retry-after: 0\r\n", "30", secs(0)),
        (503, "", "1e15", secs(1_000_000_000_000_000)), // cut to 7 days by the lifecycle, as a header's
        (503, "", "\"30\"", None),
        (503, "", "-1", None),
        (503, "", "0.5", None),
        (503, "", "null", None),
        (404, "", "30", None),
        (500, "", "30", None),
    ] {
        let body = format!(
            r#"{{"backoffStrategy":"exponential","retryAfterSeconds":{in_body},"retryable":true,"status":{status},"title":"T",
            "type":"https://docs.margo.org/specification/problem-types#spiffe-bundle-not-found"}}"#
        );
        let head = format!("{status} No\r\n{header}content-type: application/problem+json");
        let (read, _) = raw(with_head(&head, &body), End::CloseNotify).await;
        let failure = read.unwrap_err().to_failure();
        assert_eq!(failure.retry_after, want, "{status} {header:?} {in_body}");
    }
}

#[test]
fn bundle_file_has_the_time_of_its_last_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.json");
    let domain = miaf_spiffe::TrustDomain::parse("factory.example").unwrap();
    let read = || Issuer::bundle_file(&path, Some(&domain));
    let error = read().unwrap_err();
    crate::hint::assert_apart(&error);
    assert!(
        matches!(error, IssuerError::BundleFile { .. }) && error.to_string().contains("bundle.json"),
        "{error}"
    );
    std::fs::write(&path, "not JSON").unwrap();
    assert!(matches!(read(), Err(IssuerError::Bundle { .. })));
    std::fs::write(&path, vec![b' '; MAX_BUNDLE + 1]).unwrap();
    assert!(read().unwrap_err().to_string().contains("larger than 1 MiB"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(read(), Err(IssuerError::BundleFile { .. })));
    std::fs::remove_dir(&path).unwrap();

    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let anchor = BASE64.encode(params.self_signed(&key).unwrap().der());
    let bundle = serde_json::json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [anchor] }] });
    std::fs::write(&path, bundle.to_string()).unwrap();
    let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    let (bundle, changed_at) = read().unwrap();
    assert_eq!((bundle.anchors().len(), changed_at), (1, Timestamp::from_secs(1_700_000_000)));
}

#[tokio::test]
async fn text_of_a_server_is_bounded_and_harmless() {
    let hostile = "\\u001b]0;owned\\u0007\u{202e}".repeat(3000);
    let problem = format!(
        r#"{{"type":"{hostile}","title":"{hostile}","detail":"{hostile}","instance":"{hostile}","status":503}}"#
    );
    let is_problem = "content-type: application/problem+json";
    for response in [
        with_head(&format!("503 No\r\n{is_problem}"), &problem[..]),
        with_head("200 OK", format!(r#"{{"trustDomain":["{hostile}"]}}"#)),
        with_head("200 OK", format!(r#"{{"trustDomain":"{hostile}"}}"#)),
        with_head("200 OK", DOCUMENT.replace("https://mis.example/b", &hostile)),
        with_head(
            "200 OK",
            DOCUMENT.replace(
                r#""svidProfilesSupported":[]"#,
                &format!(r#""svidProfilesSupported":{{"{hostile}":1}}"#),
            ),
        ),
        with_head(&format!("302 Go\r\nlocation: {}", "https://other.example/".repeat(30)), ""),
    ] {
        let (read, _) = raw(response, End::CloseNotify).await;
        let report = read.unwrap_err().to_failure().report;
        let detail = serde_json::to_string(&report).unwrap();
        assert!(detail.len() < 8_000, "{} bytes: {detail}", detail.len());
        let (kind, instance) = report.response.map(|it| (it.kind, it.instance)).unwrap_or_default();
        let texts = [kind, Some(report.title), report.detail, report.hint, instance];
        assert!(
            !texts.into_iter().flatten().any(|text| text.contains(['\u{1b}', '\u{7}', '\u{202e}'])),
            "{detail}"
        );
    }
}

fn server() -> (development_mis::Mis, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { directory: directory.path().join("mis"), ..Settings::default() };
    (development_mis::Mis::start(settings).unwrap(), directory)
}

fn client(ca_of: &development_mis::Mis) -> Issuer {
    let trust = InitialTrust { ca_file: Some(ca_of.ca_file()), ..InitialTrust::default() };
    direct(trust)
}

async fn discover(client: &Issuer, server: &development_mis::Mis) -> Result<(), IssuerError> {
    client.discover(&server.discovery_url().parse().unwrap(), None, &[]).await.map(|_| ())
}

#[tokio::test]
async fn time_is_proven_by_the_date_of_trusted_servers_only() {
    let (server, _directory) = server();
    let client = client(&server);
    assert_eq!(client.transport().proven_time(), None);

    let before = clock::now();
    discover(&client, &server).await.unwrap();
    let proof = client.transport().proven_time().unwrap();
    assert!(proof.at >= before.boot && proof.at <= clock::now().boot, "{proof:?}");
    let apart = proof.wall.until(before.wall).max(before.wall.until(proof.wall));
    assert!(apart < Duration::from_secs(30), "the same machine, the same clock: {proof:?}");

    // Whatever it says, and the latest counts, also if it is an earlier time: the one before it may
    // have been wrong.
    for (status, date, detail) in [
        (503, "Sun, 01 Jan 2040 00:00:00 GMT", 2_208_988_800),
        (200, "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        (302, "Sunday, 06-Nov-94 08:49:38 GMT", 784_111_778),
    ] {
        server.fault(Endpoint::Discovery, Fault::answer(status, &[("date", date)], "no discovery document"));
        discover(&client, &server).await.unwrap_err();
        assert_eq!(client.transport().proven_time().unwrap().wall, Timestamp::from_secs(detail));
    }

    // A cached response was new at its `Date`, and is older now by its `Age`.
    let cached = Fault::answer(503, &[("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("age", "100")], "");
    server.fault(Endpoint::Discovery, cached);
    discover(&client, &server).await.unwrap_err();
    assert_eq!(client.transport().proven_time().unwrap().wall, Timestamp::from_secs(784_111_877));

    // No word of the time, no word of an authenticated server, no word at all.
    let proof = client.transport().proven_time();
    server.fault(Endpoint::Discovery, Fault::answer(503, &[("date", "yesterday")], ""));
    discover(&client, &server).await.unwrap_err();
    assert_eq!(client.transport().proven_time(), proof);
    let (other, _other_directory) = self::server();
    assert!(matches!(
        discover(&client, &other).await,
        Err(IssuerError::Transport(TransportError::ServerNotTrusted { .. }))
    ));
    assert_eq!(client.transport().proven_time(), proof);
    server.stop_listening().unwrap();
    assert!(matches!(
        discover(&client, &server).await,
        Err(IssuerError::Transport(TransportError::Unreachable { .. }))
    ));
    assert_eq!(client.transport().proven_time(), proof);
}

/// A proxy that connects every request to the server at this port, and records the requests.
fn proxy(to: u16, response: &'static str) -> (String, std::sync::mpsc::Receiver<String>) {
    use std::io::{Read as _, Write as _, copy};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (seen, requests) = std::sync::mpsc::channel();
    let lead = move |mut client: std::net::TcpStream, seen: std::sync::mpsc::Sender<String>| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let _ = seen.send(String::from_utf8(head).unwrap());
        client.write_all(response.as_bytes()).unwrap();
        let Ok(server) = std::net::TcpStream::connect(("127.0.0.1", to)) else { return };
        let (mut from, mut back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || {
            let _ = copy(&mut from, &mut &server);
        });
        let _ = copy(&mut back, &mut client);
    };
    thread::spawn(move || {
        for client in listener.incoming() {
            let seen = seen.clone();
            thread::spawn(move || lead(client.unwrap(), seen));
        }
    });
    (address, requests)
}

#[tokio::test]
async fn ipv6_address_is_reached_through_a_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = vec!["127.0.0.1".to_owned(), "2001:db8::1".to_owned()];
    let settings = Settings { directory: directory.path().join("mis"), hosts, ..Settings::default() };
    let server = development_mis::Mis::start(settings).unwrap();
    let through = |address: &str| {
        let trust = InitialTrust { ca_file: Some(server.ca_file()), ..InitialTrust::default() };
        let lines = format!("[mis]\norigin = \"https://a\"\nproxy = \"{address}\"");
        let config = config::Config::parse(&lines, std::path::Path::new("/config.toml"), None).unwrap();
        Issuer::new(Protocol::default(), Transport::new(ServerTrust::new(trust), config.mis.unwrap().proxy))
    };
    let url = |address: &str| Url::parse(&format!("https://[{address}]:8443/.well-known/margo")).unwrap();

    let (address, requests) = proxy(server.port(), "HTTP/1.1 200 OK\r\nvia: here\r\n\r\n");
    let bundles = [server.url().parse().unwrap()];
    through(&address).discover(&url("2001:db8::1"), None, &bundles).await.unwrap();
    assert!(requests.recv().unwrap().starts_with("CONNECT [2001:db8::1]:8443 HTTP/1.1\r\n"));
    // It is the address that is authenticated.
    let error = through(&address).discover(&url("2001:db8::2"), None, &[]).await.unwrap_err();
    assert!(matches!(error, IssuerError::Transport(TransportError::ServerNotTrusted { .. })), "{error}");

    for (response, why) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow connections to [2001:db8::1]:8443 (403)"),
        ("HTTP/1.0 407 Who are you\r\n\r\n", "requires a user and a password"),
        ("HTTP/1.1 503 Later\r\n\r\n", "it responded with 503"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "its response is not HTTP"),
    ] {
        let (address, _requests) = proxy(server.port(), response);
        let error = through(&address).discover(&url("2001:db8::1"), None, &[]).await.unwrap_err();
        assert!(
            matches!(error, IssuerError::Transport(TransportError::Proxy { .. }))
                && error.to_string().contains(why),
            "{error}"
        );
    }
    let unreachable = format!(
        "http://127.0.0.1:{}",
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    );
    let error = through(&unreachable).discover(&url("2001:db8::1"), None, &[]).await.unwrap_err();
    assert!(error.to_string().contains("could not be reached"), "{error}");
}

/// The operator of the MIS can do nothing about a file.
#[test]
fn hint_about_a_bundle_file_is_about_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.json");
    let domain = TrustDomain::parse("factory.example").unwrap();
    let report = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        Issuer::bundle_file(&path, Some(&domain)).unwrap_err().to_failure().report
    };
    let certificate =
        rcgen::CertificateParams::new([]).unwrap().self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let with_text = format!("Certificate:\n    Data:\n{}", certificate.pem());
    for (content, encoding) in [
        (certificate.pem().as_bytes(), "PEM"),
        (with_text.as_bytes(), "PEM"),
        (&certificate.der()[..], "DER"),
    ] {
        let report = report(content);
        let detail = report.detail.as_deref().unwrap();
        assert!(
            detail.contains(&format!("it is in {encoding}, and a trust bundle is JSON: a JWK set")),
            "{detail}"
        );
        let hint = report.hint().unwrap();
        assert!(hint.contains("docs/identities.md") && !hint.contains("operator of the MIS"), "{hint}");
    }
    let (_, section) = NOT_A_BUNDLE_HINT.split_once('"').unwrap();
    let (section, _) = section.split_once('"').unwrap();
    assert!(include_str!("../../docs/identities.md").contains(&format!("\n### {section}\n")), "{section}");
    for content in ["{}", "not JSON", "{\"keys\": []}", "{\"trust_domains\": {}}"] {
        let report = report(content.as_bytes());
        assert!(report.hint().unwrap().contains("the file that mis.bundle_file names"), "{report:?}");
    }
    std::fs::remove_file(&path).unwrap();
    let missing = Issuer::bundle_file(&path, Some(&domain)).unwrap_err().to_failure().report;
    assert!(!missing.hint().unwrap().contains("operator of the MIS"), "{missing:?}");
    // A served one is theirs.
    let location = BundleLocation::Url("https://mis.example/bundle".parse().unwrap());
    let served = IssuerError::Bundle { location, why: BundleError::OtherEncoding("PEM") };
    assert!(served.to_failure().report.hint().unwrap().starts_with("Have the operator of the MIS"));
}
