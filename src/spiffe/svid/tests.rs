//! One good answer of an MIS, and every way to spoil it that the rules name. Each story bends one thing and says how it
//! must end: with the one reason that fits, or well.

mod forge;

use serde_json::json;
use webpki::Error as PathError;

use super::*;
use forge::*;

const NOW: i64 = 1_750_000_000;
const MINUTE: i64 = 60;
const DAY: i64 = 24 * 3600;
const DEVICE_ID: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
const NOT_VERSION_4_ID: &str = "spiffe://factory.example/margo/device/123e4567-e89b-12d3-a456-426614174000";
const SIBLING_ID: &str = "spiffe://factory.example/margo/device/00000000-e89b-42d3-a456-426614174000";

/// What the MIS answers and what the device knows when it does.
struct Answer {
    leaf: Template,
    /// Who issued it, up to the root.
    issuers: Vec<Template>,
    /// Whether the root is part of the answer.
    with_root: bool,
    /// More certificates at the end of the answer.
    appended: Vec<Vec<u8>>,
    /// A last change to the PEM texts.
    rewritten: fn(&mut Vec<String>),
    /// The trust bundle, where it is not the root alone.
    bundle: Option<Vec<Vec<u8>>>,
    /// Who the device is, at renewal.
    renewing: Option<&'static str>,
    now: Timestamp,
}

/// A root that signed the leaf.
fn direct() -> Answer {
    let mut leaf = Template::new(no_name(), &DEVICE, NOW - MINUTE, NOW + DAY);
    leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(false, None));
    leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE));
    leaf.set(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH, CLIENT_AUTH]));
    leaf.set(SUBJECT_ALT_NAME, true, names(&[uri(DEVICE_ID)]));
    Answer {
        leaf,
        issuers: vec![authority("Root", &ROOT)],
        with_root: false,
        appended: Vec::new(),
        rewritten: |_| {},
        bundle: None,
        renewing: None,
        now: Timestamp::from_secs(NOW),
    }
}

/// A root, an intermediate, and the leaf below it.
fn with_intermediate() -> Answer {
    let mut answer = direct();
    answer.issuers.insert(0, authority("Intermediate", &INTERMEDIATE));
    answer
}

fn authority(common_name: &str, key: &'static Key) -> Template {
    let mut ca = Template::new(name(common_name), key, NOW - 30 * DAY, NOW + 365 * DAY);
    ca.set(BASIC_CONSTRAINTS, true, basic_constraints(true, None));
    ca.set(KEY_USAGE, true, usages(KEY_CERT_SIGN | CRL_SIGN));
    ca
}

fn self_signed(ca: &Template) -> Vec<u8> {
    ca.certify(ca)
}

fn bundle_of(anchors: &[Vec<u8>]) -> Bundle {
    let jwk = |der| json!({ "kty": "EC", "use": "x509-svid", "x5c": [BASE64.encode(der)] });
    let keys: Vec<_> = anchors.iter().map(jwk).collect();
    Bundle::from_served(json!({ "keys": keys }).to_string().as_bytes(), &domain()).unwrap()
}

fn domain() -> TrustDomain {
    TrustDomain::parse("factory.example").unwrap()
}

fn id(uri: &str) -> SpiffeId {
    SpiffeId::parse(uri).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_secs(seconds)
}

impl Answer {
    fn root(&mut self) -> &mut Template {
        self.issuers.last_mut().unwrap()
    }

    fn intermediate(&mut self) -> &mut Template {
        assert!(self.issuers.len() > 1, "this answer has no intermediate");
        &mut self.issuers[0]
    }

    fn certificates(&self) -> Vec<Vec<u8>> {
        let below_root = std::iter::once(&self.leaf).chain(&self.issuers).zip(&self.issuers);
        let mut chain: Vec<_> = below_root.map(|(subject, issuer)| subject.certify(issuer)).collect();
        if self.with_root {
            chain.extend(self.issuers.last().map(self_signed));
        }
        chain.extend(self.appended.clone());
        chain
    }

    fn pems(&self) -> Vec<String> {
        let mut pems: Vec<_> =
            self.certificates().into_iter().map(|der| certificate_pem(&CertificateDer::from(der))).collect();
        (self.rewritten)(&mut pems);
        pems
    }

    fn judged(&self) -> Result<X509Svid, Rejection> {
        let anchors = self.bundle.clone();
        let anchors = anchors.unwrap_or_else(|| self.issuers.last().map(self_signed).into_iter().collect());
        let (domain, renewing) = (domain(), self.renewing.map(id));
        let expected = Expectation {
            trust_domain: &domain,
            spiffe_id: renewing.as_ref(),
            spki_der: &self.leaf.key.spki,
        };
        judge(&Chain::from_pem(&self.pems())?, &expected, &bundle_of(&anchors), self.now)
    }
}

