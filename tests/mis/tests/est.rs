//! EST over real TLS, rule by rule. Requests and keys come from OpenSSL, which also reads the
//! responses.

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::*;
use development_mis::{
    Authorization, ClientCertificates, ClientKind, Documents, Endpoint, EstBaseUri, EstFault, Fault,
    IssuingMode, Limit, MintSpec, Mis, RetryAfter, SvidFault, Token, TokenSpec, Violation,
};
use reqwest::blocking::{Client, Response};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const PKCS10: &str = "application/pkcs10";

/// An MIS, and a key with its first request.
struct Stage {
    site: Site,
    id: String,
    key: PathBuf,
    csr: String,
}

fn stage() -> Stage {
    stage_with(|_| ())
}

fn stage_with(change: impl FnOnce(&mut development_mis::Settings)) -> Stage {
    let site = site(change);
    let id = site.mis.est().client_id("w1", "c1");
    let key = key(site.dir.path(), "client", P256);
    let csr = first(&key);
    Stage { site, id, key, csr }
}

impl Stage {
    fn mis(&self) -> &Mis {
        &self.site.mis
    }

    fn dir(&self) -> &Path {
        self.site.dir.path()
    }

    fn token(&self) -> Token {
        self.mis().est().token(&self.id)
    }

    /// An SVID by a new token, with its chain in a file.
    fn enrolled(&self) -> PathBuf {
        let answer = enroll(self.mis(), &client(self.mis(), None), Some(&self.token()), &self.csr);
        self.chain(&answer_of(answer), "svid")
    }

    /// Leaf and intermediates in a file.
    fn chain(&self, leaf: &[Certificate], name: &str) -> PathBuf {
        let path = self.dir().join(format!("{name}.pem"));
        let above = ca_certs(self.mis()).into_iter().filter(|one| one.subject != one.issuer);
        fs::write(&path, leaf.iter().cloned().chain(above).map(|one| one.pem).collect::<String>()).unwrap();
        path
    }

    fn renewal(&self, critical: bool) -> String {
        renewal_csr(&self.key, &self.id, critical)
    }

    fn violations(&self) -> Vec<Violation> {
        self.mis().est().violations().into_iter().map(|(_, violation)| violation).collect()
    }
}

/// PKCS#10 in DER, with an empty subject.
fn pkcs10(key: &Path, options: &[&str]) -> Vec<u8> {
    let base = ["req", "-new", "-key", key.to_str().unwrap(), "-outform", "DER", "-subj", "/"];
    openssl(&[&base, options].concat())
}

fn first(key: &Path) -> String {
    STANDARD.encode(pkcs10(key, &["-sha256"]))
}

fn renewal_csr(key: &Path, id: &str, critical: bool) -> String {
    let names = format!("subjectAltName={}URI:{id}", if critical { "critical," } else { "" });
    STANDARD.encode(pkcs10(key, &["-sha256", "-addext", &names]))
}

fn post(mis: &Mis, client: &Client, operation: &str, token: Option<&Token>, body: &str) -> Response {
    post_to(&format!("{}/{operation}", mis.est_url()), client, token, PKCS10, body)
}

fn post_to(url: &str, client: &Client, token: Option<&Token>, kind: &str, body: &str) -> Response {
    let mut request = client.post(url).header("content-type", kind).body(body.to_owned());
    if let Some(token) = token {
        request = request.basic_auth(&token.username, Some(&token.secret));
    }
    request.send().unwrap()
}

fn enroll(mis: &Mis, client: &Client, token: Option<&Token>, csr: &str) -> Response {
    post(mis, client, "simpleenroll", token, csr)
}

fn get(mis: &Mis, client: &Client, operation: &str) -> Response {
    client.get(format!("{}/{operation}", mis.est_url())).send().unwrap()
}

#[derive(Clone, Debug)]
struct Certificate {
    subject: String,
    issuer: String,
    pem: String,
}

/// The certificates of a `200`, as OpenSSL reads them.
fn answer_of(answer: Response) -> Vec<Certificate> {
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.headers()["content-type"], "application/pkcs7-mime; smime-type=certs-only");
    certificates(&der_of(&answer.bytes().unwrap()))
}

fn der_of(body: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).unwrap()
}

fn certificates(pkcs7: &[u8]) -> Vec<Certificate> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p7");
    fs::write(&file, pkcs7).unwrap();
    let text = openssl(&["pkcs7", "-inform", "DER", "-print_certs", "-in", file.to_str().unwrap()]);
    let text = String::from_utf8(text).unwrap();
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
    };
    text.split_inclusive("-----END CERTIFICATE-----\n")
        .filter(|block| block.contains("BEGIN"))
        .map(|block| Certificate {
            subject: field(block, "subject="),
            issuer: field(block, "issuer="),
            pem: block[block.find("-----BEGIN").unwrap()..].to_owned(),
        })
        .collect()
}

fn ca_certs(mis: &Mis) -> Vec<Certificate> {
    answer_of(get(mis, &client(mis, None), "cacerts"))
}

fn text_of(certificate: &Path) -> String {
    let text = openssl(&["x509", "-noout", "-text", "-in", certificate.to_str().unwrap()]);
    String::from_utf8(text).unwrap().replace(" = ", "=") // as OpenSSL writes names since 3.2
}

/// Whether a chain file leads to the anchors of the trust bundle, by OpenSSL.
fn reaches_the_bundle(stage: &Stage, chain: &Path) -> bool {
    let file = stage.dir().join("anchors.pem");
    anchors(stage.mis(), &file);
    let chain = chain.to_str().unwrap();
    let verify =
        ["verify", "-purpose", "sslclient", "-CAfile", file.to_str().unwrap(), "-untrusted", chain, chain];
    Command::new("openssl").args(verify).output().unwrap().status.success()
}

#[test]
fn token_enrolls_and_the_chain_reaches_the_bundle() {
    for intermediates in [0, 1, 3] {
        let stage = stage_with(|settings| {
            settings.policy.est.intermediates = intermediates;
            settings.mode = IssuingMode::Intermediate;
        });
        let mis = stage.mis();
        let token = stage.token();
        let answer = enroll(mis, &client(mis, None), Some(&token), &stage.csr);
        let leaf = answer_of(answer);
        assert_eq!(leaf.len(), 1, "the leaf alone");
        let chain = stage.chain(&leaf, "svid");
        let text = text_of(&chain);
        assert!(text.contains(&format!("URI:{}", stage.id)), "{text}");
        assert!(text.contains("X509v3 Subject Alternative Name: critical"), "{text}");
        assert!(reaches_the_bundle(&stage, &chain));
        assert_eq!(ca_certs(mis).len(), intermediates + 2, "the root, too");

        let [issued] = &mis.est().record()[..] else { panic!("{:?}", mis.est().record()) };
        assert_eq!(issued.spiffe_id, stage.id);
        assert_eq!(issued.authorization, Authorization::Token(token.username));
        assert_eq!(Some(&issued.key_sha256), mis.journal()[0].csr_spki_sha256.as_ref());
        assert_eq!(issued.certificate_pem, leaf[0].pem);
        assert_eq!(stage.violations(), []);
    }
}

