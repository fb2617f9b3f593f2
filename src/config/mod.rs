//! Configuration: `/etc/miaf-agent/config.toml` and its drop-ins, parsed once into types that
//! cannot be wrong. Missing, unknown and impossible values are reported with file, line and key.
//!
//! Only what the files *say* is checked here. Whether a certificate or a TPM that they name exists
//! is found out when it is used: a device with a missing factory certificate still starts and
//! serves its current identity.

mod directories;
mod est;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod identity;
mod no_proxy;
mod raw;
mod reader;
mod salvage;
mod sources;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

pub use self::est::{EstAuthorizationConfig, EstConfig, Rotate};
pub use self::identity::{Enrollment, IdentityConfig, IdentityKey, WfmConfig};
pub use self::salvage::Salvaged;
pub use self::sources::drop_in_directory;

use self::directories::Directories;
use self::reader::Reader;
use self::sources::Sources;
use crate::hint::Hint;
use crate::keys::tpm::{ParentChoice, Tcti};
use crate::keys::{KeyFloor, ProviderKind};
use crate::platform::credentials::Secret;
use crate::platform::log::LogLevel;
use miaf_spiffe::TrustDomain;
use miaf_spiffe::text::Excerpt;

/// Default path of the configuration file.
pub const DEFAULT_FILE: &str = "/etc/miaf-agent/config.toml";

const DEFAULT_STATE_DIR: &str = "/var/lib/miaf-agent";
const DEFAULT_SOCKET: &str = "/run/miaf-agent/agent.sock";
/// Limit on the characters of the fault of a file. It quotes the file.
const MAX_REASON: usize = 1024;
/// Limit on the characters of a file's path in a message.
const MAX_PATH: usize = 512;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The whole configuration. Each module gets its part.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// State directory: what must survive a power cut.
    pub state_dir: PathBuf,
    /// The MIS and its initial trust. Without it the device is `unconfigured`.
    pub mis: Option<MisConfig>,
    /// The bootstrap credential. Without it the device cannot enroll.
    pub bootstrap: Option<BootstrapConfig>,
    /// The identities; the first is the default identity. There is at least one.
    pub identities: Vec<IdentityConfig>,
    /// The TPM, and the defaults of all identities' keys.
    pub key: KeyConfig,
    /// Renewal window, as fractions of the lifetime.
    pub renewal_window: (f64, f64),
    /// Upper limit of the first retry delay.
    pub retry_base: Duration,
    /// Upper limit of every retry delay.
    pub retry_cap: Duration,
    /// Longest interval between two polls of the bundle where the MIS gives no refresh hint; at most
    /// half of its allowed age.
    pub bundle_refresh: Duration,
    /// The staleness of the bundle.
    pub staleness: Staleness,
    /// The published files.
    pub files: FilesConfig,
    /// The local sockets.
    pub socket: SocketConfig,
    /// File to which `/metrics` is written in addition, for the node exporter.
    pub textfile: Option<PathBuf>,
    /// Log level.
    pub log_level: LogLevel,
}

/// `[mis]`
#[derive(Clone, Debug, PartialEq)]
pub struct MisConfig {
    /// Source of the location of the trust bundle.
    pub source: TrustDomainSource,
    /// `mis.est_url`: the EST endpoint. It outranks that of the discovery document (X15).
    pub est_url: Option<Url>,
    /// Any other trust domain is refused (miaf-v0 D6). Without a discovery document it may be that of
    /// the guards; where there is none either, it is learnt from the first SVID (miaf-est X22).
    pub trust_domain: Option<TrustDomain>,
    /// Trust that authenticates the MIS's HTTPS endpoints.
    pub trust: InitialTrust,
    /// The proxy between this device and the MIS.
    pub proxy: ProxyConfig,
}

impl MisConfig {
    /// The trust domain, where the configuration names the bundle itself and says which one that is of.
    pub fn trust_domain_of_bundle(&self) -> Option<&TrustDomain> {
        match self.source {
            TrustDomainSource::Discovery { .. } => None,
            TrustDomainSource::BundleUrl(_) | TrustDomainSource::BundleFile(_) => self.trust_domain.as_ref(),
        }
    }

    /// Whether the trust bundle is read without a connection.
    pub fn reads_bundle_file(&self) -> bool {
        self.bundle_file().is_some()
    }

    /// `mis.bundle_file`.
    pub fn bundle_file(&self) -> Option<&Path> {
        match &self.source {
            TrustDomainSource::BundleFile(path) => Some(path),
            TrustDomainSource::Discovery { .. } | TrustDomainSource::BundleUrl(_) => None,
        }
    }
}

