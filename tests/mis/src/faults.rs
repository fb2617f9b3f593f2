//! Everything this server does wrong, and only on request of a test. The strict server knows
//! nothing of it but the few places where it lets a fault have its way.

use crate::est::{self, Bag, EST_PATH, Form};
use crate::issue::LeafSpec;
use crate::keys::{self, KeyKind, KeyPair};
use crate::pem;
use crate::pki::{Authority, EstIssuing};
use crate::policy::Policy;
use crate::wire::{self, DISCOVERY_PATH, IDENTITIES_PATH};
use crate::x509::{self, Ca, Der};
use base64::{Engine, engine::general_purpose::STANDARD};
use development_server::{RawResponse, Result};
use hyper::Method;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use x509_cert::ext::pkix::KeyUsages;

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `GET /.well-known/margo`
    Discovery,
    /// `GET /.well-known/spiffe/bundle.json`
    Bundle,
    /// `POST /api/v1/identities`
    Enrollment,
    /// `POST /api/v1/identities/{…}/renewal`
    Renewal,
    /// `POST /.well-known/est/{label}/simpleenroll`
    EstEnroll,
    /// `POST /.well-known/est/{label}/simplereenroll`
    EstReenroll,
    /// `GET /.well-known/est/{label}/cacerts`
    EstCaCerts,
}

impl Endpoint {
    /// The endpoint at a path, and for renewal the encoded SPIFFE ID, for EST the label.
    pub fn at(path: &str) -> Option<(Self, &str)> {
        if let Some(path) = path.strip_prefix(EST_PATH) {
            let (label, operation) = path.strip_prefix('/')?.rsplit_once('/').unwrap_or(("", &path[1..]));
            let endpoint = match operation {
                "simpleenroll" => Self::EstEnroll,
                "simplereenroll" => Self::EstReenroll,
                "cacerts" => Self::EstCaCerts,
                _ => return None,
            };
            return Some((endpoint, label));
        }
        match path {
            DISCOVERY_PATH => Some((Self::Discovery, "")),
            wire::BUNDLE_PATH => Some((Self::Bundle, "")),
            IDENTITIES_PATH => Some((Self::Enrollment, "")),
            _ => path
                .strip_prefix(IDENTITIES_PATH)?
                .strip_prefix('/')?
                .strip_suffix("/renewal")
                .filter(|id| !id.is_empty() && !id.contains('/'))
                .map(|id| (Self::Renewal, id)),
        }
    }

    /// Whether it is one of EST.
    pub fn is_est(self) -> bool {
        matches!(self, Self::EstEnroll | Self::EstReenroll | Self::EstCaCerts)
    }

    /// The methods it handles.
    pub fn allows(self, method: &Method) -> bool {
        match self {
            Self::Discovery | Self::Bundle | Self::EstCaCerts => {
                method == Method::GET || method == Method::HEAD
            }
            Self::Enrollment | Self::Renewal | Self::EstEnroll | Self::EstReenroll => method == Method::POST,
        }
    }

    /// The same for the `Allow` header.
    pub fn allow(self) -> &'static str {
        match self {
            Self::Discovery | Self::Bundle | Self::EstCaCerts => "GET, HEAD",
            Self::Enrollment | Self::Renewal | Self::EstEnroll | Self::EstReenroll => "POST",
        }
    }
}

/// One thing to do wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Cut the connection before anything is processed.
    CutBefore,
    /// Process, issue, record; then cut the connection without a response.
    LoseAnswer,
    /// Wait, then process.
    Stall(Duration),
    /// Process, wait, then respond.
    StallAnswer(Duration),
    /// Process nothing and respond with this.
    Answer(RawResponse),
    /// Respond as usual, but with this status.
    Status(u16),
    /// Respond as usual, but with this header.
    Header(&'static str, String),
    /// Issue a bent SVID, or respond with a bent body (enrollment, renewal).
    Svid(SvidFault),
    /// Bend the document (discovery, bundle).
    Document(DocumentFault),
    /// Respond as usual, but with status and headers alone: no body, no length, no media type. The
    /// connection stays open.
    Bare,
    /// `202` to a request that is good, which binds a token to its key and issues nothing (EST).
    Held(RetryAfter),
    /// Respond with other certificates, or in another form (EST).
    Est(EstFault),
    /// All of these for the same request.
    Together(Vec<Fault>),
}

