//! Validation: from the keys as written to types that cannot be wrong. A wrong value is reported
//! with file, line and key, and with what to do about it.

use std::borrow::Cow;
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
    BootstrapConfig, ConfigError, CredentialKind, DAY, FactoryCertificateLocation, FactoryKeyLocation,
    InitialTrust, KeyConfig, Limits, MAX_CONNECTIONS, MAX_REASON, MisConfig, Problem, ProxyChoice,
    ProxyConfig, ProxyUrl, Rotate, SIGNATURES_PER_MINUTE, Staleness, TrustDomainSource, raw,
};
use crate::hint::Hint;
use crate::keys::tpm::{BadParent, Tcti};
use crate::keys::{KeyError, ProviderKind};
use crate::platform::credentials::Secret;
use crate::uri;
use miaf_spiffe::TrustDomain;
use miaf_spiffe::text::Excerpt;

/// Limit on the bytes of the path of a Unix socket (unix(7)): `sun_path` without its terminator.
const LONGEST_SOCKET: usize = 107;
const WELL_KNOWN: &str = "/.well-known/margo";
/// Allowed connection limits. Their cost: MemoryMax= in systemd/miaf-agent.service.
const CONNECTIONS: RangeInclusive<usize> = 1..=65_536;
/// Allowed rates. The slowest TPM makes one signature per second; no device makes more than the
/// maximum.
const SIGNATURES: RangeInclusive<u32> = 1..=6_000_000;
const SHORTEST: Duration = Duration::from_millis(100);
/// Smallest and largest `bundle.max_age`.
const MAX_AGES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3650 * 24 * 3600));

/// Names of the keys of a credential, for messages.
pub(super) struct CredentialKeys {
    pub(super) kind: CredentialKind,
    pub(super) section: &'static str,
    pub(super) cert: &'static str,
    pub(super) key: &'static str,
    pub(super) key_auth: &'static str,
}

/// Validates raw values, with the position of each.
pub(super) struct Reader<'a> {
    pub(super) sources: &'a Sources,
    /// Base of relative paths.
    pub(super) directory: &'a Path,
}

