//! The provisioned trust (miaf-v0 T1, T2): what `[mis.trust]` names, read at every use, and the
//! last good trust while a replacement of it is bad. [`server_verifier`](super::server_verifier)
//! validates a server by it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::{CertificateDer, TrustAnchor};
use url::Url;

use super::error::{MAX_REASON, TransportError};
use crate::config::InitialTrust;
use crate::hint::Reason;
use crate::platform::{access, clock, files};
use crate::problem::{LastError, ProblemCode, Report};
use miaf_spiffe::pem;
use miaf_spiffe::text::Excerpt;

/// Limit on the origins that a warning is logged of.
const MAX_WARNINGS: usize = 16;

/// Initial trust of one configuration. The files are read at every use, so a replaced one is used
/// from the next connection on. If the replacement is bad, the last good trust stays in use *as a
/// whole* (anchors, pins and system roots) until the process ends: a mixture of old and new was
/// never configured.
///
/// Handles are cheap to clone and share the cached trust.
#[derive(Clone, Debug)]
pub struct ServerTrust(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: InitialTrust,
    /// One thread reads at a time, so that what was read last is what is cached.
    reading: Mutex<()>,
    cached: Mutex<Cached>,
    /// Origins of which a warning has been logged.
    warned_of: Mutex<BTreeSet<String>>,
}

#[derive(Clone, Debug, Default)]
struct Cached {
    good: Option<Arc<LoadedTrust>>,
    /// Why the cached trust is not the configured one.
    problem: Option<LastError>,
}

/// The trust in use, in numbers, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustFacts {
    /// The file that the anchors in use were read from. After a bad reload that is the one
    /// configured before.
    pub ca_file: Option<PathBuf>,
    /// Number of anchors from that file.
    pub anchors: usize,
    /// Number of pins.
    pub pins: usize,
    /// Whether the operating system's store is used too.
    pub system_roots: bool,
}

impl ServerTrust {
    /// Creates the trust of a configuration. Nothing is read yet.
    pub fn new(configured: InitialTrust) -> Self {
        Self::with(configured, Cached::default())
    }

    /// Creates the trust of a reloaded configuration. If that proves bad, the trust of `before`
    /// stays in use. A configuration without any trust is not a bad one: under it no connection is
    /// made (T2).
    pub fn succeeding(configured: InitialTrust, before: &Self) -> Self {
        let cached = if configured.is_empty() { Cached::default() } else { before.cached().clone() };
        Self::with(configured, cached)
    }

    fn with(configured: InitialTrust, cached: Cached) -> Self {
        Self(Arc::new(Inner {
            configured,
            reading: Mutex::default(),
            cached: Mutex::new(cached),
            warned_of: Mutex::default(),
        }))
    }

    /// Warns, once for each origin, of a server that a pin authenticates at an IP address which its
    /// certificate does not have.
    pub(super) fn warn_of_unnamed_address(&self, url: &Url) {
        let origin = url.origin().ascii_serialization();
        let mut warned_of = self.0.warned_of.lock().unwrap_or_else(PoisonError::into_inner);
        if warned_of.len() < MAX_WARNINGS && warned_of.insert(origin.clone()) {
            tracing::warn!(
                hint = "Have this address put into the certificate as an iPAddress SAN, or use a DNS name that it has",
                "the certificate of {origin} does not have this IP address: the pin in spki_sha256 alone says that it is \
                 the right server"
            );
        }
    }

    /// The trust in use, as of the last read. `None`: it was never read, or never good.
    pub fn facts(&self) -> Option<TrustFacts> {
        self.cached().good.as_deref().map(LoadedTrust::facts)
    }

    /// Why the configured trust cannot be used, while the one before it is. For `lastError`, while
    /// nothing else is wrong: the device works until the MIS changes its certificate.
    pub fn problem(&self) -> Option<LastError> {
        self.cached().problem.clone()
    }