type Story<Outcome> = (&'static str, fn(&mut Answer), Outcome);

fn each_is_refused(good: fn() -> Answer, stories: Vec<Story<Rejection>>) {
    assert!(good().judged().is_ok(), "before it is bent, the answer is a good one");
    let wrong: Vec<_> = stories
        .into_iter()
        .filter_map(|(story, bend, why)| {
            let mut answer = good();
            bend(&mut answer);
            let judged = answer.judged();
            (judged.as_ref() != Err(&why)).then(|| format!("{story}: {judged:?}, not {why:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn each_is_accepted(good: fn() -> Answer, stories: Vec<Story<()>>) {
    let wrong: Vec<_> = stories
        .into_iter()
        .filter_map(|(story, bend, ())| {
            let mut answer = good();
            bend(&mut answer);
            answer.judged().err().map(|why| format!("{story}: {why:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn san(answer: &mut Answer, all: &[Vec<u8>]) {
    answer.leaf.set(SUBJECT_ALT_NAME, true, names(all));
}

fn not_a_spiffe_id(uri: &str, why: SpiffeIdError) -> Rejection {
    Rejection::NotASpiffeId { uri: uri.to_owned(), why }
}

#[test]
fn a_leaf_that_does_not_name_this_one_device_is_refused() {
    use Rejection as R;
    const UPPERCASE: &str = "spiffe://factory.example/margo/device/123E4567-E89B-42D3-A456-426614174000";
    const FOREIGN: &str = "spiffe://other.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
    const SUBDOMAIN: &str = "spiffe://a.factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
    const DEEPER: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000/x";
    const PROGRAM: &str = "spiffe://factory.example/margo/wfm/123e4567-e89b-42d3-a456-426614174000";
    let foreign = |uri| R::OtherTrustDomain { got: id(uri), want: domain() };
    each_is_refused(
        direct,
        vec![
            ("no SAN", |a| a.leaf.without(SUBJECT_ALT_NAME), R::UriCount(0)),
            ("a DNS name only", |a| san(a, &[dns("device.factory.example")]), R::UriCount(0)),
            ("no name in the SAN", |a| san(a, &[]), R::UriCount(0)),
            ("two URIs", |a| san(a, &[uri(DEVICE_ID), uri(SIBLING_ID)]), R::UriCount(2)),
            ("the same URI twice", |a| san(a, &[uri(DEVICE_ID), uri(DEVICE_ID)]), R::UriCount(2)),
            (
                "a second URI whose bytes are no text",
                |a| san(a, &[uri(DEVICE_ID), uri(b"spiffe://factory.example/\xff")]),
                R::Extension,
            ),
            (
                "a second SAN behind the good one",
                |a| a.leaf.add(SUBJECT_ALT_NAME, false, names(&[uri(SIBLING_ID)])),
                R::Extension,
            ),
            (
                "bytes behind the names",
                |a| a.leaf.set(SUBJECT_ALT_NAME, true, [names(&[uri(DEVICE_ID)]), vec![5, 0]].concat()),
                R::Path(PathError::BadDer),
            ),
            ("a SAN that is no SAN", |a| a.leaf.set(SUBJECT_ALT_NAME, true, vec![5, 0]), R::Extension),
            (
                "an http URI",
                |a| san(a, &[uri("http://factory.example/margo")]),
                not_a_spiffe_id("http://factory.example/margo", SpiffeIdError::Scheme),
            ),
            (
                "a trust domain and no path",
                |a| san(a, &[uri("spiffe://factory.example")]),
                not_a_spiffe_id("spiffe://factory.example", SpiffeIdError::NoPath),
            ),
            (
                "a path and no trust domain",
                |a| san(a, &[uri("/margo/device/123e4567-e89b-42d3-a456-426614174000")]),
                not_a_spiffe_id("/margo/device/123e4567-e89b-42d3-a456-426614174000", SpiffeIdError::Scheme),
            ),
            (
                "a zero byte, where a reader in C would stop",
                |a| san(a, &[uri(format!("{DEVICE_ID}\0.example"))]),
                not_a_spiffe_id(&format!("{DEVICE_ID}\u{fffd}.example"), SpiffeIdError::PathCharacter),
            ),
            ("another domain", |a| san(a, &[uri(FOREIGN)]), foreign(FOREIGN)),
            ("a domain below this one", |a| san(a, &[uri(SUBDOMAIN)]), foreign(SUBDOMAIN)),
            ("an uppercase UUID", |a| san(a, &[uri(UPPERCASE)]), R::NotADevice(id(UPPERCASE))),
            ("a segment too many", |a| san(a, &[uri(DEEPER)]), R::NotADevice(id(DEEPER))),
            ("a path that is no device's", |a| san(a, &[uri(PROGRAM)]), R::NotADevice(id(PROGRAM))),
            (
                "a renewal for another device",
                |a| a.renewing = Some(SIBLING_ID),
                R::OtherIdentity { got: id(DEVICE_ID), want: id(SIBLING_ID) },
            ),
        ],
    );
}

#[test]
fn a_leaf_that_may_do_the_wrong_things_is_refused() {
    use Rejection as R;
    fn usage(a: &mut Answer, flags: u8) {
        a.leaf.set(KEY_USAGE, true, usages(flags));
    }
    fn purpose(a: &mut Answer, all: &[&str]) {
        a.leaf.set(EXTENDED_KEY_USAGE, false, purposes(all));
    }
    each_is_refused(
        direct,
        vec![
            (
                "cA is true",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(true, None)),
                R::CertificateAuthority,
            ),
            (
                "cA is true in a second basicConstraints",
                |a| a.leaf.add(BASIC_CONSTRAINTS, true, basic_constraints(true, None)),
                R::Extension,
            ),
            (
                "basicConstraints that cannot be read",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, sequence(&[&[5, 0]])),
                R::Path(PathError::BadDer),
            ),
            ("no keyUsage", |a| a.leaf.without(KEY_USAGE), R::NoKeyUsage),
            (
                "keyUsage that is not critical",
                |a| a.leaf.set(KEY_USAGE, false, usages(DIGITAL_SIGNATURE)),
                R::KeyUsageNotCritical,
            ),
            ("keyUsage for encipherment only", |a| usage(a, KEY_ENCIPHERMENT), R::NoDigitalSignature),
            ("keyUsage for nothing", |a| usage(a, 0), R::NoDigitalSignature),
            ("keyCertSign", |a| usage(a, DIGITAL_SIGNATURE | KEY_CERT_SIGN), R::MaySignCertificates),
            ("cRLSign", |a| usage(a, DIGITAL_SIGNATURE | CRL_SIGN), R::MaySignCertificates),
            (
                "a second keyUsage with keyCertSign",
                |a| a.leaf.add(KEY_USAGE, true, usages(KEY_CERT_SIGN)),
                R::Extension,
            ),
            (
                "a second keyUsage behind the first, in the same extension",
                |a| {
                    let both = [usages(DIGITAL_SIGNATURE), usages(KEY_CERT_SIGN)].concat();
                    a.leaf.set(KEY_USAGE, true, both);
                },
                R::Extension,
            ),
            (
                "keyCertSign hidden among the bits declared unused",
                |a| a.leaf.set(KEY_USAGE, true, vec![3, 2, 7, DIGITAL_SIGNATURE | KEY_CERT_SIGN]),
                R::Extension,
            ),
            ("a keyUsage that is no bit string", |a| a.leaf.set(KEY_USAGE, true, vec![5, 0]), R::Extension),
            ("a purpose of server only", |a| purpose(a, &[SERVER_AUTH]), R::NoClientAuth),
            ("a purpose of client only", |a| purpose(a, &[CLIENT_AUTH]), R::NoServerAuth),
            ("any purpose, but neither by name", |a| purpose(a, &[ANY_USAGE]), R::NoServerAuth),
            ("no purpose in the extension", |a| purpose(a, &[]), R::NoServerAuth),
            (
                "the missing purpose in a second extension",
                |a| {
                    purpose(a, &[CLIENT_AUTH]);
                    a.leaf.add(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH]));
                },
                R::Extension,
            ),
            (
                "purposes of which webpki reads the first and nobody the second",
                |a| {
                    let damaged = [purposes(&[CLIENT_AUTH])[2..].to_vec(), vec![6, 0x7f]].concat();
                    a.leaf.set(EXTENDED_KEY_USAGE, false, sequence(&[&damaged]));
                },
                R::Extension,
            ),
            (
                "an unknown critical extension",
                |a| a.leaf.add("1.3.6.1.4.1.99999.1", true, vec![5, 0]),
                R::Path(PathError::UnsupportedCriticalExtension),
            ),
        ],
    );
}

#[test]
fn an_svid_of_the_wrong_time_is_refused() {
    use Rejection as R;
    let (now, day_ago) = (at(NOW), at(NOW - DAY));
    each_is_refused(
        with_intermediate,
        vec![
            (
                "expired",
                |a| (a.leaf.not_before, a.leaf.not_after) = (NOW - 2 * DAY, NOW - DAY),
                R::Expired { not_after: day_ago, now },
            ),
            (
                "expired a second ago",
                |a| a.leaf.not_after = NOW - 1,
                R::Expired { not_after: at(NOW - 1), now },
            ),
            (
                "an hour early",
                |a| a.leaf.not_before = NOW + 60 * MINUTE,
                R::FarFuture { not_before: at(NOW + 60 * MINUTE), now },
            ),
            (
                "a second more than a little early",
                |a| a.leaf.not_before = NOW + 10 * MINUTE + 1,
                R::FarFuture { not_before: at(NOW + 10 * MINUTE + 1), now },
            ),
            (
                "a little early: kept for later",
                |a| a.leaf.not_before = NOW + 10 * MINUTE,
                R::NotYetValid { not_before: at(NOW + 10 * MINUTE) },
            ),
            (
                "a little early and damaged: refused now",
                |a| {
                    a.leaf.not_before = NOW + MINUTE;
                    a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1;
                },
                R::UnknownIssuer,
            ),
            (
                "dated back behind an issuer that is a little early: kept for the issuer",
                |a| a.intermediate().not_before = NOW + 2 * MINUTE,
                R::NotYetValid { not_before: at(NOW + 2 * MINUTE) },
            ),
            (
                "early, and its issuer earlier still",
                |a| {
                    a.leaf.not_before = NOW + MINUTE;
                    a.intermediate().not_before = NOW + 2 * MINUTE;
                },
                R::NotYetValid { not_before: at(NOW + 2 * MINUTE) },
            ),
            (
                "dated back behind an issuer that is an hour early",
                |a| a.intermediate().not_before = NOW + 60 * MINUTE,
                R::FarFuture { not_before: at(NOW + 60 * MINUTE), now },
            ),
            (
                "the end before the beginning",
                |a| (a.leaf.not_before, a.leaf.not_after) = (NOW + DAY, NOW - DAY),
                R::EmptyValidity { not_before: at(NOW + DAY), not_after: day_ago },
            ),
            (
                "the end at the beginning",
                |a| (a.leaf.not_before, a.leaf.not_after) = (NOW, NOW),
                R::EmptyValidity { not_before: now, not_after: now },
            ),
            (
                "an issuer that has expired",
                |a| a.intermediate().not_after = NOW - DAY,
                R::IssuerExpired { not_after: day_ago, now },
            ),
            (
                "a device whose clock stands at the beginning of time",
                |a| a.now = Timestamp::from_millis(i64::MIN),
                R::FarFuture { not_before: at(NOW - MINUTE), now: Timestamp::from_millis(i64::MIN) },
            ),
            (
                "a device whose clock stands at the end of time",
                |a| a.now = Timestamp::from_millis(i64::MAX),
                R::Expired { not_after: at(NOW + DAY), now: Timestamp::from_millis(i64::MAX) },
            ),
        ],
    );
}

#[test]
fn a_chain_that_is_not_made_of_certificates_is_refused() {
    use Rejection as R;
    const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAAwAA==\n-----END PRIVATE KEY-----\n";
    each_is_refused(
        with_intermediate,
        vec![
            ("nothing", |a| a.rewritten = Vec::clear, R::EmptyChain),
            ("nine certificates", |a| a.appended = vec![self_signed(&a.leaf); 7], R::LongChain(9)),
            ("garbage", |a| a.rewritten = |p| p[0] = "garbage".into(), R::Malformed { index: 0 }),
            ("an empty text", |a| a.rewritten = |p| p[1].clear(), R::Malformed { index: 1 }),
            ("two in one text", |a| a.rewritten = |p| p[0] = p.concat(), R::Malformed { index: 0 }),
            (
                "a private key in place of the intermediate",
                |a| a.rewritten = |p| p[1] = PRIVATE_KEY.into(),
                R::Malformed { index: 1 },
            ),
            (
                "a private key behind the certificate",
                |a| a.rewritten = |p| p[0].push_str(PRIVATE_KEY),
                R::Malformed { index: 0 },
            ),
            (
                "a text that ends in the middle",
                |a| a.rewritten = |p| p[0].truncate(200),
                R::Malformed { index: 0 },
            ),
            (
                "base64 with a character that is none",
                |a| a.rewritten = |p| p[0].replace_range(40..41, "!"),
                R::Malformed { index: 0 },
            ),
            ("bytes behind the certificate", |a| a.leaf.spoiled = |d| d.push(0), R::Malformed { index: 0 }),
            (
                "a certificate that ends early",
                |a| a.leaf.spoiled = |d| d.truncate(99),
                R::Malformed { index: 0 },
            ),
            (
                "a certificate of 70 kB",
                |a| a.leaf.add("1.3.6.1.4.1.99999.1", false, vec![0; 70_000]),
                R::Malformed { index: 0 },
            ),
            ("version 1", |a| (a.leaf.version, a.leaf.extensions) = (None, Vec::new()), R::Version),
            ("version 1 that has extensions all the same", |a| a.leaf.version = Some(0), R::Version),
            ("version 2", |a| a.leaf.version = Some(1), R::Version),
            ("version 4", |a| a.leaf.version = Some(3), R::Version),
        ],
    );
}

#[test]
fn a_chain_signed_with_another_algorithm_is_refused() {
    use Rejection as R;
    each_is_refused(
        direct,
        vec![
            ("ECDSA with SHA-384", |a| a.leaf.signed = Some(Signature::EcdsaSha384), R::Algorithm),
            (
                "a P-384 issuer",
                |a| {
                    a.root().key = &P384;
                    a.leaf.signed = Some(Signature::EcdsaSha384);
                },
                R::Algorithm,
            ),
            ("a P-384 issuer that claims SHA-256", |a| a.root().key = &P384, R::Algorithm),
            ("an Ed25519 issuer", |a| a.root().key = &ED25519, R::Algorithm),
            (
                "RSA PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256);
                },
                R::Algorithm,
            ),
            (
                "RSA-PSS with SHA-384",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(Signature::PssSha384);
                },
                R::Algorithm,
            ),
            ("an RSA issuer of 2048 bits", |a| a.root().key = &RSA_2048, R::WeakRsa(2048)),
            (
                "one algorithm inside the certificate and another outside",
                |a| a.leaf.claimed = Some(Signature::PssSha256),
                R::Path(PathError::SignatureAlgorithmMismatch),
            ),
            ("a P-384 key of the device's own", |a| a.leaf.key = &P384, R::Algorithm),
            ("an Ed25519 key of the device's own", |a| a.leaf.key = &ED25519, R::Algorithm),
            ("an RSA key of the device's own with 2048 bits", |a| a.leaf.key = &RSA_2048, R::WeakRsa(2048)),
        ],
    );
    each_is_refused(
        with_intermediate,
        vec![
            ("an intermediate of 2048 bits", |a| a.intermediate().key = &RSA_2048, R::WeakRsa(2048)),
            ("a root of 2048 bits above it", |a| a.root().key = &RSA_2048, R::WeakRsa(2048)),
            (
                "an intermediate signed with PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.intermediate().signed = Some(Signature::Pkcs1Sha256);
                },
                R::Algorithm,
            ),
            (
                "an intermediate signed with ECDSA and SHA-384",
                |a| a.intermediate().signed = Some(Signature::EcdsaSha384),
                R::Algorithm,
            ),
        ],
    );
}

#[test]
fn a_chain_that_leads_to_no_anchor_is_refused_so_that_the_bundle_is_fetched_again() {
    use Rejection as R;
    each_is_refused(
        with_intermediate,
        vec![
            ("an empty bundle", |a| a.bundle = Some(Vec::new()), R::UnknownIssuer),
            (
                "a bundle of another CA",
                |a| a.bundle = Some(vec![self_signed(&authority("Other", &OTHER))]),
                R::UnknownIssuer,
            ),
            (
                "a bundle of a CA with this name and another key",
                |a| a.bundle = Some(vec![self_signed(&authority("Root", &OTHER))]),
                R::UnknownIssuer,
            ),
            (
                "a bundle from before the CA went from RSA to ECDSA and kept its name",
                |a| a.bundle = Some(vec![self_signed(&authority("Root", &RSA_3072))]),
                R::UnknownIssuer,
            ),
            (
                "a bundle from before the CA went from ECDSA to RSA and kept its name",
                |a| {
                    a.bundle = Some(vec![self_signed(a.root())]);
                    a.root().key = &RSA_3072;
                },
                R::UnknownIssuer,
            ),
            (
                "a root that only the answer vouches for",
                |a| {
                    a.with_root = true;
                    a.bundle = Some(vec![self_signed(&authority("Other", &OTHER))]);
                },
                R::UnknownIssuer,
            ),
            ("no intermediate", |a| a.rewritten = |p| p.truncate(1), R::UnknownIssuer),
            (
                "a damaged signature",
                |a| a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1,
                R::UnknownIssuer,
            ),
            (
                "a damaged signature on the intermediate",
                |a| a.intermediate().spoiled = |der| *der.last_mut().unwrap() ^= 1,
                R::UnknownIssuer,
            ),
        ],
    );
}

#[test]
fn an_issuer_that_may_not_issue_this_leaf_is_refused() {
    use Rejection as R;
    /// A second intermediate between the leaf and the first.
    fn lengthen(answer: &mut Answer) {
        answer.issuers.insert(0, authority("Lower", &OTHER));
    }
    each_is_refused(
        with_intermediate,
        vec![
            (
                "an intermediate that is no CA",
                |a| a.intermediate().set(BASIC_CONSTRAINTS, true, basic_constraints(false, None)),
                R::Path(PathError::EndEntityUsedAsCa),
            ),
            (
                "an intermediate without basicConstraints",
                |a| a.intermediate().without(BASIC_CONSTRAINTS),
                R::Path(PathError::EndEntityUsedAsCa),
            ),
            (
                "another SVID as the intermediate",
                |a| a.issuers[0].extensions = a.leaf.extensions.clone(),
                R::Path(PathError::EndEntityUsedAsCa),
            ),
            (
                "an intermediate without keyCertSign",
                |a| a.intermediate().set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | CRL_SIGN)),
                R::IssuerMayNotSign,
            ),
            (
                "an intermediate with keyCertSign in a second keyUsage",
                |a| {
                    a.intermediate().set(KEY_USAGE, true, usages(CRL_SIGN));
                    a.intermediate().add(KEY_USAGE, true, usages(KEY_CERT_SIGN));
                },
                R::Path(PathError::ExtensionValueInvalid),
            ),
            (
                "an intermediate that may have no other below it, and has",
                |a| {
                    a.intermediate().set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(0)));
                    lengthen(a);
                },
                R::Path(PathError::PathLenConstraintViolated),
            ),
            (
                "an intermediate for servers only",
                |a| a.intermediate().set(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH])),
                R::Path(PathError::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
                    required: webpki::KeyUsage::client_auth(),
                    present: vec![webpki::KeyUsage::SERVER_AUTH_REPR.to_vec()],
                })),
            ),
            (
                "an intermediate with an unknown critical extension",
                |a| a.intermediate().add("1.3.6.1.4.1.99999.1", true, vec![5, 0]),
                R::Path(PathError::UnsupportedCriticalExtension),
            ),
            (
                "an intermediate of version 1",
                |a| (a.issuers[0].version, a.issuers[0].extensions) = (None, Vec::new()),
                R::Path(PathError::UnsupportedCertVersion),
            ),
            (
                "an intermediate for DNS names that the leaf's is not among",
                |a| {
                    san(a, &[uri(DEVICE_ID), dns("device.other.example")]);
                    let constraints = name_constraints(dns("factory.example"));
                    a.intermediate().add(NAME_CONSTRAINTS, true, constraints);
                },
                R::Path(PathError::NameConstraintViolation),
            ),
            (
                "an intermediate with constraints on URIs, which nothing here can weigh",
                |a| {
                    let constraints = name_constraints(uri("factory.example"));
                    a.intermediate().add(NAME_CONSTRAINTS, true, constraints);
                },
                R::Path(PathError::NameConstraintViolation),
            ),
        ],
    );
}

