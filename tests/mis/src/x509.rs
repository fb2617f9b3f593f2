//! Certificates: building and signing them, and the few things that are read back out of them.
//! Everything is built field by field, so that a fault can bend one field and nothing else.

use crate::keys::{self, KeyPair};
use const_oid::AssociatedOid;
use const_oid::db::rfc5280;
use der::asn1::{BitString, GeneralizedTime, Ia5String, ObjectIdentifier, OctetString, Uint, UtcTime};
use der::flagset::FlagSet;
use der::{DateTime, Decode, Encode};
pub use development_server::hex;
use development_server::{Context, Error, Result};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::crl::{CertificateList, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, CrlNumber, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use x509_cert::time::{Time, Validity};

/// DER bytes of one certificate.
pub type Der = Vec<u8>;

/// Extended key usage: TLS server.
pub const SERVER_AUTH: ObjectIdentifier = rfc5280::ID_KP_SERVER_AUTH;
/// Extended key usage: TLS client.
pub const CLIENT_AUTH: ObjectIdentifier = rfc5280::ID_KP_CLIENT_AUTH;

/// A distinguished name with one common name, or the empty name.
pub fn common_name(name: &str) -> Result<Name> {
    if name.is_empty() {
        return Ok(Name::default());
    }
    Name::from_str(&format!("O=Development MIS,CN={name}")).context(format!("name {name:?}"))
}

/// What a certificate says, before it is signed.
pub struct Template {
    /// The subject's name.
    pub subject: Name,
    /// The subject's key, DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// In this order.
    pub extensions: Vec<Extension>,
    /// Serial number; a random one where it is `None`.
    pub serial: Option<Vec<u8>>,
}

/// A certificate authority: its certificate and its key.
pub struct Ca {
    /// Its own certificate.
    pub certificate: Der,
    name: Name,
    key: KeyPair,
}

impl Ca {
    /// Puts a certificate and its key together.
    pub fn new(certificate: Der, key: KeyPair) -> Result<Self> {
        let parsed = Certificate::from_der(&certificate)?;
        if parsed.tbs_certificate.subject_public_key_info.to_der()? != key.spki() {
            return Err(Error::new("a CA certificate does not belong to its key"));
        }
        Ok(Self { certificate, name: parsed.tbs_certificate.subject, key })
    }

    /// A self-signed authority.
    pub fn root(name: &str, key: KeyPair, uri: Option<&str>, years: u64) -> Result<Self> {
        let template = ca_template(name, key.spki(), uri, years)?;
        let certificate = self_signed(&template, &key)?;
        Self::new(certificate, key)
    }

    /// An authority under this one.
    pub fn subordinate(&self, name: &str, key: KeyPair, uri: Option<&str>, years: u64) -> Result<Self> {
        let certificate = self.issue(&ca_template(name, key.spki(), uri, years)?)?;
        Self::new(certificate, key)
    }

    /// An authority under this one, valid until a moment that may have passed.
    pub fn subordinate_until(&self, name: &str, key: KeyPair, not_after: SystemTime) -> Result<Self> {
        let template = Template { not_after, ..ca_template(name, key.spki(), None, 1)? };
        Self::new(self.issue(&template)?, key)
    }

    /// A self-signed authority of the same name with another key.
    pub fn rolled(&self, key: KeyPair) -> Result<Self> {
        let template = Template { subject: self.name.clone(), ..ca_template("", key.spki(), None, 20)? };
        let certificate = self_signed(&template, &key)?;
        Self::new(certificate, key)
    }

    /// Another certificate for the name and key of `other`, until this moment.
    pub fn certify(&self, other: &Self, not_after: SystemTime) -> Result<Der> {
        let template = ca_template("", other.key.spki(), None, 1)?;
        let not_before = template.not_before.min(not_after - Duration::from_secs(86_400));
        self.issue(&Template { subject: other.name.clone(), not_before, not_after, ..template })
    }

    /// A certificate for the name of `other` and another key.
    pub fn namesake(&self, other: &Self, key: &KeyPair) -> Result<Der> {
        self.issue(&Template { subject: other.name.clone(), ..ca_template("", key.spki(), None, 1)? })
    }

    /// A certificate revocation list of nothing.
    pub fn empty_crl(&self) -> Result<Der> {
        let now = SystemTime::now();
        let algorithm = self.key.signature_algorithm()?;
        let list = TbsCertList {
            version: Version::V2,
            signature: algorithm.clone(),
            issuer: self.name.clone(),
            this_update: time(now)?,
            next_update: Some(time(now + Duration::from_secs(86_400))?),
            revoked_certificates: None,
            crl_extensions: Some(vec![
                extension(&authority_key(self.key.spki())?, false)?,
                extension(&CrlNumber(Uint::new(&[1])?), false)?,
            ]),
        };
        let signature = BitString::from_bytes(&self.key.sign(&list.to_der()?)?)?;
        Ok(CertificateList { tbs_cert_list: list, signature_algorithm: algorithm, signature }.to_der()?)
    }

    /// Signs a certificate with this authority's key.
    pub fn issue(&self, template: &Template) -> Result<Der> {
        sign(template, &self.name, self.key.spki(), &self.key)
    }
}

/// A certificate signed with its own key.
pub fn self_signed(template: &Template, key: &KeyPair) -> Result<Der> {
    sign(template, &template.subject, key.spki(), key)
}

fn ca_template(name: &str, spki: &[u8], uri: Option<&str>, years: u64) -> Result<Template> {
    let now = SystemTime::now();
    let mut extensions =
        vec![basic_constraints(true)?, key_usage(KeyUsages::KeyCertSign | KeyUsages::CRLSign, true)?];
    if let Some(uri) = uri {
        extensions.push(uri_names(&[uri], false)?);
    }
    Ok(Template {
        subject: common_name(name)?,
        spki: spki.to_vec(),
        not_before: now - Duration::from_secs(3600),
        not_after: now + years_long(years),
        extensions,
        serial: None,
    })
}

/// So many years of 365 days.
pub fn years_long(years: u64) -> Duration {
    Duration::from_secs(years * 365 * 86_400)
}

fn sign(template: &Template, issuer: &Name, issuer_spki: &[u8], key: &KeyPair) -> Result<Der> {
    let mut extensions = template.extensions.clone();
    extensions.push(extension(&SubjectKeyIdentifier(key_id(&template.spki)?), false)?);
    extensions.push(extension(&authority_key(issuer_spki)?, false)?);
    let algorithm = key.signature_algorithm()?;
    let mut random = keys::random::<16>()?;
    random[0] = (random[0] & 0x7f) | 0x40;
    let serial = template.serial.as_deref().unwrap_or(&random);
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(serial)?,
        signature: algorithm.clone(),
        issuer: issuer.clone(),
        validity: Validity { not_before: time(template.not_before)?, not_after: time(template.not_after)? },
        subject: template.subject.clone(),
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(&template.spki)?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    let signature = BitString::from_bytes(&key.sign(&tbs_certificate.to_der()?)?)?;
    Ok(Certificate { tbs_certificate, signature_algorithm: algorithm, signature }.to_der()?)
}

/// RFC 5280: UTCTime up to 2049, GeneralizedTime from then on, whole seconds.
fn time(at: SystemTime) -> Result<Time> {
    let since = at.duration_since(UNIX_EPOCH).context("a time before 1970")?;
    let at = DateTime::from_unix_duration(Duration::from_secs(since.as_secs()))?;
    Ok(match at.year() {
        ..2050 => Time::UtcTime(UtcTime::from_date_time(at)?),
        _ => Time::GeneralTime(GeneralizedTime::from_date_time(at)),
    })
}

fn authority_key(spki: &[u8]) -> Result<AuthorityKeyIdentifier> {
    Ok(AuthorityKeyIdentifier { key_identifier: Some(key_id(spki)?), ..AuthorityKeyIdentifier::default() })
}

/// RFC 7093, method 1: the leftmost 160 bits of the key's SHA-256.
fn key_id(spki: &[u8]) -> Result<OctetString> {
    let spki = SubjectPublicKeyInfoOwned::from_der(spki)?;
    let digest = sha256(spki.subject_public_key.raw_bytes());
    Ok(OctetString::new(&digest[..20])?)
}

/// SHA-256.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, data).as_ref());
    out
}