#[test]
fn response_is_the_pkcs7_of_the_rfc() {
    let stage = stage();
    let answer = enroll(stage.mis(), &client(stage.mis(), None), Some(&stage.token()), &stage.csr);
    let body = answer.bytes().unwrap();
    assert!(!body.contains(&b'\n'), "base64 on one line");
    let file = stage.dir().join("answer.p7");
    fs::write(&file, der_of(&body)).unwrap();
    let dump = openssl(&["asn1parse", "-inform", "DER", "-in", file.to_str().unwrap()]);
    let dump = String::from_utf8(dump).unwrap();
    fn shape(line: &str) -> Option<String> {
        let (_, rest) = line.split_once("prim:").or(line.split_once("cons:"))?;
        Some(rest.split_whitespace().collect::<Vec<_>>().join(" "))
    }
    let shallow = |line: &&str| {
        line.split_once("d=").is_some_and(|(_, rest)| rest.trim_start().starts_with(['0', '1', '2', '3']))
    };
    let squeezed: Vec<String> = dump.lines().filter(shallow).filter_map(shape).collect();
    assert_eq!(
        squeezed,
        [
            "SEQUENCE",
            "OBJECT :pkcs7-signedData",
            "cont [ 0 ]",
            "SEQUENCE",
            "INTEGER :01",
            "SET",
            "SEQUENCE",
            "cont [ 0 ]",
            "SET",
        ],
        "{dump}"
    );
}

#[test]
fn single_use_counts_keys() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let other = first(&key(stage.dir(), "other", P256));
    let token = stage.token();
    let status = |csr: &str| enroll(mis, &anonymous, Some(&token), csr).status().as_u16();

    // A failed issuance consumes nothing.
    mis.fault(Endpoint::EstEnroll, Fault::Est(EstFault::IssuanceFails));
    assert_eq!(status(&stage.csr), 500);
    assert_eq!(status("rubbish"), 400);
    assert_eq!(mis.est().record().len(), 0);
    // Another key is as good as the first one before.
    assert_eq!(status(&other), 200);
    assert_eq!(status(&stage.csr), 401);
    // A retry for ten minutes.
    mis.est().advance(9 * MINUTE);
    assert_eq!(status(&other), 200);
    mis.est().advance(MINUTE);
    assert_eq!(status(&other), 401);
    assert_eq!(mis.est().record().len(), 2);
    assert_eq!(mis.est().alerts(), []);

    let reusable = TokenSpec { reusable: true, ..TokenSpec::new(&stage.id) };
    let reusable = mis.est().token_with(&reusable).unwrap();
    assert_eq!(enroll(mis, &anonymous, Some(&reusable), &stage.csr).status(), 200);
    mis.est().advance(20 * MINUTE);
    assert_eq!(enroll(mis, &anonymous, Some(&reusable), &other).status(), 200);
    let [alert] = &mis.est().alerts()[..] else { panic!("{:?}", mis.est().alerts()) };
    assert_eq!(alert.spiffe_id, stage.id);
    mis.est().advance(40 * MINUTE);
    assert_eq!(enroll(mis, &anonymous, Some(&reusable), &other).status(), 401, "expired");
}

#[test]
fn lost_answer_is_repeated_for_the_same_key() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let token = stage.token();
    mis.fault(Endpoint::EstEnroll, Fault::CutBefore);
    mis.fault(Endpoint::EstEnroll, Fault::LoseAnswer);
    for issued in [0, 1] {
        let url = format!("{}/simpleenroll", mis.est_url());
        let request = anonymous.post(url).header("content-type", PKCS10).body(stage.csr.clone());
        request.basic_auth(&token.username, Some(&token.secret)).send().unwrap_err();
        assert_eq!(mis.est().record().len(), issued);
    }
    assert_eq!(enroll(mis, &anonymous, Some(&token), &stage.csr).status(), 200);
    let other = first(&key(stage.dir(), "other", P256));
    assert_eq!(enroll(mis, &anonymous, Some(&token), &other).status(), 401);
}

