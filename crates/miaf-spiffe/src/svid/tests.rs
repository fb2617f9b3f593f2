//! One valid response of an MIS, and every way to spoil it that the rules name. Each case bends one
//! thing and says how it must end: with the one reason that fits, or well.

mod accepted;
mod assembly;
mod ends;
mod forge;
mod peer;
mod properties;
mod refused;
mod released;

use serde_json::json;
use webpki::Error as PathError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::*;
use crate::SpiffeIdError;
use forge::*;

const NOW: i64 = 1_750_000_000;
const MINUTE: i64 = 60;
const DAY: i64 = 24 * 3600;
const MIAF_V0: (NameKind, Algorithms) = (NameKind::Device, Algorithms::MiafV0);
const RELEASED: (NameKind, Algorithms) = (NameKind::WfmClient, Algorithms::Released);
const DEVICE_ID: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
const NOT_VERSION_4_ID: &str = "spiffe://factory.example/margo/device/123e4567-e89b-12d3-a456-426614174000";
const SIBLING_ID: &str = "spiffe://factory.example/margo/device/00000000-e89b-42d3-a456-426614174000";

/// The response of an MIS, and the state of the device that receives it.
struct Response {
    leaf: Template,
    /// Its issuers, up to the root.
    issuers: Vec<Template>,
    /// Whether the root is part of the response.
    with_root: bool,
    /// More certificates at the end of the response.
    appended: Vec<Vec<u8>>,
    /// A last change to the PEM texts.
    rewritten: fn(&mut Vec<String>),
    /// The trust bundle, where it is not the root alone.
    bundle: Option<Vec<Vec<u8>>>,
    /// The kind of the identity's name, and the algorithms that follow from its enrollment.
    rules: (NameKind, Algorithms),
    /// The current identity, at renewal.
    renewing: Option<&'static str>,
    now: Timestamp,
}

/// A root that signed the leaf.
fn direct() -> Response {
    let mut leaf = Template::new(no_name(), &DEVICE, NOW - MINUTE, NOW + DAY);
    leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(false, None));
    leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE));
    leaf.set(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH, CLIENT_AUTH]));
    leaf.set(SUBJECT_ALT_NAME, true, names(&[uri(DEVICE_ID)]));
    Response {
        leaf,
        issuers: vec![authority("Root", &ROOT)],
        with_root: false,
        appended: Vec::new(),
        rewritten: |_| {},
        bundle: None,
        rules: MIAF_V0,
        renewing: None,
        now: Timestamp::from_secs(NOW),
    }
}

/// A root, an intermediate, and the leaf below it.
fn with_intermediate() -> Response {
    let mut response = direct();
    response.issuers.insert(0, authority("Intermediate", &INTERMEDIATE));
    response
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
    let map = json!({ "trust_domains": { "factory.example": { "keys": keys } } });
    Bundle::from_served(map.to_string().as_bytes(), &domain()).unwrap()
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

impl Response {
    fn root(&mut self) -> &mut Template {
        self.issuers.last_mut().unwrap()
    }

    fn intermediate(&mut self) -> &mut Template {
        assert!(self.issuers.len() > 1, "this response has no intermediate");
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

    fn validate(&self) -> Result<X509Svid, SvidError> {
        let anchors = self.bundle.clone();
        let anchors = anchors.unwrap_or_else(|| self.issuers.last().map(self_signed).into_iter().collect());
        let (domain, renewing) = (domain(), self.renewing.map(id));
        let expected = expectation(&domain, self.rules, renewing.as_ref(), &self.leaf.key.spki);
        validate(&Chain::from_pem(&self.pems())?, &expected, &bundle_of(&anchors), self.now)
    }
}

fn expectation<'a>(
    trust_domain: &'a TrustDomain,
    (name, algorithms): (NameKind, Algorithms),
    spiffe_id: Option<&'a SpiffeId>,
    spki_der: &'a [u8],
) -> Expectation<'a> {
    Expectation { trust_domain, name, algorithms, wfm: None, spiffe_id, spki_der }
}

