//! nginx and Apache in front of an EST server: what they answer to client certificates that they do not accept,
//! and what the agent makes of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::front::{Asks, Front, Setup, curl};
use crate::server::{EstPeer, GENERIC, ID, TABLE};
use crate::world::{Endpoint, World, operator_certificate, pem};

/// The server behind it, without TLS, and who may show a certificate.
fn behind(front: impl FnOnce(&Setup<'_>) -> Front, client_ca: Option<PathBuf>) -> (EstPeer, Front) {
    let peer = EstPeer::start(TABLE, &["--plain"]);
    let client_ca = client_ca.unwrap_or_else(|| peer.file("ca.crt"));
    let setup = Setup { certificate: &peer.dir, client_ca: &client_ca, behind: &peer.address };
    let front = front(&setup);
    (peer, front)
}

fn endpoint(peer: &EstPeer, front: &Front) -> Endpoint {
    Endpoint { url: front.url(), ..Endpoint::of(peer) }
}

/// A certificate of this server's CA, with its intermediate.
fn identity(peer: &EstPeer) -> (PathBuf, PathBuf) {
    let files = (peer.file("client.crt"), peer.file("client.key"));
    operator_certificate(peer, &files.0, &files.1);
    files
}

/// The same certificate, without its intermediate.
fn incomplete(peer: &EstPeer) -> (PathBuf, PathBuf) {
    let (cert, key) = identity(peer);
    let alone = peer.file("alone.crt");
    let text = pem(&cert).replace(&pem(&peer.file("intermediate.crt")), "");
    fs::write(&alone, text).unwrap();
    (alone, key)
}

/// The response to a request as `openssl s_client` sends it.
fn s_client(front: &Front, request: &str) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", front.port)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl");
    client.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
    // Its input stays open until the response is there: its end would end the connection.
    let mut response = String::new();
    client.stdout.as_mut().unwrap().read_to_string(&mut response).unwrap();
    client.wait().unwrap();
    response
}

#[test]
fn nginx_answers_html_400_to_certificates_it_does_not_accept() {
    let (peer, front) = behind(|setup| Front::nginx(setup, Asks::Optionally), None);
    let (ca, url) = (peer.file("https-ca.crt"), format!("{}/cacerts", front.url()));
    assert_eq!(curl(&ca, &url, None, &[]).0, 200);
    assert_eq!(curl(&ca, &url, Some(&identity(&peer)), &[]).0, 200);
    let stranger = EstPeer::start(GENERIC, &[]);
    for (what, identity) in [("of another CA", identity(&stranger)), ("incomplete", incomplete(&peer))] {
        let (status, media_type, body) = curl(&ca, &url, Some(&identity), &[]);
        assert_eq!((status, media_type.as_str()), (400, "text/html"), "{what}: {body}");
        assert!(body.contains("The SSL certificate error"), "{what}: {body}");
    }

    let (peer, front) = behind(|setup| Front::nginx(setup, Asks::Always), None);
    let (ca, url) = (peer.file("https-ca.crt"), format!("{}/cacerts", front.url()));
    let (status, media_type, body) = curl(&ca, &url, None, &[]);
    assert_eq!((status, media_type.as_str()), (400, "text/html"), "{body}");
    assert!(body.contains("No required SSL certificate was sent"), "{body}");
}

#[test]
fn apache_answers_html_403_where_it_asks_too_late() {
    let (mut peer, front) = behind(|setup| Front::apache(setup, Asks::Late), None);
    let ca = peer.file("https-ca.crt");
    assert_eq!(curl(&ca, &format!("{}/cacerts", front.url()), None, &[]).0, 200);
    // curl offers authentication after the handshake; OpenSSL by itself does not, nor does rustls.
    let request = "POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\
                   Connection: close\r\n\r\nx";
    let response = s_client(&front, request);
    assert!(response.starts_with("HTTP/1.1 403 "), "{response}");
    assert!(response.contains("Content-Type: text/html"), "{response}");
    assert!(response.contains("Cannot perform Post-Handshake Authentication"), "{response}");
    assert_eq!(peer.requests("simplereenroll"), Vec::<Value>::new());
}

#[test]
fn agent_enrolls_and_renews_through_nginx() {
    let (mut peer, front) = behind(|setup| Front::nginx(setup, Asks::Optionally), None);
    let mut world = World::at(&endpoint(&peer, &front));
    world.enroll();
    assert_eq!(world.renew()["spiffeId"], ID);
    assert!(peer.next_with("simplereenroll", 200)["certificate"].is_string());
}

#[test]
fn agent_enrolls_and_renews_through_apache() {
    let (peer, front) = behind(|setup| Front::apache(setup, Asks::Optionally), None);
    let mut world = World::at(&endpoint(&peer, &front));
    world.enroll();
    assert_eq!(world.renew()["spiffeId"], ID);
}

#[test]
fn certificate_that_nginx_refuses_is_no_bad_request() {
    // A front end that does not know the CA of the SVIDs.
    let stranger = EstPeer::start(GENERIC, &[]);
    let (mut peer, front) =
        behind(|setup| Front::nginx(setup, Asks::Optionally), Some(stranger.file("ca.crt")));
    let mut world = World::at(&endpoint(&peer, &front));
    let serial = world.enroll();
    world.order_renewal();
    let status = world.device.wait_for_error("certificate");
    assert_eq!(status["svid"]["serial"], serial);
    assert_eq!(peer.requests("simplereenroll"), Vec::<Value>::new());
}

#[test]
fn nginx_that_wants_a_certificate_of_everyone_costs_no_token() {
    let (mut peer, front) = behind(|setup| Front::nginx(setup, Asks::Always), None);
    let mut world = World::at(&endpoint(&peer, &front));
    world.device.start();
    world.device.wait_for_error("certificate");
    assert_eq!(peer.requests("simpleenroll"), Vec::<Value>::new());
}

#[test]
fn apache_that_asks_too_late_gets_no_renewal() {
    let (mut peer, front) = behind(|setup| Front::apache(setup, Asks::Late), None);
    let mut world = World::at(&endpoint(&peer, &front));
    let serial = world.enroll();
    world.order_renewal();
    let status = world.device.wait_for_error("certificate");
    assert_eq!(status["svid"]["serial"], serial);
    assert_eq!(peer.requests("simplereenroll"), Vec::<Value>::new());
}
