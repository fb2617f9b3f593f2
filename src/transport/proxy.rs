//! The proxy on the path to the server: whether there is one, and diagnosis of its failures. TLS is
//! tunneled through it end to end (CONNECT, RFC 9110 section 9.3.6): it sees the name of the server
//! and nothing else.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Uri;
use hyper::body::Bytes;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::HeaderValue;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use url::Url;
use zeroize::Zeroizing;

use super::error::innermost;
use crate::config::{self, ProxyChoice};
use crate::hint::Hint;
use crate::platform::credentials::SecretError;

/// Limit on the bytes of a proxy's response to CONNECT.
const MAX_HEAD: usize = 8192;

/// Why the proxy does not lead to the server. `proxy` is its address, without user and password.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// No connection to the proxy itself.
    #[error("the proxy {proxy} could not be reached: {why}")]
    Unreachable {
        /// Its address.
        proxy: String,
        /// The innermost reason.
        why: String,
    },
    /// The name of the proxy has no address.
    #[error("the proxy {proxy} could not be reached: its name cannot be resolved: {why}")]
    NameNotResolved {
        /// Its address.
        proxy: String,
        /// Whether it is the name or the name server.
        why: String,
    },
    /// `407`, and no credentials were sent.
    #[error("the proxy {proxy} requires a user and a password")]
    AuthRequired {
        /// Its address.
        proxy: String,
    },
    /// `407` or `401`, in response to credentials.
    #[error("the proxy {proxy} does not accept the user and password")]
    AuthRefused {
        /// Its address.
        proxy: String,
    },
    /// `403`.
    #[error("the proxy {proxy} does not allow connections to {to} (403)")]
    Forbidden {
        /// Its address.
        proxy: String,
        /// Host and port of the server.
        to: String,
    },
    /// Any other response than a tunnel.
    #[error("the proxy {proxy} gave no connection to {to}: {why}")]
    NoTunnel {
        /// Its address.
        proxy: String,
        /// Host and port of the server.
        to: String,
        /// What it did.
        why: String,
    },
    /// The environment names a proxy that cannot be used. It is not bypassed: that is not what was
    /// configured.
    #[error("{variable} in the environment {why}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it. Not its value: that may be a password.
        why: String,
    },
    /// The configured secret cannot be read.
    #[error("proxy_auth under [mis]: {0}")]
    Secret(#[from] SecretError),
    /// The configured secret has another form.
    #[error("proxy_auth under [mis]: the secret is not one line, user:password")]
    SecretForm,
}

impl Hint for ProxyError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::NameNotResolved { .. } => {
                "Check that name, and the name servers of this device (/etc/resolv.conf)"
            }
            Self::AuthRequired { .. } => "Set proxy_auth under [mis]",
            Self::AuthRefused { .. } => {
                "Correct proxy_auth under [mis], or user and password in the address of the proxy"
            }
            Self::Forbidden { .. } => "Have the proxy allow it, or set no_proxy under [mis]",
            Self::Environment { .. } => "Correct it, or set proxy under [mis], \"none\" for no proxy at all",
            Self::SecretForm => "Write one line, user:password, into what proxy_auth names",
            Self::Secret(why) => {
                return why.hint().or(Some("Correct proxy_auth under [mis], or what it names".into()));
            }
            Self::Unreachable { .. } | Self::NoTunnel { .. } => return None,
        };
        Some(fixed.into())
    }
}

/// The proxy of a call.
pub(super) struct ProxyEndpoint {
    /// `http://host:port/`
    address: Uri,
    /// `Proxy-Authorization`
    auth: Option<HeaderValue>,
}

/// Without user and password: they are not in the address any more.
impl fmt::Display for ProxyEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.address.to_string().trim_end_matches('/'))
    }
}

/// Chooses the proxy for a URL. `None`: the connection is direct.
pub(super) fn proxy_for(
    url: &Url,
    config: &config::ProxyConfig,
) -> Result<Option<ProxyEndpoint>, ProxyError> {
    select_proxy(url, config, &variable)
}