    /// Reads the configured trust. Blocks for as long as the files do.
    ///
    /// # Errors
    /// When it is bad and there was no good one before in this process, or nothing is configured.
    pub(super) fn load(&self) -> Result<Arc<LoadedTrust>, TransportError> {
        let _reading = self.0.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = LoadedTrust::read(&self.0.configured);
        let mut cached = self.cached();
        match (outcome, cached.good.clone()) {
            (Ok(loaded), _) => {
                let loaded = Arc::new(loaded);
                loaded.warn_of_unused(cached.good.as_deref());
                cached.good = Some(loaded.clone());
                if cached.problem.take().is_some() {
                    tracing::info!("initial trust recovered: the configured one can be used again");
                }
                Ok(loaded)
            }
            (Err(why), Some(good)) => {
                cached.record_problem(&why);
                Ok(good)
            }
            (Err(why), None) => Err(why),
        }
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.0.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    /// Records and logs a problem once, and again only if it is another one.
    fn record_problem(&mut self, why: &TransportError) {
        let report =
            Report::of(ProblemCode::TrustNotReplaced, "The new trust for the MIS cannot be used", why)
                .with_consequence("The trust before it stays in use until this is corrected");
        if self.problem.as_ref().is_some_and(|problem| problem.report == report) {
            return;
        }
        tracing::error!(code = report.code.as_str(), hint = report.hint(), "{}", report.message());
        self.problem = Some(LastError { report, at: clock::now().wall, permanent: true });
    }
}

/// Trust as read: at least one of its parts is present.
#[derive(Debug, Default)]
pub(super) struct LoadedTrust {
    pub(super) ca_file: Option<PathBuf>,
    /// The certificates in `ca_file`: a server may present one of them as its own.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// The same as anchors.
    pub(super) provisioned: Vec<TrustAnchor<'static>>,
    /// Blocks of `ca_file` that are not used, for people.
    pub(super) unused: Option<String>,
    /// The operating system's, if they are configured.
    pub(super) system: Vec<TrustAnchor<'static>>,
    /// SHA-256 of subject public key infos.
    pub(super) pins: Vec<[u8; 32]>,
}

impl LoadedTrust {
    fn read(trust: &InitialTrust) -> Result<Self, TransportError> {
        if trust.is_empty() {
            return Err(TransportError::NoTrust);
        }
        let CaFile { certificates, anchors, unused } =
            trust.ca_file.as_deref().map(CaFile::read).transpose()?.unwrap_or_default();
        Ok(Self {
            ca_file: trust.ca_file.clone(),
            certificates,
            provisioned: anchors,
            unused,
            system: if trust.system_roots { system_anchors()? } else { Vec::new() },
            pins: trust.spki_sha256.clone(),
        })
    }

    /// Logs blocks of `ca_file` that are not used, unless that was logged for `before`.
    fn warn_of_unused(&self, before: Option<&Self>) {
        if let (Some(path), Some(unused)) = (&self.ca_file, &self.unused)
            && before.is_none_or(|before| before.unused != self.unused)
        {
            let file = path.display();
            tracing::warn!(%file, unused, "ca_file: blocks ignored that are no certificates: {file}: {unused}");
        }
    }

    pub(super) fn facts(&self) -> TrustFacts {
        TrustFacts {
            ca_file: self.ca_file.clone(),
            anchors: self.provisioned.len(),
            pins: self.pins.len(),
            system_roots: !self.system.is_empty(),
        }
    }

    /// The authorities that may issue a server's certificate, for people.
    pub(super) fn authorities(&self) -> &'static str {
        match (self.provisioned.is_empty(), self.system.is_empty()) {
            (false, true) => "a CA in ca_file",
            (true, false) => "a CA of the operating system's store (system_roots)",
            (false, false) => "a CA in ca_file or in the operating system's store (system_roots)",
            (true, true) => "a pinned CA",
        }
    }
}

#[derive(Default)]
struct CaFile {
    certificates: Vec<CertificateDer<'static>>,
    /// The same as anchors.
    anchors: Vec<TrustAnchor<'static>>,
    /// Blocks of the file that are not used.
    unused: Option<String>,
}

impl CaFile {
    /// Reads the file. One damaged certificate makes it bad: each was put there on purpose.
    fn read(path: &Path) -> Result<Self, TransportError> {
        let unusable = |why: Reason| TransportError::TrustFile { path: path.to_owned(), why };
        let content = files::read_limited(path).map_err(|e| unusable(access::unreadable(path, &e)))?;
        let read = pem::certificates(&content).map_err(|e| unusable(Reason::of(&e)))?;
        let mut file = Self { unused: read.unused(), ..Self::default() };
        for (line, certificate) in read.certificates {
            let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|_| {
                let why = format!("line {line}: the certificate that begins here is damaged");
                unusable(Reason::from(why).with_hint_text("Copy it again"))
            })?;
            file.anchors.push(anchor.to_owned());
            file.certificates.push(certificate);
        }
        Ok(file)
    }
}

