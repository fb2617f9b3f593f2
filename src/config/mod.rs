//! `/etc/miaf-agent/config.toml` and its drop-ins, read once into types that cannot be wrong. Unset, unknown and impossible
//! things are named with file, line and key.
//!
//! Only what the files *say* is checked here. Whether a certificate or a chip they name is there is found out when it
//! is used: a device with a missing factory certificate still starts and serves what it holds.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod no_proxy;
mod raw;
mod reader;
mod salvage;
mod sources;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use url::Url;
use zeroize::Zeroizing;

pub use self::salvage::Salvaged;
pub use self::sources::drop_in_folder;

use self::reader::{Reader, SHORTEST};
use self::sources::Sources;
use crate::keys::ProviderKind;
use crate::keys::tpm::{ParentChoice, Tcti};
use crate::platform::access;
use crate::platform::credentials::Secret;
use crate::platform::log::LogLevel;
use crate::spiffe::TrustDomain;
use crate::text::Excerpt;

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/miaf-agent/config.toml";

const DEFAULT_STATE_DIR: &str = "/var/lib/miaf-agent";
const DEFAULT_SOCKET: &str = "/run/miaf-agent/agent.sock";
/// Characters of what is wrong with a file. It quotes what stands there.
const MAX_REASON: usize = 1024;
/// Characters of a file's path in a message.
const MAX_PATH: usize = 512;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The whole configuration. Each room is given its part.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the agent keeps what must survive a power cut.
    pub state_dir: PathBuf,
    /// The MIS and how to trust it. Without it the device is `unconfigured`.
    pub mis: Option<Mis>,
    /// The bootstrap credential. Without it nothing can be enrolled, and status says so.
    pub bootstrap: Option<Bootstrap>,
    /// Where the SVID's key lives.
    pub key: Key,
    /// Renewal window, as fractions of the lifetime.
    pub renewal_window: (f64, f64),
    /// Upper end of the first pause after a failure.
    pub retry_base: Duration,
    /// Upper end of every pause after a failure.
    pub retry_cap: Duration,
    /// Longest time between two looks at the bundle where the MIS gives no hint.
    pub bundle_refresh: Duration,
    /// The published files.
    pub files: Files,
    /// The local sockets.
    pub socket: Socket,
    /// Users, by name or number, who are given a software key over the Workload API.
    pub key_users: Arc<[String]>,
    /// Where the figures of `/metrics` are written for the node exporter too.
    pub textfile: Option<PathBuf>,
    /// How much is logged.
    pub log_level: LogLevel,
}

/// `[mis]`
#[derive(Clone, Debug, PartialEq)]
pub struct Mis {
    /// The discovery URL: as given, or the well-known path on the origin given (miaf-v0 D2).
    pub discovery_url: Url,
    /// Any other trust domain is refused (miaf-v0 D6).
    pub trust_domain: Option<TrustDomain>,
    /// What authenticates the MIS's HTTPS endpoints.
    pub trust: InitialTrust,
    /// What stands between this device and the MIS.
    pub proxy: Proxy,
}

/// `[mis.trust]`: provisioned, never learnt on first use (miaf-v0 T1, T2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitialTrust {
    /// PEM file of anchors.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of subject public key infos (RFC 7469).
    pub spki_sha256: Vec<[u8; 32]>,
    /// Trust the operating system's store.
    pub system_roots: bool,
}

impl InitialTrust {
    /// Nothing is configured: then no one is contacted (miaf-v0 T2).
    pub fn is_empty(&self) -> bool {
        self.ca_file.is_none() && self.spki_sha256.is_empty() && !self.system_roots
    }

    /// Nothing but the operating system's store: every server is authenticated publicly (miaf-v0 D7).
    pub fn is_public_only(&self) -> bool {
        self.ca_file.is_none() && self.spki_sha256.is_empty() && self.system_roots
    }
}