/// Where the location of the trust bundle comes from, and with a discovery document the name of the
/// trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustDomainSource {
    /// `mis.discovery_url`, or the well-known path on `mis.origin` (miaf-v0 D2).
    Discovery {
        /// The URL of the discovery document.
        url: Url,
        /// `mis.bundle_origins`: origins that the document may name for the bundle. Empty: its own.
        bundle_origins: Vec<Url>,
    },
    /// `mis.bundle_url`: the URL of the bundle, and no discovery document (N5).
    BundleUrl(Url),
    /// `mis.bundle_file`: the file, and no discovery document (N5).
    BundleFile(PathBuf),
}

/// The URL or path.
impl fmt::Display for TrustDomainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery { url, .. } | Self::BundleUrl(url) => url.fmt(f),
            Self::BundleFile(path) => path.display().fmt(f),
        }
    }
}

/// `bundle.max_age` and `bundle.when_stale`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staleness {
    /// Age from which on the bundle is stale: the time since it was last known to be current.
    /// `None`: it never is.
    pub max_age: Option<Duration>,
    /// What happens while it is.
    pub when_stale: WhenStale,
}

impl Staleness {
    /// Shortens a poll interval of the bundle, so that a bundle which is polled in time is not
    /// stale before the next poll.
    pub fn limit_refresh(self, interval: Duration) -> Duration {
        self.max_age.map_or(interval, |max_age| interval.min(max_age / 2))
    }
}

/// `bundle.when_stale`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStale {
    /// SVIDs and bundle are served as before.
    #[default]
    Serve,
    /// The sockets hand out neither SVIDs nor the bundle.
    Withdraw,
}

/// `[mis.trust]`: provisioned, never learnt on first use (miaf-v0 T1, T2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitialTrust {
    /// PEM file of anchors.
    pub ca_file: Option<PathBuf>,
    /// Pins: SHA-256 of subject public key infos (RFC 7469).
    pub spki_sha256: Vec<[u8; 32]>,
    /// Trust the operating system's store.
    pub system_roots: bool,
}

impl InitialTrust {
    /// Whether nothing is configured: then no connection is made (miaf-v0 T2).
    pub fn is_empty(&self) -> bool {
        self.ca_file.is_none() && self.spki_sha256.is_empty() && !self.system_roots
    }

    /// Whether only the operating system's store is configured (miaf-v0 D7).
    pub fn is_public_only(&self) -> bool {
        self.ca_file.is_none() && self.spki_sha256.is_empty() && self.system_roots
    }
}

/// `mis.proxy`, `mis.proxy_auth` and `mis.no_proxy`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyConfig {
    /// How the proxy is chosen.
    pub choice: ProxyChoice,
    /// Source of its credentials, one line `user:password`. It takes precedence over those in a
    /// URL.
    pub auth: Option<Secret>,
    /// Hosts that are reached without it. `None`: the environment's `NO_PROXY` is used.
    pub no_proxy: Option<Vec<String>>,
}

/// `mis.proxy`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// Unset: by the usual environment variables.
    #[default]
    Environment,
    /// `"none"`: no proxy, whatever the environment says.
    None,
    /// This proxy.
    At(ProxyUrl),
}

/// `http://[user:password@]host[:port]`. `Display` and `Debug` omit user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Zeroizing<String>);

impl ProxyUrl {
    fn new(url: &Url) -> Self {
        Self(Zeroizing::new(url.as_str().to_owned()))
    }

    /// The URL as configured, including user and password: not for logs and errors.
    pub fn with_secrets(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.trim_end_matches('/');
        let host = whole.rsplit_once('@').map_or(whole, |(_, host)| host);
        write!(f, "http://{}", host.trim_start_matches("http://"))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

/// What a certificate that authorizes enrollments is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CredentialKind {
    /// That of the device's maker, under `[bootstrap]`.
    #[default]
    Factory,
    /// That of an enrollment over EST, under `[identity.est]`.
    Est,
}

impl CredentialKind {
    /// The section of the configuration that names it.
    pub fn section(self) -> &'static str {
        match self {
            Self::Factory => "[bootstrap]",
            Self::Est => "[identity.est]",
        }
    }
}

/// Its name: `factory` or `enrollment`.
impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Factory => "factory",
            Self::Est => "enrollment",
        })
    }
}