#[test]
fn refused_authorizations_look_alike() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let est = mis.est();
    est.add_domain("b", "b.example").unwrap();
    let consumed = stage.token();
    let other = first(&key(stage.dir(), "other", P256));
    assert_eq!(enroll(mis, &anonymous, Some(&consumed), &other).status(), 200);
    let invalidated = stage.token();
    est.invalidate(&invalidated.username).unwrap();
    let expired = est.token_with(&TokenSpec { valid: MINUTE, ..TokenSpec::new(&stage.id) }).unwrap();
    let foreign = est.token("spiffe://b.example/margo/wfm/w1/client/c1");
    let suspended = est.token(&est.client_id("w1", "c2"));
    est.suspend(&est.client_id("w1", "c2")).unwrap();
    est.advance(2 * MINUTE);
    let good = stage.token();
    let with = |username: &str, secret: &str| Token { username: username.into(), secret: secret.into() };
    let (certificate, key) = mis.new_factory_credential("unregistered").unwrap();
    let unregistered = client(mis, Some((&certificate, &key)));

    let look = |answer: Response| {
        let headers = answer.headers().iter().filter(|(name, _)| *name != "date");
        let headers: Vec<_> = headers.map(|(name, value)| format!("{name}: {value:?}")).collect();
        (answer.status().as_u16(), headers, answer.text().unwrap())
    };
    let nothing = look(enroll(mis, &anonymous, None, &stage.csr));
    assert_eq!(nothing.0, 401);
    assert!(nothing.1.contains(&r#"www-authenticate: "Basic realm=\"EST\", charset=\"UTF-8\"""#.to_owned()));
    assert!(nothing.1.contains(&r#"content-type: "text/plain; charset=utf-8""#.to_owned()));
    for token in [
        consumed,
        invalidated,
        expired,
        foreign,
        suspended,
        with("unknown", &good.secret),
        with(&good.username, "wrong"),
        with(&good.username, ""),
        with(&good.username, &good.secret.to_uppercase()),
        with("", &good.secret),
    ] {
        assert_eq!(look(enroll(mis, &anonymous, Some(&token), &stage.csr)), nothing, "{token:?}");
    }
    assert_eq!(look(enroll(mis, &unregistered, None, &stage.csr)), nothing);
    let url = format!("{}/simpleenroll", mis.est_url());
    for header in ["Basic", "Basic !!!", "Basic bm9jb2xvbg==", "Bearer abc", "Digest username=\"x\""] {
        let request = anonymous.post(&url).header("content-type", PKCS10).header("authorization", header);
        assert_eq!(look(request.body(stage.csr.clone()).send().unwrap()), nothing, "{header}");
    }
    assert_eq!(enroll(mis, &anonymous, Some(&good), &stage.csr).status(), 200);
}

#[test]
fn secrets_are_written_nowhere() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let secret = "a-chosen:secret-with:colons";
    let spec = TokenSpec { secret: Some(secret.to_owned()), ..TokenSpec::new(&stage.id) };
    let chosen = mis.est().token_with(&spec).unwrap();
    let made = stage.token();
    assert!(made.secret.len() >= 22, "128 bits");
    for token in [&chosen, &made] {
        assert_eq!(enroll(mis, &anonymous, Some(token), &stage.csr).status(), 200);
        enroll(mis, &anonymous, Some(token), "rubbish");
    }
    let mut seen = format!("{:?} {:?}", mis.journal(), mis.est().record());
    seen.extend(mis.journal().iter().map(|entry| format!("{entry}\n")));
    for entry in fs::read_dir(mis.directory()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        seen.push_str(&String::from_utf8_lossy(&fs::read(entry.path()).unwrap()));
    }
    assert!(seen.contains(&chosen.username) && seen.contains("authorization"));
    for token in [&chosen, &made] {
        assert!(!seen.contains(&token.secret));
        assert!(!seen.contains(&STANDARD.encode(token.user_pass())));
    }
}

#[test]
fn state_survives_a_restart() {
    let Stage { site, id, csr, .. } = stage();
    let token = site.mis.est().token(&id);
    let directory = site.mis.directory().to_owned();
    assert_eq!(enroll(&site.mis, &client(&site.mis, None), Some(&token), &csr).status(), 200);
    drop(site.mis);
    let mis = Mis::start(development_mis::Settings { directory, ..Default::default() }).unwrap();
    assert_eq!(mis.est().record().len(), 1);
    let other = first(&key(site.dir.path(), "other", P256));
    assert_eq!(enroll(&mis, &client(&mis, None), Some(&token), &other).status(), 401);
    assert_eq!(enroll(&mis, &client(&mis, None), Some(&token), &csr).status(), 200);
}

#[test]
fn registered_certificate_enrolls_again_and_again() {
    let stage = stage();
    let mis = stage.mis();
    let est = mis.est();
    let (certificate, key_file) = mis.new_factory_credential("panel").unwrap();
    let shows = client(mis, Some((&certificate, &key_file)));
    let status = || enroll(mis, &shows, None, &stage.csr).status().as_u16();
    assert_eq!(status(), 401);
    est.authorize(&certificate, &stage.id).unwrap();
    assert_eq!((status(), status()), (200, 200));
    let [first_line, _] = &est.record()[..] else { panic!() };
    assert!(matches!(first_line.authorization, Authorization::Certificate(_)));
    // Its own key is not the identity's.
    assert_eq!(enroll(mis, &shows, None, &first(&key_file)).status(), 400);
    mis.policy(|policy| policy.est.certificate_form = false);
    assert_eq!(status(), 401);
    mis.policy(|policy| policy.est.certificate_form = true);
    est.withdraw(&certificate).unwrap();
    assert_eq!(status(), 401);
    est.authorize(&certificate, &stage.id).unwrap();
    est.advance(Duration::from_secs(21 * 365 * 86_400));
    assert_eq!(status(), 401, "expired");
    // Not of a known manufacturer.
    let spec = development_mis::FactorySpec { unknown_manufacturer: true, ..Default::default() };
    let (unknown, _) = mis.new_factory_credential_as("unknown", &spec).unwrap();
    assert!(est.authorize(&unknown, &stage.id).is_err());
    assert_eq!(stage.violations(), []);
}

/// A request with a challengePassword, which OpenSSL takes from a configuration only.
fn with_challenge(stage: &Stage) -> String {
    let file = stage.dir().join("challenge.cnf");
    let text = "[req]\nprompt = no\ndistinguished_name = dn\nattributes = attributes\n[dn]\nCN = c1\n\
                [attributes]\nchallengePassword = a password\n";
    fs::write(&file, text).unwrap();
    let (key, file) = (stage.key.to_str().unwrap(), file.to_str().unwrap());
    STANDARD.encode(openssl(&["req", "-new", "-key", key, "-outform", "DER", "-config", file]))
}

#[test]
fn wrong_requests_are_refused() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let der = pkcs10(&stage.key, &["-sha256"]);
    let line = STANDARD.encode(&der);
    let make = |options: &[&str]| STANDARD.encode(pkcs10(&stage.key, options));
    let of = |name: &str, kind: &[&str], options: &[&str]| {
        STANDARD.encode(pkcs10(&key(stage.dir(), name, kind), options))
    };
    let mut forged = der.clone();
    *forged.last_mut().unwrap() ^= 1;
    let refused = [
        (
            "base64",
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{line}\n-----END CERTIFICATE REQUEST-----\n"),
        ),
        ("base64", format!("-_{}", &line[2..])),
        ("base64", format!("{line}====")),
        ("base64", STANDARD.encode(&der[..der.len() / 3 * 3 - 1]).replace('=', "")),
        ("not a DER", STANDARD.encode([der.as_slice(), &[0]].concat())),
        ("not a DER", String::new()),
        ("own signature", STANDARD.encode(&forged)),
        ("claims no name", STANDARD.encode(csr_der(&stage.key, &["-sha256"]))),
        ("claims no name", renewal_csr(&stage.key, &stage.id, true)),
        ("claims no name", make(&["-sha256", "-addext", "subjectAltName=DNS:a.example"])),
        ("critical extension", make(&["-sha256", "-addext", "1.2.3.4=critical,DER:0500"])),
        ("P-256 key signs with", make(&["-sha384"])),
        ("3072 are the least", of("rsa2048", RSA2048, &["-sha256"])),
        ("SHA-256 only", of("rsa3072", RSA3072, &["-sha512"])),
        ("curve", of("p521", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"], &["-sha256"])),
        ("challengePassword", with_challenge(&stage)),
    ];
    let token = stage.token();
    for (why, body) in &refused {
        let answer = enroll(mis, &anonymous, Some(&token), body);
        assert_eq!(answer.status(), 400, "{why}: {body}");
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8", "{why}");
        let words = answer.text().unwrap();
        assert!(words.contains(why), "{why}: {words}");
    }
    let url = format!("{}/simpleenroll", mis.est_url());
    for kind in ["application/pkcs7-mime", "application/pkcs10; charset=utf-8", "text/plain", ""] {
        assert_eq!(post_to(&url, &anonymous, Some(&token), kind, &line).status(), 415, "{kind:?}");
    }
    // White space anywhere is passed over, and so is a header that says something else.
    let odd = format!("  {}\r\n\t{} \n", &line[..63], &line[63..]);
    let request = anonymous.post(&url).header("content-type", "Application/PKCS10");
    let request = request.header("content-transfer-encoding", "8bit").body(odd);
    assert_eq!(request.basic_auth(&token.username, Some(&token.secret)).send().unwrap().status(), 200);

    // Other keys of X45.
    for (name, kind, options) in [
        ("p384", P384, &["-sha384"][..]),
        ("ed25519", &["-algorithm", "ED25519"], &[]),
        ("pss", RSA3072, PSS),
        ("pkcs1", RSA3072, &["-sha256"]),
    ] {
        let csr = of(name, kind, options);
        assert_eq!(enroll(mis, &anonymous, Some(&stage.token()), &csr).status(), 200, "{name}");
    }
    // As general clients send it, where the operator permits that; the names count for nothing.
    mis.policy(|policy| policy.est.names_in_csr = true);
    let csr = STANDARD.encode(csr_der(&stage.key, &["-sha256"]));
    let leaf = answer_of(enroll(mis, &anonymous, Some(&stage.token()), &csr));
    let text = text_of(&stage.chain(&leaf, "named"));
    assert!(text.contains(&format!("URI:{}", stage.id)) && !text.contains("ignored"), "{text}");
}

#[test]
fn other_operations_and_methods_are_not_there() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    for operation in ["csrattrs", "fullcmc", "serverkeygen", "", "cacerts/"] {
        assert_eq!(get(mis, &anonymous, operation).status(), 404, "{operation}");
    }
    let other = format!("{}/.well-known/est/other/cacerts", mis.url());
    assert_eq!(anonymous.get(other).send().unwrap().status(), 404);
    let own = format!("{}/.well-known/est/cacerts", mis.url());
    assert_eq!(anonymous.get(own).send().unwrap().status(), 200, "without a label");
    for (answer, allow) in [
        (post(mis, &anonymous, "cacerts", None, ""), "GET, HEAD"),
        (get(mis, &anonymous, "simpleenroll"), "POST"),
        (get(mis, &anonymous, "simplereenroll"), "POST"),
    ] {
        assert_eq!(answer.status(), 405);
        assert_eq!(answer.headers()["allow"], allow);
    }
}

#[test]
fn renewal_repeats_the_names_of_the_svid() {
    let stage = stage();
    let mis = stage.mis();
    let chain = stage.enrolled();
    let own = client(mis, Some((&chain, &stage.key)));
    let renew = |csr: &str| post(mis, &own, "simplereenroll", None, csr);
    let renewed = stage.chain(&answer_of(renew(&stage.renewal(true))), "renewed");
    assert!(reaches_the_bundle(&stage, &renewed));
    assert!(text_of(&renewed).contains(&format!("URI:{}", stage.id)));
    assert_eq!(stage.violations(), []);
    assert!(matches!(mis.est().record()[1].authorization, Authorization::Svid(_)));

    for (what, csr) in [
        ("no names", stage.csr.clone()),
        ("other SAN", renewal_csr(&stage.key, &mis.est().client_id("w1", "c2"), true)),
        ("a subject", STANDARD.encode(csr_der(&stage.key, &["-sha256"]))),
    ] {
        assert_eq!(renew(&csr).status(), 403, "{what}");
    }
    assert_eq!(renew(&stage.renewal(false)).status(), 200);
    assert_eq!(stage.violations(), [Violation::SanCriticality]);
    mis.policy(|policy| policy.est.compare_names = false);
    let other = renewal_csr(&stage.key, &mis.est().client_id("w1", "c2"), true);
    let leaf = stage.chain(&answer_of(renew(&other)), "overridden");
    assert!(text_of(&leaf).contains(&format!("URI:{}", stage.id)), "the SVID decides");

    // A new key, and the predecessor stays good (X72).
    let key = key(stage.dir(), "new", P256);
    let rekey = renewal_csr(&key, &stage.id, true);
    assert_eq!(renew(&rekey).status(), 200);
    assert_eq!(mis.est().alerts().len(), 1);
    mis.policy(|policy| policy.rotation_at_renewal = false);
    assert_eq!(renew(&rekey).status(), 400);
    assert_eq!(renew(&stage.renewal(true)).status(), 200);
    assert_eq!(renew("rubbish").status(), 400);
    // Withdrawing the authorization stops no renewal (X41).
    let Authorization::Token(user) = &mis.est().record()[0].authorization else { panic!() };
    mis.est().invalidate(user).unwrap();
    assert_eq!(renew(&stage.renewal(true)).status(), 200);
}

#[test]
fn renewal_accepts_good_svids_only() {
    let stage = stage();
    let mis = stage.mis();
    let est = mis.est();
    let chain = stage.enrolled();
    let csr = stage.renewal(true);
    let renew = |client: &Client| post(mis, client, "simplereenroll", None, &csr).status().as_u16();
    let own = client(mis, Some((&chain, &stage.key)));
    assert_eq!(renew(&own), 200);
    assert_eq!(renew(&client(mis, None)), 403);
    assert_eq!(renew(&factory(mis)), 403);

    // The leaf without its intermediate.
    let leaf = stage.dir().join("leaf.pem");
    let text = fs::read_to_string(&chain).unwrap();
    fs::write(&leaf, text.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap()).unwrap();
    assert_eq!(renew(&client(mis, Some((&leaf, &stage.key)))), 403);

    // Of another domain.
    est.add_domain("b", "b.example").unwrap();
    let url = format!("{}/simplereenroll", est.url_of("b"));
    assert_eq!(post_to(&url, &own, None, PKCS10, &csr).status(), 403);

    // A minted one does, and no device's.
    let (minted, key) = mis.mint_wfm_client("w1", "c1").unwrap();
    let minted_client = client(mis, Some((&minted, &key)));
    assert_eq!(renew(&minted_client), 200);
    est.revoke_certificate(&minted).unwrap();
    assert_eq!(renew(&minted_client), 403);
    let device = format!("spiffe://{}/margo/device/7", mis.trust_domain());
    let spec = MintSpec { faults: vec![SvidFault::SpiffeId(device)], ..MintSpec::new(stage.id.clone()) };
    let (device, key) = mis.mint_files("device", &spec).unwrap();
    assert_eq!(renew(&client(mis, Some((&device, &key)))), 403);

    est.suspend(&stage.id).unwrap();
    assert_eq!(renew(&own), 403);
    est.reinstate(&stage.id).unwrap();
    assert_eq!(renew(&own), 200);
    assert!(est.revoke(&stage.id).unwrap() >= 2);
    assert_eq!(renew(&own), 403);

    let fresh = client(mis, Some((&stage.enrolled(), &stage.key)));
    assert_eq!(renew(&fresh), 200);
    est.advance(Duration::from_secs(86_401));
    assert_eq!(renew(&fresh), 403, "expired");
}

#[test]
fn withdrawn_authorization_stops_no_renewal() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let token = stage.token();
    let leaf = answer_of(enroll(mis, &anonymous, Some(&token), &stage.csr));
    let chain = stage.chain(&leaf, "svid");
    mis.est().invalidate(&token.username).unwrap();
    assert_eq!(enroll(mis, &anonymous, Some(&token), &stage.csr).status(), 401);
    // The first SVID is valid still, and stays so: that is no reason to refuse another.
    let svid = client(mis, Some((&chain, &stage.key)));
    for _ in 0..2 {
        assert_eq!(post(mis, &svid, "simplereenroll", None, &stage.renewal(true)).status(), 200);
    }
}

#[test]
fn credentials_at_the_wrong_place_are_recorded() {
    let stage = stage();
    let mis = stage.mis();
    let chain = stage.enrolled();
    let shows = || client(mis, Some((&chain, &stage.key)));
    let token = stage.token();

    let answer = enroll(mis, &shows(), Some(&token), &stage.csr);
    assert_eq!(answer.status(), 400, "which form is it?");
    assert_eq!(enroll(mis, &shows(), None, &stage.csr).status(), 401);
    let renewal = stage.renewal(true);
    assert_eq!(post(mis, &shows(), "simplereenroll", Some(&token), &renewal).status(), 200);
    assert_eq!(get(mis, &shows(), "cacerts").status(), 200);
    let url = format!("{}/cacerts", mis.est_url());
    let answer = client(mis, None).get(url).basic_auth(&token.username, Some(&token.secret)).send().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        stage.violations(),
        [
            Violation::CertificateWithToken,
            Violation::SvidAtEnrollment,
            Violation::AuthorizationAtReenroll,
            Violation::CertificateAtCaCerts,
            Violation::AuthorizationAtCaCerts,
        ]
    );
    let journal = mis.journal();
    let last = journal.last().unwrap();
    assert!(last.authorization && last.client_leaf_sha256.is_none());
    let renewed = &journal[journal.len() - 3];
    assert_eq!(renewed.client, ClientKind::Svid);
    assert_eq!(renewed.client_spiffe_id.as_ref(), Some(&stage.id));
    assert_eq!(renewed.client_leaf_sha256.as_ref(), Some(&mis.est().record()[0].certificate_sha256));
}