#[test]
fn an_svid_for_a_key_that_is_not_the_one_that_asked_is_refused() {
    let answer = direct();
    let chain = Chain::from_pem(&answer.pems()).unwrap();
    let bundle = bundle_of(&[self_signed(&answer.issuers[0])]);
    let domain = domain();
    for asked in [OTHER.spki.as_slice(), RSA_3072.spki.as_slice(), &[]] {
        let expected = Expectation { trust_domain: &domain, spiffe_id: None, spki_der: asked };
        assert_eq!(judge(&chain, &expected, &bundle, at(NOW)), Err(Rejection::OtherKey));
    }
}

#[test]
fn every_answer_that_the_rules_allow_is_accepted() {
    each_is_accepted(
        direct,
        vec![
            ("issued by the root", |_| {}, ()),
            ("the root appended", |a| a.with_root = true, ()),
            ("a renewal for the same device", |a| a.renewing = Some(DEVICE_ID), ()),
            (
                "a subject, and a SAN that is not critical",
                |a| {
                    a.leaf.subject = name("device");
                    a.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(DEVICE_ID)]));
                },
                (),
            ),
            ("a DNS name beside the URI", |a| san(a, &[dns("device.example"), uri(DEVICE_ID)]), ()),
            (
                "a UUID that is not of version 4, as in the example of the SUP",
                |a| san(a, &[uri(NOT_VERSION_4_ID)]),
                (),
            ),
            ("no extended key usage", |a| a.leaf.without(EXTENDED_KEY_USAGE), ()),
            (
                "one purpose more than the two",
                |a| a.leaf.set(EXTENDED_KEY_USAGE, true, purposes(&[ANY_USAGE, CLIENT_AUTH, SERVER_AUTH])),
                (),
            ),
            ("no basicConstraints", |a| a.leaf.without(BASIC_CONSTRAINTS), ()),
            (
                "one usage more than the signature",
                |a| a.leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | KEY_ENCIPHERMENT)),
                (),
            ),
            (
                "an unknown extension that is not critical",
                |a| a.leaf.add("1.3.6.1.4.1.99999.1", false, vec![5, 0]),
                (),
            ),
            ("an RSA-PSS issuer of 3072 bits", |a| a.root().key = &RSA_3072, ()),
            ("an RSA key of the device's own with 3072 bits", |a| a.leaf.key = &RSA_3072, ()),
            (
                "a root whose signature on itself is PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.root().signed = Some(Signature::Pkcs1Sha256);
                },
                (),
            ),
            ("a root that has expired: its validity does not count", |a| a.root().not_after = NOW - DAY, ()),
            (
                "a root of version 1",
                |a| (a.issuers[0].version, a.issuers[0].extensions) = (None, Vec::new()),
                (),
            ),
            (
                "five years",
                |a| {
                    a.leaf.not_after = NOW + 5 * 365 * DAY;
                    a.root().not_after = NOW + 50 * 365 * DAY; // past 2049, where the form of the time changes
                },
                (),
            ),
            ("no end, as RFC 5280 writes it", |a| a.leaf.not_after = 253_402_300_799, ()),
            ("one minute", |a| (a.leaf.not_before, a.leaf.not_after) = (NOW - 30, NOW + 30), ()),
            ("from the first second of 1970 on", |a| a.leaf.not_before = 0, ()),
            ("from this second on", |a| a.leaf.not_before = NOW, ()),
            ("until this second", |a| a.leaf.not_after = NOW, ()),
            ("a serial number of zero", |a| a.leaf.serial = vec![0], ()),
            ("a negative serial number", |a| a.leaf.serial = vec![0x80], ()),
            ("a serial number longer than RFC 5280 allows", |a| a.leaf.serial = vec![0x7f; 64], ()),
            (
                "two anchors, of which the second fits",
                |a| {
                    let (other, root) = (authority("Other", &OTHER), self_signed(a.root()));
                    a.bundle = Some(vec![self_signed(&other), root]);
                },
                (),
            ),
            (
                "two anchors of one name, of which the second fits",
                |a| {
                    let (old, root) = (authority("Root", &RSA_2048), self_signed(a.root()));
                    a.bundle = Some(vec![self_signed(&old), root]);
                },
                (),
            ),
        ],
    );
    each_is_accepted(
        with_intermediate,
        vec![
            ("issued by an intermediate", |_| {}, ()),
            ("the root appended", |a| a.with_root = true, ()),
            (
                "an unrelated certificate appended",
                |a| a.appended = vec![self_signed(&authority("Other", &OTHER))],
                (),
            ),
            (
                "a root appended that has expired",
                |a| {
                    a.with_root = true;
                    a.root().not_after = NOW - DAY;
                },
                (),
            ),
            (
                "the intermediate as the anchor",
                |a| {
                    let anchor = a.issuers[0].certify(&a.issuers[1]);
                    a.bundle = Some(vec![anchor]);
                },
                (),
            ),
            ("an intermediate without keyUsage", |a| a.intermediate().without(KEY_USAGE), ()),
            ("an RSA-PSS intermediate of 3072 bits", |a| a.intermediate().key = &RSA_3072, ()),
            (
                "an intermediate for DNS names, and a leaf that has none",
                |a| {
                    let constraints = name_constraints(dns("factory.example"));
                    a.intermediate().add(NAME_CONSTRAINTS, true, constraints);
                },
                (),
            ),
            (
                "a path exactly as long as the root allows",
                |a| a.root().set(BASIC_CONSTRAINTS, true, basic_constraints(true, Some(1))),
                (),
            ),
            (
                "an intermediate cross-signed by a root that is too weak, and by one that is not",
                |a| {
                    let weak = authority("Weak Root", &RSA_2048);
                    a.bundle = Some(vec![self_signed(&weak), self_signed(a.root())]);
                    a.appended = vec![a.issuers[0].certify(&a.issuers[1])];
                    *a.root() = weak;
                },
                (),
            ),
            (
                "one line of base64",
                |a| {
                    a.rewritten = |pems| {
                        for pem in pems {
                            let lines: Vec<_> = pem.lines().collect();
                            let body = lines[1..lines.len() - 1].concat();
                            *pem = format!("{}\n{body}\n{}", lines[0], lines[lines.len() - 1]);
                        }
                    };
                },
                (),
            ),
            (
                "lines of 19 characters, which is no multiple of four",
                |a| {
                    a.rewritten = |pems| {
                        for pem in pems {
                            let lines: Vec<_> = pem.lines().collect();
                            let body = lines[1..lines.len() - 1].concat();
                            let mut wrapped = format!("{}\n", lines[0]);
                            for line in body.as_bytes().chunks(19) {
                                wrapped.push_str(std::str::from_utf8(line).unwrap());
                                wrapped.push('\n');
                            }
                            *pem = wrapped + lines[lines.len() - 1];
                        }
                    };
                },
                (),
            ),
            (
                "lines that end as on Windows",
                |a| {
                    a.rewritten = |pems| pems.iter_mut().for_each(|pem| *pem = pem.replace('\n', "\r\n"));
                },
                (),
            ),
        ],
    );
}

