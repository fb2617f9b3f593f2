//! A local program that reads what the agent publishes, and checks that it belongs together.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The published files in the directory that `current` leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) svid: String,
    pub(crate) key: String,
    combined: String,
    bundle: String,
    identity: String,
}

impl Published {
    /// Opens `current` in the directory of an identity once and reads everything through it.
    /// `None`: nothing is published yet, or two generations passed while it was read.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let directory = File::open(dir.join("current")).ok()?;
        let read =
            |name: &str| fs::read_to_string(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).ok();
        Some(Self {
            svid: read("svid.pem")?,
            key: read("key.pem")?,
            combined: read("svid-with-key.pem")?,
            bundle: read("bundle.pem")?,
            identity: read("identity.json")?,
        })
    }

    /// Its SPIFFE ID.
    pub(crate) fn spiffe_id(&self) -> String {
        self.described("spiffeId")
    }

    /// Its serial number.
    pub(crate) fn serial(&self) -> String {
        self.described("serial")
    }

    fn described(&self, member: &str) -> String {
        let identity: serde_json::Value =
            serde_json::from_str(&self.identity).expect("identity.json is JSON");
        identity[member].as_str().unwrap_or_else(|| panic!("no {member} in identity.json")).to_owned()
    }

    /// Key and certificate are of one pair, in both forms; the certificate chains to the bundle;
    /// the description is its.
    pub(crate) fn belongs_together(&self) -> Result<(), String> {
        is_pair(&self.combined)?;
        if self.combined != format!("{}{}", self.svid, self.key) {
            return Err("svid-with-key.pem is of another generation".into());
        }
        if !chains_to(&self.bundle, &self.svid) {
            return Err("svid.pem does not chain to bundle.pem".into());
        }
        let identity: serde_json::Value = serde_json::from_str(&self.identity).map_err(|e| e.to_string())?;
        let chain = certificates(&self.svid);
        let serial = chain.first().map(|leaf| parsed(leaf).raw_serial_as_string());
        if identity["serial"].as_str() != serial.as_deref() {
            return Err(format!("identity.json is of another generation: {} for {serial:?}", self.identity));
        }
        Ok(())
    }
}

/// Two programs that read all the time, one by the directory and one by the combined file, until
/// this is dropped.
pub(crate) struct Readers {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u32>>,
}

impl Readers {
    pub(crate) fn of(dir: PathBuf) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let by_directory = {
            let (ends, dir) = (ends.clone(), dir.clone());
            thread::spawn(move || {
                each_new(&ends, || Published::read(&dir), |published| published.belongs_together())
            })
        };
        let by_file = {
            let ends = ends.clone();
            let file = dir.join("current/svid-with-key.pem");
            thread::spawn(move || {
                each_new(&ends, || fs::read_to_string(&file).ok(), |combined| is_pair(combined))
            })
        };
        Self { ends, threads: vec![by_directory, by_file] }
    }

    /// How many different publications each has seen.
    pub(crate) fn end(mut self) -> Vec<u32> {
        self.ends.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .map(|reader| reader.join().expect("a reader saw what does not belong together"))
            .collect()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Reads until the end, and checks all that is new.
fn each_new<T: PartialEq>(
    ends: &AtomicBool,
    read: impl Fn() -> Option<T>,
    check: impl Fn(&T) -> Result<(), String>,
) -> u32 {
    let (mut last, mut seen) = (None, 0);
    while !ends.load(Ordering::Relaxed) {
        if let Some(found) = read()
            && last.as_ref() != Some(&found)
        {
            check(&found).unwrap_or_else(|why| panic!("{why}"));
            seen += 1;
            last = Some(found);
        }
        thread::sleep(Duration::from_millis(1));
    }
    seen
}

/// Whether a file with chain and key holds the key of the chain's first certificate. Of a
/// `TSS2 PRIVATE KEY` the public part tells: both coordinates, each with its length.
fn is_pair(combined: &str) -> Result<(), String> {
    let chain = certificates(combined);
    let leaf = parsed(chain.first().ok_or("there is no certificate")?);
    let point = leaf.public_key().subject_public_key.data.as_ref();
    let (x, y) = (&point[1..33], &point[33..65]);
    let wanted = [&[0, 32], x, &[0, 32], y].concat();
    let key = combined.split_once("-----BEGIN TSS2 PRIVATE KEY-----").ok_or("there is no key")?.1;
    let key = key.split_once("-----END").ok_or("the key is torn")?.0;
    let key = base64(key).map_err(|e| format!("the key is torn: {e}"))?;
    key.windows(wanted.len())
        .any(|here| here == wanted)
        .then_some(())
        .ok_or("the key is of another certificate".into())
}

/// Whether each certificate is signed by the next, and the last by an anchor.
fn chains_to(bundle: &str, chain: &str) -> bool {
    let (anchors, chain) = (certificates(bundle), certificates(chain));
    let signed = |certificate: &CertificateDer<'_>, by: &CertificateDer<'_>| {
        parsed(certificate).verify_signature(Some(parsed(by).public_key())).is_ok()
    };
    chain.windows(2).all(|two| signed(&two[0], &two[1]))
        && chain.last().is_some_and(|last| anchors.iter().any(|anchor| signed(last, anchor)))
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|one| one.expect("a certificate in PEM")).collect()
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(certificate).expect("a certificate").1
}

fn base64(text: &str) -> io::Result<Vec<u8>> {
    use base64::Engine as _;
    let text: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).map_err(io::Error::other)
}