#[test]
fn shared_connections_are_recorded() {
    let stage = stage();
    let mis = stage.mis();
    let shared = client(mis, None);
    shared.get(mis.discovery_url()).send().unwrap().bytes().unwrap();
    shared.get(mis.discovery_url()).send().unwrap().bytes().unwrap();
    assert_eq!(stage.violations(), []);
    answer_of(get(mis, &shared, "cacerts"));
    answer_of(enroll(mis, &shared, Some(&stage.token()), &stage.csr));
    assert_eq!(stage.violations(), [Violation::SharedConnection; 2]);
    let numbers: Vec<_> = mis.journal().iter().map(|entry| entry.connection).collect();
    assert_eq!(numbers, [0; 4]);
    answer_of(get(mis, &client(mis, None), "cacerts"));
    assert_eq!(mis.journal()[4].connection, 1);
    assert_eq!(mis.connections().len(), 2);
}

#[test]
fn review_holds_until_the_release() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let est = mis.est();
    est.hold(&stage.id).unwrap();
    let token = stage.token();
    let ask = |csr: &str| enroll(mis, &anonymous, Some(&token), csr);
    let answer = ask(&stage.csr);
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (202, "300"));
    let other = first(&key(stage.dir(), "other", P256));
    assert_eq!(ask(&other).status(), 401, "the token is bound to the key that waits");
    est.advance(30 * MINUTE);
    assert_eq!(ask(&stage.csr).status(), 202, "as long as it is held");
    let [held] = &est.held()[..] else { panic!("{:?}", est.held()) };
    assert_eq!(Some(&held.key_sha256), mis.journal()[0].csr_spki_sha256.as_ref());
    est.release(&stage.id).unwrap();
    assert_eq!(est.held(), []);
    assert_eq!(ask(&stage.csr).status(), 200);
    // The token expires while another enrollment is held.
    mis.policy(|policy| policy.est.review = true);
    let second = est.token(&est.client_id("w1", "c2"));
    assert_eq!(enroll(mis, &anonymous, Some(&second), &other).status(), 202);
    est.advance(60 * MINUTE);
    assert_eq!(enroll(mis, &anonymous, Some(&second), &other).status(), 401);
}

