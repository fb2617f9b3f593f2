//! The provisioned trust (miaf-v0 T1, T2): what `[mis.trust]` names, read at every use, and what stays in use while a
//! replacement of it is bad. How it judges a server: [`verify`](super::verify).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::error::TransportError;
use crate::config::InitialTrust;
use crate::lifecycle::{LastError, Report};
use crate::pem;
use crate::platform::{access, clock, files};

/// The initial trust of one configuration. The files are read at every use, so a replaced one counts from the next
/// connection on. Should the replacement be bad, the last good trust stays in use *as a whole*, anchors and pins and
/// system roots, for as long as this process lives: half of an old and half of a new one is nobody's decision.
///
/// Handles to it are cheap to clone and share what was loaded last.
#[derive(Clone, Debug)]
pub struct ServerTrust(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: InitialTrust,
    /// One reads at a time, so that what was read last is what is held.
    reading: Mutex<()>,
    held: Mutex<Held>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    good: Option<Arc<Loaded>>,
    /// Why the one held is not the one configured.
    problem: Option<LastError>,
}

/// What authenticates the MIS at the moment, in numbers: for the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustFacts {
    /// The file that the anchors in use were read from. After a bad reload that is the one configured before.
    pub ca_file: Option<PathBuf>,
    /// Anchors from that file.
    pub anchors: usize,
    /// Pins.
    pub pins: usize,
    /// Whether the operating system's store counts too.
    pub system_roots: bool,
}

impl ServerTrust {
    /// Trusts what is configured. Nothing is read yet.
    pub fn new(configured: InitialTrust) -> Self {
        Self::with(configured, Held::default())
    }

    /// Trusts what is configured; if that turns out to be bad, what `before` holds stays in use. For a configuration
    /// that was read anew. One that names no trust at all is no slip of a file: under it no one is contacted (T2).
    pub fn succeeding(configured: InitialTrust, before: &Self) -> Self {
        let held = if configured.is_empty() { Held::default() } else { before.held().clone() };
        Self::with(configured, held)
    }

    fn with(configured: InitialTrust, held: Held) -> Self {
        Self(Arc::new(Inner { configured, reading: Mutex::default(), held: Mutex::new(held) }))
    }

    /// What is in use, as of the last time it was read. `None`: it was never read, or never good.
    pub fn facts(&self) -> Option<TrustFacts> {
        self.held().good.as_deref().map(Loaded::facts)
    }

    /// The trust that is configured cannot be used, and the one before it still is. For `lastError`, while nothing
    /// else is wrong: the device works, until the MIS changes its certificate.
    pub fn problem(&self) -> Option<LastError> {
        self.held().problem.clone()
    }

    /// Reads what is configured. Blocks for as long as the files do.
    ///
    /// # Errors
    /// When it is bad and there was no good one before in this process, or nothing is configured.
    pub(super) fn load(&self) -> Result<Arc<Loaded>, TransportError> {
        let _reading = self.0.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = Loaded::read(&self.0.configured);
        let mut held = self.held();
        match (outcome, held.good.clone()) {
            (Ok(loaded), _) => {
                let loaded = Arc::new(loaded);
                loaded.warn_of_unused(held.good.as_deref());
                held.good = Some(loaded.clone());
                if held.problem.take().is_some() {
                    tracing::info!("the configured trust for the MIS can be used again, and is");
                }
                Ok(loaded)
            }
            (Err(why), Some(good)) => {
                held.notice(&why);
                Ok(good)
            }
            (Err(why), None) => Err(why),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Said once, and again only if something else is wrong now.
    fn notice(&mut self, why: &TransportError) {
        let detail = format!("{why}. What was trusted before it stays in use until this is corrected");
        let title = "The new trust for the MIS cannot be used";
        let report = Report::of_agent("trust-not-replaced", title, &detail);
        if self.problem.as_ref().is_some_and(|problem| problem.report == report) {
            return;
        }
        tracing::error!("{title}: {}", report.detail.as_deref().unwrap_or_default());
        self.problem = Some(LastError { report, at: clock::now().wall, permanent: true });
    }
}

/// The trust as read: at least one of its parts is there.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) ca_file: Option<PathBuf>,
    /// The certificates in `ca_file`: a server may present one of them as its own.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// The same as anchors.
    pub(super) provisioned: Vec<TrustAnchor<'static>>,
    /// What of `ca_file` is not used, for people.
    pub(super) unused: Option<String>,
    /// The operating system's, if they count.
    pub(super) system: Vec<TrustAnchor<'static>>,
    /// SHA-256 of subject public key infos.
    pub(super) pins: Vec<[u8; 32]>,
}

impl Loaded {
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

