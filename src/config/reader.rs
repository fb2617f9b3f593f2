//! From the keys as written to values that cannot be wrong. What a user can get wrong is named with file, line and key, and
//! what to do about it.

use std::ops::{Range, RangeInclusive};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use toml::Spanned;
use url::Url;

use super::no_proxy;
use super::sources::Sources;
use super::{
    Bootstrap, ConfigError, DAY, FactoryCertificate, FactoryKey, InitialTrust, Key, Limits, MAX_CONNECTIONS,
    MAX_REASON, Mis, Problem, Proxy, ProxyUrl, SIGNATURES_PER_MINUTE, Through, raw,
};
use crate::keys::ProviderKind;
use crate::keys::tpm::{BadParent, Tcti};
use crate::platform::credentials::Secret;
use crate::spiffe::TrustDomain;
use crate::text::Excerpt;
use crate::uri;

/// Bytes of the path of a Unix socket (unix(7)): `sun_path` without its end.
const LONGEST_SOCKET: usize = 107;
const WELL_KNOWN: &str = "/.well-known/margo";
/// What they cost: MemoryMax= in systemd/miaf-agent.service.
const CONNECTIONS: RangeInclusive<usize> = 1..=65_536;
/// The slowest TPM makes one in a second; more than these nobody can make.
const SIGNATURES: RangeInclusive<u32> = 1..=6_000_000;
pub(super) const SHORTEST: Duration = Duration::from_millis(100);

/// Turns raw values into strong ones, and knows where each stood.
pub(super) struct Reader<'a> {
    pub(super) sources: &'a Sources,
    /// What relative paths are relative to.
    pub(super) folder: &'a Path,
}

