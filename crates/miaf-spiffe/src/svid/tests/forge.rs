//! Certificates with any one field bent. They are put together byte by byte, because no library of
//! good manners writes what has to be refused here.

use std::sync::LazyLock;
use std::time::Duration;

use der::Encode as _;
use der::asn1::{GeneralizedTime, ObjectIdentifier, UtcTime};
use proptest::sample::Index;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RSA_PSS_SHA384, RsaEncoding, RsaKeyPair,
};
use rustls_pki_types::{AlgorithmIdentifier, alg_id};

pub(super) const BASIC_CONSTRAINTS: &str = "2.5.29.19";
pub(super) const KEY_USAGE: &str = "2.5.29.15";
pub(super) const SUBJECT_ALT_NAME: &str = "2.5.29.17";
pub(super) const NAME_CONSTRAINTS: &str = "2.5.29.30";
pub(super) const CERTIFICATE_POLICIES: &str = "2.5.29.32";
pub(super) const SUBJECT_KEY_ID: &str = "2.5.29.14";
pub(super) const AUTHORITY_KEY_ID: &str = "2.5.29.35";
pub(super) const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
/// An extension that no program knows.
pub(super) const UNKNOWN: &str = "1.3.6.1.4.1.99999.1";

pub(super) const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
pub(super) const CLIENT_AUTH: &str = "1.3.6.1.5.5.7.3.2";
pub(super) const CODE_SIGNING: &str = "1.3.6.1.5.5.7.3.3";
pub(super) const ANY_USAGE: &str = "2.5.29.37.0";

pub(super) const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";
pub(super) const SHA_1: &str = "1.3.14.3.2.26";
pub(super) const SHA_256: &str = "2.16.840.1.101.3.4.2.1";
pub(super) const SHA_384: &str = "2.16.840.1.101.3.4.2.2";

pub(super) const DIGITAL_SIGNATURE: u8 = 0b1000_0000;
pub(super) const NON_REPUDIATION: u8 = 0b0100_0000;
pub(super) const KEY_ENCIPHERMENT: u8 = 0b0010_0000;
pub(super) const KEY_AGREEMENT: u8 = 0b0000_1000;
pub(super) const KEY_CERT_SIGN: u8 = 0b0000_0100;
pub(super) const CRL_SIGN: u8 = 0b0000_0010;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BOOLEAN: u8 = 0x01;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
pub(super) const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;

/// One DER element.
pub(super) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u32::try_from(content.len()).unwrap();
    let mut out = vec![tag];
    match length.to_be_bytes() {
        [0, 0, 0, n @ 0..=127] => out.push(n),
        [0, 0, 0, n] => out.extend([0x81, n]),
        [0, 0, high, low] => out.extend([0x82, high, low]),
        [_, a, b, c] => out.extend([0x83, a, b, c]),
    }
    out.extend(content);
    out
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, parts)
}

fn oid(dotted: &str) -> Vec<u8> {
    ObjectIdentifier::new_unwrap(dotted).to_der().unwrap()
}

fn bits(content: &[u8]) -> Vec<u8> {
    tlv(BIT_STRING, &[&[0], content])
}

/// A distinguished name of one common name.
pub(super) fn name(common_name: &str) -> Vec<u8> {
    let value = tlv(UTF8_STRING, &[common_name.as_bytes()]);
    sequence(&[&tlv(SET, &[&sequence(&[&oid("2.5.4.3"), &value])])])
}

/// The name that RFC 5280 allows where the subject alternative name is critical.
pub(super) fn no_name() -> Vec<u8> {
    sequence(&[])
}

pub(super) fn uri(text: impl AsRef<[u8]>) -> Vec<u8> {
    tlv(0x86, &[text.as_ref()])
}

pub(super) fn dns(text: &str) -> Vec<u8> {
    tlv(0x82, &[text.as_bytes()])
}

pub(super) fn names(all: &[Vec<u8>]) -> Vec<u8> {
    sequence(&[&all.concat()])
}

/// A key usage extension's value, as DER shortens it: without the zero bits at the end.
pub(super) fn usages(flags: u8) -> Vec<u8> {
    let unused = u8::try_from(flags.trailing_zeros().min(7)).unwrap();
    if flags == 0 { tlv(BIT_STRING, &[&[0]]) } else { tlv(BIT_STRING, &[&[unused, flags]]) }
}

pub(super) fn purposes(all: &[&str]) -> Vec<u8> {
    sequence(&[&all.iter().flat_map(|p| oid(p)).collect::<Vec<_>>()])
}