impl Reader<'_> {
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    pub(super) fn wrong(
        &self,
        span: &Range<usize>,
        key: &'static str,
        what: impl Into<String>,
    ) -> ConfigError {
        let (file, line) = self.sources.place_of(span);
        let problem = Problem::Value { key, what: Excerpt::of(what.into(), MAX_REASON) };
        ConfigError { file: file.into(), line: Some(line), problem, hint: None }
    }

    /// Error for a value that another type does not accept.
    fn refused(&self, span: &Range<usize>, key: &'static str, why: &dyn Hint) -> ConfigError {
        let error = self.wrong(span, key, why.to_string());
        ConfigError { hint: why.hint().map(Cow::into_owned), ..error }
    }

    /// Error for two keys that exclude each other. They may be in different files.
    pub(super) fn either(
        &self,
        key: &'static str,
        span: &Range<usize>,
        other: &str,
        other_span: &Range<usize>,
    ) -> ConfigError {
        let (file, line) = self.sources.place_of(other_span);
        let what = format!("excludes {other}, which is in {}:{line}", file.display());
        self.wrong(span, key, what).with_hint_text("Remove one of them")
    }

    pub(super) fn mis(&self, section: &Spanned<raw::Mis>) -> Result<MisConfig, ConfigError> {
        let mis = section.get_ref();
        let trust_domain = mis.trust_domain.as_ref().map(|name| {
            TrustDomain::parse(name.get_ref()).map_err(|e| {
                self.wrong(&name.span(), "mis.trust_domain", format!("{:?}: {e}", name.get_ref()))
            })
        });
        let trust_domain = trust_domain.transpose()?;
        let source = self.source(section)?;
        let pins: Result<Vec<_>, _> =
            mis.trust.spki_sha256.iter().flatten().map(|pin| self.pin(pin)).collect();
        Ok(MisConfig {
            source,
            est_url: mis.est_url.as_ref().map(|url| self.est_url(url)).transpose()?,
            trust_domain,
            trust: InitialTrust {
                ca_file: mis.trust.ca_file.as_deref().map(|file| self.path(file)),
                spki_sha256: pins?,
                system_roots: mis.trust.system_roots.unwrap_or_default(),
            },
            proxy: self.proxy(mis)?,
        })
    }

    /// Validates the keys of which exactly one says where the trust domain is described.
    fn source(&self, section: &Spanned<raw::Mis>) -> Result<TrustDomainSource, ConfigError> {
        let mis = section.get_ref();
        let given = [
            ("mis.discovery_url", mis.discovery_url.as_ref().map(Spanned::span)),
            ("mis.origin", mis.origin.as_ref().map(Spanned::span)),
            ("mis.bundle_url", mis.bundle_url.as_ref().map(Spanned::span)),
            ("mis.bundle_file", mis.bundle_file.as_ref().map(Spanned::span)),
        ];
        let mut given = given.into_iter().filter_map(|(key, span)| Some((key, span?)));
        let Some((key, span)) = given.next() else {
            let what = "it names neither discovery_url nor origin, and neither bundle_url nor bundle_file";
            let hint = "Add discovery_url = \"https://…\", or origin = \"https://…\"";
            return Err(self.wrong(&section.span(), "mis", what).with_hint_text(hint));
        };
        let name = |key: &'static str| key.trim_start_matches("mis.");
        if let Some((other, other_span)) = given.next() {
            return Err(self.either(other, &other_span, name(key), &span));
        }
        let bundle_origins = match &mis.bundle_origins {
            None => Vec::new(),
            Some(origins) if key == "mis.discovery_url" || key == "mis.origin" => {
                self.bundle_origins(origins)?
            }
            Some(origins) => {
                return Err(self.either("mis.bundle_origins", &origins.span(), name(key), &span));
            }
        };
        if let Some(url) = &mis.bundle_url {
            return self.https_url("mis.bundle_url", url).map(TrustDomainSource::BundleUrl);
        }
        if let Some(path) = &mis.bundle_file {
            return Ok(TrustDomainSource::BundleFile(self.path(path.get_ref())));
        }
        let url = match (&mis.discovery_url, &mis.origin) {
            (Some(url), _) => self.https_url("mis.discovery_url", url)?,
            (None, Some(origin)) => {
                let mut url =
                    self.origin("mis.origin", origin, Some("Use discovery_url for a URL with a path"))?;
                url.set_path(WELL_KNOWN);
                url
            }
            (None, None) => return Err(self.wrong(&span, key, "it names no URL")), // one is given
        };
        Ok(TrustDomainSource::Discovery { url, bundle_origins })
    }

    fn bundle_origins(&self, origins: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<Url>, ConfigError> {
        const KEY: &str = "mis.bundle_origins";
        if origins.get_ref().is_empty() {
            let error = self.wrong(&origins.span(), KEY, "it allows no origin, so there would be no bundle");
            return Err(error.with_hint_text("Name an origin, or remove the key to allow the document's own"));
        }
        origins.get_ref().iter().map(|origin| self.origin(KEY, origin, None)).collect()
    }

    pub(super) fn staleness(&self, bundle: &raw::Bundle) -> Result<Staleness, ConfigError> {
        let max_age = bundle
            .max_age
            .as_ref()
            .map(|text| self.duration("bundle.max_age", Some(text), MAX_AGES.1, MAX_AGES.0..=MAX_AGES.1));
        Ok(Staleness { max_age: max_age.transpose()?, when_stale: bundle.when_stale.unwrap_or_default() })
    }

    /// Validates the poll interval of the bundle. A limit on its age makes it shorter: while the MIS
    /// responds, the bundle does not become stale between two polls.
    pub(super) fn bundle_refresh(
        &self,
        bundle: &raw::Bundle,
        staleness: Staleness,
    ) -> Result<Duration, ConfigError> {
        let default = Duration::from_secs(300);
        let refresh = self.duration("bundle.refresh", bundle.refresh.as_ref(), default, SHORTEST..=DAY)?;
        Ok(staleness.limit_refresh(refresh))
    }

    fn proxy(&self, mis: &raw::Mis) -> Result<ProxyConfig, ConfigError> {
        let choice = match &mis.proxy {
            None => ProxyChoice::Environment,
            Some(text) if text.get_ref() == "none" => ProxyChoice::None,
            Some(text) => ProxyChoice::At(self.proxy_url(text)?),
        };
        let auth = mis.proxy_auth.as_ref().map(|text| self.secret("mis.proxy_auth", text)).transpose()?;
        if let (Some(text), Some(_), ProxyChoice::At(url)) = (&mis.proxy_auth, &auth, &choice)
            && url.with_secrets().contains('@')
        {
            let error = self.wrong(&text.span(), "mis.proxy_auth", "mis.proxy has a user already");
            return Err(error.with_hint_text("Remove user and password from mis.proxy"));
        }
        let no_proxy = mis.no_proxy.as_ref().map(|hosts| hosts.iter().map(|host| self.host(host)).collect());
        Ok(ProxyConfig { choice, auth, no_proxy: no_proxy.transpose()? })
    }

    /// Validates `mis.proxy`. Its value is not quoted: it may have a password.
    fn proxy_url(&self, text: &Spanned<String>) -> Result<ProxyUrl, ConfigError> {
        let wrong = |what: &str| self.wrong(&text.span(), "mis.proxy", what);
        let url = uri::parse(text.get_ref()).ok().filter(Url::has_host).ok_or_else(|| {
            wrong("it is neither a URL nor \"none\"")
                .with_hint_text("Write \"http://host:port\", or \"none\" for no proxy at all")
        })?;
        if url.scheme() != "http" {
            // For a proxy over TLS the initial trust would apply, and the factory certificate would
            // be sent.
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
        no_proxy::entry(host.get_ref()).map_err(|why| self.refused(&host.span(), "mis.no_proxy", &why))
    }

    /// Paths of the sockets `read`, `sign` and `admin`. One that is not configured is in the
    /// directory of the first.
    pub(super) fn sockets(&self, socket: &raw::Socket, default: &Path) -> Result<[PathBuf; 3], ConfigError> {
        let configured = |key, path: Option<&Spanned<PathBuf>>| {
            path.map(|path| self.socket_path(key, &path.span(), self.path(path.get_ref()))).transpose()
        };
        let agent = configured("socket.path", socket.path.as_ref())?.unwrap_or_else(|| default.to_owned());
        let other = |key, path: Option<&Spanned<PathBuf>>, name: &str| {
            let default = agent.with_file_name(name);
            match (configured(key, path)?, &socket.path) {
                (Some(path), _) => Ok(path),
                (None, Some(first)) => self.socket_path(key, &first.span(), default),
                (None, None) => Ok(default),
            }
        };
        let sign = other("socket.sign_path", socket.sign_path.as_ref(), "sign.sock")?;
        let admin = other("socket.admin_path", socket.admin_path.as_ref(), "admin.sock")?;
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
                "the path of a socket has at most {LONGEST_SOCKET} bytes on Linux, and {} has {}",
                Excerpt::of(path.display(), 200),
                bytes.len()
            );
            return Err(self.wrong(span, key, what).with_hint_text("Choose a shorter path"));
        }
        Ok(path)
    }

    /// Validates `file:PATH` or `credential:NAME`.
    pub(super) fn secret(&self, key: &'static str, text: &Spanned<String>) -> Result<Secret, ConfigError> {
        let value = text.get_ref();
        if let Some(path) = value.strip_prefix("file:").filter(|path| !path.is_empty()) {
            return Ok(Secret::File(self.path(Path::new(path))));
        }
        // A plain name: it must not lead out of the directory that systemd creates for this
        // service.
        let plain = |name: &&str| {
            !matches!(*name, "" | "." | "..") && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        };
        match value.strip_prefix("credential:").filter(plain) {
            Some(name) => Ok(Secret::Credential(name.to_owned())),
            None => Err(self
                .wrong(&text.span(), key, "it names neither a file nor a credential")
                .with_hint_text("Write \"file:PATH\", or \"credential:NAME\"")),
        }
    }

    pub(super) fn https_url(&self, key: &'static str, value: &Spanned<String>) -> Result<Url, ConfigError> {
        let url = uri::parse(value.get_ref()).map_err(|e| {
            self.wrong(&value.span(), key, format!("{:?} is not a URL: {e}", value.get_ref()))
        })?;
        if url.scheme() != "https" || !url.has_host() {
            let what = "must be an absolute https:// URL: connections to the MIS are over TLS only";
            return Err(self.wrong(&value.span(), key, what));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong(&value.span(), key, "must not have a user name or password"));
        }
        Ok(url)
    }

    fn origin(
        &self,
        key: &'static str,
        value: &Spanned<String>,
        hint: Option<&str>,
    ) -> Result<Url, ConfigError> {
        let url = self.https_url(key, value)?;
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            let error = self.wrong(&value.span(), key, "an origin is only https://host[:port]");
            return Err(match hint {
                Some(hint) => error.with_hint_text(hint),
                None => error,
            });
        }
        Ok(url)
    }

    fn pin(&self, pin: &Spanned<String>) -> Result<[u8; 32], ConfigError> {
        let decoded = BASE64.decode(pin.get_ref()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        decoded.ok_or_else(|| {
            let what = "each pin is the base64 of a SHA-256 digest (44 characters)";
            let hint = "Compute it: openssl x509 -in ca.pem -pubkey -noout | openssl pkey -pubin \
                        -outform der | openssl dgst -sha256 -binary | base64";
            self.wrong(&pin.span(), "mis.trust.spki_sha256", what).with_hint_text(hint)
        })
    }

    pub(super) fn bootstrap(
        &self,
        section: &Spanned<raw::Bootstrap>,
    ) -> Result<BootstrapConfig, ConfigError> {
        const KEYS: CredentialKeys = CredentialKeys {
            kind: CredentialKind::Factory,
            section: "bootstrap",
            cert: "bootstrap.cert",
            key: "bootstrap.key",
            key_auth: "bootstrap.key_auth",
        };
        self.credential(section, &KEYS)
    }

    /// Validates the keys of a certificate that authorizes an enrollment.
    pub(super) fn credential(
        &self,
        section: &Spanned<raw::Bootstrap>,
        keys: &CredentialKeys,
    ) -> Result<BootstrapConfig, ConfigError> {
        let bootstrap = section.get_ref();
        let Some(key) = &bootstrap.key else {
            let error = self.wrong(&section.span(), keys.section, "it names no key");
            return Err(error.with_hint_text("Add key = \"file:PATH\", or key = \"tpm:0x81…\""));
        };
        let text = key.get_ref();
        let parsed = if let Some(path) = text.strip_prefix("file:").filter(|path| !path.is_empty()) {
            Some(FactoryKeyLocation::File(self.path(Path::new(path))))
        } else {
            let handle = text.strip_prefix("tpm:0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
            handle.filter(|handle| handle >> 24 == 0x81).map(FactoryKeyLocation::TpmHandle)
        };
        let hint = "Write \"file:PATH\", or \"tpm:0x81…\" with the persistent handle of a key in the TPM";
        let wrong = || {
            self.wrong(&key.span(), keys.key, "it names neither a file nor a key in the TPM")
                .with_hint_text(hint)
        };
        Ok(BootstrapConfig {
            kind: keys.kind,
            certificate: self.factory_certificate(section, keys)?,
            intermediates_file: bootstrap.intermediates_file.as_deref().map(|path| self.path(path)),
            key: parsed.ok_or_else(wrong)?,
            key_auth: bootstrap.key_auth.as_ref().map(|text| self.secret(keys.key_auth, text)).transpose()?,
        })
    }

    fn factory_certificate(
        &self,
        section: &Spanned<raw::Bootstrap>,
        keys: &CredentialKeys,
    ) -> Result<FactoryCertificateLocation, ConfigError> {
        let bootstrap = section.get_ref();
        let text = match (&bootstrap.cert_file, &bootstrap.cert) {
            (Some(path), None) => return Ok(FactoryCertificateLocation::File(self.path(path.get_ref()))),
            (None, Some(text)) => text,
            (Some(path), Some(text)) => {
                return Err(self.either(keys.cert, &text.span(), "cert_file", &path.span()));
            }
            (None, None) => {
                let error = self.wrong(&section.span(), keys.section, "it names no certificate");
                return Err(error.with_hint_text("Add cert_file = \"PATH\", or cert = \"tpm:0x01…\""));
            }
        };
        if let Some(path) = text.get_ref().strip_prefix("file:").filter(|path| !path.is_empty()) {
            return Ok(FactoryCertificateLocation::File(self.path(Path::new(path))));
        }
        let index = text.get_ref().strip_prefix("tpm:0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let what = "it names neither a file nor an NV index of the TPM";
        let hint = "Write \"file:PATH\", or \"tpm:0x01…\" with the NV index of a certificate in the TPM";
        index
            .filter(|index| index >> 24 == 0x01)
            .map(FactoryCertificateLocation::TpmNv)
            .ok_or_else(|| self.wrong(&text.span(), keys.cert, what).with_hint_text(hint))
    }

    pub(super) fn key(&self, key: &raw::Key) -> Result<KeyConfig, ConfigError> {
        let tcti = match &key.tcti {
            Some(text) => {
                text.get_ref().parse().map_err(|e: KeyError| self.refused(&text.span(), "key.tcti", &e))?
            }
            None => Tcti::default(),
        };
        let parent = key.parent.as_ref().map(|text| {
            let parsed = text.get_ref().parse();
            parsed.map_err(|e: BadParent| self.refused(&text.span(), "key.parent", &e))
        });
        Ok(KeyConfig {
            provider: key.provider.unwrap_or(ProviderKind::Tpm),
            tcti,
            parent: parent.transpose()?.unwrap_or_default(),
            owner_auth: key
                .owner_auth
                .as_ref()
                .map(|text| self.secret("key.owner_auth", text))
                .transpose()?,
            rotate: self.rotate("key.rotate", key.rotate.as_ref(), Rotate::Always)?,
            require: key.require.as_ref().map(|floor| *floor.get_ref()),
        })
    }

    pub(super) fn window(&self, window: Option<&Spanned<[f64; 2]>>) -> Result<(f64, f64), ConfigError> {
        let Some(window) = window else { return Ok((0.4, 0.6)) };
        let [from, to] = *window.get_ref();
        if from > 0.0 && from <= to && to < 1.0 {
            return Ok((from, to));
        }
        let what = "must be two fractions of the lifetime, 0 < from <= to < 1";
        Err(self.wrong(&window.span(), "renewal.window", what).with_hint_text("Write two, as in [0.4, 0.6]"))
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

    /// Validates users by name or number. Their existence is checked when one connects.
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
            self.wrong(&text.span(), key, format!("{:?} is not a duration", text.get_ref()))
                .with_hint_text("Write \"5m\", \"30s\" or \"200ms\"")
        })?;
        if allowed.contains(&duration) {
            return Ok(duration);
        }
        let (from, to) =
            (humantime::format_duration(*allowed.start()), humantime::format_duration(*allowed.end()));
        Err(self.wrong(&text.span(), key, format!("must lie between {from} and {to}")))
    }
}
