//! The server's own PKI, in one directory: a TLS authority, a manufacturer with sample devices, and
//! the Trust Domain's issuing authorities. An existing directory is used again, so that a restart
//! keeps everything valid that was issued before.

use crate::est::Domain;
use crate::faults::ServerFault;
use crate::keys::{KeyKind, KeyPair};
use crate::pem;
use crate::x509::{self, Ca, Der, Template};
use development_server::{Context, Error, Result};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use x509_cert::ext::pkix::KeyUsages;

/// Which certificate signs SVIDs (the SUP's deployment modes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IssuingMode {
    /// The root in the Trust Bundle signs them itself.
    Root,
    /// An intermediate signs them and travels in every chain; the root is in the Trust Bundle.
    Intermediate,
}

/// The algorithm of the Trust Domain's authorities (K3, K4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IssuerAlgorithm {
    /// ECDSA P-256 with SHA-256.
    P256,
    /// RSASSA-PSS with SHA-256, 3072 bits.
    RsaPss,
    /// RSA PKCS#1 v1.5 with SHA-256, 3072 bits (released documents only, N7).
    RsaPkcs1,
    /// ECDSA P-384 with SHA-384 (released documents only, N7).
    P384,
    /// Ed25519 (released documents only, N7).
    Ed25519,
}

impl IssuerAlgorithm {
    fn key(self) -> KeyKind {
        match self {
            Self::P256 => KeyKind::P256,
            Self::RsaPss => KeyKind::Rsa3072,
            Self::RsaPkcs1 => KeyKind::Rsa3072Pkcs1,
            Self::P384 => KeyKind::P384,
            Self::Ed25519 => KeyKind::Ed25519,
        }
    }

    /// Whether v0 permits it (K3, K4).
    pub fn is_of_v0(self) -> bool {
        matches!(self, Self::P256 | Self::RsaPss)
    }
}

/// One step of an anchor rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnchorStep {
    /// Makes a new authority and publishes its root in addition to the old one; the old one still
    /// issues.
    Announce,
    /// Issues with the newest authority (announced now, if it was not before); old anchors stay.
    Switch,
    /// Takes every root but the issuing one out of the Trust Bundle.
    DropOld,
}

/// A sample device's credential to make.
#[derive(Debug, Clone)]
pub struct FactorySpec {
    /// The device's key. Manufacturer PKI may use what MIAF does not (K5).
    pub key: KeyKind,
    /// How long it is valid; zero makes one that has expired already.
    pub lifetime: Duration,
    /// Signed by a manufacturer that this server does not know.
    pub unknown_manufacturer: bool,
    /// Its validity begins so far ahead; zero makes one that is valid already.
    pub begins_in: Duration,
}

impl Default for FactorySpec {
    fn default() -> Self {
        Self {
            key: KeyKind::P256,
            lifetime: x509::years_long(20),
            unknown_manufacturer: false,
            begins_in: Duration::ZERO,
        }
    }
}

/// What [`Pki::open`] needs to know.
pub struct PkiSpec<'a> {
    /// Created with mode 0700 where it is missing.
    pub directory: &'a Path,
    /// Names and addresses in the server's certificate.
    pub hosts: &'a [String],
    /// The Trust Domain's name.
    pub trust_domain: &'a str,
    /// Root or intermediate mode.
    pub mode: IssuingMode,
    /// The authorities' algorithm.
    pub algorithm: IssuerAlgorithm,
    /// `spiffe_sequence` of a new directory.
    pub first_sequence: u64,
    /// PEM files with further manufacturer CAs.
    pub factory_cas: &'a [PathBuf],
    /// What is wrong with the server's certificate.
    pub server_fault: Option<&'a ServerFault>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct State {
    trust_domain: String,
    mode: IssuingMode,
    algorithm: IssuerAlgorithm,
    sequence: u64,
    published: Vec<u32>,
    issuing: u32,
}

