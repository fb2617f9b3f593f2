//! Other people's clients in Go, Java and Node on the agent's sockets, through rotations, restarts
//! and a change of the trust domain's root. Started by `make interop`, which builds the clients
//! first: README.md in this directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)] // for other tests
#[path = "../agent/world.rs"]
mod world;

mod clients;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use development_mis::{AnchorStep, Endpoint, Fault, MintSpec};
use nix::unistd::getuid;
use serde_json::{Value, json};

use clients::{Client, Clients, go, go_example, has, java, node};
use world::World;

const ROTATIONS: usize = 5;
/// Minimum number of handshakes, so that there was one at each of the moments that matter.
const MIN_HANDSHAKES: u64 = 100;
/// Long enough for a handshake while the agent is away.
const DOWNTIME: Duration = Duration::from_secs(1);

/// A device and its clients.
struct Scenario {
    world: World,
    clients: Clients,
    serial: Value,
    in_tpm: bool,
}

impl Scenario {
    /// The agent runs, and the MIS cannot be reached yet.
    fn before_enrollment(protection: &str) -> Self {
        let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
        // More than its clients need. At the level debug each request is logged, with its process.
        let more = "max_connections = 2048\n".to_owned();
        let more =
            more + &format!("[workload_api]\nkey_users = [\"{}\"]\n[log]\nlevel = \"debug\"\n", getuid());
        let config = world::config(&world.mis, &world.tpm, &more);
        if protection == "software" {
            world.tpm.stop();
            world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
        } else {
            world.device.configure(&config);
        }
        world.mis.stop_listening().unwrap();
        world.device.start();
        Self { world, clients: Clients::default(), serial: Value::Null, in_tpm: protection == "tpm" }
    }

    fn socket(&self) -> String {
        self.path("run/agent.sock").to_str().unwrap().to_owned()
    }

    /// Directory of the sockets.
    fn dir(&self) -> String {
        self.path("run").to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.device.path(name)
    }

    fn start(&self, command: std::process::Command) -> Client {
        self.clients.start(command, &self.path("clients.log"))
    }

    fn enroll(&mut self) {
        self.world.mis.resume().unwrap();
        let status = self.world.device.wait_for("active");
        self.serial = status["svid"]["serial"].clone();
    }