#[test]
fn attempts_are_limited() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let hour = Duration::from_secs(3600);
    mis.policy(|policy| policy.est.attempts = Some(Limit { successes: 3, window: hour }));
    let guess = Token { username: "user".to_owned(), secret: "guess".to_owned() };
    for _ in 0..3 {
        assert_eq!(enroll(mis, &anonymous, Some(&guess), &stage.csr).status(), 401);
    }
    let answer = enroll(mis, &anonymous, Some(&guess), &stage.csr);
    assert_eq!(answer.status(), 429);
    let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3000..=3601).contains(&wait), "{wait}");
    assert_eq!(enroll(mis, &anonymous, Some(&stage.token()), &stage.csr).status(), 200);
}

#[test]
fn ordered_answers_come_in_order() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let token = stage.token();
    let date = Duration::from_secs(7200);
    let faults = [
        Fault::Held(RetryAfter::Absent),
        Fault::Held(RetryAfter::Seconds(7)),
        Fault::Held(RetryAfter::DateIn(date)),
        Fault::too_many(&RetryAfter::Absent),
        Fault::too_many(&RetryAfter::Raw("soon".to_owned())),
        Fault::answer(503, &[("content-type", "text/html")], "<html>"),
        Fault::answer(400, &[], "{}"),
        Fault::Together(vec![
            Fault::Header("content-type", "text/html".to_owned()),
            Fault::Header("content-transfer-encoding", "base64".to_owned()),
        ]),
    ];
    for fault in faults {
        mis.fault(Endpoint::EstEnroll, fault);
    }
    let mut answers = Vec::new();
    while mis.waiting_faults() > 0 {
        let answer = enroll(mis, &anonymous, Some(&token), &stage.csr);
        let retry = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        answers.push((answer.status().as_u16(), retry));
        if answers.len() == 8 {
            assert_eq!(answer.headers()["content-type"], "text/html");
            assert_eq!(answer.headers()["content-transfer-encoding"], "base64");
        }
    }
    let date = answers[2].1.take().unwrap();
    assert!(date.ends_with(" GMT"), "{date}");
    let seen: Vec<_> = answers.iter().map(|(status, retry)| (*status, retry.as_deref())).collect();
    assert_eq!(
        seen,
        [
            (202, None),
            (202, Some("7")),
            (202, None),
            (429, None),
            (429, Some("soon")),
            (503, None),
            (400, None),
            (200, None)
        ]
    );
    let bad = Token { secret: "wrong".to_owned(), ..token };
    mis.fault(Endpoint::EstEnroll, Fault::Held(RetryAfter::Absent));
    assert_eq!(enroll(mis, &anonymous, Some(&bad), &stage.csr).status(), 401, "only good ones are held");
}