/// One authority of the Trust Domain.
pub struct Authority {
    number: u32,
    /// In the Trust Bundle.
    pub root: Ca,
    /// In intermediate mode, the one that signs.
    pub intermediate: Option<Ca>,
}

impl Authority {
    /// The authority that signs SVIDs.
    pub fn issuer(&self) -> &Ca {
        self.intermediate.as_ref().unwrap_or(&self.root)
    }

    /// What follows the leaf in `certificateChainPem` (E2): intermediates, not the root.
    pub fn chain(&self) -> Vec<Der> {
        self.intermediate.iter().map(|ca| ca.certificate.clone()).collect()
    }
}

/// A root that was rolled over (RFC 4210, section 4.4).
struct RollOver {
    new: Ca,
    old_with_new: Der,
    new_with_old: Der,
}

/// What issues over EST: an authority, and intermediates below it.
pub struct EstIssuing {
    /// The authority.
    pub authority: Authority,
    below: Vec<Ca>,
}

impl EstIssuing {
    /// The one that signs SVIDs.
    pub fn issuer(&self) -> &Ca {
        self.below.last().unwrap_or_else(|| self.authority.issuer())
    }

    /// The authority that certified [`issuer`](Self::issuer); the root itself where that is the issuer.
    pub fn above_issuer(&self) -> &Ca {
        match self.below.as_slice() {
            [.., above, _] => above,
            [_] => self.authority.issuer(),
            [] => &self.authority.root,
        }
    }

    /// The certificates between an SVID and the root, from the SVID's issuer upwards.
    pub fn chain(&self) -> Vec<Der> {
        let below = self.below.iter().rev().map(|ca| ca.certificate.clone());
        below.chain(self.authority.chain()).collect()
    }
}

/// The whole directory, loaded.
pub struct Pki {
    directory: PathBuf,
    factory_intermediate: Ca,
    factory_anchors: Vec<Der>,
    state: State,
    authorities: Vec<Authority>,
    tls_chain: Vec<Der>,
    tls_key: Vec<u8>,
    rolled: Option<RollOver>,
}

const CERTIFICATE: &str = "CERTIFICATE";

impl Pki {
    /// Opens the directory, and makes what is missing in it.
    pub fn open(spec: &PkiSpec<'_>) -> Result<Self> {
        check_trust_domain(spec.trust_domain)?;
        let directory = spec.directory;
        make_directory(directory)?;

        let tls_ca =
            ca_or(directory, "tls-ca", KeyKind::P256, |key| Ca::root("TLS authority", key, None, 30))?;
        let (tls_chain, tls_key) = server_certificate(spec, &tls_ca)?;

        let manufacturer = ca_or(directory, "factory-ca", KeyKind::P256, |key| {
            Ca::root("Manufacturer root", key, None, 50)
        })?;
        let factory_intermediate = ca_or(directory, "factory-intermediate", KeyKind::P256, |key| {
            manufacturer.subordinate("Manufacturer line 1", key, None, 40)
        })?;
        let mut factory_anchors = vec![manufacturer.certificate.clone()];
        for file in spec.factory_cas {
            factory_anchors.extend(pem::certificates(&read(file)?).context(file.display())?);
        }

        let (state, authorities) = open_trust_domain(spec)?;
        let pki = Self {
            directory: directory.to_owned(),
            factory_intermediate,
            factory_anchors,
            state,
            authorities,
            tls_chain,
            tls_key,
            rolled: None,
        };
        if !pki.directory.join("factory.pem").exists() {
            pki.write_credential("factory", "device-0001", &FactorySpec::default())?;
        }
        Ok(pki)
    }

    /// The server's certificate chain and PKCS#8 key.
    pub fn tls(&self) -> (&[Der], &[u8]) {
        (&self.tls_chain, &self.tls_key)
    }

    /// Certificates that device credentials must chain to.
    pub fn factory_anchors(&self) -> &[Der] {
        &self.factory_anchors
    }

    /// `spiffe_sequence` (B1).
    pub fn sequence(&self) -> u64 {
        self.state.sequence
    }