/// Reads a variable of the environment. It may hold a password: no copy of it is left here. The
/// environment itself is the operating system's, and cannot be wiped.
fn variable(name: &'static str) -> Option<Zeroizing<String>> {
    let bytes = Zeroizing::new(std::env::var_os(name)?.into_vec());
    // A value that is not UTF-8 is no proxy's URL: it is reported as that, not as unset.
    Some(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

fn select_proxy(
    url: &Url,
    config: &config::ProxyConfig,
    environment: &dyn Fn(&'static str) -> Option<Zeroizing<String>>,
) -> Result<Option<ProxyEndpoint>, ProxyError> {
    // curl's names, order and spelling. HTTP_PROXY is for http:// URLs, which are never requested
    // here.
    let first = |names: &[&'static str]| {
        names.iter().find_map(|name| Some((*name, environment(name).filter(|value| !value.is_empty())?)))
    };
    let (variable, address) = match &config.choice {
        ProxyChoice::None => return Ok(None),
        ProxyChoice::At(address) => ("mis.proxy", Zeroizing::new(address.with_secrets().to_owned())),
        ProxyChoice::Environment => match first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) {
            Some((variable, address)) => (variable, address),
            None => return Ok(None),
        },
    };
    let no_proxy = match &config.no_proxy {
        Some(hosts) => hosts.join(","),
        None => first(&["NO_PROXY", "no_proxy"]).map(|(_, hosts)| (*hosts).clone()).unwrap_or_default(),
    };
    // The libraries that get the address would keep copies of a password.
    let (address, credentials) = without_credentials(&address);
    let unusable = |why: &str| ProxyError::Environment { variable, why: why.into() };
    let to: Uri = url.as_str().parse().map_err(|_| unusable("cannot be used for this URL"))?;
    let matched =
        |no_proxy: &str| Matcher::builder().https(address.as_str()).no(no_proxy).build().intercept(&to);
    let Some(proxy) = matched("") else {
        return Err(unusable("is not the URL of a proxy (http://host:port)"));
    };
    if matched(&no_proxy).is_none() {
        return Ok(None);
    }
    if proxy.uri().scheme_str() != Some("http") {
        // For a proxy over TLS the initial trust would apply, and the factory certificate would be
        // sent.
        return Err(unusable("is not an http:// proxy, and only those are supported"));
    }
    Ok(Some(ProxyEndpoint { auth: authorization(config, credentials)?, address: proxy.uri().clone() }))
}

/// Splits the address of a proxy from its `user[:password]`, as written (RFC 3986, section 3.2).
fn without_credentials(address: &str) -> (String, Option<&str>) {
    let (scheme, rest) = address.find("://").map_or(("", address), |at| address.split_at(at + 3));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((credentials, host)) => ([scheme, host, path].concat(), Some(credentials)),
        None => (address.to_owned(), None),
    }
}

fn authorization(
    config: &config::ProxyConfig,
    credentials: Option<&str>,
) -> Result<Option<HeaderValue>, ProxyError> {
    let Some(secret) = &config.auth else {
        return credentials.map(|from_url| basic(&decoded(from_url))).transpose();
    };
    let secret = secret.read()?;
    // RFC 7617 section 2: a user without a colon, and no control characters anywhere.
    let (has_user, is_line) =
        (secret.iter().position(|b| *b == b':') > Some(0), !secret.iter().any(u8::is_ascii_control));
    if !has_user || !is_line {
        return Err(ProxyError::SecretForm);
    }
    basic(&secret).map(Some)
}

/// Percent-decodes `user:password` of a URL (RFC 3986, section 2.1). A missing password is empty.
fn decoded(credentials: &str) -> Zeroizing<Vec<u8>> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    // With capacity for all of it, so that no copy is left by a reallocation.
    let mut decoded = Zeroizing::new(Vec::with_capacity(credentials.len() + 1));
    for (part, end) in [(user, &b":"[..]), (password, b"")] {
        let mut rest = part.as_bytes();
        while let [first, after @ ..] = rest {
            let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
            let byte = hex.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
            let (byte, left) = match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => (byte, after.get(2..).unwrap_or_default()),
                None => (*first, after),
            };
            decoded.push(byte);
            rest = left;
        }
        decoded.extend_from_slice(end);
    }
    decoded
}