/// `mis.proxy`, `mis.proxy_auth` and `mis.no_proxy`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxy {
    /// Which one, if any.
    pub through: Through,
    /// Where user and password for it are, as one line `user:password`. Stronger than those in a URL.
    pub auth: Option<Secret>,
    /// Hosts that are reached without it. Where nothing is configured, the environment's `NO_PROXY` counts.
    pub no_proxy: Option<Vec<String>>,
}

/// `mis.proxy`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// Unset: what the usual environment variables say.
    #[default]
    Environment,
    /// `"none"`: none, whatever the environment says.
    Never,
    /// This one.
    At(ProxyUrl),
}

/// `http://[user:password@]host[:port]`. What it shows of itself, also to `Debug`, is without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Zeroizing<String>);

impl ProxyUrl {
    fn new(url: &Url) -> Self {
        Self(Zeroizing::new(url.as_str().to_owned()))
    }

    /// As configured, user and password included: for no log and no error.
    pub fn with_secrets(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.trim_end_matches('/');
        let place = whole.rsplit_once('@').map_or(whole, |(_, place)| place);
        write!(f, "http://{}", place.trim_start_matches("http://"))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

/// `[bootstrap]`: the factory certificate and its key (miaf-v0 K5).
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// Where the certificate is, with or without its intermediates.
    pub certificate: FactoryCertificate,
    /// PEM file of intermediates that are not beside the certificate.
    pub intermediates_file: Option<PathBuf>,
    /// Where its key is.
    pub key: FactoryKey,
    /// The password of a key in the TPM.
    pub key_auth: Option<Secret>,
}

/// `bootstrap.cert_file` or `bootstrap.cert`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FactoryCertificate {
    /// PEM file: leaf, then intermediates.
    File(PathBuf),
    /// `tpm:0x01…`, an NV index that holds DER: the leaf, and perhaps intermediates after it.
    TpmNv(u32),
}

impl fmt::Display for FactoryCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::TpmNv(index) => write!(f, "in the TPM's NV index {index:#010x}"),
        }
    }
}

/// `bootstrap.key`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FactoryKey {
    /// `file:PATH`
    File(PathBuf),
    /// `tpm:0x81…`, a persistent handle.
    TpmHandle(u32),
}

impl fmt::Display for FactoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::TpmHandle(handle) => write!(f, "in the TPM at {handle:#010x}"),
        }
    }
}

/// `[key]`
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Chosen by the configuration alone: there is no silent fall-back (miaf-v0 K1).
    pub provider: ProviderKind,
    /// How to reach the TPM.
    pub tcti: Tcti,
    /// Under which key of the TPM new ones are made.
    pub parent: ParentChoice,
    /// The password of the TPM's owner.
    pub owner_auth: Option<Secret>,
    /// Ask with a new key at every renewal.
    pub rotate: bool,
}

/// `[files]`
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// Where generations are published.
    pub dir: PathBuf,
    /// It is below the state directory, where nothing of others is.
    pub is_own: bool,
    /// Group that may read; the agent's own when unset.
    pub group: Option<String>,
    /// Group that may read the key file; the agent's own when unset.
    pub key_group: Option<String>,
    /// Where software keys are published, on tmpfs; nowhere when unset.
    pub software_key_dir: Option<PathBuf>,
}

/// `[socket]`: one socket a right.
#[derive(Clone, Debug, PartialEq)]
pub struct Socket {
    /// Read, watch, Workload API.
    pub path: PathBuf,
    /// Group that may connect to it; the agent's own when unset.
    pub group: Option<String>,
    /// The same, and use of the key. `sign.sock` beside `path` where it is not named.
    pub sign_path: PathBuf,
    /// Group that may connect to it; the agent's own when unset.
    pub sign_group: Option<String>,
    /// The same, and commands; for root alone. `admin.sock` beside `path` where it is not named.
    pub admin_path: PathBuf,
    /// How many may be connected to each of them.
    pub limits: Limits,
    /// Signatures that one user may have in a minute.
    pub signatures_per_minute: u32,
}