    /// Sets `spiffe_sequence`, as a restored backup would.
    pub fn set_sequence(&mut self, sequence: u64) -> Result<()> {
        self.state.sequence = sequence;
        self.save_state()
    }

    /// The authority that issues now.
    pub fn issuing(&self) -> Result<&Authority> {
        self.authorities
            .iter()
            .find(|one| one.number == self.state.issuing)
            .ok_or_else(|| Error::new("the issuing authority is missing"))
    }

    /// The roots in the Trust Bundle.
    pub fn anchors(&self) -> Vec<Der> {
        self.authorities
            .iter()
            .filter(|one| self.state.published.contains(&one.number))
            .map(|one| match &self.rolled {
                Some(rolled) if one.number == self.state.issuing => rolled.new.certificate.clone(),
                _ => one.root.certificate.clone(),
            })
            .collect()
    }

    /// Puts a new root of the same name into the Trust Bundle in the place of the issuing one.
    pub fn roll_over(&mut self) -> Result<()> {
        let old = &self.issuing()?.root;
        let new = old.rolled(
            KeyPair::generate(self.state.algorithm.key())?.0.signing_as(self.state.algorithm.key()),
        )?;
        let until = SystemTime::now() + x509::years_long(1);
        let rolled =
            RollOver { old_with_new: new.certify(old, until)?, new_with_old: old.certify(&new, until)?, new };
        self.rolled = Some(rolled);
        self.state.sequence += 1;
        self.save_state()
    }

    /// The anchors of a domain of EST.
    pub fn est_anchors(&self, domain: &Domain) -> Result<Vec<Der>> {
        if domain.trust_domain == self.state.trust_domain {
            return Ok(self.anchors());
        }
        Ok(vec![self.est_authority(domain, 1)?.root.certificate])
    }

    /// What issues over EST in this domain, with so many intermediates below its authority.
    pub fn est_issuing(&self, domain: &Domain, depth: usize) -> Result<EstIssuing> {
        let number = if domain.trust_domain == self.state.trust_domain { self.state.issuing } else { 1 };
        self.est_issuing_of(domain, number, depth)
    }

    /// The roots of a domain of EST and every intermediate that its SVIDs need (X61), with the
    /// self-issued certificates of a root that was rolled over.
    pub fn est_authorities(&self, domain: &Domain, depth: usize) -> Result<(Vec<Der>, Vec<Der>)> {
        if domain.trust_domain != self.state.trust_domain {
            let issuing = self.est_issuing(domain, depth)?;
            return Ok((vec![issuing.authority.root.certificate.clone()], issuing.chain()));
        }
        let mut roots = self.anchors();
        let mut intermediates = Vec::new();
        let published = self.state.published.iter().copied();
        for number in published.filter(|number| *number != self.state.issuing).chain([self.state.issuing]) {
            intermediates.extend(self.est_issuing_of(domain, number, depth)?.chain());
        }
        if let Some(rolled) = &self.rolled {
            roots.push(self.issuing()?.root.certificate.clone());
            intermediates.extend([rolled.old_with_new.clone(), rolled.new_with_old.clone()]);
        }
        Ok((roots, intermediates))
    }

    fn est_issuing_of(&self, domain: &Domain, number: u32, depth: usize) -> Result<EstIssuing> {
        let authority = self.est_authority(domain, number)?;
        let directory = self.est_directory(domain)?;
        let kind = self.state.algorithm.key();
        let uri = format!("spiffe://{}", domain.trust_domain);
        let mut below: Vec<Ca> = Vec::new();
        for level in 1..=depth {
            let above = below.last().unwrap_or_else(|| authority.issuer());
            let next = ca_or(&directory, &format!("intermediate-{number}-{level}"), kind, |key| {
                above.subordinate(&format!("EST issuer {number}.{level}"), key, Some(&uri), 10)
            })?;
            below.push(next);
        }
        Ok(EstIssuing { authority, below })
    }