/// Encodes `Proxy-Authorization` (RFC 7617, section 2). Its memory is wiped with the last clone of
/// it.
fn basic(credentials: &[u8]) -> Result<HeaderValue, ProxyError> {
    const SCHEME: &[u8] = b"Basic ";
    let length = base64::encoded_len(credentials.len(), true).ok_or(ProxyError::SecretForm)?;
    let mut header = Zeroizing::new(vec![0; SCHEME.len() + length]);
    let (scheme, text) = header.split_at_mut(SCHEME.len());
    scheme.copy_from_slice(SCHEME);
    BASE64.encode_slice(credentials, text).map_err(|_| ProxyError::SecretForm)?;
    let mut header =
        HeaderValue::from_maybe_shared(Bytes::from_owner(header)).map_err(|_| ProxyError::SecretForm)?;
    header.set_sensitive(true);
    Ok(header)
}

impl ProxyEndpoint {
    pub(super) fn for_client(&self) -> Result<reqwest::Proxy, reqwest::Error> {
        let proxy = reqwest::Proxy::all(self.address.to_string())?;
        Ok(match &self.auth {
            Some(auth) => proxy.custom_http_auth(auth.clone()),
            None => proxy,
        })
    }

    /// Its host and port. An IPv6 address is in brackets.
    pub(super) fn host_and_port(&self) -> Option<(&str, u16)> {
        Some((self.address.host()?, self.address.port_u16().unwrap_or(80)))
    }

    /// Finds out whether the proxy caused an error of the HTTP client, and how.
    pub(super) async fn diagnose(
        &self,
        error: &reqwest::Error,
        url: &Url,
        limit: Duration,
    ) -> Option<ProxyError> {
        let proxy = self.to_string();
        let to = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        // hyper-util's errors of a tunnel have no public type, only a text; see the tests.
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        let stage = loop {
            let text = cause?.to_string();
            match text.strip_prefix("tunnel error: ") {
                Some(stage) => break stage.to_owned(),
                None if text == "operation timed out" && error.is_connect() => {
                    // The limit covers the tunnel and the TLS handshake in it: either may be
                    // silent.
                    let why = format!(
                        "neither it nor the MIS behind it responded within {} seconds",
                        limit.as_secs()
                    );
                    return Some(ProxyError::NoTunnel { proxy, to, why });
                }
                None => cause = cause?.source(),
            }
        };
        Some(match stage.as_str() {
            "failed to create underlying connection" => {
                ProxyError::Unreachable { proxy, why: innermost(error) }
            }
            "proxy authorization required" => self.of_status(407, to),
            // The error does not have the status. Only the proxy can tell it.
            "unsuccessful" => match timeout(limit, self.status_of_connect(&to)).await {
                Ok(Some(status)) => self.of_status(status, to),
                _ => ProxyError::NoTunnel { proxy, to, why: "it refused".into() },
            },
            _ => ProxyError::NoTunnel { proxy, to, why: innermost(error) },
        })
    }

    /// Error for a proxy whose name has no address.
    pub(super) fn not_resolved(&self, why: &str) -> ProxyError {
        ProxyError::NameNotResolved { proxy: self.to_string(), why: why.to_owned() }
    }

    fn of_status(&self, status: u16, to: String) -> ProxyError {
        let proxy = self.to_string();
        match (status, &self.auth) {
            (407, None) => ProxyError::AuthRequired { proxy },
            // 401 is a server's status, but some proxies use it.
            (407 | 401, Some(_)) => ProxyError::AuthRefused { proxy },
            (403, _) => ProxyError::Forbidden { proxy, to },
            _ => ProxyError::NoTunnel { proxy, to, why: format!("it responded with {status}") },
        }
    }

    /// Requests a tunnel once more, only for the status of its refusal.
    async fn status_of_connect(&self, to: &str) -> Option<u16> {
        Some(self.connect(to).await.ok()?.1)
    }