    fn command(&self, words: &[&str]) {
        let output = self.world.device.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Renews the SVID, and waits until all clients have it.
    fn renew(&mut self, anchors: usize) {
        self.command(&["renew"]);
        let status = self.world.device.wait_for_another_svid(&self.serial);
        self.serial = status["svid"]["serial"].clone();
        self.all_see(anchors);
    }

    fn all_see(&self, anchors: usize) {
        self.clients.all_see(self.serial.as_str().unwrap(), anchors);
    }

    /// Five rotations, a stop, a SIGKILL and another root.
    fn live(&mut self, mut after_each: impl FnMut(&Self)) {
        self.all_see(1);
        for _ in 0..ROTATIONS {
            self.renew(1);
            after_each(self);
        }

        assert!(self.world.device.stop().success());
        std::thread::sleep(DOWNTIME);
        self.start_the_agent();
        self.renew(1);
        after_each(self);

        self.world.device.kill();
        std::thread::sleep(DOWNTIME);
        self.start_the_agent();
        self.renew(1);
        after_each(self);

        let old = self.clients.anchors();
        self.world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
        self.all_see(2);
        self.world.mis.rotate_anchors(AnchorStep::Switch).unwrap();
        self.renew(2);
        after_each(self);
        self.world.mis.rotate_anchors(AnchorStep::DropOld).unwrap();
        self.all_see(1);
        assert_ne!(self.clients.anchors(), old);
        self.renew(1);
        after_each(self);
    }

    fn start_the_agent(&mut self) {
        if self.in_tpm {
            self.world.tpm.flush(); // what an agent left in it; the kernel does so on a device
        }
        self.world.device.start();
        self.world.device.wait_for("active");
    }

    /// The status codes with which calls end now.
    fn codes(&self) -> Value {
        let clients = Clients::default();
        let _client = clients.start(go(&["codes", &self.socket()]), &self.path("clients.log"));
        clients.find("the codes", |line| line["client"] == "grpc-go codes")
    }

    /// Waits for a health status; SERVING if there is an identity.
    fn health_is(&self, status: &str) {
        for service in ["", "SpiffeWorkloadAPI"] {
            self.clients.wait_for(&format!("{service:?} is {status}"), |reports| {
                let name = format!("grpc-go health {service}");
                let last = reports.iter().rfind(|line| line["client"] == name.as_str());
                last.is_some_and(|line| line["watch"] == status && line["check"] == status)
            });
        }
        let unknown = self.clients.latest("grpc-go health nothing.of.this.Name");
        assert_eq!((&unknown["watch"], &unknown["check"]), (&json!("SERVICE_UNKNOWN"), &json!("NotFound")));
    }
}

const NOT_THERE: [&str; 2] = ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/nothing/at.all"];

#[test]
fn software_keys_with_go_java_and_node() {
    let mut scenario = Scenario::before_enrollment("software");
    let (socket, dir) = (scenario.socket(), scenario.dir());
    let mut servers = Vec::new();
    let mut dialer = None;
    let mut running = Vec::new();
    if has("go") {
        let codes = scenario.codes();
        assert_eq!(
            (&codes["FetchX509SVID"], &codes["FetchX509Bundles"]),
            (&json!("Unavailable"), &json!("Unavailable"))
        );
        for what in ["watch", "health", "streams"] {
            running.push(scenario.start(go(&[what, &socket])));
        }
        servers.push(scenario.start(go(&["serve", "software", &dir])));
        dialer = Some(scenario.start(go(&["dial", "software", &dir])));
        scenario.health_is("NOT_SERVING");
        for name in ["X509Source", "WatchX509Context"] {
            scenario.clients.expect(&format!("go-spiffe {name}"), true, true);
        }
        for name in ["go-spiffe BundleSource", "go-spiffe WatchX509Bundles", "grpc-go, 20 streams"] {
            scenario.clients.expect(name, false, true);
        }
        scenario.clients.expect("served by Go", true, false);
    }
    let mut java_client = None;
    if has("java") {
        java_client = Some(scenario.start(java(&[&socket, "svid"])));
        for name in ["DefaultX509Source", "watchX509Context"] {
            scenario.clients.expect(&format!("java-spiffe {name}"), true, true);
        }
        scenario.clients.expect("java-spiffe watchX509Bundles", false, true);
        scenario.clients.expect("served by Java", true, false);
    }
    if has("node") {
        running.push(scenario.start(node(&["follow-svid", &socket])));
        scenario.clients.expect("grpc-js FetchX509SVID", true, true);
        scenario.clients.expect("grpc-js, 20 streams", false, true);
    }
    // Each is refused at least once before there is an identity.
    let started: Vec<&Client> = running.iter().chain(&servers).chain(&dialer).chain(&java_client).collect();
    scenario.world.device.wait_until("a request of each client", |device| {
        let log = device.log();
        started
            .iter()
            .all(|client| log.contains(&format!("socket request uid={} pid={} ", getuid(), client.id())))
    });
    scenario.enroll();

    let addresses: Vec<String> = servers.iter().chain(&java_client).map(Client::address).collect();
    for address in &addresses {
        if let Some(dialer) = &mut dialer {
            dialer.send(address);
            scenario.clients.expect(&format!("Go at {address}"), true, false);
        }
        if let Some(java) = &mut java_client {
            if java.address() != *address {
                java.send(address);
            }
            scenario.clients.expect(&format!("Java at {address}"), true, false);
        }
    }
    scenario.live(|_| ());

    // An identity that is withdrawn comes back, and all clients get it.
    scenario.world.mis.sticky_fault(Endpoint::Bundle, Fault::Status(503));
    scenario.world.mis.sticky_fault(Endpoint::Discovery, Fault::Status(503));
    scenario.command(&["retire", "--yes"]);
    if has("go") {
        scenario.health_is("NOT_SERVING");
        let codes = scenario.codes();
        assert_eq!(
            (&codes["FetchX509SVID"], &codes["FetchX509Bundles"]),
            (&json!("Unavailable"), &json!("Unavailable"))
        );
    }
    scenario.world.mis.clear_faults();
    scenario.command(&["retry"]);
    scenario.serial = scenario.world.device.wait_for("active")["svid"]["serial"].clone();
    scenario.all_see(1);
    if has("go") {
        scenario.health_is("SERVING");
        let codes = scenario.codes();
        assert_eq!((&codes["FetchX509SVID"], &codes["FetchX509Bundles"]), (&json!("OK"), &json!("OK")));
        assert_eq!(codes["FetchJWTSVID"], "Unimplemented");
        for method in NOT_THERE {
            assert_eq!(codes[method], "Unimplemented", "{method}");
        }
    }
    one_call_more(&scenario);
    // The dialers end before the servers do.
    for client in dialer.into_iter().chain(java_client).chain(servers) {
        let handshakes = client.handshakes();
        assert!(handshakes >= MIN_HANDSHAKES, "{handshakes} handshakes");
    }
    drop(running);
}

#[test]
fn tpm_keys_with_go_java_and_node() {
    let mut scenario = Scenario::before_enrollment("tpm");
    let (socket, dir) = (scenario.socket(), scenario.dir());
    let mut handshakes = Vec::new();
    let mut running = Vec::new();
    let mut page = None;
    if has("go") {
        assert_eq!(scenario.codes()["FetchX509Bundles"], "Unavailable");
        for what in ["bundles", "health", "streams"] {
            running.push(scenario.start(go(&[what, &socket])));
        }
        handshakes.push(scenario.start(go(&["dial", "tpm", &dir])));
        handshakes.push(scenario.start(go(&["serve", "tpm", &dir])));
        page = Some(scenario.start(go(&["page", "tpm", &dir])));
        for name in ["go-spiffe WatchX509Bundles", "grpc-go, 20 streams"] {
            scenario.clients.expect(name, false, true);
        }
        scenario.clients.expect("served by Go", true, false);
    }
    if has("java") {
        running.push(scenario.start(java(&[&socket, "bundles"])));
        scenario.clients.expect("java-spiffe watchX509Bundles", false, true);
    }
    if has("node") {
        running.push(scenario.start(node(&["follow-bundles", &socket])));
        scenario.clients.expect("grpc-js, 20 streams", false, true);
    }
    scenario.enroll();
    if let [dialer, server] = &mut handshakes[..] {
        let address = server.address();
        dialer.send(&address);
        scenario.clients.expect(&format!("Go at {address}"), true, false);
        let waited =
            scenario.clients.find("the sources", |line| line["client"] == "go-spiffe sources without a key");
        assert_eq!(waited["waited"], true);
    }
    // docs/using-the-identity.md: the example, with each identity.
    let page = page.map(|page| (page.address(), page));
    let spiffe_id = scenario.world.device.status()["spiffeId"].as_str().unwrap().to_owned();
    scenario.live(|scenario| {
        let Some((address, _)) = &page else { return };
        let output = go_example(&[&dir, address, &spiffe_id]).output().unwrap();
        let (read, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let serial = scenario.serial.as_str().unwrap().replace(':', "");
        assert_eq!(read.trim(), format!("hello {}", serial.trim_start_matches('0')), "{errors}");
    });
    if let Some((address, _)) = &page {
        let other = format!("{spiffe_id}x");
        assert!(!go_example(&[&dir, address, &other]).output().unwrap().status.success());
        scenario.health_is("SERVING");
        let codes = scenario.codes();
        assert_eq!(
            (&codes["FetchX509SVID"], &codes["FetchX509Bundles"]),
            (&json!("PermissionDenied"), &json!("OK"))
        );
        for method in NOT_THERE {
            assert_eq!(codes[method], "Unimplemented", "{method}");
        }
    }
    one_call_more(&scenario);
    for client in handshakes {
        let handshakes = client.handshakes();
        assert!(handshakes >= MIN_HANDSHAKES, "{handshakes} handshakes");
    }
    drop(running);
}

/// A caller that may have two identities gets both, the default one first, and can tell them apart.
#[test]
fn both_svids_of_a_caller_with_go_java_and_node() {
    let mut scenario = Scenario::before_enrollment("software");
    let me = getuid();
    let config = fs::read_to_string(scenario.path("config.toml")).unwrap();
    let client = "[[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\n";
    let identities = format!(
        "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n{client}users = [\"{me}\"]\n\
         [[identity]]\nname = \"not-for-it\"\nenroll = \"manual\"\n"
    );
    scenario.world.device.configure(&format!("{config}{identities}"));
    scenario.world.device.signal("HUP");
    scenario.enroll();
    let device = scenario.world.device.status()["spiffeId"].clone();
    let of = |name: &str| format!("spiffe://factory.example/margo/wfm/wfm-1/client/{name}");
    for name in ["not-for-it", "wfm-client"] {
        let csr = scenario.world.device.run(&["csr", "--identity", name, "--spiffe-id", &of(name)]);
        let minted = scenario.world.mis.mint(&MintSpec::csr(csr.stdout)).unwrap();
        fs::write(scenario.path("chain.pem"), minted.chain_pem).unwrap();
        scenario.command(&["install", "--identity", name, scenario.path("chain.pem").to_str().unwrap()]);
        scenario.world.device.wait_until("the identity", |device| {
            let status = device.status_document();
            let mut all = status["identities"].as_array().unwrap().iter();
            all.any(|identity| identity["name"] == name && identity["state"] == "active")
        });
    }
    let socket = scenario.socket();
    let mut running = Vec::new();
    let wanted = json!([[device, "device"], [of("wfm-client"), "wfm-client"]]);
    for (language, name, command) in [
        ("go", "go-spiffe FetchX509SVIDs", go as fn(&[&str]) -> std::process::Command),
        ("java", "java-spiffe getX509Svids", java),
        ("node", "grpc-js all SVIDs", node),
    ] {
        if !has(language) {
            continue; // tests/interop/run has said so
        }
        let arguments = if language == "java" { [socket.as_str(), "svids"] } else { ["svids", &socket] };
        running.push(scenario.start(command(&arguments)));
        let told = scenario.clients.find(name, |line| line["client"] == name);
        assert_eq!(told["svids"], wanted, "{name}");
    }
}

/// With 20 streams open on a connection, one call more was served.
fn one_call_more(scenario: &Scenario) {
    if has("go") {
        let streams = scenario.clients.latest("grpc-go, 20 streams");
        assert_eq!(streams["oneCallMore"], "OK", "{streams}");
        let first = scenario.clients.find("the first", |line| line["client"] == "grpc-go, 20 streams");
        assert_eq!(first["connections"], 1, "{first}");
    }
    if has("node") {
        let streams = scenario.clients.latest("grpc-js, 20 streams");
        assert_eq!(streams["oneCallMore"], "OK", "{streams}");
    }
}

/// Refused calls end with their status and nothing else; idle connections are closed by Node, and
/// not while it uses them.
#[test]
fn node_reads_refusals_and_closes_idle_connections() {
    if !has("node") {
        return; // tests/interop/run has said so
    }
    let mut scenario = Scenario::before_enrollment("software");
    scenario.enroll();
    let _client = scenario.start(node(&["calls", &scenario.socket()]));
    let refusals = scenario.clients.find("the refusals", |line| line["client"] == "grpc-js refusals");
    assert_eq!(refusals["codes"], json!(["UNIMPLEMENTED"]));
    let idle = scenario.clients.find("idle", |line| line["client"] == "Node idle connections");
    assert_eq!((&idle["kept"], &idle["errors"]), (&json!(0), &json!(0)), "{idle}");
}

/// Memory for many clients is returned while the agent runs.
#[test]
fn memory_is_returned_after_many_go_clients() {
    const ALLOWED_KIB: u64 = 4 * 1024;
    const LIMIT: Duration = Duration::from_secs(60);
    if !has("go") {
        return; // tests/interop/run has said so
    }
    let mut scenario = Scenario::before_enrollment("software");
    scenario.enroll();
    std::thread::sleep(Duration::from_secs(2));
    let anonymous = || {
        let status = fs::read_to_string(format!("/proc/{}/status", scenario.world.device.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let idle = anonymous();
    let crowd = scenario.start(go(&["crowd", &scenario.socket()]));
    scenario.clients.find("the crowd", |line| line["client"] == "crowd");
    let with_crowd = anonymous();
    drop(crowd);
    assert!(
        with_crowd > idle + ALLOWED_KIB,
        "{with_crowd} KiB with a crowd, {idle} before: it proves nothing"
    );
    let since = Instant::now();
    while anonymous() > idle + ALLOWED_KIB {
        assert!(
            since.elapsed() < LIMIT,
            "{idle} KiB before, {with_crowd} with the crowd, {} now",
            anonymous()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{idle} KiB before, {with_crowd} with the crowd, {} after {:?}", anonymous(), since.elapsed());
}