    fn est_authority(&self, domain: &Domain, number: u32) -> Result<Authority> {
        if domain.trust_domain == self.state.trust_domain {
            return open_authority(&self.directory, &self.state, number);
        }
        let uri = format!("spiffe://{}", domain.trust_domain);
        let name = format!("Trust Domain {} root", domain.trust_domain);
        let kind = self.state.algorithm.key();
        let root =
            ca_or(&self.est_directory(domain)?, "root", kind, |key| Ca::root(&name, key, Some(&uri), 20))?;
        Ok(Authority { number, root, intermediate: None })
    }

    fn est_directory(&self, domain: &Domain) -> Result<PathBuf> {
        let directory = self.directory.join("est").join(&domain.label);
        make_directory(&directory)?;
        Ok(directory)
    }

    /// One step of an anchor rotation; each that changes the Trust Bundle adds 1 to its sequence.
    pub fn rotate(&mut self, step: AnchorStep) -> Result<()> {
        let newest = self.state.published.iter().copied().max().unwrap_or(0);
        match step {
            AnchorStep::Announce => self.announce()?,
            AnchorStep::Switch => {
                if newest == self.state.issuing {
                    self.announce()?;
                }
                self.state.issuing = self.state.published.iter().copied().max().unwrap_or(self.state.issuing);
            }
            AnchorStep::DropOld => {
                if self.state.published != [self.state.issuing] {
                    self.state.published = vec![self.state.issuing];
                    self.state.sequence += 1;
                }
            }
        }
        self.save_state()
    }

    fn announce(&mut self) -> Result<()> {
        let number = self.authorities.iter().map(|one| one.number).max().unwrap_or(0) + 1;
        self.authorities.push(open_authority(&self.directory, &self.state, number)?);
        self.state.published.push(number);
        self.state.sequence += 1;
        Ok(())
    }

    fn save_state(&self) -> Result<()> {
        replace(&state_file(&self.directory), &serde_json::to_vec_pretty(&self.state)?)
    }

    /// Whether a device of this name has been made.
    pub fn has_credential(&self, name: &str) -> bool {
        self.directory.join(format!("factory-{name}.pem")).exists()
    }

    /// Another device: `factory-NAME.pem` (leaf and intermediate) and `factory-NAME.key`.
    pub fn new_credential(&self, name: &str, spec: &FactorySpec) -> Result<(PathBuf, PathBuf)> {
        check_name(name)?;
        self.write_credential(&format!("factory-{name}"), name, spec)
    }

    /// A certificate for a device's external key, in a TPM for instance:
    /// `factory-NAME.pem`.
    pub fn certify(&self, name: &str, spki: &[u8], spec: &FactorySpec) -> Result<PathBuf> {
        check_name(name)?;
        self.write_certificate(&format!("factory-{name}"), name, spki, spec)
    }

    fn write_credential(&self, file: &str, name: &str, spec: &FactorySpec) -> Result<(PathBuf, PathBuf)> {
        let (key, pkcs8) = KeyPair::generate(spec.key)?;
        let certificate = self.write_certificate(file, name, key.spki(), spec)?;
        let key_file = self.directory.join(format!("{file}.key"));
        write_key(&key_file, &pkcs8)?;
        Ok((certificate, key_file))
    }

    fn write_certificate(&self, file: &str, name: &str, spki: &[u8], spec: &FactorySpec) -> Result<PathBuf> {
        let now = SystemTime::now();
        let template = Template {
            subject: x509::common_name(name)?,
            spki: spki.to_vec(),
            not_before: if spec.begins_in.is_zero() {
                now - Duration::from_secs(2 * 3600)
            } else {
                now + spec.begins_in
            },
            not_after: if spec.lifetime.is_zero() {
                now - Duration::from_secs(3600)
            } else {
                now + spec.lifetime
            },
            extensions: vec![
                x509::basic_constraints(false)?,
                x509::key_usage(KeyUsages::DigitalSignature, true)?,
            ],
            serial: None,
        };
        let mut chain = Vec::new();
        if spec.unknown_manufacturer {
            let (key, _) = KeyPair::generate(KeyKind::P256)?;
            chain.push(Ca::root("Unknown manufacturer", key, None, 1)?.issue(&template)?);
        } else {
            chain.push(self.factory_intermediate.issue(&template)?);
            chain.push(self.factory_intermediate.certificate.clone());
        }
        let path = self.directory.join(format!("{file}.pem"));
        replace(&path, bundle(&chain).as_bytes())?;
        Ok(path)
    }
}

