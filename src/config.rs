//! `/etc/miaf-agent/config.toml`, read once into types that cannot be wrong. What a user can get wrong is named with
//! file, line and key, and what to do about it.
//!
//! Only what the file *says* is checked here. Whether a certificate or a chip it names is there is found out when it
//! is used: a device with a missing factory certificate still starts and serves what it holds.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use toml::Spanned;
use url::Url;
use zeroize::Zeroizing;

use crate::keys::ProviderKind;
use crate::keys::tpm::Tcti;
use crate::spiffe::TrustDomain;
use crate::system::log::LogLevel;
use crate::system::secret::Secret;

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/miaf-agent/config.toml";

const DEFAULT_STATE_DIR: &str = "/var/lib/miaf-agent";
const DEFAULT_SOCKET: &str = "/run/miaf-agent/agent.sock";
const WELL_KNOWN: &str = "/.well-known/margo";
const MAX_FILE: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The whole configuration. Each room is given its part.
#[derive(Clone, Debug)]
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
    /// How much is logged.
    pub log_level: LogLevel,
}

/// `[mis]`
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug, Default)]
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
#[derive(Clone, Debug, Default)]
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
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct Key {
    /// Chosen by the configuration alone: there is no silent fall-back (miaf-v0 K1).
    pub provider: ProviderKind,
    /// How to reach the TPM.
    pub tcti: Tcti,
    /// Ask with a new key at every renewal.
    pub rotate: bool,
}

/// `[files]`
#[derive(Clone, Debug)]
pub struct Files {
    /// Where generations are published.
    pub dir: PathBuf,
    /// Group that may read; the agent's own when unset.
    pub group: Option<String>,
    /// Group that may read the key file; the agent's own when unset.
    pub key_group: Option<String>,
    /// Where software keys are published, on tmpfs; nowhere when unset.
    pub software_key_dir: Option<PathBuf>,
}

/// `[socket]`: one socket a right.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Read, watch, Workload API.
    pub path: PathBuf,
    /// Group that may connect to it; the agent's own when unset.
    pub group: Option<String>,
    /// The same, and use of the key.
    pub sign_path: PathBuf,
    /// Group that may connect to it; the agent's own when unset.
    pub sign_group: Option<String>,
    /// The same, and commands.
    pub admin_path: PathBuf,
}

impl Config {
    /// Reads the file. `state_directory` is systemd's `STATE_DIRECTORY`, if set.
    ///
    /// A file that does not exist, or says nothing of a MIS, is a configuration too: the device is unconfigured.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and what to do.
    pub fn load(file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match read_limited(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                return Err(ConfigError { file: file.into(), line: None, problem: Problem::Unreadable(e) });
            }
        };
        Self::parse(&text, file, state_directory)
    }

    /// Parses the text of `file`, which relative paths are relative to.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, file: &Path, state_directory: Option<&Path>) -> Result<Self, ConfigError> {
        let raw: raw::File = toml::from_str(text).map_err(|e| ConfigError {
            file: file.into(),
            line: e.span().map(|span| line_of(text, &span)),
            problem: Problem::Syntax(e.message().trim_end().to_owned()),
        })?;
        let reader = Reader { text, file, folder: file.parent().unwrap_or(Path::new("")) };
        let state_dir = match (&raw.state_dir, state_directory) {
            (Some(configured), _) => reader.path(configured),
            (None, Some(given)) => given.to_owned(),
            (None, None) => PathBuf::from(DEFAULT_STATE_DIR),
        };
        let (retry_base, retry_cap) = reader.retry(&raw.retry)?;
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
                dir: raw.files.dir.map_or_else(|| state_dir.join("svid"), |dir| reader.path(&dir)),
                group: raw.files.group,
                key_group: raw.files.key_group,
                software_key_dir: raw.files.software_key_dir.map(|dir| reader.path(&dir)),
            },
            socket: Socket {
                path: raw.socket.path.map_or_else(|| DEFAULT_SOCKET.into(), |path| reader.path(&path)),
                group: raw.socket.group,
                sign_path: raw
                    .socket
                    .sign_path
                    .map_or_else(|| "/run/miaf-agent/sign.sock".into(), |p| reader.path(&p)),
                sign_group: raw.socket.sign_group,
                admin_path: raw
                    .socket
                    .admin_path
                    .map_or_else(|| "/run/miaf-agent/admin.sock".into(), |p| reader.path(&p)),
            },
            log_level: raw.log.level.unwrap_or_default(),
            state_dir,
        })
    }
}