pub(super) fn basic_constraints(ca: bool, path_length: Option<u8>) -> Vec<u8> {
    let ca = if ca { tlv(BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    let path_length = path_length.map(|n| tlv(INTEGER, &[&[n]])).unwrap_or_default();
    sequence(&[&ca, &path_length])
}

/// The only names that an issuer may give: those under `permitted`.
pub(super) fn name_constraints(permitted: Vec<u8>) -> Vec<u8> {
    sequence(&[&tlv(0xa0, &[&sequence(&[&permitted])])])
}

/// A key pair, made once for all tests, or read from a file where making one takes seconds.
pub(super) struct Key {
    pub(super) spki: Vec<u8>,
    signer: Signer,
}

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// How a certificate is signed. The first two are those of MIAF.
#[derive(Clone, Copy)]
pub(super) enum Signature {
    EcdsaSha256,
    PssSha256,
    EcdsaSha384,
    PssSha384,
    Pkcs1Sha256,
    /// As RFC 4055 section 5 says that it must be accepted.
    Pkcs1Sha256WithoutNull,
    Ed25519,
    /// One of the first two in truth, but the certificate gives it this name.
    Named(&'static [u8]),
}

impl Signature {
    fn id(self) -> AlgorithmIdentifier {
        match self {
            Self::EcdsaSha256 => alg_id::ECDSA_SHA256,
            Self::PssSha256 => alg_id::RSA_PSS_SHA256,
            Self::EcdsaSha384 => alg_id::ECDSA_SHA384,
            Self::PssSha384 => alg_id::RSA_PSS_SHA384,
            Self::Pkcs1Sha256 => alg_id::RSA_PKCS1_SHA256,
            Self::Pkcs1Sha256WithoutNull => named("1.2.840.113549.1.1.11").id(),
            Self::Ed25519 => alg_id::ED25519,
            Self::Named(name) => AlgorithmIdentifier::from_slice(name),
        }
    }

    fn rsa(self) -> &'static dyn RsaEncoding {
        match self {
            Self::PssSha384 => &RSA_PSS_SHA384,
            Self::Pkcs1Sha256 | Self::Pkcs1Sha256WithoutNull => &RSA_PKCS1_SHA256,
            _ => &RSA_PSS_SHA256,
        }
    }
}

/// The name of an algorithm without parameters, as ECDSA's are.
pub(super) fn named(dotted: &str) -> Signature {
    Signature::Named(oid(dotted).leak())
}

/// The name of an algorithm with the parameter NULL, as those of RSA PKCS#1 v1.5.
pub(super) fn named_with_null(dotted: &str) -> Signature {
    Signature::Named([oid(dotted), vec![5, 0]].concat().leak())
}

/// The name of RSASSA-PSS with its three parameters (RFC 4055).
pub(super) fn pss(hash: &str, mask_hash: &str, salt: u8) -> Signature {
    let id = |of| sequence(&[&oid(of), &[5, 0]]);
    let mask = sequence(&[&oid("1.2.840.113549.1.1.8"), &id(mask_hash)]);
    let salt = tlv(INTEGER, &[&[salt]]);
    let parameters = sequence(&[&tlv(0xa0, &[&id(hash)]), &tlv(0xa1, &[&mask]), &tlv(0xa2, &[&salt])]);
    Signature::Named([oid(RSASSA_PSS), parameters].concat().leak())
}

impl Key {
    fn ecdsa(curve: AlgorithmIdentifier, with: &'static EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(with, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(with, pkcs8.as_ref(), &random).unwrap();
        let spki = sequence(&[&sequence(&[&curve]), &bits(pair.public_key().as_ref())]);
        Self { spki, signer: Signer::Ecdsa(pair) }
    }

    fn p256() -> Self {
        Self::ecdsa(alg_id::ECDSA_P256, &ECDSA_P256_SHA256_ASN1_SIGNING)
    }

    fn p384() -> Self {
        Self::ecdsa(alg_id::ECDSA_P384, &ECDSA_P384_SHA384_ASN1_SIGNING)
    }

    fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let spki = sequence(&[&sequence(&[&alg_id::ED25519]), &bits(pair.public_key().as_ref())]);
        Self { spki, signer: Signer::Ed25519(pair) }
    }

    /// `id` says what the key is for: RSA of any kind, or PSS alone (id-RSASSA-PSS, RFC 4055).
    fn rsa(pkcs8: &[u8], id: AlgorithmIdentifier) -> Self {
        let pair = RsaKeyPair::from_pkcs8(pkcs8).unwrap();
        let spki = sequence(&[&sequence(&[&id]), &bits(pair.public_key().as_ref())]);
        Self { spki, signer: Signer::Rsa(pair) }
    }

    /// A key of a kind that nothing here signs with, for a leaf.
    fn of_kind(id: &[u8], public: &[u8]) -> Self {
        Self { spki: sequence(&[&sequence(&[id]), &bits(public)]), ..Self::p256() }
    }

    fn signature(&self) -> Signature {
        match &self.signer {
            Signer::Ecdsa(_) => Signature::EcdsaSha256,
            Signer::Ed25519(_) => Signature::Ed25519,
            Signer::Rsa(_) => Signature::PssSha256,
        }
    }

    /// ring signs with P-256 only over SHA-256, so there the other hash is in the name of the
    /// algorithm alone: were it accepted, the signature would not fit, which is another refusal
    /// than the one that is expected.
    fn sign(&self, with: Signature, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.signer {
            Signer::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Signer::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(with.rsa(), &random, message, &mut signature).unwrap();
                signature
            }
        }
    }
}

