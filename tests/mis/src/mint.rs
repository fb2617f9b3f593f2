//! SVIDs by an operator's command, without the network (N9): from a CSR, or with a new key.

use crate::csr::Csr;
use crate::faults::{Active, SvidFault};
use crate::issue::LeafSpec;
use crate::keys::{KeyKind, KeyPair};
use crate::names::Name;
use crate::pem;
use crate::pki::{self, Authority, IssuingMode};
use crate::policy::{LONGEST_LIFETIME, Policy};
use crate::x509::{Ca, Der};
use development_server::{Context, Error, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The allow list in the MIS's directory: a JSON array of SPIFFE IDs. Without the file, every WFM
/// and WFM Client of the trust domain may be minted.
pub const ALLOW_LIST: &str = "mint-allowed.json";
/// The lifetime where none is given: one day, as with the released MIS.
pub const MINTED_LIFETIME: Duration = Duration::from_secs(86_400);

/// The key of a minted SVID.
#[derive(Debug, Clone)]
pub enum MintKey {
    /// That of a certificate signing request, PEM or DER.
    Csr(Vec<u8>),
    /// A new one, which is part of the result.
    New(KeyKind),
}

/// An SVID to mint.
#[derive(Debug, Clone)]
pub struct MintSpec {
    /// Its key.
    pub key: MintKey,
    /// Its SPIFFE ID; `None` takes that of the CSR's one URI SAN.
    pub spiffe_id: Option<String>,
    /// DNS names in addition to the SPIFFE ID.
    pub dns: Vec<String>,
    /// Lifetime from now on.
    pub ttl: Duration,
    /// Signed by the root, or by an intermediate in the chain; `None` does as the directory does.
    pub mode: Option<IssuingMode>,
    /// What is wrong with it; nothing, outside of tests.
    pub faults: Vec<SvidFault>,
}

impl MintSpec {
    /// An SVID with a new P-256 key: a WFM's, or a WFM Client's for the installed mode.
    pub fn new(spiffe_id: impl Into<String>) -> Self {
        Self::with_key(MintKey::New(KeyKind::P256), Some(spiffe_id.into()))
    }

    /// An SVID for a CSR, PEM or DER, that names its SPIFFE ID.
    pub fn csr(csr: impl Into<Vec<u8>>) -> Self {
        Self::with_key(MintKey::Csr(csr.into()), None)
    }

    fn with_key(key: MintKey, spiffe_id: Option<String>) -> Self {
        Self { key, spiffe_id, dns: Vec::new(), ttl: MINTED_LIFETIME, mode: None, faults: Vec::new() }
    }
}

/// A minted SVID.
#[derive(Debug, Clone)]
pub struct Minted {
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// The leaf, and the intermediate where there is one.
    pub chain_pem: String,
    /// The new key, PKCS#8.
    pub key_pem: Option<String>,
}

impl Minted {
    /// Writes the chain (0644) and the key (0600).
    pub fn write(&self, chain: &Path, key: Option<&Path>) -> Result<()> {
        if let (Some(path), Some(pem)) = (key, &self.key_pem) {
            pki::replace_with_mode(path, pem.as_bytes(), 0o600)?;
        }
        pki::replace(chain, self.chain_pem.as_bytes())
    }
}

/// Mints an SVID from the authorities in an MIS's directory, whether the MIS runs or not.
///
/// # Errors
///
/// A CSR that is not well-formed or not signed by its key, algorithms that N7 does not list, a
/// SPIFFE ID that is not on the allow list, and a directory that cannot be read.
pub fn mint(directory: &Path, spec: &MintSpec) -> Result<Minted> {
    let issuing = pki::open_issuing(directory)?;
    let (spki, requested, key_pem) = match &spec.key {
        MintKey::Csr(text) => {
            let csr = Csr::parse(text).map_err(|why| Error::new(format!("CSR refused: {why}")))?;
            let requested = csr.spiffe_id().map_err(|why| Error::new(format!("CSR refused: {why}")))?;
            (csr.spki, requested, None)
        }
        MintKey::New(kind) => {
            let (key, pkcs8) = KeyPair::generate(*kind)?;
            (key.spki().to_vec(), None, Some(pem::encode("PRIVATE KEY", &pkcs8, pem::WIDTH)))
        }
    };
    let spiffe_id = match (&spec.spiffe_id, requested) {
        (Some(given), Some(requested)) if *given != requested => {
            return Err(Error::new(format!("the CSR is for {requested}, not for {given}")));
        }
        (Some(id), _) => id.clone(),
        (None, Some(id)) => id,
        (None, None) => {
            return Err(Error::new("no SPIFFE ID: the CSR has no URI SAN; give one with --spiffe-id"));
        }
    };
    check_allowed(directory, &issuing.trust_domain, &spiffe_id)?;
    if spec.ttl.is_zero() || spec.ttl > LONGEST_LIFETIME {
        return Err(Error::new("the lifetime of an SVID is 1 s to 1825 d"));
    }

    let policy = Policy { svid_lifetime: spec.ttl, ..Policy::default() };
    let mut leaf = LeafSpec::new(&spiffe_id, &spki, &policy);
    leaf.dns.clone_from(&spec.dns);
    let faults = Active::of_svid(&spec.faults);
    faults.bend_leaf(&mut leaf)?;
    let mut chain = match faults.issuer(&issuing.authority)? {
        Some((issuer, above)) => [vec![leaf.sign(&issuer)?], above].concat(),
        None => sign(&leaf, &issuing.authority, spec.mode)?,
    };
    faults.bend_chain(&mut chain, &issuing.authority);
    Ok(Minted {
        spiffe_id: leaf.uris.join(" "),
        chain_pem: chain.iter().map(|der| pem::encode("CERTIFICATE", der, faults.pem_width())).collect(),
        key_pem,
    })
}

fn sign(leaf: &LeafSpec, authority: &Authority, mode: Option<IssuingMode>) -> Result<Vec<Der>> {
    let one_more = |ca: &Ca| Ok::<_, Error>(vec![leaf.sign(ca)?, ca.certificate.clone()]);
    match (mode, &authority.intermediate) {
        (Some(IssuingMode::Root), _) | (None, None) => Ok(vec![leaf.sign(&authority.root)?]),
        (_, Some(intermediate)) => one_more(intermediate),
        (Some(IssuingMode::Intermediate), None) => {
            let (key, _) = KeyPair::generate(KeyKind::P256)?;
            one_more(&authority.root.subordinate("Operator's issuer", key, None, 10)?)
        }
    }
}

fn check_allowed(directory: &Path, trust_domain: &str, spiffe_id: &str) -> Result<()> {
    if !matches!(Name::parse(spiffe_id, trust_domain), Some(Name::Wfm { .. } | Name::WfmClient { .. })) {
        return Err(Error::new(format!(
            "{spiffe_id:?} is not a WFM or WFM Client of {trust_domain}: \
             spiffe://{trust_domain}/margo/wfm/WFM[/client/CLIENT], of letters, digits, . - _"
        )));
    }
    let file = directory.join(ALLOW_LIST);
    let listed: Vec<String> = match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).context(file.display())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(file.display()),
    };
    if listed.iter().any(|one| one == spiffe_id) {
        return Ok(());
    }
    Err(Error::new(format!("{spiffe_id} is not on the allow list {}", file.display())))
}

/// The trust bundle of an MIS's directory as the released MIS serves it (N4), with a refresh hint
/// of five minutes.
pub fn bundle_of(directory: &Path) -> Result<String> {
    let issuing = pki::open_issuing(directory)?;
    let hint = Policy::default().refresh_hint;
    let bundle = crate::documents::plain_bundle(&issuing.anchors, issuing.sequence, hint)?;
    Ok(bundle.to_string())
}