/// A configuration that cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Unreadable(std::io::Error),
    Syntax(String),
    Value { key: &'static str, what: String },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match &self.problem {
            Problem::Unreadable(e) => write!(f, ": cannot be read: {e}. Check its path and permissions"),
            Problem::Syntax(message) => write!(f, ": {message}"),
            Problem::Value { key, what } => write!(f, ": {key}: {what}"),
        }
    }
}

impl std::error::Error for ConfigError {}

const SHORTEST: Duration = Duration::from_millis(100);

/// Turns raw values into strong ones, and knows where each stood.
struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
    folder: &'a Path,
}

impl Reader<'_> {
    fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    fn wrong(&self, span: &Range<usize>, key: &'static str, what: impl Into<String>) -> ConfigError {
        let line = Some(line_of(self.text, span));
        ConfigError { file: self.file.into(), line, problem: Problem::Value { key, what: what.into() } }
    }

    fn mis(&self, section: &Spanned<raw::Mis>) -> Result<Mis, ConfigError> {
        let mis = section.get_ref();
        let discovery_url = match (&mis.discovery_url, &mis.origin) {
            (Some(url), None) => self.https_url("mis.discovery_url", url)?,
            (None, Some(origin)) => self.origin(origin)?,
            (Some(_), Some(origin)) => {
                let what = "give either discovery_url or origin, not both";
                return Err(self.wrong(&origin.span(), "mis.origin", what));
            }
            (None, None) => {
                let what = "add discovery_url = \"https://…\", or origin = \"https://…\"";
                return Err(self.wrong(&section.span(), "mis", what));
            }
        };
        let trust_domain = mis.trust_domain.as_ref().map(|name| {
            TrustDomain::parse(name.get_ref()).map_err(|e| {
                self.wrong(&name.span(), "mis.trust_domain", format!("{:?}: {e}", name.get_ref()))
            })
        });
        let pins: Result<Vec<_>, _> = mis.trust.spki_sha256.iter().map(|pin| self.pin(pin)).collect();
        Ok(Mis {
            discovery_url,
            trust_domain: trust_domain.transpose()?,
            trust: InitialTrust {
                ca_file: mis.trust.ca_file.as_deref().map(|file| self.path(file)),
                spki_sha256: pins?,
                system_roots: mis.trust.system_roots,
            },
            proxy: self.proxy(mis)?,
        })
    }

    fn proxy(&self, mis: &raw::Mis) -> Result<Proxy, ConfigError> {
        let through = match &mis.proxy {
            None => Through::Environment,
            Some(text) if text.get_ref() == "none" => Through::Never,
            Some(text) => Through::At(self.proxy_url(text)?),
        };
        let auth = mis.proxy_auth.as_ref().map(|text| self.secret("mis.proxy_auth", text)).transpose()?;
        if let (Some(text), Some(_), Through::At(url)) = (&mis.proxy_auth, &auth, &through)
            && url.with_secrets().contains('@')
        {
            let what = "mis.proxy holds a user already: give either, and better this one";
            return Err(self.wrong(&text.span(), "mis.proxy_auth", what));
        }
        let no_proxy = mis.no_proxy.as_ref().map(|hosts| hosts.iter().map(|host| self.host(host)).collect());
        Ok(Proxy { through, auth, no_proxy: no_proxy.transpose()? })
    }

    /// Nothing of what is written there is repeated: it may hold a password.
    fn proxy_url(&self, text: &Spanned<String>) -> Result<ProxyUrl, ConfigError> {
        let wrong = |what: &str| self.wrong(&text.span(), "mis.proxy", what);
        let url = Url::parse(text.get_ref())
            .ok()
            .filter(Url::has_host)
            .ok_or_else(|| wrong("write \"http://host:port\", or \"none\" for no proxy at all"))?;
        if url.scheme() != "http" {
            // To one spoken to over TLS the initial trust would apply, and the factory certificate be shown.
            return Err(wrong(
                "only http:// proxies are supported: the connection to the MIS goes through them encrypted",
            ));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("a proxy is only http://host[:port], without a path"));
        }
        Ok(ProxyUrl::new(&url))
    }

    fn host(&self, host: &Spanned<String>) -> Result<String, ConfigError> {
        let text = host.get_ref();
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/*".contains(&b);
        if text.is_empty() || !text.bytes().all(fine) || (text.contains('*') && text != "*") {
            let what =
                "each is a host name, \".domain\", an IP address, a network such as \"10.0.0.0/8\", or \"*\"";
            return Err(self.wrong(&host.span(), "mis.no_proxy", what));
        }
        Ok(text.to_ascii_lowercase())
    }

    /// `file:PATH` or `credential:NAME`.
    fn secret(&self, key: &'static str, text: &Spanned<String>) -> Result<Secret, ConfigError> {
        let value = text.get_ref();
        if let Some(path) = value.strip_prefix("file:").filter(|path| !path.is_empty()) {
            return Ok(Secret::File(self.path(Path::new(path))));
        }
        // A plain name: it must not lead out of the folder that systemd made for this service.
        let plain = |name: &&str| {
            !matches!(*name, "" | "." | "..") && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        };
        match value.strip_prefix("credential:").filter(plain) {
            Some(name) => Ok(Secret::Credential(name.to_owned())),
            None => Err(self.wrong(&text.span(), key, "write \"file:PATH\", or \"credential:NAME\"")),
        }
    }

    fn https_url(&self, key: &'static str, value: &Spanned<String>) -> Result<Url, ConfigError> {
        let url = Url::parse(value.get_ref()).map_err(|e| {
            self.wrong(&value.span(), key, format!("{:?} is not a URL: {e}", value.get_ref()))
        })?;
        if url.scheme() != "https" || !url.has_host() {
            let what = "must be an absolute https:// URL: the MIS is only spoken to over TLS";
            return Err(self.wrong(&value.span(), key, what));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong(&value.span(), key, "must not hold a user name or password"));
        }
        Ok(url)
    }

    fn origin(&self, value: &Spanned<String>) -> Result<Url, ConfigError> {
        let mut url = self.https_url("mis.origin", value)?;
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            let what = "an origin is only https://host[:port]; for a URL with a path use discovery_url";
            return Err(self.wrong(&value.span(), "mis.origin", what));
        }
        url.set_path(WELL_KNOWN);
        Ok(url)
    }

    fn pin(&self, pin: &Spanned<String>) -> Result<[u8; 32], ConfigError> {
        let decoded = BASE64.decode(pin.get_ref()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        decoded.ok_or_else(|| {
            let what = "each pin is the base64 of a SHA-256 digest (44 characters): \
                        openssl x509 -in ca.pem -pubkey -noout | openssl pkey -pubin -outform der | \
                        openssl dgst -sha256 -binary | base64";
            self.wrong(&pin.span(), "mis.trust.spki_sha256", what)
        })
    }

    fn bootstrap(&self, section: &Spanned<raw::Bootstrap>) -> Result<Bootstrap, ConfigError> {
        let bootstrap = section.get_ref();
        let key = bootstrap.key.get_ref();
        let parsed = if let Some(path) = key.strip_prefix("file:").filter(|path| !path.is_empty()) {
            Some(FactoryKey::File(self.path(Path::new(path))))
        } else {
            let handle = key.strip_prefix("tpm:0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
            handle.filter(|handle| handle >> 24 == 0x81).map(FactoryKey::TpmHandle)
        };
        let what = "write \"file:PATH\", or \"tpm:0x81…\" with the persistent handle of a key in the TPM";
        Ok(Bootstrap {
            certificate: self.factory_certificate(section)?,
            intermediates_file: bootstrap.intermediates_file.as_deref().map(|path| self.path(path)),
            key: parsed.ok_or_else(|| self.wrong(&bootstrap.key.span(), "bootstrap.key", what))?,
            key_auth: bootstrap
                .key_auth
                .as_ref()
                .map(|text| self.secret("bootstrap.key_auth", text))
                .transpose()?,
        })
    }

    fn factory_certificate(
        &self,
        section: &Spanned<raw::Bootstrap>,
    ) -> Result<FactoryCertificate, ConfigError> {
        let bootstrap = section.get_ref();
        let text = match (&bootstrap.cert_file, &bootstrap.cert) {
            (Some(path), None) => return Ok(FactoryCertificate::File(self.path(path))),
            (None, Some(text)) => text,
            (Some(_), Some(text)) => {
                return Err(self.wrong(
                    &text.span(),
                    "bootstrap.cert",
                    "give either cert_file or cert, not both",
                ));
            }
            (None, None) => {
                let what = "add cert_file = \"PATH\", or cert = \"tpm:0x01…\"";
                return Err(self.wrong(&section.span(), "bootstrap", what));
            }
        };
        if let Some(path) = text.get_ref().strip_prefix("file:").filter(|path| !path.is_empty()) {
            return Ok(FactoryCertificate::File(self.path(Path::new(path))));
        }
        let index = text.get_ref().strip_prefix("tpm:0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let what = "write \"file:PATH\", or \"tpm:0x01…\" with the NV index of a certificate in the TPM";
        index
            .filter(|index| index >> 24 == 0x01)
            .map(FactoryCertificate::TpmNv)
            .ok_or_else(|| self.wrong(&text.span(), "bootstrap.cert", what))
    }

    fn key(&self, key: &raw::Key) -> Result<Key, ConfigError> {
        let tcti = match &key.tcti {
            Some(text) => text
                .get_ref()
                .parse()
                .map_err(|e| self.wrong(&text.span(), "key.tcti", format!("{:?}: {e}", text.get_ref())))?,
            None => Tcti::default(),
        };
        Ok(Key {
            provider: key.provider.unwrap_or(ProviderKind::Tpm),
            tcti,
            rotate: key.rotate.unwrap_or(true),
        })
    }

    fn window(&self, window: Option<&Spanned<[f64; 2]>>) -> Result<(f64, f64), ConfigError> {
        let Some(window) = window else { return Ok((0.4, 0.6)) };
        let [from, to] = *window.get_ref();
        if from > 0.0 && from <= to && to < 1.0 {
            return Ok((from, to));
        }
        let what = "two fractions of the lifetime, 0 < from <= to < 1, as in [0.4, 0.6]";
        Err(self.wrong(&window.span(), "renewal.window", what))
    }

    fn retry(&self, retry: &raw::Retry) -> Result<(Duration, Duration), ConfigError> {
        let secs = Duration::from_secs;
        let base = self.duration("retry.base", retry.base.as_ref(), secs(5), SHORTEST..=DAY)?;
        let cap = self.duration("retry.cap", retry.cap.as_ref(), secs(3600).max(base), SHORTEST..=DAY)?;
        match &retry.cap {
            Some(text) if cap < base => {
                Err(self.wrong(&text.span(), "retry.cap", "must not be below retry.base"))
            }
            _ => Ok((base, cap)),
        }
    }

    fn duration(
        &self,
        key: &'static str,
        value: Option<&Spanned<String>>,
        default: Duration,
        allowed: std::ops::RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let Some(text) = value else { return Ok(default) };
        let duration = humantime::parse_duration(text.get_ref()).map_err(|_| {
            let what = format!("{:?} is not a duration; write \"5m\", \"30s\" or \"200ms\"", text.get_ref());
            self.wrong(&text.span(), key, what)
        })?;
        if allowed.contains(&duration) {
            return Ok(duration);
        }
        let (from, to) =
            (humantime::format_duration(*allowed.start()), humantime::format_duration(*allowed.end()));
        Err(self.wrong(&text.span(), key, format!("must lie between {from} and {to}")))
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|b| *b == b'\n').count() + 1
}

fn read_limited(file: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// The file as written. Unknown keys are refused: a misspelt one would be silently without effect.
mod raw {
    use super::{Deserialize, LogLevel, PathBuf, ProviderKind, Spanned};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct File {
        pub(super) state_dir: Option<PathBuf>,
        pub(super) mis: Option<Spanned<Mis>>,
        pub(super) bootstrap: Option<Spanned<Bootstrap>>,
        #[serde(default)]
        pub(super) key: Key,
        #[serde(default)]
        pub(super) renewal: Renewal,
        #[serde(default)]
        pub(super) retry: Retry,
        #[serde(default)]
        pub(super) bundle: Bundle,
        #[serde(default)]
        pub(super) files: Files,
        #[serde(default)]
        pub(super) socket: Socket,
        #[serde(default)]
        pub(super) log: Log,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Mis {
        pub(super) discovery_url: Option<Spanned<String>>,
        pub(super) origin: Option<Spanned<String>>,
        pub(super) trust_domain: Option<Spanned<String>>,
        pub(super) proxy: Option<Spanned<String>>,
        pub(super) proxy_auth: Option<Spanned<String>>,
        pub(super) no_proxy: Option<Vec<Spanned<String>>>,
        #[serde(default)]
        pub(super) trust: Trust,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Trust {
        pub(super) ca_file: Option<PathBuf>,
        #[serde(default)]
        pub(super) spki_sha256: Vec<Spanned<String>>,
        #[serde(default)]
        pub(super) system_roots: bool,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Bootstrap {
        #[serde(default, rename = "method")]
        pub(super) _method: Method,
        pub(super) cert_file: Option<PathBuf>,
        pub(super) cert: Option<Spanned<String>>,
        pub(super) intermediates_file: Option<PathBuf>,
        pub(super) key: Spanned<String>,
        pub(super) key_auth: Option<Spanned<String>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub(super) enum Method {
        #[default]
        FactoryCertMtls,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Key {
        pub(super) provider: Option<ProviderKind>,
        pub(super) tcti: Option<Spanned<String>>,
        pub(super) rotate: Option<bool>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Renewal {
        pub(super) window: Option<Spanned<[f64; 2]>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Retry {
        pub(super) base: Option<Spanned<String>>,
        pub(super) cap: Option<Spanned<String>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Bundle {
        pub(super) refresh: Option<Spanned<String>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Files {
        pub(super) dir: Option<PathBuf>,
        pub(super) group: Option<String>,
        pub(super) key_group: Option<String>,
        pub(super) software_key_dir: Option<PathBuf>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Socket {
        pub(super) path: Option<PathBuf>,
        pub(super) group: Option<String>,
        pub(super) sign_path: Option<PathBuf>,
        pub(super) sign_group: Option<String>,
        pub(super) admin_path: Option<PathBuf>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Log {
        pub(super) level: Option<LogLevel>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/miaf-agent/config.toml";
    const FULL: &str = include_str!("../tests/data/config-full.toml");

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new(FILE), None).map_err(|e| e.to_string())
    }

    #[test]
    fn the_documented_file_is_read_with_every_key() {
        let config = parse(FULL).unwrap();
        let mis = config.mis.unwrap();
        assert_eq!(mis.discovery_url.as_str(), "https://mis.factory.example/.well-known/margo");
        assert_eq!(mis.trust.ca_file.unwrap(), Path::new("/etc/miaf-agent/mis-ca.pem"));
        assert_eq!(mis.trust.spki_sha256.len(), 1);
        let Through::At(url) = &mis.proxy.through else { panic!("{:?}", mis.proxy) };
        assert_eq!(url.with_secrets(), "http://proxy.factory.example:3128/");
        assert_eq!(mis.proxy.auth, Some(Secret::Credential("proxy.auth".into())));
        assert_eq!(mis.proxy.no_proxy.unwrap(), ["localhost", ".factory.example", "10.0.0.0/8"]);
        let bootstrap = config.bootstrap.unwrap();
        assert_eq!(bootstrap.certificate, FactoryCertificate::File("/etc/miaf-agent/factory.pem".into()));
        assert_eq!(bootstrap.intermediates_file.unwrap(), Path::new("/etc/miaf-agent/line.pem"));
        assert_eq!(bootstrap.key, FactoryKey::File("/etc/miaf-agent/factory.key".into()));
        assert_eq!(bootstrap.key_auth, Some(Secret::Credential("factory-key".into())));
        assert_eq!(config.renewal_window, (0.4, 0.6));
        assert_eq!(
            (config.retry_base, config.retry_cap),
            (Duration::from_secs(5), Duration::from_secs(3600))
        );
        assert_eq!(config.files.key_group.as_deref(), Some("miaf-sign"));
        assert_eq!(config.socket.admin_path, Path::new("/run/miaf-agent/admin.sock"));
    }

    #[test]
    fn an_empty_file_is_an_unconfigured_device_with_every_default() {
        let config = parse("# nothing yet\n").unwrap();
        assert!(config.mis.is_none() && config.bootstrap.is_none());
        assert_eq!(config.state_dir, Path::new("/var/lib/miaf-agent"));
        assert_eq!(config.files.dir, Path::new("/var/lib/miaf-agent/svid"));
        assert_eq!(config.key.provider, ProviderKind::Tpm);
        assert!(config.key.rotate);
    }

    #[test]
    fn the_state_folder_of_systemd_is_used_unless_the_file_names_one() {
        let given = Some(Path::new("/var/lib/private/miaf"));
        let load = |text| Config::parse(text, Path::new(FILE), given).unwrap().state_dir;
        assert_eq!(load(""), Path::new("/var/lib/private/miaf"));
        assert_eq!(load("state_dir = \"state\""), Path::new("/etc/miaf-agent/state"));
    }

    #[test]
    fn a_factory_credential_may_be_in_the_tpm() {
        let text = "[bootstrap]\ncert = \"tpm:0x01c90000\"\nkey = \"tpm:0x81020000\"";
        let bootstrap = parse(text).unwrap().bootstrap.unwrap();
        assert_eq!(bootstrap.certificate, FactoryCertificate::TpmNv(0x01c9_0000));
        assert_eq!(bootstrap.key, FactoryKey::TpmHandle(0x8102_0000));
        let text = "[bootstrap]\ncert = \"file:factory.pem\"\nkey = \"file:factory.key\"";
        let certificate = parse(text).unwrap().bootstrap.unwrap().certificate;
        assert_eq!(certificate, FactoryCertificate::File("/etc/miaf-agent/factory.pem".into()));
    }

    #[test]
    fn an_origin_is_completed_with_the_well_known_path() {
        let config = parse("[mis]\norigin = \"https://mis.example:8443\"").unwrap();
        assert_eq!(config.mis.unwrap().discovery_url.as_str(), "https://mis.example:8443/.well-known/margo");
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_key() {
        for (text, line, says) in [
            ("[mis]\ndiscovery_ulr = \"x\"", 2, "unknown field `discovery_ulr`"),
            ("[miss]", 1, "unknown field `miss`"),
            ("[mis]\n# no url", 1, "add discovery_url"),
            ("[mis]\ndiscovery_url = \"http://mis.example/\"", 2, "https://"),
            ("[mis]\ndiscovery_url = \"mis.example\"", 2, "not a URL"),
            ("[mis]\ndiscovery_url = \"https://a/\"\norigin = \"https://a\"", 3, "not both"),
            ("[mis]\norigin = \"https://a/path\"", 2, "use discovery_url"),
            ("[mis]\norigin = \"https://a\"\ntrust_domain = \"Factory\"", 3, "mis.trust_domain"),
            ("[mis]\norigin = \"https://a\"\n[mis.trust]\nspki_sha256 = [\"AAAA\"]", 4, "SHA-256"),
            ("[mis]\norigin = \"https://a\"\nproxy = \"proxy:3128\"", 3, "http://host:port"),
            ("[mis]\norigin = \"https://a\"\nproxy = \"https://proxy:3128\"", 3, "only http://"),
            ("[mis]\norigin = \"https://a\"\nproxy = \"socks5://proxy:1080\"", 3, "only http://"),
            ("[mis]\norigin = \"https://a\"\nproxy = \"http://proxy:3128/pac\"", 3, "without a path"),
            ("[mis]\norigin = \"https://a\"\nproxy_auth = \"user:password\"", 3, "credential:NAME"),
            ("[mis]\norigin = \"https://a\"\nproxy_auth = \"credential:../x\"", 3, "credential:NAME"),
            ("[mis]\norigin = \"https://a\"\nproxy_auth = \"credential:..\"", 3, "credential:NAME"),
            (
                "[mis]\norigin = \"https://a\"\nproxy = \"http://u:p@proxy\"\nproxy_auth = \"file:a\"",
                4,
                "give either",
            ),
            ("[mis]\norigin = \"https://a\"\nno_proxy = [\"a\", \"b,c\"]", 3, "each is a host name"),
            ("[mis]\norigin = \"https://a\"\nno_proxy = [\"*.example\"]", 3, "each is a host name"),
            ("[bootstrap]\ncert_file = \"a\"\nkey = \"factory.key\"", 3, "file:PATH"),
            ("[bootstrap]\ncert_file = \"a\"\nkey = \"tpm:0x80000001\"", 3, "persistent handle"),
            ("[bootstrap]\nkey = \"file:a\"", 1, "add cert_file"),
            ("[bootstrap]\ncert_file = \"a\"\ncert = \"file:a\"\nkey = \"file:a\"", 3, "not both"),
            ("[bootstrap]\ncert = \"tpm:0x81000001\"\nkey = \"file:a\"", 2, "NV index"),
            ("[bootstrap]\ncert = \"a\"\nkey = \"file:a\"", 2, "NV index"),
            ("[bootstrap]\ncert_file = \"a\"\nkey = \"file:b\"\nkey_auth = \"secret\"", 4, "credential:NAME"),
            ("[bootstrap]\nmethod = \"token\"\ncert_file = \"a\"\nkey = \"file:b\"", 2, "unknown variant"),
            ("[key]\nprovider = \"hsm\"", 2, "unknown variant"),
            ("[key]\ntcti = \"mssim:host=a\"", 2, "key.tcti"),
            ("[renewal]\nwindow = [0.6, 0.4]", 2, "fractions"),
            ("[retry]\nbase = \"5 parsecs\"", 2, "not a duration"),
            ("[retry]\nbase = \"1h\"\ncap = \"1m\"", 3, "must not be below"),
            ("[bundle]\nrefresh = \"30d\"", 2, "must lie between"),
            ("[log]\nlevel = \"loud\"", 2, "unknown variant"),
            ("[mis\n", 1, ""),
            ("state_dir = 5", 1, "invalid type"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("{FILE}:{line}: ")), "{text:?}: {error}");
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn no_password_of_a_proxy_is_shown() {
        let config =
            parse("[mis]\norigin = \"https://a\"\nproxy = \"http://user:hunter2@proxy:3128\"").unwrap();
        let shown = format!("{config:?}");
        assert!(shown.contains("ProxyUrl(http://proxy:3128)") && !shown.contains("hunter2"), "{shown}");
        for bad in ["http://user:hunter2@proxy/path", "https://user:hunter2@proxy", "//user:hunter2@proxy"] {
            let error = parse(&format!("[mis]\norigin = \"https://a\"\nproxy = \"{bad}\"")).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_proxy_is_the_environment_s_unless_the_file_says_otherwise() {
        let through = |line: &str| {
            parse(&format!("[mis]\norigin = \"https://a\"\n{line}")).unwrap().mis.unwrap().proxy.through
        };
        assert_eq!(through(""), Through::Environment);
        assert_eq!(through("proxy = \"none\""), Through::Never);
    }
}