/// What minting needs of a directory.
pub struct Issuing {
    /// The Trust Domain's name.
    pub trust_domain: String,
    /// `spiffe_sequence` (B1).
    pub sequence: u64,
    /// The authority that issues now.
    pub authority: Authority,
    /// The roots in the Trust Bundle.
    pub anchors: Vec<Der>,
}

/// The trust domain of an existing directory and its issuing authority, for minting: the directory
/// may belong to a running server, so nothing in it is changed.
pub fn open_issuing(directory: &Path) -> Result<Issuing> {
    let file = state_file(directory);
    let state: State = serde_json::from_slice(&read(&file)?).context(file.display())?;
    let authority = open_authority(directory, &state, state.issuing)?;
    let anchors = state
        .published
        .iter()
        .map(|number| open_authority(directory, &state, *number).map(|authority| authority.root.certificate));
    let anchors = anchors.collect::<Result<Vec<_>>>()?;
    Ok(Issuing { trust_domain: state.trust_domain, sequence: state.sequence, authority, anchors })
}

fn open_trust_domain(spec: &PkiSpec<'_>) -> Result<(State, Vec<Authority>)> {
    make_directory(&spec.directory.join("trust-domain"))?;
    let file = state_file(spec.directory);
    let state = if file.exists() {
        let state: State = serde_json::from_slice(&read(&file)?).context(file.display())?;
        let kept = (state.trust_domain.as_str(), state.mode, state.algorithm);
        if kept != (spec.trust_domain, spec.mode, spec.algorithm) {
            return Err(Error::new(format!(
                "{} was made for trust domain {:?}, mode {:?}, algorithm {:?}: \
                 use the same settings or another directory",
                spec.directory.display(),
                kept.0,
                kept.1,
                kept.2
            )));
        }
        state
    } else {
        State {
            trust_domain: spec.trust_domain.to_owned(),
            mode: spec.mode,
            algorithm: spec.algorithm,
            sequence: spec.first_sequence,
            published: vec![1],
            issuing: 1,
        }
    };
    let authorities = state
        .published
        .iter()
        .map(|number| open_authority(spec.directory, &state, *number))
        .collect::<Result<Vec<_>>>()?;
    replace(&file, &serde_json::to_vec_pretty(&state)?)?;
    Ok((state, authorities))
}

fn open_authority(directory: &Path, state: &State, number: u32) -> Result<Authority> {
    let directory = directory.join("trust-domain");
    let kind = state.algorithm.key();
    // SPIFFE: a signing certificate should carry the Trust Domain's own ID, without a path.
    let uri = format!("spiffe://{}", state.trust_domain);
    let root = ca_or(&directory, &format!("root-{number}"), kind, |key| {
        Ca::root(&format!("Trust Domain root {number}"), key, Some(&uri), 20)
    })?;
    let intermediate = match state.mode {
        IssuingMode::Root => None,
        IssuingMode::Intermediate => {
            Some(ca_or(&directory, &format!("intermediate-{number}"), kind, |key| {
                root.subordinate(&format!("Trust Domain issuer {number}"), key, Some(&uri), 15)
            })?)
        }
    };
    Ok(Authority { number, root, intermediate })
}

