//! nginx and Apache as TLS front ends of an EST server that speaks HTTP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::support::agent::{PATIENCE, pause};
use crate::support::directory::directory;
use crate::support::log::Log;
use crate::support::ports;

/// What a front end has in its configuration.
pub(crate) struct Setup<'a> {
    /// Chain and key of its certificate: `https.crt` and `https.key` of this directory.
    pub(crate) certificate: &'a Path,
    /// CA file for client certificates.
    pub(crate) client_ca: &'a Path,
    /// `http://HOST:PORT` behind it.
    pub(crate) behind: &'a str,
}

/// When a front end asks for a client certificate.
#[derive(Clone, Copy)]
pub(crate) enum Asks {
    /// In the handshake, and accepts that none is shown.
    Optionally,
    /// In the handshake.
    Always,
    /// After the handshake, for `/simplereenroll` only.
    Late,
}

pub(crate) struct Front {
    process: Child,
    pub(crate) port: u16,
    log: Log, // before its directory: it is read when it is dropped
    _directory: TempDir,
}

impl Front {
    pub(crate) fn nginx(setup: &Setup<'_>, asks: Asks) -> Self {
        let verify = match asks {
            Asks::Optionally => "optional",
            Asks::Always => "on",
            Asks::Late => panic!("nginx asks in the handshake"),
        };
        Self::start("nginx", |dir, port| {
            let configuration = format!(
                "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/log info;
                events {{ }}
                http {{
                    access_log off;
                    client_body_temp_path {dir}/body;
                    proxy_temp_path {dir}/proxy;
                    fastcgi_temp_path {dir}/fastcgi;
                    uwsgi_temp_path {dir}/uwsgi;
                    scgi_temp_path {dir}/scgi;
                    server {{
                        listen 127.0.0.1:{port} ssl;
                        ssl_certificate {certificate}/https.crt;
                        ssl_certificate_key {certificate}/https.key;
                        ssl_protocols TLSv1.2 TLSv1.3;
                        ssl_client_certificate {client_ca};
                        ssl_verify_client {verify};
                        ssl_verify_depth 3;
                        location / {{
                            proxy_pass {behind};
                            proxy_http_version 1.1;
                            proxy_set_header X-Client-Cert $ssl_client_escaped_cert;
                            proxy_set_header X-Client-Verify $ssl_client_verify;
                            proxy_set_header X-Client-Dn $ssl_client_s_dn;
                        }}
                    }}
                }}",
                dir = dir.display(),
                certificate = setup.certificate.display(),
                client_ca = setup.client_ca.display(),
                behind = setup.behind,
            );
            fs::write(dir.join("conf"), configuration).unwrap();
            let mut command = Command::new("/usr/sbin/nginx");
            command.arg("-e").arg(dir.join("log")).arg("-c").arg(dir.join("conf"));
            command
        })
    }

    pub(crate) fn apache(setup: &Setup<'_>, asks: Asks) -> Self {
        let (verify, of_location) = match asks {
            Asks::Optionally => ("optional", ""),
            Asks::Always => ("require", ""),
            Asks::Late => (
                "none",
                "<LocationMatch \"/simplereenroll$\">\n SSLVerifyClient require\n SSLVerifyDepth 3\n</LocationMatch>",
            ),
        };
        Self::start("apache2", |dir, port| {
            const MODULES: &[&str] =
                &["mpm_event", "authz_core", "socache_shmcb", "ssl", "proxy", "proxy_http", "headers"];
            let modules: String = MODULES
                .iter()
                .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
                .collect();
            let configuration = format!(
                "ServerRoot {dir}
                {modules}
                ServerName localhost
                User nobody
                Group nogroup
                PidFile {dir}/apache.pid
                DefaultRuntimeDir {dir}
                Mutex posixsem
                ErrorLog {dir}/log
                Listen 127.0.0.1:{port}
                SSLEngine on
                SSLProtocol -all +TLSv1.2 +TLSv1.3
                SSLCertificateFile {certificate}/https.crt
                SSLCertificateKeyFile {certificate}/https.key
                SSLCACertificateFile {client_ca}
                SSLVerifyClient {verify}
                SSLVerifyDepth 3
                {of_location}
                RequestHeader set X-Client-Cert \"expr=%{{escape:%{{SSL_CLIENT_CERT}}}}\"
                RequestHeader set X-Client-Verify \"expr=%{{SSL_CLIENT_VERIFY}}\"
                ProxyPass / {behind}/
                ",
                dir = dir.display(),
                certificate = setup.certificate.display(),
                client_ca = setup.client_ca.display(),
                behind = setup.behind,
            );
            fs::write(dir.join("conf"), configuration).unwrap();
            let mut command = Command::new("/usr/sbin/apache2");
            command.arg("-X").arg("-f").arg(dir.join("conf")).arg("-E").arg(dir.join("log"));
            command
        })
    }

    fn start(name: &str, prepare: impl Fn(&Path, u16) -> Command) -> Self {
        for _ in 0..20 {
            let (directory, port) = (directory(), ports::free());
            let log = Log::new(name, directory.path().join("log"));
            let mut command = prepare(directory.path(), port);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.to_append());
            let process = command.spawn().unwrap_or_else(|e| panic!("{name} is needed (scripts/setup): {e}"));
            let mut front = Self { process, port, log, _directory: directory };
            if front.is_up() {
                return front;
            }
            let says = front.log.text();
            assert!(says.contains("Address already in use"), "{name} does not start: {says}");
        }
        panic!("{name} finds no free port");
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if ports::is_of(self.port, self.process.id()) {
                return true;
            }
            pause();
        }
        false
    }

    /// The EST endpoint behind it.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}/.well-known/est", self.port)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request as curl makes it: status, media type and body.
pub(crate) fn curl(
    ca: &Path,
    url: &str,
    identity: Option<&(PathBuf, PathBuf)>,
    more: &[&str],
) -> (u16, String, String) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*"]);
    command.args(["--write-out", "\n%{http_code} %{content_type}"]).arg("--cacert").arg(ca);
    if let Some((cert, key)) = identity {
        command.arg("--cert").arg(cert).arg("--key").arg(key);
    }
    let output = command.args(more).arg(url).output().expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, rest) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    let (status, media_type) = rest.split_once(' ').unwrap();
    (status.parse().unwrap_or_else(|_| panic!("{output:?}")), media_type.to_owned(), body.to_owned())
}
