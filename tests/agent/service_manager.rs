//! The agent under a service manager: what it is told, the sockets it is given, the watchdog, and no work without need.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::agent::{Device, PATIENCE};
use crate::world::{self, World};

const UNCONFIGURED: &str = "state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n";
const STATUS: &str = "GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// What the service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn of(device: &mut Device) -> Self {
        let path = device.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        device.environment("NOTIFY_SOCKET", path.to_str().unwrap());
        Self(socket)
    }

    /// The lines up to one that begins so, that one included.
    fn told_until(&self, last: &str) -> Vec<String> {
        let mut told: Vec<String> = Vec::new();
        let mut buffer = [0; 4096];
        while !told.iter().any(|line| line.starts_with(last)) {
            let length = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("no {last} but {told:?}: {e}"));
            told.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        told
    }
}

#[test]
fn it_is_told_what_the_agent_does() {
    let mut world = World::new();
    let manager = Manager::of(&mut world.device);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.stop().success());
    let told = manager.told_until("STOPPING=1");
    assert_eq!(told.first().map(String::as_str), Some("READY=1"));
    assert!(told.iter().any(|line| line.starts_with("STATUS=active: spiffe://factory.example/")), "{told:?}");
    assert!(!told.contains(&"WATCHDOG=1".to_owned()), "nobody watches");
}

#[test]
fn its_watchdog_is_fed_whatever_the_agent_waits_for() {
    let mut device = Device::new(UNCONFIGURED);
    let manager = Manager::of(&mut device);
    device.environment("WATCHDOG_USEC", "200000");
    device.start();
    let fed_for = |what: &str| {
        let begin = Instant::now();
        for meal in 0..10 {
            manager.told_until("WATCHDOG=1");
            assert!(begin.elapsed() < Duration::from_secs(5), "{what}: meal {meal} came late");
        }
        assert!(begin.elapsed() > Duration::from_millis(500), "{what}: every 100 ms, and not more often");
    };
    fed_for("unconfigured");
    device.kill();

    let mut world = World::enrolled();
    world.device.kill();
    let manager = Manager::of(&mut world.device);
    world.device.environment("WATCHDOG_USEC", "200000");
    world.device.start();
    for _ in 0..10 {
        manager.told_until("WATCHDOG=1");
    }
}

#[test]
fn its_watchdog_hears_nothing_of_an_agent_whose_main_loop_hangs() {
    let mut device = Device::new(UNCONFIGURED);
    let manager = Manager::of(&mut device);
    device.environment("WATCHDOG_USEC", "200000");
    device.start();
    manager.told_until("WATCHDOG=1");
    device.signal("STOP");
    thread::sleep(Duration::from_millis(300)); // what was sent before is read
    let mut buffer = [0; 4096];
    manager.0.set_nonblocking(true).unwrap();
    while manager.0.recv(&mut buffer).is_ok() {}
    thread::sleep(Duration::from_secs(1));
    assert!(manager.0.recv(&mut buffer).is_err());
}

#[test]
fn each_right_has_a_socket_of_its_own() {
    let mut world = World::enrolled();
    for (name, mode) in [("agent", 0o660), ("sign", 0o660), ("admin", 0o600)] {
        let path = format!("run/{name}.sock");
        assert_eq!(fs::metadata(world.device.path(&path)).unwrap().mode() & 0o777, mode, "{name}");
        let (status, body) = world.device.request_at(&path, STATUS).unwrap();
        assert!(status == 200 && body.contains("spiffe://"), "{name}: {body}");
    }
    assert!(world.device.stop().success());
    assert_eq!(fs::read_dir(world.device.path("run")).unwrap().count(), 0, "none is left behind");
}

#[test]
fn sockets_that_are_passed_are_served_and_outlive_the_agent() {
    let mut world = World::new();
    world.device.pass_socket("agent", "run/agent.sock");
    world.device.pass_socket("admin", "elsewhere/commands.sock");
    world.device.start();
    let id = world.device.wait_for("active")["spiffeId"].clone();
    let (status, body) = world.device.request_at("elsewhere/commands.sock", STATUS).unwrap();
    assert!(status == 200 && body.contains(id.as_str().unwrap()), "{body}");
    assert!(!world.device.path("run/admin.sock").exists(), "it was passed: no other is bound");
    assert!(world.device.path("run/sign.sock").exists(), "it was not passed");

    // A caller that comes while the agent is away waits, and is answered by the next one.
    assert!(world.device.stop().success());
    assert!(world.device.path("run/agent.sock").exists() && !world.device.path("run/sign.sock").exists());
    let mut caller = UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
    caller.write_all(STATUS.as_bytes()).unwrap();
    world.device.start();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(id.as_str().unwrap()), "{answer}");
}

#[test]
fn a_socket_of_an_unknown_name_is_not_served_and_named() {
    let mut device = Device::new(UNCONFIGURED);
    device.pass_socket("wfm", "run/wfm.sock");
    device.start();
    assert!(device.log().contains("a socket called \"wfm\" was passed"), "{}", device.log());
}

#[test]
fn an_unconfigured_agent_does_nothing_and_sees_at_once_that_it_is_configured() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    world.device.wait_for("unconfigured");

    let switches = |device: &Device| {
        let status = fs::read_to_string(format!("/proc/{}/status", device.pid())).unwrap();
        let line =
            status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    thread::sleep(Duration::from_millis(500)); // the connection above is closed
    let before = switches(&world.device);
    thread::sleep(Duration::from_secs(5));
    assert_eq!(switches(&world.device), before, "nothing woke it in five seconds");

    // By a drop-in, in a folder that is new, written in two goes: one half is not a configuration.
    let folder = world.device.path("config.d");
    fs::create_dir(&folder).unwrap();
    thread::sleep(Duration::from_millis(200));
    let config = world::config(&world.mis, &world.tpm, "");
    let config = config.replace("{dir}", world.device.dir().to_str().unwrap());
    let file = folder.join("10-site.toml");
    {
        let (first, second) = config.split_at(config.find("[mis.trust]").unwrap());
        let mut file = fs::File::create(&file).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(500));
        assert_eq!(world.device.status()["state"], "unconfigured");
        file.write_all(second.as_bytes()).unwrap();
    }
    let begin = Instant::now();
    world.device.wait_for_status("a start", |status| status["state"] != "unconfigured");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    world.device.wait_for("active");
}