type Case<Outcome> = (&'static str, fn(&mut Response), Outcome);

fn each_is_refused(good: fn() -> Response, cases: Vec<Case<SvidError>>) {
    assert!(good().validate().is_ok(), "before it is bent, the response is valid");
    let wrong: Vec<_> = cases
        .into_iter()
        .filter_map(|(case, bend, why)| {
            let mut response = good();
            bend(&mut response);
            let validated = response.validate();
            (validated.as_ref() != Err(&why)).then(|| format!("{case}: {validated:?}, not {why:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn each_is_accepted(good: fn() -> Response, cases: Vec<Case<()>>) {
    let wrong: Vec<_> = cases
        .into_iter()
        .filter_map(|(case, bend, ())| {
            let mut response = good();
            bend(&mut response);
            response.validate().err().map(|why| format!("{case}: {why:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn san(response: &mut Response, all: &[Vec<u8>]) {
    response.leaf.set(SUBJECT_ALT_NAME, true, names(all));
}

fn not_a_spiffe_id(uri: &str, why: SpiffeIdError) -> SvidError {
    SvidError::NotASpiffeId { uri: uri.to_owned(), why }
}

#[test]
fn accepted_svid_has_the_certificates_facts_and_chain() {
    let mut response = with_intermediate();
    response.with_root = true;
    let svid = response.validate().unwrap();
    assert_eq!(svid.spiffe_id(), &id(DEVICE_ID));
    assert_eq!(svid.serial(), "4d:61:72:67:6f");
    assert_eq!((svid.not_before(), svid.not_after()), (at(NOW - MINUTE), at(NOW + DAY)));
    assert_eq!(svid.chain().certificates().len(), 3, "leaf, intermediate, and the root that came with them");
    let stored = Chain::from_pem(&svid.chain().to_pems()).unwrap();
    assert_eq!(X509Svid::from_stored(stored).unwrap(), svid, "what is stored reads back as itself");
}

#[test]
fn serial_is_shown_as_openssl_shows_it() {
    let cases: [(&[u8], &str); 3] =
        [(&[0x00, 0xd2, 0x3a], "d2:3a"), (&[0x0f, 0x00], "0f:00"), (&[0x00], "00")];
    for (bytes, shown) in cases {
        let mut response = direct();
        response.leaf.serial = bytes.to_vec();
        assert_eq!(response.validate().unwrap().serial(), shown);
    }
}

#[test]
fn svid_is_trusted_while_it_chains_to_an_anchor() {
    let mut response = with_intermediate();
    let svid = response.validate().unwrap();
    let root = self_signed(response.root());
    assert!(is_trusted(&svid, &bundle_of(std::slice::from_ref(&root)), at(NOW)));
    assert!(!is_trusted(&svid, &bundle_of(&[]), at(NOW)), "the anchor was withdrawn");
    assert!(!is_trusted(&svid, &bundle_of(&[root]), at(NOW + 2 * DAY)), "its time has passed");
}

#[test]
fn trust_path_ends_at_a_valid_anchor_if_any() {
    let mut response = with_intermediate();
    response.issuers[0].not_after = NOW + DAY / 2;
    let svid = response.validate().unwrap();
    let mut root = response.root().clone();
    let valid = self_signed(&root);
    root.not_after = NOW - DAY;
    let expired = self_signed(&root);
    for (bundle, is_valid) in [
        (vec![expired.clone(), valid.clone()], true),
        (vec![valid, expired.clone()], true),
        (vec![expired], false),
    ] {
        let bundle = bundle_of(&bundle);
        let trust_path = trust_path(&svid, &bundle, at(NOW)).unwrap();
        assert_eq!(trust_path.anchor.is_valid(at(NOW)), is_valid);
        assert_eq!(trust_path.path_not_after, at(NOW + DAY / 2), "the intermediate's comes first");
        assert!(is_trusted(&svid, &bundle, at(NOW)), "published anchors are not dropped by the clock");
    }
    assert_eq!(trust_path(&svid, &bundle_of(&[]), at(NOW)), None);
}

#[test]
fn anchor_unreadable_to_peers_is_none() {
    type Bend = fn(&mut Template);
    let bends: [(&str, Bend); 3] = [
        ("an unknown extension twice", |root| {
            root.add(UNKNOWN, false, vec![5, 0]);
            root.add(UNKNOWN, false, vec![5, 0]);
        }),
        ("bytes behind its keyUsage", |root| {
            root.set(KEY_USAGE, true, [usages(KEY_CERT_SIGN), vec![5, 0]].concat());
        }),
        ("a negative serial number", |root| root.serial = vec![0xfe, 0x11]),
    ];
    for (case, bend) in bends {
        let mut response = direct();
        let good = self_signed(response.root());
        bend(response.root());
        let bad = self_signed(response.root());
        let bundle = bundle_of(&[good.clone(), bad]);
        assert_eq!((bundle.anchors(), bundle.warnings().len()), (&[good.into()][..], 1), "{case}");
    }
}

#[test]
fn hostile_name_is_reported_short_and_printable() {
    let mut response = direct();
    san(&mut response, &[uri(format!("\x1b[2J{}", "x".repeat(5000)))]);
    let told = response.validate().unwrap_err().to_string();
    assert!(told.len() < 300 && !told.contains('\x1b'), "{told}");
}

#[test]
fn errors_that_depend_on_the_bundle_are_told_apart() {
    use SvidError as R;
    let now = at(NOW);
    for why in [
        R::UnknownIssuer,
        R::Algorithm(Algorithms::MiafV0),
        R::Algorithm(Algorithms::Released),
        R::WeakRsa(2048),
        R::IssuerMayNotSign,
        R::IssuerIsNoAuthority,
        R::IssuerPurpose,
        R::PathTooLong,
        R::IssuerExpired { not_after: now, now },
        R::Path(PathError::NameConstraintViolation),
    ] {
        assert!(why.depends_on_bundle(), "{why}");
    }
    for why in [
        R::EmptyChain,
        R::LongChain(7),
        R::Malformed { index: 0 },
        R::Serial { index: 0, why: "" },
        R::NotPem { index: 0, why: String::new() },
        R::Version,
        R::Extension,
        R::OtherKey,
        R::SerialInUse { serial: String::new() },
        R::CertificateAuthority,
        R::NoKeyUsage,
        R::KeyUsageNotCritical,
        R::NoDigitalSignature,
        R::MaySignCertificates,
        R::NoServerAuth,
        R::NoClientAuth,
        R::UriCount(2),
        not_a_spiffe_id("", SpiffeIdError::Scheme),
        R::NamesNotCritical,
        R::OtherTrustDomain { got: id(DEVICE_ID), want: domain() },
        R::OtherKindOfName { got: id(DEVICE_ID), want: NameKind::WfmClient },
        R::OtherIdentity { got: id(DEVICE_ID), want: id(SIBLING_ID) },
        R::EmptyValidity { not_before: now, not_after: now },
        R::Expired { not_after: now, now },
        R::FarFuture { not_before: now, now },
        R::NotYetValid { not_before: now },
    ] {
        assert!(!why.depends_on_bundle(), "{why}");
    }
}

#[test]
fn stored_svid_is_read_back_though_expired() {
    let stored = |bend: fn(&mut Response)| {
        let mut response = direct();
        bend(&mut response);
        X509Svid::from_stored(Chain::from_pem(&response.pems()).unwrap()).map(|svid| svid.not_after())
    };
    assert_eq!(stored(|_| {}), Ok(at(NOW + DAY)));
    assert_eq!(stored(|a| a.leaf.not_after = NOW - DAY), Ok(at(NOW - DAY)));
    assert_eq!(stored(|a| a.leaf.without(SUBJECT_ALT_NAME)), Err(SvidError::UriCount(0)));
}

#[test]
fn serials_are_compared_within_one_issuer() {
    let chain = |bend: fn(&mut Response)| {
        let mut response = direct();
        bend(&mut response);
        Chain::from_pem(&response.pems()).unwrap()
    };
    let stored = X509Svid::from_stored(chain(|_| {})).unwrap();
    let in_use = Err(SvidError::SerialInUse { serial: stored.serial().to_owned() });
    assert_eq!(check_new_serial(stored.chain(), &stored), Ok(()), "the very same certificate");
    assert_eq!(check_new_serial(&chain(|a| a.leaf.not_after = NOW + 2 * DAY), &stored), in_use);
    assert_eq!(check_new_serial(&chain(|a| a.leaf.key = &INTERMEDIATE), &stored), in_use);
    assert_eq!(check_new_serial(&chain(|a| a.leaf.serial = vec![0x4d, 0x61, 0x72, 0x67]), &stored), Ok(()));
    assert_eq!(check_new_serial(&chain(|a| a.root().subject = name("Another")), &stored), Ok(()));
}

#[test]
fn pem_is_wrapped_at_64_columns_and_ends_in_a_line() {
    for length in [1, 47, 48, 49, 96, 97] {
        let pem = certificate_pem(&CertificateDer::from(vec![7; length]));
        let lines: Vec<_> = pem.lines().collect();
        let [first, body @ .., last] = lines.as_slice() else { panic!("{pem}") };
        assert_eq!((*first, *last), ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"));
        assert!(pem.ends_with("-----\n") && body.iter().rev().skip(1).all(|line| line.len() == 64), "{pem}");
        assert_eq!(BASE64.decode(body.concat()).unwrap(), vec![7; length]);
        assert!(body.iter().all(|line| (1..=64).contains(&line.len())), "{pem}");
    }
}