    /// Requests a tunnel and reads the response up to the end of its headers. Returns the
    /// connection and the status. Nothing that the server sends through the tunnel is read.
    async fn connect(&self, to: &str) -> std::io::Result<(TcpStream, u16)> {
        let strange = |why| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
        let (host, port) = self.host_and_port().ok_or_else(|| strange("it has no host"))?;
        let mut stream =
            TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await?;
        let auth = self.auth.as_ref().and_then(|auth| auth.to_str().ok());
        let lines = match auth {
            Some(auth) => ["Proxy-Authorization: ", auth, "\r\n\r\n"],
            None => ["\r\n", "", ""],
        };
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        // In one allocation, so that no copy is left.
        let request = Zeroizing::new([&[request.as_str()][..], &lines].concat().concat());
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
            if head.len() == MAX_HEAD {
                return Err(strange("its response has too long headers"));
            }
            head.push(stream.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&head);
        let status = line.strip_prefix("HTTP/1.").and_then(|line| line.split_whitespace().nth(1));
        let status =
            status.and_then(|status| status.parse().ok()).filter(|status| (100..600).contains(status));
        Ok((stream, status.ok_or_else(|| strange("its response is not HTTP"))?))
    }

    /// Opens a local socket that leads to an IPv6 address through the proxy. The HTTP client treats
    /// the brackets of the URL as a part of the server's name where it connects to a proxy, and not
    /// where it connects to a socket. So it gets a socket whose other end is here and leads through
    /// the proxy. The socket has no file and a random name, and accepts one connection, from this
    /// process.
    pub(super) fn tunnel(self: Arc<Self>, url: &Url) -> std::io::Result<ProxyTunnel> {
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random).map_err(|_| std::io::Error::other("no random numbers"))?;
        let name = format!("\0miaf-agent-{}", BASE64.encode(random));
        let listener = UnixListener::bind(&name)?;
        let to =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443));
        let failure = Arc::new(Mutex::new(None));
        let found = failure.clone();
        let task = tokio::spawn(async move {
            let mut client = loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let pid = client.peer_cred().ok().and_then(|peer| peer.pid());
                if pid.and_then(|pid| u32::try_from(pid).ok()) == Some(std::process::id()) {
                    break client;
                }
            };
            let proxy = self.to_string();
            let why = match self.connect(&to).await {
                Ok((mut server, 200)) => {
                    let _ = copy_bidirectional(&mut client, &mut server).await; // TLS detects a loss
                    return;
                }
                Ok((_, status)) => self.of_status(status, to),
                Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                    ProxyError::NoTunnel { proxy, to, why: e.to_string() }
                }
                Err(e) => ProxyError::Unreachable { proxy, why: e.to_string() },
            };
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        });
        Ok(ProxyTunnel { path: name.into(), failure, task })
    }
}

/// Tunnel of [`ProxyEndpoint::tunnel`]; dropping it closes the tunnel.
pub(super) struct ProxyTunnel {
    path: PathBuf,
    failure: Arc<Mutex<Option<ProxyError>>>,
    task: JoinHandle<()>,
}

impl ProxyTunnel {
    /// Socket that the HTTP client connects to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Why the tunnel was not opened, if it was not.
    pub(super) fn failure(&self) -> Option<ProxyError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for ProxyTunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::platform::credentials::Secret;

    const MIS: &str = "https://mis.factory.example:8443/.well-known/margo";

    fn configured(lines: &str) -> config::ProxyConfig {
        let text = format!("[mis]\norigin = \"https://a\"\n{lines}");
        Config::parse(&text, Path::new("/config.toml"), None).unwrap().mis.unwrap().proxy
    }