/// Reads the CAs of the distribution, or of `SSL_CERT_FILE` and `SSL_CERT_DIR` where they are set.
/// One that cannot be read is skipped, as other programs on the system skip it; none at all is an
/// error.
fn system_anchors() -> Result<Vec<TrustAnchor<'static>>, TransportError> {
    let from_environment =
        ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| std::env::var_os(name).is_some());
    // Reading a FIFO or a device would block.
    if let Some(file) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from)
        && file.exists()
        && !file.is_file()
    {
        let why =
            format!("{} (SSL_CERT_FILE) is not a regular file", Excerpt::of(file.display(), MAX_REASON));
        return Err(TransportError::NoSystemRoots { why, from_environment });
    }
    let found = rustls_native_certs::load_native_certs();
    let anchors: Vec<_> = found
        .certs
        .iter()
        .filter_map(|certificate| webpki::anchor_from_trusted_cert(certificate).ok())
        .map(|anchor| anchor.to_owned())
        .collect();
    let why = found.errors.first().map(|e| Excerpt::of(e, MAX_REASON).into_string());
    if anchors.is_empty() {
        let why = why.unwrap_or_else(|| "there is no certificate in it".to_owned());
        return Err(TransportError::NoSystemRoots { why, from_environment });
    }
    if let Some(why) = why {
        tracing::debug!(why, "system CAs: unreadable certificate skipped");
    }
    Ok(anchors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::{Hint as _, assert_apart};
    use rcgen::{CertificateParams, KeyPair};

    fn pem() -> String {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    fn of(path: &Path) -> InitialTrust {
        InitialTrust { ca_file: Some(path.to_owned()), ..InitialTrust::default() }
    }

    #[test]
    fn bad_first_ca_file_is_named_with_its_fault() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let one = pem();
        let second = format!("line {}: the certificate that begins here is damaged", one.lines().count() + 1);
        for (content, why) in [
            (None, "No such file"),
            (Some(String::new()), "no PEM certificate"),
            (Some("nonsense".into()), "no PEM certificate"),
            (
                Some("-----BEGIN CERTIFICATE-----\n!".into()),
                "line 1: the CERTIFICATE that begins here has no END",
            ),
            (Some(damaged.into()), "line 1: the certificate that begins here is damaged"),
            (Some(one + damaged), &second),
            (Some(pem() + &damaged.replace("CERT", "TRUSTED CERT")), "openssl x509 -in"),
        ] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let trust = ServerTrust::new(of(&path));
            let error = trust.load().unwrap_err();
            assert_apart(&error);
            let error = error.with_hint().to_string();
            assert!(error.contains("ca.pem") && error.contains(why), "{error}");
            assert!(trust.facts().is_none() && trust.problem().is_none());
        }
        let error = ServerTrust::new(of(directory.path())).load().unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn ca_file_in_common_variants_is_read_completely() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let (one, other) = (pem(), pem());
        for content in [
            format!("{}{other}", one.trim_end()),
            format!("\u{feff}{one}\n# -----BEGIN CERTIFICATE-----\n{other}"),
            format!("{one}{}", other.replace("CERTIFICATE", "X509 CERTIFICATE")),
            format!("{one}{other}").replace('\n', "\r"),
        ] {
            std::fs::write(&path, &content).unwrap();
            let loaded = ServerTrust::new(of(&path)).load().unwrap();
            assert_eq!(loaded.provisioned.len(), 2, "{content}");
            let comment = content.contains('#').then(|| "line 11: a block in a comment".to_owned());
            assert_eq!(loaded.unused, comment);
        }
    }

    #[test]
    fn bad_replacement_keeps_the_last_good_trust_across_a_reload() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        std::fs::write(&path, pem() + &pem()).unwrap();
        let trust = ServerTrust::new(of(&path));
        trust.load().unwrap();
        assert_eq!((trust.facts().unwrap().anchors, trust.problem()), (2, None));

        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(trust.load().unwrap().provisioned.len(), 2);
        let problem = trust.problem().unwrap();
        assert!(problem.report.detail.as_ref().unwrap().contains("stays in use"), "{problem:?}");
        trust.load().unwrap();
        assert_eq!(trust.problem().unwrap().at, problem.at, "recorded once");

        // As a whole: pins that came with a bad file are not used yet.
        let missing =
            InitialTrust { spki_sha256: vec![[7; 32]], ..of(&directory.path().join("missing.pem")) };
        let after = ServerTrust::succeeding(missing, &trust);
        let loaded = after.load().unwrap();
        assert!(loaded.pins.is_empty() && loaded.provisioned.len() == 2);
        assert_eq!(after.facts().unwrap().ca_file.unwrap(), path);
        assert!(after.problem().unwrap().report.detail.unwrap().contains("missing.pem"));

        std::fs::write(&path, pem()).unwrap();
        let good = ServerTrust::succeeding(of(&path), &after);
        good.load().unwrap();
        assert_eq!((good.facts().unwrap().anchors, good.problem()), (1, None));

        let none = ServerTrust::succeeding(InitialTrust::default(), &good);
        assert!(
            matches!(none.load(), Err(TransportError::NoTrust)),
            "no trust configured: no connection is made"
        );
    }
}