impl Fault {
    /// A response with this status, headers and body.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        Self::Answer(RawResponse::new(status, headers, body))
    }

    /// A Problem Details response; a `code` without a slash or colon is a Margo error code.
    pub fn problem(status: u16, code: &str, retry_after: Option<&str>) -> Self {
        let kind = if code.contains([':', '/']) {
            code.to_owned()
        } else {
            format!("https://margo.org/docs/errors/{code}")
        };
        let body = json!({"type": kind, "title": "Made by a test", "status": status});
        let mut headers = vec![("content-type", "application/problem+json")];
        headers.extend(retry_after.map(|value| ("retry-after", value)));
        Self::answer(status, &headers, body.to_string())
    }

    /// `429`, with or without `Retry-After`.
    pub fn too_many(retry_after: &RetryAfter) -> Self {
        let value = retry_after.value();
        let headers: Vec<_> = value.iter().map(|value| ("retry-after", value.as_str())).collect();
        Self::answer(429, &headers, "too many attempts\n")
    }

    /// A redirect.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::answer(status, &[("location", location)], "")
    }
}

/// Ways to bend an SVID or the response around it.
#[derive(Debug, Clone)]
pub enum SvidFault {
    /// This URI SAN, whatever it is.
    SpiffeId(String),
    /// The SPIFFE ID of another device or client of this Trust Domain.
    WrongSpiffeId,
    /// The same path in another Trust Domain.
    OtherTrustDomain(String),
    /// A second URI SAN.
    TwoUriSans,
    /// Valid for so long, whatever policy says.
    Lifetime(Duration),
    /// The SAN not critical, with an empty subject all the same.
    SanNotCritical,
    /// This common name in the subject.
    Subject(String),
    /// No URI SAN (no SAN at all).
    NoUriSan,
    /// The UUID in upper case.
    UppercaseUuid,
    /// A path that is no device's: `/margo/wfm/…`.
    NotADevice,
    /// `cA` true.
    CaTrue,
    /// No key usage.
    NoKeyUsage,
    /// Key usage, not critical.
    KeyUsageNotCritical,
    /// `keyCertSign` in addition to `digitalSignature`.
    KeyCertSign,
    /// `cRLSign` in addition to `digitalSignature`.
    CrlSign,
    /// Extended key usage without `clientAuth`.
    NoClientAuth,
    /// This serial number, whatever it has been given to before (RFC 5280, section 4.1.2.2).
    SerialNumber(u8),
    /// A key that is not the CSR's.
    OtherKey,
    /// Over an hour ago.
    Expired,
    /// `notBefore` so far ahead.
    NotYetValid(Duration),
    /// Signed by an authority outside the Trust Bundle.
    UnknownIssuer,
    /// Signed by an intermediate with a P-384 key, under the real root and in the chain (K4).
    P384Signature,
    /// Signed by an intermediate that is not in the chain.
    MissingIntermediate,
    /// Signed by an intermediate, in the chain, whose validity ends at this moment.
    IssuerEndsAt(SystemTime),
    /// The root at the end of the chain (which is permitted).
    RootAppended,
    /// PEM wrapped at this width (which is permitted).
    PemWidth(usize),
    /// Not PEM at all.
    Garbage,
    /// No certificates.
    EmptyChain,
    /// Another `svidProfileUri` in the response.
    WrongProfile,
    /// Unknown members in the response (to be ignored, D4).
    ExtraMembers,
}

/// `Retry-After` of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryAfter {
    /// None.
    Absent,
    /// So many seconds.
    Seconds(u64),
    /// An HTTP date so far ahead of the server's clock.
    DateIn(Duration),
    /// This text.
    Raw(String),
}

impl RetryAfter {
    /// The value of the header.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Seconds(seconds) => Some(seconds.to_string()),
            Self::DateIn(time) => Some(httpdate::fmt_http_date(SystemTime::now() + *time)),
            Self::Raw(text) => Some(text.clone()),
        }
    }
}