pub(super) static DEVICE: LazyLock<Key> = LazyLock::new(Key::p256);
pub(super) static ROOT: LazyLock<Key> = LazyLock::new(Key::p256);
pub(super) static INTERMEDIATE: LazyLock<Key> = LazyLock::new(Key::p256);
pub(super) static OTHER: LazyLock<Key> = LazyLock::new(Key::p256);
pub(super) static P384: LazyLock<Key> = LazyLock::new(Key::p384);
pub(super) static ED25519: LazyLock<Key> = LazyLock::new(Key::ed25519);
pub(super) static RSA_2048: LazyLock<Key> = LazyLock::new(|| Key::rsa(BITS_2048, alg_id::RSA_ENCRYPTION));
pub(super) static RSA_3072: LazyLock<Key> = LazyLock::new(|| Key::rsa(BITS_3072, alg_id::RSA_ENCRYPTION));
pub(super) static RSA_2048_FOR_PSS: LazyLock<Key> =
    LazyLock::new(|| Key::rsa(BITS_2048, named(RSASSA_PSS).id()));
pub(super) static RSA_3072_FOR_PSS: LazyLock<Key> =
    LazyLock::new(|| Key::rsa(BITS_3072, named(RSASSA_PSS).id()));
pub(super) static RSA_3072_FOR_THIS_PSS: LazyLock<Key> =
    LazyLock::new(|| Key::rsa(BITS_3072, pss(SHA_256, SHA_256, 32).id()));
pub(super) static RSA_3072_FOR_OTHER_PSS: LazyLock<Key> =
    LazyLock::new(|| Key::rsa(BITS_3072, pss(SHA_256, SHA_256, 20).id()));
pub(super) static DAMAGED_RSA: LazyLock<Key> =
    LazyLock::new(|| Key::of_kind(&alg_id::RSA_ENCRYPTION, &[0x30, 0]));
pub(super) static P521: LazyLock<Key> = LazyLock::new(|| Key::of_kind(&alg_id::ECDSA_P521, &[4; 133]));
pub(super) static UNKNOWN_CURVE: LazyLock<Key> =
    LazyLock::new(|| Key::of_kind(&[oid("1.2.840.10045.2.1"), oid(UNKNOWN)].concat(), &[4; 65]));
pub(super) static ED448: LazyLock<Key> = LazyLock::new(|| Key::of_kind(&oid("1.3.101.113"), &[7; 57]));
const BITS_2048: &[u8] = include_bytes!("../../../../../tests/data/test-key-rsa-2048.pk8.der");
const BITS_3072: &[u8] = include_bytes!("../../../../../tests/data/test-key-rsa-3072.pk8.der");

/// One change of some bytes, made without looking at them.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Copies some bytes from one place to another.
    Repeat(Index, usize, Index),
}

impl Edit {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        let end = bytes.len();
        let span = |from: &Index, length: usize| {
            let from = from.index(end + 1);
            from..(from + length).min(end)
        };
        match self {
            Self::Set(at, byte) if !bytes.is_empty() => *at.get_mut(bytes) = *byte,
            Self::Flip(at, bit) if !bytes.is_empty() => *at.get_mut(bytes) ^= 1 << bit,
            Self::Set(..) | Self::Flip(..) => {}
            Self::Insert(at, more) => drop(bytes.splice(span(at, 0), more.clone())),
            Self::Remove(at, length) => drop(bytes.drain(span(at, *length))),
            Self::Repeat(from, length, to) => {
                let copy = bytes[span(from, *length)].to_vec();
                drop(bytes.splice(span(to, 0), copy));
            }
        }
    }
}

