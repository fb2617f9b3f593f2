//! The proxy between this device and its MIS: whether there is one, and what it did when it is to blame. TLS goes through
//! it end to end (CONNECT, RFC 9110 section 9.3.6): it sees the name of the MIS and nothing else.

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
use crate::config::{self, Through};
use crate::platform::credentials::SecretError;

/// Bytes of a proxy's response to CONNECT.
const MAX_HEAD: usize = 8192;

/// What is wrong with the proxy. `proxy` is its address, never with user and password.
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
    /// `407`, and nothing was given to it.
    #[error("the proxy {proxy} asks for a user and a password: set proxy_auth under [mis]")]
    AuthRequired {
        /// Its address.
        proxy: String,
    },
    /// `407` or `401`, to what it was given.
    #[error(
        "the proxy {proxy} does not accept the user and password that it was given: correct proxy_auth under [mis], or \
         the address of the proxy where they stand in it"
    )]
    AuthRefused {
        /// Its address.
        proxy: String,
    },
    /// `403`.
    #[error(
        "the proxy {proxy} does not allow connections to {to} (403): have it allowed there, or set no_proxy"
    )]
    Forbidden {
        /// Its address.
        proxy: String,
        /// Host and port of the MIS.
        to: String,
    },
    /// Any other answer than a tunnel.
    #[error("the proxy {proxy} gave no connection to {to}: {why}")]
    NoTunnel {
        /// Its address.
        proxy: String,
        /// Host and port of the MIS.
        to: String,
        /// What it did.
        why: String,
    },
    /// The environment names a proxy that cannot be used. It is not passed by, for that is not what was asked for.
    #[error(
        "{variable} in the environment {why}: correct it, or set proxy under [mis], \"none\" for no proxy at all"
    )]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it. Not what stands in it: that may be a password.
        why: String,
    },
    /// The configured secret cannot be read.
    #[error("proxy_auth under [mis]: {0}")]
    Secret(#[from] SecretError),
    /// It is not what it should be.
    #[error("proxy_auth under [mis]: it must be one line, user:password")]
    SecretForm,
}

/// A proxy that a call goes through.
pub(super) struct Hop {
    /// `http://host:port/`
    address: Uri,
    /// `Proxy-Authorization`
    auth: Option<HeaderValue>,
}

/// Shown without user and password: they are not in the address any more.
impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.address.to_string().trim_end_matches('/'))
    }
}

/// The proxy for this URL, if there is one.
pub(super) fn on_the_way_to(url: &Url, config: &config::Proxy) -> Result<Option<Hop>, ProxyError> {
    on_the_way(url, config, &variable)
}