impl Reader<'_> {
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    fn wrong(&self, span: &Range<usize>, key: &'static str, what: impl Into<String>) -> ConfigError {
        let (file, line) = self.sources.place_of(span);
        let problem = Problem::Value { key, what: Excerpt::of(what.into(), MAX_REASON) };
        ConfigError { file: file.into(), line: Some(line), problem }
    }

    /// Two keys of which only one may be there. They may stand in different files.
    fn either(
        &self,
        key: &'static str,
        span: &Range<usize>,
        other: &str,
        other_span: &Range<usize>,
    ) -> ConfigError {
        let (file, line) = self.sources.place_of(other_span);
        let what =
            format!("not beside {other}, which stands in {}:{line}: leave one of them out", file.display());
        self.wrong(span, key, what)
    }

    pub(super) fn mis(&self, section: &Spanned<raw::Mis>) -> Result<Mis, ConfigError> {
        let mis = section.get_ref();
        let discovery_url = match (&mis.discovery_url, &mis.origin) {
            (Some(url), None) => self.https_url("mis.discovery_url", url)?,
            (None, Some(origin)) => self.origin(origin)?,
            (Some(url), Some(origin)) => {
                return Err(self.either("mis.origin", &origin.span(), "discovery_url", &url.span()));
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
        let pins: Result<Vec<_>, _> =
            mis.trust.spki_sha256.iter().flatten().map(|pin| self.pin(pin)).collect();
        Ok(Mis {
            discovery_url,
            trust_domain: trust_domain.transpose()?,
            trust: InitialTrust {
                ca_file: mis.trust.ca_file.as_deref().map(|file| self.path(file)),
                spki_sha256: pins?,
                system_roots: mis.trust.system_roots.unwrap_or_default(),
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
        let url = uri::parse(text.get_ref())
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
        no_proxy::entry(host.get_ref()).map_err(|what| self.wrong(&host.span(), "mis.no_proxy", what))
    }

    /// The sockets for reading, signing and commands. What is not configured lies beside the first.
    pub(super) fn sockets(&self, socket: &raw::Socket, default: &Path) -> Result<[PathBuf; 3], ConfigError> {
        let configured = |key, path: Option<&Spanned<PathBuf>>| {
            path.map(|path| self.socket_path(key, &path.span(), self.path(path.get_ref()))).transpose()
        };
        let agent = configured("socket.path", socket.path.as_ref())?.unwrap_or_else(|| default.to_owned());
        let beside = |key, path: Option<&Spanned<PathBuf>>, name: &str| {
            let beside = agent.with_file_name(name);
            match (configured(key, path)?, &socket.path) {
                (Some(path), _) => Ok(path),
                (None, Some(first)) => self.socket_path(key, &first.span(), beside),
                (None, None) => Ok(beside),
            }
        };
        let sign = beside("socket.sign_path", socket.sign_path.as_ref(), "sign.sock")?;
        let admin = beside("socket.admin_path", socket.admin_path.as_ref(), "admin.sock")?;
        Ok([agent, sign, admin])
    }

    fn socket_path(
        &self,
        key: &'static str,
        span: &Range<usize>,
        path: PathBuf,
    ) -> Result<PathBuf, ConfigError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.contains(&0) || path.file_name().is_none() {
            return Err(self.wrong(span, key, "is not the path of a socket"));
        }
        if bytes.len() > LONGEST_SOCKET {
            let what = format!(
                "the path of a socket has at most {LONGEST_SOCKET} bytes on Linux, and {} has {}: choose a shorter one",
                Excerpt::of(path.display(), 200),
                bytes.len()
            );
            return Err(self.wrong(span, key, what));
        }
        Ok(path)
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
        let url = uri::parse(value.get_ref()).map_err(|e| {
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

    pub(super) fn bootstrap(&self, section: &Spanned<raw::Bootstrap>) -> Result<Bootstrap, ConfigError> {
        let bootstrap = section.get_ref();
        let Some(key) = &bootstrap.key else {
            let what = "add key = \"file:PATH\", or key = \"tpm:0x81…\"";
            return Err(self.wrong(&section.span(), "bootstrap", what));
        };
        let text = key.get_ref();
        let parsed = if let Some(path) = text.strip_prefix("file:").filter(|path| !path.is_empty()) {
            Some(FactoryKey::File(self.path(Path::new(path))))
        } else {
            let handle = text.strip_prefix("tpm:0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
            handle.filter(|handle| handle >> 24 == 0x81).map(FactoryKey::TpmHandle)
        };
        let what = "write \"file:PATH\", or \"tpm:0x81…\" with the persistent handle of a key in the TPM";
        Ok(Bootstrap {
            certificate: self.factory_certificate(section)?,
            intermediates_file: bootstrap.intermediates_file.as_deref().map(|path| self.path(path)),
            key: parsed.ok_or_else(|| self.wrong(&key.span(), "bootstrap.key", what))?,
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
            (Some(path), None) => return Ok(FactoryCertificate::File(self.path(path.get_ref()))),
            (None, Some(text)) => text,
            (Some(path), Some(text)) => {
                return Err(self.either("bootstrap.cert", &text.span(), "cert_file", &path.span()));
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

    pub(super) fn key(&self, key: &raw::Key) -> Result<Key, ConfigError> {
        let tcti = match &key.tcti {
            Some(text) => text
                .get_ref()
                .parse()
                .map_err(|e| self.wrong(&text.span(), "key.tcti", format!("{:?}: {e}", text.get_ref())))?,
            None => Tcti::default(),
        };
        let parent = key.parent.as_ref().map(|text| {
            let parsed = text.get_ref().parse();
            parsed.map_err(|e: BadParent| self.wrong(&text.span(), "key.parent", e.to_string()))
        });
        Ok(Key {
            provider: key.provider.unwrap_or(ProviderKind::Tpm),
            tcti,
            parent: parent.transpose()?.unwrap_or_default(),
            owner_auth: key
                .owner_auth
                .as_ref()
                .map(|text| self.secret("key.owner_auth", text))
                .transpose()?,
            rotate: key.rotate.unwrap_or(true),
        })
    }

    pub(super) fn window(&self, window: Option<&Spanned<[f64; 2]>>) -> Result<(f64, f64), ConfigError> {
        let Some(window) = window else { return Ok((0.4, 0.6)) };
        let [from, to] = *window.get_ref();
        if from > 0.0 && from <= to && to < 1.0 {
            return Ok((from, to));
        }
        let what = "two fractions of the lifetime, 0 < from <= to < 1, as in [0.4, 0.6]";
        Err(self.wrong(&window.span(), "renewal.window", what))
    }

    pub(super) fn retry(&self, retry: &raw::Retry) -> Result<(Duration, Duration), ConfigError> {
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

    pub(super) fn limits(
        &self,
        all: Option<&Spanned<usize>>,
        of_one_user: Option<&Spanned<usize>>,
    ) -> Result<Limits, ConfigError> {
        let read = |key, value: Option<&Spanned<usize>>, default| match value {
            None => Ok(default),
            Some(value) if CONNECTIONS.contains(value.get_ref()) => Ok(*value.get_ref()),
            Some(value) => {
                let what = format!("must lie between {} and {}", CONNECTIONS.start(), CONNECTIONS.end());
                Err(self.wrong(&value.span(), key, what))
            }
        };
        let connections = read("socket.max_connections", all, MAX_CONNECTIONS)?;
        let half = (connections / 2).max(1);
        Ok(Limits { connections, of_one_user: read("socket.max_connections_per_user", of_one_user, half)? })
    }

    pub(super) fn signatures(&self, value: Option<&Spanned<u32>>) -> Result<u32, ConfigError> {
        match value {
            None => Ok(SIGNATURES_PER_MINUTE),
            Some(value) if SIGNATURES.contains(value.get_ref()) => Ok(*value.get_ref()),
            Some(value) => {
                let what = format!("must lie between {} and {}", SIGNATURES.start(), SIGNATURES.end());
                Err(self.wrong(&value.span(), "socket.signatures_per_minute", what))
            }
        }
    }

    /// Users by name or number. Whether there is such a user is found out when one asks.
    pub(super) fn users(
        &self,
        key: &'static str,
        users: Option<&[Spanned<String>]>,
    ) -> Result<Arc<[String]>, ConfigError> {
        let user = |user: &Spanned<String>| {
            let name = user.get_ref();
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.$".contains(&b)) {
                return Err(self.wrong(&user.span(), key, "each is the name of a user, or a number (uid)"));
            }
            Ok(name.clone())
        };
        users.into_iter().flatten().map(user).collect()
    }

    pub(super) fn duration(
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