fn extension<T: AssociatedOid + Encode>(value: &T, critical: bool) -> Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

/// Basic constraints, always critical.
pub fn basic_constraints(ca: bool) -> Result<Extension> {
    extension(&BasicConstraints { ca, path_len_constraint: None }, true)
}

/// Key usage.
pub fn key_usage(usages: impl Into<FlagSet<KeyUsages>>, critical: bool) -> Result<Extension> {
    extension(&KeyUsage(usages.into()), critical)
}

/// Extended key usage.
pub fn extended_key_usage(usages: &[ObjectIdentifier]) -> Result<Extension> {
    extension(&ExtendedKeyUsage(usages.to_vec()), false)
}

/// Subject alternative names that are URIs.
pub fn uri_names(uris: &[impl AsRef<str>], critical: bool) -> Result<Extension> {
    let names = uris
        .iter()
        .map(|uri| Ok(GeneralName::UniformResourceIdentifier(Ia5String::new(uri.as_ref())?)))
        .collect::<Result<Vec<_>>>()?;
    extension(&SubjectAltName(names), critical)
}

/// Subject alternative names of an SVID: its SPIFFE ID, and DNS names.
pub fn svid_names(uris: &[String], dns: &[String], critical: bool) -> Result<Extension> {
    let uris = uris.iter().map(|uri| Ok(GeneralName::UniformResourceIdentifier(Ia5String::new(uri)?)));
    let dns = dns.iter().map(|name| Ok(GeneralName::DnsName(Ia5String::new(name)?)));
    let names = uris.chain(dns).collect::<Result<Vec<_>>>()?;
    extension(&SubjectAltName(names), critical)
}