#[test]
fn bare_response_has_no_length_and_no_end() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let held = Fault::Held(RetryAfter::Seconds(60));
    mis.fault(Endpoint::EstEnroll, Fault::Together(vec![held, Fault::Bare]));
    let answer = enroll(mis, &anonymous, Some(&stage.token()), &stage.csr);
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["retry-after"], "60");
    for name in ["content-length", "content-type", "transfer-encoding"] {
        assert!(!answer.headers().contains_key(name), "{name}");
    }
    assert!(!mis.connections()[0].ended);
    drop(answer); // without its body: it never ends
    let ended = |all: &[development_mis::Connection<ClientKind>]| all[0].ended;
    assert!(mis.wait_for_connections(2 * MINUTE, ended).is_some());
}

#[test]
fn truncated_response_is_an_error_and_a_consumed_token() {
    let stage = stage();
    let mis = stage.mis();
    mis.fault(Endpoint::EstEnroll, Fault::Truncated(100));
    let answer = enroll(mis, &client(mis, None), Some(&stage.token()), &stage.csr);
    assert_eq!(answer.status(), 200);
    assert!(answer.content_length().unwrap() > 100);
    assert!(answer.bytes().is_err());
    assert_eq!(mis.est().record().len(), 1);
}

#[test]
fn resumption_is_offered_on_order_and_seen() {
    for offered in [false, true] {
        let stage = stage_with(|settings| settings.offer_resumption = offered);
        let mis = stage.mis();
        let resuming = client(mis, None);
        for _ in 0..2 {
            let url = format!("{}/cacerts", mis.est_url());
            resuming.get(url).header("connection", "close").send().unwrap().bytes().unwrap();
        }
        let resumed: Vec<_> = mis.connections().iter().map(|connection| connection.resumed).collect();
        assert_eq!(resumed, [false, offered]);
    }
}

#[test]
fn forms_of_base64_are_refused_on_order() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let lines: String = stage
        .csr
        .as_bytes()
        .chunks(64)
        .fold(String::new(), |text, line| text + std::str::from_utf8(line).unwrap() + "\n");
    let token = stage.token();
    let status = |body: &str| enroll(mis, &anonymous, Some(&token), body).status().as_u16();
    mis.sticky_fault(Endpoint::EstEnroll, Fault::Est(EstFault::RefuseLines));
    assert_eq!((status(&lines), status(&stage.csr), status(&format!("{}\n", stage.csr))), (400, 200, 200));
    mis.sticky_fault(Endpoint::EstEnroll, Fault::Est(EstFault::RefuseOneLine));
    assert_eq!((status(&lines), status(&stage.csr), status(&format!("{}\n", stage.csr))), (200, 400, 400));
}

#[test]
fn odd_responses_are_made_on_order() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let token = stage.token();
    let ask = |fault: EstFault| {
        mis.fault(Endpoint::EstEnroll, Fault::Est(fault));
        let answer = enroll(mis, &anonymous, Some(&token), &stage.csr);
        assert_eq!(answer.status(), 200);
        answer.bytes().unwrap().to_vec()
    };
    let count = |body: Vec<u8>| certificates(&der_of(&body)).len();
    assert_eq!(count(ask(EstFault::ChainInAnswer)), 2);
    assert_eq!(count(ask(EstFault::LeafTwice)), 2);
    assert_eq!(count(ask(EstFault::SecondLeaf)), 2);
    assert_eq!(count(ask(EstFault::NoCertificate)), 0);
    assert_eq!(count(ask(EstFault::EmptyCrls)), 1);
    let crl = der_of(&ask(EstFault::Crl));
    let file = stage.dir().join("crl.p7");
    fs::write(&file, crl).unwrap();
    let text = openssl(&["pkcs7", "-inform", "DER", "-print_certs", "-in", file.to_str().unwrap()]);
    assert!(String::from_utf8(text).unwrap().contains("BEGIN X509 CRL"));
    let ber = der_of(&ask(EstFault::Ber));
    assert_eq!(&ber[..2], &[0x30, 0x80]);
    assert!(ber.ends_with(&[0; 6]));
    assert_eq!(certificates(&ber).len(), 1);
    let other = der_of(&ask(EstFault::OtherElement));
    assert!(other.windows(7).any(|bytes| bytes == [0xa3, 0x07, 0x06, 0x03, 0x55, 0x04, 0x03]));

    let body = ask(EstFault::Lines64);
    assert!(body.ends_with(b"\n") && !body.contains(&b'\r'));
    assert_eq!(body.split(|byte| *byte == b'\n').next().unwrap().len(), 64);
    assert_eq!(count(body), 1);
    let body = ask(EstFault::Lines76);
    assert_eq!(body.split(|byte| *byte == b'\n').next().unwrap().len(), 77);
    assert_eq!(count(body), 1);
    assert!(ask(EstFault::Pem).starts_with(b"-----BEGIN PKCS7-----\n"));
    assert_eq!(certificates(&ask(EstFault::RawDer)).len(), 1);
    assert!(ask(EstFault::TrailingText("\0".to_owned())).ends_with(b"\0"));
    assert!(der_of(&ask(EstFault::TrailingBytes(vec![0, 1]))).ends_with(&[0, 1]));
    let file = stage.dir().join("bare.der");
    fs::write(&file, der_of(&ask(EstFault::BareCertificate))).unwrap();
    openssl(&["x509", "-inform", "DER", "-noout", "-in", file.to_str().unwrap()]);
}