#[test]
fn a_chain_with_any_one_bit_turned_is_never_accepted() {
    let answer = with_intermediate();
    let (good, bundle) = (answer.certificates(), bundle_of(&[self_signed(&answer.issuers[1])]));
    let domain = domain();
    let expected = Expectation { trust_domain: &domain, spiffe_id: None, spki_der: &DEVICE.spki };
    for (which, certificate) in good.iter().enumerate() {
        for bit in 0..certificate.len() * 8 {
            let mut chain = good.clone();
            chain[which][bit / 8] ^= 1 << (bit % 8);
            let pems: Vec<_> =
                chain.into_iter().map(|der| certificate_pem(&CertificateDer::from(der))).collect();
            let judged = Chain::from_pem(&pems).and_then(|c| judge(&c, &expected, &bundle, at(NOW)));
            assert!(judged.is_err(), "bit {bit} of certificate {which}: {judged:?}");
        }
    }
}

#[test]
fn an_accepted_svid_tells_what_the_certificate_says_and_keeps_the_chain_as_it_came() {
    let mut answer = with_intermediate();
    answer.with_root = true;
    let svid = answer.judged().unwrap();
    assert_eq!(svid.spiffe_id(), &id(DEVICE_ID));
    assert_eq!(svid.serial(), "4d:61:72:67:6f");
    assert_eq!((svid.not_before(), svid.not_after()), (at(NOW - MINUTE), at(NOW + DAY)));
    assert_eq!(svid.chain().certificates().len(), 3, "leaf, intermediate, and the root that came with them");
    let stored = Chain::from_pem(&svid.chain().to_pems()).unwrap();
    assert_eq!(X509Svid::from_stored(stored).unwrap(), svid, "what is stored reads back as itself");
}