/// `[bootstrap]`: the factory certificate and its key (miaf-v0 K5); also those of `[identity.est]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BootstrapConfig {
    /// What it is called.
    pub kind: CredentialKind,
    /// Location of the certificate, with or without its intermediates.
    pub certificate: FactoryCertificateLocation,
    /// PEM file of intermediates that are not with the certificate.
    pub intermediates_file: Option<PathBuf>,
    /// Location of its key.
    pub key: FactoryKeyLocation,
    /// Source of the password of a key in the TPM.
    pub key_auth: Option<Secret>,
}

impl BootstrapConfig {
    /// The files of certificate and key, where they are in files.
    pub fn files(&self) -> [Option<PathBuf>; 2] {
        let certificate = match &self.certificate {
            FactoryCertificateLocation::File(file) => Some(file.clone()),
            FactoryCertificateLocation::TpmNv(_) => None,
        };
        let key = match &self.key {
            FactoryKeyLocation::File(file) => Some(file.clone()),
            FactoryKeyLocation::TpmHandle(_) => None,
        };
        [certificate, key]
    }
}

/// `bootstrap.cert_file` or `bootstrap.cert`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FactoryCertificateLocation {
    /// PEM file: leaf, then intermediates.
    File(PathBuf),
    /// `tpm:0x01…`, an NV index that holds DER: the leaf, and perhaps intermediates after it.
    TpmNv(u32),
}

impl fmt::Display for FactoryCertificateLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::TpmNv(index) => write!(f, "in the TPM's NV index {index:#010x}"),
        }
    }
}

/// `bootstrap.key`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FactoryKeyLocation {
    /// `file:PATH`
    File(PathBuf),
    /// `tpm:0x81…`, a persistent handle.
    TpmHandle(u32),
}

impl fmt::Display for FactoryKeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::TpmHandle(handle) => write!(f, "in the TPM at {handle:#010x}"),
        }
    }
}

/// `[key]`
#[derive(Clone, Debug, PartialEq)]
pub struct KeyConfig {
    /// Provider, chosen by the configuration alone: there is no silent fallback (miaf-v0 K1).
    pub provider: ProviderKind,
    /// Connection to the TPM.
    pub tcti: Tcti,
    /// Parent of new keys in the TPM.
    pub parent: ParentChoice,
    /// Source of the password of the TPM's owner.
    pub owner_auth: Option<Secret>,
    /// When a renewal is for a new key.
    pub rotate: Rotate,
    /// The least protection that the key of any identity may have.
    pub require: Option<KeyFloor>,
}

/// `[files]`
#[derive(Clone, Debug, PartialEq)]
pub struct FilesConfig {
    /// Directory in which generations are published.
    pub dir: PathBuf,
    /// Whether it is below the state directory, which has nothing of other programs.
    pub is_own: bool,
    /// Group that may read; the agent's own when unset.
    pub group: Option<String>,
    /// Group that may read the key file; the agent's own when unset.
    pub key_group: Option<String>,
    /// Directory on tmpfs where software keys are published; none when unset.
    pub software_key_dir: Option<PathBuf>,
}

/// `[socket]`: one socket for each role.
#[derive(Clone, Debug, PartialEq)]
pub struct SocketConfig {
    /// Socket of the role `read`: status, watch, Workload API.
    pub path: PathBuf,
    /// Group that may connect to it; the agent's own when unset.
    pub group: Option<String>,
    /// Socket of the role `sign`, which may use the key too. Default: `sign.sock` in the directory
    /// of `path`.
    pub sign_path: PathBuf,
    /// Group that may connect to it; the agent's own when unset.
    pub sign_group: Option<String>,
    /// Socket of the role `admin`, for root alone. Default: `admin.sock` in the directory of
    /// `path`.
    pub admin_path: PathBuf,
    /// Connection limits of each of them.
    pub limits: Limits,
    /// Signatures per minute and user.
    pub signatures_per_minute: u32,
}

/// Default connection limit: enough for the programs of a device, and few enough for the memory of
/// a small one (`MemoryMax=` in systemd/miaf-agent.service).
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// Default rate of signatures: a server on the slowest of devices has a few TLS handshakes a
/// second, and one with a software key no more than this.
pub(crate) const SIGNATURES_PER_MINUTE: u32 = 6000;

/// Connection limits of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For all users together.
    pub connections: usize,
    /// For one user.
    pub of_one_user: usize,
}

impl Config {
    /// Reads the file and its drop-ins; a key in a later one replaces it in earlier ones.
    /// `state_directory` is systemd's `STATE_DIRECTORY`, if set.
    ///
    /// A file that does not exist, or names no MIS, is a configuration too: the device is
    /// unconfigured.
    ///
    /// # Errors
    /// [`ConfigError`] with file and line.
    pub fn load(file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        Self::of(&Sources::read(file)?, file, state_directory)
    }