#[test]
fn wrong_leaves_are_issued_on_order() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let token = stage.token();
    let other = mis.est().client_id("w1", "c2");
    let year = Duration::from_secs(366 * 86_400);
    for (fault, wanted) in [
        (SvidFault::SpiffeId(other.clone()), format!("URI:{other}\n")),
        (SvidFault::TwoUriSans, format!("URI:{}, URI:", stage.id)),
        (SvidFault::SanNotCritical, "X509v3 Subject Alternative Name: \n".to_owned()),
        (SvidFault::Subject("c1".to_owned()), "CN=c1".to_owned()),
    ] {
        mis.fault(Endpoint::EstEnroll, Fault::Svid(fault));
        let leaf = answer_of(enroll(mis, &anonymous, Some(&token), &stage.csr));
        let text = text_of(&stage.chain(&leaf, "leaf"));
        assert!(text.contains(&wanted), "{wanted:?}: {text}");
    }
    for (fault, lasts) in [(SvidFault::Lifetime(year), Some("31536000")), (SvidFault::Expired, None)] {
        mis.fault(Endpoint::EstEnroll, Fault::Svid(fault));
        let leaf = answer_of(enroll(mis, &anonymous, Some(&token), &stage.csr));
        let chain = stage.chain(&leaf, "leaf");
        let seconds = lasts.unwrap_or("0");
        let check = ["x509", "-noout", "-checkend", seconds, "-in", chain.to_str().unwrap()];
        assert_eq!(Command::new("openssl").args(check).output().unwrap().status.success(), lasts.is_some());
    }
    mis.fault(Endpoint::EstEnroll, Fault::Svid(SvidFault::OtherKey));
    let leaf = answer_of(enroll(mis, &anonymous, Some(&token), &stage.csr));
    let chain = stage.chain(&leaf, "leaf");
    let key = openssl(&["x509", "-noout", "-pubkey", "-in", chain.to_str().unwrap()]);
    assert_ne!(key, openssl(&["pkey", "-pubout", "-in", stage.key.to_str().unwrap()]));
}

#[test]
fn ca_certificates_vary_on_order() {
    let stage = stage();
    let mis = stage.mis();
    let bag = |fault: EstFault| {
        mis.fault(Endpoint::EstCaCerts, Fault::Est(fault));
        ca_certs(mis)
    };
    let strict = ca_certs(mis);
    assert_eq!(strict.len(), 2);
    assert_eq!(strict.iter().filter(|one| one.subject == one.issuer).count(), 1);
    let issuer = strict.iter().find(|one| one.subject != one.issuer).unwrap();
    assert!(bag(EstFault::WithoutRoot).iter().all(|one| one.subject != one.issuer));
    assert!(bag(EstFault::WithoutIntermediates).iter().all(|one| one.subject == one.issuer));
    assert!(bag(EstFault::Decoy).iter().any(|one| one.subject.contains("Decoy")));
    let twins = bag(EstFault::ExpiredTwin);
    let ended = |one: &Certificate| {
        let file = stage.dir().join("twin.pem");
        fs::write(&file, &one.pem).unwrap();
        let check = ["x509", "-noout", "-checkend", "0", "-in", file.to_str().unwrap()];
        !Command::new("openssl").args(check).output().unwrap().status.success()
    };
    let twins: Vec<_> = twins.iter().filter(|one| one.subject == issuer.subject).collect();
    assert_eq!((twins.len(), twins.iter().filter(|one| ended(one)).count()), (2, 1));
    let many = bag(EstFault::ManyTwins(40));
    assert_eq!(many.iter().filter(|one| one.subject == issuer.subject).count(), 41);
    let mut orders = std::collections::BTreeSet::new();
    for _ in 0..40 {
        orders.insert(bag(EstFault::Shuffled).iter().map(|one| one.subject.clone()).collect::<Vec<_>>());
    }
    assert_eq!(orders.len(), 2);
}

#[test]
fn root_that_was_rolled_over_carries_the_path() {
    let stage = stage();
    let mis = stage.mis();
    let before = stage.enrolled();
    assert!(reaches_the_bundle(&stage, &before));
    mis.est().roll_over().unwrap();
    assert!(!reaches_the_bundle(&stage, &before), "the new root alone is an anchor");
    // Leaf, intermediate, and the self-issued OldWithNew.
    let bag = ca_certs(mis);
    assert_eq!(bag.len(), 5);
    let text =
        fs::read_to_string(&before).unwrap() + &bag.iter().map(|one| one.pem.as_str()).collect::<String>();
    let with = stage.dir().join("with.pem");
    fs::write(&with, &text).unwrap();
    assert!(reaches_the_bundle(&stage, &with));
    let own = client(mis, Some((&with, &stage.key)));
    assert_eq!(post(mis, &own, "simplereenroll", None, &stage.renewal(true)).status(), 200);
}

#[test]
fn intermediates_of_an_old_anchor_stay_in_the_bag() {
    let stage = stage();
    let before = stage.enrolled();
    stage.mis().rotate_anchors(development_mis::AnchorStep::Switch).unwrap();
    assert_eq!(ca_certs(stage.mis()).len(), 4);
    let own = client(stage.mis(), Some((&before, &stage.key)));
    let renewed = answer_of(post(stage.mis(), &own, "simplereenroll", None, &stage.renewal(true)));
    assert!(renewed[0].issuer.contains("EST issuer 2.1"), "{renewed:?}");
}

#[test]
fn discovery_names_the_endpoint() {
    let stage = stage();
    let mis = stage.mis();
    let document = || -> Value { client(mis, None).get(mis.discovery_url()).send().unwrap().json().unwrap() };
    let members = |document: &Value| document.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(document().get("estBaseUri").is_none());
    mis.policy(|policy| {
        policy.documents = Documents::Released;
        policy.est.base_uri = EstBaseUri::Own;
        policy.est.crl_uris = Some(vec!["http://crl.example/1".to_owned()]);
    });
    let named = document();
    assert_eq!(members(&named), ["crlUris", "estBaseUri", "trustBundleUri", "trustDomain"]);
    assert_eq!(named["estBaseUri"], mis.est_url());
    assert_eq!(named["crlUris"][0], "http://crl.example/1");
    assert!(mis.est_url().ends_with("/.well-known/est/factory.example"));
    mis.policy(|policy| {
        policy.est.base_uri = EstBaseUri::Other("https://other.example/est".to_owned());
        policy.est.crl_uris = None;
    });
    assert_eq!(document()["estBaseUri"], "https://other.example/est");
    assert_eq!(members(&document()), ["estBaseUri", "trustBundleUri", "trustDomain"]);
    assert_eq!(enroll(mis, &client(mis, None), Some(&stage.token()), &stage.csr).status(), 200);
}