/// What a certificate says, before it is signed.
#[derive(Clone)]
pub(super) struct Template {
    /// `None` leaves the field out, which means version 1.
    pub(super) version: Option<u8>,
    /// The bytes of the integer, as they are.
    pub(super) serial: Vec<u8>,
    pub(super) subject: Vec<u8>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// Both times in another form than RFC 5280 demands.
    pub(super) validity: Option<Vec<u8>>,
    pub(super) key: &'static Key,
    /// What comes between the key and the extensions: in version 2, the unique identifiers.
    pub(super) unique_ids: Vec<u8>,
    /// Object identifier, critical, value: written in this order.
    pub(super) extensions: Vec<(&'static str, bool, Vec<u8>)>,
    /// How it is signed; by itself, as its issuer's key does in MIAF.
    pub(super) signed: Option<Signature>,
    /// What the signed part says about that, if something else.
    pub(super) claimed: Option<Signature>,
    /// Changes of the part that is signed, before it is.
    pub(super) edits: Vec<Edit>,
    /// A last change to the finished DER.
    pub(super) spoiled: fn(&mut Vec<u8>),
}

impl Template {
    pub(super) fn new(subject: Vec<u8>, key: &'static Key, not_before: i64, not_after: i64) -> Self {
        Self {
            version: Some(2),
            serial: vec![0x4d, 0x61, 0x72, 0x67, 0x6f],
            subject,
            not_before,
            not_after,
            validity: None,
            key,
            unique_ids: Vec::new(),
            extensions: Vec::new(),
            signed: None,
            claimed: None,
            edits: Vec::new(),
            spoiled: |_| {},
        }
    }

    /// Puts the extension in place of the one that is there, or at the end.
    pub(super) fn set(&mut self, id: &'static str, critical: bool, value: Vec<u8>) {
        match self.extensions.iter_mut().find(|(there, ..)| *there == id) {
            Some(there) => *there = (id, critical, value),
            None => self.add(id, critical, value),
        }
    }

    /// Adds the extension, even where there is one of its kind.
    pub(super) fn add(&mut self, id: &'static str, critical: bool, value: Vec<u8>) {
        self.extensions.push((id, critical, value));
    }

    pub(super) fn without(&mut self, id: &'static str) {
        self.extensions.retain(|(there, ..)| *there != id);
    }

    /// The certificate that `issuer` makes of this.
    pub(super) fn certify(&self, issuer: &Self) -> Vec<u8> {
        let signature = self.signed.unwrap_or_else(|| issuer.key.signature());
        let version = self.version.map(|v| tlv(0xa0, &[&tlv(INTEGER, &[&[v]])])).unwrap_or_default();
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(id, critical, value)| {
                let critical = if *critical { tlv(BOOLEAN, &[&[0xff]]) } else { Vec::new() };
                sequence(&[&oid(id), &critical, &tlv(OCTET_STRING, &[value])])
            })
            .collect();
        let extensions =
            if extensions.is_empty() { Vec::new() } else { tlv(0xa3, &[&sequence(&[&extensions])]) };
        let validity = [time(self.not_before), time(self.not_after)].concat();
        let mut signed_part = [
            version,
            tlv(INTEGER, &[&self.serial]),
            sequence(&[&self.claimed.unwrap_or(signature).id()]),
            issuer.subject.clone(),
            sequence(&[self.validity.as_deref().unwrap_or(&validity)]),
            self.subject.clone(),
            self.key.spki.clone(),
            self.unique_ids.clone(),
            extensions,
        ]
        .concat();
        self.edits.iter().for_each(|edit| edit.apply(&mut signed_part));
        let signed_part = sequence(&[&signed_part]);
        let signature_bits = bits(&issuer.key.sign(signature, &signed_part));
        let mut der = sequence(&[&signed_part, &sequence(&[&signature.id()]), &signature_bits]);
        (self.spoiled)(&mut der);
        der
    }
}

/// A validity in UTCTime, as it is written.
pub(super) fn utc_times(not_before: &str, not_after: &str) -> Vec<u8> {
    [not_before, not_after].iter().flat_map(|text| tlv(UTC_TIME, &[text.as_bytes()])).collect()
}

/// RFC 5280: two digits of the year until 2049, four from then on.
fn time(seconds: i64) -> Vec<u8> {
    let since_epoch = Duration::from_secs(u64::try_from(seconds).unwrap());
    UtcTime::from_unix_duration(since_epoch).map_or_else(
        |_| GeneralizedTime::from_unix_duration(since_epoch).unwrap().to_der().unwrap(),
        |t| t.to_der().unwrap(),
    )
}