/// Subject alternative names of a server: DNS names and IP addresses (T4).
pub fn host_names(hosts: &[String]) -> Result<Extension> {
    let names = hosts
        .iter()
        .map(|host| {
            Ok(match host.parse() {
                Ok(IpAddr::V4(ip)) => GeneralName::IpAddress(OctetString::new(ip.octets())?),
                Ok(IpAddr::V6(ip)) => GeneralName::IpAddress(OctetString::new(ip.octets())?),
                Err(_) => GeneralName::DnsName(Ia5String::new(host)?),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    extension(&SubjectAltName(names), false)
}

/// The URI SANs of a certificate; empty where it cannot be read.
pub fn uris_of(certificate: &[u8]) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some((_, names))) = certificate.tbs_certificate.get::<SubjectAltName>() else {
        return Vec::new();
    };
    names
        .0
        .into_iter()
        .filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
            _ => None,
        })
        .collect()
}

/// Why a certificate's key usage is not that of an SVID (N6); `None` where it is.
pub fn svid_usage_error(certificate: &[u8]) -> Option<&'static str> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Some("not a certificate") };
    let Ok(Some((_, KeyUsage(usage)))) = certificate.tbs_certificate.get::<KeyUsage>() else {
        return Some("no key usage");
    };
    if usage.contains(KeyUsages::KeyCertSign) || usage.contains(KeyUsages::CRLSign) {
        return Some("key usage of an authority");
    }
    (!usage.contains(KeyUsages::DigitalSignature)).then_some("key usage without digitalSignature")
}

/// The DER SubjectPublicKeyInfo of a certificate.
pub fn spki_of(certificate: &[u8]) -> Result<Vec<u8>> {
    let certificate = Certificate::from_der(certificate)?;
    Ok(certificate.tbs_certificate.subject_public_key_info.to_der()?)
}