#[test]
fn a_serial_number_is_shown_as_openssl_shows_it() {
    let cases: [(&[u8], &str); 3] =
        [(&[0x00, 0xd2, 0x3a], "d2:3a"), (&[0x0f, 0x00], "0f:00"), (&[0x00], "00")];
    for (bytes, shown) in cases {
        let mut answer = direct();
        answer.leaf.serial = bytes.to_vec();
        assert_eq!(answer.judged().unwrap().serial(), shown);
    }
}

#[test]
fn an_svid_is_trusted_as_long_as_the_bundle_vouches_for_it() {
    let mut answer = with_intermediate();
    let svid = answer.judged().unwrap();
    let root = self_signed(answer.root());
    assert!(is_trusted(&svid, &bundle_of(std::slice::from_ref(&root)), at(NOW)));
    assert!(!is_trusted(&svid, &bundle_of(&[]), at(NOW)), "the anchor was withdrawn");
    assert!(!is_trusted(&svid, &bundle_of(&[root]), at(NOW + 2 * DAY)), "its time has passed");
}

#[test]
fn a_hostile_name_is_reported_short_and_printable() {
    let mut answer = direct();
    san(&mut answer, &[uri(format!("\x1b[2J{}", "x".repeat(5000)))]);
    let told = answer.judged().unwrap_err().to_string();
    assert!(told.len() < 300 && !told.contains('\x1b'), "{told}");
}
