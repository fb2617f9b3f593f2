//! The agent under a service manager: what it is told, the sockets it is given, the watchdog, and no work without need.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::agent::{Device, PATIENCE};
use crate::support::strace::wait_until_stopped;
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

    /// Ten times, for a limit of 200 ms: one is due every 100 ms.
    fn watchdog_is_fed(&self) {
        self.forget();
        let begin = Instant::now();
        for meal in 0..10 {
            self.told_until("WATCHDOG=1");
            assert!(begin.elapsed() < PATIENCE, "meal {meal} came late");
        }
        assert!(begin.elapsed() > Duration::from_millis(500), "not more often than it has to be");
    }

    /// Passes over what has been told so far, and counts it.
    fn forget(&self) -> usize {
        self.0.set_nonblocking(true).unwrap();
        let told = std::iter::from_fn(|| self.0.recv(&mut [0; 4096]).ok()).count();
        self.0.set_nonblocking(false).unwrap();
        told
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
    // For a configuration.
    let mut device = Device::new(UNCONFIGURED);
    let manager = Manager::of(&mut device);
    device.environment("WATCHDOG_USEC", "200000");
    device.start();
    manager.watchdog_is_fed();

    // For a time to do something.
    let mut world = World::enrolled();
    world.device.kill();
    let manager = Manager::of(&mut world.device);
    world.device.environment("WATCHDOG_USEC", "200000");
    world.device.start();
    world.device.wait_for("active");
    manager.watchdog_is_fed();

    // For a MIS that never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = World::new();
    let url = format!("https://127.0.0.1:{}", silent.local_addr().unwrap().port());
    world.device.configure(&world::config(&world.mis, &world.tpm, "").replace(&world.mis.url(), &url));
    let manager = Manager::of(&mut world.device);
    world.device.environment("WATCHDOG_USEC", "200000");
    world.device.start();
    let _connection = silent.accept().unwrap();
    manager.watchdog_is_fed();
    assert!(world.device.status()["lastError"].is_null(), "it still waits for the answer");
}

#[test]
fn its_watchdog_hears_nothing_of_an_agent_that_hangs() {
    let mut device = Device::new(UNCONFIGURED);
    let manager = Manager::of(&mut device);
    device.environment("WATCHDOG_USEC", "200000");
    device.start();
    manager.watchdog_is_fed();
    device.signal("STOP");
    wait_until_stopped(device.pid());
    manager.forget(); // what was sent before is there
    thread::sleep(Duration::from_secs(1));
    assert_eq!(manager.forget(), 0);
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
    assert!(!world.device.path("run/sign.sock").exists(), "it was not passed: nobody is to have it");

    // A caller that comes while the agent is away waits, and is answered by the next one.
    assert!(world.device.stop().success());
    assert!(world.device.path("run/agent.sock").exists());
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

/// How often a thread of the agent's has waited for something and got it.
fn wakings(device: &Device) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", device.pid())).unwrap();
    let of_thread = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    statuses.filter_map(of_thread).sum()
}

/// Waits for so long a time in which nothing wakes it.
fn sleeps_for(device: &Device, time: Duration) {
    let begin = Instant::now();
    loop {
        let before = wakings(device);
        thread::sleep(time);
        if wakings(device) == before {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "it is woken again and again within {time:?}");
    }
}

/// Active, with an SVID for months and a bundle for an hour.
fn with_little_to_do() -> World {
    let mut world = World::with(|settings| {
        settings.policy.svid_lifetime = Duration::from_secs(90 * 86_400);
        settings.policy.refresh_hint = Some(3600);
    });
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("refresh = \"1s\"", "refresh = \"1h\""));
    world.device.start();
    world.device.wait_for("active");
    world
}

#[test]
fn an_active_agent_is_woken_by_what_is_due_and_by_nothing_else() {
    let world = with_little_to_do();
    // The threads that enrollment and publication needed go after ten seconds without work.
    sleeps_for(&world.device, Duration::from_secs(15));
}

#[test]
#[ignore = "needs root: the kernel shows nobody else the timers of an agent that keeps to itself"]
fn the_next_time_that_an_active_agent_wakes_is_what_is_due() {
    let world = with_little_to_do();
    // The one timer is set when the agent sleeps again after the request for its status.
    sleeps_for(&world.device, Duration::from_secs(1));
    let timers = fs::read_dir(format!("/proc/{}/fdinfo", world.device.pid())).unwrap();
    let timers = timers.filter_map(|timer| fs::read_to_string(timer.ok()?.path()).ok());
    let waits = timers.filter(|timer| timer.contains("clockid: 7\n")).map(|timer| {
        let left = timer.split_once("it_value: (").unwrap().1;
        left.split(',').next().unwrap().parse::<u64>().unwrap()
    });
    let waits: Vec<u64> = waits.collect();
    assert!(matches!(waits[..], [1800..=3600]), "{waits:?}");
}

#[test]
fn an_unconfigured_agent_does_nothing_and_sees_at_once_that_it_is_configured() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    world.device.wait_for("unconfigured");

    sleeps_for(&world.device, Duration::from_secs(5)); // once the new folders have been looked at

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
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    world.device.wait_for("active");
}

#[test]
fn a_new_device_follows_its_configuration_and_one_with_an_identity_waits_to_be_told() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    world.device.wait_for("unconfigured");
    let config = world::config(&world.mis, &world.tpm, "");
    let config = config.replace("{dir}", world.device.dir().to_str().unwrap());
    let folder = world.device.path("config.d");
    fs::create_dir(&folder).unwrap();

    // One part after the other, and with a mistake: whoever corrects it need not say so.
    let (mis, rest) = config.split_at(config.find("[mis.trust]").unwrap());
    fs::write(folder.join("10-mis.toml"), mis).unwrap();
    world.device.wait_for("blocked");
    fs::write(folder.join("20-rest.toml"), rest.replace("[key]", "[kee]")).unwrap();
    world.device.wait_until("the mistake is named", |device| device.log().contains("unknown field `kee`"));
    fs::write(folder.join("20-rest.toml"), rest).unwrap();
    world.device.wait_for("active");
    // It followed what the configuration says, and not every change in its folder.
    let read = world.device.log().matches("the configuration has been read anew").count();
    assert_eq!(read, 1, "{}", world.device.log());

    // Now it is somebody. A slip does not make it somebody else's.
    fs::write(folder.join("10-mis.toml"), "[mis]\norigin = \"https://elsewhere.example\"\n").unwrap();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(world.device.status()["state"], "active");
    assert!(!world.device.log().contains("elsewhere.example"));
}

#[test]
fn who_is_being_answered_when_the_agent_ends_gets_the_answer() {
    let mut world = World::enrolled();
    let mut callers: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(world.device.path("run/agent.sock")).unwrap()).collect();
    world.device.get("/healthz").unwrap(); // those before this one are accepted
    world.device.signal("TERM");
    for caller in &mut callers {
        let _ = caller.write_all(STATUS.as_bytes());
    }
    for caller in &mut callers {
        let mut answer = String::new();
        caller.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    assert!(world.device.wait_for_exit().success());
}