/// A fresh certificate at every start, for the names wanted now; the key stays, so that a pin on
/// it survives a restart.
fn server_certificate(spec: &PkiSpec<'_>, ca: &Ca) -> Result<(Vec<Der>, Vec<u8>)> {
    let key_file = spec.directory.join("tls.key");
    let (key, pkcs8) = if key_file.exists() {
        read_key(&key_file)?
    } else {
        let made = KeyPair::generate(KeyKind::P256)?;
        write_key(&key_file, &made.1)?;
        made
    };
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let (not_before, not_after) = match spec.server_fault {
        Some(ServerFault::Expired) => (now - 2 * hour, now - hour),
        Some(ServerFault::NotYetValid) => (now + hour, now + 2 * hour),
        _ => (now - hour, now + x509::years_long(1)),
    };
    let template = Template {
        subject: x509::common_name("MIS")?,
        spki: key.spki().to_vec(),
        not_before,
        not_after,
        extensions: vec![
            x509::basic_constraints(false)?,
            x509::key_usage(KeyUsages::DigitalSignature, true)?,
            x509::extended_key_usage(&[x509::SERVER_AUTH])?,
            x509::host_names(spec.hosts)?,
        ],
        serial: None,
    };
    let mut chain = match spec.server_fault {
        Some(ServerFault::SelfSigned) => vec![x509::self_signed(&template, &key)?],
        _ => vec![ca.issue(&template)?],
    };
    if let Some(ServerFault::Appended(files)) = spec.server_fault {
        for file in files {
            chain.extend(pem::certificates(&read(file)?).context(file.display())?);
        }
    }
    replace(&spec.directory.join("tls.pem"), bundle(&chain).as_bytes())?;
    Ok((chain, pkcs8))
}

/// Loads `NAME.pem` and `NAME.key`, or makes and keeps them.
fn ca_or(
    directory: &Path,
    name: &str,
    kind: KeyKind,
    make: impl FnOnce(KeyPair) -> Result<Ca>,
) -> Result<Ca> {
    let certificate_file = directory.join(format!("{name}.pem"));
    let key_file = directory.join(format!("{name}.key"));
    if certificate_file.exists() {
        let mut chain = pem::certificates(&read(&certificate_file)?).context(certificate_file.display())?;
        return Ca::new(chain.swap_remove(0), read_key(&key_file)?.0.signing_as(kind));
    }
    let (key, pkcs8) = KeyPair::generate(kind)?;
    let ca = make(key)?;
    write_key(&key_file, &pkcs8)?;
    replace(&certificate_file, pem::encode(CERTIFICATE, &ca.certificate, pem::WIDTH).as_bytes())?;
    Ok(ca)
}

fn state_file(directory: &Path) -> PathBuf {
    directory.join("trust-domain").join("state.json")
}

fn bundle(chain: &[Der]) -> String {
    chain.iter().map(|der| pem::encode(CERTIFICATE, der, pem::WIDTH)).collect()
}

fn make_directory(directory: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).context(directory.display())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(path.display())
}

fn read_key(path: &Path) -> Result<(KeyPair, Vec<u8>)> {
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&read(path)?).context(path.display())?;
    let pkcs8 = pkcs8.secret_pkcs8_der().to_vec();
    Ok((KeyPair::from_pkcs8(&pkcs8).context(path.display())?, pkcs8))
}

fn write_key(path: &Path, pkcs8: &[u8]) -> Result<()> {
    replace_with_mode(path, pem::encode("PRIVATE KEY", pkcs8, pem::WIDTH).as_bytes(), 0o600)
}

/// Writes a file next to its place and renames it: a reader never sees half of one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    replace_with_mode(path, content, 0o644)
}

pub(crate) fn replace_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    write().context(path.display())
}

fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) {
        return Err(Error::new(format!("{name:?}: a device's name is 1 to 64 of A-Z a-z 0-9 - _")));
    }
    Ok(())
}

/// SPIFFE: 1 to 255 of a-z 0-9 . - _
fn check_trust_domain(name: &str) -> Result<()> {
    let fine = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    if name.is_empty() || name.len() > 255 || !name.chars().all(fine) {
        return Err(Error::new(format!("{name:?} is not a valid trust domain name")));
    }
    Ok(())
}
