//! The crate `est-ca` behind nginx: an EST server of another project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use tempfile::TempDir;

use crate::front::{Asks, Front, Setup, curl};
use crate::server::{EstPeer, GENERIC, SECRET, USER};
use crate::support::program::Program;
use crate::world::{Endpoint, World, openssl};

struct EstCa {
    front: Front,
    _server: Program,
    /// Has the certificate of the front end.
    https: EstPeer,
    directory: TempDir,
}

impl EstCa {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.der");
        let (server, address) = Program::serve(Command::new(built()).arg(&ca).args([USER, SECRET]));
        let pem = directory.path().join("ca.crt");
        openssl(&["x509", "-inform", "DER", "-in", ca.to_str().unwrap(), "-out", pem.to_str().unwrap()]);
        fs::write(directory.path().join("bundle.json"), bundle(&fs::read(&ca).unwrap())).unwrap();
        let https = EstPeer::start(GENERIC, &[]);
        let setup = Setup { certificate: &https.dir, client_ca: &pem, behind: &address };
        let front = Front::nginx(&setup, Asks::Optionally);
        Self { front, _server: server, https, directory }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.front.url(),
            ca_file: self.https.file("https-ca.crt"),
            bundle_file: self.file("bundle.json"),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Builds the server, and returns its program.
fn built() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/est-ca");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(root.join("tests/est-peer/est-ca/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug/est-ca-server")
}

/// A CA with a P-256 key as a SPIFFE bundle.
fn bundle(ca: &[u8]) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(ca).unwrap();
    let point = &parsed.public_key().subject_public_key.data;
    assert_eq!((point.len(), point[0]), (65, 4), "an uncompressed point of P-256");
    let [x, y] = [&point[1..33], &point[33..]].map(|number| URL_SAFE_NO_PAD.encode(number));
    let key = json!({
        "use": "x509-svid", "kty": "EC", "crv": "P-256", "x": x, "y": y, "x5c": [STANDARD.encode(ca)],
    });
    json!({ "keys": [key], "spiffe_sequence": 1, "spiffe_refresh_hint": 60 }).to_string()
}

#[test]
fn est_ca_takes_one_line_and_gives_no_san() {
    let est_ca = EstCa::start();
    let ca = est_ca.https.file("https-ca.crt");
    let enroll = format!("{}/simpleenroll", est_ca.front.url());
    let [key, request, body] = ["key", "request", "body"].map(|name| est_ca.file(name));
    let paths = [&key, &request].map(|path| path.to_str().unwrap());
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", paths[0]]);
    let san = "subjectAltName=URI:spiffe://factory.example/margo/wfm/wfm-1/client/line-7";
    let what = ["-subj", "/CN=ignored", "-addext", san, "-outform", "DER", "-out", paths[1]];
    openssl(&[&["req", "-new", "-key", paths[0]], &what[..]].concat());
    let post = |text: String, user: &str| {
        fs::write(&body, text).unwrap();
        let data = format!("@{}", body.display());
        let more = ["--data-binary", &data, "--header", "Content-Type: application/pkcs10", "--user", user];
        curl(&ca, &enroll, None, &more)
    };
    let text = STANDARD.encode(fs::read(&request).unwrap());
    let user = format!("{USER}:{SECRET}");

    let (status, media_type, answer) = post(text.clone(), &user);
    assert_eq!(
        (status, media_type.as_str()),
        (200, "application/pkcs7-mime; smime-type=certs-only"),
        "{answer}"
    );
    fs::write(est_ca.file("issued.p7"), STANDARD.decode(answer).unwrap()).unwrap();
    let file = est_ca.file("issued.p7");
    let shown = Command::new("openssl")
        .args(["pkcs7", "-inform", "DER", "-print_certs", "-text", "-in", file.to_str().unwrap()])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).replace(' ', ""); // versions of OpenSSL differ in them
    assert!(shown.contains(&format!("Subject:CN={USER}\n")), "{shown}");
    assert!(!shown.contains("AlternativeName"), "{shown}");

    assert_eq!(post(format!("{text}\n"), &user).0, 400, "not even one line break");
    assert_eq!(post(text, &format!("{USER}:wrong")).0, 403);
}

#[test]
fn est_ca_ends_in_no_spiffe_id() {
    let est_ca = EstCa::start();
    let mut world = World::with(
        &est_ca.endpoint(),
        "request_spiffe_id = \"spiffe://factory.example/margo/wfm/wfm-1/client/line-7\"\n",
    );
    world.device.start();
    // It refuses lines, takes one line, and its certificate is no SVID.
    let status = world.device.wait_for_error("SPIFFE ID");
    assert!(status["svid"].is_null(), "{status:#}");
    assert!(status["lastError"]["hint"].is_string(), "{status:#}");
    world.secret_is_nowhere(SECRET);
}