    /// Parses the text of `file` without drop-ins.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        Self::of(&Sources::one(file, text), file, state_directory)
    }

    /// Parses the sources. Relative paths, also those in drop-ins, are relative to `file`.
    fn of(sources: &Sources, file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        let raw = sources.parse()?;
        let reader = Reader { sources, directory: file.parent().unwrap_or(Path::new("")) };
        let state_dir = match (&raw.state_dir, state_directory) {
            (Some(configured), _) => reader.path(configured),
            (None, Some(given)) => given.to_owned(),
            (None, None) => PathBuf::from(DEFAULT_STATE_DIR),
        };
        let directories = Directories::of(&raw.files, &state_dir, &reader);
        let (retry_base, retry_cap) = reader.retry(&raw.retry)?;
        let staleness = reader.staleness(&raw.bundle)?;
        let [agent_socket, sign_socket, admin_socket] =
            reader.sockets(&raw.socket, Path::new(DEFAULT_SOCKET))?;
        let key = reader.key(&raw.key)?;
        let key_users = reader.users("workload_api.key_users", raw.workload_api.key_users.as_deref())?;
        let identities = reader.identities(&raw, &key, key_users)?;
        let mut mis = raw.mis.as_ref().map(|mis| reader.mis(mis)).transpose()?;
        if let Some(mis) = &mut mis {
            mis.trust_domain = reader.guarded_trust_domain(&raw, &identities, mis)?;
        }
        reader.check_est_url(&raw, &identities, mis.as_ref())?;
        reader.check_directories(&raw.files, &directories, &state_dir, &identities)?;
        Ok(Self {
            mis,
            bootstrap: raw.bootstrap.map(|bootstrap| reader.bootstrap(&bootstrap)).transpose()?,
            identities,
            key,
            renewal_window: reader.window(raw.renewal.window.as_ref())?,
            retry_base,
            retry_cap,
            bundle_refresh: reader.bundle_refresh(&raw.bundle, staleness)?,
            staleness,
            files: FilesConfig {
                is_own: is_below(&directories.files, &state_dir),
                dir: directories.files,
                group: raw.files.group,
                key_group: raw.files.key_group,
                software_key_dir: directories.software_keys,
            },
            socket: SocketConfig {
                sign_path: sign_socket,
                admin_path: admin_socket,
                path: agent_socket,
                group: raw.socket.group,
                sign_group: raw.socket.sign_group,
                limits: reader.limits(
                    raw.socket.max_connections.as_ref(),
                    raw.socket.max_connections_per_user.as_ref(),
                )?,
                signatures_per_minute: reader.signatures(raw.socket.signatures_per_minute.as_ref())?,
            },
            textfile: raw.metrics.textfile.map(|path| reader.path(&path)),
            log_level: raw.log.level.unwrap_or_default(),
            state_dir,
        })
    }
}

/// Whether a path is below a directory as it is written, and does not lead out of it again.
fn is_below(path: &Path, dir: &Path) -> bool {
    path.strip_prefix(dir)
        .is_ok_and(|rest| rest.components().all(|part| matches!(part, Component::Normal(_))))
}

/// A configuration that cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    problem: Problem,
    hint: Option<String>,
}

impl ConfigError {
    /// Adds what to do.
    fn with_hint_text(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Whether the file does not exist.
    fn is_missing(&self) -> bool {
        matches!(&self.problem, Problem::Unreadable { kind: ErrorKind::NotFound, .. })
    }

    /// Whether the files cannot be read at all, so that nothing is known of what they say.
    pub fn is_unreadable(&self) -> bool {
        matches!(&self.problem, Problem::Unreadable { .. })
    }

    /// Whether this process is not permitted to read the file. Another user's process may be.
    pub fn is_denied(&self) -> bool {
        matches!(&self.problem, Problem::Unreadable { kind: ErrorKind::PermissionDenied, .. })
    }
}

/// What is wrong with a file.
#[derive(Debug)]
enum Problem {
    Unreadable { kind: ErrorKind, why: String },
    Syntax(Excerpt),
    Value { key: &'static str, what: Excerpt },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Excerpt::of(self.file.display(), MAX_PATH))?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match &self.problem {
            Problem::Unreadable { why, .. } => write!(f, ": cannot be read: {why}"),
            Problem::Syntax(message) => write!(f, ": {message}"),
            Problem::Value { key, what } => write!(f, ": {key}: {what}"),
        }
    }
}

impl Hint for ConfigError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.hint.as_deref().map(Cow::Borrowed)
    }
}

impl std::error::Error for ConfigError {}