    /// Blocks of `ca_file` that count for nothing, unless `before` was warned of the same.
    fn warn_of_unused(&self, before: Option<&Self>) {
        if let (Some(path), Some(unused)) = (&self.ca_file, &self.unused)
            && before.is_none_or(|before| before.unused != self.unused)
        {
            let file = path.display();
            tracing::warn!(%file, unused, "blocks of ca_file are not used, as they are no certificates: {file}: {unused}");
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

    /// Whom the issuer of a server's certificate is looked for among, for people.
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
    /// What of the file is not used.
    unused: Option<String>,
}

impl CaFile {
    /// One damaged certificate makes the file bad: somebody put each of them there.
    fn read(path: &Path) -> Result<Self, TransportError> {
        let unusable = |why: String| TransportError::TrustFile { path: path.to_owned(), why };
        let content = files::read_limited(path).map_err(|e| unusable(access::why_unreadable(path, &e)))?;
        let read = pem::certificates(&content).map_err(|e| unusable(e.to_string()))?;
        let mut file = Self { unused: read.unused(), ..Self::default() };
        for (line, certificate) in read.certificates {
            let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|_| {
                unusable(format!("line {line}: the certificate that begins here is damaged; copy it again"))
            })?;
            file.anchors.push(anchor.to_owned());
            file.certificates.push(certificate);
        }
        Ok(file)
    }
}

/// Those of a distribution, or of `SSL_CERT_FILE` and `SSL_CERT_DIR` where they are set. One that cannot be read is
/// passed over, as everything else on the system passes over it; none at all is an error.
fn system_anchors() -> Result<Vec<TrustAnchor<'static>>, TransportError> {
    // What is no file would not be read but waited for.
    if let Some(file) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from)
        && file.exists()
        && !file.is_file()
    {
        return Err(TransportError::NoSystemRoots(format!(
            "{} (SSL_CERT_FILE) is not a regular file",
            file.display()
        )));
    }
    let found = rustls_native_certs::load_native_certs();
    let anchors: Vec<_> = found
        .certs
        .iter()
        .filter_map(|certificate| webpki::anchor_from_trusted_cert(certificate).ok())
        .map(|anchor| anchor.to_owned())
        .collect();
    let why = found.errors.first().map(ToString::to_string);
    if anchors.is_empty() {
        return Err(TransportError::NoSystemRoots(
            why.unwrap_or_else(|| "there is no certificate in it".to_owned()),
        ));
    }
    if let Some(why) = why {
        tracing::debug!(why, "a part of the operating system's store of CAs is passed over");
    }
    Ok(anchors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn pem() -> String {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    fn of(path: &Path) -> InitialTrust {
        InitialTrust { ca_file: Some(path.to_owned()), ..InitialTrust::default() }
    }

    #[test]
    fn a_bad_first_file_is_named_with_its_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
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
            let error = trust.load().unwrap_err().to_string();
            assert!(error.contains("ca.pem") && error.contains(why), "{error}");
            assert!(trust.facts().is_none() && trust.problem().is_none());
        }
        let error = ServerTrust::new(of(folder.path())).load().unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn ca_files_as_people_make_them_count_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
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
    fn a_bad_replacement_keeps_the_last_good_trust_also_under_a_configuration_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, pem() + &pem()).unwrap();
        let trust = ServerTrust::new(of(&path));
        trust.load().unwrap();
        assert_eq!((trust.facts().unwrap().anchors, trust.problem()), (2, None));

        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(trust.load().unwrap().provisioned.len(), 2);
        let problem = trust.problem().unwrap();
        assert!(problem.report.detail.as_ref().unwrap().contains("stays in use"), "{problem:?}");
        trust.load().unwrap();
        assert_eq!(trust.problem().unwrap().at, problem.at, "noticed once");

        // The whole of it: pins that came with a bad file do not count yet.
        let missing = InitialTrust { spki_sha256: vec![[7; 32]], ..of(&folder.path().join("missing.pem")) };
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
            "no trust configured: no one is contacted"
        );
    }
}
