//! nginx with the device's key, as a server and in front of one, through rotations.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::device::{Device, SIGNER, leaf_in};
use crate::page;
use crate::peer::Peer;
use crate::process::{output_of, wait_until};
use crate::support::agent::PATIENCE;
use crate::support::directory::open_to_all;
use crate::support::log::Log;
use crate::support::ports;

const TAKE_OVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/systemd/nginx-take-over");

/// An nginx with the page's two servers.
struct Nginx<'a> {
    device: &'a Device,
    ports: Ports,
    _log: Log,
    /// The process group of the first one, and of all that come after it.
    group: String,
}

#[derive(Clone, Copy)]
struct Ports {
    server: u16,
    proxy: u16,
    /// The server behind it, which responds with the client's certificate.
    behind: u16,
}

impl<'a> Nginx<'a> {
    fn start(device: &'a Device, peer: &Peer) -> Self {
        fs::create_dir(device.path("nginx")).unwrap();
        open_to_all(&device.path("nginx"), 0o777);
        // The user may not reach the checkout: it may lie below another user's home.
        fs::copy(TAKE_OVER, device.path("nginx-take-over")).unwrap();
        open_to_all(&device.path("nginx-take-over"), 0o755);
        let log = Log::new("nginx", device.path("nginx/error.log"));
        for _ in 0..20 {
            let ports = Ports { server: ports::free(), proxy: ports::free(), behind: ports::free() };
            fs::write(device.path("nginx.conf"), configuration(device, peer, ports)).unwrap();
            open_to_all(&device.path("nginx.conf"), 0o644);
            let start = format!(
                "{} exec /usr/sbin/nginx -e {errors} -c {}",
                page::block("sh environment"),
                device.path("nginx.conf").display(),
                errors = device.path("nginx/error.log").display(),
            );
            let output = device.user(SIGNER, "sh").args(["-ec", &device.here(&start)]).output().unwrap();
            if output.status.success() {
                let mut group = String::new();
                wait_until("nginx to say which process it is", || {
                    group = fs::read_to_string(device.path("nginx/nginx.pid")).unwrap_or_default();
                    group.ends_with('\n')
                });
                let group = group.trim().to_owned();
                return Self { device, ports, _log: log, group };
            }
            let says = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(says.contains("Address already in use"), "nginx does not start: {says}");
        }
        panic!("nginx finds no free ports");
    }

    /// What `systemctl reload` does with the drop-in.
    fn take_over(&self) {
        let script = self.device.path("nginx-take-over");
        output_of(
            self.device.user(SIGNER, script.to_str().unwrap()).arg(self.device.path("nginx/nginx.pid")),
        );
    }

    /// The response of the server behind the proxy, which sees the proxy as the device.
    fn through_the_proxy(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.proxy)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("no request is cut off");
        let errors = || fs::read_to_string(self.device.path("nginx/error.log")).unwrap();
        assert!(answer.contains("Verify return code: 0 (ok)"), "{answer}\n{}", errors());
        assert!(answer.contains(&format!("URI:{}", self.device.spiffe_id())), "{answer}");
        answer
    }

    /// The certificate that it presents as a server.
    fn leaf(&self) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-showcerts", "-connect", &format!("127.0.0.1:{}", self.ports.server)]);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        leaf_in(&String::from_utf8_lossy(&output.stdout)).expect("a server's certificate")
    }
}

impl Drop for Nginx<'_> {
    fn drop(&mut self) {
        let _ = Command::new("sh").args(["-c", "kill -s KILL -- \"-$1\"", "sh", &self.group]).status();
    }
}

fn configuration(device: &Device, peer: &Peer, ports: Ports) -> String {
    let server = page::block("nginx server")
        .replace("listen 8444", &format!("listen 127.0.0.1:{}", ports.server))
        .replace("127.0.0.1:8000", &format!("127.0.0.1:{}", ports.behind));
    let proxy = page::block("nginx proxy")
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{}", ports.proxy))
        .replace("https://wfm.factory.example:8443", &format!("https://127.0.0.1:{}", peer.port()));
    let dir = device.path("nginx");
    let dir = dir.display();
    let text = format!(
        "{main}
        env DBUS_SYSTEM_BUS_ADDRESS; # of this test alone
        pid {dir}/nginx.pid;
        error_log {dir}/error.log info;
        events {{ }}
        http {{
            access_log off;
            client_body_temp_path {dir}/body;
            proxy_temp_path {dir}/proxy;
            fastcgi_temp_path {dir}/fastcgi;
            uwsgi_temp_path {dir}/uwsgi;
            scgi_temp_path {dir}/scgi;
            {server}
            {proxy}
            server {{
                listen 127.0.0.1:{behind};
                location / {{ return 200 \"$http_x_client_cert\"; }}
            }}
        }}",
        main = page::block("nginx main"),
        behind = ports.behind,
    );
    device.here(&peer.here(&text))
}

/// Sets it when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root: programs are run as another user"]
fn nginx_serves_through_rotations_as_server_and_proxy() {
    let device = Device::renewing();
    let peer = Peer::start(&device);
    let nginx = Nginx::start(&device, &peer);
    // The device itself is the client, in Python; it accepts the one SPIFFE ID that it expects.
    let program = page::block("python peer")
        .replace("\"plc.factory.example\", 8444", &format!("\"127.0.0.1\", {}", nginx.ports.server));
    let ask = |id: &str| {
        let (before, rest) = program.split_once("[\"spiffe:").unwrap();
        let (_, after) = rest.split_once("\"]").unwrap();
        let program = format!("{before}[\"{id}\"]{after}");
        device.run(SIGNER, &format!("exec /usr/bin/python3 - <<'PROGRAM'\n{program}PROGRAM\n"))
    };
    let id = device.spiffe_id();

    for _ in 0..2 {
        let had = nginx.leaf();
        device.until_it_rotates(|| {
            nginx.through_the_proxy();
            let output = ask(&id);
            let answer = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{answer}{}", String::from_utf8_lossy(&output.stderr));
            assert!(
                answer.contains("-----BEGIN%20CERTIFICATE-----"),
                "the client's certificate went lost: {answer}"
            );
        });
        assert_eq!(nginx.leaf(), had, "nothing changes by itself");

        let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    nginx.through_the_proxy();
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _stop = StopAtEnd(&stop); // on the way out of a failure too: the scope waits for the thread
            let more = |count: usize| {
                let now = served.load(Ordering::Relaxed);
                wait_until("requests to be served", || served.load(Ordering::Relaxed) > now + count);
            };
            more(3);
            nginx.take_over();
            more(3);
        });
        let has = nginx.leaf();
        assert_ne!(has, had, "the new identity is not used");
        assert_eq!(
            leaf_in(&nginx.through_the_proxy()).as_ref(),
            Some(&has),
            "not the identity that it serves with"
        );
    }

    // Another SPIFFE ID is not accepted for the device.
    let output = ask("spiffe://factory.example/margo/device/another");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("this is not the peer that was meant"));
    // A client without a certificate is refused.
    let url = format!("https://127.0.0.1:{}/", nginx.ports.server);
    let answer = output_of(Command::new("curl").args(["--silent", "--insecure", &url]));
    assert!(answer.contains("No required SSL certificate was sent"), "{answer}");
    device.is_content();
}
