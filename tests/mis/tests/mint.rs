//! SVIDs by the operator's command (N9).

mod common;

use common::*;
use development_mis::{ALLOW_LIST, IssuingMode, KeyKind, MintKey, MintSpec, Mis, SvidFault};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const CLIENT: &str = "spiffe://factory.example/margo/wfm/w1/client/c1";

/// A CSR whose subject alternative name is this.
fn csr_for(key: &Path, names: &str, options: &[&str]) -> Vec<u8> {
    let names = format!("subjectAltName={names}");
    let base = ["req", "-new", "-key", key.to_str().unwrap(), "-subj", "/CN=x", "-addext", &names];
    openssl(&[&base, options].concat())
}

fn bare_csr(key: &Path) -> Vec<u8> {
    openssl(&["req", "-new", "-key", key.to_str().unwrap(), "-subj", "/CN=x"])
}

fn text(chain: &Path) -> String {
    String::from_utf8(openssl(&["x509", "-noout", "-text", "-in", chain.to_str().unwrap()])).unwrap()
}

fn mint(mis: &Mis, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_development-mis"))
        .args(["mint", "--directory", mis.directory().to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn mint_command_signs_a_csr() {
    let site = site(|_| ());
    let dir = site.dir.path();
    let (request, out) = (dir.join("csr.pem"), dir.join("svid.pem"));
    fs::write(&request, csr_for(&key(dir, "client", P256), &format!("URI:{CLIENT}"), &[])).unwrap();
    let tls_before = fs::read(site.mis.server_cert()).unwrap();
    let done = mint(&site.mis, &["--csr", request.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read_to_string(&out).unwrap().matches("BEGIN CERTIFICATE").count(), 1);
    let svid = text(&out);
    assert!(svid.contains(&format!("URI:{CLIENT}\n")) && !svid.contains("CN=x"), "{svid}");
    assert_eq!(fs::read(site.mis.server_cert()).unwrap(), tls_before, "the running server is left alone");

    let intermediate = ["--mode", "intermediate", "--ttl", "600", "--dns", "client.example"];
    let more = ["--csr", request.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert!(mint(&site.mis, &[&intermediate[..], &more].concat()).status.success());
    assert_eq!(fs::read_to_string(&out).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    assert!(text(&out).contains("DNS:client.example"));
    let root = site.mis.directory().join("trust-domain/root-1.pem");
    let (root, out) = (root.to_str().unwrap(), out.to_str().unwrap());
    openssl(&["verify", "-CAfile", root, "-untrusted", out, out]);
}

#[test]
fn mint_command_makes_a_key() {
    let site = site(|_| ());
    let dir = site.dir.path();
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (out, key_out, bundle) = (file("svid.pem"), file("svid.key"), file("bundle.json"));
    let arguments = ["--spiffe-id", "spiffe://factory.example/margo/wfm/w1", "--key-out", &key_out];
    let arguments = [&arguments[..], &["--out", &out, "--bundle-out", &bundle]].concat();
    for kind in ["p256", "p384", "ed25519", "rsa3072"] {
        let done = mint(&site.mis, &[&arguments[..], &["--key-type", kind]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let of_key = openssl(&["pkey", "-in", &key_out, "-pubout"]);
        assert_eq!(openssl(&["x509", "-in", &out, "-noout", "-pubkey"]), of_key, "{kind}");
        assert!(fs::read_to_string(&key_out).unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    }
    assert_eq!(fs::metadata(&key_out).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&bundle).unwrap().contains("x509-svid"));
    assert!(!mint(&site.mis, &["--out", &out]).status.success(), "neither a CSR nor a key");
    assert!(!mint(&site.mis, &["--key-out", &key_out, "--out", &out]).status.success(), "no SPIFFE ID");
}

#[test]
fn mint_takes_the_algorithms_of_n7() {
    let site = site(|_| ());
    let dir = site.dir.path();
    let uri = format!("URI:{CLIENT}");
    let sign = |name: &str, options: &[&str], sign: &[&str]| {
        let csr = csr_for(&key(dir, name, options), &uri, sign);
        site.mis.mint(&MintSpec::csr(csr)).map(|minted| minted.spiffe_id)
    };
    for (name, options, how) in [
        ("p256", P256, &["-sha256"][..]),
        ("p384", P384, &["-sha384"]),
        ("ed25519", &["-algorithm", "ED25519"], &[]),
        ("rsa3072", RSA3072, &["-sha256"]),
        ("pss", RSA3072, PSS),
    ] {
        assert_eq!(sign(name, options, how).unwrap(), CLIENT, "{name}");
    }
    assert!(sign("rsa2048", RSA2048, &["-sha256"]).unwrap_err().to_string().contains("2048"));
    assert!(sign("p384", P384, &["-sha256"]).is_err());
    let p521 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
    assert!(sign("p521", &p521, &["-sha256"]).is_err());
}

#[test]
fn mint_refuses_other_names() {
    let site = site(|_| ());
    let dir = site.dir.path();
    let client_key = key(dir, "client", P256);
    let refused = |spec: MintSpec| site.mis.mint(&spec).unwrap_err().to_string();
    for id in [
        "spiffe://other.example/margo/wfm/w1",
        "spiffe://factory.example/margo/wfm/w1/client/..",
        "spiffe://factory.example/margo/wfm/w1/client/a~b",
        "spiffe://factory.example/margo/wfm/w1/client/%41",
        "spiffe://factory.example/margo/device/11111111-1111-4111-8111-111111111111",
        "spiffe://factory.example/workload",
        "spiffe://factory.example",
    ] {
        assert!(refused(MintSpec::new(id)).contains("is not a WFM or WFM Client"), "{id}");
        let csr = csr_for(&client_key, &format!("URI:{id}"), &[]);
        assert!(refused(MintSpec::csr(csr)).contains("is not a WFM or WFM Client"), "{id}");
    }
    let two = csr_for(&client_key, &format!("URI:{CLIENT},URI:{CLIENT}2"), &[]);
    assert!(refused(MintSpec::csr(two)).contains("more than one URI SAN"));
    assert!(refused(MintSpec::csr(bare_csr(&client_key))).contains("no SPIFFE ID"));
    let given = |csr: Vec<u8>, id: &str| MintSpec { spiffe_id: Some(id.to_owned()), ..MintSpec::csr(csr) };
    let named = csr_for(&client_key, &format!("URI:{CLIENT}"), &[]);
    assert!(refused(given(named.clone(), &format!("{CLIENT}2"))).contains("is for"));
    assert_eq!(site.mis.mint(&given(named, CLIENT)).unwrap().spiffe_id, CLIENT);
    assert_eq!(site.mis.mint(&given(bare_csr(&client_key), CLIENT)).unwrap().spiffe_id, CLIENT);

    let mut forged = csr_der(&client_key, &["-sha256"]);
    *forged.last_mut().unwrap() ^= 1;
    assert!(refused(given(forged, CLIENT)).contains("CSR refused"));
    assert!(refused(given(b"nonsense".to_vec(), CLIENT)).contains("CSR refused"));
    assert!(refused(MintSpec { ttl: Duration::ZERO, ..MintSpec::new(CLIENT) }).contains("lifetime"));
}

#[test]
fn allow_list_is_exact() {
    let site = site(|_| ());
    let list = site.mis.directory().join(ALLOW_LIST);
    fs::write(&list, format!("[{CLIENT:?}]")).unwrap();
    assert!(site.mis.mint(&MintSpec::new(CLIENT)).is_ok());
    for other in [&CLIENT[..CLIENT.len() - 1], &format!("{CLIENT}1"), &CLIENT.replace("c1", "C1")] {
        let why = site.mis.mint(&MintSpec::new(other)).unwrap_err().to_string();
        assert!(why.contains("allow list"), "{why}");
    }
    fs::write(&list, "{}").unwrap();
    assert!(site.mis.mint(&MintSpec::new(CLIENT)).is_err());
}

#[test]
fn faults_mint_what_the_command_refuses() {
    let site = site(|_| ());
    let minted = |fault: SvidFault| {
        let spec = MintSpec { faults: vec![fault], ..MintSpec::new(CLIENT) };
        let (chain, _) = site.mis.mint_files("bent", &spec).unwrap();
        text(&chain)
    };
    let foreign = "spiffe://other.example/margo/wfm/w1/client/..";
    assert!(minted(SvidFault::SpiffeId(foreign.to_owned())).contains(foreign));
    assert!(
        minted(SvidFault::OtherTrustDomain("o.example".into())).contains("o.example/margo/wfm/w1/client/c1")
    );
    assert!(minted(SvidFault::CrlSign).contains("CRL Sign"));
    let root = MintSpec { mode: Some(IssuingMode::Root), ..MintSpec::new(CLIENT) };
    assert_eq!(site.mis.mint(&root).unwrap().chain_pem.matches("BEGIN").count(), 1);
    let rsa = MintSpec { key: MintKey::New(KeyKind::Rsa2048), ..MintSpec::new(CLIENT) };
    assert!(site.mis.mint(&rsa).unwrap().key_pem.is_some(), "deliberate: a key that is too weak");
}