/// Enough for the programs of a device, and few enough for the memory of a small one: see `MemoryMax=` in
/// systemd/miaf-agent.service.
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// A server on the slowest of devices has a few TLS handshakes a second, and one with a software key no more than
/// this.
pub(crate) const SIGNATURES_PER_MINUTE: u32 = 6000;

/// How many may be connected to one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of all users together.
    pub connections: usize,
    /// Of one user.
    pub of_one_user: usize,
}

impl Config {
    /// Reads the file and its drop-ins: a key in a later one replaces it in those before. `state_directory` is systemd's
    /// `STATE_DIRECTORY`, if set.
    ///
    /// A file that does not exist, or says nothing of a MIS, is a configuration too: the device is unconfigured.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and what to do.
    pub fn load(file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        Self::of(&Sources::read(file)?, file, state_directory)
    }

    /// Parses the text of `file` alone.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        Self::of(&Sources::one(file, text), file, state_directory)
    }

    /// Relative paths, also those in drop-ins, are relative to `file`.
    fn of(sources: &Sources, file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        let raw = sources.parse()?;
        let reader = Reader { sources, folder: file.parent().unwrap_or(Path::new("")) };
        let state_dir = match (&raw.state_dir, state_directory) {
            (Some(configured), _) => reader.path(configured),
            (None, Some(given)) => given.to_owned(),
            (None, None) => PathBuf::from(DEFAULT_STATE_DIR),
        };
        let files_dir = raw.files.dir.map_or_else(|| state_dir.join("svid"), |dir| reader.path(&dir));
        let (retry_base, retry_cap) = reader.retry(&raw.retry)?;
        let [agent_socket, sign_socket, admin_socket] =
            reader.sockets(&raw.socket, Path::new(DEFAULT_SOCKET))?;
        Ok(Self {
            mis: raw.mis.map(|mis| reader.mis(&mis)).transpose()?,
            bootstrap: raw.bootstrap.map(|bootstrap| reader.bootstrap(&bootstrap)).transpose()?,
            key: reader.key(&raw.key)?,
            renewal_window: reader.window(raw.renewal.window.as_ref())?,
            retry_base,
            retry_cap,
            bundle_refresh: reader.duration(
                "bundle.refresh",
                raw.bundle.refresh.as_ref(),
                Duration::from_secs(300),
                SHORTEST..=DAY,
            )?,
            files: Files {
                is_own: is_below(&files_dir, &state_dir),
                dir: files_dir,
                group: raw.files.group,
                key_group: raw.files.key_group,
                software_key_dir: raw.files.software_key_dir.map(|dir| reader.path(&dir)),
            },
            socket: Socket {
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
            key_users: reader.users("workload_api.key_users", raw.workload_api.key_users.as_deref())?,
            textfile: raw.metrics.textfile.map(|path| reader.path(&path)),
            log_level: raw.log.level.unwrap_or_default(),
            state_dir,
        })
    }
}

/// Whether a path lies in a directory as it is written, and does not lead out of it again.
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
}

impl ConfigError {
    /// There is no such file.
    fn is_missing(&self) -> bool {
        matches!(&self.problem, Problem::Unreadable(e) if e.kind() == ErrorKind::NotFound)
    }

    /// The kernel does not let this process read a file. Another user's process may be allowed to.
    pub fn is_denied(&self) -> bool {
        matches!(&self.problem, Problem::Unreadable(e) if e.kind() == ErrorKind::PermissionDenied)
    }
}

#[derive(Debug)]
enum Problem {
    Unreadable(std::io::Error),
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
            Problem::Unreadable(e) => {
                write!(f, ": cannot be read: {}", access::why_unreadable(&self.file, e))
            }
            Problem::Syntax(message) => write!(f, ": {message}"),
            Problem::Value { key, what } => write!(f, ": {key}: {what}"),
        }
    }
}

impl std::error::Error for ConfigError {}