/// Ways in which responses of EST differ from what the RFC demands, or from what is usual.
#[derive(Debug, Clone)]
pub enum EstFault {
    /// The intermediates in addition to the leaf.
    ChainInAnswer,
    /// The leaf twice, byte for byte.
    LeafTwice,
    /// A certificate revocation list in the bag.
    Crl,
    /// `crls` present and empty.
    EmptyCrls,
    /// An element in the bag that is no certificate (`OtherCertificateFormat`).
    OtherElement,
    /// A second certificate with the leaf's key, from an authority that no one knows.
    SecondLeaf,
    /// An empty bag.
    NoCertificate,
    /// BER with indefinite lengths.
    Ber,
    /// Base64 in lines of 64 with LF.
    Lines64,
    /// Base64 in lines of 76 with CRLF.
    Lines76,
    /// PEM in the body.
    Pem,
    /// DER in the body, without base64.
    RawDer,
    /// One certificate instead of a PKCS#7.
    BareCertificate,
    /// These bytes after the PKCS#7, in the base64.
    TrailingBytes(Vec<u8>),
    /// This text after the base64.
    TrailingText(String),
    /// `400` to base64 on one line.
    RefuseOneLine,
    /// `400` to base64 with line breaks.
    RefuseLines,
    /// `500` at issuance: the token is not consumed.
    IssuanceFails,
    /// No root (`/cacerts`).
    WithoutRoot,
    /// No intermediate: no SVID reaches an anchor (`/cacerts`).
    WithoutIntermediates,
    /// A root of another's in addition, which leads nowhere (`/cacerts`).
    Decoy,
    /// Another certificate of the issuer's name and key, which has expired (`/cacerts`).
    ExpiredTwin,
    /// Not in the order of DER: another one each time (`/cacerts`).
    Shuffled,
    /// So many more CAs of the issuer's name, each with a key of its own (`/cacerts`).
    ManyTwins(usize),
}

/// Ways to bend a public document.
#[derive(Debug, Clone)]
pub enum DocumentFault {
    /// These bytes instead.
    Replace(Vec<u8>),
    /// Of another Trust Domain.
    TrustDomain(String),
    /// `http://` where `https://` was (discovery).
    HttpUrls,
    /// Another value of a member (discovery).
    Member(String, String),
    /// A member left out: of the document, or of the bundle map's entry.
    MissingMember(String),
    /// The Trust Domain's name twice in the map (bundle).
    DuplicateTrustDomain,
    /// No keys (bundle, B3).
    EmptyKeys,
    /// Keys, but none for X.509 (bundle, N4).
    NoX509Keys,
    /// A plain SPIFFE bundle, not a map (bundle, B2).
    PlainBundle,
    /// A Bundle Map, not a plain bundle (bundle, N4).
    BundleMap,
    /// `spiffe_sequence` one lower (bundle, B5).
    LowerSequence,
    /// JWKs to be ignored in addition to the real ones, and a second `x5c` element (bundle, B2).
    ForeignKeys,
    /// Unknown members (to be ignored, D4).
    ExtraMembers,
}

/// Ways in which the server's own TLS certificate may be wrong, for as long as it runs.
#[derive(Debug, Clone)]
pub enum ServerFault {
    /// Over an hour ago (T4).
    Expired,
    /// Valid in an hour.
    NotYetValid,
    /// Signed by itself.
    SelfSigned,
    /// The certificates of these PEM files at the end of its chain, where they prove nothing (T1).
    Appended(Vec<PathBuf>),
}

/// The faults waiting to strike.
pub type Faults = development_server::Faults<Endpoint, Fault>;

/// A text in lines of this width, the last one ended too.
fn lines(text: &str, width: usize, end: &str) -> Vec<u8> {
    let lines = text.as_bytes().chunks(width);
    lines.flat_map(|line| [line, end.as_bytes()].concat()).collect()
}

fn flatten(fault: Fault, into: &mut Vec<Fault>) {
    match fault {
        Fault::Together(faults) => faults.into_iter().for_each(|fault| flatten(fault, into)),
        fault => into.push(fault),
    }
}

/// The faults of one request.
#[derive(Debug, Default)]
pub struct Active(Vec<Fault>);

impl Active {
    /// Those of one request.
    pub fn of(fault: Option<Fault>) -> Self {
        let mut flat = Vec::new();
        fault.into_iter().for_each(|fault| flatten(fault, &mut flat));
        Self(flat)
    }