#[test]
fn tls_switches_are_obeyed() {
    let stage = stage();
    let mis = stage.mis();
    let url = format!("{}/cacerts", mis.est_url());
    mis.policy(|policy| policy.tls12_only = true);
    assert!(client(mis, None).get(&url).send().is_err(), "the client has 1.3 only");
    let speaks = |version: &str| {
        let address = format!("127.0.0.1:{}", mis.port());
        let arguments = ["s_client", "-connect", &address, version];
        let output =
            Command::new("openssl").args(arguments).stdin(std::process::Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text.contains("No client certificate CA names sent"))
    };
    assert_eq!((speaks("-tls1_2").0, speaks("-tls1_3").0), (true, false));
    mis.policy(|policy| policy.tls12_only = false);
    assert_eq!((speaks("-tls1_2").0, speaks("-tls1_3").0), (false, true));

    mis.policy(|policy| policy.client_certificates = ClientCertificates::NotRequested);
    assert_eq!(factory(mis).get(&url).send().unwrap().status(), 200);
    assert_eq!(mis.journal().last().unwrap().client, ClientKind::None, "it was not asked for one");
    mis.policy(|policy| policy.client_certificates = ClientCertificates::Required);
    assert!(client(mis, None).get(&url).send().is_err());
    assert_eq!(factory(mis).get(&url).send().unwrap().status(), 200);
}

#[test]
fn domains_are_apart() {
    let stage = stage();
    let (mis, anonymous) = (stage.mis(), client(stage.mis(), None));
    let est = mis.est();
    est.add_domain("b", "b.example").unwrap();
    est.add_domain("b", "b.example").unwrap();
    assert!(est.add_domain("b", "c.example").is_err());
    assert!(est.add_domain("a/b", "c.example").is_err());
    let id = "spiffe://b.example/margo/wfm/w1/client/c1";
    let token = est.token(id);
    assert_eq!(enroll(mis, &anonymous, Some(&token), &stage.csr).status(), 401, "of another domain");
    let url = format!("{}/simpleenroll", est.url_of("b"));
    let leaf = answer_of(post_to(&url, &anonymous, Some(&token), PKCS10, &stage.csr));
    assert!(leaf[0].issuer.contains("EST issuer"), "{leaf:?}");
    let bag = anonymous.get(format!("{}/cacerts", est.url_of("b"))).send().unwrap();
    let bag = answer_of(bag);
    let chain = stage.dir().join("b.pem");
    fs::write(&chain, leaf.iter().chain(&bag).map(|one| one.pem.as_str()).collect::<String>()).unwrap();
    assert!(!reaches_the_bundle(&stage, &chain));
    let bundle: Value = serde_json::from_str(&est.bundle_of("b").unwrap()).unwrap();
    let anchor = STANDARD.decode(bundle["keys"][0]["x5c"][0].as_str().unwrap()).unwrap();
    let root = bag.iter().find(|one| one.subject == one.issuer).unwrap();
    assert!(
        root.pem.lines().filter(|line| !line.starts_with('-')).collect::<String>() == STANDARD.encode(anchor)
    );
}

#[test]
fn names_of_margo_are_issued_only() {
    let stage = stage();
    let est = stage.mis().est();
    let token = |id: &str| est.token_with(&TokenSpec::new(id));
    let device = "spiffe://factory.example/margo/device/c0a8a0a0-0000-4000-8000-000000000001";
    assert!(token("spiffe://factory.example/margo/wfm/w1").is_ok());
    for id in [
        device,
        "spiffe://factory.example",
        "spiffe://factory.example/margo/wfm/w1/client/",
        "spiffe://factory.example/margo/wfm/w1/client/a/b",
        "spiffe://factory.example/other",
        "spiffe://other.example/margo/wfm/w1",
        "https://factory.example/margo/wfm/w1",
    ] {
        assert!(token(id).is_err(), "{id}");
    }
    stage.mis().policy(|policy| policy.est.device_ids = true);
    assert!(token(device).is_ok());
    let twice = TokenSpec { username: Some("one".to_owned()), ..TokenSpec::new(&stage.id) };
    assert!(est.token_with(&twice).is_ok() && est.token_with(&twice).is_err());
}

#[test]
fn admin_socket_does_what_the_handle_does() {
    let stage = stage();
    let mis = stage.mis();
    let ask = |request: Value| development_mis::ask(mis.directory(), &request.to_string());
    let id = stage.id.as_str();
    let made = ask(serde_json::json!({"command": "token", "spiffeId": id})).unwrap();
    let text = |member: &str| made[member].as_str().unwrap().to_owned();
    let token = Token { username: text("username"), secret: text("secret") };
    assert_eq!(enroll(mis, &client(mis, None), Some(&token), &stage.csr).status(), 200);
    let record = ask(serde_json::json!({"command": "record"})).unwrap();
    assert_eq!(record["issued"][0]["spiffeId"], id);
    assert_eq!(record["issued"][0]["authorization"]["token"], token.username);
    for request in [
        serde_json::json!({"command": "invalidate", "username": token.username}),
        serde_json::json!({"command": "authorize", "certificate": mis.factory_cert(), "spiffeId": id}),
        serde_json::json!({"command": "withdraw", "certificate": mis.factory_cert()}),
        serde_json::json!({"command": "hold", "spiffeId": id}),
        serde_json::json!({"command": "held"}),
        serde_json::json!({"command": "release", "spiffeId": id}),
        serde_json::json!({"command": "suspend", "spiffeId": id}),
        serde_json::json!({"command": "reinstate", "spiffeId": id}),
        serde_json::json!({"command": "revoke", "spiffeId": id}),
        serde_json::json!({"command": "alerts"}),
        serde_json::json!({"command": "violations"}),
        serde_json::json!({"command": "advance", "seconds": 1}),
        serde_json::json!({"command": "add-domain", "label": "b", "trustDomain": "b.example"}),
    ] {
        ask(request.clone()).unwrap_or_else(|error| panic!("{request}: {error}"));
    }
    assert!(mis.est().record()[0].revoked);
    for request in [
        serde_json::json!({"command": "token", "spiffeId": "spiffe://other.example/margo/wfm/w1"}),
        serde_json::json!({"command": "record", "more": 1}),
        serde_json::json!({"command": "unknown"}),
        serde_json::json!([]),
    ] {
        assert!(ask(request.clone()).is_err(), "{request}");
    }
    let socket = mis.directory().join(development_mis::ADMIN_SOCKET);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