    fn choose(
        lines: &str,
        url: &str,
        environment: &[(&str, &str)],
    ) -> Result<Option<ProxyEndpoint>, ProxyError> {
        let of = |name: &'static str| {
            let value = environment.iter().find(|(set, _)| *set == name);
            value.map(|(_, value)| Zeroizing::new((*value).to_owned()))
        };
        select_proxy(&Url::parse(url).unwrap(), &configured(lines), &of)
    }

    fn shown(proxy: Option<ProxyEndpoint>) -> Option<(String, Option<String>)> {
        proxy.map(|proxy| (proxy.to_string(), proxy.auth.map(|auth| auth.to_str().unwrap().to_owned())))
    }

    #[test]
    fn configured_proxy_takes_precedence_over_the_environment() {
        const ENVIRONMENT: &[(&str, &str)] =
            &[("HTTPS_PROXY", "http://env:1"), ("NO_PROXY", "factory.example")];
        let configured = "proxy = \"http://proxy:3128\"";
        for (lines, environment, want) in [
            ("", &[][..], None),
            ("", &[("HTTPS_PROXY", "http://env:1")], Some("http://env:1")),
            ("", &[("https_proxy", "http://env:1")], Some("http://env:1")),
            ("", &[("ALL_PROXY", "env:1"), ("HTTPS_PROXY", "")], Some("http://env:1")),
            ("", &[("all_proxy", "http://all:1"), ("HTTPS_PROXY", "http://env:1/")], Some("http://env:1")),
            ("", &[("HTTP_PROXY", "http://env:1"), ("http_proxy", "http://env:1")], None),
            ("", ENVIRONMENT, None),
            ("proxy = \"none\"", ENVIRONMENT, None),
            ("no_proxy = []", ENVIRONMENT, Some("http://env:1")),
            (configured, &[], Some("http://proxy:3128")),
            ("proxy = \"http://proxy:3128\"\nno_proxy = []", ENVIRONMENT, Some("http://proxy:3128")),
            ("proxy = \"http://[2001:db8::1]:3128\"", &[], Some("http://[2001:db8::1]:3128")),
        ] {
            let proxy = choose(lines, MIS, environment).unwrap();
            assert_eq!(proxy.map(|proxy| proxy.to_string()).as_deref(), want, "{lines} {environment:?}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_domains_and_networks() {
        let is_bypassed = |no_proxy: &str, url: &str| {
            let lines = format!("proxy = \"http://proxy:3128\"\nno_proxy = [\"{no_proxy}\"]");
            choose(&lines, url, &[]).unwrap().is_none()
        };
        for (no_proxy, url, want) in [
            ("mis.factory.example", MIS, true),
            ("MIS.Factory.example", MIS, true),
            (".factory.example", MIS, true),
            ("factory.example", MIS, true),
            ("other.example", MIS, false),
            ("is.factory.example", MIS, false),
            ("*", MIS, true),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("192.0.2.1", "https://192.0.2.1:8443/", true),
            ("2001:db8::/32", "https://[2001:db8::1]/", true),
        ] {
            assert_eq!(is_bypassed(no_proxy, url), want, "{no_proxy} {url}");
        }
    }

    #[test]
    fn proxy_credentials_come_from_url_or_file_and_are_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("proxy.auth");
        let basic = |plain: &str| Some(format!("Basic {}", BASE64.encode(plain)));
        let address = Some("http://proxy:3128".to_owned());

        let from_url = choose("proxy = \"http://user:p%40ss@proxy:3128\"", MIS, &[]).unwrap();
        assert_eq!(shown(from_url), address.clone().map(|a| (a, basic("user:p@ss"))));
        let from_environment = choose("", MIS, &[("HTTPS_PROXY", "http://user:pass@proxy:3128")]).unwrap();
        assert_eq!(shown(from_environment), address.clone().map(|a| (a, basic("user:pass"))));

        let lines = format!("proxy_auth = \"file:{}\"", file.display());
        let environment = &[("HTTPS_PROXY", "http://user:pass@proxy:3128")];
        assert!(matches!(choose(&lines, MIS, environment), Err(ProxyError::Secret(_))));
        std::fs::write(&file, "other:pa:ss\n").unwrap();
        assert_eq!(
            shown(choose(&lines, MIS, environment).unwrap()),
            address.map(|a| (a, basic("other:pa:ss")))
        );
        for bad in ["password", ":password", "user:password\n\n", "user:pa\rss"] {
            std::fs::write(&file, bad).unwrap();
            let error = choose(&lines, MIS, environment).err().unwrap();
            assert!(matches!(error, ProxyError::SecretForm) && !error.to_string().contains("password\""));
        }
        assert_eq!(configured(&lines).auth, Some(Secret::File(file)));
    }

    #[test]
    fn unusable_proxy_of_the_environment_is_named_and_not_bypassed() {
        for (value, why) in [
            ("https://user:hunter2@proxy:3128", "is not an http:// proxy"),
            ("socks5://user:hunter2@proxy:1080", "is not an http:// proxy"),
            ("ftp://user:hunter2@proxy", "is not the URL of a proxy"),
            ("http://user:hunter2@ proxy", "is not the URL of a proxy"),
        ] {
            let error = choose("", MIS, &[("ALL_PROXY", value)]).err().unwrap();
            let error = error.to_string();
            assert!(error.starts_with("ALL_PROXY in the environment"), "{error}");
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