    /// Ways to bend one SVID, outside of a request.
    pub fn of_svid(faults: &[SvidFault]) -> Self {
        Self(faults.iter().cloned().map(Fault::Svid).collect())
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Cut at once?
    pub fn cuts_before(&self) -> bool {
        self.0.iter().any(|fault| matches!(fault, Fault::CutBefore))
    }

    /// Cut instead of answering?
    pub fn loses_answer(&self) -> bool {
        self.0.iter().any(|fault| matches!(fault, Fault::LoseAnswer))
    }

    /// How long to wait before processing.
    pub fn stall(&self) -> Option<Duration> {
        self.0.iter().find_map(|fault| match fault {
            Fault::Stall(time) => Some(*time),
            _ => None,
        })
    }

    /// How long to wait before answering.
    pub fn stall_answer(&self) -> Option<Duration> {
        self.0.iter().find_map(|fault| match fault {
            Fault::StallAnswer(time) => Some(*time),
            _ => None,
        })
    }

    /// The response to give without processing.
    pub fn answer(&self) -> Option<&RawResponse> {
        self.0.iter().find_map(|fault| match fault {
            Fault::Answer(answer) => Some(answer),
            _ => None,
        })
    }

    /// The status to put on the real response.
    pub fn status(&self) -> Option<u16> {
        self.0.iter().find_map(|fault| match fault {
            Fault::Status(status) => Some(*status),
            _ => None,
        })
    }

    /// Headers to put on the real response.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().filter_map(|fault| match fault {
            Fault::Header(name, value) => Some((*name, value.as_str())),
            _ => None,
        })
    }

    fn svid(&self) -> impl Iterator<Item = &SvidFault> {
        self.0.iter().filter_map(|fault| match fault {
            Fault::Svid(fault) => Some(fault),
            _ => None,
        })
    }

    fn est(&self) -> impl Iterator<Item = &EstFault> {
        self.0.iter().filter_map(|fault| match fault {
            Fault::Est(fault) => Some(fault),
            _ => None,
        })
    }

    /// Send status and headers alone?
    pub fn is_bare(&self) -> bool {
        self.0.iter().any(|fault| matches!(fault, Fault::Bare))
    }

    /// Hold the enrollment or the renewal?
    pub fn held(&self) -> Option<&RetryAfter> {
        self.0.iter().find_map(|fault| match fault {
            Fault::Held(retry_after) => Some(retry_after),
            _ => None,
        })
    }

    /// Fail the issuance?
    pub fn fails_issuance(&self) -> bool {
        self.est().any(|fault| matches!(fault, EstFault::IssuanceFails))
    }

    /// Refuse a body of this form?
    pub fn refuses_form(&self, form: Form) -> bool {
        self.est().any(|fault| match fault {
            EstFault::RefuseOneLine => form == Form::OneLine,
            EstFault::RefuseLines => form == Form::Lines,
            _ => false,
        })
    }

    /// The bag of an enrollment: the leaf alone (X53), or a bent one. `above` are the certificates
    /// above the leaf.
    pub fn enrollment(&self, leaf: Der, above: Vec<Der>, issuing: &EstIssuing) -> Result<Bag> {
        let mut bag = Bag { certificates: vec![leaf.clone()], ..Bag::default() };
        for fault in self.est() {
            match fault {
                EstFault::ChainInAnswer => bag.certificates.extend(above.iter().cloned()),
                EstFault::LeafTwice => bag.certificates.push(leaf.clone()),
                EstFault::SecondLeaf => {
                    let stranger =
                        Ca::root("Unknown authority", KeyPair::generate(KeyKind::P256)?.0, None, 1)?;
                    let (names, spki) = (x509::uris_of(&leaf), x509::spki_of(&leaf)?);
                    let id = names.first().cloned().unwrap_or_default();
                    let second = LeafSpec::new(&id, &spki, &Policy::default()).sign(&stranger)?;
                    bag.certificates.push(second);
                }
                EstFault::NoCertificate => bag.certificates.clear(),
                _ => {}
            }
        }
        self.wrap(&mut bag, issuing)?;
        Ok(bag)
    }

    /// The bag of `/cacerts`: roots and intermediates (X61), or a bent one.
    pub fn ca_certs(&self, roots: Vec<Der>, intermediates: Vec<Der>, issuing: &EstIssuing) -> Result<Bag> {
        let mut certificates = Vec::new();
        if !self.est().any(|fault| matches!(fault, EstFault::WithoutRoot)) {
            certificates.extend(roots);
        }
        if !self.est().any(|fault| matches!(fault, EstFault::WithoutIntermediates)) {
            certificates.extend(intermediates);
        }
        let mut shuffle = false;
        for fault in self.est() {
            match fault {
                EstFault::Decoy => {
                    let (key, _) = KeyPair::generate(KeyKind::P256)?;
                    certificates.push(Ca::root("Decoy", key, None, 20)?.certificate);
                }
                EstFault::ExpiredTwin => {
                    let ended = SystemTime::now() - Duration::from_secs(3600);
                    certificates.push(issuing.above_issuer().certify(issuing.issuer(), ended)?);
                }
                EstFault::ManyTwins(count) => {
                    for _ in 0..*count {
                        let (key, _) = KeyPair::generate(KeyKind::P256)?;
                        certificates.push(issuing.above_issuer().namesake(issuing.issuer(), &key)?);
                    }
                }
                EstFault::Shuffled => shuffle = true,
                EstFault::NoCertificate => certificates.clear(),
                _ => {}
            }
        }
        let mut bag = Bag::sorted(certificates);
        if shuffle {
            let salt = keys::random::<16>()?;
            bag.certificates.sort_by_key(|der| x509::sha256(&[&salt, der.as_slice()].concat()));
        }
        self.wrap(&mut bag, issuing)?;
        Ok(bag)
    }

    fn wrap(&self, bag: &mut Bag, issuing: &EstIssuing) -> Result<()> {
        for fault in self.est() {
            match fault {
                EstFault::Crl => bag.crls = Some(vec![issuing.issuer().empty_crl()?]),
                EstFault::EmptyCrls => bag.crls = Some(Vec::new()),
                // [3] OtherCertificateFormat: a type of this project's own invention, and nothing.
                EstFault::OtherElement => {
                    bag.certificates
                        .insert(0, est::tlv(0xa3, &[&[0x06, 0x03, 0x55, 0x04, 0x03], &[0x05, 0x00]]));
                }
                EstFault::Ber => bag.ber = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// The body of an EST response: base64 on one line, or bent.
    pub fn est_body(&self, bag: &Bag) -> Vec<u8> {
        let mut der = bag.encode();
        if self.est().any(|fault| matches!(fault, EstFault::BareCertificate)) {
            der = bag.certificates.first().cloned().unwrap_or_default();
        }
        for fault in self.est() {
            if let EstFault::TrailingBytes(bytes) = fault {
                der.extend(bytes);
            }
        }
        let mut body = STANDARD.encode(&der).into_bytes();
        for fault in self.est() {
            match fault {
                EstFault::Lines64 => body = lines(&STANDARD.encode(&der), 64, "\n"),
                EstFault::Lines76 => body = lines(&STANDARD.encode(&der), 76, "\r\n"),
                EstFault::Pem => body = pem::encode("PKCS7", &der, pem::WIDTH).into_bytes(),
                EstFault::RawDer => body.clone_from(&der),
                EstFault::TrailingText(text) => body.extend(text.as_bytes()),
                _ => {}
            }
        }
        body
    }

    /// Bends a leaf before it is signed.
    pub fn bend_leaf(&self, leaf: &mut LeafSpec) -> Result<()> {
        for fault in self.svid() {
            fault.bend_leaf(leaf)?;
        }
        Ok(())
    }

    /// Another authority to sign with, and the chain above the leaf.
    pub fn issuer(&self, real: &Authority) -> Result<Option<(Ca, Vec<Der>)>> {
        for fault in self.svid() {
            let kind = match fault {
                SvidFault::P384Signature => KeyKind::P384,
                SvidFault::UnknownIssuer | SvidFault::MissingIntermediate | SvidFault::IssuerEndsAt(_) => {
                    KeyKind::P256
                }
                _ => continue,
            };
            let (key, _) = KeyPair::generate(kind)?;
            return Ok(Some(match fault {
                SvidFault::UnknownIssuer => (Ca::root("Unknown authority", key, None, 1)?, Vec::new()),
                SvidFault::IssuerEndsAt(end) => {
                    let ca = real.root.subordinate_until("Issuer that ends", key, *end)?;
                    let chain = vec![ca.certificate.clone()];
                    (ca, chain)
                }
                SvidFault::P384Signature => {
                    let ca = real.root.subordinate("P-384 issuer", key, None, 1)?;
                    let chain = vec![ca.certificate.clone()];
                    (ca, chain)
                }
                _ => (real.root.subordinate("Issuer not shown", key, None, 1)?, Vec::new()),
            }));
        }
        Ok(None)
    }

    /// Bends the chain of DER certificates.
    pub fn bend_chain(&self, chain: &mut Vec<Der>, real: &Authority) {
        for fault in self.svid() {
            match fault {
                SvidFault::RootAppended => chain.push(real.root.certificate.clone()),
                SvidFault::EmptyChain => chain.clear(),
                _ => {}
            }
        }
    }

    /// The PEM line width.
    pub fn pem_width(&self) -> usize {
        self.svid()
            .find_map(|fault| match fault {
                SvidFault::PemWidth(width) => Some(*width),
                _ => None,
            })
            .unwrap_or(pem::WIDTH)
    }

    /// Bends the response's body.
    pub fn bend_answer(&self, answer: &mut Value) {
        for fault in self.svid() {
            match fault {
                SvidFault::Garbage => {
                    answer["svid"]["certificateChainPem"] = json!(["not a certificate"]);
                }
                SvidFault::WrongProfile => {
                    answer["svidProfileUri"] = "https://margo.org/profiles/other/v1".into();
                }
                SvidFault::ExtraMembers => {
                    answer["unknownMember"] = json!({"deep": [1, 2, 3]});
                    answer["svid"]["unknownMember"] = true.into();
                }
                _ => {}
            }
        }
    }

    /// The bytes of a document, bent or not.
    pub fn render(&self, endpoint: Endpoint, trust_domain: &str, mut document: Value) -> Vec<u8> {
        let mut bytes = None;
        for fault in &self.0 {
            if let Fault::Document(fault) = fault {
                match endpoint {
                    Endpoint::Bundle => fault.bend_bundle(trust_domain, &mut document),
                    _ => fault.bend_discovery(&mut document),
                }
                bytes = fault.raw(trust_domain, &document).or(bytes);
            }
        }
        bytes.unwrap_or_else(|| document.to_string().into_bytes())
    }
}

impl SvidFault {
    fn bend_leaf(&self, leaf: &mut LeafSpec) -> Result<()> {
        let id = leaf.uris.first().cloned().unwrap_or_default();
        let (start, uuid) = id.rsplit_once('/').unwrap_or(("", ""));
        match self {
            Self::SpiffeId(id) => leaf.uris = vec![id.clone()],
            Self::WrongSpiffeId => {
                leaf.uris = vec![format!("{start}/{}", wire::random_uuid()?)];
            }
            Self::OtherTrustDomain(name) => {
                let path = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
                leaf.uris = vec![format!("spiffe://{name}/{}", path.unwrap_or_default().1)];
            }
            Self::TwoUriSans => leaf.uris.push(format!("{start}/{}", wire::random_uuid()?)),
            Self::NoUriSan => leaf.uris.clear(),
            Self::UppercaseUuid => {
                let mut upper = uuid.to_uppercase();
                if upper == uuid {
                    upper.replace_range(..1, "A");
                }
                leaf.uris = vec![format!("{start}/{upper}")];
            }
            Self::NotADevice => leaf.uris = vec![id.replace("/margo/device/", "/margo/wfm/")],
            Self::Lifetime(time) => leaf.not_after = SystemTime::now() + *time,
            Self::SanNotCritical => leaf.names_critical = false,
            Self::Subject(name) => leaf.subject = Some(name.clone()),
            Self::CaTrue => leaf.ca = true,
            Self::NoKeyUsage => leaf.key_usage = None,
            Self::KeyUsageNotCritical => leaf.key_usage_critical = false,
            Self::KeyCertSign => {
                leaf.key_usage = Some(KeyUsages::DigitalSignature | KeyUsages::KeyCertSign);
            }
            Self::CrlSign => {
                leaf.key_usage = Some(KeyUsages::DigitalSignature | KeyUsages::CRLSign);
            }
            Self::NoClientAuth => leaf.extended = vec![x509::SERVER_AUTH],
            Self::SerialNumber(number) => leaf.serial = Some(vec![*number]),
            Self::OtherKey => leaf.spki = KeyPair::generate(KeyKind::P256)?.0.spki().to_vec(),
            Self::Expired => {
                let now = SystemTime::now();
                leaf.not_before = now - Duration::from_secs(2 * 3600);
                leaf.not_after = now - Duration::from_secs(3600);
            }
            Self::NotYetValid(ahead) => {
                let lifetime = leaf.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                leaf.not_before = SystemTime::now() + *ahead;
                leaf.not_after = leaf.not_before + lifetime;
            }
            _ => {}
        }
        Ok(())
    }
}

impl DocumentFault {
    fn bend_discovery(&self, document: &mut Value) {
        match self {
            Self::TrustDomain(name) => document["trustDomain"] = name.as_str().into(),
            Self::HttpUrls => {
                for member in ["trustBundleUri", "margoIdentityServiceBaseUri"] {
                    if let Some(url) = document[member].as_str() {
                        document[member] = url.replacen("https://", "http://", 1).into();
                    }
                }
            }
            Self::MissingMember(name) => {
                document.as_object_mut().map(|members| members.remove(name));
            }
            Self::Member(name, value) => document[name.as_str()] = value.as_str().into(),
            Self::ExtraMembers => document["unknownMember"] = json!({"deep": [1, 2, 3]}),
            _ => {}
        }
    }

    fn bend_bundle(&self, trust_domain: &str, document: &mut Value) {
        let is_map = document.get("trust_domains").is_some();
        let entry = match document.pointer("/trust_domains") {
            Some(map) => map[trust_domain].clone(),
            None => document.clone(),
        };
        match self {
            // A plain bundle names no Trust Domain.
            Self::TrustDomain(name) if is_map => document["trust_domains"] = json!({ name: entry }),
            Self::MissingMember(name) => {
                document.as_object_mut().map(|members| members.remove(name));
                if let Some(map) = document.pointer_mut("/trust_domains") {
                    map[trust_domain].as_object_mut().map(|members| members.remove(name));
                }
            }
            Self::EmptyKeys => bundle_of(document, trust_domain)["keys"] = json!([]),
            Self::NoX509Keys => {
                let key = json!({"kty": "EC", "use": "jwt-svid", "kid": "one", "crv": "P-256"});
                bundle_of(document, trust_domain)["keys"] = json!([key]);
            }
            Self::PlainBundle => *document = entry,
            Self::BundleMap => *document = json!({ "trust_domains": { trust_domain: entry } }),
            Self::LowerSequence => {
                let sequence = entry["spiffe_sequence"].as_u64().unwrap_or(0);
                bundle_of(document, trust_domain)["spiffe_sequence"] = sequence.saturating_sub(1).into();
            }
            Self::ForeignKeys => {
                let mut keys = entry["keys"].as_array().cloned().unwrap_or_default();
                for key in &mut keys {
                    if let Some(chain) = key["x5c"].as_array_mut() {
                        chain.push("bm90IGEgY2VydGlmaWNhdGU=".into());
                    }
                }
                keys.push(json!({"kty": "OKP", "use": "x509-svid", "crv": "Ed25519", "x": "AA"}));
                keys.push(json!({"kty": "EC", "use": "jwt-svid", "kid": "one", "crv": "P-256"}));
                keys.push(json!({"kty": "EC", "use": "something-new", "x5c": ["AA=="]}));
                keys.push(json!({"kty": "EC", "use": "x509-svid", "crv": "P-256"}));
                bundle_of(document, trust_domain)["keys"] = keys.into();
            }
            Self::ExtraMembers => {
                document["unknownMember"] = json!({"deep": [1, 2, 3]});
                if is_map {
                    document["trust_domains"][trust_domain]["unknownMember"] = true.into();
                    document["trust_domains"]["other.example"] = json!({"keys": []});
                }
            }
            _ => {}
        }
    }

    fn raw(&self, trust_domain: &str, document: &Value) -> Option<Vec<u8>> {
        match self {
            Self::Replace(bytes) => Some(bytes.clone()),
            Self::DuplicateTrustDomain if document.get("trust_domains").is_some() => {
                let entry = &document["trust_domains"][trust_domain];
                let name = Value::from(trust_domain);
                let text = format!("{{\"trust_domains\":{{{name}:{entry},{name}:{entry}}}}}");
                Some(text.into_bytes())
            }
            _ => None,
        }
    }
}

/// The SPIFFE bundle in the document: its entry in a Bundle Map, or the document itself.
fn bundle_of<'a>(document: &'a mut Value, trust_domain: &str) -> &'a mut Value {
    if document.get("trust_domains").is_some() {
        return &mut document["trust_domains"][trust_domain];
    }
    document
}