/// A variable of the environment, which may hold a password: no copy of it is left behind here. The environment itself is
/// the operating system's, and cannot be wiped.
fn variable(name: &'static str) -> Option<Zeroizing<String>> {
    let bytes = Zeroizing::new(std::env::var_os(name)?.into_vec());
    // What is not UTF-8 is no proxy's URL, and is to be seen as that and not as unset.
    Some(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

fn on_the_way(
    url: &Url,
    config: &config::Proxy,
    environment: &dyn Fn(&'static str) -> Option<Zeroizing<String>>,
) -> Result<Option<Hop>, ProxyError> {
    // curl's names, order and spelling. HTTP_PROXY is for http:// URLs, which are never asked here.
    let first = |names: &[&'static str]| {
        names.iter().find_map(|name| Some((*name, environment(name).filter(|value| !value.is_empty())?)))
    };
    let (variable, address) = match &config.through {
        Through::Never => return Ok(None),
        Through::At(address) => ("mis.proxy", Zeroizing::new(address.with_secrets().to_owned())),
        Through::Environment => match first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) {
            Some((variable, address)) => (variable, address),
            None => return Ok(None),
        },
    };
    let around = match &config.no_proxy {
        Some(hosts) => hosts.join(","),
        None => first(&["NO_PROXY", "no_proxy"]).map(|(_, hosts)| (*hosts).clone()).unwrap_or_default(),
    };
    // The libraries that are given the address would keep copies of a password.
    let (address, credentials) = without_credentials(&address);
    let unusable = |why: &str| ProxyError::Environment { variable, why: why.into() };
    let to: Uri = url.as_str().parse().map_err(|_| unusable("cannot be used for this URL"))?;
    let matched = |around: &str| Matcher::builder().https(address.as_str()).no(around).build().intercept(&to);
    let Some(proxy) = matched("") else {
        return Err(unusable("is not the URL of a proxy (http://host:port)"));
    };
    if matched(&around).is_none() {
        return Ok(None);
    }
    if proxy.uri().scheme_str() != Some("http") {
        // To one spoken to over TLS the initial trust would apply, and the factory certificate be shown.
        return Err(unusable("is not an http:// proxy, and only those are supported"));
    }
    Ok(Some(Hop { auth: authorization(config, credentials)?, address: proxy.uri().clone() }))
}

/// The address of a proxy, and apart from it `user[:password]`, as they stand in it (RFC 3986, section 3.2).
fn without_credentials(address: &str) -> (String, Option<&str>) {
    let (scheme, rest) = address.find("://").map_or(("", address), |at| address.split_at(at + 3));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((credentials, place)) => ([scheme, place, path].concat(), Some(credentials)),
        None => (address.to_owned(), None),
    }
}

fn authorization(
    config: &config::Proxy,
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

/// `user:password` as it stands in a URL, percent-decoded (RFC 3986, section 2.1); without a password, an empty one.
fn decoded(credentials: &str) -> Zeroizing<Vec<u8>> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    // With room for all of it, so that no copy stays behind.
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

/// `Proxy-Authorization` (RFC 7617, section 2). Its memory is wiped with the last clone of it.
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

impl Hop {
    pub(super) fn for_client(&self) -> Result<reqwest::Proxy, reqwest::Error> {
        let proxy = reqwest::Proxy::all(self.address.to_string())?;
        Ok(match &self.auth {
            Some(auth) => proxy.custom_http_auth(auth.clone()),
            None => proxy,
        })
    }

    /// Where it listens. An IPv6 address is in brackets.
    pub(super) fn host_and_port(&self) -> Option<(&str, u16)> {
        Some((self.address.host()?, self.address.port_u16().unwrap_or(80)))
    }

    /// What the proxy has to do with an error of the HTTP client, if anything.
    pub(super) async fn blame(
        &self,
        error: &reqwest::Error,
        url: &Url,
        limit: Duration,
    ) -> Option<ProxyError> {
        let proxy = self.to_string();
        let to = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        // hyper-util's errors of a tunnel have no name outside of it, only a text; see the tests.
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        let stage = loop {
            let text = cause?.to_string();
            match text.strip_prefix("tunnel error: ") {
                Some(stage) => break stage.to_owned(),
                None if text == "operation timed out" && error.is_connect() => {
                    // It covers the tunnel and the TLS handshake in it: the silent one may be either.
                    let why = format!(
                        "neither it nor the MIS behind it answered within {} seconds",
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
            // It does not say with which status. Only the proxy can.
            "unsuccessful" => match timeout(limit, self.status_of_connect(&to)).await {
                Ok(Some(status)) => self.of_status(status, to),
                _ => ProxyError::NoTunnel { proxy, to, why: "it refused".into() },
            },
            _ => ProxyError::NoTunnel { proxy, to, why: innermost(error) },
        })
    }

    /// The name of the proxy leads to no address.
    pub(super) fn not_resolved(&self, why: &str) -> ProxyError {
        let why = format!(
            "its name cannot be resolved: {why}. Check that name, and the name servers of this device (/etc/resolv.conf)"
        );
        ProxyError::Unreachable { proxy: self.to_string(), why }
    }

    fn of_status(&self, status: u16, to: String) -> ProxyError {
        let proxy = self.to_string();
        match (status, &self.auth) {
            (407, None) => ProxyError::AuthRequired { proxy },
            // 401 is a server's word, but some proxies use it.
            (407 | 401, Some(_)) => ProxyError::AuthRefused { proxy },
            (403, _) => ProxyError::Forbidden { proxy, to },
            _ => ProxyError::NoTunnel { proxy, to, why: format!("it answered {status}") },
        }
    }

    /// Asks the proxy once more, only to hear the status of its refusal.
    async fn status_of_connect(&self, to: &str) -> Option<u16> {
        Some(self.connect(to).await.ok()?.1)
    }

    /// Asks the proxy for a tunnel, and reads its response up to the end of the headers: the connection, and the status.
    /// Nothing of what the other end says through the tunnel is read.
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
        // In one allocation, so that no copy stays behind.
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

    /// A detour to an IPv6 address through the proxy. The HTTP client takes the brackets of the URL for a part of the
    /// server's name where it speaks to a proxy, and not where it speaks to a socket: so it is given a socket, of which
    /// the other end is here and leads through the proxy. The socket has no file and a name that cannot be guessed, and
    /// takes one connection, from this very process.
    pub(super) fn detour(self: Arc<Self>, url: &Url) -> std::io::Result<Detour> {
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
                    let _ = copy_bidirectional(&mut client, &mut server).await; // what is lost there, TLS notices
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
        Ok(Detour { path: name.into(), failure, task })
    }
}

/// See [`Hop::detour`]. It ends with this handle.
pub(super) struct Detour {
    path: PathBuf,
    failure: Arc<Mutex<Option<ProxyError>>>,
    task: JoinHandle<()>,
}

impl Detour {
    /// Where the HTTP client connects to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Why it did not lead to the server, if it did not.
    pub(super) fn failure(&self) -> Option<ProxyError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Detour {
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

    fn configured(lines: &str) -> config::Proxy {
        let text = format!("[mis]\norigin = \"https://a\"\n{lines}");
        Config::parse(&text, Path::new("/config.toml"), None).unwrap().mis.unwrap().proxy
    }

    fn hop(lines: &str, url: &str, environment: &[(&str, &str)]) -> Result<Option<Hop>, ProxyError> {
        let of = |name: &'static str| {
            let value = environment.iter().find(|(set, _)| *set == name);
            value.map(|(_, value)| Zeroizing::new((*value).to_owned()))
        };
        on_the_way(&Url::parse(url).unwrap(), &configured(lines), &of)
    }

    fn shown(hop: Option<Hop>) -> Option<(String, Option<String>)> {
        hop.map(|hop| (hop.to_string(), hop.auth.map(|auth| auth.to_str().unwrap().to_owned())))
    }

    #[test]
    fn the_configuration_comes_before_the_environment() {
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
            let hop = hop(lines, MIS, environment).unwrap();
            assert_eq!(hop.map(|hop| hop.to_string()).as_deref(), want, "{lines} {environment:?}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_domains_and_networks() {
        let around = |no_proxy: &str, url: &str| {
            let lines = format!("proxy = \"http://proxy:3128\"\nno_proxy = [\"{no_proxy}\"]");
            hop(&lines, url, &[]).unwrap().is_none()
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
            assert_eq!(around(no_proxy, url), want, "{no_proxy} {url}");
        }
    }

    #[test]
    fn user_and_password_come_from_the_url_or_from_a_file_and_show_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.auth");
        let basic = |plain: &str| Some(format!("Basic {}", BASE64.encode(plain)));
        let address = Some("http://proxy:3128".to_owned());

        let from_url = hop("proxy = \"http://user:p%40ss@proxy:3128\"", MIS, &[]).unwrap();
        assert_eq!(shown(from_url), address.clone().map(|a| (a, basic("user:p@ss"))));
        let from_environment = hop("", MIS, &[("HTTPS_PROXY", "http://user:pass@proxy:3128")]).unwrap();
        assert_eq!(shown(from_environment), address.clone().map(|a| (a, basic("user:pass"))));

        let lines = format!("proxy_auth = \"file:{}\"", file.display());
        let environment = &[("HTTPS_PROXY", "http://user:pass@proxy:3128")];
        assert!(matches!(hop(&lines, MIS, environment), Err(ProxyError::Secret(_))));
        std::fs::write(&file, "other:pa:ss\n").unwrap();
        assert_eq!(shown(hop(&lines, MIS, environment).unwrap()), address.map(|a| (a, basic("other:pa:ss"))));
        for bad in ["password", ":password", "user:password\n\n", "user:pa\rss"] {
            std::fs::write(&file, bad).unwrap();
            let error = hop(&lines, MIS, environment).err().unwrap();
            assert!(matches!(error, ProxyError::SecretForm) && !error.to_string().contains("password\""));
        }
        assert_eq!(configured(&lines).auth, Some(Secret::File(file)));
    }

    #[test]
    fn an_unusable_proxy_of_the_environment_is_named_and_not_passed_by() {
        for (value, why) in [
            ("https://user:hunter2@proxy:3128", "is not an http:// proxy"),
            ("socks5://user:hunter2@proxy:1080", "is not an http:// proxy"),
            ("ftp://user:hunter2@proxy", "is not the URL of a proxy"),
            ("http://user:hunter2@ proxy", "is not the URL of a proxy"),
        ] {
            let error = hop("", MIS, &[("ALL_PROXY", value)]).err().unwrap();
            let error = error.to_string();
            assert!(error.starts_with("ALL_PROXY in the environment"), "{error}");
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
